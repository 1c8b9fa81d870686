"""Search for the penalty weight of minimum-norm attacks that minimize length + c loss.

    min over r   length(r) + c loss(f(x + r)),   x + r in the box,     smallest c that succeeds

The penalty weight c is searched per example. It starts from a multiple of its value for a
linearized f, grows tenfold until the first success, is halved once it has a success but no failure,
and is then bisected on a logarithmic scale. The shortest success is kept and moved to the decision
boundary.

The margin leads to the likeliest other class, which is not always the nearest; and in l1 the same
class can be reached by changing different values. Each iteration of the search, one minimization
for one c, therefore has a class to reach and a starting point:

    first     one class after another, nearest linearized boundary first; from that boundary
    second    the same classes from r = 0, each with its own c
    then      any class, with the c of the class of the shortest success; from that class's boundary
              and from r = 0 in turn, in l1 from the shortest success with half of its values zeroed

There are searches // 2 classes, at least one and at most five.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

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
from diffprog.adversarial.minimum_norm._binary_search import (
    Shortest,
    box_width,
    random_half,
    refine,
    validate_starting_examples,
    zero_nonfinite,
)
from diffprog.adversarial.minimum_norm._deepfool import (
    Candidates,
    likeliest_classes,
    linearized_boundaries,
    step_across,
)

Minimizer = Callable[[Problem, PerExample, Labels, Flat, Array], tuple[Shortest, Array]]
"""(problem, c, class, start, iteration) -> the shortest success, and the gradient evaluations."""

ANY_CLASS = -1  # instead of a class to reach: the loss is that of the margin
_MAX_CANDIDATES = 10  # classes whose linearized boundaries are compared
_MAX_CLASSES = 5
_BOUNDARY_OVERSHOOT = 1 + 1e-3  # so that rounding does not leave a linear boundary uncrossed


class _PenaltyWeight(NamedTuple):
    """The penalty weight c and the bracket of the smallest one that succeeds."""

    c: Float[Array, "*classes batch"]
    low: Float[Array, "*classes batch"]
    high: Float[Array, "*classes batch"]

    def update(self, success: Bool[Array, "batch"]) -> "_PenaltyWeight":
        """Narrow the bracket by the outcome at c and select the next c."""
        low = jnp.where(success, self.low, jnp.maximum(self.low, self.c))
        high = jnp.where(success, jnp.minimum(self.high, self.c), self.high)
        between = jnp.where(low > 0, jnp.sqrt(low) * jnp.sqrt(high), high / 2)
        return _PenaltyWeight(jnp.where(jnp.isfinite(high), between, 10 * low), low, high)


def penalty_attack(
    name: str,
    norm: str,
    minimize: Minimizer,
    *,
    searches: int,
    bounds: Bounds,
    targeted: bool,
    examples: Any,
    initial_factor: float,
    l1_weight: Any = 0.0,
) -> Attack:
    """Build the attack that calls `minimize` for a sequence of penalty weights.

    The first c is `initial_factor` times its first-order value; `l1_weight` is the weight of
    ||r||_1 in the length.
    """
    num_searches = jnp.int32(_validation.integer("searches", searches, low=1))
    starts = validate_starting_examples(examples, _validation.bounds("bounds", bounds))
    factor, l1_weight = np.asarray(initial_factor), np.asarray(l1_weight)

    def search(problem: Problem) -> Search:
        classes, boundary_points, cost = _classes_and_boundaries(problem, norm)
        num_classes = jnp.clip(num_searches // 2, 1, len(classes))
        rows = jnp.arange(len(problem.x))

        def iterate(
            i: Array, carry: tuple[Shortest, Array, Array, _PenaltyWeight]
        ) -> tuple[Shortest, Array, Array, _PenaltyWeight]:
            shortest, gradients, nearest, weights = carry
            keys = jax.vmap(jax.random.fold_in, (0, None))(problem.keys, i)
            per_class = i < 2 * num_classes
            index = jnp.where(per_class, i % num_classes, nearest)
            from_boundary = (i // num_classes) % 2 == 0
            start = jnp.where(from_boundary, boundary_points[index, rows], 0)
            if norm == "l1":
                start = jnp.where(per_class, start, random_half(shortest.r, keys))
            weight = jax.tree.map(lambda leaf: leaf[index, rows], weights)
            target = jnp.where(per_class, classes[index, rows], ANY_CLASS)
            new, new_gradients = minimize(problem, weight.c, target, start, i)
            weights = jax.tree.map(
                lambda leaf, value: leaf.at[index, rows].set(value),
                weights,
                weight.update(new.found),
            )
            nearest = jnp.where(new.distance < shortest.distance, index, nearest)
            return shortest.merge(new), gradients + new_gradients, nearest, weights

        c = factor.astype(problem.x.dtype) * jax.lax.map(
            lambda pair: _first_order_weight(problem, pair[0], pair[1], l1_weight),
            (classes, boundary_points),
        )
        start = (
            Shortest.empty(problem),
            jnp.full(len(rows), cost),
            jnp.zeros_like(classes[0]),
            _PenaltyWeight(c, 0 * c, jnp.full_like(c, jnp.inf)),
        )
        shortest, gradients, *_ = jax.lax.fori_loop(0, num_searches, iterate, start)
        return refine(problem, shortest, gradients, jnp.zeros(len(rows), int), starts)

    return make_attack(name, search, norm=norm, bounds=bounds, targeted=targeted)


def _classes_and_boundaries(
    problem: Problem, norm: str
) -> tuple[Candidates, Float[Array, "candidates batch n"], int]:
    """Compute the classes to reach, points on their boundaries, and the gradient evaluations.

    The classes are sorted by the distance of their linearized boundaries. A target has to exceed
    all other classes, which is the single entry ANY_CLASS. The evaluations include those of the
    first c.
    """
    candidates, origin = likeliest_classes(problem, _MAX_CANDIDATES), jnp.zeros_like(problem.x)
    if problem.targeted:
        step = step_across(problem, norm, candidates, origin)[1]
        point = problem.clip_to_box(_BOUNDARY_OVERSHOOT * step)
        return jnp.full_like(candidates[:1], ANY_CLASS), point[None], len(candidates) + 1
    boundaries = linearized_boundaries(problem, norm, candidates, origin)
    order = jnp.argsort(boundaries.lengths, axis=0)[:_MAX_CLASSES]
    steps = jnp.take_along_axis(boundaries.steps, order[..., None], axis=0)
    points = jax.lax.map(problem.clip_to_box, _BOUNDARY_OVERSHOOT * steps)
    classes = jnp.take_along_axis(candidates, order, axis=0)
    return classes, points, len(candidates) + len(order)


def _first_order_weight(problem: Problem, target: Labels, r: Flat, l1_weight: Array) -> PerExample:
    """Compute the c at which the gradients of length and loss cancel at r, for a linear f."""

    def total(r: Flat) -> Array:
        return target_margin(problem, target, problem.perturbed_logits(r)).sum()

    g = zero_nonfinite(jax.grad(total)(r))
    g_norm = jnp.maximum(jnp.sqrt(jnp.square(g).sum(1)), 1e-6)
    from_square = 2 * jnp.abs((g * r).sum(1)) / g_norm**2
    g_max = jnp.maximum(jnp.abs(g).max(1), 1e-6)
    from_l1 = l1_weight.astype(g.dtype) * box_width(problem) / g_max
    return jnp.clip(from_square + from_l1, 1e-6, 1e6)


def target_margin(problem: Problem, target: Labels, logits: Logits) -> PerExample:
    """Compute z_target - z_y, or the margin where the target is ANY_CLASS."""
    difference = logit_difference(logits, problem.y, target)
    return jnp.where(target == ANY_CLASS, problem.margin(logits), difference)


def hinge_loss(problem: Problem, target: Labels, logits: Logits) -> PerExample:
    """Compute max(-m, 0) of the margin m to the target class: C&W's f_6 with κ = 0."""
    return jnp.maximum(-target_margin(problem, target, logits), 0)
