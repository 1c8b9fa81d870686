"""Examples of notes 002 (the 4-4-3-3 network) and 003 (computation graphs)."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from diffprog import backprop as bp
from diffprog.backprop import Layer
from experiments.sources.differentiators import Differentiator, compile_gradients
from experiments.sources.helpers import (
    SQUARED_ERROR,
    WEIGHTED_SUM,
    Inputs,
    Quantities,
    gradient_step,
    linear,
    make_params,
    named_chain,
)

EXERCISE = named_chain(
    "x", z1=bp.affine(4, 4), h1=bp.tanh(), z2=bp.affine(4, 3), h2=bp.tanh(), z3=bp.affine(3, 3)
)


def exercise_4433_sq(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Compute gradients and one step of descent of a 4-4-3-3 tanh network, all parameters 0.1."""
    return _compute_exercise(inputs, differentiate, SQUARED_ERROR, inputs["y"][None], lambda z: z)


def exercise_4433_softmax_ce(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Do the same under softmax cross-entropy: gradients below the last layer are zero."""
    loss = bp.sum_over_examples(bp.softmax_cross_entropy())
    return _compute_exercise(
        inputs, differentiate, loss, np.array([inputs["y"].argmax()]), jax.nn.softmax
    )


def _constant_params(value: float) -> dict[str, Any]:
    shapes = jax.eval_shape(EXERCISE.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value), shapes)


def _compute_exercise(
    inputs: Inputs,
    differentiate: Differentiator,
    loss: Layer,
    y: Any,
    output: Callable[[Array], Array],
) -> Quantities:
    run = compile_gradients(differentiate, EXERCISE, loss)
    params, x = _constant_params(inputs["all_weights"].item()), inputs["x"][None]
    grads = run(params, x, y)
    after = gradient_step(params, grads.dparams, inputs["lr"])
    names = [
        (k, short, name) for k in (1, 2, 3) for short, name in (("W", "weight"), ("b", "bias"))
    ]
    return {
        **{name: value for name, value in grads.values.items() if name != "x"},
        **{f"d{name}": adjoint for name, adjoint in grads.adjoints.items()},
        **{f"d{short}{k}": grads.dparams[f"z{k}"][name] for k, short, name in names},
        **{f"{short}{k}_new": after[f"z{k}"][name] for k, short, name in names},
        "yhat": output(grads.values["z3"]),
        "loss": grads.value,
        "loss_after": run(after, x, y).value,
    }


def exercise_4433_two_examples(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Compute gradients of the sum and of the mean of the losses of two examples."""
    x, y = np.stack([inputs["x1"], inputs["x2"]]), np.stack([inputs["y1"], inputs["y2"]])
    quantities: Quantities = {}
    mean = bp.mean_over_examples(bp.half_squared_error())
    for name, loss in (("sum", SQUARED_ERROR), ("mean", mean)):
        run = compile_gradients(differentiate, EXERCISE, loss)
        dparams = run(_constant_params(0.1), x, y).dparams
        quantities |= {f"dW{k}_{name}": dparams[f"z{k}"]["weight"] for k in (1, 3)}
    return quantities


def chain_rt(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Differentiate r = 3 t³ + t² along two paths: 9 t² + 2 t."""
    power = bp.power_product(1, 1)
    nodes: Any = {
        "cube": (power, "t"),
        "u": (linear([[3.0]]), "cube"),
        "v": (power, "t"),
        "r": (bp.add(), ("u", "v")),
    }
    params = {
        "cube": {"alpha": np.array([[3.0]])},
        "u": {"weight": np.array([[3.0]])},
        "v": {"alpha": np.array([[2.0]])},
        "r": (),
    }
    run = compile_gradients(differentiate, bp.dag(nodes, output="r", inputs=("t",)), WEIGHTED_SUM)
    return {"drdt": run(params, inputs["t"][None, None], np.ones((1, 1))).dx}


def xyz(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Differentiate f = (x + y) z."""
    net = bp.dag(
        {"q": (bp.add(), ("x", "y")), "f": (bp.multiply(), ("q", "z"))},
        output="f",
        inputs=("x", "y", "z"),
    )
    run = compile_gradients(differentiate, net, WEIGHTED_SUM)
    grads = run({"q": (), "f": ()}, tuple(inputs[name][None] for name in "xyz"), np.ones(1))
    return {name: grads.values[name] for name in "qf"} | {
        f"df_d{name}": grads.adjoints[name] for name in "fqzxy"
    }


def wx_norm2(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Differentiate f = |W x|²."""
    net = bp.dag(
        {"q": (linear(inputs["W"]), "x"), "squares": (bp.multiply(), ("q", "q"))}, output="squares"
    )
    run = compile_gradients(differentiate, net, WEIGHTED_SUM)
    grads = run(make_params(net, q=inputs["W"]), inputs["x"][None], np.ones((1, 2)))
    dw = grads.dparams["q"]["weight"]
    return {
        "q": grads.values["q"],
        "two_q": grads.adjoints["q"],
        "f": grads.value,
        "dW": dw,
        "dW_numerator": bp.numerator_layout(dw),
        "dx": grads.dx,
        "two_WT": 2 * inputs["W"].T,
    }
