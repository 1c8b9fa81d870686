"""Layers, losses and parameters from which the worked examples are built."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog import backprop as bp
from diffprog.backprop import Gradients, Layer
from experiments.sources.differentiators import Differentiator, compile_gradients

Inputs = dict[str, Any]
Quantities = dict[str, Any]


def _make_loss(
    name: str, value: Callable[[Array, Array], Array], derivative: Callable[[Array, Array], Array]
) -> Layer:
    """Return the loss J = value(prediction, y); `derivative` is dJ/dprediction."""
    return Layer(
        lambda key: (),
        lambda params, pair: (value(*pair), pair),
        lambda params, pair, dloss: ((), (dloss * derivative(*pair), None)),
        name,
    )


WEIGHTED_SUM = _make_loss(
    "sum of y times prediction",
    lambda prediction, y: (prediction * y).sum(),
    lambda prediction, y: y,
)
CROSS_ENTROPY = _make_loss(
    "-sum of y log prediction",
    lambda prediction, y: -(y * jnp.log(prediction)).sum(),
    lambda prediction, y: -y / prediction,
)
SOFTMAX_KL = bp.sum_over_examples(bp.softmax_kl())
SIGMOID_KL = bp.sum_over_examples(bp.sigmoid_kl())
SQUARED_ERROR = bp.sum_over_examples(bp.half_squared_error())
IDENTITY = bp.chain([bp.leaky_relu(1)])


def named_chain(source: str, **layers: Layer) -> Layer:
    """Chain named layers; the input of the first is called `source`."""
    nodes = dict(zip(layers, zip(layers.values(), [source, *layers], strict=False), strict=True))
    return bp.dag(nodes, output=list(layers)[-1], inputs=(source,))


def linear(weight: Any) -> Layer:
    """z = W x without a bias, for a W of this shape."""
    outputs, inputs = np.shape(weight)
    return bp.affine(inputs, outputs, bias=False)


def make_params(net: Layer, **weights: Any) -> dict[str, Any]:
    """Return the parameters of a network of linear layers and layers without parameters."""
    return {
        part.name: {"weight": weights[part.name]} if part.name in weights else ()
        for part in net.parts
    }


def gradient_step(params: Any, dparams: Any, rate: float) -> Any:
    return jax.tree.map(lambda p, d: p - rate * d, params, dparams)


def vjp(
    layer: Layer, z: Any, dy: Any, differentiate: Differentiator, params: Any = ()
) -> Gradients:
    """Return the vector-Jacobian product of one layer: the gradients of Σ_i dy_i y_i."""
    run = compile_gradients(differentiate, bp.chain([layer]), WEIGHTED_SUM)
    return run((params,), z, dy)


def jacobian(
    layer: Layer, z: Any, outputs: int, differentiate: Differentiator, params: Any = ()
) -> Gradients:
    """Return the vector-Jacobian products with all unit vectors: `dx` is the Jacobian."""
    return vjp(layer, np.tile(z, (outputs, 1)), np.eye(outputs), differentiate, params)


def derivative_of(layer: Layer, z: Any, differentiate: Differentiator) -> Array:
    """Return f'(z) of an elementwise f."""
    return vjp(layer, z[None], np.ones_like(z)[None], differentiate).dx[0]
