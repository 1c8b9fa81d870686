"""The numeric examples of the five lectures as programs.

Each function takes the inputs of one example of `tests/golden.json` and a *route*, a way to differentiate a net, and returns the
quantities of that example by the names they have there. A route is called as `diffprog.backprop.value_and_grads` is and returns what that
returns, so that the program is written once and the three routes are told apart by nothing but how they differentiate.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffprog import backprop as bp
from diffprog import gradients
from diffprog.backprop import Gradients, Layer

Given = dict[str, Any]
Route = Callable[[Layer, Layer, Any, Any, Any], Gradients]
Quantities = dict[str, Any]
GOLDEN = Path(__file__).parent.parent / "tests" / "golden.json"


def golden() -> dict[str, dict[str, Any]]:
    """The examples by their id: inputs, true values, what the source prints and how that compares."""
    return {example["id"]: example for example in json.loads(GOLDEN.read_text(encoding="utf-8"))["examples"]}


# ---- the three routes


def by_hand(net: Layer, loss: Layer, params: Any, x: Any, y: Any) -> Gradients:
    """The backward passes written in `diffprog.backprop`."""
    return bp.value_and_grads(net, loss, params, x, y)


def by_autodiff(net: Layer, loss: Layer, params: Any, x: Any, y: Any) -> Gradients:
    """`jax.grad` of the forward passes alone; an adjoint is the gradient with respect to something added to a value."""
    zeros = _zeros(net, params, x)
    cost = functools.partial(_cost, net, loss, y)
    (value, values), found = jax.value_and_grad(cost, has_aux=True)((params, x, zeros))
    return _gradients(net, value, values, found)


def by_differences(net: Layer, loss: Layer, params: Any, x: Any, y: Any) -> Gradients:
    """Central differences of the forward passes."""
    zeros = _zeros(net, params, x)
    cost = functools.partial(_cost, net, loss, y)
    value, values = cost((params, x, zeros))
    return _gradients(net, value, values, gradients.numerical(lambda at: cost(at)[0])((params, x, zeros)))


@functools.cache
def compiled(route: Route, net: Layer, loss: Layer) -> Callable[[Any, Any, Any], Gradients]:
    """One route on one net as one program, compiled fast rather than well: it runs a few times on a few numbers."""
    return jax.jit(functools.partial(route, net, loss), compiler_options={"xla_backend_optimization_level": 0})


def _cost(net: Layer, loss: Layer, y: Any, at: tuple[Any, Any, dict[str, Array]]) -> tuple[Array, dict[str, Array]]:
    params, x, added = at
    values = dict(zip(net.inputs, x if len(net.inputs) > 1 else (x,), strict=True))
    for k, part in enumerate(net.parts):
        read = tuple(values[source] for source in part.sources)
        own = params[part.name] if isinstance(params, dict) else params[k]
        values[part.name] = part.layer.forward(own, read if len(read) > 1 else read[0])[0] + added[part.name]
    return loss.forward((), (values[net.parts[-1].name], y))[0], values


def _zeros(net: Layer, params: Any, x: Any) -> dict[str, Array]:
    none = {part.name: 0.0 for part in net.parts}
    _, values = jax.eval_shape(functools.partial(_cost, net, TIMES, 0.0), (params, x, none))
    return {part.name: jnp.zeros(values[part.name].shape, values[part.name].dtype) for part in net.parts}


def _gradients(net: Layer, value: Array, values: dict[str, Array], found: tuple[Any, Any, dict[str, Array]]) -> Gradients:
    dparams, dx, adjoints = found
    inputs = dict(zip(net.inputs, dx if len(net.inputs) > 1 else (dx,), strict=True))
    return Gradients(value, dparams, dx, values, inputs | adjoints)


# ---- what the examples are made of


def _loss(name: str, value: Callable[[Array, Array], Array], slope: Callable[[Array, Array], Array]) -> Layer:
    """J = value(prediction, y), with dJ/dprediction by hand; y is given and has no derivative."""
    return Layer(
        lambda key: (),
        lambda params, pair: (value(*pair), pair),
        lambda params, pair, dloss: ((), (dloss * slope(*pair), None)),
        name,
    )


TIMES = _loss("sum of prediction times y", lambda prediction, y: (prediction * y).sum(), lambda prediction, y: y)
SURPRISE = _loss("-sum of y log prediction", lambda prediction, y: -(y * jnp.log(prediction)).sum(), lambda prediction, y: -y / prediction)
SQUARES = bp.sum_over_examples(bp.half_squared_error())
IDENTITY = bp.chain([bp.leaky_relu(1)])


def in_line(source: str, **layers: Layer) -> Layer:
    """Named layers, each reading the one before it, the first `source`."""
    nodes = dict(zip(layers, zip(layers.values(), [source, *layers], strict=False), strict=True))
    return bp.dag(nodes, output=list(layers)[-1], inputs=(source,))


def matrix(weight: Any) -> Layer:
    """z = W x without a bias, of the size of W."""
    outputs, inputs = np.shape(weight)
    return bp.affine(inputs, outputs, bias=False)


def with_params(net: Layer, **weights: Any) -> dict[str, Any]:
    """The params of a net whose parts are plain matrices or have none."""
    return {part.name: {"weight": weights[part.name]} if part.name in weights else () for part in net.parts}


def stepped(params: Any, dparams: Any, rate: float) -> Any:
    """One step of gradient descent."""
    return jax.tree.map(lambda p, d: p - rate * d, params, dparams)


def pulled(layer: Layer, z: Any, dy: Any, route: Route, params: Any = ()) -> Gradients:
    """dy pulled back through one layer: the gradient of sum_i dy_i y_i."""
    return compiled(route, bp.chain([layer]), TIMES)((params,), z, dy)


def jacobian(layer: Layer, z: Float[Array, " n"], outputs: int, route: Route, params: Any = ()) -> Gradients:
    """The same with the rows of the unit matrix as a batch of dy: `dx` is the Jacobian, rows outputs."""
    return pulled(layer, np.tile(z, (outputs, 1)), np.eye(outputs), route, params)


def slopes(layer: Layer, z: Any, route: Route) -> Array:
    """f'(z) of an elementwise f."""
    return pulled(layer, z[None], np.ones_like(z)[None], route).dx[0]


