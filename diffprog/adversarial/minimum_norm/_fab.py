"""Fast adaptive boundary: walk along the boundary between the classes towards the point of it that is nearest to x.

Around r the boundary to another class is taken for flat, {r' : v + <g, r' - r> = 0}, with v the difference of the two logits at x + r and
g its gradient. Two points of it lead on, both in the box: d steps to the nearest one from r, d0 to the nearest one from x.

    d = nearest(<g, d> = -v)          d0 = nearest(<g, d0> = <g, r> - v)          α = min(||d|| / (||d|| + ||d0||), pull)
    r' = (1 - α) (r + η d) + α η d0                  a little beyond the boundary (η > 1), and drawn back towards x
    r <- β r' where f is fooled at x + r', and r' where it is not

The shortest r' that fools f is kept. A walk knows one boundary at a time, that of the nearest class, or for a target of the likeliest;
where a target lies beyond several that meet, it ends beside the nearest point. So for a target a few of DeepFool's steps, which cross all
boundaries at once, are taken as well. `_halfspace` has the nearest points, `_boundary` the end: halving between x and what was found.

Source: F. Croce and M. Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", 2020.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from diffprog import _validation, norms
from diffprog.adversarial._base import (
    Attack,
    Bounds,
    Flat,
    PerExample,
    Problem,
    Search,
    make_attack,
)
from diffprog.adversarial.minimum_norm._binary_search import (
    DUAL,
    Best,
    as_examples,
    finished,
    finite,
    nearer,
    nothing,
    number,
    slope,
    success,
)
from diffprog.adversarial.minimum_norm._deepfool import likeliest, past
from diffprog.adversarial.minimum_norm._halfspace_projection import nearest

_BEFORE, _RIVALS, _LITTLE = (
    3,
    10,
    1.02,
)  # DeepFool's steps towards a target, past so many classes at most, so much longer than needed


def fab(
    *,
    norm: str = "linf",
    epsilon: Any = None,
    steps: int = 100,
    restarts: int = 1,
    targets: int | None = None,
    overshoot: float = 0.05,
    pull: float = 0.1,
    backward: float = 0.9,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """The smallest perturbation, by projections onto the linearised boundary: r' = (1 - α) (r + η d) + α η d0.

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: None for the smallest perturbation. A radius, one for all or one for each example: an example is done once it has a
            perturbation inside it, and what it has otherwise is cut to it.
        steps: of one walk, at least 1. 100 is the paper's.
        restarts: at least 1; the first starts at x, later ones at random within half the shortest length so far.
        targets: None steps to the nearest of all boundaries, for a gradient of every other class in each step. A number walks to one class
            after another, so many of them, the likeliest first, for one gradient in each step (FAB-T).
        overshoot: η - 1 >= 0.
        pull: the largest α, in 0 .. 1.
        backward: β in 0 .. 1.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.
        examples: like x, of any number: where the search for the smallest perturbation finds nothing, the nearest that f reads otherwise is
            brought to the boundary instead; None for points drawn from the box.

    Raises:
        TypeError, ValueError: an argument that is none of these; `targets` of a targeted attack.

    Source: Croce and Hein 2020, with its defaults; FAB-T, F. Croce and M. Hein, "Reliable evaluation of adversarial robustness with an
        ensemble of diverse parameter-free attacks", 2020.

    >>> found = fab(norm="l2")(lambda x: x @ jnp.eye(2), jnp.array([[0.7, 0.4]]), jnp.array([0]), key=jax.random.key(0))
    >>> print(f"{found.distance[0]:.3f}", found.success)
    0.212 [ True]
    """
    norms.named(norm)
    count, runs = (
        jnp.int32(_validation.integer("steps", steps, low=1)),
        jnp.int32(_validation.integer("restarts", restarts, low=1)),
    )
    beyond = number(1 + _validation.number("overshoot", overshoot, low=0))
    most, back = (
        number(_validation.number("pull", pull, low=0, high=1)),
        number(_validation.number("backward", backward, low=0, high=1)),
    )
    one_by_one = (
        None if targets is None else jnp.int32(_validation.integer("targets", targets, low=1))
    )
    if targeted and targets is not None:
        raise ValueError(
            f"targets must be None for a targeted attack, whose target is y, got {targets}"
        )
    starts, smallest = as_examples(examples, _validation.bounds("bounds", bounds)), epsilon is None

    def step(
        problem: Problem, boundary: Boundary, r: Flat
    ) -> tuple[Flat, Bool[Array, "batch"], Flat]:
        """r', whether it fools f, and where to go on from."""
        value, g = boundary(r)
        d = _onto(norm, g, -value, problem, r)
        from_x = _onto(norm, g, (g * r).sum(1) - value, problem, jnp.zeros_like(r))
        near, far = problem.norm.length(d), problem.norm.length(from_x)
        share = jnp.minimum(near / jnp.maximum(near + far, jnp.finfo(r.dtype).tiny), most)[:, None]
        ahead = problem.clip_to_box(
            ((1 - share) * (r + beyond * d) + share * beyond * from_x).astype(r.dtype)
        )
        fooled = success(problem, problem.perturbed_logits(ahead))
        return ahead, fooled, jnp.where(fooled[:, None], back * ahead, ahead).astype(r.dtype)

    def search(problem: Problem) -> Search:
        rivals, none = _rivals(problem), jnp.zeros(len(problem.x), int)
        turns = jnp.int32(1) if one_by_one is None else jnp.minimum(one_by_one, rivals.shape[1])
        cost = rivals.shape[1] if one_by_one is None and not targeted else 1

        def walk(turn: Array, kept: _Kept) -> _Kept:
            restart = turn // turns
            boundary = _boundary(problem, rivals, None if one_by_one is None else turn % turns)

            def once(carried: tuple[Array, Flat, _Kept]) -> tuple[Array, Flat, _Kept]:
                k, r, kept = carried
                ahead, fooled, r = step(problem, boundary, r)
                return k + 1, r, kept.after(problem, ahead, fooled, k, restart, cost)

            begun = jnp.int32(0), _start(problem, kept.best, turn, restart), kept
            more = lambda carried: (carried[0] < count) & carried[2].open(problem).any()
            return jax.lax.while_loop(more, once, begun)[2]

        before = _Kept(nothing(problem), none, none)
        kept = jax.lax.fori_loop(
            0, runs * turns, walk, _past_all(problem, norm, before) if targeted else before
        )
        if smallest:
            return finished(problem, kept.best, kept.gradients, kept.queries + 1, starts)
        return _inside(problem, kept)

    return make_attack("fab", search, norm=norm, epsilon=epsilon, bounds=bounds, targeted=targeted)


