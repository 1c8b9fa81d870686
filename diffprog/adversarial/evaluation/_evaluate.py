"""How robust a program is, against several attacks at once, and whether that can be believed.

Every attack sees every example, in batches of one shape; example by example the shortest perturbation of all is kept. What the shares and
curves mean stands in `_report`, what makes them doubtful in `_flags`.
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
from diffprog.adversarial._base import Attack, AttackResult, Labels, validate_examples
from diffprog.adversarial.evaluation import _gradient_masking
from diffprog.adversarial.evaluation._report import SLACK, Outcome, Report, Worst, share
from diffprog.program import Program, program

_LOOKED_AT = 64


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
    """Accuracy without an attack, under each and under all together, and the signs that these say less than they seem to.

    Args:
        f: a program of a batch of examples, returning logits (batch, classes). Where every attack is an `expectation`, an f of (x, key).
        x: float examples, an array (batch, ...) or a pytree of them, inside the bounds.
        y: integer labels (batch,).
        attacks: at least one, or several by name; of one norm and one pair of bounds, not targeted. Those with a radius say who stands at
            it, those that search for the smallest perturbation give the curve of accuracy against the radius.
        key: a random key; attack k gets `jax.random.fold_in(key, k)`.
        batch_size: examples seen at a time, all of them where there are fewer; the last batch is filled up.
        confidence: of the intervals, in 0 .. 1.
        flags: whether to look for signs of masked gradients, which costs some ascents on up to 64 examples.
        mesh: devices among which each batch is divided for the attacks, from `distributed.mesh()`.

    Raises:
        TypeError, ValueError: an argument that is none of these, before anything is attacked.

    >>> from diffprog.adversarial.gradient._pgd import pgd
    >>> x = jnp.array([[0.9, 0.1], [0.6, 0.5], [0.2, 0.3]])
    >>> report = evaluate(lambda x: x, x, jnp.array([0, 0, 0]), [pgd(epsilon=0.1)], key=jax.random.key(0))
    >>> print(report.clean.count, report.robust(0.1).count, report.flags)
    2 1 ()
    """
    pairs = _named(attacks)
    first, draws = pairs[0][1], _draws(pairs)
    _validation.key("key", key)
    size = _validation.integer("batch_size", batch_size, low=1)
    if _validation.number("confidence", confidence, above=0, high=1) == 1:
        raise ValueError(
            "confidence must be a number between 0 and 1, got 1, which no interval has"
        )
    if not isinstance(flags, bool):
        raise TypeError(f"flags must be True or False, got {type(flags).__name__}")
    _validation.function("f", f)
    seen = program(f) if draws is None else cast(Any, first).mean_program(f, jax.random.fold_in(key, 0))
    x, y = validate_examples(seen, x, y, first.bounds)
    for _, attack in pairs:
        _require_radii(attack, len(y))

    founds = [
        _in_batches(attack, f, x, y, jax.random.fold_in(key, k), size, mesh)
        for k, (_, attack) in enumerate(pairs)
    ]
    logits = _joined(
        lambda part: _said(seen, jax.tree.map(lambda leaf: leaf[part], x)), len(y), size
    )
    unsaid = np.isnan(logits).any(1)
    right = (logits.argmax(1) == np.asarray(y)) & ~unsaid
    outcomes = tuple(
        Outcome(
            name,
            attack.name,
            attack.epsilon,
            share(int((right & ~found.success).sum()), len(y), confidence),
            found,
        )
        for (name, attack), found in zip(pairs, founds, strict=True)
    )
    worst = _worst(founds, right)
    signs = (
        (
            *_gradient_masking.of_logits(unsaid),
            *_signs(f, x, y, first, outcomes, worst, right, key, draws),
        )
        if flags
        else ()
    )
    clean = share(int(right.sum()), len(y), confidence)
    return Report(first.norm, first.bounds, confidence, clean, right, outcomes, worst, signs)


def _named(attacks: Any) -> list[tuple[str, Attack]]:
    """Attacks with their names, all of one kind."""
    if not isinstance(attacks, Mapping | Sequence) or not attacks:
        raise ValueError(
            f"attacks must be a sequence or dict of at least one Attack, got {attacks!r:.60}"
        )
    pairs = list(
        attacks.items()
        if isinstance(attacks, Mapping)
        else ((getattr(attack, "name", ""), attack) for attack in attacks)
    )
    for k, (name, attack) in enumerate(pairs):
        where = f"attacks[{(name if isinstance(attacks, Mapping) else k)!r}]"
        if not isinstance(attack, Attack):
            raise TypeError(f"{where} must be an Attack, got {type(attack).__name__}")
        if attack.targeted:
            raise ValueError(
                f"{where} must not be targeted: y are the labels, got {attack.name} with targeted=True"
            )
        for number in ("norm", "bounds"):
            mine, others = getattr(attack, number), getattr(pairs[0][1], number)
            if mine != others:
                raise ValueError(
                    f"attacks must agree in {number}, got {others} and {where} with {mine}; make a report for each"
                )
    return pairs


def _draws(pairs: list[tuple[str, Attack]]) -> int | None:
    """How many draws stand for f of (x, key); None for an f of x."""
    draws = [attack.draws for _, attack in pairs]
    if None in draws and any(draws):
        raise ValueError(
            "attacks must all be expectations, for an f of (x, key), or none of them, for an f of x"
        )
    return draws[0]


def _require_radii(attack: Attack, batch: int) -> None:
    if np.shape(attack.epsilon) not in ((), (batch,)):
        raise ValueError(
            f"epsilon must be a number or have one value for each of {batch} examples, got {list(np.shape(attack.epsilon))}"
        )


def _in_batches(
    attack: Attack,
    f: Callable[..., Any],
    x: Any,
    y: Labels,
    key: jax.Array,
    size: int,
    mesh: Mesh | None,
) -> AttackResult:
    """What the attack finds for all examples, in NumPy."""

    def once(part: np.ndarray) -> AttackResult:
        own = (
            attack
            if np.ndim(attack.epsilon) == 0
            else dataclasses.replace(attack, epsilon=jnp.asarray(attack.epsilon)[part])
        )
        return own(f, jax.tree.map(lambda leaf: leaf[part], x), y[part], key=key, mesh=mesh)

    return _joined(once, len(y), size)


@jax.jit
def _said(f: Program, x: Any) -> jax.Array:
    return f(x)


def _joined(once: Callable[[np.ndarray], Any], count: int, size: int) -> Any:
    """What a function of the indices of a batch says of all, in batches of one size; the last filled up with the last index."""
    size = min(size, count)
    parts = [
        np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)
    ]
    return jax.tree.map(
        lambda *said: np.concatenate(said)[:count],
        *(jax.tree.map(np.asarray, once(part)) for part in parts),
    )


def _worst(founds: list[AttackResult], right: Bool[np.ndarray, "batch"]) -> Worst:
    """The shortest perturbation of each example; of those that differ by rounding the first."""
    lengths = np.stack(
        [np.where(found.success, found.distance.astype(np.float64), np.inf) for found in founds]
    )
    shortest = np.where(right, lengths.min(0), 0)
    broken = right & np.isfinite(shortest)
    attack = np.where(broken, (lengths <= shortest * (1 + SLACK)).argmax(0), -1)
    of_attack = lambda name: np.choose(
        np.maximum(attack, 0), [getattr(found, name) for found in founds]
    )
    return Worst(
        shortest,
        attack,
        np.where(broken, of_attack("step"), -1),
        np.where(broken, of_attack("restart"), -1),
    )


def _signs(
    f: Callable[..., Any],
    x: Any,
    y: Labels,
    attack: Attack,
    outcomes: tuple[Outcome, ...],
    worst: Worst,
    right: Bool[np.ndarray, "batch"],
    key: jax.Array,
    draws: int | None,
) -> tuple[_gradient_masking.Flag, ...]:
    if not right.any():
        return _gradient_masking.signs(None, outcomes, right)
    # Of one size, whatever is read rightly: nothing compiles again for that.
    part = np.resize(np.flatnonzero(right), min(len(y), _LOOKED_AT))
    radius = _radius(outcomes, worst, attack.bounds)
    some = jax.tree.map(lambda leaf: leaf[part], x)
    seen = _gradient_masking.look(
        f,
        some,
        y[part],
        norm=attack.norm,
        epsilon=radius,
        bounds=attack.bounds,
        key=key,
        draws=draws,
    )
    return _gradient_masking.signs(seen, outcomes, right)


def _radius(outcomes: tuple[Outcome, ...], worst: Worst, bounds: tuple[float, float]) -> float:
    """That of the attacks, of several the largest; else the median distance; else a tenth of the box."""
    given = [
        float(np.median(outcome.epsilon)) for outcome in outcomes if outcome.epsilon is not None
    ]
    lengths = worst.distance[np.isfinite(worst.distance) & (worst.distance > 0)]
    return max([*given, 0.0]) or (
        float(np.median(lengths)) if len(lengths) else (bounds[1] - bounds[0]) / 10
    )
