"""DeepFool: step to the nearest boundary as if all boundaries were flat, and again from there.

    z_j(x + r + d) - z_y(x + r + d)  ≈  m_j + <g_j, d>,      d_j = argmin ||d||  such that  m_j + <g_j, d> >= 0,  x + r + d in the box

of all classes j other than y the nearest is stepped to. A target must rise above every other class: all its boundaries are stepped beyond
at once, by the smallest d that crosses them together (`_halfspaces`). The box is part of the step, so on a linear classifier the first
one is the smallest perturbation there is; of a target, to a part in 10^3.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

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
from diffprog.adversarial._losses import Logits
from diffprog.adversarial.minimum_norm._binary_search import (
    Best,
    as_examples,
    finished,
    finite,
    nothing,
    number,
    success,
)
from diffprog.adversarial.minimum_norm._halfspace_projection import nearest
from diffprog.adversarial.minimum_norm._halfspaces import nearest_common


class LinearizedBoundaries(NamedTuple):
    """Linearised boundaries.

    Attributes:
        logits: at the point where they were.
        steps: the shortest step of the box to each.
        lengths: of the steps; infinite where the box ends before the boundary.
    """

    logits: Logits
    steps: Float[Array, "classes batch n"]
    lengths: Float[Array, "classes batch"]

    @property
    def nearest(self) -> Flat:
        """The step to the nearest."""
        return jnp.take_along_axis(self.steps, self.lengths.argmin(0)[None, :, None], axis=0)[0]


def deep_fool(
    *,
    norm: str = "l2",
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int = 10,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """A small perturbation in few steps, by going to the nearest linearised boundary.

    r <- r + (1 + overshoot) d, with d the shortest step of the box that reaches the flat boundary of one of the classes, for a target those
    of all; an example stops where f reads it otherwise.

    Args:
        norm: "l2", "linf" or "l1".
        steps: at least 1; each takes a gradient for every candidate.
        overshoot: >= 0.
        candidates: how many classes are tried, those with the largest logits at x, at least 1. Moosavi-Dezfooli et al. try 10.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.
        examples: like x, of any number: where the search finds nothing, the nearest that f reads otherwise is brought to the boundary
            instead; None for points drawn from the box.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Source: S. Moosavi-Dezfooli, A. Fawzi and P. Frossard, "DeepFool: a simple and accurate method to fool deep neural networks", 2016.

    >>> found = deep_fool()(lambda x: x @ jnp.eye(2), jnp.array([[0.7, 0.4]]), jnp.array([0]), key=jax.random.key(0))
    >>> f"{found.distance[0]:.3f}"
    '0.212'
    """
    norms.named(norm)
    count, most = (
        jnp.int32(_validation.integer("steps", steps, low=1)),
        _validation.integer("candidates", candidates, low=1),
    )
    beyond = number(1 + _validation.number("overshoot", overshoot, low=0))
    starts = as_examples(examples, _validation.bounds("bounds", bounds))

    def search(problem: Problem) -> Search:
        rivals = likeliest(problem, most)

        def step(k: Array, carried: tuple[Flat, Best, Array]) -> tuple[Flat, Best, Array]:
            r, best, taken = carried
            logits, d = past(problem, norm, rivals, r)
            best = best.or_shorter(problem, r, success(problem, logits), k)
            further = problem.clip_to_box(r + beyond.astype(r.dtype) * d)
            return (
                jnp.where(best.found[:, None], r, further),
                best,
                taken + ~best.found * len(rivals),
            )

        begun = jnp.zeros_like(problem.x), nothing(problem), jnp.zeros(len(problem.x), int)
        open = lambda carried: (carried[0] < count) & ~carried[1][1].found.all()
        once = lambda carried: (carried[0] + 1, step(*carried))
        _, (r, best, taken) = jax.lax.while_loop(open, once, (jnp.zeros_like(count), begun))
        best = best.or_shorter(problem, r, success(problem, problem.perturbed_logits(r)), count)
        return finished(problem, best, taken, jnp.full(len(r), 2), starts)

    return make_attack("deep_fool", search, norm=norm, bounds=bounds, targeted=targeted)


def likeliest(problem: Problem, most: int) -> Integer[Array, "classes batch"]:
    """(classes, batch): those to step towards, the likeliest first; of a targeted attack those to rise above with the target."""
    logits = problem.clean_logits
    others = jnp.where(
        jax.nn.one_hot(problem.y, logits.shape[1], dtype=bool), -jnp.inf, jnp.nan_to_num(logits)
    )
    return jax.lax.top_k(others, min(most, logits.shape[1] - 1))[1].T


def nearest_first(problem: Problem, norm: str, most: int) -> Integer[Array, "classes batch"]:
    """Of the likeliest classes those with the nearest linearised boundaries at x first."""
    rivals = likeliest(problem, most)
    flat = boundaries(problem, norm, rivals, jnp.zeros_like(problem.x))
    return jnp.take_along_axis(rivals, jnp.argsort(flat.lengths, axis=0), axis=0)


def boundaries(problem: Problem, norm: str, rivals: Array, r: Flat) -> LinearizedBoundaries:
    """The linearised boundary to each of the rivals at x + r."""
    logits, flat = linearised(problem, r)
    low, high = (bound - problem.x - r for bound in problem.bounds)

    def towards(rival: Array) -> tuple[Flat, PerExample]:
        g, need = flat(rival)
        d = nearest(norm, g, need, low, high)
        short = (g * d).sum(1) < need * (1 - 1e-3)
        return d, jnp.where(short, jnp.inf, problem.norm.length(d))

    return LinearizedBoundaries(logits, *jax.lax.map(towards, rivals))


def past(problem: Problem, norm: str, rivals: Array, r: Flat) -> tuple[Logits, Flat]:
    """The logits at x + r, and the shortest step from there to the nearest linearised boundary; for a target, past all of them."""
    if not problem.targeted:
        flat = boundaries(problem, norm, rivals, r)
        return flat.logits, flat.nearest
    logits, flat_to = linearised(problem, r)
    low, high = (bound - problem.x - r for bound in problem.bounds)
    g, need = jax.lax.map(flat_to, rivals)
    return logits, nearest_common(norm, g, need, low, high)


def linearised(
    problem: Problem, r: Flat
) -> tuple[Logits, Callable[[Array], tuple[Flat, PerExample]]]:
    """The logits at x + r, and for a rival its boundary there: g and how much is needed of <g, d>."""
    logits, pull = jax.vjp(problem.perturbed_logits, r)
    own = jax.nn.one_hot(problem.y, logits.shape[1], dtype=logits.dtype)
    sign = -1 if problem.targeted else 1

    def flat(rival: Array) -> tuple[Flat, PerExample]:
        difference = sign * (jax.nn.one_hot(rival, logits.shape[1], dtype=logits.dtype) - own)
        return finite(pull(difference)[0]), jnp.nan_to_num(-(difference * logits).sum(1)).astype(
            r.dtype
        )

    return logits, flat