Boundary = Callable[[Flat], tuple[PerExample, Flat]]


class _Kept(NamedTuple):
    """What the walks of each example keep: the shortest perturbation, and what it took."""

    best: Best
    gradients: Integer[Array, "batch"]
    queries: Integer[Array, "batch"]

    def open(self, problem: Problem) -> Bool[Array, "batch"]:
        """Whether the example wants a shorter one."""
        return (
            ~self.best.found | (self.best.distance > problem.epsilon) | jnp.isinf(problem.epsilon)
        )

    def after(
        self,
        problem: Problem,
        r: Flat,
        fooled: Bool[Array, "batch"],
        k: Array,
        restart: Array,
        cost: int,
    ) -> "_Kept":
        """After another step."""
        open = self.open(problem)
        return _Kept(
            self.best.or_shorter(problem, r, fooled & open, k, restart),
            self.gradients + open * cost,
            self.queries + open,
        )


def _rivals(problem: Problem) -> Integer[Array, "batch others"]:
    """The classes other than y, those with the largest logits at x first."""
    logits = jnp.nan_to_num(problem.clean_logits)
    others = jnp.where(jax.nn.one_hot(problem.y, logits.shape[1], dtype=bool), -jnp.inf, logits)
    return jnp.argsort(-others, axis=1)[:, :-1]


def _boundary(problem: Problem, rivals: Array, rank: Array | None) -> Boundary:
    """The boundary to one rival, to the nearest, or of the target, linearised at x + r: v, below 0 where f lacks to cross it, and g."""
    if problem.targeted:
        return lambda r: slope(problem, r)[:2]

    def to_rivals(r: Flat) -> tuple[PerExample, Flat]:
        logits, pull = jax.vjp(problem.perturbed_logits, r)
        own = jax.nn.one_hot(problem.y, logits.shape[1], dtype=logits.dtype)

        def to(rank: Array) -> tuple[PerExample, Flat]:
            difference = (
                jax.nn.one_hot(jnp.take(rivals, rank, axis=1), logits.shape[1], dtype=logits.dtype)
                - own
            )
            return jnp.nan_to_num((difference * logits).sum(1)).astype(r.dtype), finite(
                pull(difference)[0]
            )

        return to(rank) if rank is not None else _nearest_of(to, rivals.shape[1], problem, r)

    return to_rivals


