"""Attacks without a radius: the smallest perturbation, found in a ball whose radius is part of the search.

    r_{k+1} = project onto ||r|| <= ε_{k+1} and box   (r_k + α_k g / ||g||_2),     g = dL/dr (x + r_k)
    ε_{k+1} = (1 - γ_k) ε_k  where r_k succeeds,  else larger

The gradient says where to go, success alone how far: direction and length are found apart, and there is no weight between the length and the
loss to search for. What differs is L, the first radius and how it grows. The step is that of the engine; the shortest success is kept, and
`_boundary` brings it back to the boundary. Lengths are in units of the box's width.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffprog import norms, require
from diffprog.adversarial._attack import Attack, Bounds, Column, Problem, Rows, Search, searching
from diffprog.adversarial._boundary import Best, ahead, as_examples, finished, finite, nothing, number, success
from diffprog.adversarial._deep_fool import likeliest
from diffprog.adversarial._criterion import Labels, Logits, cross_entropy
from diffprog.descent import descent

_DUAL = {"linf": norms.l1, "l2": norms.l2, "l1": norms.linf}
_OVERSHOOT = 1e-3


def ddn(
    *,
    steps: int = 100,
    rate: float = 1.0,
    gamma: float = 0.05,
    restarts: int = 1,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """The smallest l2 perturbation, by decoupling its direction and its norm.

    r <- ε (r + α g/||g||) / ||r + α g/||g|| ||, clipped to the box, with g the gradient of the cross-entropy, α falling from `rate` to a
    hundredth of it along a cosine; ε <- (1 - γ) ε after a success, (1 + γ) ε after none, from ε = 1.

    Args:
        steps: gradients, at least 1. Rony et al. use 100 to 1000.
        rate: α_0 > 0, in widths of the box.
        gamma: γ in 0 .. 1, with γ > 0.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.
        examples: like x, of any number: where the search finds nothing, the nearest that f reads otherwise is brought to the boundary
            instead; None for points drawn from the box.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Source: J. Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and defenses", 2019.

    >>> found = ddn()(lambda x: x @ jnp.eye(2), jnp.array([[0.7, 0.4]]), jnp.array([0]), key=jax.random.key(0))
    >>> print(found.distance.round(3), found.success)
    [0.212] [ True]
    """
    rate, gamma = require.number("rate", rate, above=0), require.number("gamma", gamma, above=0, high=1)
    first, last = (number(rate), number(gamma)), (number(rate / 100), number(gamma))

    def radius(problem: Problem, r: Rows, epsilon: Column, gamma: Array, info: Any, best: Best) -> Column:
        _, logits, _ = info
        return epsilon * jnp.where(success(problem, logits), 1 - gamma, 1 + gamma)

    def outwards(problem: Problem, r: Rows, epsilon: Column) -> Rows:
        return r * (epsilon / jnp.maximum(problem.norm.length(r), jnp.finfo(r.dtype).tiny))[:, None]

    loss = lambda problem, logits: cross_entropy(logits, problem.y, problem.targeted)  # noqa: E731
    start = lambda problem: jnp.full(len(problem.x), _width(problem), problem.x.dtype)  # noqa: E731
    return _adapting("ddn", "l2", loss, start, radius, outwards, steps, first, last, restarts, bounds, targeted, examples)


def fmn(
    *,
    norm: str = "linf",
    steps: int = 100,
    rate: float | None = None,
    gamma: float = 0.05,
    restarts: int = 1,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """The smallest perturbation in any norm, in a ball that is fitted to the boundary.

    r <- the nearest point of ball and box to r + α g/||g||_2, with g the gradient of the margin m. Before the first success the linearised
    boundary is the ball's, ε <- 1.001 (||r|| + |m| / ||g||_dual); after it ε <- (1 - γ) min(ε, shortest) at a success and (1 + γ) ε at none.
    α falls along a cosine to a hundredth, γ from `gamma` to a fiftieth of it. The factor 1.001 is ours: without it the points before the
    first success approach the boundary of a locally linear f from within and need not ever cross it.

    Args:
        norm: "linf", "l2" or "l1".
        steps: gradients, at least 1.
        rate: α_0 > 0, in widths of the box; None for 10 in linf and 1 in l2 and l1, as Pintor et al. choose.
        gamma: γ_0 in 0 .. 1, with γ > 0.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.
        examples: like x, of any number: where the search finds nothing, the nearest that f reads otherwise is brought to the boundary
            instead; None for points drawn from the box.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Source: M. Pintor et al., "Fast minimum-norm adversarial attacks through adaptive norm constraints", 2021.

    >>> found = fmn(norm="linf")(lambda x: x @ jnp.eye(2), jnp.array([[0.7, 0.4]]), jnp.array([0]), key=jax.random.key(0))
    >>> print(found.distance.round(3), found.success)
    [0.15] [ True]
    """
    norms.named(norm)
    rate = (10.0 if norm == "linf" else 1.0) if rate is None else require.number("rate", rate, above=0)
    gamma = require.number("gamma", gamma, above=0, high=1)
    first, last = (number(rate), number(gamma)), (number(rate / 100), number(gamma / 50))

    def radius(problem: Problem, r: Rows, epsilon: Column, gamma: Array, info: Any, best: Best) -> Column:
        value, logits, gradient = info
        rest = jnp.abs(value) / jnp.maximum(_DUAL[norm].length(gradient), jnp.finfo(r.dtype).tiny)
        linear = (1 + _OVERSHOOT) * (problem.norm.length(r) + jnp.where(jnp.isfinite(rest), rest, 0))
        after = jnp.where(success(problem, logits), (1 - gamma) * jnp.minimum(epsilon, best.distance), (1 + gamma) * epsilon)
        return jnp.minimum(jnp.where(best.found, after, linear), _farthest(problem))

    start = lambda problem: jnp.full(len(problem.x), jnp.inf, problem.x.dtype)  # noqa: E731
    return _adapting("fmn", norm, ahead, start, radius, lambda _, r, __: r, steps, first, last, restarts, bounds, targeted, examples)


Radius = Callable[[Problem, Rows, Column, Array, Any, Best], Column]


def _adapting(
    name: str,
    norm: str,
    loss: Callable[[Problem, Logits], Column],
    start: Callable[[Problem], Column],
    radius: Radius,
    outwards: Callable[[Problem, Rows, Column], Rows],
    steps: int,
    first: tuple[Any, Any],
    last: tuple[Any, Any],
    restarts: int,
    bounds: Bounds,
    targeted: bool,
    examples: Any,
) -> Attack:
    count, starts = jnp.int32(require.integer("steps", steps, low=1)), as_examples(examples, require.bounds("bounds", bounds))

    def search(problem: Problem) -> Search:
        aims = _aims(problem, _DUAL[norm], restarts)

        def cost(r: Rows, restart: Array) -> tuple[Array, tuple[Column, Logits]]:
            logits = problem.seen(r)
            value = jnp.where(restart == 0, loss(problem, logits), _over(logits, aims[restart], problem.y))
            return -value.sum(), (value, logits)

        def step(restart: Array, k: Array, carried: tuple[Rows, Column, Best]) -> tuple[Rows, Column, Best]:
            r, epsilon, best = carried
            rate, gamma = (cosine(a, b, k, count).astype(r.dtype) for a, b in zip(first, last, strict=True))
            engine = descent(cost, _along(rate * _width(problem)))
            moved, info = engine.step(engine.init(r), restart)
            value, logits = info.aux
            best = best.or_shorter(problem, r, success(problem, logits), k, restart)
            epsilon = radius(problem, r, epsilon, gamma, (value, logits, moved.optimizer), best)
            free = outwards(problem, moved.variable, epsilon)
            return problem.norm.project_in_box(free, problem.x, epsilon, problem.bounds), epsilon, best

        def once(restart: Array, best: Best) -> Best:
            begun = jnp.zeros_like(problem.x), start(problem), nothing(problem)
            r, _, new = jax.lax.fori_loop(0, count, functools.partial(step, restart), begun)
            new = new.or_shorter(problem, r, success(problem, problem.seen(r)), count, restart)
            return best.or_best(new)

        best = jax.lax.fori_loop(0, restarts, once, nothing(problem))
        taken = jnp.full(len(problem.x), count * restarts + (len(aims) if restarts > 1 else 0))
        return finished(problem, best, taken, jnp.full_like(taken, restarts), starts)

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


def _width(problem: Problem) -> float:
    low, high = problem.bounds
    return high - low


def _farthest(problem: Problem) -> Column:
    """The norm of the longest perturbation in the box."""
    low, high = problem.bounds
    return problem.norm.length(jnp.maximum(problem.x - low, high - problem.x))


def _over(logits: Logits, rival: Labels, y: Labels) -> Column:
    """z_rival - z_y."""
    return jnp.sum((jax.nn.one_hot(rival, logits.shape[1]) - jax.nn.one_hot(y, logits.shape[1])).astype(logits.dtype) * logits, axis=1)


def _aims(problem: Problem, dual: norms.Norm, restarts: int) -> Array:
    """(candidates, batch): the classes whose linearised boundaries are nearest, the nearest first."""
    if restarts == 1:
        return problem.y[None]
    logits, pull = jax.vjp(problem.logits, problem.x)
    rivals = likeliest(problem, 10)

    def distance(rival: Array) -> Column:
        difference = (jax.nn.one_hot(rival, logits.shape[1]) - jax.nn.one_hot(problem.y, logits.shape[1])).astype(logits.dtype)
        gap = -jnp.sum(difference * jnp.nan_to_num(logits), axis=1)
        return gap / jnp.maximum(dual.length(finite(pull(difference)[0])), jnp.finfo(logits.dtype).tiny)

    order = jnp.argsort(jax.lax.map(distance, rivals), axis=0)
    near = jnp.take_along_axis(rivals, order, axis=0)
    return jnp.concatenate([near[:1], near])[:restarts]