# ---- lecture 000


def mit_tanh_221(given: Given, route: Route) -> Quantities:
    """Two inputs, two tanh units, one output, and one step of descent."""
    net = in_line("x0", x1=matrix(given["W0"]), x2=bp.tanh(), x3=matrix(given["W1"]))
    run = compiled(route, net, SQUARES)
    params, x, y = with_params(net, x1=given["W0"], x3=given["W1"]), given["x0"][None], given["y"][None, None]
    found = run(params, x, y)
    after = stepped(params, found.dparams, given["lr"])
    dw0, dw1 = found.dparams["x1"]["weight"], found.dparams["x3"]["weight"]
    rows = bp.numerator_layout({"W0": dw0, "W1": dw1})
    return {
        **{name: found.values[name] for name in ("x1", "x2", "x3")},
        **{f"dL_d{name}": found.adjoints[name] for name in ("x3", "x2", "x1")},
        "loss": found.value,
        "dL_dW0_numerator": rows["W0"],
        "dL_dW1_numerator": rows["W1"],
        "dL_dW0": dw0,
        "dL_dW1": dw1,
        "W0_new": after["x1"]["weight"],
        "W1_new": after["x3"]["weight"],
        "loss_after": run(after, x, y).value,
        "W0_new_if_transpose_forgotten": given["W0"] - given["lr"] * rows["W0"],
    }


def mit_mlp_relu(given: Given, route: Route) -> Quantities:
    """x, linear, relu, linear, half squared error; g_1 .. g_4 are the adjoints from the output to x."""
    net = in_line("x", z=matrix(given["W1"]), h=bp.relu(), yhat=matrix(given["W2"]))
    found = compiled(route, net, SQUARES)(with_params(net, z=given["W1"], yhat=given["W2"]), given["x"][None], given["y"][None])
    return {
        **{name: found.values[name] for name in ("z", "h", "yhat")},
        **{f"g{k}T": found.adjoints[name] for k, name in enumerate(("yhat", "h", "z", "x"), 1)},
        "J": found.value,
        "dW1": found.dparams["z"]["weight"],
        "dW2": found.dparams["yhat"]["weight"],
    }


