"""Transfer attacks: perturbations computed on one model and evaluated on another."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from diffprog import _validation
from diffprog.adversarial import _base
from diffprog.adversarial._base import Attack, AttackResult, PerExample
from diffprog.adversarial._losses import Labels
from diffprog.program import Program, program


def transfer(attack: Attack, source: Callable[..., Any]) -> Attack:
    """Wrap an attack so that it computes perturbations on another model, `source`.

    The wrapped attack on a model f runs on `source`, and then evaluates the perturbed examples on
    f. f is not differentiated. Examples that `source` or f misclassifies are not perturbed.

    Args:
        attack: any attack but an expectation.
        source: model that takes the same examples and returns logits of the same classes.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)`.

    Raises:
        TypeError: attack is not an `Attack`, or source is not callable.
        ValueError: attack is an expectation.

    Source: N. Papernot, P. McDaniel and I. Goodfellow, "Transferability in machine learning", 2016.

    >>> import jax.numpy as jnp
    >>> from diffprog.adversarial.gradient._pgd import fgsm
    >>> attack = transfer(fgsm(epsilon=0.25), source=lambda x: 2 * x)
    >>> x, y = jnp.array([[0.6, 0.5]]), jnp.array([0])
    >>> print(attack(lambda x: jnp.round(x, 1), x, y, key=jax.random.key(0)).success)
    [ True]
    """
    _base.validate_attack(attack)
    if attack.draws is not None:
        raise ValueError(
            "attack must be on a program of x alone, got an expectation; transfer the attack inside"
        )
    source_program = program(_validation.function("source", source))

    def run(f: Program, x: Any, y: Labels, epsilon: PerExample, key: jax.Array) -> AttackResult:
        _base.validate_examples(source_program, x, y, attack.bounds)
        result = attack.run(source_program, x, y, epsilon, key)
        return _base.reevaluate(f, result, x, y, attack.targeted)

    return dataclasses.replace(
        attack, name=f"transfer of {attack.name}", run=run, uses_gradients=False
    )
