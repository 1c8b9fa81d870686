"""Attacks that weigh the length of the perturbation against what it shall do.

    min  length(r) + c loss(f(x + r))   over r with x + r in the box,     for the smallest c whose minimiser succeeds

c is the Lagrange multiplier of the constraint that f(x + r) be wanted, found for each example by itself: from its first-order value, ten
times larger until there is a success, then halving the bracket on the logarithm. What differs is how the weighted sum is minimised:

    box_lbfgs        ||r||² + c (-log p)                 quasi-Newton, projected              Szegedy et al. 2014
    carlini_wagner   ||r||² + c max(-m, 0)               Adam on w, x + r = box(tanh w)       Carlini and Wagner 2017
    elastic_net      ||r||² + β ||r||_1 + c max(-m, 0)   accelerated proximal gradient        Chen et al. 2018

with m the margin of the logits and p the probability of what is wanted. Every second c begins at r = 0, where the loss knows of the
likeliest class alone, the others at the linearised boundary that is nearest. The shortest success of all is kept, and `_boundary` brings it
back to the boundary. Lengths are in units of the box's width.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffprog import require
from diffprog.adversarial import _lbfgs
from diffprog.adversarial._adapting import cosine
from diffprog.adversarial._attack import Attack, Bounds, Column, Problem, Rows, Search, searching
from diffprog.adversarial._boundary import Best, ahead, as_examples, finished, finite, nothing, number, slope, success, width
from diffprog.adversarial._criterion import Logits
from diffprog.adversarial._deep_fool import boundaries, likeliest
from diffprog.descent import descent

Minimise = Callable[[Problem, Column, Rows, Array], tuple[Best, Array]]
"""(problem, c, start, round) -> the shortest success of this round, and the gradients it took."""

_TANH_EDGE = 1e-4
_CLASSES = 10  # whose linearised boundaries are compared, at most
_SHARP = 100.0


def box_lbfgs(
    *,
    searches: int = 10,
    steps: int = 30,
    memory: int = 8,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """A small l2 perturbation, by L-BFGS in the box: the attack that adversarial examples were discovered with.

    min ||r||² + c loss(f(x + r)),   low <= x + r <= high,   loss = -log p of the target, or -log (1 - p) of the label to leave

    of logits in units of a hundredth of the margin at x: the loss of logits in other units is another, and its minimiser lies at a length
    of its own. The square of the length has the same minimisers as the length, each for another c, and a gradient at r = 0.

    Args:
        searches: values of c, at least 1.
        steps: moves of L-BFGS for each, at least 1; a move takes a gradient for each trial of its line search, most often one.
        memory: moves that make the inverse Hessian, at least 1.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.
        examples: like x, of any number: where the search finds nothing, the nearest that f reads otherwise is brought to the boundary
            instead; None for points drawn from the box.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Source: C. Szegedy et al., "Intriguing properties of neural networks", 2013, section 4.1; the method of L-BFGS: see `_lbfgs`.

    >>> found = box_lbfgs()(lambda x: x @ jnp.eye(2), jnp.array([[0.7, 0.4]]), jnp.array([0]), key=jax.random.key(0))
    >>> f"{found.distance[0]:.3f}"
    '0.212'
    """
    count, kept = jnp.int32(require.integer("steps", steps, low=1)), require.integer("memory", memory, low=1)

    def minimise(problem: Problem, c: Column, start: Rows, round: Array) -> tuple[Best, Array]:
        low, high = (bound - problem.x for bound in problem.bounds)
        unit = jnp.maximum(jnp.abs(jnp.nan_to_num(ahead(problem, problem.logits(problem.x)))), 1e-6) / _SHARP

        def cost(r: Rows) -> tuple[Column, Logits]:
            logits = problem.seen(r)
            return jnp.square(r).sum(1) + c * unit * _surprise(problem, logits / unit[:, None]), logits

        def step(k: Array, carried: tuple[_lbfgs.State, Best]) -> tuple[_lbfgs.State, Best]:
            state = _lbfgs.step(cost, low, high, carried[0])
            return state, carried[1].or_shorter(problem, state.point, success(problem, state.aux), k, round)

        state, best = jax.lax.fori_loop(0, count, step, (_lbfgs.init(cost, start, kept), nothing(problem)))
        return best, state.taken

    return _weighing("box_lbfgs", "l2", minimise, number(0.0), searches, bounds, targeted, examples)


def carlini_wagner(
    *,
    searches: int = 9,
    steps: int = 200,
    rate: float = 0.05,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """A small l2 perturbation, by Adam on a variable that the box cannot stop.

    min ||r||² + c max(-m, 0),   x + r = low + (high - low) (tanh w + 1) / 2

    Args:
        searches: values of c, at least 1. Carlini and Wagner take 9.
        steps: of Adam for each, at least 1. Carlini and Wagner take up to 10000.
        rate: Adam's on w, > 0, falling to a hundredth of it along a cosine.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.
        examples: like x, of any number: where the search finds nothing, the nearest that f reads otherwise is brought to the boundary
            instead; None for points drawn from the box.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Source: N. Carlini and D. Wagner, "Towards evaluating the robustness of neural networks", 2017.

    >>> found = carlini_wagner()(lambda x: x @ jnp.eye(2), jnp.array([[0.7, 0.4]]), jnp.array([0]), key=jax.random.key(0))
    >>> f"{found.distance[0]:.3f}"
    '0.212'
    """
    count, first = jnp.int32(require.integer("steps", steps, low=1)), number(require.number("rate", rate, above=0))

    def minimise(problem: Problem, c: Column, start: Rows, round: Array) -> tuple[Best, Array]:
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

        share = 2 * (problem.x + start - low) / (high - low) - 1
        w = jnp.arctanh(jnp.clip(share, -1 + _TANH_EDGE, 1 - _TANH_EDGE))
        _, best = jax.lax.fori_loop(0, count, step, (engine.init(w), nothing(problem)))
        return best, jnp.full(len(c), count)

    return _weighing("carlini_wagner", "l2", minimise, number(0.0), searches, bounds, targeted, examples)


def elastic_net(
    *,
    beta: float = 30.0,
    searches: int = 9,
    steps: int = 200,
    rate: float = 0.05,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """A small and sparse l1 perturbation, by proximal gradient steps on the elastic net.

    r <- shrink(v - α dL/dv (v)),   v <- r + k/(k+3) (r - r_before),   L = ||v||² + c max(-m, 0)

    with shrink the soft threshold at α β and the clip to the box.

    Args:
        beta: β >= 0, in widths of the box. With 0.01, Chen et al.'s, the length is all but the square of l2; what is measured here is l1,
            and 30 leaves of the square what keeps the minimiser unique.
        searches: values of c, at least 1. Chen et al. take 9.
        steps: for each, at least 1. Chen et al. take up to 1000.
        rate: α_0 (1 + β) > 0; α falls to a thousandth, by the same factor in each step.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.
        examples: like x, of any number: where the search finds nothing, the nearest that f reads otherwise is brought to the boundary
            instead; None for points drawn from the box.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Source: P.-Y. Chen et al., "EAD: elastic-net attacks to deep neural networks via adversarial examples", 2018.

    >>> found = elastic_net()(lambda x: x @ jnp.eye(2), jnp.array([[0.7, 0.4]]), jnp.array([0]), key=jax.random.key(0))
    >>> f"{found.distance[0]:.3f}"
    '0.300'
    """
    count, first = jnp.int32(require.integer("steps", steps, low=1)), number(require.number("rate", rate, above=0))
    weight = number(require.number("beta", beta, low=0))

    def minimise(problem: Problem, c: Column, start: Rows, round: Array) -> tuple[Best, Array]:
        sparse = weight.astype(c.dtype) * width(problem)

        def cost(r: Rows, _: Any) -> tuple[Array, Logits]:
            logits = problem.seen(r)
            return (jnp.square(r).sum(1) + c * _short_of(problem, logits)).sum(), logits

        def step(k: Array, carried: tuple[Rows, Rows, Best]) -> tuple[Rows, Rows, Best]:
            r, v, best = carried
            rate = (first * 0.001 ** (k / count)).astype(c.dtype) / (1 + weight.astype(c.dtype))
            shrink = lambda v: problem.into_box(jnp.sign(v) * jnp.maximum(jnp.abs(v) - rate * sparse, 0))  # noqa: E731
            engine = descent(cost, optax.chain(optax.stateless(lambda g, _: finite(g)), optax.scale(-rate)), shrink)
            state, info = engine.step(engine.init(v), k)
            best = best.or_shorter(problem, v, success(problem, info.aux), k, round)
            new = state.variable
            return new, problem.into_box(new + (k / (k + 3)).astype(c.dtype) * (new - r)), best

        _, _, best = jax.lax.fori_loop(0, count, step, (start, start, nothing(problem)))
        return best, jnp.full(len(c), count)

    return _weighing("elastic_net", "l1", minimise, weight, searches, bounds, targeted, examples)


def _weighing(name: str, norm: str, minimise: Minimise, beta: Any, searches: int, bounds: Bounds, targeted: bool, examples: Any) -> Attack:
    rounds, starts = jnp.int32(require.integer("searches", searches, low=1)), as_examples(examples, require.bounds("bounds", bounds))

    def search(problem: Problem) -> Search:
        rivals = likeliest(problem, _CLASSES)
        start = problem.into_box(boundaries(problem, norm, rivals, jnp.zeros_like(problem.x)).step(targeted))

        def once(round: Array, carried: Any) -> Any:
            best, taken, c, low, high = carried
            new, gradients = minimise(problem, c, jnp.where(round % 2 == 0, start, 0), round)
            low, high = jnp.where(new.found, low, jnp.maximum(low, c)), jnp.where(new.found, jnp.minimum(high, c), high)
            between = jnp.where(low > 0, jnp.sqrt(low) * jnp.sqrt(high), high / 10)
            return best.or_best(new), taken + gradients, jnp.where(jnp.isfinite(high), between, 10 * low), low, high

        c = 2 * _first_multiplier(problem, start, beta)
        begun = nothing(problem), jnp.full(len(c), len(rivals) + 1), c, jnp.zeros_like(c), jnp.full_like(c, jnp.inf)
        best, taken, *_ = jax.lax.fori_loop(0, rounds, once, begun)
        return finished(problem, best, taken, jnp.zeros(len(c), int), starts)

    return searching(name, search, norm=norm, bounds=bounds, targeted=targeted)


def _first_multiplier(problem: Problem, r: Rows, beta: Array) -> Column:
    """The c at which the gradients of length and loss are opposite at r, were f linear."""
    _, g, _ = slope(problem, r)
    steep = jnp.maximum(jnp.sqrt(jnp.square(g).sum(1)), 1e-6)
    c = 2 * jnp.abs((g * r).sum(1)) / steep**2 + beta.astype(g.dtype) * width(problem) / jnp.maximum(jnp.abs(g).max(1), 1e-6)
    return jnp.clip(c, 1e-6, 1e6)


def _short_of(problem: Problem, logits: Logits) -> Column:
    return jnp.maximum(-ahead(problem, logits), 0)


def _surprise(problem: Problem, logits: Logits) -> Column:
    """-log of the probability of what is wanted."""
    own = jax.nn.one_hot(problem.y, logits.shape[1], dtype=bool)
    wanted = jnp.where(own if problem.targeted else ~own, logits, -jnp.inf)
    return jax.nn.logsumexp(logits, axis=1) - jax.nn.logsumexp(wanted, axis=1)
