"""Expectation over transformation: attacks on a model f(x, key) that draws random numbers.

    attack the deterministic model   x -> log E_key softmax f(x, key)

The expectation is the mean over a fixed number of keys derived from the values of x. Every iterate
of every example is therefore evaluated with new random numbers, and yet the same x always gives the
same logits.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffprog import _validation
from diffprog.adversarial import _base
from diffprog.adversarial._base import Attack, AttackResult, PerExample
from diffprog.adversarial._losses import Labels, Logits
from diffprog.program import Program, program

# Success is decided by this many times the draws of a gradient.
_EVALUATION_FACTOR = 4


def expectation(attack: Attack, draws: int = 16) -> Attack:
    """Wrap an attack for random models f(x, key), by expectation over transformation.

    The attack runs on the model log E_key softmax f(x, key), estimated with `draws` keys. Success
    is evaluated with four times as many other keys, so that a lucky draw is no success. Every
    example has its own keys: f is called with one example of shape (1, ...) at a time, under
    `jax.vmap`.

    Args:
        attack: any attack.
        draws: number of keys for each value and gradient, at least 1.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)` with f a function (x, key) -> logits.

    Raises:
        TypeError, ValueError: attack is not an `Attack`, or draws is below 1.

    Source: A. Athalye et al., "Synthesizing robust adversarial examples", 2018.

    >>> from diffprog.adversarial.gradient._pgd import fgsm
    >>> f = lambda x, key: x + 0.1 * jax.random.normal(key, x.shape)
    >>> attack = expectation(fgsm(epsilon=0.5), draws=4)
    >>> print(attack(f, jnp.array([[0.75, 0.25]]), jnp.array([0]), key=jax.random.key(0)).success)
    [ True]
    """
    _base.validate_attack(attack)
    draws = _validation.integer("draws", draws, low=1)
    return _Expectation(**{**vars(attack), "name": f"expectation of {attack.name}", "draws": draws})


@dataclasses.dataclass(frozen=True)
class _Expectation(Attack):
    draws: int = 1

    def mean_program(self, f: Callable[..., Any], key: jax.Array) -> Program:
        """Return the deterministic function x -> logits on which success is evaluated.

        The logits are the log of the mean softmax of the random model f(x, key) over many keys.
        """
        draws = _EVALUATION_FACTOR * self.draws
        return program(_log_mean_softmax(f, jax.random.split(key)[1], draws))

    def __call__(
        self,
        f: Callable[..., Any],
        x: Any,
        y: Labels,
        *,
        key: jax.Array,
        labels: Labels | None = None,
        mesh: Mesh | None = None,
    ) -> AttackResult:
        _validation.function("f", f)
        _validation.key("key", key)
        evaluation_program = self.mean_program(f, key)

        def run(
            search_program: Program, x: Any, y: Labels, epsilon: PerExample, key: jax.Array
        ) -> AttackResult:
            result = self.run(search_program, x, y, epsilon, key)
            return _base.reevaluate(evaluation_program, result, x, y, self.targeted)

        attack = Attack(**{**vars(self), "run": run, "draws": None})
        search_program = _log_mean_softmax(f, jax.random.split(key)[0], self.draws)
        return attack(search_program, x, y, key=key, labels=labels, mesh=mesh)


def _log_mean_softmax(f: Callable[..., Any], key: jax.Array, draws: int) -> Callable[[Any], Logits]:
    """Return the function x -> log of the mean of softmax f(x, key) over `draws` keys.

    The keys are derived from `key` and the values of x.
    """
    f_program = program(f)

    def log_mean_softmax(x: Any) -> Logits:
        keys = _base.per_example_keys(key, jax.lax.stop_gradient(_base.flatten_examples(x)[0]))

        def single(x: Any, key: jax.Array) -> jax.Array:
            return f_program(jax.tree.map(lambda leaf: leaf[None], x), key)[0]

        def draw(k: jax.Array) -> Logits:
            return jax.vmap(single)(x, jax.vmap(jax.random.fold_in, (0, None))(keys, k))

        logits = jax.vmap(draw)(jnp.arange(draws))
        log_sum = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0)
        mean = log_sum - jnp.log(draws).astype(logits.dtype)
        # Explicitly, for a compiled logsumexp may lose a NaN.
        return jnp.where(jnp.isnan(logits).any((0, 2))[:, None], jnp.nan, mean)

    return log_mean_softmax
