"""Evaluation of a model's robustness under several attacks.

Every attack runs on every example, in batches of one shape. Per example, the smallest perturbation
of all attacks is kept, which gives the robust accuracy at every radius (see `_report`). Unless
switched off, the evaluation ends with tests for gradient masking (see `_gradient_masking`).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool

from diffprog import _validation
from diffprog.adversarial import _base
from diffprog.adversarial._base import Attack, AttackResult, Labels
from diffprog.adversarial.evaluation._gradient_masking import Measurements, masking_flags, measure
from diffprog.adversarial.evaluation._report import (
    TOLERANCE,
    Outcome,
    Report,
    Worst,
    share_with_interval,
)
from diffprog.program import Program, program

_MASKING_EXAMPLES = 64  # at most so many examples are tested for gradient masking


def evaluate(
    f: Callable[..., Any],
    x: Any,
    y: Labels,
    attacks: Sequence[Attack] | Mapping[str, Attack],
    *,
    key: jax.Array,
    batch_size: int = 256,
    confidence: float = 0.95,
    flags: bool = True,
    mesh: Mesh | None = None,
) -> Report:
    """Evaluate clean and robust accuracy under several attacks, and test for gradient masking.

    Args:
        f: model, (batch, ...) -> logits (batch, classes). If every attack is an `expectation`, a
            model of (x, key).
        x: float examples within the bounds, an array (batch, ...) or a pytree of such arrays.
        y: integer labels (batch,).
        attacks: at least one untargeted attack, or a dict of attacks by name; all with the same
            norm and bounds. Attacks with a radius give the robust accuracy at that radius,
            minimum-norm attacks the curve over all radii.
        key: PRNG key; attack k gets `jax.random.fold_in(key, k)`.
        batch_size: examples per batch, >= 1; default 256. The last batch is padded.
        confidence: confidence level of the intervals, in (0, 1); default 0.95.
        flags: whether to test for gradient masking, which runs PGD a few times on up to 64
            examples; default True.
        mesh: devices over which each batch is sharded during attacks, from `distributed.mesh()`;
            default one device.

    Returns:
        A `Report`; `print(report)` shows a table.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: attacks are empty, targeted or disagree in norm or bounds; x is not finite or
            outside the bounds; y is not in 0 .. classes - 1; an epsilon does not fit the batch. All
            are raised before any attack runs.

    >>> from diffprog.adversarial.gradient._pgd import pgd
    >>> x = jnp.array([[0.9, 0.1], [0.6, 0.5], [0.2, 0.3]])
    >>> y = jnp.array([0, 0, 0])
    >>> report = evaluate(lambda x: x, x, y, [pgd(epsilon=0.1)], key=jax.random.key(0))
    >>> print(report.clean.count, report.robust(0.1).count, report.flags)
    2 1 ()
    """
    named_attacks = _validate_attacks(attacks)
    first = named_attacks[0][1]
    _validation.key("key", key)
    batch_size = _validation.integer("batch_size", batch_size, low=1)
    if _validation.number("confidence", confidence, above=0, high=1) == 1:
        raise ValueError("confidence must be a number between 0 and 1, got 1")
    if not isinstance(flags, bool):
        raise TypeError(f"flags must be True or False, got {type(flags).__name__}")
    _validation.function("f", f)
    if first.draws is None:
        model = program(f)
    else:
        model = cast(Any, first).mean_program(f, jax.random.fold_in(key, 0))
    x, y = _base.validate_examples(model, x, y, first.bounds)
    for _, attack in named_attacks:
        if attack.epsilon is not None:
            _base.per_example_epsilon(attack.epsilon, len(y), jnp.float32)

    def run(attack: Attack, key: jax.Array) -> AttackResult:
        def run_batch(indices: np.ndarray) -> AttackResult:
            epsilon = attack.epsilon
            if np.ndim(epsilon):
                epsilon = jnp.asarray(epsilon)[indices]
            batch_attack = dataclasses.replace(attack, epsilon=epsilon)
            return batch_attack(f, _take(x, indices), y[indices], key=key, mesh=mesh)

        return _map_batches(run_batch, len(y), batch_size)

    results = [
        run(attack, jax.random.fold_in(key, k)) for k, (_, attack) in enumerate(named_attacks)
    ]
    logits = _map_batches(
        lambda indices: _compute_logits(model, _take(x, indices)), len(y), batch_size
    )
    has_nan = np.isnan(logits).any(1)
    correct = (logits.argmax(1) == np.asarray(y)) & ~has_nan
    share = lambda which: share_with_interval(int(which.sum()), len(y), confidence)
    robust = [share(correct & ~result.success) for result in results]
    outcomes = tuple(
        Outcome(name, attack.name, attack.epsilon, accuracy, result, attack.uses_gradients)
        for (name, attack), accuracy, result in zip(named_attacks, robust, results, strict=True)
    )
    worst = _smallest_perturbations(results, correct)
    raised_flags: tuple[Any, ...] = ()
    if flags:
        measurements = _measure_some(f, x, y, first, outcomes, worst, correct, key)
        raised_flags = masking_flags(measurements, outcomes, correct, has_nan)
    clean = share(correct)
    return Report(
        first.norm, first.bounds, confidence, clean, correct, outcomes, worst, raised_flags
    )


def _validate_attacks(attacks: Any) -> list[tuple[str, Attack]]:
    """Check that the attacks can be evaluated together; return a list of (name, attack)."""
    if not isinstance(attacks, Mapping | Sequence) or not attacks:
        raise ValueError(
            f"attacks must be a sequence or dict of at least one Attack, got {attacks!r:.60}"
        )
    items = attacks.items() if isinstance(attacks, Mapping) else enumerate(attacks)
    keys, values = zip(*items, strict=True)
    for name, attack in zip(keys, values, strict=True):
        argument = f"attacks[{name!r}]"
        _base.validate_attack(attack, argument)
        if attack.targeted:
            raise ValueError(
                f"{argument} must not be targeted, since y are labels, got targeted {attack.name}"
            )
        for field in ("norm", "bounds"):
            value, expected = getattr(attack, field), getattr(values[0], field)
            if value != expected:
                raise ValueError(
                    f"attacks must agree in {field}, got {expected} and {argument} with {value}; "
                    "evaluate them separately"
                )
    draws = [attack.draws for attack in values]
    if None in draws and any(draws):
        raise ValueError(
            "attacks must all be expectations, for an f of (x, key), or none of them, for an f of x"
        )
    names = keys if isinstance(attacks, Mapping) else [attack.name for attack in values]
    return list(zip(names, values, strict=True))


def _take(tree: Any, indices: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[indices], tree)


@jax.jit
def _compute_logits(f: Program, x: Any) -> jax.Array:
    return f(x)


def _map_batches(function: Callable[[np.ndarray], Any], count: int, batch_size: int) -> Any:
    """Call a function of example indices for each batch, and concatenate its results in NumPy.

    `count` is the number of examples. The function returns a pytree of arrays (batch, ...).
    """
    size = min(batch_size, count)
    # The last batch is padded with the last index, so that nothing compiles twice.
    batches = [
        np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)
    ]
    results = [jax.tree.map(np.asarray, function(indices)) for indices in batches]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *results)


def _smallest_perturbations(
    results: list[AttackResult], correct: Bool[np.ndarray, "batch"]
) -> Worst:
    """Find the smallest successful perturbation of each example over all attacks; return a `Worst`.

    `correct` (batch,) is whether an example is correctly classified; the distance of others is 0.
    """
    distances = np.stack(
        [np.where(result.success, result.distance.astype(np.float64), np.inf) for result in results]
    )
    smallest = np.where(correct, distances.min(0), 0)
    success = correct & np.isfinite(smallest)
    # Distances that differ by rounding alone count as equal.
    attack = np.where(success, (distances <= smallest * (1 + TOLERANCE)).argmax(0), -1)
    index = np.maximum(attack, 0)
    step = np.choose(index, [result.step for result in results])
    restart = np.choose(index, [result.restart for result in results])
    return Worst(smallest, attack, np.where(success, step, -1), np.where(success, restart, -1))


def _measure_some(
    f: Callable[..., Any],
    x: Any,
    y: Labels,
    attack: Attack,
    outcomes: tuple[Outcome, ...],
    worst: Worst,
    correct: Bool[np.ndarray, "batch"],
    key: jax.Array,
) -> Measurements | None:
    """Measure signs of gradient masking on up to 64 correctly classified examples.

    The norm and the bounds are those of `attack`. The radius is the largest of those in `outcomes`,
    or else the median distance in `worst`. Returns `Measurements`, or None if no example is
    correctly classified.
    """
    if not correct.any():
        return None
    # Repeated to a fixed size, so that another number of examples compiles nothing new.
    indices = np.resize(np.flatnonzero(correct), min(len(y), _MASKING_EXAMPLES))
    radii = [np.median(outcome.epsilon) for outcome in outcomes if outcome.epsilon is not None]
    epsilon = float(max(radii, default=0.0))
    if epsilon == 0:
        distances = worst.distance[np.isfinite(worst.distance) & (worst.distance > 0)]
        low, high = attack.bounds
        epsilon = float(np.median(distances)) if len(distances) else (high - low) / 10
    return measure(f, _take(x, indices), y[indices], attack, epsilon, key)