def numerator_layout_shapes(given: Given, route: Route) -> Quantities:
    """The shape of a derivative, of a scalar or vector by a vector or matrix."""
    z, u, x = (int(given[f"{name}_len"]) for name in "zux")

    def shape(outputs: int, inputs: int) -> tuple[int, ...]:
        layer = bp.affine(inputs, outputs, bias=False)
        return jacobian(layer, np.ones(inputs), outputs, route, {"weight": np.ones((outputs, inputs))}).dx.shape

    by_matrix = pulled(bp.affine(5, 3, bias=False), np.ones((1, 5)), np.ones((1, 3)), route, {"weight": np.ones((3, 5))}).dparams
    return {
        "dz_du_shape": shape(z, u),
        "du_dx_shape": shape(u, x),
        "dz_dx_shape": shape(z, x),
        "dy_dX_shape_for_X_3_by_5": bp.numerator_layout(by_matrix)[0]["weight"].shape,
    }


def lecture_dims_chain(given: Given, route: Route) -> Quantities:
    """Jacobians multiply along a chain: [1 x 2] [2 x 4] = [1 x 4]."""
    net = in_line("x", u=matrix(given["J2"]), z=matrix(given["J1"]))
    params = with_params(net, u=given["J2"], z=given["J1"])
    return {"product": compiled(route, net, TIMES)(params, np.ones((1, 4)), np.ones((1, 1))).dx}


def affine_rules(given: Given, route: Route) -> Quantities:
    """dy = dz W, db = dz, dW = dz^T y, which is the transpose of the numerator layout y dz."""
    params = {"weight": given["W"], "bias": np.zeros(3)}
    found = pulled(bp.affine(4, 3), given["y"][None], given["dz"][None], route, params)
    dparams = found.dparams[0]
    rows = bp.numerator_layout(dparams)
    return {"dy": found.dx, "db": dparams["bias"], "dW": dparams["weight"], "dW_numerator": rows["weight"]}


def momentum_quadratic(given: Given, route: Route) -> Quantities:
    """theta+ = theta - eta grad f - alpha m with m = theta_{t-1} - theta_t, on f = lambda theta^2 / 2; and the same without m."""
    net = in_line("theta", scaled=matrix([[1.0]]))
    run, params = compiled(route, net, SQUARES), with_params(net, scaled=np.sqrt(given["lam"])[None, None])

    def path(alpha: float) -> list[float]:
        thetas, m = [float(given["theta0"])], float(given["m0"])
        for _ in range(10):
            gradient = float(run(params, np.array([[thetas[-1]]]), np.zeros((1, 1))).dx[0, 0])
            thetas.append(thetas[-1] - given["eta"] * gradient - alpha * m)
            m = thetas[-2] - thetas[-1]
        return thetas

    return {"theta": path(given["alpha"]), "plain_gd": path(0.0)}


def unit_visualisation_linear(given: Given, route: Route) -> Quantities:
    """Ascent on the input, x+ = x + eta d(y_j + lambda R)/dx, with y = w x and R = -|x|^2 / 2; it ends at w / lambda."""
    half, column = np.full((1, 3), -0.5), given["w"][None]
    nodes: Any = {
        "y": (matrix(column), "x"),
        "squares": (bp.multiply(), ("x", "x")),
        "R": (matrix(half), "squares"),
        "lambda R": (bp.affine(1, 1, bias=False), "R"),
        "J": (bp.add(), ("y", "lambda R")),
    }
    net = bp.dag(nodes, output="J")
    run, params = compiled(route, net, TIMES), with_params(net, y=column, R=half, **{"lambda R": given["lam"][None, None]})
    xs = [given["x0"][None]]
    for _ in range(600):
        xs.append(xs[-1] + given["eta"] * np.asarray(run(params, xs[-1], np.ones((1, 1))).dx))
    return {"iterates": np.concatenate(xs[:4]), "fixed_point": xs[-1]}


