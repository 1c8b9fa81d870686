"""Layer normalization, batch normalization and dropout.

Both norms standardize x over some axes, with its mean m and variance v over them,

    h = (x - m) / √(v + ε),    y = scale h + shift.

Mean and variance depend on every element of x, so the derivative has three terms. With
dh = dy scale,

    dx = (dh - mean(dh) - h mean(dh h)) / √(v + ε).

This removes the components of dh along the vector of ones and along h, the directions in which h
cannot change.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.backprop._layer import Layer, layer_without_params

Weights = dict[str, Array]
Values = Float[Array, "batch *axes features"]


def layer_norm(features: int, *, epsilon: float = 1e-5) -> Layer:
    """Layer normalization: standardize the feature vector at each position, then scale and shift.

        h = (x - mean(x)) / √(var(x) + ε) over the features,    y = scale h + shift
        dx = (dh - mean(dh) - h mean(dh h)) / √(var(x) + ε),    dh = dy scale
        dscale = Σ dy h,    dshift = Σ dy over all positions

    Params: `{"scale": (features,), "shift": (features,)}`, initially ones and zeros.

    Shapes: x, y (batch, ..., features); residuals h and 1 / √(var(x) + ε).

    Args:
        features: length of the last axis of x.
        epsilon: ε, a number > 0.

    Raises:
        TypeError: an argument is not a number; at `forward`, x is not a float array.
        ValueError: an argument is out of range; at `forward`, x does not have shape
            (batch, ..., features).

    >>> layer = layer_norm(2)
    >>> layer.forward(layer.init(jax.random.key(0)), jnp.array([[1000.0, 3000.0]]))[0].round()
    Array([[-1.,  1.]], dtype=float32)
    """
    return _norm("layer_norm", features, epsilon, lambda x: (-1,))


def batch_norm(features: int, *, epsilon: float = 1e-5) -> Layer:
    """Batch normalization: standardize each feature over the batch, then scale and shift.

    The formulas are those of `layer_norm`, with mean and variance over all axes but the last. They
    are always computed from the given batch: there are no running averages for evaluation.

    Params, shapes, Args: as for `layer_norm`.

    Raises:
        TypeError, ValueError: as for `layer_norm`; also if there are fewer than two values per
            feature.

    >>> layer = batch_norm(1)
    >>> layer.forward(layer.init(jax.random.key(0)), jnp.array([[1000.0], [3000.0]]))[0].round()
    Array([[-1.],
           [ 1.]], dtype=float32)
    """

    def all_axes_but_the_last(x: Values) -> tuple[int, ...]:
        if x.size < 2 * x.shape[-1]:
            raise ValueError(
                f"x must have at least two values of each feature for batch statistics, "
                f"got {list(x.shape)}"
            )
        return tuple(range(x.ndim - 1))

    return _norm("batch_norm", features, epsilon, all_axes_but_the_last)


def _norm(
    name: str, features: int, epsilon: float, axes_of: Callable[[Values], tuple[int, ...]]
) -> Layer:
    """Build a layer that standardizes x over the axes `axes_of(x)`, then scales and shifts it.

    `name` is the layer's name, `features` the length of the last axis of x.
    """
    _validation.integer("features", features, low=1)
    epsilon = _validation.number("epsilon", epsilon, above=0)

    def init(key: jax.Array) -> Weights:
        return {"scale": jnp.ones(features), "shift": jnp.zeros(features)}

    def forward(params: Weights, x: Values) -> tuple[Values, Any]:
        _validation.floating("x", x)
        if x.ndim < 2 or x.shape[-1] != features:
            raise ValueError(
                f"x must have shape (batch, ..., {features}) for this {name} layer, "
                f"got {list(x.shape)}"
            )
        _validation.entries("params", params, {"scale": (features,), "shift": (features,)})
        axes = axes_of(x)
        centered = x - x.mean(axes, keepdims=True)
        # From centered values: mean(x²) - mean(x)² would cancel for a large mean.
        inverse = 1 / jnp.sqrt((centered**2).mean(axes, keepdims=True) + epsilon)
        h = centered * inverse
        return params["scale"] * h + params["shift"], (h, inverse)

    def backward(params: Weights, residuals: Any, dy: Values) -> tuple[Weights, Values]:
        h, inverse = residuals
        axes, positions = axes_of(h), tuple(range(h.ndim - 1))
        dh = dy * params["scale"]
        dx = inverse * (dh - dh.mean(axes, keepdims=True) - h * (dh * h).mean(axes, keepdims=True))
        return {"scale": (dy * h).sum(positions), "shift": dy.sum(positions)}, dx

    return Layer(init, forward, backward, f"{name}({features})")


def dropout(rate: float) -> Layer:
    """Inverted dropout layer: set random elements to 0 and scale the others up, to keep the mean.

        y = x m / (1 - rate),    m_i = 0 with probability rate, else 1
        dx = dy m / (1 - rate)

    There is no evaluation mode: leave the layer out instead. Equal keys give equal masks m.

    Shapes: the input is (x (batch, ...), key), y (batch, ...), residual m / (1 - rate). The key has
    no derivative: its dx is None.

    Args:
        rate: probability that an element is set to 0, in [0, 1).

    Raises:
        TypeError: rate is not a number; at `forward`, the input is not a float array and a PRNG
            key.
        ValueError: rate is out of range.

    >>> y, _ = dropout(0.5).forward((), (jnp.ones((1, 99)), jax.random.key(0)))
    >>> sorted(set(y[0].tolist()))
    [0.0, 2.0]
    """
    rate = _validation.number("rate", rate, low=0, high=1)
    if rate == 1:
        raise ValueError("rate must be below 1, got 1")

    def forward(x: tuple[Values, jax.Array]) -> tuple[Values, Values]:
        if not isinstance(x, tuple) or len(x) != 2:
            raise TypeError(f"x must be a tuple (values, key), got {type(x).__name__}")
        values, key = x
        _validation.floating("values", values)
        dtype = _validation.array("key", key).dtype
        if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
            raise TypeError(f"key must be a PRNG key from jax.random.key, got {dtype}")
        mask = jax.random.bernoulli(key, 1 - rate, values.shape).astype(values.dtype) / (1 - rate)
        return values * mask, mask

    backward = lambda mask, dy: (dy * mask, None)
    return layer_without_params(f"dropout({rate:g})", forward, backward)
