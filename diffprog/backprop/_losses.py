"""Losses as layers of a pair (prediction, target), with hand-written backward passes.

The losses are those of `diffprog.losses`. Each returns one loss per example; `sum_over_examples`
and `mean_over_examples` reduce these to a scalar.

For a softmax or sigmoid output y followed by cross-entropy or Kullback-Leibler divergence from a
target d, the Jacobian of the activation and the derivative of the logarithm cancel, and the
gradient with respect to the logits z is the error y - d (source 002, question 2; lecture 004). So
these losses take the logits.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from diffprog import _validation, losses
from diffprog.backprop._layer import Layer, layer_without_params, require_layer

PerExample = Float[Array, " batch"]
Labels = Integer[Array, " batch"]
Pair = tuple[Array, Array]


def half_squared_error() -> Layer:
    """Loss layer: half the squared error of predictions y and targets t, per example.

        L = 1/2 Σ_k (y_k - t_k)²
        dy = dL (y - t),    dt = -dy

    Shapes: x = (y, t) of one shape (batch, ...), L (batch,), residual y - t.

    >>> half_squared_error().forward((), (jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2))))[0]
    Array([2.5], dtype=float32)
    """

    def forward(x: Pair) -> tuple[PerExample, Array]:
        prediction, target = _check_pair(x)
        return losses.half_squared_error(prediction, target), prediction - target

    def backward(error: Array, dloss: PerExample) -> Pair:
        gradient = _broadcast(dloss, error) * error
        return gradient, -gradient

    return layer_without_params("half_squared_error", forward, backward)


def softmax_cross_entropy() -> Layer:
    """Loss layer: cross-entropy of logits z and integer labels, per example.

        L = -log y_label,    y = softmax(z)
        dz = dL (y - onehot(label))

    Shapes: x = (z (batch, classes), labels (batch,)), L (batch,), residuals (y, labels). The labels
    have no derivative: their dx is None.

    >>> softmax_cross_entropy().forward((), (jnp.zeros((1, 1)), jnp.array([0])))[0]
    Array([0.], dtype=float32)
    """

    def forward(x: tuple[Array, Labels]) -> tuple[PerExample, Any]:
        logits, labels = _check_pair(x)
        return losses.softmax_cross_entropy(logits, labels), (jax.nn.softmax(logits), labels)

    def backward(residuals: Any, dloss: PerExample) -> Any:
        y, labels = residuals
        onehot = jax.nn.one_hot(labels, y.shape[1], dtype=y.dtype)
        return _broadcast(dloss, y) * (y - onehot), None

    return layer_without_params("softmax_cross_entropy", forward, backward)


def softmax_kl() -> Layer:
    """Loss layer: Kullback-Leibler divergence of softmax(z) from probabilities d, per example.

        L = Σ_k d_k log(d_k / y_k),    y = softmax(z),    0 log 0 := 0
        dz = dL (y Σ_k d_k - d)
        dd = dL (log(d / y) + 1); dL (-log y_k) where d_k = 0

    The factor Σ_k d_k of dz is 1. It is kept so that the derivative of dz with respect to d is
    correct.

    Shapes: x = (z, d), both (batch, classes), L (batch,), residuals (log y, d).

    >>> softmax_kl().forward((), (jnp.zeros((1, 2)), jnp.array([[0.5, 0.5]])))[0]
    Array([0.], dtype=float32)
    """

    def forward(x: Pair) -> tuple[PerExample, Any]:
        logits, target = _check_pair(x)
        return losses.softmax_kl(logits, target), (jax.nn.log_softmax(logits), target)

    def backward(residuals: Any, dloss: PerExample) -> Pair:
        log_y, target = residuals
        dloss, total = _broadcast(dloss, log_y), target.sum(1, keepdims=True)
        dlogits = dloss * (jnp.exp(log_y) * total - target)
        return dlogits, dloss * (_derivative_of_d_log_d(target) - log_y)

    return layer_without_params("softmax_kl", forward, backward)


def sigmoid_kl() -> Layer:
    """Loss layer: Kullback-Leibler divergence of a probability sigmoid(z) from d, per example.

        L = d log(d / y) + (1 - d) log((1 - d) / (1 - y)),    y = sigmoid(z),    0 log 0 := 0
        dz = dL (y - d)
        dd = dL (log(d / (1 - d)) - z)

    Shapes: x = (z, d), both (batch,) with d in [0, 1], L (batch,), residuals (z, d).

    >>> sigmoid_kl().forward((), (jnp.zeros(1), jnp.array([0.5])))[0]
    Array([0.], dtype=float32)
    """

    def forward(x: Pair) -> tuple[PerExample, Any]:
        logits, target = _check_pair(x)
        return losses.sigmoid_kl(logits, target), (logits, target)

    def backward(residuals: Any, dloss: PerExample) -> Pair:
        logits, target = residuals
        dtarget = _derivative_of_d_log_d(target) - _derivative_of_d_log_d(1 - target) - logits
        return dloss * (jax.nn.sigmoid(logits) - target), dloss * dtarget

    return layer_without_params("sigmoid_kl", forward, backward)


def sum_over_examples(loss: Layer) -> Layer:
    """Layer that returns the sum of a loss over all examples, a scalar.

        J = Σ_i L_i,    dL_i = dJ

    Params: those of the loss. Shapes: x as for the loss, J a scalar.

    Args:
        loss: a layer with output (batch,).

    Raises:
        TypeError: loss is not a `Layer`.
        ValueError: at `forward`, the loss does not have shape (batch,).

    >>> x = (jnp.ones((4, 2)), jnp.zeros((4, 2)))
    >>> sum_over_examples(half_squared_error()).forward((), x)[0]
    Array(4., dtype=float32)
    """
    return _reduce_over_examples("sum", loss, jnp.sum, lambda examples: 1)


def mean_over_examples(loss: Layer) -> Layer:
    """Layer that returns the mean of a loss over all examples, a scalar (the empirical risk).

        J = 1/N Σ_i L_i,    dL_i = dJ / N

    Params: those of the loss. Shapes: x as for the loss, J a scalar.

    Args:
        loss: a layer with output (batch,).

    Raises:
        TypeError, ValueError: as for `sum_over_examples`.

    >>> x = (jnp.ones((4, 2)), jnp.zeros((4, 2)))
    >>> mean_over_examples(half_squared_error()).forward((), x)[0]
    Array(1., dtype=float32)
    """
    return _reduce_over_examples("mean", loss, jnp.mean, lambda examples: examples)


def _reduce_over_examples(
    name: str, loss: Layer, reduce: Callable[[Array], Array], divisor: Callable[[int], int]
) -> Layer:
    require_layer("loss", loss)

    def forward(params: Any, x: Any) -> tuple[Float[Array, ""], Any]:
        per_example, residuals = loss.forward(params, x)
        _validation.floating(f"the output of {loss.name}", per_example, rank=1)
        # The zeros keep the number of examples and the dtype for the backward pass.
        return reduce(per_example), (residuals, jnp.zeros_like(per_example))

    def backward(params: Any, residuals: Any, dloss: Float[Array, ""]) -> tuple[Any, Any]:
        residuals, zeros = residuals
        return loss.backward(params, residuals, zeros + dloss / divisor(len(zeros)))

    return Layer(loss.init, forward, backward, f"{name} of {loss.name}")


def _check_pair(x: Any) -> Pair:
    if not isinstance(x, tuple) or len(x) != 2:
        raise TypeError(f"x must be a tuple (prediction, target), got {type(x).__name__}")
    return x


def _broadcast(dloss: PerExample, like: Array) -> Array:
    """Reshape per-example values to (batch, 1, ..., 1), of the rank of `like`."""
    return dloss.reshape(-1, *[1] * (like.ndim - 1))


def _derivative_of_d_log_d(d: Array) -> Array:
    """Return log d + 1, the derivative of d log d; 0 where d = 0."""
    # The inner `where` keeps second derivatives finite at d = 0.
    return jnp.where(d == 0, 0, jnp.log(jnp.where(d == 0, 1, d)) + 1)
