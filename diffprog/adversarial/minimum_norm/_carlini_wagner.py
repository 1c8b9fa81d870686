"""Attacks that weigh the length of the perturbation against what it shall do.

    min  length(r) + c loss(f(x + r))   over r with x + r in the box,     for the smallest c whose minimiser succeeds

`_weighing` searches for c, and for the class to go to. What differs is how the weighted sum is minimised:

    box_lbfgs        ||r||² + c (-log p)                 quasi-Newton, projected              Szegedy et al. 2014
    carlini_wagner   ||r||² + c max(-m, 0)               Adam on w, x + r = box(tanh w)       Carlini and Wagner 2017
    elastic_net      ||r||² + β ||r||_1 + c max(-m, 0)   accelerated proximal gradient        Chen et al. 2018

with m the margin of the logits, or the lead of one class, and p the probability of what is wanted. Lengths are in units of the box's width.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffprog import _validation
from diffprog.adversarial._base import Attack, Bounds, Flat, PerExample, Problem
from diffprog.adversarial._losses import Labels, Logits
from diffprog.adversarial.minimum_norm import _lbfgs
from diffprog.adversarial.minimum_norm._adapting import cosine
from diffprog.adversarial.minimum_norm._binary_search import (
    Best,
    ahead,
    finite,
    nothing,
    number,
    success,
    width,
)
from diffprog.adversarial.minimum_norm._penalty_search import ANY, towards, weighing
from diffprog.descent import descent

_TANH_EDGE = 1e-4
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

    min ||r||² + c loss(f(x + r)),   low <= x + r <= high,   loss = -log p of the class aimed at, or -log (1 - p) of the label to leave

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
    count, kept = (
        jnp.int32(_validation.integer("steps", steps, low=1)),
        _validation.integer("memory", memory, low=1),
    )

    def minimise(
        problem: Problem, c: PerExample, aim: Labels, start: Flat, round: Array
    ) -> tuple[Best, Array]:
        low, high = (bound - problem.x for bound in problem.bounds)
        unit = jnp.maximum(jnp.abs(jnp.nan_to_num(ahead(problem, problem.clean_logits))), 1e-6) / _SHARP

        def cost(r: Flat) -> tuple[PerExample, Logits]:
            logits = problem.perturbed_logits(r)
            return jnp.square(r).sum(1) + c * unit * _surprise(
                problem, aim, logits / unit[:, None]
            ), logits

        def step(k: Array, carried: tuple[_lbfgs.State, Best]) -> tuple[_lbfgs.State, Best]:
            state = _lbfgs.step(cost, low, high, carried[0])
            return state, carried[1].or_shorter(
                problem, state.point, success(problem, state.aux), k, round
            )

        state, best = jax.lax.fori_loop(
            0, count, step, (_lbfgs.init(cost, start, kept), nothing(problem))
        )
        return best, state.taken

    return weighing(
        "box_lbfgs", "l2", minimise, number(0.0), number(2.0), searches, bounds, targeted, examples
    )


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
    count, first = (
        jnp.int32(_validation.integer("steps", steps, low=1)),
        number(_validation.number("rate", rate, above=0)),
    )

    def minimise(
        problem: Problem, c: PerExample, aim: Labels, start: Flat, round: Array
    ) -> tuple[Best, Array]:
        low, high = problem.bounds
        inside = lambda w: (
            jnp.clip(low + (high - low) * (jnp.tanh(w) + 1) / 2, low, high) - problem.x
        )

        def cost(w: Flat, _: Any) -> tuple[Array, tuple[Flat, Logits]]:
            r = inside(w)
            logits = problem.perturbed_logits(r)
            return (jnp.square(r).sum(1) + c * _short_of(problem, aim, logits)).sum(), (r, logits)

        falling = optax.scale_by_schedule(
            lambda k: -cosine(first, first / 100, k, count).astype(c.dtype)
        )
        engine = descent(
            cost,
            optax.chain(optax.stateless(lambda g, _: finite(g)), optax.scale_by_adam(), falling),
        )

        def step(k: Array, carried: tuple[Any, Best]) -> tuple[Any, Best]:
            state, info = engine.step(carried[0], k)
            r, logits = info.aux
            return state, carried[1].or_shorter(problem, r, success(problem, logits), k, round)

        share = 2 * (problem.x + start - low) / (high - low) - 1
        w = jnp.arctanh(jnp.clip(share, -1 + _TANH_EDGE, 1 - _TANH_EDGE))
        _, best = jax.lax.fori_loop(0, count, step, (engine.init(w), nothing(problem)))
        return best, jnp.full(len(c), count)

    return weighing(
        "carlini_wagner",
        "l2",
        minimise,
        number(0.0),
        number(2.0),
        searches,
        bounds,
        targeted,
        examples,
    )


def elastic_net(
    *,
    beta: float = 30.0,
    searches: int = 20,
    steps: int = 100,
    rate: float = 0.3,
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
        searches: values of c, at least 1. Chen et al. take 9; here they are divided among the classes.
        steps: for each, at least 1. Chen et al. take up to 1000; more ways tried in fewer steps find shorter ones.
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
    count, first = (
        jnp.int32(_validation.integer("steps", steps, low=1)),
        number(_validation.number("rate", rate, above=0)),
    )
    weight = number(_validation.number("beta", beta, low=0))

    def minimise(
        problem: Problem, c: PerExample, aim: Labels, start: Flat, round: Array
    ) -> tuple[Best, Array]:
        sparse = weight.astype(c.dtype) * width(problem)

        def cost(r: Flat, _: Any) -> tuple[Array, Logits]:
            logits = problem.perturbed_logits(r)
            return (jnp.square(r).sum(1) + c * _short_of(problem, aim, logits)).sum(), logits

        def step(k: Array, carried: tuple[Flat, Flat, Best]) -> tuple[Flat, Flat, Best]:
            r, v, best = carried
            rate = (first * 0.001 ** (k / count)).astype(c.dtype) / (1 + weight.astype(c.dtype))
            shrink = lambda v: problem.clip_to_box(
                jnp.sign(v) * jnp.maximum(jnp.abs(v) - rate * sparse, 0)
            )
            engine = descent(
                cost,
                optax.chain(optax.stateless(lambda g, _: finite(g)), optax.scale(-rate)),
                shrink,
            )
            state, info = engine.step(engine.init(v), k)
            best = best.or_shorter(problem, v, success(problem, info.aux), k, round)
            new = state.variable
            return new, problem.clip_to_box(new + (k / (k + 3)).astype(c.dtype) * (new - r)), best

        _, _, best = jax.lax.fori_loop(0, count, step, (start, start, nothing(problem)))
        return best, jnp.full(len(c), count)

    return weighing(
        "elastic_net", "l1", minimise, weight, number(4.0), searches, bounds, targeted, examples
    )


def _short_of(problem: Problem, aim: Labels, logits: Logits) -> PerExample:
    return jnp.maximum(-towards(problem, aim, logits), 0)


def _surprise(problem: Problem, aim: Labels, logits: Logits) -> PerExample:
    """-log of the probability of what is wanted."""
    one = lambda labels: jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    any = one(problem.y) if problem.targeted else ~one(problem.y)
    wanted = jnp.where((aim == ANY)[:, None], any, one(aim))
    return jax.nn.logsumexp(logits, axis=1) - jax.nn.logsumexp(
        jnp.where(wanted, logits, -jnp.inf), axis=1
    )
