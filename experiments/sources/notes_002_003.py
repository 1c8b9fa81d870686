"""The examples of the notes 002, the 4-4-3-3 network, and 003, computation graphs."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from diffprog import backprop as bp
from diffprog.backprop import Layer
from experiments.sources.differentiators import Route, compiled
from experiments.sources.helpers import (
    SQUARES,
    TIMES,
    Given,
    Quantities,
    in_line,
    matrix,
    stepped,
    with_params,
)


def exercise_4433_sq(given: Given, route: Route) -> Quantities:
    """4-4-3-3, tanh units, linear output, every weight and bias 0.1, half squared error, and one step of descent."""
    return _exercise(given, route, SQUARES, given["y"][None], lambda z: z)


def exercise_4433_softmax_ce(given: Given, route: Route) -> Quantities:
    """The same with a softmax output and cross-entropy: every gradient below the last layer is zero."""
    loss = bp.sum_over_examples(bp.softmax_cross_entropy())
    return _exercise(given, route, loss, np.array([given["y"].argmax()]), jax.nn.softmax)


EXERCISE = in_line(
    "x", z1=bp.affine(4, 4), h1=bp.tanh(), z2=bp.affine(4, 3), h2=bp.tanh(), z3=bp.affine(3, 3)
)


def _all_equal(value: float) -> dict[str, Any]:
    return jax.tree.map(
        lambda leaf: np.full(leaf.shape, value), jax.eval_shape(EXERCISE.init, jax.random.key(0))
    )


def _exercise(
    given: Given, route: Route, loss: Layer, y: Any, output: Callable[[Array], Array]
) -> Quantities:
    run, params, x = (
        compiled(route, EXERCISE, loss),
        _all_equal(given["all_weights"].item()),
        given["x"][None],
    )
    found = run(params, x, y)
    after = stepped(params, found.dparams, given["lr"])
    names = {"W": "weight", "b": "bias"}
    return {
        **{name: value for name, value in found.values.items() if name != "x"},
        **{f"d{name}": adjoint for name, adjoint in found.adjoints.items()},
        **{
            f"d{short}{k}": found.dparams[f"z{k}"][name]
            for k in (1, 2, 3)
            for short, name in names.items()
        },
        **{
            f"{short}{k}_new": after[f"z{k}"][name]
            for k in (1, 2, 3)
            for short, name in names.items()
        },
        "yhat": output(found.values["z3"]),
        "loss": found.value,
        "loss_after": run(after, x, y).value,
    }


def exercise_4433_two_examples(given: Given, route: Route) -> Quantities:
    """The gradient of a sum is the sum of the gradients; that of the mean is 1/N of it."""
    x, y = np.stack([given["x1"], given["x2"]]), np.stack([given["y1"], given["y2"]])
    quantities: Quantities = {}
    for name, loss in (("sum", SQUARES), ("mean", bp.mean_over_examples(bp.half_squared_error()))):
        dparams = compiled(route, EXERCISE, loss)(_all_equal(0.1), x, y).dparams
        quantities |= {f"dW{k}_{name}": dparams[f"z{k}"]["weight"] for k in (1, 3)}
    return quantities


def chain_rt(given: Given, route: Route) -> Quantities:
    """r = u + v with u = 3 t^3 and v = t^2: two paths from t, whose derivatives add up to 9 t^2 + 2 t."""
    power = bp.power_product(1, 1)
    nodes: Any = {
        "cube": (power, "t"),
        "u": (matrix([[3.0]]), "cube"),
        "v": (power, "t"),
        "r": (bp.add(), ("u", "v")),
    }
    exponents = {
        name: {"alpha": np.array([[alpha]])} for name, alpha in (("cube", 3.0), ("v", 2.0))
    }
    run = compiled(route, bp.dag(nodes, output="r", inputs=("t",)), TIMES)
    return {
        "drdt": run(
            {"u": {"weight": np.array([[3.0]])}, "r": (), **exponents},
            given["t"][None, None],
            np.ones((1, 1)),
        ).dx
    }


def xyz(given: Given, route: Route) -> Quantities:
    """f = (x + y) z: the add gate distributes, the multiply gate switches."""
    net = bp.dag(
        {"q": (bp.add(), ("x", "y")), "f": (bp.multiply(), ("q", "z"))},
        output="f",
        inputs=("x", "y", "z"),
    )
    found = compiled(route, net, TIMES)(
        {"q": (), "f": ()}, tuple(given[name][None] for name in "xyz"), np.ones(1)
    )
    return {name: found.values[name] for name in "qf"} | {
        f"df_d{name}": found.adjoints[name] for name in "fqzxy"
    }


def wx_norm2(given: Given, route: Route) -> Quantities:
    """f = |W x|^2."""
    net = bp.dag(
        {"q": (matrix(given["W"]), "x"), "squares": (bp.multiply(), ("q", "q"))}, output="squares"
    )
    found = compiled(route, net, TIMES)(
        with_params(net, q=given["W"]), given["x"][None], np.ones((1, 2))
    )
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
