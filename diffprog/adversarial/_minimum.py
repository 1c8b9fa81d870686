"""Attacks without a radius: the smallest perturbation, found in a ball whose radius is part of the search.

    r_{k+1} = project onto ||r|| <= ε_{k+1} and box   (r_k + α_k g / ||g||_2),     g = dL/dr (x + r_k)
    ε_{k+1} = (1 - γ_k) ε_k  where r_k succeeds,  else larger

The gradient says where to go, success alone how far: direction and length are found apart, and there is no weight between the length and
the loss to search for. What differs is L, the first radius and how it grows. The step is that of the engine; the shortest success is kept,
and `_boundary` brings it back to the boundary. Lengths are in units of the box's width.

The first run is the papers'. The gradient of its L leads to the class that is likeliest at x, and the nearest one may be another: the next
runs ascend z_j - z_y for one class j each, those with the nearest linearised boundaries first. When there are no more classes, and for a
target, a run goes on from the best so far up the margin, with steps a tenth as long each time: where several boundaries meet, the gradient
jumps from one to the other, and a step no smaller than the distance to be gained ends beside their corner.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffprog import norms, require
from diffprog.adversarial._attack import Attack, Bounds, Column, Problem, Rows, Search, searching
from diffprog.adversarial._boundary import Best, ahead, as_examples, finished, finite, nothing, number, success, width
from diffprog.adversarial._criterion import Labels, Logits, cross_entropy
from diffprog.adversarial._deep_fool import nearest_first
from diffprog.descent import descent

_DUAL = {"linf": norms.l1, "l2": norms.l2, "l1": norms.linf}
_OVERSHOOT = 1e-3
_CLASSES = 10  # that are compared for the nearest, at most


class Seen(NamedTuple):
    """What a step saw at r: the loss of each example, the logits, and the gradient."""

    loss: Column
    logits: Logits
    gradient: Rows


class Rule(NamedTuple):
    """What makes one attack of this kind.

    Attributes:
        loss: (problem, logits) -> what the first run ascends.
        start: problem -> the first radius.
        radius: (problem, r, ε, γ, seen, best) -> the next radius.
        outwards: (problem, r, ε) -> r, before it is projected.
        rates: α and γ at the first step.
        last: α and γ at the last.
    """

    loss: Callable[[Problem, Logits], Column]
    start: Callable[[Problem], Column]
    radius: Callable[[Problem, Rows, Column, Array, Seen, Best], Column]
    outwards: Callable[[Problem, Rows, Column], Rows]
    rates: tuple[Any, Any]
    last: tuple[Any, Any]


def ddn(
    *,
    steps: int = 100,
    rate: float = 1.0,
    gamma: float = 0.05,
    restarts: int = 3,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """The smallest l2 perturbation, by decoupling its direction and its norm.

    r <- ε (r + α g/||g||) / ||r + α g/||g|| ||, clipped to the box, with g the gradient of the cross-entropy, α falling from `rate` to a
    hundredth of it along a cosine; ε <- (1 - γ) ε after a success, (1 + γ) ε after none, from ε = 1.

    Args:
        steps: gradients of a run, at least 1. Rony et al. use 100 to 1000.
        rate: α_0 > 0, in widths of the box.
        gamma: γ in 0 .. 1, with γ > 0.
        restarts: runs, at least 1. Of one, the paper's, the distances are larger by 5 % and more for a tenth of the examples.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.
        examples: like x, of any number: where the search finds nothing, the nearest that f reads otherwise is brought to the boundary
            instead; None for points drawn from the box.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Source: J. Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and defenses", 2019.

    >>> found = ddn()(lambda x: x @ jnp.eye(2), jnp.array([[0.7, 0.4]]), jnp.array([0]), key=jax.random.key(0))
    >>> f"{found.distance[0]:.3f}"
    '0.212'
    """
    rate, gamma = require.number("rate", rate, above=0), require.number("gamma", gamma, above=0, high=1)

    def radius(problem: Problem, r: Rows, epsilon: Column, gamma: Array, seen: Seen, best: Best) -> Column:
        return epsilon * jnp.where(success(problem, seen.logits), 1 - gamma, 1 + gamma)

    def outwards(problem: Problem, r: Rows, epsilon: Column) -> Rows:
        return r * (epsilon / jnp.maximum(problem.norm.length(r), jnp.finfo(r.dtype).tiny))[:, None]

    rule = Rule(
        loss=lambda problem, logits: cross_entropy(logits, problem.y, problem.targeted),
        start=lambda problem: jnp.full(len(problem.x), width(problem), problem.x.dtype),
        radius=radius,
        outwards=outwards,
        rates=(number(rate), number(gamma)),
        last=(number(rate / 100), number(gamma)),
    )
    return _adapting("ddn", "l2", rule, steps, restarts, bounds, targeted, examples)


def fmn(
    *,
    norm: str = "linf",
    steps: int = 100,
    rate: float | None = None,
    gamma: float = 0.05,
    restarts: int = 3,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """The smallest perturbation in any norm, in a ball that is fitted to the boundary.

    r <- the nearest point of ball and box to r + α g/||g||_2, with g the gradient of the margin m. Before the first success the ball
    reaches to the linearised boundary, ε <- 1.001 (||r|| + |m| / ||g||_dual); then ε <- (1 - γ) min(ε, shortest) at a success and
    (1 + γ) ε at none. α falls along a cosine to a hundredth, γ from `gamma` to a fiftieth of it. The factor 1.001 is ours: without it the
    points before the first success approach the boundary of a locally linear f from within and need not ever cross it.

    Args:
        norm: "linf", "l2" or "l1".
        steps: gradients of a run, at least 1.
        rate: α_0 > 0, in widths of the box; None for 10 in linf and 1 in l2 and l1, as Pintor et al. choose.
        gamma: γ_0 in 0 .. 1, with γ > 0.
        restarts: runs, at least 1. Of one, the paper's, the distances are larger by 10 % and more for a tenth of the examples.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.
        examples: like x, of any number: where the search finds nothing, the nearest that f reads otherwise is brought to the boundary
            instead; None for points drawn from the box.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Source: M. Pintor et al., "Fast minimum-norm adversarial attacks through adaptive norm constraints", 2021.

    >>> found = fmn(norm="linf")(lambda x: x @ jnp.eye(2), jnp.array([[0.7, 0.4]]), jnp.array([0]), key=jax.random.key(0))
    >>> f"{found.distance[0]:.3f}"
    '0.150'
    """
    norms.named(norm)
    rate = (10.0 if norm == "linf" else 1.0) if rate is None else require.number("rate", rate, above=0)
    gamma = require.number("gamma", gamma, above=0, high=1)

    def radius(problem: Problem, r: Rows, epsilon: Column, gamma: Array, seen: Seen, best: Best) -> Column:
        rest = jnp.abs(seen.loss) / jnp.maximum(_DUAL[norm].length(seen.gradient), jnp.finfo(r.dtype).tiny)
        linear = (1 + _OVERSHOOT) * (problem.norm.length(r) + jnp.where(jnp.isfinite(rest), rest, 0))
        after = jnp.where(success(problem, seen.logits), (1 - gamma) * jnp.minimum(epsilon, best.distance), (1 + gamma) * epsilon)
        return jnp.minimum(jnp.where(best.found, after, linear), _farthest(problem))

    rule = Rule(
        loss=ahead,
        start=lambda problem: jnp.full(len(problem.x), jnp.inf, problem.x.dtype),
        radius=radius,
        outwards=lambda problem, r, epsilon: r,
        rates=(number(rate), number(gamma)),
        last=(number(rate / 100), number(gamma / 50)),
    )
    return _adapting("fmn", norm, rule, steps, restarts, bounds, targeted, examples)


def _adapting(name: str, norm: str, rule: Rule, steps: int, restarts: int, bounds: Bounds, targeted: bool, examples: Any) -> Attack:
    count, runs = jnp.int32(require.integer("steps", steps, low=1)), require.integer("restarts", restarts, low=1)
    starts = as_examples(examples, require.bounds("bounds", bounds))

    def search(problem: Problem) -> Search:
        rivals = nearest_first(problem, norm, _CLASSES) if runs > 1 and not targeted else problem.y[None][:0]
        aims = rivals[: runs - 1] if len(rivals) > 1 else rivals[:0]

        def loss(logits: Logits, run: Array) -> Column:
            if runs == 1:
                return rule.loss(problem, logits)
            later = _lead(logits, aims[run - 1], problem.y) if len(aims) else ahead(problem, logits)
            later = jnp.where(run <= len(aims), later, ahead(problem, logits))
            return jnp.where(run == 0, rule.loss(problem, logits), later)

        def cost(r: Rows, run: Array) -> tuple[Array, tuple[Column, Logits]]:
            logits = problem.seen(r)
            value = loss(logits, run)
            return -value.sum(), (value, logits)

        def step(run: Array, k: Array, carried: tuple[Rows, Column, Best]) -> tuple[Rows, Column, Best]:
            r, epsilon, best = carried
            rate, gamma = (cosine(a, b, k, count).astype(r.dtype) for a, b in zip(rule.rates, rule.last, strict=True))
            shorter = 0.1 ** jnp.maximum(run - len(aims), 0).astype(r.dtype)
            engine = descent(cost, _along(rate * shorter * width(problem)))
            moved, info = engine.step(engine.init(r), run)
            value, logits = info.aux
            seen = Seen(value, logits, moved.optimizer)
            best = best.or_shorter(problem, r, success(problem, seen.logits), k, run)
            epsilon = rule.radius(problem, r, epsilon, gamma, seen, best)
            free = rule.outwards(problem, moved.variable, epsilon)
            return problem.norm.project_in_box(free, problem.x, epsilon, problem.bounds), epsilon, best

        def once(run: Array, best: Best) -> Best:
            fresh = run <= len(aims)
            radius = jnp.where(fresh | ~best.found, rule.start(problem), best.distance)
            seen = jax.tree.map(functools.partial(jnp.where, fresh), nothing(problem), best)
            r, _, new = jax.lax.fori_loop(0, count, functools.partial(step, run), (seen.r, radius, seen))
            return best.or_best(new.or_shorter(problem, r, success(problem, problem.seen(r)), count, run))

        best = jax.lax.fori_loop(0, runs, once, nothing(problem))
        taken = jnp.full(len(problem.x), count * runs + (len(rivals) if len(aims) else 0))
        return finished(problem, best, taken, jnp.full_like(taken, runs), starts)

    return searching(name, search, norm=norm, bounds=bounds, targeted=targeted)


def _along(rate: Array) -> optax.GradientTransformation:
    """A step of l2 length `rate` down the gradient; its state is the gradient, without what of it is not finite."""

    def update(gradient: Rows, _: Rows, __: Any = None) -> tuple[Rows, Rows]:
        gradient = finite(gradient)
        return -rate * norms.l2.ascent(gradient), gradient

    return optax.GradientTransformation(jnp.zeros_like, update)


def cosine(first: Any, last: Any, k: Array, count: Array) -> Array:
    """From `first` at k = 0 to `last` at k = count, along half a cosine."""
    return last + (first - last) * (1 + jnp.cos(jnp.pi * k / count)) / 2


def _farthest(problem: Problem) -> Column:
    """The norm of the longest perturbation in the box."""
    low, high = problem.bounds
    return problem.norm.length(jnp.maximum(problem.x - low, high - problem.x))


def _lead(logits: Logits, rival: Labels, y: Labels) -> Column:
    """z_rival - z_y."""
    one = functools.partial(jax.nn.one_hot, num_classes=logits.shape[1], dtype=logits.dtype)
    return jnp.sum((one(rival) - one(y)) * logits, axis=1)
