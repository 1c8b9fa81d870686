"""Success criterion of attacks, and the losses that they maximize.

                     untargeted, y the label               targeted, y the target
    is_adversarial   argmax z != y                         argmax z == y
    cross_entropy    -log softmax(z)_y                     log softmax(z)_y
    margin           max_{j != y} z_j - z_y                z_y - max_{j != y} z_j
    dlr              margin / (z_1st - z_3rd)              the same, with the targeted margin

z are the logits of an example, z_1st and z_3rd the largest and third largest of them. The margin
and dlr are positive exactly where the attack has succeeded. The difference of logits ratio dlr
(Croce and Hein, 2020) is a margin that does not depend on the scale of the logits. Where the
softmax rounds to 1, the gradient of the cross-entropy is zero or inaccurate; there `cross_entropy`
returns the margin.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

Logits = Float[Array, "batch classes"]
Labels = Integer[Array, "batch"]
Loss = Callable[[Logits, Labels, bool], Float[Array, "batch"]]


def is_adversarial(logits: Logits, y: Labels, targeted: bool) -> Bool[Array, "batch"]:
    """Return for which examples the logits are a success of an attack, (batch,).

    The attack succeeds if the logits predict a class other than the label y, or the target y.
    Logits with a NaN count as no success.

    >>> logits, y = jnp.array([[1.0, 2.0], [jnp.nan, 0.0]]), jnp.array([0, 0])
    >>> print(is_adversarial(logits, y, targeted=False))
    [ True False]
    """
    predicted = logits.argmax(-1)
    success = predicted == y if targeted else predicted != y
    return success & ~jnp.isnan(logits).any(-1)


def margin(logits: Logits, y: Labels, targeted: bool) -> Float[Array, "batch"]:
    """Compute the margin max_{j != y} z_j - z_y of logits z, or its negative if y is a target.

    >>> margin(jnp.array([[1.0, 3.0]]), jnp.array([0]), targeted=False)
    Array([2.], dtype=float32)
    """
    gap = mask_label(logits, y).max(-1) - pick_label(logits, y)
    return -gap if targeted else gap


def cross_entropy(logits: Logits, y: Labels, targeted: bool) -> Float[Array, "batch"]:
    """Compute the cross-entropy -log softmax(z)_y of logits z, or its negative if y is a target.

    Where the softmax rounds to 1, the margin is returned instead.

    >>> cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([0]), targeted=False)
    Array([0.6931472], dtype=float32)
    """
    own, others = pick_label(logits, y), mask_label(logits, y)
    odds = jax.nn.logsumexp(others, axis=-1) - own  # log of (1 - p_y) / p_y
    # Saturated where the probability of an adversarial prediction rounds to 0.
    log_odds_of_success = -odds if targeted else odds
    saturated = jax.lax.stop_gradient(log_odds_of_success < jnp.log(jnp.finfo(logits.dtype).eps))
    value = jnp.where(saturated, others.max(-1) - own, jax.nn.softplus(odds))
    return -value if targeted else value


def dlr(logits: Logits, y: Labels, targeted: bool) -> Float[Array, "batch"]:
    """Compute the difference of logits ratio (Croce and Hein, 2020).

    It is the margin divided by the difference of the largest and the third largest logit; with two
    classes, the margin itself.

    >>> dlr(jnp.array([[1.0, 3.0, 2.0]]), jnp.array([0]), targeted=False)
    Array([1.], dtype=float32)
    """
    gap = margin(logits, y, targeted)
    if logits.shape[-1] < 3:
        return gap
    ordered = jax.lax.top_k(logits, 3)[0]
    return gap / jnp.maximum(ordered[:, 0] - ordered[:, 2], 1e-12)


def logit_difference(logits: Logits, y: Labels, target: Labels) -> Float[Array, "batch"]:
    """Compute the difference z_target - z_y of two logits of each example.

    >>> logit_difference(jnp.array([[1.0, 3.0, 2.0]]), jnp.array([0]), jnp.array([2]))
    Array([1.], dtype=float32)
    """
    return pick_label(logits, target) - pick_label(logits, y)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


def pick_label(logits: Logits, y: Labels) -> Float[Array, "batch"]:
    """Return the logit of the label y of each example, (batch,)."""
    # Not a gather, whose gradient is a scatter and slow.
    return jnp.where(jax.nn.one_hot(y, logits.shape[-1], dtype=bool), logits, 0).sum(-1)


def mask_label(logits: Logits, y: Labels) -> Logits:
    """Return the logits with the logit of each example's label y set to -inf."""
    return jnp.where(jax.nn.one_hot(y, logits.shape[-1], dtype=bool), -jnp.inf, logits)
