"""The examples of lecture 001: sigmoid networks, digits, activations."""

import jax
import numpy as np

from diffprog import backprop as bp
from experiments.sources.differentiators import Route, compiled
from experiments.sources.helpers import (
    SQUARES,
    Given,
    Quantities,
    in_line,
    matrix,
    pulled,
    slopes,
    stepped,
    with_params,
)


def sigmoid_221(given: Given, route: Route) -> Quantities:
    """Two inputs, two sigmoid units, one sigmoid output, and one step of descent; deltas have the lecture's sign."""
    net = in_line(
        "x0", net1=matrix(given["W1"]), x1=bp.sigmoid(), net2=matrix(given["W2"]), y=bp.sigmoid()
    )
    run = compiled(route, net, SQUARES)
    params, x, t = (
        with_params(net, net1=given["W1"], net2=given["W2"]),
        given["x"][None],
        given["t"][None, None],
    )
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
    layers = {
        f"{letter}{k}": bp.affine(2, 2) if letter == "z" else bp.sigmoid()
        for k in (1, 2, 3)
        for letter in "za"
    }
    net = in_line("x", **layers)
    params = {
        name: {"weight": given[f"W{name[1]}"], "bias": given[f"b{name[1]}"]}
        if name[0] == "z"
        else ()
        for name in layers
    }
    values = compiled(route, net, SQUARES)(params, given["x"][None], np.zeros((1, 2))).values
    return {name: values[name] for name in ("z1", "a1", "z2", "a2", "z3")} | {"y": values["a3"]}


def param_count(given: Given, route: Route) -> Quantities:
    """How many numbers a layer of 1000 units on 1000 inputs has."""
    sizes = jax.tree.map(
        lambda leaf: leaf.size,
        jax.eval_shape(bp.affine(int(given["n_in"]), int(given["n_out"])).init, jax.random.key(0)),
    )
    return {"weights": sizes["weight"], "weights_and_biases": sizes["weight"] + sizes["bias"]}


def digit_input(given: Given, route: Route) -> Quantities:
    """A 16 x 16 image as a vector."""
    image = np.zeros((1, int(given["h"]), int(given["w"]), 1))
    return {
        "N": pulled(bp.flatten(), image, np.ones((1, image.size)), route).values["flatten1"].size
    }


def activations(given: Given, route: Route) -> Quantities:
    """The five elementwise activations and their slopes."""
    layers = {"sigmoid": bp.sigmoid(), "tanh": bp.tanh(), "relu": bp.relu()}
    layers |= {
        "leaky": bp.leaky_relu(given["leaky"].item()),
        "elu": bp.elu(given["elu_alpha"].item()),
    }
    values = {name: layer.forward((), given["z"])[0] for name, layer in layers.items()}
    return values | {f"d{name}": slopes(layer, given["z"], route) for name, layer in layers.items()}


def leaky_relu(given: Given, route: Route) -> Quantities:
    """max(0.1 z, z): the slope a little to the left and a little to the right."""
    layer, z, little = bp.leaky_relu(given["slope"].item()), given["z"], 1e-3
    sides = {
        "left_derivative": slopes(layer, z - little, route),
        "right_derivative": slopes(layer, z + little, route),
    }
    return {"y": layer.forward((), z)[0], **sides}


def maxout(given: Given, route: Route) -> Quantities:
    """max(w1 x + b1, w2 x + b2)."""
    params, x = {"weight": given["w"], "bias": given["b"]}, given["x"][None]
    found = pulled(bp.maxout(2, 1), x, np.ones((1, 1)), route, params)
    pieces = bp.affine(2, 2).forward(params, x)[0]
    dparams = found.dparams[0]
    return {
        "a": pieces,
        "y": found.value,
        "dx": found.dx,
        "dw": dparams["weight"],
        "db": dparams["bias"],
    }
