"""Attacks without a radius: the smallest perturbation, found in a ball whose radius is part of the search.

    ddn     ascends the cross-entropy on spheres: ε a little smaller after a success, a little larger after none
    fmn     ascends the margin in balls: ε first reaches to the linearised boundary, then it is as in ddn

`_adapting` has the search, in runs of which the first is the papers'. Lengths are in units of the box's width.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from diffprog import _validation, norms
from diffprog.adversarial._base import Attack, Bounds, Flat, PerExample, Problem
from diffprog.adversarial._losses import cross_entropy
from diffprog.adversarial.minimum_norm._adapting import Rule, Seen, adapting
from diffprog.adversarial.minimum_norm._binary_search import (
    DUAL,
    Best,
    ahead,
    number,
    success,
    width,
)

_OVERSHOOT = 1e-3


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
        restarts: runs, at least 1. One is the paper's; it misses the nearest class of some examples by far (see `_adapting`).
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.
        examples: like x, of any number: where the search finds nothing, the nearest that f reads otherwise is brought to the boundary
            instead; None for points drawn from the box.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Source: J. Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and defenses", 2019.

    >>> import jax
    >>> found = ddn()(lambda x: x @ jnp.eye(2), jnp.array([[0.7, 0.4]]), jnp.array([0]), key=jax.random.key(0))
    >>> f"{found.distance[0]:.3f}"
    '0.212'
    """
    rate, gamma = (
        _validation.number("rate", rate, above=0),
        _validation.number("gamma", gamma, above=0, high=1),
    )

    def radius(
        problem: Problem, r: Flat, epsilon: PerExample, gamma: Array, seen: Seen, best: Best
    ) -> PerExample:
        return epsilon * jnp.where(success(problem, seen.logits), 1 - gamma, 1 + gamma)

    def outwards(problem: Problem, r: Flat, epsilon: PerExample) -> Flat:
        return r * (epsilon / jnp.maximum(problem.norm.length(r), jnp.finfo(r.dtype).tiny))[:, None]

    rule = Rule(
        loss=lambda problem, logits: cross_entropy(logits, problem.y, problem.targeted),
        start=lambda problem: jnp.full(len(problem.x), width(problem), problem.x.dtype),
        radius=radius,
        outwards=outwards,
        first=(number(rate), number(gamma)),
        last=(number(rate / 100), number(gamma)),
    )
    return adapting("ddn", "l2", rule, steps, restarts, bounds, targeted, examples)


def fmn(
    *,
    norm: str = "linf",
    steps: int = 40,
    rate: float = 1.0,
    gamma: float = 0.05,
    restarts: int = 12,
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
        steps: gradients of a run, at least 1. Pintor et al. use 100 to 1000; more runs of fewer steps find shorter ones.
        rate: α_0 > 0, in widths of the box. Pintor et al. choose 10 in linf and 1 in l2 and l1; 1 finds shorter ones in linf as well.
        gamma: γ_0 in 0 .. 1, with γ > 0.
        restarts: runs, at least 1. One is the paper's; it misses the nearest class of some examples by far (see `_adapting`).
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.
        examples: like x, of any number: where the search finds nothing, the nearest that f reads otherwise is brought to the boundary
            instead; None for points drawn from the box.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Source: M. Pintor et al., "Fast minimum-norm adversarial attacks through adaptive norm constraints", 2021.

    >>> import jax
    >>> found = fmn(norm="linf")(lambda x: x @ jnp.eye(2), jnp.array([[0.7, 0.4]]), jnp.array([0]), key=jax.random.key(0))
    >>> f"{found.distance[0]:.3f}"
    '0.150'
    """
    norms.named(norm)
    rate, gamma = (
        _validation.number("rate", rate, above=0),
        _validation.number("gamma", gamma, above=0, high=1),
    )

    def radius(
        problem: Problem, r: Flat, epsilon: PerExample, gamma: Array, seen: Seen, best: Best
    ) -> PerExample:
        rest = jnp.abs(seen.loss) / jnp.maximum(
            DUAL[norm].length(seen.gradient), jnp.finfo(r.dtype).tiny
        )
        linear = (1 + _OVERSHOOT) * (
            problem.norm.length(r) + jnp.where(jnp.isfinite(rest), rest, 0)
        )
        after = jnp.where(
            success(problem, seen.logits),
            (1 - gamma) * jnp.minimum(epsilon, best.distance),
            (1 + gamma) * epsilon,
        )
        return jnp.minimum(jnp.where(best.found, after, linear), _farthest(problem))

    rule = Rule(
        loss=ahead,
        start=lambda problem: jnp.full(len(problem.x), jnp.inf, problem.x.dtype),
        radius=radius,
        outwards=lambda problem, r, epsilon: r,
        first=(number(rate), number(gamma)),
        last=(number(rate / 100), number(gamma / 50)),
    )
    return adapting("fmn", norm, rule, steps, restarts, bounds, targeted, examples)


def _farthest(problem: Problem) -> PerExample:
    """The norm of the longest perturbation in the box."""
    low, high = problem.bounds
    return problem.norm.length(jnp.maximum(problem.x - low, high - problem.x))