def adversarial_linear_softmax(given: Given, route: Route) -> Quantities:
    """The perturbation of size eps that most raises log p(target), to first order: along the gradient in L2, along its signs in Linf."""
    net = in_line("x", z=matrix(given["W"]), logp=bp.log_softmax())
    run, params, x = compiled(route, net, TIMES), with_params(net, z=given["W"]), given["x"][None]
    target = np.eye(2)[int(given["target"])][None]
    found = run(params, x, target)
    signs = given["eps"] * jnp.sign(found.dx)
    return {
        "p": jnp.exp(found.values["logp"]),
        "dlogp_dx": found.dx,
        "r_L2": given["eps"] * found.dx / jnp.linalg.norm(found.dx),
        "r_Linf": signs,
        "p_after_Linf": jnp.exp(run(params, x + signs, target).values["logp"]),
    }


# ---- lecture 001


def sigmoid_221(given: Given, route: Route) -> Quantities:
    """Two inputs, two sigmoid units, one sigmoid output, and one step of descent; deltas have the lecture's sign."""
    net = in_line("x0", net1=matrix(given["W1"]), x1=bp.sigmoid(), net2=matrix(given["W2"]), y=bp.sigmoid())
    run = compiled(route, net, SQUARES)
    params, x, t = with_params(net, net1=given["W1"], net2=given["W2"]), given["x"][None], given["t"][None, None]
    found = run(params, x, t)
    after = stepped(params, found.dparams, given["lr"])
    again = run(after, x, t)
    return {
        **{name: found.values[name] for name in ("net1", "x1", "net2", "y")},
        **{f"delta{k}": bp.deltas(found)[f"net{k}"] for k in (1, 2)},
        **{f"dW{k}": found.dparams[f"net{k}"]["weight"] for k in (1, 2)},
        **{f"W{k}_new": after[f"net{k}"]["weight"] for k in (1, 2)},
        "loss": found.value,
        "y_after": again.values["y"],
        "loss_after": again.value,
    }


def sigmoid_222_2(given: Given, route: Route) -> Quantities:
    """A network is a function: sigma(W3 sigma(W2 sigma(W1 x + b1) + b2) + b3)."""
    layers = {f"{letter}{k}": bp.affine(2, 2) if letter == "z" else bp.sigmoid() for k in (1, 2, 3) for letter in "za"}
    net = in_line("x", **layers)
    params = {name: {"weight": given[f"W{name[1]}"], "bias": given[f"b{name[1]}"]} if name[0] == "z" else () for name in layers}
    values = compiled(route, net, SQUARES)(params, given["x"][None], np.zeros((1, 2))).values
    return {name: values[name] for name in ("z1", "a1", "z2", "a2", "z3")} | {"y": values["a3"]}


def param_count(given: Given, route: Route) -> Quantities:
    """How many numbers a layer of 1000 units on 1000 inputs has."""
    sizes = jax.tree.map(lambda leaf: leaf.size, jax.eval_shape(bp.affine(int(given["n_in"]), int(given["n_out"])).init, jax.random.key(0)))
    return {"weights": sizes["weight"], "weights_and_biases": sizes["weight"] + sizes["bias"]}


def digit_input(given: Given, route: Route) -> Quantities:
    """A 16 x 16 image as a vector."""
    image = np.zeros((1, int(given["h"]), int(given["w"]), 1))
    return {"N": pulled(bp.flatten(), image, np.ones((1, image.size)), route).values["flatten1"].size}


def activations(given: Given, route: Route) -> Quantities:
    """The five elementwise activations and their slopes."""
    layers = {"sigmoid": bp.sigmoid(), "tanh": bp.tanh(), "relu": bp.relu()}
    layers |= {"leaky": bp.leaky_relu(given["leaky"].item()), "elu": bp.elu(given["elu_alpha"].item())}
    values = {name: layer.forward((), given["z"])[0] for name, layer in layers.items()}
    return values | {f"d{name}": slopes(layer, given["z"], route) for name, layer in layers.items()}


def leaky_relu(given: Given, route: Route) -> Quantities:
    """max(0.1 z, z): the slope a little to the left and a little to the right."""
    layer, z, little = bp.leaky_relu(given["slope"].item()), given["z"], 1e-3
    sides = {"left_derivative": slopes(layer, z - little, route), "right_derivative": slopes(layer, z + little, route)}
    return {"y": layer.forward((), z)[0], **sides}


def maxout(given: Given, route: Route) -> Quantities:
    """max(w1 x + b1, w2 x + b2)."""
    params, x = {"weight": given["w"], "bias": given["b"]}, given["x"][None]
    found = pulled(bp.maxout(2, 1), x, np.ones((1, 1)), route, params)
    pieces = bp.affine(2, 2).forward(params, x)[0]
    dparams = found.dparams[0]
    return {"a": pieces, "y": found.value, "dx": found.dx, "dw": dparams["weight"], "db": dparams["bias"]}


