"""Cascades of attacks: each attack runs only on the examples on which the attacks before it failed.

    robust_0 = all correctly classified examples
    robust_{k+1} = the examples of robust_k on which attack k fails

The result of each example is as if every attack had run on all examples and the first success had
been kept, but only the remaining examples are attacked. `auto_attack` is the standard cascade, for
publishable robust accuracy.

The first attack runs on the whole batch. Later attacks run on chunks of one eighth of its size, the
last of them padded. How many examples remain changes the number of chunks but no shape, so nothing
is compiled again for other data.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Integer

from diffprog import _validation
from diffprog.adversarial import _base
from diffprog.adversarial._base import Attack, AttackResult, Bounds, Labels, PerExample, Run
from diffprog.adversarial.black_box._square import square
from diffprog.adversarial.gradient._apgd import apgd
from diffprog.adversarial.minimum_norm._fab import fab
from diffprog.program import Program

_CHUNKS = 8


@jax.tree_util.register_static
class StaticTuple(tuple[Any, ...]):
    """Tuple that JAX treats as a constant: a pytree without leaves, whose values are not traced."""


class Cascaded(NamedTuple):
    """Result of running several attacks in turn, each on the examples the earlier ones failed on.

    The attacks are called stages. The result of an example is that of the first stage that
    succeeded on it; if none did, it is the perturbation with the largest loss.

    Attributes:
        adversarial, perturbation, success, distance, loss, initially_misclassified, step, restart:
            as in `AttackResult`.
        gradients: (batch,), number of forward-and-backward passes of all stages together.
        queries: (batch,), number of forward-only passes of all stages together.
        stage: (batch,), index of the attack that succeeded; -1 if no attack did, or if x itself is
            misclassified.
        stages: names of the attacks.
        stage_uses_gradients: whether each attack differentiates the model.
    """

    adversarial: Any
    perturbation: Any
    success: Bool[Array, "batch"]
    distance: PerExample
    loss: PerExample
    initially_misclassified: Bool[Array, "batch"]
    step: Integer[Array, "batch"]
    restart: Integer[Array, "batch"]
    gradients: Integer[Array, "batch"]
    queries: Integer[Array, "batch"]
    stage: Integer[Array, "batch"]
    stages: StaticTuple
    stage_uses_gradients: StaticTuple

    @property
    def broken(self) -> dict[str, int]:
        """Dict from the name of each attack to the number of examples it succeeded on first."""
        return {name: int((self.stage == k).sum()) for k, name in enumerate(self.stages)}


def auto_attack(
    *,
    norm: str = "linf",
    epsilon: Any = 0.1,
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
    restarts: int = 1,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
) -> Attack:
    """AutoAttack (Croce and Hein, 2020), for publishable robust accuracy without tuning.

    It runs four attacks (stages) in turn, each on the examples on which those before it failed:
    APGD on the cross-entropy, APGD on the DLR loss towards several target classes, FAB towards
    several target classes, and Square. If `targeted`, the second stage maximizes the targeted DLR
    loss, and FAB has y as its only target.

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: radius >= 0, a number or one per example; default 0.1.
        steps: gradient evaluations per run of the first three stages; default 100.
        targets: number of target classes that the second and third stage try, at most all others;
            default 9.
        queries: forward passes of the last stage; default 5000.
        restarts: runs of the first stage; default 1. The original takes 5 for "l1".
        bounds: (low, high) of the input values.
        targeted: whether y holds target classes.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)`, whose result is a `Cascaded`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: F. Croce and M. Hein, "Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks", 2020, with its defaults.

    >>> attack = auto_attack(epsilon=0.25, steps=5, queries=5)
    >>> x, y = jnp.array([[0.6, 0.5]]), jnp.array([0])
    >>> result = attack(lambda x: x, x, y, key=jax.random.key(0))
    >>> print(result.success, result.broken)
    [ True] {'apgd, cross-entropy': 1, 'apgd, dlr to targets': 0, 'fab': 0, 'square': 0}
    """
    shared: Any = {"norm": norm, "epsilon": epsilon, "bounds": bounds, "targeted": targeted}
    number = None if targeted else _validation.integer("targets", targets, low=1)
    second = "apgd, dlr" if targeted else "apgd, dlr to targets"
    stages = {
        "apgd, cross-entropy": apgd(steps=steps, restarts=restarts, **shared),
        second: apgd(steps=steps, targets=number, loss="dlr", **shared),
        "fab": fab(steps=steps, targets=number, **shared),
        "square": square(queries=queries, **shared),
    }
    attack = cascade([dataclasses.replace(stage, name=name) for name, stage in stages.items()])
    return dataclasses.replace(attack, name="auto_attack")


def cascade(attacks: Sequence[Attack]) -> Attack:
    """Combine attacks into one; each runs on the examples on which those before it failed.

    Args:
        attacks: at least one attack with a radius; all with the same norm, radius, bounds and
            `targeted`.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)`, whose result is a `Cascaded`. Under
        `jax.jit` every attack runs on every example, since which examples remain is unknown when
        compiling; the result is the same.

    Raises:
        TypeError: an element is not an `Attack`.
        ValueError: no attack, a minimum-norm attack, an `expectation`, or attacks that disagree.

    >>> from diffprog.adversarial.gradient._pgd import fgsm, pgd
    >>> attack = cascade([fgsm(epsilon=0.25), pgd(epsilon=0.25, steps=5)])
    >>> x, y = jnp.array([[0.6, 0.5]]), jnp.array([0])
    >>> print(attack(lambda x: x, x, y, key=jax.random.key(0)).stage)
    [0]
    """
    _validate_stages(attacks)
    first, *later = attacks
    names = StaticTuple(attack.name for attack in attacks)
    uses_gradients = StaticTuple(attack.uses_gradients for attack in attacks)

    def run(f: Program, x: Any, y: Labels, epsilon: PerExample, key: jax.Array) -> AttackResult:
        result = first.run(f, x, y, epsilon, jax.random.fold_in(key, 0))
        stage = jnp.where(result.success & ~result.initially_misclassified, 0, -1)
        cascaded = Cascaded(
            **result._asdict(), stage=stage, stages=names, stage_uses_gradients=uses_gradients
        )
        for k, attack in enumerate(later, 1):
            for indices in _remaining_chunks(cascaded.success, x):
                some_x, some_y, radii = _take_sharded((x, y, epsilon), indices)
                result = attack.run(f, some_x, some_y, radii, jax.random.fold_in(key, k))
                cascaded = _update(cascaded, result, indices, k)
        return cast(AttackResult, cascaded)

    return Attack(
        "cascade",
        first.norm,
        first.epsilon,
        first.bounds,
        first.targeted,
        cast(Run, run),
        uses_gradients=any(uses_gradients),
    )


def _validate_stages(attacks: Any) -> None:
    if not isinstance(attacks, Sequence) or not attacks:
        raise ValueError(f"attacks must be a sequence of at least one Attack, got {attacks!r:.60}")
    for k, attack in enumerate(attacks):
        _base.validate_attack(attack, f"attacks[{k}]")
        if attack.draws is not None:
            raise ValueError(
                f"attacks[{k}] must attack a function of x alone, got {attack.name}; "
                "wrap the cascade in expectation instead"
            )
        if attack.epsilon is None:
            raise ValueError(
                f"attacks[{k}] must have a radius, got the minimum-norm attack {attack.name}"
            )
        for field in ("norm", "bounds", "targeted", "epsilon"):
            value, expected = getattr(attack, field), getattr(attacks[0], field)
            if value is not expected and not np.array_equal(value, expected):
                raise ValueError(
                    f"attacks must agree in {field}, got {expected} and attacks[{k}] with {value}"
                )


def _remaining_chunks(success: Bool[Array, "batch"], x: Any) -> list[Integer[np.ndarray, "chunk"]]:
    """Split the indices of the examples without success into a list of arrays of equal size.

    The last array is padded with the batch size, which is one past the last index. Under `jax.jit`
    there is one array, of all indices. The size is a multiple of the number of devices that hold x.
    """
    values, batch = _validation.values(success), len(success)
    if values is None:
        return [np.arange(batch)]
    devices = _device_count(jax.tree.leaves(x)[0])
    size = -(-batch // (_CHUNKS * devices)) * devices
    remaining = np.flatnonzero(~values)
    padded = np.append(remaining, np.full(-len(remaining) % size, batch))
    return list(padded.reshape(-1, size))


def _take_sharded(tree: Any, indices: Integer[np.ndarray, "chunk"]) -> Any:
    """Select examples from a pytree of arrays, and shard them over devices as these arrays are.

    Indices past the end select the last example.
    """

    def shard(chunk: Array, whole: Array) -> Array:
        return chunk if _device_count(whole) == 1 else jax.device_put(chunk, whole.sharding)

    return jax.tree.map(shard, _take(tree, indices), tree)


def _device_count(array: Array) -> int:
    return 1 if _validation.values(array) is None else len(array.sharding.device_set)


@jax.jit
def _take(tree: Any, indices: Integer[Array, "chunk"]) -> Any:
    return jax.tree.map(lambda leaf: jnp.take(leaf, indices, axis=0, mode="clip"), tree)


@jax.jit
def _update(
    cascaded: Cascaded,
    result: AttackResult,
    indices: Integer[Array, "chunk"],
    k: Integer[Array, ""],
) -> Cascaded:
    """Write the result of attack k on some examples (`indices`) into the result of the cascade.

    The new result replaces the old one of an example if it is the first success, or if neither is a
    success and the new loss is larger. Padding indices are ignored.
    """
    old = _take(cascaded, indices)
    new = old._replace(**result._asdict(), stage=jnp.where(result.success, k, -1))
    best = _base.select(new.success | (new.loss > old.loss), new, old)
    best = best._replace(gradients=old.gradients + new.gradients, queries=old.queries + new.queries)
    best = _base.select(old.success, old, best)
    return jax.tree.map(
        lambda whole, chunk: whole.at[indices].set(chunk, mode="drop"), cascaded, best
    )
