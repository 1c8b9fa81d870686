"""What the examples are made of: two losses, and nets and their params in few words."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog import backprop as bp
from diffprog.backprop import Gradients, Layer
from experiments.sources.differentiators import Route, compiled

Given = dict[str, Any]
Quantities = dict[str, Any]


def _loss(
    name: str, value: Callable[[Array, Array], Array], slope: Callable[[Array, Array], Array]
) -> Layer:
    """J = value(prediction, y), with dJ/dprediction by hand; y is given and has no derivative."""
    return Layer(
        lambda key: (),
        lambda params, pair: (value(*pair), pair),
        lambda params, pair, dloss: ((), (dloss * slope(*pair), None)),
        name,
    )


TIMES = _loss(
    "sum of prediction times y",
    lambda prediction, y: (prediction * y).sum(),
    lambda prediction, y: y,
)
SURPRISE = _loss(
    "-sum of y log prediction",
    lambda prediction, y: -(y * jnp.log(prediction)).sum(),
    lambda prediction, y: -y / prediction,
)
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
    return {
        part.name: {"weight": weights[part.name]} if part.name in weights else ()
        for part in net.parts
    }


def stepped(params: Any, dparams: Any, rate: float) -> Any:
    """One step of gradient descent."""
    return jax.tree.map(lambda p, d: p - rate * d, params, dparams)


def pulled(layer: Layer, z: Any, dy: Any, route: Route, params: Any = ()) -> Gradients:
    """dy pulled back through one layer: the gradient of sum_i dy_i y_i."""
    return compiled(route, bp.chain([layer]), TIMES)((params,), z, dy)


def jacobian(layer: Layer, z: Any, outputs: int, route: Route, params: Any = ()) -> Gradients:
    """The same with the rows of the unit matrix as a batch of dy: `dx` is the Jacobian, rows outputs."""
    return pulled(layer, np.tile(z, (outputs, 1)), np.eye(outputs), route, params)


def slopes(layer: Layer, z: Any, route: Route) -> Array:
    """f'(z) of an elementwise f."""
    return pulled(layer, z[None], np.ones_like(z)[None], route).dx[0]
