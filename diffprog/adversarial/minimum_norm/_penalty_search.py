"""The search for the weight of a loss against a length, and for the class to go to.

c is the Lagrange multiplier of the constraint that f(x + r) be wanted, found for each example by itself: from a multiple of its first-order
value, ten times larger until there is a success, then half of it, then halving the bracket on the logarithm. But the margin leads to the
class that is likeliest at x, and the nearest may be another; and in l1 a class can be reached over these numbers or those. So the rounds,
each a minimisation for one c, go

    first       to one class after another, those with the nearest linearised boundaries first, from that boundary
    once more   to each of them, from r = 0, each with the c that it is at
    then        to any class, with the c of the class of the shortest success: from that boundary and r = 0 in turn, and in l1 from a
                random half of the numbers of the shortest success

of searches // 2 classes, five at most. The shortest success of all is kept, and `_boundary` brings it back to the boundary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from diffprog import _validation
from diffprog.adversarial._base import (
    Attack,
    Bounds,
    Flat,
    PerExample,
    Problem,
    Search,
    make_attack,
)
from diffprog.adversarial._losses import Labels, Logits, logit_difference
from diffprog.adversarial.minimum_norm._adapting import half
from diffprog.adversarial.minimum_norm._binary_search import (
    Best,
    ahead,
    as_examples,
    finished,
    finite,
    nothing,
    width,
)
from diffprog.adversarial.minimum_norm._deepfool import boundaries, likeliest, past

Minimise = Callable[[Problem, PerExample, Labels, Flat, Array], tuple[Best, Array]]
"""(problem, c, aim, start, round) -> the shortest success of this round, and the gradients it took."""

ANY = -1  # the aim at no class alone
_CLASSES, _AIMS = (
    10,
    5,
)  # whose linearised boundaries are compared, and that are searched for, at most
_BEYOND = (
    1 + 1e-3
)  # how far to go towards a linearised boundary: were f linear, rounding shall not leave it uncrossed


class _Multiplier(NamedTuple):
    """c and its bracket."""

    c: Float[Array, "*aims batch"]
    low: Float[Array, "*aims batch"]
    high: Float[Array, "*aims batch"]

    def after(self, found: Bool[Array, "batch"]) -> "_Multiplier":
        """The next one, after a success or none."""
        low = jnp.where(found, self.low, jnp.maximum(self.low, self.c))
        high = jnp.where(found, jnp.minimum(self.high, self.c), self.high)
        between = jnp.where(low > 0, jnp.sqrt(low) * jnp.sqrt(high), high / 2)
        return _Multiplier(jnp.where(jnp.isfinite(high), between, 10 * low), low, high)


def weighing(
    name: str,
    norm: str,
    minimise: Minimise,
    beta: Any,
    first: Any,
    searches: int,
    bounds: Bounds,
    targeted: bool,
    examples: Any,
) -> Attack:
    """The attack that minimises for c after c; the first is `first` times its first-order value, where β weighs the l1 norm."""
    rounds, starts = (
        jnp.int32(_validation.integer("searches", searches, low=1)),
        as_examples(examples, _validation.bounds("bounds", bounds)),
    )

    def search(problem: Problem) -> Search:
        aims, edges, cost = _aims(problem, norm)
        turns, each = jnp.clip(rounds // 2, 1, len(aims)), jnp.arange(len(problem.x))

        def once(
            round: Array, carried: tuple[Best, Array, Labels, _Multiplier]
        ) -> tuple[Best, Array, Labels, _Multiplier]:
            best, taken, nearest, multipliers = carried
            early, keys = (
                round < 2 * turns,
                jax.vmap(jax.random.fold_in, (0, None))(problem.keys, round),
            )
            turn = jnp.where(early, round % turns, nearest)
            edge = jnp.where((round // turns) % 2 == 0, edges[turn, each], 0)
            start = jnp.where(early, edge, half(best.r, keys)) if norm == "l1" else edge
            known = jax.tree.map(lambda rows: rows[turn, each], multipliers)
            new, gradients = minimise(
                problem, known.c, jnp.where(early, aims[turn, each], ANY), start, round
            )
            multipliers = jax.tree.map(
                lambda rows, row: rows.at[turn, each].set(row), multipliers, known.after(new.found)
            )
            return (
                best.or_best(new),
                taken + gradients,
                jnp.where(new.distance < best.distance, turn, nearest),
                multipliers,
            )

        c = first.astype(problem.x.dtype) * jax.lax.map(
            lambda aimed: _first_multiplier(problem, aimed[0], aimed[1], beta), (aims, edges)
        )
        begun = (
            nothing(problem),
            jnp.full(len(each), cost),
            jnp.zeros_like(aims[0]),
            _Multiplier(c, 0 * c, jnp.full_like(c, jnp.inf)),
        )
        best, taken, *_ = jax.lax.fori_loop(0, rounds, once, begun)
        return finished(problem, best, taken, jnp.zeros(len(each), int), starts)

    return make_attack(name, search, norm=norm, bounds=bounds, targeted=targeted)


def _aims(
    problem: Problem, norm: str
) -> tuple[Integer[Array, "aims batch"], Float[Array, "aims batch n"], int]:
    """The classes with the nearest linearised boundaries, the nearest first, the steps there, and how many gradients this and their c take.

    Of a targeted attack the target alone, which must rise above all.
    """
    rivals, still = likeliest(problem, _CLASSES), jnp.zeros_like(problem.x)
    if problem.targeted:
        return (
            jnp.full_like(rivals[:1], ANY),
            problem.clip_to_box(_BEYOND * past(problem, norm, rivals, still)[1])[None],
            len(rivals) + 1,
        )
    flat = boundaries(problem, norm, rivals, still)
    order = jnp.argsort(flat.lengths, axis=0)[:_AIMS]
    edges = _BEYOND * jnp.take_along_axis(flat.steps, order[..., None], axis=0)
    return (
        jnp.take_along_axis(rivals, order, axis=0),
        jax.lax.map(problem.clip_to_box, edges),
        len(rivals) + len(order),
    )


def _first_multiplier(problem: Problem, aim: Labels, r: Flat, beta: Array) -> PerExample:
    """The c at which the gradients of length and loss are opposite at r, were f linear."""
    g = finite(jax.grad(lambda r: towards(problem, aim, problem.perturbed_logits(r)).sum())(r))
    steep = jnp.maximum(jnp.sqrt(jnp.square(g).sum(1)), 1e-6)
    c = 2 * jnp.abs((g * r).sum(1)) / steep**2 + beta.astype(g.dtype) * width(
        problem
    ) / jnp.maximum(jnp.abs(g).max(1), 1e-6)
    return jnp.clip(c, 1e-6, 1e6)


def towards(problem: Problem, aim: Labels, logits: Logits) -> PerExample:
    """How far the class aimed at is ahead of y; the margin, where that is any."""
    return jnp.where(aim == ANY, ahead(problem, logits), logit_difference(logits, problem.y, aim))