# ---- source 002


def exercise_4433_sq(given: Given, route: Route) -> Quantities:
    """4-4-3-3, tanh units, linear output, every weight and bias 0.1, half squared error, and one step of descent."""
    return _exercise(given, route, SQUARES, given["y"][None], lambda z: z)


def exercise_4433_softmax_ce(given: Given, route: Route) -> Quantities:
    """The same with a softmax output and cross-entropy: every gradient below the last layer is zero."""
    loss = bp.sum_over_examples(bp.softmax_cross_entropy())
    return _exercise(given, route, loss, np.argmax(given["y"])[None], jax.nn.softmax)


EXERCISE = in_line("x", z1=bp.affine(4, 4), h1=bp.tanh(), z2=bp.affine(4, 3), h2=bp.tanh(), z3=bp.affine(3, 3))


def _all_equal(value: float) -> dict[str, Any]:
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value), jax.eval_shape(EXERCISE.init, jax.random.key(0)))


def _exercise(given: Given, route: Route, loss: Layer, y: Any, output: Callable[[Array], Array]) -> Quantities:
    run, params, x = compiled(route, EXERCISE, loss), _all_equal(given["all_weights"].item()), given["x"][None]
    found = run(params, x, y)
    after = stepped(params, found.dparams, given["lr"])
    names = {"W": "weight", "b": "bias"}
    return {
        **{name: value for name, value in found.values.items() if name != "x"},
        **{f"d{name}": adjoint for name, adjoint in found.adjoints.items()},
        **{f"d{short}{k}": found.dparams[f"z{k}"][name] for k in (1, 2, 3) for short, name in names.items()},
        **{f"{short}{k}_new": after[f"z{k}"][name] for k in (1, 2, 3) for short, name in names.items()},
        "yhat": output(found.values["z3"]),
        "loss": found.value,
        "loss_after": run(after, x, y).value,
    }


def exercise_4433_two_examples(given: Given, route: Route) -> Quantities:
    """The gradient of a sum is the sum of the gradients; that of the mean is 1/N of it."""
    x, y, quantities = np.stack([given["x1"], given["x2"]]), np.stack([given["y1"], given["y2"]]), {}
    for name, loss in (("sum", SQUARES), ("mean", bp.mean_over_examples(bp.half_squared_error()))):
        dparams = compiled(route, EXERCISE, loss)(_all_equal(0.1), x, y).dparams
        quantities |= {f"dW{k}_{name}": dparams[f"z{k}"]["weight"] for k in (1, 3)}
    return quantities


def chain_rt(given: Given, route: Route) -> Quantities:
    """r = u + v with u = 3 t^3 and v = t^2: two paths from t, whose derivatives add up to 9 t^2 + 2 t."""
    power = bp.power_product(1, 1)
    nodes: Any = {"cube": (power, "t"), "u": (matrix([[3.0]]), "cube"), "v": (power, "t"), "r": (bp.add(), ("u", "v"))}
    exponents = {name: {"alpha": np.array([[alpha]])} for name, alpha in (("cube", 3.0), ("v", 2.0))}
    run = compiled(route, bp.dag(nodes, output="r", inputs=("t",)), TIMES)
    return {"drdt": run({"u": {"weight": np.array([[3.0]])}, "r": (), **exponents}, given["t"][None, None], np.ones((1, 1))).dx}


# ---- lecture 003


def xyz(given: Given, route: Route) -> Quantities:
    """f = (x + y) z: the add gate distributes, the multiply gate switches."""
    net = bp.dag({"q": (bp.add(), ("x", "y")), "f": (bp.multiply(), ("q", "z"))}, output="f", inputs=("x", "y", "z"))
    found = compiled(route, net, TIMES)({"q": (), "f": ()}, tuple(given[name][None] for name in "xyz"), np.ones(1))
    return {name: found.values[name] for name in "qf"} | {f"df_d{name}": found.adjoints[name] for name in "fqzxy"}


