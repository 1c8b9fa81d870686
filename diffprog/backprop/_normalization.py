"""Normalization and dropout.

Both norms do the same along different axes: with mean m and variance v of x over these axes, h = (x - m) / sqrt(v + epsilon) and
y = scale h + shift. The mean and the variance depend on every x, so the derivative of one h by all x has three terms; with dh = dy scale,

    dx = (dh - mean(dh) - h mean(dh h)) / sqrt(v + epsilon),

dh without its component along 1 and along h: a norm passes no gradient along the directions in which its output cannot move.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.backprop._layer import Layer

Values = Float[Array, "batch *axes features"]


def layer_norm(features: int, *, epsilon: float = 1e-5) -> Layer:
    """Each example, at each place, to mean 0 and variance 1 over its features; then scaled and shifted.

    Params: `{"scale": (features,), "shift": (features,)}`, ones and zeros at first.

    Args:
        features: length of the last axis of x.
        epsilon: added to the variance, > 0.

    Raises:
        TypeError, ValueError: bad settings; at `forward`, x that is not float (batch, ..., features).

    >>> layer = layer_norm(2)
    >>> layer.forward(layer.init(jax.random.key(0)), jnp.array([[1000.0, 3000.0]]))[0].round()
    Array([[-1.,  1.]], dtype=float32)
    """
    return _norm("layer_norm", features, epsilon, lambda x: (-1,))


def batch_norm(features: int, *, epsilon: float = 1e-5) -> Layer:
    """Each feature to mean 0 and variance 1 over the batch (and over the places of an image); then scaled and shifted.

    The statistics are those of the batch at hand. Params, Args: as for `layer_norm`.

    Raises:
        TypeError, ValueError: bad settings; at `forward`, x that is not float (batch, ..., features), or with fewer than two values
            of a feature, whose variance is 0.

    >>> layer = batch_norm(1)
    >>> layer.forward(layer.init(jax.random.key(0)), jnp.array([[1000.0], [3000.0]]))[0].round()
    Array([[-1.],
           [ 1.]], dtype=float32)
    """
    return _norm("batch_norm", features, epsilon, _all_but_the_last)


def _all_but_the_last(x: Values) -> tuple[int, ...]:
    if x.size < 2 * x.shape[-1]:
        raise ValueError(
            f"x must have at least two values of each feature for statistics of the batch, got {list(x.shape)}"
        )
    return tuple(range(x.ndim - 1))


def _norm(name: str, features: int, epsilon: float, axes_of: Any) -> Layer:
    _validation.integer("features", features, low=1)
    epsilon = _validation.number("epsilon", epsilon, above=0)

    def init(key: jax.Array) -> dict[str, Array]:
        return {"scale": jnp.ones(features), "shift": jnp.zeros(features)}

    def forward(params: dict[str, Array], x: Values) -> tuple[Values, Any]:
        _check(name, x, features)
        _validation.entries("params", params, {"scale": (features,), "shift": (features,)})
        axes = axes_of(x)
        centred = x - x.mean(axes, keepdims=True)
        inverse = 1 / jnp.sqrt((centred**2).mean(axes, keepdims=True) + epsilon)
        h = centred * inverse
        return params["scale"] * h + params["shift"], (h, inverse)

    def backward(
        params: dict[str, Array], residuals: Any, dy: Values
    ) -> tuple[dict[str, Array], Values]:
        h, inverse = residuals
        axes, examples = axes_of(h), tuple(range(h.ndim - 1))
        dh = dy * params["scale"]
        dx = inverse * (dh - dh.mean(axes, keepdims=True) - h * (dh * h).mean(axes, keepdims=True))
        return {"scale": (dy * h).sum(examples), "shift": dy.sum(examples)}, dx

    return Layer(init, forward, backward, f"{name}({features})")


def _check(name: str, x: Any, features: int) -> None:
    _validation.floating("x", x)
    if x.ndim < 2 or x.shape[-1] != features:
        raise ValueError(
            f"x must have shape (batch, ..., {features}) for this {name} layer, got {list(x.shape)}"
        )


def dropout(rate: float) -> Layer:
    """y = x m / (1 - rate) with m_i = 0 with probability `rate`, else 1; dx = dy m / (1 - rate). The mean of y over the keys is x.

    The input is (x, key): the same key gives the same m. There is no other mode; where nothing is to be dropped, leave the layer out.

    Args:
        rate: in [0, 1).

    >>> sorted(set(dropout(0.5).forward((), (jnp.ones((1, 99)), jax.random.key(0)))[0][0].tolist()))
    [0.0, 2.0]
    """
    rate = _validation.number("rate", rate, low=0, high=1)
    if rate == 1:
        raise ValueError("rate must be below 1: at 1 nothing is kept")

    def forward(params: tuple[()], x: tuple[Values, jax.Array]) -> tuple[Values, Values]:
        values, key = _values_and_key(x)
        mask = jax.random.bernoulli(key, 1 - rate, values.shape).astype(values.dtype) / (1 - rate)
        return values * mask, mask

    return Layer(
        lambda key: (),
        forward,
        lambda params, mask, dy: ((), (dy * mask, None)),
        f"dropout({rate:g})",
    )


def _values_and_key(x: Any) -> tuple[Array, jax.Array]:
    if not isinstance(x, tuple) or len(x) != 2:
        raise TypeError(f"x must be a tuple (values, key), got {type(x).__name__}")
    _validation.floating("values", x[0])
    key = _validation.array("key", x[1])
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"key must be a random key, as jax.random.key makes them, got {key.dtype}{list(key.shape)}"
        )
    return x
