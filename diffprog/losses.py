"""Losses: one number for each example, from what the network says and what it should have said.

Every function returns shape (batch,). How the examples are put together is the caller's choice: `.sum()` is the lectures' J = Σ_i L_i,
`.mean()` does not depend on the size of a batch. Formulas and stable evaluation are optax's; here are the sources' conventions
(the half of the squared error, 0 log 0 := 0) and the check of what comes in.

A Kullback-Leibler divergence and a cross-entropy differ by the entropy of the target: KL(d || y) = Σ_k d_k log(d_k / y_k)
= -Σ_k d_k log y_k - H(d). For a one-hot target H = 0, and the two are one.
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
    """Half the squared distance between prediction and target, L = 1/2 Σ_k (y_k - t_k)², whose gradient is y - t.

    Args:
        prediction: y, finite floats, (batch, ...); the sum runs over all axes but the first.
        target: t, finite floats of the same shape.

    Returns:
        The loss of each example, (batch,).

    Raises:
        TypeError: an argument is no float array.
        ValueError: shapes that differ, no leading axis, an empty batch, NaN or infinity.

    Source: lectures 000 to 004, J = 1/2 Σ (y - t)².

    >>> half_squared_error(jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[0.0, 0.0], [3.0, 0.0]])).tolist()
    [2.5, 4.5]
    """
    _check(prediction=prediction, target=target)
    errors = optax.losses.l2_loss(jnp.asarray(prediction), jnp.asarray(target))
    return errors.sum(tuple(range(1, errors.ndim)))


def softmax_cross_entropy(
    logits: Float[ArrayLike, "batch classes"], labels: Integer[ArrayLike, "batch"]
) -> Float[Array, "batch"]:
    """The surprise at the true class, L = -log softmax(z)_label, whose gradient is softmax(z) - onehot(label).

    Args:
        logits: z, finite floats, (batch, classes).
        labels: integers in 0 .. classes - 1, (batch,).

    Returns:
        The loss of each example, (batch,).

    Raises:
        TypeError: logits that are no floats, labels that are no integers of rank 1.
        ValueError: wrong rank, batches that differ or are empty, NaN or infinity, labels out of range (under `jax.jit` these cannot be
            seen in time, and make their loss and its gradient NaN).

    Source: lecture 004, "Special case 1"; source 002, Question 1.

    >>> print(softmax_cross_entropy(jnp.array([[0.0, 0.0], [0.0, 100.0]]), jnp.array([0, 1])))
    [0.6931472 0.       ]
    """
    _check(rank=2, logits=logits)
    _validation.labels("labels", labels, jnp.shape(logits)[1])
    _validation.batch(logits=logits, labels=labels)
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    # Where labels have no values yet, under jit, one out of range makes its loss and gradient NaN instead of another class's.
    return loss * jnp.where((labels >= 0) & (labels < logits.shape[1]), 1, jnp.nan).astype(
        loss.dtype
    )


def softmax_kl(
    logits: Float[ArrayLike, "batch classes"], target: Float[ArrayLike, "batch classes"]
) -> Float[Array, "batch"]:
    """Divergence of a softmax from a target distribution, L = Σ_k d_k log(d_k / y_k) with y = softmax(z) and 0 log 0 := 0.

    The gradient with respect to z is y - d. With respect to d it is log(d_k / y_k) + 1; where d_k = 0 the term d_k log d_k has no
    finite derivative and contributes none, which leaves -log y_k.

    Args:
        logits: z, finite floats, (batch, classes).
        target: d, floats of the same shape, soft or one-hot: every row nonnegative and summing to 1.

    Returns:
        The loss of each example, (batch,); nonnegative up to rounding, zero where y = d.

    Raises:
        TypeError: an argument is no float array.
        ValueError: wrong rank, shapes that differ, an empty batch, NaN or infinity, a row of target that is no distribution.

    Source: lecture 004, "Recognizing the digit".

    >>> print(softmax_kl(jnp.zeros((2, 2)), jnp.array([[0.5, 0.5], [1.0, 0.0]])))
    [0.        0.6931472]
    """
    _check(rank=2, logits=logits, target=target)
    _check_distributions(target)
    logits, target = jnp.asarray(logits), jnp.asarray(target)
    return optax.losses.softmax_cross_entropy(logits, target) + _negative_entropy(target).sum(1)


def sigmoid_kl(
    logits: Float[ArrayLike, "batch"], target: Float[ArrayLike, "batch"]
) -> Float[Array, "batch"]:
    """Divergence of one sigmoid from a target probability, L = d log(d / y) + (1 - d) log((1 - d) / (1 - y)) with y = sigmoid(z).

    The gradient with respect to z is y - d; 0 log 0 := 0, as in `softmax_kl`, of which this is the case of the two classes (z, 0).

    Args:
        logits: z, finite floats, (batch,).
        target: d, floats in [0, 1], (batch,).

    Returns:
        The loss of each example, (batch,).

    Raises:
        TypeError: an argument is no float array.
        ValueError: wrong rank, shapes that differ, an empty batch, NaN or infinity, a target outside [0, 1].

    Source: lecture 004, 'Recognizing "2" or "not 2"'.

    >>> print(sigmoid_kl(jnp.array([0.0, 0.0]), jnp.array([1.0, 0.5])))
    [0.6931472 0.       ]
    """
    _check(rank=1, logits=logits, target=target)
    _validation.within("target", target, 0, 1)
    logits, target = jnp.asarray(logits), jnp.asarray(target)
    cross_entropy = optax.losses.sigmoid_binary_cross_entropy(logits, target)
    return cross_entropy + _negative_entropy(target) + _negative_entropy(1 - target)


def _negative_entropy(d: Float[Array, "..."]) -> Float[Array, "..."]:
    """The terms d log d with 0 log 0 := 0, also in the derivative: the logarithm never sees a zero, not even one selected away."""
    return jnp.where(d == 0, 0, d * jnp.log(jnp.where(d == 0, 1, d)))


def _check(rank: int | None = None, **arrays: Any) -> None:
    for name, given in arrays.items():
        _validation.floating(name, given, rank=rank)
    _validation.batch(**arrays)
    _validation.same_shape(**arrays)
    for name, given in arrays.items():
        _validation.finite(name, given)


def _check_distributions(target: Any) -> None:
    _validation.within("target", target, 0, np.inf)
    known = _validation.values(target)
    if known is None:
        return
    sums = known.astype(np.float64).sum(1)
    # A target computed in float32 may arrive as float64: its rows sum to 1 only to float32's rounding.
    off = np.abs(sums - 1) > max(1e-6, known.shape[1] * float(jnp.finfo(known.dtype).eps))
    if off.any():
        first = int(np.argmax(off))
        raise ValueError(
            f"target must hold distributions, rows that sum to 1, got row {first} with sum {sums[first]:.6g}"
        )
