"""Attacks that weigh the length of the perturbation against what it shall do.

    min  length(r) + c loss(f(x + r))   over r with x + r in the box,     for the smallest c whose minimiser succeeds

c is the Lagrange multiplier of the constraint that f(x + r) be wanted, found for each example by itself: from its first-order value at
r = 0, ten times larger until there is a success, then halving the bracket on the logarithm. What differs is how the weighted sum is minimised:

    box_lbfgs        ||r||² + c (-log p)             quasi-Newton, projected                   Szegedy et al. 2014
    carlini_wagner   ||r||² + c max(-m, 0)           Adam on w, x + r = box(tanh w)            Carlini and Wagner 2017
    elastic_net      ||r||² + β ||r||_1 + c max(-m, 0)   accelerated proximal gradient         Chen et al. 2018

with m the margin of the logits. The shortest success of all rounds is kept, and `_boundary` brings it back to the boundary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffprog import require
from diffprog.adversarial import _lbfgs
from diffprog.adversarial._attack import Attack, Bounds, Column, Problem, Rows, Search, searching
from diffprog.adversarial._boundary import Best, ahead, as_examples, finished, finite, nothing, number, slope, success
from diffprog.adversarial._criterion import Logits, cross_entropy
from diffprog.adversarial._minimum import cosine
from diffprog.descent import descent

Minimise = Callable[[Problem, Column, Best, Array], tuple[Best, Array]]
"""(problem, c, best, round) -> the shortest success of this round, and the gradients it took."""

_TANH_EDGE = 1e-4
SHARP = 20.0


def box_lbfgs(
    *,
    searches: int = 10,
    steps: int = 30,
    memory: int = 8,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """todo."""
    count, kept = jnp.int32(require.integer("steps", steps, low=1)), require.integer("memory", memory, low=1)

    def minimise(problem: Problem, c: Column, round: Array) -> tuple[Best, Array]:
        low, high = (bound - problem.x for bound in problem.bounds)

        m0 = jnp.maximum(jnp.abs(jnp.nan_to_num(ahead(problem, problem.logits(problem.x)))), 1e-6)
        def cost(r: Rows) -> tuple[Column, Logits]:
            logits = problem.seen(r)
            return jnp.square(r).sum(1) + c * _surprise(problem, SHARP / m0[:, None] * logits) * m0 / SHARP, logits

        def step(k: Array, carried: tuple[_lbfgs.State, Best]) -> tuple[_lbfgs.State, Best]:
            state = _lbfgs.step(cost, low, high, carried[0])
            return state, carried[1].or_shorter(problem, state.point, success(problem, state.aux), k, round)

        state, best = jax.lax.fori_loop(0, count, step, (_lbfgs.init(cost, jnp.zeros_like(problem.x), kept), nothing(problem)))
        return best, state.taken

    return _weighing("box_lbfgs", "l2", minimise, jnp.float32(0), searches, bounds, targeted, examples)


def carlini_wagner(
    *,
    searches: int = 9,
    steps: int = 200,
    rate: float = 0.05,
    confidence: float = 0.0,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """todo."""
    count, first = jnp.int32(require.integer("steps", steps, low=1)), number(require.number("rate", rate, above=0))

    def minimise(problem: Problem, c: Column, round: Array) -> tuple[Best, Array]:
        low, high = problem.bounds
        inside = lambda w: jnp.clip(low + (high - low) * (jnp.tanh(w) + 1) / 2, low, high) - problem.x  # noqa: E731

        def cost(w: Rows, _: Any) -> tuple[Array, tuple[Rows, Logits]]:
            r = inside(w)
            logits = problem.seen(r)
            return (jnp.square(r).sum(1) + c * _short_of(problem, logits)).sum(), (r, logits)

        falling = optax.scale_by_schedule(lambda k: -cosine(first, first / 100, k, count).astype(c.dtype))
        engine = descent(cost, optax.chain(optax.stateless(lambda g, _: finite(g)), optax.scale_by_adam(), falling))

        def step(k: Array, carried: tuple[Any, Best]) -> tuple[Any, Best]:
            state, info = engine.step(carried[0], k)
            r, logits = info.aux
            return state, carried[1].or_shorter(problem, r, success(problem, logits), k, round)

        share = 2 * (problem.x - low) / (high - low) - 1
        start = jnp.arctanh(jnp.clip(share, -1 + _TANH_EDGE, 1 - _TANH_EDGE))
        _, best = jax.lax.fori_loop(0, count, step, (engine.init(start), nothing(problem)))
        return best, jnp.full(len(c), count)

    return _weighing("carlini_wagner", "l2", minimise, jnp.float32(0), searches, bounds, targeted, examples)


def elastic_net(
    *,
    beta: float = 1.0,
    searches: int = 9,
    steps: int = 200,
    rate: float = 0.05,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """todo."""
    count, first = jnp.int32(require.integer("steps", steps, low=1)), number(require.number("rate", rate, above=0))
    weight = number(require.number("beta", beta, low=0))

    def minimise(problem: Problem, c: Column, round: Array) -> tuple[Best, Array]:
        sparse = weight.astype(c.dtype) * (problem.bounds[1] - problem.bounds[0])

        def cost(r: Rows, _: Any) -> tuple[Array, Logits]:
            logits = problem.seen(r)
            return (jnp.square(r).sum(1) + c * _short_of(problem, logits)).sum(), logits

        def step(k: Array, carried: tuple[Rows, Rows, Best]) -> tuple[Rows, Rows, Best]:
            r, ahead_of_r, best = carried
            rate = (first * jnp.sqrt(1 - k / count)).astype(c.dtype) / (1 + weight.astype(c.dtype))
            shrink = lambda v: problem.into_box(jnp.sign(v) * jnp.maximum(jnp.abs(v) - rate * sparse, 0))  # noqa: E731
            engine = descent(cost, optax.chain(optax.stateless(lambda g, _: finite(g)), optax.scale(-rate)), shrink)
            state, info = engine.step(engine.init(ahead_of_r), k)
            best = best.or_shorter(problem, ahead_of_r, success(problem, info.aux), k, round)
            new = state.variable
            return new, problem.into_box(new + (k / (k + 3)).astype(c.dtype) * (new - r)), best

        zero = jnp.zeros_like(problem.x)
        _, _, best = jax.lax.fori_loop(0, count, step, (zero, zero, nothing(problem)))
        return best, jnp.full(len(c), count)

    return _weighing("elastic_net", "l1", minimise, weight, searches, bounds, targeted, examples)


def _weighing(
    name: str, norm: str, minimise: Any, beta: Any, searches: int, bounds: Bounds, targeted: bool, examples: Any
) -> Attack:
    rounds, starts = jnp.int32(require.integer("searches", searches, low=1)), as_examples(examples, require.bounds("bounds", bounds))

    def search(problem: Problem) -> Search:
        def once(round: Array, carried: Any) -> Any:
            best, taken, c, low, high = carried
            new, gradients = minimise(problem, c, round)
            low, high = jnp.where(new.found, low, jnp.maximum(low, c)), jnp.where(new.found, jnp.minimum(high, c), high)
            between = jnp.where(low > 0, jnp.sqrt(low) * jnp.sqrt(high), high / 10)
            best = best.or_best(new)
            return best, taken + gradients, jnp.where(jnp.isfinite(high), between, 10 * low), low, high

        c = 2 * _first_multiplier(problem, beta)
        begun = nothing(problem), jnp.ones(len(c), int), c, jnp.zeros_like(c), jnp.full_like(c, jnp.inf)
        best, taken, *_ = jax.lax.fori_loop(0, rounds, once, begun)
        return finished(problem, best, taken, jnp.zeros(len(c), int), starts)

    return searching(name, search, norm=norm, bounds=bounds, targeted=targeted)


def _first_multiplier(problem: Problem, beta: Array) -> Column:
    value, g, _ = slope(problem, jnp.zeros_like(problem.x))
    width = problem.bounds[1] - problem.bounds[0]
    steep = jnp.maximum(jnp.sqrt(jnp.square(g).sum(1)), 1e-6)
    c = 2 * jnp.abs(jnp.nan_to_num(value)) / steep**2 + beta.astype(g.dtype) * width / jnp.maximum(jnp.abs(g).max(1), 1e-6)
    return jnp.clip(c, 1e-6, 1e6)


def _short_of(problem: Problem, logits: Logits) -> Column:
    return jnp.maximum(-ahead(problem, logits), 0)


def _surprise(problem: Problem, logits: Logits) -> Column:
    """-log of the probability of what is wanted."""
    if problem.targeted:
        return -cross_entropy(logits, problem.y, True)
    others = jnp.where(jax.nn.one_hot(problem.y, logits.shape[1], dtype=bool), -jnp.inf, logits)
    return jax.nn.logsumexp(logits, axis=1) - jax.nn.logsumexp(others, axis=1)
