"""Adversarial training: minimize the loss at the perturbed inputs that an attack finds.

    J(θ) = mean_i L(f_θ(x_i + r_i), y_i),   r_i = attack(f_θ, x_i, y_i)
    dJ/dθ = mean_i dL/dθ (x_i + r_i, y_i)

with f_θ the model, L the loss and r_i the perturbation of example i. If r_i maximizes the loss over
the ball, the derivative of r_i with respect to θ does not contribute to dJ/dθ (Danskin's theorem).
The attack therefore runs under `stop_gradient`.

An attack does not perturb examples that f misclassifies, but training must. For the attack, the
logit of the label is therefore raised by a constant until the example is correctly classified. The
attack still ascends in the same direction: with z the logits, the cross-entropy log(1 + exp(d))
depends on x only through d = log Σ_{j != y} exp z_j - z_y, and the constant only shifts d.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffprog import _validation, losses
from diffprog.adversarial._base import Attack, validate_attack, validate_examples
from diffprog.adversarial._losses import Labels, Logits, margin
from diffprog.program import program


def adversarial_training(
    apply: Callable[[Any, Any], Logits],
    attack: Attack,
    *,
    loss: Callable[[Logits, Labels], Float[Array, "batch"]] = losses.softmax_cross_entropy,
) -> Callable[[Any, Any, Labels, jax.Array], Float[Array, ""]]:
    """Return the adversarial training loss: the mean loss at the inputs that an attack perturbed.

    Args:
        apply: function (params, x) -> logits, such as `models.cnn(...).apply`.
        attack: an untargeted attack, usually `pgd` with few steps.
        loss: function (logits, y) -> (batch,), the loss to minimize; default softmax cross-entropy.
            The attack maximizes its own loss.

    Returns:
        A function (params, x, y, key) -> float scalar, to be differentiated with respect to params.

    Raises:
        TypeError, ValueError: an invalid argument, or a targeted attack. The returned function
            raises what the attack raises.

    Source: A. Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018.

    >>> from diffprog.adversarial.gradient._pgd import fgsm
    >>> cost = adversarial_training(lambda w, x: x * w, fgsm(epsilon=0.25))
    >>> x, y = jnp.array([[0.75, 0.25]]), jnp.array([0])
    >>> print(cost(jnp.ones(2), x, y, jax.random.key(0)))
    0.6931472
    """
    _validation.function("apply", apply)
    _validation.function("loss", loss)
    validate_attack(attack)
    if attack.targeted:
        raise ValueError("attack must not be targeted: y are the labels")

    def cost(params: Any, x: Any, y: Labels, key: jax.Array) -> Float[Array, ""]:
        f = program(apply, jax.lax.stop_gradient(params))
        _validation.key("key", key)
        x, y = validate_examples(f, x, y, attack.bounds)
        logits = f(x)
        gap = margin(logits, y, False)
        own = jax.nn.one_hot(y, logits.shape[1], dtype=logits.dtype)
        offset = jnp.where(gap >= 0, 1 + gap, 0)[:, None] * own
        result = attack(lambda x: f(x) + offset, x, y, key=key)
        per_example = loss(apply(params, jax.lax.stop_gradient(result.adversarial)), y)
        _validation.batch(y=y, loss=per_example)
        return per_example.mean()

    return cost
