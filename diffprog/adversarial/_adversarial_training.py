"""Training against an attack: descent on the loss at the worst perturbation that the attack finds.

    J(θ) = mean_i L(f_θ(x_i + r_i), y_i),      r_i = attack(f_θ, x_i, y_i),      dJ/dθ = mean_i dL/dθ (x_i + r_i, y_i)

Where r is the maximum inside the ball, its own derivative with respect to θ drops out (Danskin): the inner problem stands under
`stop_gradient`, and what is left is a cost like any other, for the engine or any loop.

An attack leaves alone what f misreads. Here such an example has to be attacked as well, and is shown to the attack with the logit of its
label raised until it is read rightly. The cross-entropy log(1 + exp(gap)) depends on x through gap = log Σ_{j != y} exp z_j - z_y alone,
from which that takes a constant: its ascent goes through the same points, and so does that of the margin.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffprog import _validation, losses
from diffprog.adversarial._base import Attack, validate_examples
from diffprog.adversarial._losses import Labels, Logits, margin
from diffprog.program import program

Cost = Callable[[Any, Any, Labels, jax.Array], Float[Array, ""]]


def adversarial_training(
    apply: Callable[[Any, Any], Logits],
    attack: Attack,
    *,
    loss: Callable[[Logits, Labels], Float[Array, "batch"]] = losses.softmax_cross_entropy,
) -> Cost:
    """The loss of a model under attack, mean_i L(f_θ(x_i + r_i), y_i).

    Args:
        apply: (params, x) -> logits, such as `models.cnn(...).apply`.
        attack: not targeted; a few steps of `pgd` are usual, with the norm and radius to be robust in.
        loss: (logits, y) -> (batch,), what is descended on; the attack ascends its own.

    Returns:
        A function (params, x, y, key) -> float scalar, whose gradient in the parameters is that at the attacked examples.

    Raises:
        TypeError, ValueError: an argument that is none of these, a targeted attack; at the call what the attack refuses.

    Source: A. Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018.

    >>> from diffprog.adversarial.gradient._pgd import fgsm
    >>> cost = adversarial_training(lambda w, x: x * w, fgsm(epsilon=0.25))
    >>> x, y = jnp.array([[0.75, 0.25]]), jnp.array([0])
    >>> print(cost(jnp.ones(2), x, y, jax.random.key(0)))
    0.6931472
    """
    _validation.function("apply", apply)
    _validation.function("loss", loss)
    if not isinstance(attack, Attack):
        raise TypeError(f"attack must be an Attack, got {type(attack).__name__}")
    if attack.targeted:
        raise ValueError("attack must not be targeted: y are the labels")

    def cost(params: Any, x: Any, y: Labels, key: jax.Array) -> Float[Array, ""]:
        fixed = program(apply, jax.lax.stop_gradient(params))
        _validation.key("key", key)
        x, y = validate_examples(fixed, x, y, attack.bounds)
        found = attack(_read_rightly(fixed, x, y), x, y, key=key)
        each = loss(apply(params, jax.lax.stop_gradient(found.adversarial)), y)
        _validation.batch(y=y, loss=each)
        return each.mean()

    return cost


def _read_rightly(f: Callable[[Any], Logits], x: Any, y: Labels) -> Callable[[Any], Logits]:
    """f with the logit of the label raised wherever f misreads x."""
    logits = f(x)
    gap = margin(logits, y, False)
    raised = jnp.where(gap >= 0, 1 + gap, 0)[:, None] * jax.nn.one_hot(
        y, logits.shape[1], dtype=logits.dtype
    )
    return lambda x: f(x) + raised
