"""Losses as layers on (prediction, target): what `diffprog.losses` computes, with the backward pass by hand.

A softmax or a sigmoid under the divergence that belongs to it has the simplest gradient there is, the error y - d (source 002,
question 2; lecture 004): the Jacobian of the activation and the derivative of the logarithm cancel. So these losses take the logits z,
and y = softmax(z) is what `forward` keeps.

Each gives one number an example; `sum_over_examples` and `mean_over_examples` make one of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from diffprog import _validation, losses
from diffprog.backprop._layer import Layer, require_layer

PerExample = Float[Array, " batch"]
Pair = tuple[Float[Array, "batch classes"], Float[Array, "batch classes"]]


def half_squared_error() -> Layer:
    """L = 1/2 sum_k (y_k - t_k)^2, with dy = dL (y - t) and dt = -dy. x: (y, t), floats of one shape (batch, ...).

    >>> half_squared_error().forward((), (jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2))))[0]
    Array([2.5], dtype=float32)
    """

    def forward(params: tuple[()], x: tuple[Array, Array]) -> tuple[PerExample, Array]:
        prediction, target = _pair(x)
        return losses.half_squared_error(prediction, target), prediction - target

    def backward(
        params: tuple[()], error: Any, dloss: PerExample
    ) -> tuple[tuple[()], tuple[Array, Array]]:
        gradient = _each(dloss, error) * error
        return (), (gradient, -gradient)

    return Layer(lambda key: (), forward, backward, "half_squared_error")


def softmax_cross_entropy() -> Layer:
    """L = -log y_label with y = softmax(z), and dz = dL (y - onehot(label)). x: (z, labels), labels integers (batch,).

    >>> softmax_cross_entropy().forward((), (jnp.zeros((1, 1)), jnp.array([0])))[0]
    Array([0.], dtype=float32)
    """

    def forward(
        params: tuple[()], x: tuple[Array, Integer[Array, " batch"]]
    ) -> tuple[PerExample, Any]:
        logits, labels = _pair(x)
        return losses.softmax_cross_entropy(logits, labels), (jax.nn.softmax(logits), labels)

    def backward(
        params: tuple[()], residuals: Any, dloss: PerExample
    ) -> tuple[tuple[()], tuple[Array, None]]:
        y, labels = residuals
        return (), (_each(dloss, y) * (y - jax.nn.one_hot(labels, y.shape[1], dtype=y.dtype)), None)

    return Layer(lambda key: (), forward, backward, "softmax_cross_entropy")


def softmax_kl() -> Layer:
    """L = sum_k d_k log(d_k / y_k) with y = softmax(z), dz = dL (y - d) and dd = dL (log(d / y) + 1). x: (z, d), d one-hot or soft.

    d sums to 1; dz is written y sum(d) - d, so that its own derivative by d is right in every direction.

    0 log 0 := 0, and where d_k = 0 this term has no derivative and none is counted, which leaves -log y_k.

    >>> softmax_kl().forward((), (jnp.zeros((1, 2)), jnp.array([[0.5, 0.5]])))[0]
    Array([0.], dtype=float32)
    """

    def forward(params: tuple[()], x: Pair) -> tuple[PerExample, Any]:
        logits, target = _pair(x)
        return losses.softmax_kl(logits, target), (jax.nn.log_softmax(logits), target)

    def backward(params: tuple[()], residuals: Any, dloss: PerExample) -> tuple[tuple[()], Pair]:
        log_y, target = residuals
        dloss, whole = _each(dloss, log_y), target.sum(1, keepdims=True)
        return (), (
            dloss * (jnp.exp(log_y) * whole - target),
            dloss * (_entropy_slope(target) - log_y),
        )

    return Layer(lambda key: (), forward, backward, "softmax_kl")


def sigmoid_kl() -> Layer:
    """L = d log(d / y) + (1 - d) log((1 - d) / (1 - y)) with y = sigmoid(z), dz = dL (y - d). x: (z, d), both (batch,), d in [0, 1].

    dd = dL (log(d / (1 - d)) - z), with 0 log 0 := 0 as in `softmax_kl`.

    >>> sigmoid_kl().forward((), (jnp.zeros(1), jnp.array([0.5])))[0]
    Array([0.], dtype=float32)
    """

    def forward(params: tuple[()], x: tuple[PerExample, PerExample]) -> tuple[PerExample, Any]:
        logits, target = _pair(x)
        return losses.sigmoid_kl(logits, target), (logits, target)

    def backward(
        params: tuple[()], residuals: Any, dloss: PerExample
    ) -> tuple[tuple[()], tuple[PerExample, PerExample]]:
        logits, target = residuals
        dtarget = _entropy_slope(target) - _entropy_slope(1 - target) - logits
        return (), (dloss * (jax.nn.sigmoid(logits) - target), dloss * dtarget)

    return Layer(lambda key: (), forward, backward, "sigmoid_kl")


def sum_over_examples(loss: Layer) -> Layer:
    """J = sum_i L_i, the lectures' total loss; dL_i = dJ.

    Args:
        loss: a layer that gives (batch,).

    >>> sum_over_examples(half_squared_error()).forward((), (jnp.ones((4, 2)), jnp.zeros((4, 2))))[0]
    Array(4., dtype=float32)
    """
    return _over_examples("sum", loss, jnp.sum, lambda examples: 1)


def mean_over_examples(loss: Layer) -> Layer:
    """J = 1/N sum_i L_i, the empirical risk of lecture 004; dL_i = dJ / N.

    Args:
        loss: a layer that gives (batch,).

    >>> mean_over_examples(half_squared_error()).forward((), (jnp.ones((4, 2)), jnp.zeros((4, 2))))[0]
    Array(1., dtype=float32)
    """
    return _over_examples("mean", loss, jnp.mean, lambda examples: examples)


def _over_examples(
    name: str, loss: Layer, reduce: Callable[[Array], Array], divisor: Callable[[int], int]
) -> Layer:
    require_layer("loss", loss)

    def forward(params: Any, x: Any) -> tuple[Float[Array, ""], Any]:
        each, kept = loss.forward(params, x)
        _validation.floating(f"the output of {loss.name}", each, rank=1)
        return reduce(each), (kept, jnp.zeros_like(each))

    def backward(params: Any, residuals: Any, dloss: Float[Array, ""]) -> tuple[Any, Any]:
        kept, zeros = residuals
        return loss.backward(params, kept, zeros + dloss / divisor(len(zeros)))

    return Layer(loss.init, forward, backward, f"{name} of {loss.name}")


def _pair(x: Any) -> tuple[Array, Array]:
    if not isinstance(x, tuple) or len(x) != 2:
        raise TypeError(f"x must be a tuple (prediction, target), got {type(x).__name__}")
    return x


def _each(dloss: PerExample, like: Array) -> Array:
    return dloss.reshape(-1, *[1] * (like.ndim - 1))


def _entropy_slope(d: Array) -> Array:
    """The derivative log d + 1 of d log d, without the term at d = 0."""
    return jnp.where(d == 0, 0, jnp.log(jnp.where(d == 0, 1, d)) + 1)
