"""Loss functions per example.

Every loss returns one number per example, shape (batch,). `.sum()` gives the lectures' J = Σ_i L_i,
and `.mean()` does not depend on the batch size. Formulas and their stable evaluation are optax's;
this file adds the conventions of the lectures (half the squared error, 0 log 0 := 0) and
validation.

The Kullback-Leibler divergence and the cross-entropy differ by the entropy H of the target:

    KL(d || y) = Σ_k d_k log(d_k / y_k) = -Σ_k d_k log y_k - H(d)

H = 0 for a one-hot target, where the two are equal.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Integer

from diffprog import _validation


def half_squared_error(
    prediction: Float[ArrayLike, "batch ..."], target: Float[ArrayLike, "batch ..."]
) -> Float[Array, "batch"]:
    """Half the squared error, L = 1/2 Σ_k (y_k - t_k)².

    Its gradient with respect to y is y - t.

    Args:
        prediction: y, finite floats, (batch, ...); the sum runs over all axes but the first.
        target: t, finite floats of the same shape.

    Returns:
        The loss of each example, (batch,).

    Raises:
        TypeError: an argument is not a float array.
        ValueError: different shapes, no leading axis, an empty batch, NaN or infinity.

    Source: lectures 000 to 004, J = 1/2 Σ (y - t)².

    >>> prediction = jnp.array([[1.0, 2.0], [0.0, 0.0]])
    >>> half_squared_error(prediction, jnp.array([[0.0, 0.0], [3.0, 0.0]])).tolist()
    [2.5, 4.5]
    """
    _validate(prediction=prediction, target=target)
    errors = optax.losses.l2_loss(jnp.asarray(prediction), jnp.asarray(target))
    return errors.sum(tuple(range(1, errors.ndim)))


def softmax_cross_entropy(
    logits: Float[ArrayLike, "batch classes"], labels: Integer[ArrayLike, "batch"]
) -> Float[Array, "batch"]:
    """Softmax cross-entropy with integer labels, L = -log softmax(z)_label.

    Its gradient with respect to z is softmax(z) - onehot(label).

    Args:
        logits: z, finite floats, (batch, classes).
        labels: integers in 0 .. classes - 1, (batch,).

    Returns:
        The loss of each example, (batch,).

    Raises:
        TypeError: logits that are not floats, labels that are not an integer vector.
        ValueError: wrong rank, different batch sizes, an empty batch, NaN or infinity, labels out
            of range. Under `jax.jit` labels out of range do not raise: their loss and gradient are
            NaN.

    Source: lecture 004, "Special case 1"; source 002, Question 1.

    >>> print(softmax_cross_entropy(jnp.array([[0.0, 0.0], [0.0, 100.0]]), jnp.array([0, 1])))
    [0.6931472 0.       ]
    """
    _validate(rank=2, logits=logits)
    _validation.labels("labels", labels, jnp.shape(logits)[1])
    _validation.batch(logits=logits, labels=labels)
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    # A traced label out of range must not silently become the loss of another class.
    in_range = (labels >= 0) & (labels < logits.shape[1])
    return loss * jnp.where(in_range, 1, jnp.nan).astype(loss.dtype)


def softmax_kl(
    logits: Float[ArrayLike, "batch classes"], target: Float[ArrayLike, "batch classes"]
) -> Float[Array, "batch"]:
    """Kullback-Leibler divergence of a softmax from a target, L = Σ_k d_k log(d_k / y_k).

    Here y = softmax(z) and 0 log 0 := 0. The gradient with respect to z is y - d. With respect to d
    it is log(d_k / y_k) + 1; at d_k = 0, where d_k log d_k has no finite derivative, it is -log
    y_k.

    Args:
        logits: z, finite floats, (batch, classes).
        target: d, floats of the same shape; every row is nonnegative and sums to 1.

    Returns:
        The loss of each example, (batch,); nonnegative up to rounding, and zero if y = d.

    Raises:
        TypeError: an argument is not a float array.
        ValueError: wrong rank, different shapes, an empty batch, NaN or infinity, a row of the
            target that is not a distribution.

    Source: lecture 004, "Recognizing the digit".

    >>> print(softmax_kl(jnp.zeros((2, 2)), jnp.array([[0.5, 0.5], [1.0, 0.0]])))
    [0.        0.6931472]
    """
    _validate(rank=2, logits=logits, target=target)
    _validate_distributions(target)
    logits, target = jnp.asarray(logits), jnp.asarray(target)
    return optax.losses.softmax_cross_entropy(logits, target) + _negative_entropy(target).sum(1)


def sigmoid_kl(
    logits: Float[ArrayLike, "batch"], target: Float[ArrayLike, "batch"]
) -> Float[Array, "batch"]:
    """Kullback-Leibler divergence of a sigmoid from a target probability.

        L = d log(d / y) + (1 - d) log((1 - d) / (1 - y)),    y = sigmoid(z)

    The gradient with respect to z is y - d, and 0 log 0 := 0. It equals `softmax_kl` of the two
    logits (z, 0).

    Args:
        logits: z, finite floats, (batch,).
        target: d, floats in [0, 1], (batch,).

    Returns:
        The loss of each example, (batch,).

    Raises:
        TypeError: an argument is not a float array.
        ValueError: wrong rank, different shapes, an empty batch, NaN or infinity, a target outside
            [0, 1].

    Source: lecture 004, 'Recognizing "2" or "not 2"'.

    >>> print(sigmoid_kl(jnp.array([0.0, 0.0]), jnp.array([1.0, 0.5])))
    [0.6931472 0.       ]
    """
    _validate(rank=1, logits=logits, target=target)
    _validation.within("target", target, 0, 1)
    logits, target = jnp.asarray(logits), jnp.asarray(target)
    cross_entropy = optax.losses.sigmoid_binary_cross_entropy(logits, target)
    return cross_entropy + _negative_entropy(target) + _negative_entropy(1 - target)


def _negative_entropy(d: Float[Array, "..."]) -> Float[Array, "..."]:
    """Compute d log d elementwise, with 0 log 0 := 0 and a finite derivative at 0."""
    return jnp.where(d == 0, 0, d * jnp.log(jnp.where(d == 0, 1, d)))


def _validate(rank: int | None = None, **arrays: Any) -> None:
    for name, array in arrays.items():
        _validation.floating(name, array, rank=rank)
    _validation.batch(**arrays)
    _validation.same_shape(**arrays)
    for name, array in arrays.items():
        _validation.finite(name, array)


def _validate_distributions(target: Any) -> None:
    _validation.within("target", target, 0, np.inf)
    values = _validation.values(target)
    if values is None:
        return
    sums = values.astype(np.float64).sum(1)
    # A target computed in float32 may arrive as float64: its rows sum to 1 up to float32 rounding.
    tolerance = max(1e-6, values.shape[1] * float(jnp.finfo(values.dtype).eps))
    wrong = np.abs(sums - 1) > tolerance
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            "target must hold distributions, with rows that sum to 1, "
            f"got row {row} with sum {sums[row]:.6g}"
        )