def _nearest_of(
    to: Callable[[Array], tuple[PerExample, Flat]], count: int, problem: Problem, r: Flat
) -> tuple[PerExample, Flat]:
    """Of several linearised boundaries the nearest, at the distance |v| / ||g||_dual."""
    dual = next(dual for name, dual in DUAL.items() if norms.named(name) is problem.norm)

    def compare(
        rank: Array, kept: tuple[PerExample, PerExample, Flat]
    ) -> tuple[PerExample, PerExample, Flat]:
        value, g = to(rank)
        steepness = dual.length(g)
        distance = jnp.where(
            steepness > 0, jnp.abs(value) / jnp.where(steepness > 0, steepness, 1), jnp.inf
        )
        closer = distance < kept[0]
        return (
            jnp.where(closer, distance, kept[0]),
            jnp.where(closer, value, kept[1]),
            jnp.where(closer[:, None], g, kept[2]),
        )

    none = jnp.full(len(r), jnp.inf, r.dtype), jnp.zeros(len(r), r.dtype), jnp.zeros_like(r)
    return jax.lax.fori_loop(0, count, compare, none)[1:]


def _onto(norm: str, g: Flat, gain: PerExample, problem: Problem, r: Flat) -> Flat:
    """The smallest step d from r in the box with <g, d> = gain; the one that comes nearest to it, where there is none."""
    low, high = (bound - problem.x - r for bound in problem.bounds)
    return nearest(norm, jnp.where(gain < 0, -1, 1)[:, None] * g, jnp.abs(gain), low, high)


def _past_all(problem: Problem, norm: str, kept: _Kept) -> _Kept:
    """With the shortest of a few steps past all linearised boundaries at once, and with that as far as it has to go."""
    rivals = likeliest(problem, _RIVALS)

    def once(k: Array, carried: tuple[Flat, _Kept]) -> tuple[Flat, _Kept]:
        r, kept = carried
        r = problem.clip_to_box(r + _LITTLE * past(problem, norm, rivals, r)[1])
        return r, kept.after(
            problem, r, success(problem, problem.perturbed_logits(r)), k, jnp.int32(0), len(rivals)
        )

    kept = jax.lax.fori_loop(0, _BEFORE, once, (jnp.zeros_like(problem.x), kept))[1]
    r, asked = nearer(problem, kept.best.r)
    best = kept.best.or_shorter(
        problem, r, kept.best.found & success(problem, problem.perturbed_logits(r)), kept.best.step
    )
    return kept._replace(best=best, queries=kept.queries + asked + 1)


def _start(problem: Problem, best: Best, turn: Array, restart: Array) -> Flat:
    """x first; later a point drawn from the ball of half the shortest length so far."""
    low, high = problem.bounds
    radius = jnp.minimum(best.distance, problem.epsilon) / 2
    radius = jnp.where(jnp.isfinite(radius), radius, high - low) * (restart > 0)
    keys = jax.vmap(jax.random.fold_in, (0, None))(problem.keys, turn)
    unit = jax.vmap(
        lambda key: problem.norm.sample(key, (1, problem.x.shape[1]), 1.0, problem.x.dtype)[0]
    )(keys)
    return problem.clip_to_box(radius[:, None] * unit)


def _inside(problem: Problem, kept: _Kept) -> Search:
    """What was found, brought into the ball: to the boundary where that is enough."""
    best, wide = kept.best, kept.open(problem)
    shorter, asked = nearer(problem, jnp.where(wide[:, None], best.r, 0))
    r = problem.project(jnp.where(wide[:, None], shorter, best.r))
    inside = problem.norm.length(shorter) <= problem.epsilon
    step = jnp.where(best.found & (~wide | inside), best.step, -1)
    return Search(r, step, best.restart, kept.gradients, kept.queries + asked + 1)
