"""A cascade of attacks: what one leaves standing, the next one attacks.

    standing_0 = all read rightly,      standing_{k+1} = standing_k without those that attack k breaks

An example comes out as if every attack had been run on all of them and the first to break it had been kept, for the cost of attacking
those that stand. `auto_attack` is the cascade that is run where a robust accuracy has to hold: two ascents that need no rate, with
different losses, then the search for the boundary, then one that sees no gradient at all.

The first attack sees the whole batch, every later one parts of an eighth of it, the last filled up with copies. How many examples stand
changes how many parts there are, never a shape: nothing compiles again for other data.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Integer

from diffprog import _validation
from diffprog.adversarial._base import Attack, AttackResult, Bounds, Labels, PerExample, Run
from diffprog.adversarial.black_box._square import square
from diffprog.adversarial.gradient._apgd import apgd
from diffprog.adversarial.gradient._pgd import select
from diffprog.adversarial.minimum_norm._fab import fab
from diffprog.program import Program

_PARTS = 8


@jax.tree_util.register_static
class Stages(tuple[str, ...]):
    """Names of attacks, in their order; to JAX structure, not values."""


class Cascaded(NamedTuple):
    """What a cascade comes back with: as `AttackResult`, of the attack that broke each example or else came nearest, and who that was.

    Attributes:
        adversarial, perturbation, success, distance, loss, already, step, restart: as in `AttackResult`.
        gradients: (batch,), how many were taken for it by all attacks that saw it.
        queries: (batch,), how many values of f beside them.
        stage: (batch,), which attack broke it; -1 where none did, or f misread it from the start.
        stages: the names of the attacks.
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
    stages: Stages

    @property
    def broken(self) -> dict[str, int]:
        """How many examples each attack broke that those before it had not."""
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
    """The cascade with nothing to tune: APGD on the cross-entropy, APGD on DLR towards class after class, FAB the same way, Square.

    A targeted attack knows its class: there the second stage is APGD on the targeted DLR, and FAB walks to the target.

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: the radius, one for all or one for each example.
        steps: gradients of each run of the first three.
        targets: how many classes the second and third try, at most all others.
        queries: values of f that the last may ask for.
        restarts: runs of the first. The original takes 1, for l1 5.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.

    Returns:
        An attack that comes back with a `Cascaded`: a `AttackResult` that also says which stage broke which example.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Source: F. Croce and M. Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", 2020,
    with its defaults.

    >>> found = auto_attack(epsilon=0.25, steps=5, queries=5)(lambda x: x, jnp.array([[0.6, 0.5]]), jnp.array([0]), key=jax.random.key(0))
    >>> print(found.success, found.broken)
    [ True] {'apgd, cross-entropy': 1, 'apgd, dlr to targets': 0, 'fab': 0, 'square': 0}
    """
    ball: dict[str, Any] = {
        "norm": norm,
        "epsilon": epsilon,
        "bounds": bounds,
        "targeted": targeted,
    }
    most = None if targeted else _validation.integer("targets", targets, low=1)
    stages = {
        "apgd, cross-entropy": apgd(steps=steps, restarts=restarts, **ball),
        "apgd, dlr" if targeted else "apgd, dlr to targets": apgd(
            steps=steps, targets=most, loss="dlr", **ball
        ),
        "fab": fab(steps=steps, targets=most, **ball),
        "square": square(queries=queries, **ball),
    }
    whole = cascade([dataclasses.replace(attack, name=name) for name, attack in stages.items()])
    return dataclasses.replace(whole, name="auto_attack")