def wx_norm2(given: Given, route: Route) -> Quantities:
    """f = |W x|^2."""
    net = bp.dag({"q": (matrix(given["W"]), "x"), "squares": (bp.multiply(), ("q", "q"))}, output="squares")
    found = compiled(route, net, TIMES)(with_params(net, q=given["W"]), given["x"][None], np.ones((1, 2)))
    dw = found.dparams["q"]["weight"]
    return {
        "q": found.values["q"],
        "two_q": found.adjoints["q"],
        "f": found.value,
        "dW": dw,
        "dW_numerator": bp.numerator_layout(dw),
        "dx": found.dx,
        "two_WT": 2 * given["W"].T,
    }


# ---- lecture 004


def gd_convergence_rule(given: Given, route: Route) -> Quantities:
    """do theta = theta - eta dL/dtheta while |L_k - L_{k-1}| > eps, on L = theta^2 / 2."""
    run, zero, theta = compiled(route, IDENTITY, SQUARES), np.zeros((1, 1)), given["theta0"][None, None]
    losses, found = [np.inf], run(((),), theta, zero)
    while len(losses) == 1 or abs(float(found.value) - losses[-1]) > given["eps"]:
        losses.append(float(found.value))
        theta = theta - given["eta"] * np.asarray(found.dx)
        found = run(((),), theta, zero)
    return {"iterations": len(losses) - 1, "final_theta": theta, "final_loss": found.value}


def softmax_jacobian(given: Given, route: Route) -> Quantities:
    """A vector activation has a full Jacobian, y_i (d_ij - y_j); under cross-entropy it leaves y - d."""
    z, d = given["z"], given["onehot"][None]
    whole = jacobian(bp.softmax(), z, 3, route).dx
    fused = compiled(route, IDENTITY, bp.sum_over_examples(bp.softmax_kl()))(((),), z[None], d)
    apart = compiled(route, in_line("z", y=bp.softmax()), SURPRISE)({"y": ()}, z[None], d)
    return {
        "y": apart.values["y"],
        "J": whole,
        "rowsum": whole.sum(1),
        "dCE_dz": fused.dx,
        "dCE_dy": apart.adjoints["y"],
        "dCE_via_J": apart.dx,
    }


def two_or_not_two(given: Given, route: Route) -> Quantities:
    """One sigmoid and the KL divergence: dKL/dz = Y - d."""
    z, run = given["z"][None], compiled(route, IDENTITY, bp.sum_over_examples(bp.sigmoid_kl()))
    found, other = run(((),), z, np.ones(1)), run(((),), z, np.zeros(1))
    apart = compiled(route, in_line("z", y=bp.sigmoid()), SURPRISE)({"y": ()}, z, given["d"][None])
    quantities = {"Y": apart.values["y"], "KL": found.value, "dKL_dY": apart.adjoints["y"], "dKL_dz": found.dx}
    return quantities | {"KL_d0": other.value, "dKL_dz_d0": other.dx}


def digit_softmax_kl(given: Given, route: Route) -> Quantities:
    """Ten or eleven softmax outputs and the KL divergence: dKL/dz = Y - d, and at chance the loss is log K."""
    run, d = compiled(route, IDENTITY, bp.sum_over_examples(bp.softmax_kl())), given["d"][None]
    found, chance = run(((),), given["z"][None], d), run(((),), np.zeros_like(d), d)
    return {"Y": bp.softmax().forward((), given["z"])[0], "KL": found.value, "dKL_dz": found.dx, "chance_loss": chance.value}


def multiplicative_prod_pow(given: Given, route: Route) -> Quantities:
    """y_i = prod_l z_l^alpha_li by z and by alpha; the printed form of the derivative is y_i alpha_ji / z_j where z is not 0."""
    alpha, z = given["alpha"], given["z"]
    found = jacobian(bp.power_product(3, 2), z, 2, route, {"alpha": alpha})
    y = found.values["power_product1"][0]
    divided = y[:, None] * alpha.T / z
    return {"y": y, "dy_dz": found.dx, "dy_dz_alt": divided, "dy_dalpha": found.dparams[0]["alpha"].T}


def multiplicative_pairs(given: Given, route: Route) -> Quantities:
    """y_i = z_{2i-1} z_{2i}."""
    found = pulled(bp.pairwise_product(), given["y_prev"][None], given["upstream"][None], route)
    return {"y": found.values["pairwise_product1"], "d_prev": found.dx}


