"""Examples of lecture 001: sigmoid networks, digits, activations."""

import jax
import numpy as np

from diffprog import backprop as bp
from experiments.sources.differentiators import Differentiator, compile_gradients
from experiments.sources.helpers import (
    SQUARED_ERROR,
    Inputs,
    Quantities,
    derivative_of,
    gradient_step,
    linear,
    make_params,
    named_chain,
    vjp,
)


def sigmoid_221(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Compute deltas, in the lecture's sign, and a step of descent of a 2-2-1 sigmoid network."""
    net = named_chain(
        "x0", net1=linear(inputs["W1"]), x1=bp.sigmoid(), net2=linear(inputs["W2"]), y=bp.sigmoid()
    )
    run = compile_gradients(differentiate, net, SQUARED_ERROR)
    params = make_params(net, net1=inputs["W1"], net2=inputs["W2"])
    x, t = inputs["x"][None], inputs["t"][None, None]
    grads = run(params, x, t)
    after = gradient_step(params, grads.dparams, inputs["lr"])
    again = run(after, x, t)
    return {
        **{name: grads.values[name] for name in ("net1", "x1", "net2", "y")},
        **{f"delta{k}": bp.deltas(grads)[f"net{k}"] for k in (1, 2)},
        **{f"dW{k}": grads.dparams[f"net{k}"]["weight"] for k in (1, 2)},
        **{f"W{k}_new": after[f"net{k}"]["weight"] for k in (1, 2)},
        "loss": grads.value,
        "y_after": again.values["y"],
        "loss_after": again.value,
    }


def sigmoid_222_2(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Evaluate the network σ(W3 σ(W2 σ(W1 x + b1) + b2) + b3)."""
    layers = {
        f"{letter}{k}": bp.affine(2, 2) if letter == "z" else bp.sigmoid()
        for k in (1, 2, 3)
        for letter in "za"
    }
    net = named_chain("x", **layers)
    params = {
        name: {"weight": inputs[f"W{name[1]}"], "bias": inputs[f"b{name[1]}"]}
        if name[0] == "z"
        else ()
        for name in layers
    }
    run = compile_gradients(differentiate, net, SQUARED_ERROR)
    values = run(params, inputs["x"][None], np.zeros((1, 2))).values
    return {name: values[name] for name in ("z1", "a1", "z2", "a2", "z3")} | {"y": values["a3"]}


def param_count(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Count the parameters of an affine layer."""
    layer = bp.affine(int(inputs["n_in"]), int(inputs["n_out"]))
    sizes = jax.tree.map(lambda leaf: leaf.size, jax.eval_shape(layer.init, jax.random.key(0)))
    return {"weights": sizes["weight"], "weights_and_biases": sizes["weight"] + sizes["bias"]}


def digit_input(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Flatten a 16 x 16 image to a vector."""
    image = np.zeros((1, int(inputs["h"]), int(inputs["w"]), 1))
    values = vjp(bp.flatten(), image, np.ones((1, image.size)), differentiate).values
    return {"N": values["flatten1"].size}


def activations(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Evaluate the five elementwise activations and their derivatives."""
    layers = {
        "sigmoid": bp.sigmoid(),
        "tanh": bp.tanh(),
        "relu": bp.relu(),
        "leaky": bp.leaky_relu(inputs["leaky"].item()),
        "elu": bp.elu(inputs["elu_alpha"].item()),
    }
    z, quantities = inputs["z"], {}
    for name, layer in layers.items():
        quantities[name] = layer.forward((), z)[0]
        quantities[f"d{name}"] = derivative_of(layer, z, differentiate)
    return quantities


def leaky_relu(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Differentiate max(0.1 z, z) slightly to the left and to the right of z."""
    layer, z, step = bp.leaky_relu(inputs["slope"].item()), inputs["z"], 1e-3
    return {
        "y": layer.forward((), z)[0],
        "left_derivative": derivative_of(layer, z - step, differentiate),
        "right_derivative": derivative_of(layer, z + step, differentiate),
    }


def maxout(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Evaluate and differentiate max(w1 x + b1, w2 x + b2)."""
    params, x = {"weight": inputs["w"], "bias": inputs["b"]}, inputs["x"][None]
    grads = vjp(bp.maxout(2, 1), x, np.ones((1, 1)), differentiate, params)
    pieces = bp.affine(2, 2).forward(params, x)[0]
    dparams = grads.dparams[0]
    return {
        "a": pieces,
        "y": grads.value,
        "dx": grads.dx,
        "dw": dparams["weight"],
        "db": dparams["bias"],
    }
