"""What an attack wants of the logits, and the losses it ascends to get it.

                     untargeted, y the label               targeted, y the target
    wanted           argmax z != y                          argmax z == y
    cross_entropy    -log softmax(z)_y                      log softmax(z)_y
    margin           max_{j != y} z_j - z_y                 z_y - max_{j != y} z_j
    dlr              margin / (z_1st - z_3rd)               the same, of the targeted margin

All per example, and all grow towards what is wanted; `margin` is positive where it is reached. The difference of logits ratio (Croce and
Hein 2020) is the margin that does not change when the logits are scaled. Cross-entropy is blind where softmax rounds to 1: its gradient is
then zero or wrong, and `cross_entropy` becomes the margin there.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

Logits = Float[Array, "batch classes"]
Labels = Integer[Array, "batch"]
Loss = Callable[[Logits, Labels, bool], Float[Array, "batch"]]


def is_adversarial(logits: Logits, y: Labels, targeted: bool) -> Bool[Array, "batch"]:
    """Whether the attack has what it wants; never where a logit is NaN.

    >>> print(is_adversarial(jnp.array([[1.0, 2.0], [jnp.nan, 0.0]]), jnp.array([0, 0]), targeted=False))
    [ True False]
    """
    read = logits.argmax(-1)
    return (read == y if targeted else read != y) & ~jnp.isnan(logits).any(-1)


def margin(logits: Logits, y: Labels, targeted: bool) -> Float[Array, "batch"]:
    """max_{j != y} z_j - z_y, or its negative for a target.

    >>> margin(jnp.array([[1.0, 3.0]]), jnp.array([0]), targeted=False)
    Array([2.], dtype=float32)
    """
    own = _of(logits, y)
    gap = _without(logits, y).max(-1) - own
    return -gap if targeted else gap


def cross_entropy(logits: Logits, y: Labels, targeted: bool) -> Float[Array, "batch"]:
    """-log softmax(z)_y, or its negative for a target; the margin where softmax has rounded to 1.

    >>> cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([0]), targeted=False)
    Array([0.6931472], dtype=float32)
    """
    own, others = _of(logits, y), _without(logits, y)
    ahead = jax.nn.logsumexp(others, axis=-1) - own
    gap, surprise = others.max(-1) - own, jax.nn.softplus(ahead)
    # What is left to win; below the rounding of 1 it no longer reaches the gradient of softmax.
    left = -ahead if targeted else ahead
    saturated = jax.lax.stop_gradient(left < jnp.log(jnp.finfo(logits.dtype).eps))
    value = jnp.where(saturated, gap, surprise)
    return -value if targeted else value


def dlr(logits: Logits, y: Labels, targeted: bool) -> Float[Array, "batch"]:
    """The margin over the distance of the first to the third logit; with two classes, where there is no third, the margin.

    >>> dlr(jnp.array([[1.0, 3.0, 2.0]]), jnp.array([0]), targeted=False)
    Array([1.], dtype=float32)
    """
    gap = margin(logits, y, targeted)
    if logits.shape[-1] < 3:
        return gap
    ordered = jax.lax.top_k(logits, 3)[0]
    return gap / jnp.maximum(ordered[:, 0] - ordered[:, 2], 1e-12)


def logit_difference(logits: Logits, y: Labels, target: Labels) -> Float[Array, "batch"]:
    """z_target - z_y: how far one class is ahead of another.

    >>> logit_difference(jnp.array([[1.0, 3.0, 2.0]]), jnp.array([0]), jnp.array([2]))
    Array([1.], dtype=float32)
    """
    return _of(logits, target) - _of(logits, y)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


def _of(logits: Logits, y: Labels) -> Float[Array, "batch"]:
    # A selection and a sum: the gradient of a gather would be a scatter, which is slow.
    return jnp.where(jax.nn.one_hot(y, logits.shape[-1], dtype=bool), logits, 0).sum(-1)


def _without(logits: Logits, y: Labels) -> Logits:
    return jnp.where(jax.nn.one_hot(y, logits.shape[-1], dtype=bool), -jnp.inf, logits)
