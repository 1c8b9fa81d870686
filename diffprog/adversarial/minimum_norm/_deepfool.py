"""DeepFool: repeated steps to the nearest linearized decision boundary.

    z_j(x + r + d) - z_y(x + r + d)  ≈  m_j + <g_j, d>
    d_j = argmin ||d||   subject to   m_j + <g_j, d> >= 0,   x + r + d in the box

with z the logits, y the label, r the perturbation so far, m_j the value of z_j - z_y at x + r and
g_j its gradient. An untargeted attack takes the shortest of the steps d_j to all classes j other
than y. If y is a target, its logit must exceed that of every other class, so a targeted attack
crosses all linearized boundaries at once, by `project_to_intersection`. On a linear classifier the
first step is the smallest perturbation, since it takes the box into account; for a target it is
close to the smallest.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from diffprog import _validation
from diffprog.adversarial import _base
from diffprog.adversarial._base import Attack, Bounds, Flat, PerExample, Problem, Search
from diffprog.adversarial._losses import Logits, mask_label
from diffprog.adversarial.minimum_norm import _binary_search
from diffprog.adversarial.minimum_norm._binary_search import Shortest
from diffprog.adversarial.minimum_norm._halfspace_projection import (
    project_to_halfspace,
    project_to_intersection,
)

Candidates = Integer[Array, "candidates batch"]


class LinearizedBoundaries(NamedTuple):
    """Logits at one point, and the shortest steps from there to linearized decision boundaries.

    Attributes:
        logits: (batch, classes), the logits at that point.
        steps: (candidates, batch, n), the shortest step in the box to each boundary.
        lengths: (candidates, batch), norms of the steps; infinite where the box ends before the
            boundary.
    """

    logits: Logits
    steps: Float[Array, "candidates batch n"]
    lengths: Float[Array, "candidates batch"]

    @property
    def shortest_step(self) -> Flat:
        """Shortest of the steps for each example, (batch, n)."""
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
    """DeepFool minimum-norm attack (Moosavi-Dezfooli et al., 2016).

        r_{k+1} = r_k + (1 + overshoot) d

    with r_k the perturbation after k steps and d the shortest step to a linearized decision
    boundary, inside the box; for a target, the shortest step across the boundaries to all other
    classes. An example stops at its first success.

    Args:
        norm: "l2", "linf" or "l1".
        steps: maximum number of steps, at least 1; each takes one gradient per candidate class.
        overshoot: share by which each step is lengthened, >= 0.
        candidates: number of classes considered, those with the largest logits at x, at least 1.
            The paper considers 10.
        bounds: (low, high) of every value of x + r.
        targeted: whether y holds target classes.
        examples: inputs like x, of any batch size. Where the search fails, the nearest of them that
            is adversarial is moved to the decision boundary instead. Default: random points of the
            box.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or outside its range.

    Source: S. Moosavi-Dezfooli, A. Fawzi and P. Frossard, "DeepFool: a simple and accurate method
        to fool deep neural networks", 2016.

    >>> x, y = jnp.array([[0.7, 0.4]]), jnp.array([0])
    >>> result = deep_fool()(lambda x: x @ jnp.eye(2), x, y, key=jax.random.key(0))
    >>> f"{result.distance[0]:.3f}"
    '0.212'
    """
    max_steps = jnp.int32(_validation.integer("steps", steps, low=1))
    count = _validation.integer("candidates", candidates, low=1)
    step_size = np.asarray(1 + _validation.number("overshoot", overshoot, low=0))
    starts = _binary_search.validate_starting_examples(examples, bounds)

    def search(problem: Problem) -> Search:
        classes = likeliest_classes(problem, count)

        def step(carry: tuple[Array, Flat, Shortest, Array]) -> tuple[Array, Flat, Shortest, Array]:
            k, r, shortest, gradients = carry
            logits, d = deepfool_step(problem, norm, classes, r)
            shortest = shortest.update(problem, r, problem.is_adversarial(logits), k)
            stepped = problem.clip_to_box(r + step_size.astype(r.dtype) * d)
            r = jnp.where(shortest.found[:, None], r, stepped)
            return k + 1, r, shortest, gradients + ~shortest.found * len(classes)

        unfinished = lambda carry: (carry[0] < max_steps) & ~carry[2].found.all()
        origin, none = jnp.zeros_like(problem.x), jnp.zeros(len(problem.x), int)
        start = jnp.int32(0), origin, Shortest.empty(problem), none
        _, r, shortest, gradients = jax.lax.while_loop(unfinished, step, start)
        success = problem.is_adversarial(problem.perturbed_logits(r))
        shortest = shortest.update(problem, r, success, max_steps)
        queries = jnp.full(len(r), 2)
        return _binary_search.refine(problem, shortest, gradients, queries, starts)

    return _base.make_attack("deep_fool", search, norm=norm, bounds=bounds, targeted=targeted)


def likeliest_classes(problem: Problem, count: int) -> Candidates:
    """Return the `count` classes other than y with the largest logits at x, (count, batch).

    They are in decreasing order of their logits.
    """
    others = mask_label(jnp.nan_to_num(problem.clean_logits), problem.y)
    return jax.lax.top_k(others, min(count, others.shape[1] - 1))[1].T


def nearest_classes(problem: Problem, norm: str, count: int) -> Candidates:
    """Return the `count` likeliest classes other than y, those with the nearest boundaries first.

    Distances are those of x from the linearized decision boundaries. The shape is (count, batch).
    """
    classes = likeliest_classes(problem, count)
    boundaries = linearized_boundaries(problem, norm, classes, jnp.zeros_like(problem.x))
    return jnp.take_along_axis(classes, jnp.argsort(boundaries.lengths, axis=0), axis=0)


def linearized_boundaries(
    problem: Problem, norm: str, classes: Candidates, r: Flat
) -> LinearizedBoundaries:
    """Compute the logits at x + r and the shortest steps to several linearized boundaries.

    There is one decision boundary between the label y and each of `classes`.
    """
    logits, linearization = linearize(problem, r)
    low, high = (bound - problem.x - r for bound in problem.bounds)

    def shortest_step(target: Array) -> tuple[Flat, PerExample]:
        g, gain = linearization(target)
        d = project_to_halfspace(norm, g, gain, low, high)
        unreachable = (g * d).sum(1) < gain * (1 - 1e-3)
        return d, jnp.where(unreachable, jnp.inf, problem.norm.length(d))

    return LinearizedBoundaries(logits, *jax.lax.map(shortest_step, classes))


def deepfool_step(problem: Problem, norm: str, classes: Candidates, r: Flat) -> tuple[Logits, Flat]:
    """Return the logits at x + r, and the shortest step d from there across linearized boundaries.

    An untargeted step crosses the nearest boundary between y and one of the classes. A targeted
    step crosses the boundaries between the target and all of the classes.
    """
    if not problem.targeted:
        boundaries = linearized_boundaries(problem, norm, classes, r)
        return boundaries.logits, boundaries.shortest_step
    logits, linearization = linearize(problem, r)
    low, high = (bound - problem.x - r for bound in problem.bounds)
    g, gains = jax.lax.map(linearization, classes)
    return logits, project_to_intersection(norm, g, gains, low, high)


def linearize(
    problem: Problem, r: Flat
) -> tuple[Logits, Callable[[Array], tuple[Flat, PerExample]]]:
    """Return the logits at x + r, and a function from a class to its linearized boundary (g, gain).

    The boundary between the class and y is the set of x + r + d with <g, d> = gain. To first order,
    the class has the larger logit where <g, d> > gain. For a targeted attack it is y that has the
    larger logit there.
    """
    logits, vjp = jax.vjp(problem.perturbed_logits, r)
    own = jax.nn.one_hot(problem.y, logits.shape[1], dtype=logits.dtype)
    sign = -1 if problem.targeted else 1

    def linearization(target: Array) -> tuple[Flat, PerExample]:
        difference = sign * (jax.nn.one_hot(target, logits.shape[1], dtype=logits.dtype) - own)
        gain = jnp.nan_to_num(-(difference * logits).sum(1)).astype(r.dtype)
        return _base.zero_nonfinite(vjp(difference)[0]), gain

    return logits, linearization