def cascade(attacks: Sequence[Attack]) -> Attack:
    """Attacks one after another, each on the examples that those before it left standing.

    Args:
        attacks: at least one, all of one norm, radius and bounds, and all targeted or none.

    Returns:
        An attack that comes back with a `Cascaded`. Inside `jax.jit` it cannot know who stands, and every attack sees every example.

    Raises:
        TypeError, ValueError: no attack, something that is none, attacks that differ, searches for the smallest perturbation.

    >>> from diffprog.adversarial.gradient._pgd import fgsm, pgd
    >>> both = cascade([fgsm(epsilon=0.25), pgd(epsilon=0.25, steps=5)])
    >>> print(both(lambda x: x, jnp.array([[0.6, 0.5]]), jnp.array([0]), key=jax.random.key(0)).stage)
    [0]
    """
    first, *later = _one_ball(attacks)
    names = Stages(attack.name for attack in attacks)

    def run(f: Program, x: Any, y: Labels, epsilon: PerExample, key: jax.Array) -> AttackResult:
        found = _opened(first.run(f, x, y, epsilon, jax.random.fold_in(key, 0)), names)
        for k, attack in enumerate(later, 1):
            for part in _parts(found.success, x):
                some_x, some_y, radii = _taken((x, y, epsilon), part)
                found = _joined(
                    found, attack.run(f, some_x, some_y, radii, jax.random.fold_in(key, k)), part, k
                )
        return cast(AttackResult, found)

    return Attack(
        "cascade", first.norm, first.epsilon, first.bounds, first.targeted, cast(Run, run)
    )


def _one_ball(attacks: Any) -> Sequence[Attack]:
    if not isinstance(attacks, Sequence) or not attacks:
        raise ValueError(f"attacks must be a sequence of at least one Attack, got {attacks!r:.60}")
    for k, attack in enumerate(attacks):
        if not isinstance(attack, Attack):
            raise TypeError(f"attacks[{k}] must be an Attack, got {type(attack).__name__}")
        if attack.draws is not None:
            raise ValueError(
                f"attacks[{k}] must be one on a program of x alone, got {attack.name}; put expectation around the cascade"
            )
        if attack.epsilon is None:
            raise ValueError(
                f"attacks[{k}] must have a radius, got {attack.name}, which searches for the smallest perturbation"
            )
        for name in ("norm", "bounds", "targeted", "epsilon"):
            mine, others = getattr(attack, name), getattr(attacks[0], name)
            if mine is not others and not np.array_equal(mine, others):
                raise ValueError(
                    f"attacks must agree in {name}, got {others} and attacks[{k}] with {mine}"
                )
    return attacks


def _parts(broken: Bool[Array, "batch"], x: Any) -> list[Integer[np.ndarray, "part"]]:
    """Who still stands, in parts of one size; the last filled up with the index after the last example."""
    known, batch = _validation.values(broken), len(broken)
    if known is None:
        return [np.arange(batch)]
    devices = _devices(jax.tree.leaves(x)[0])
    size = -(-batch // (_PARTS * devices)) * devices
    standing = np.flatnonzero(~known)
    filled = np.append(standing, np.full(-len(standing) % size, batch))
    return list(filled.reshape(-1, size))


def _taken(tree: Any, part: Integer[np.ndarray, "part"]) -> Any:
    """Those examples, spread over the devices as all are; a copy of the last, where there is none."""
    spread = lambda few, all: few if _devices(all) == 1 else jax.device_put(few, all.sharding)
    return jax.tree.map(spread, _rows(tree, part), tree)


def _devices(array: Array) -> int:
    return 1 if _validation.values(array) is None else len(array.sharding.device_set)


@jax.jit
def _rows(tree: Any, part: Integer[Array, "part"]) -> Any:
    return jax.tree.map(lambda leaf: jnp.take(leaf, part, axis=0, mode="clip"), tree)


def _opened(found: AttackResult, names: Stages) -> Cascaded:
    return Cascaded(
        **found._asdict(),
        stage=jnp.where(found.success & ~found.initially_misclassified, 0, -1),
        stages=names,
    )


@jax.jit
def _joined(
    found: Cascaded, new: AttackResult, part: Integer[Array, "part"], stage: Integer[Array, ""]
) -> Cascaded:
    """With what an attack on a part found, for those that stood: kept where it broke them or came nearer."""
    old = _rows(found._replace(stages=Stages()), part)
    nearer = new.success | (new.loss > old.loss)
    kept = select(
        nearer,
        Cascaded(**new._asdict(), stage=jnp.where(new.success, stage, -1), stages=Stages()),
        old,
    )
    kept = kept._replace(gradients=old.gradients + new.gradients, queries=old.queries + new.queries)
    kept = select(old.success, old, kept)
    placed = jax.tree.map(
        lambda all, few: all.at[part].set(few, mode="drop"), found._replace(stages=Stages()), kept
    )
    return placed._replace(stages=found.stages)
