"""Examples of lecture 000: tanh network, matrix calculus, descent on parameters and on inputs."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffprog import backprop as bp
from experiments.sources.differentiators import Differentiator, compile_gradients
from experiments.sources.helpers import (
    SQUARED_ERROR,
    WEIGHTED_SUM,
    Inputs,
    Quantities,
    gradient_step,
    jacobian,
    linear,
    make_params,
    named_chain,
    vjp,
)


def mit_tanh_221(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Compute gradients and one step of descent of a network of two tanh units and one output."""
    net = named_chain("x0", x1=linear(inputs["W0"]), x2=bp.tanh(), x3=linear(inputs["W1"]))
    run = compile_gradients(differentiate, net, SQUARED_ERROR)
    params = make_params(net, x1=inputs["W0"], x3=inputs["W1"])
    x, y = inputs["x0"][None], inputs["y"][None, None]
    grads = run(params, x, y)
    after = gradient_step(params, grads.dparams, inputs["lr"])
    dw0, dw1 = grads.dparams["x1"]["weight"], grads.dparams["x3"]["weight"]
    rows = bp.numerator_layout({"W0": dw0, "W1": dw1})
    return {
        **{name: grads.values[name] for name in ("x1", "x2", "x3")},
        **{f"dL_d{name}": grads.adjoints[name] for name in ("x3", "x2", "x1")},
        "loss": grads.value,
        "dL_dW0_numerator": rows["W0"],
        "dL_dW1_numerator": rows["W1"],
        "dL_dW0": dw0,
        "dL_dW1": dw1,
        "W0_new": after["x1"]["weight"],
        "W1_new": after["x3"]["weight"],
        "loss_after": run(after, x, y).value,
        "W0_new_if_transpose_forgotten": inputs["W0"] - inputs["lr"] * rows["W0"],
    }


def mit_mlp_relu(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Compute the adjoints g_1, ..., g_4, from output to input, of linear, relu, linear."""
    net = named_chain("x", z=linear(inputs["W1"]), h=bp.relu(), yhat=linear(inputs["W2"]))
    params = make_params(net, z=inputs["W1"], yhat=inputs["W2"])
    run = compile_gradients(differentiate, net, SQUARED_ERROR)
    grads = run(params, inputs["x"][None], inputs["y"][None])
    return {
        **{name: grads.values[name] for name in ("z", "h", "yhat")},
        **{f"g{k}T": grads.adjoints[name] for k, name in enumerate(("yhat", "h", "z", "x"), 1)},
        "J": grads.value,
        "dW1": grads.dparams["z"]["weight"],
        "dW2": grads.dparams["yhat"]["weight"],
    }


def numerator_layout_shapes(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Compute the shapes of derivatives by a vector and by a matrix, in numerator layout."""
    z, u, x = (int(inputs[f"{name}_len"]) for name in "zux")

    def shape(outputs: int, inputs: int) -> tuple[int, ...]:
        params = {"weight": np.ones((outputs, inputs))}
        layer = linear(params["weight"])
        return jacobian(layer, np.ones(inputs), outputs, differentiate, params).dx.shape

    weight = np.ones((3, 5))
    by_matrix = vjp(
        linear(weight), np.ones((1, 5)), np.ones((1, 3)), differentiate, {"weight": weight}
    ).dparams
    return {
        "dz_du_shape": shape(z, u),
        "du_dx_shape": shape(u, x),
        "dz_dx_shape": shape(z, x),
        "dy_dX_shape_for_X_3_by_5": bp.numerator_layout(by_matrix)[0]["weight"].shape,
    }


def lecture_dims_chain(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Multiply Jacobians along a chain: [1 x 2] [2 x 4] = [1 x 4]."""
    net = named_chain("x", u=linear(inputs["J2"]), z=linear(inputs["J1"]))
    params = make_params(net, u=inputs["J2"], z=inputs["J1"])
    run = compile_gradients(differentiate, net, WEIGHTED_SUM)
    return {"product": run(params, np.ones((1, 4)), np.ones((1, 1))).dx}


def affine_rules(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Differentiate z = W y + b: dy = dz W, db = dz, dW = dzᵀ y (numerator layout: y dz)."""
    params = {"weight": inputs["W"], "bias": np.zeros(3)}
    grads = vjp(bp.affine(4, 3), inputs["y"][None], inputs["dz"][None], differentiate, params)
    dparams = grads.dparams[0]
    rows = bp.numerator_layout(dparams)
    return {
        "dy": grads.dx,
        "db": dparams["bias"],
        "dW": dparams["weight"],
        "dW_numerator": rows["weight"],
    }


def momentum_quadratic(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Descend on f = λ θ² / 2 with momentum and without.

    θ ← θ - η f' - α m,    m_t = θ_{t-1} - θ_t
    """
    net = named_chain("theta", scaled=linear(np.ones((1, 1))))
    run = compile_gradients(differentiate, net, SQUARED_ERROR)
    params = make_params(net, scaled=np.sqrt(inputs["lam"])[None, None])

    def path(alpha: float) -> list[float]:
        thetas, m = [float(inputs["theta0"])], float(inputs["m0"])
        for _ in range(10):
            gradient = float(run(params, np.array([[thetas[-1]]]), np.zeros((1, 1))).dx[0, 0])
            thetas.append(thetas[-1] - inputs["eta"] * gradient - alpha * m)
            m = thetas[-2] - thetas[-1]
        return thetas

    return {"theta": path(inputs["alpha"]), "plain_gd": path(0.0)}


def unit_visualisation_linear(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Ascend on the input: x ← x + η d(y + λ R)/dx with y = w x, R = -|x|² / 2.

    The fixed point is w / λ.
    """
    half, column = np.full((1, 3), -0.5), inputs["w"][None]
    nodes: Any = {
        "y": (linear(column), "x"),
        "squares": (bp.multiply(), ("x", "x")),
        "R": (linear(half), "squares"),
        "lambda R": (linear(np.ones((1, 1))), "R"),
        "J": (bp.add(), ("y", "lambda R")),
    }
    net = bp.dag(nodes, output="J")
    run = compile_gradients(differentiate, net, WEIGHTED_SUM)
    params = make_params(net, y=column, R=half, **{"lambda R": inputs["lam"][None, None]})
    xs = [inputs["x0"][None]]
    for _ in range(600):
        xs.append(xs[-1] + inputs["eta"] * np.asarray(run(params, xs[-1], np.ones((1, 1))).dx))
    return {"iterates": np.concatenate(xs[:4]), "fixed_point": xs[-1]}


def adversarial_linear_softmax(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Compute the perturbations of size ε that raise log p(target) most, to first order.

    For the L2 norm it has the direction of the gradient, for Linf that of its signs.
    """
    net = named_chain("x", z=linear(inputs["W"]), logp=bp.log_softmax())
    run = compile_gradients(differentiate, net, WEIGHTED_SUM)
    params, x = make_params(net, z=inputs["W"]), inputs["x"][None]
    target = np.eye(2)[int(inputs["target"])][None]
    grads = run(params, x, target)
    signs = inputs["eps"] * jnp.sign(grads.dx)
    return {
        "p": jnp.exp(grads.values["logp"]),
        "dlogp_dx": grads.dx,
        "r_L2": inputs["eps"] * grads.dx / jnp.linalg.norm(grads.dx),
        "r_Linf": signs,
        "p_after_Linf": jnp.exp(run(params, x + signs, target).values["logp"]),
    }
