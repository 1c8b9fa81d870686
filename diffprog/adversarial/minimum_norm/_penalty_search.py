"""Search for the penalty weight c of minimum-norm attacks that minimize length + c loss.

    min over r   length(r) + c loss(f(x + r)),   x + r in the box

with r the perturbation of the example x and f the model. For each example, the smallest c is
searched for which the minimization succeeds. c starts from a multiple of its value for a linearized
f, grows tenfold until the first success, is halved while it has had successes but no failure, and
is then bisected on a logarithmic scale. The shortest success is kept and moved to the decision
boundary.

The margin leads to the likeliest other class, which is not always the nearest; and in l1 the same
class can be reached by changing different values. Each iteration of the search is one minimization
for one c, which therefore has a class to reach and a starting point:

    first     one class after another, in the order of the distances of their linearized boundaries,
              starting on that boundary
    second    the same classes from r = 0, each with its own c
    then      any class, with the c of the class that gave the shortest success; from its boundary
              and from r = 0 in turn, in l1 from the shortest success with half of its values zeroed

The number of classes is half the number of iterations, at least one and at most five.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffprog import _validation
from diffprog.adversarial import _base
from diffprog.adversarial._base import Attack, Bounds, Flat, PerExample, Problem, Search
from diffprog.adversarial._losses import Labels, Logits, logit_difference
from diffprog.adversarial.minimum_norm import _binary_search, _deepfool
from diffprog.adversarial.minimum_norm._binary_search import Shortest

Minimizer = Callable[[Problem, PerExample, Labels, Flat, Array], tuple[Shortest, Array]]
"""Function (problem, c, class, start, iteration) -> (shortest success, gradient evaluations)."""

ANY_CLASS = -1  # instead of a class to reach: the loss is that of the margin
_MAX_CANDIDATES = 10  # classes whose linearized boundaries are compared
_MAX_CLASSES = 5
_BOUNDARY_OVERSHOOT = 1 + 1e-3  # so that rounding does not leave a linear boundary uncrossed


class _PenaltyWeight(NamedTuple):
    """Bisection for the smallest penalty weight with which a minimization succeeds, per example.

    Attributes:
        c: the weights to try next.
        low: the largest weights that failed; 0 before the first failure.
        high: the smallest weights that succeeded; infinite before the first success.
    """

    c: Float[Array, "*classes batch"]
    low: Float[Array, "*classes batch"]
    high: Float[Array, "*classes batch"]

    def update(self, success: Bool[Array, "batch"]) -> "_PenaltyWeight":
        """Return the bracket narrowed by whether the minimization with c succeeded, and the next c.

        `high` becomes c where it succeeded, else `low` does.
        """
        low = jnp.where(success, self.low, jnp.maximum(self.low, self.c))
        high = jnp.where(success, jnp.minimum(self.high, self.c), self.high)
        between = jnp.where(low > 0, jnp.sqrt(low) * jnp.sqrt(high), high / 2)
        return _PenaltyWeight(jnp.where(jnp.isfinite(high), between, 10 * low), low, high)


def penalty_attack(
    name: str,
    norm: str,
    minimize: Minimizer,
    initial_factor: float,
    searches: int,
    bounds: Bounds,
    targeted: bool,
    examples: Any,
    l1_weight: Any = 0.0,
) -> Attack:
    """Build an attack that calls `minimize` for `searches` penalty weights c, chosen by bisection.

    minimize(problem, c, class, start, iteration) minimizes ||r|| + c loss from the perturbation
    `start` in bisection step `iteration`, and returns the smallest adversarial perturbation and the
    number of gradient evaluations. The first c is `initial_factor` times the smallest one that
    suffices for a linear model. `l1_weight` is the weight of ||r||_1 in the objective.
    """
    num_searches = jnp.int32(_validation.integer("searches", searches, low=1))
    starts = _binary_search.validate_starting_examples(examples, bounds)
    factor, l1_weight = np.asarray(initial_factor), np.asarray(l1_weight)

    def search(problem: Problem) -> Search:
        classes, boundary_points, cost = _classes_and_boundaries(problem, norm)
        num_classes = jnp.clip(num_searches // 2, 1, len(classes))
        rows = jnp.arange(len(problem.x))

        def iterate(
            i: Array, carry: tuple[Shortest, Array, Array, _PenaltyWeight]
        ) -> tuple[Shortest, Array, Array, _PenaltyWeight]:
            shortest, gradients, nearest, weights = carry
            per_class = i < 2 * num_classes
            index = jnp.where(per_class, i % num_classes, nearest)
            from_boundary = (i // num_classes) % 2 == 0
            start = jnp.where(from_boundary, boundary_points[index, rows], 0)
            if norm == "l1":
                half = _binary_search.random_half(problem, shortest.r, i)
                start = jnp.where(per_class, start, half)
            weight = jax.tree.map(lambda leaf: leaf[index, rows], weights)
            target = jnp.where(per_class, classes[index, rows], ANY_CLASS)
            new, new_gradients = minimize(problem, weight.c, target, start, i)
            write = lambda leaf, value: leaf.at[index, rows].set(value)
            weights = jax.tree.map(write, weights, weight.update(new.found))
            nearest = jnp.where(new.distance < shortest.distance, index, nearest)
            return shortest.merge(new), gradients + new_gradients, nearest, weights

        first_order = lambda pair: _first_order_weight(problem, pair[0], pair[1], l1_weight)
        c = jax.lax.map(first_order, (classes, boundary_points))
        c = factor.astype(problem.x.dtype) * c
        weights = _PenaltyWeight(c, 0 * c, jnp.full_like(c, jnp.inf))
        gradients, nearest = jnp.full(len(rows), cost), jnp.zeros_like(classes[0])
        start = Shortest.empty(problem), gradients, nearest, weights
        shortest, gradients, *_ = jax.lax.fori_loop(0, num_searches, iterate, start)
        queries = jnp.zeros(len(rows), int)
        return _binary_search.refine(problem, shortest, gradients, queries, starts)

    return _base.make_attack(name, search, norm=norm, bounds=bounds, targeted=targeted)


def _classes_and_boundaries(
    problem: Problem, norm: str
) -> tuple[_deepfool.Candidates, Float[Array, "candidates batch n"], int]:
    """Return the classes to reach, points on their linearized boundaries, and the cost of both.

    The classes are sorted by the distance of their boundaries from x. For a targeted attack the
    only entry is ANY_CLASS. The cost is the number of gradient evaluations, including those of
    `_first_order_weight`.
    """
    candidates = _deepfool.likeliest_classes(problem, _MAX_CANDIDATES)
    origin = jnp.zeros_like(problem.x)
    if problem.targeted:
        step = _deepfool.deepfool_step(problem, norm, candidates, origin)[1]
        point = problem.clip_to_box(_BOUNDARY_OVERSHOOT * step)
        return jnp.full_like(candidates[:1], ANY_CLASS), point[None], len(candidates) + 1
    boundaries = _deepfool.linearized_boundaries(problem, norm, candidates, origin)
    order = jnp.argsort(boundaries.lengths, axis=0)[:_MAX_CLASSES]
    steps = jnp.take_along_axis(boundaries.steps, order[..., None], axis=0)
    points = jax.lax.map(problem.clip_to_box, _BOUNDARY_OVERSHOOT * steps)
    classes = jnp.take_along_axis(candidates, order, axis=0)
    return classes, points, len(candidates) + len(order)


def _first_order_weight(problem: Problem, target: Labels, r: Flat, l1_weight: Array) -> PerExample:
    """Compute the penalty weight c at which r minimizes the objective if the model is linear.

    `target` is the class to reach, `l1_weight` the weight of ||r||_1 in the objective.
    """

    def total(r: Flat) -> Array:
        return target_margin(problem, target, problem.perturbed_logits(r)).sum()

    g = _base.zero_nonfinite(jax.grad(total)(r))
    g_norm = jnp.maximum(jnp.sqrt(jnp.square(g).sum(1)), 1e-6)
    from_square = 2 * jnp.abs((g * r).sum(1)) / g_norm**2
    g_max = jnp.maximum(jnp.abs(g).max(1), 1e-6)
    from_l1 = l1_weight.astype(g.dtype) * problem.box_width / g_max
    return jnp.clip(from_square + from_l1, 1e-6, 1e6)


def target_margin(problem: Problem, target: Labels, logits: Logits) -> PerExample:
    """Compute the logit difference z_target - z_y, with y the label.

    Where `target` is ANY_CLASS, it is the margin: positive if the attack has succeeded.
    """
    difference = logit_difference(logits, problem.y, target)
    return jnp.where(target == ANY_CLASS, problem.margin(logits), difference)


def hinge_loss(problem: Problem, target: Labels, logits: Logits) -> PerExample:
    """Compute max(-m, 0), with m the margin to the class `target` (see `target_margin`).

    It is the loss f_6 of Carlini and Wagner with κ = 0.
    """
    return jnp.maximum(-target_margin(problem, target, logits), 0)