def relu_at_0(given: Given, route: Route) -> Quantities:
    """At the kink every slope between the left and the right one is a subgradient; each library chooses."""
    z, little = given["z"][None], 1e-3
    left, right = slopes(bp.relu(), z - little, route), slopes(bp.relu(), z + little, route)
    return {
        **{"left": left, "right": right, "subgradient_lo": left, "subgradient_hi": right},
        "seed_choice": slopes(bp.relu(at_zero=1), z, by_hand),
        "jax_nn_relu": slopes(bp.relu(), z, by_hand),
        "jnp_maximum_x_0": slopes(bp.relu(), z, by_autodiff),
        "central_difference": slopes(bp.relu(), z, by_differences),
    }


def max_subset(given: Given, route: Route) -> Quantities:
    """y_j = max over S_j: ties are shared; the lecture's argmax, the first of the largest, is what one gets with the others a little lower."""
    layer, z = bp.max_over([[int(i) for i in subset] for subset in given["subsets"].values()]), given["z"]
    return {
        "y": layer.forward((), z[None])[0],
        "J_jnp_max": jacobian(layer, z, 2, route).dx,
        "J_argmax": jacobian(layer, z - 1e-3 * np.arange(len(z)), 2, route).dx,
    }


# The id of an example, the rows of the sources that it stands for, and its program.
EXAMPLES: dict[str, tuple[str, Callable[[Given, Route], Quantities]]] = {
    "mit_tanh_221": ("0.17", mit_tanh_221),
    "mit_mlp_relu": ("0.5, 0.8, 4.4", mit_mlp_relu),
    "numerator_layout_shapes": ("0.3", numerator_layout_shapes),
    "lecture_dims_chain": ("0.4", lecture_dims_chain),
    "affine_rules": ("0.7, 4.2, 4.9, 4.10", affine_rules),
    "momentum_quadratic": ("0.12", momentum_quadratic),
    "unit_visualisation_linear": ("0.13, 0.14", unit_visualisation_linear),
    "adversarial_linear_softmax": ("0.16", adversarial_linear_softmax),
    "sigmoid_221": ("1.8, 1.9, 1.11", sigmoid_221),
    "sigmoid_222_2_f_1_m1": ("1.3, 1.4", sigmoid_222_2),
    "sigmoid_222_2_f_0_0": ("1.3, 1.4", sigmoid_222_2),
    "param_count": ("1.5", param_count),
    "digit_input": ("1.5", digit_input),
    "activations": ("1.2, 1.10", activations),
    "leaky_relu": ("1.2, 4.7", leaky_relu),
    "maxout": ("1.2", maxout),
    "exercise_4433_sq": ("0.9, 2.1, 2.2", exercise_4433_sq),
    "exercise_4433_softmax_ce": ("2.5", exercise_4433_softmax_ce),
    "exercise_4433_two_examples": ("2.3, 4.8", exercise_4433_two_examples),
    "chain_rt": ("1.6, 2.4", chain_rt),
    "xyz": ("1.7, 3.1", xyz),
    "wx_norm2": ("3.2", wx_norm2),
    "gd_convergence_rule": ("0.1, 4.1", gd_convergence_rule),
    "softmax_jacobian": ("4.5, 4.9", softmax_jacobian),
    "two_or_not_two": ("4.11", two_or_not_two),
    "digit_softmax_kl_10": ("1.1, 4.11", digit_softmax_kl),
    "digit_softmax_kl_11": ("4.11", digit_softmax_kl),
    "multiplicative_prod_pow": ("4.6", multiplicative_prod_pow),
    "multiplicative_pairs": ("3.1, 4.6", multiplicative_pairs),
    "relu_at_0": ("4.7", relu_at_0),
    "max_subset": ("3.1, 4.7", max_subset),
}


def quantities(name: str, inputs: Given, route: Route) -> dict[str, np.ndarray]:
    """The quantities of one example by one route, in float64."""
    given = {key: value if isinstance(value, str | dict) else np.asarray(value, np.float64) for key, value in inputs.items()}
    with jax.enable_x64(True):
        return {key: np.asarray(value, np.float64) for key, value in EXAMPLES[name][1](given, route).items()}
