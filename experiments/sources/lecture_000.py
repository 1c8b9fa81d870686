"""The examples of lecture 000: a tanh network, matrix calculus, and descent on parameters and on inputs."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffprog import backprop as bp
from experiments.sources.differentiators import Route, compiled
from experiments.sources.helpers import (
    SQUARES,
    TIMES,
    Given,
    Quantities,
    in_line,
    jacobian,
    matrix,
    pulled,
    stepped,
    with_params,
)


def mit_tanh_221(given: Given, route: Route) -> Quantities:
    """Two inputs, two tanh units, one output, and one step of descent."""
    net = in_line("x0", x1=matrix(given["W0"]), x2=bp.tanh(), x3=matrix(given["W1"]))
    run = compiled(route, net, SQUARES)
    params, x, y = (
        with_params(net, x1=given["W0"], x3=given["W1"]),
        given["x0"][None],
        given["y"][None, None],
    )
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
    found = compiled(route, net, SQUARES)(
        with_params(net, z=given["W1"], yhat=given["W2"]), given["x"][None], given["y"][None]
    )
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
        weight = np.ones((outputs, inputs))
        return jacobian(
            matrix(weight), np.ones(inputs), outputs, route, {"weight": weight}
        ).dx.shape

    by_matrix = pulled(
        matrix(np.ones((3, 5))),
        np.ones((1, 5)),
        np.ones((1, 3)),
        route,
        {"weight": np.ones((3, 5))},
    ).dparams
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
    return {
        "dy": found.dx,
        "db": dparams["bias"],
        "dW": dparams["weight"],
        "dW_numerator": rows["weight"],
    }


def momentum_quadratic(given: Given, route: Route) -> Quantities:
    """theta+ = theta - eta grad f - alpha m with m = theta_{t-1} - theta_t, on f = lambda theta^2 / 2; and the same without m."""
    net = in_line("theta", scaled=matrix(np.ones((1, 1))))
    run, params = (
        compiled(route, net, SQUARES),
        with_params(net, scaled=np.sqrt(given["lam"])[None, None]),
    )

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
        "lambda R": (matrix(np.ones((1, 1))), "R"),
        "J": (bp.add(), ("y", "lambda R")),
    }
    net = bp.dag(nodes, output="J")
    run, params = (
        compiled(route, net, TIMES),
        with_params(net, y=column, R=half, **{"lambda R": given["lam"][None, None]}),
    )
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
