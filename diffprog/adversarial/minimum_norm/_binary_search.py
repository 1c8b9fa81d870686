"""Bisection to the decision boundary, the last step of minimum-norm attacks.

    t* = min { t in [0, 1] : x + t r is adversarial },     r ← t* r

with x the example and r the perturbation that the attack found. The bisection of the segment from x
to x + r brackets a crossing of the boundary to a relative width of 1e-5. The result is the outer
end of the bracket, a point that was evaluated and is adversarial.

If the attack found no adversarial r, the bisection starts from the nearest of the `examples` given
by the user that is adversarial. If there is none, it starts from the nearest adversarial point of a
random search: uniform noise and corners of the box, each followed by gradient ascent on the
log-odds of success, with steps that shrink from half the width of the box to a hundredth.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from diffprog import _validation, norms
from diffprog.adversarial import _base, _losses
from diffprog.adversarial._base import Bounds, Flat, PerExample, Problem, Search, select
from diffprog.adversarial._losses import Logits

RELATIVE_WIDTH = 1e-5  # of the final bracket
_EXTENSION = 1e-3  # by which r may be lengthened to cross the boundary clearly
_RANDOM_STARTS, _ASCENT_STEPS = 8, 20


class Shortest(NamedTuple):
    """Shortest successful perturbation so far; the leading axis is the example.

    Attributes:
        r: (batch, n), the perturbations; zero before the first success.
        distance: (batch,), the norms of r; infinite before the first success.
        step: (batch,), the step at which r was found; -1 before the first success.
        restart: (batch,), the restart, or the outer iteration, in which r was found.
    """

    r: Flat
    distance: PerExample
    step: Integer[Array, "batch"]
    restart: Integer[Array, "batch"]

    @classmethod
    def empty(cls, problem: Problem) -> "Shortest":
        """Return a `Shortest` without any success: r is zero and the distance infinite."""
        none = jnp.full(len(problem.x), -1)
        infinite = jnp.full(len(problem.x), jnp.inf, problem.x.dtype)
        return cls(jnp.zeros_like(problem.x), infinite, none, none)

    @property
    def found(self) -> Bool[Array, "batch"]:
        """Whether each example has had a success, (batch,)."""
        return jnp.isfinite(self.distance)

    def update(
        self, problem: Problem, r: Flat, success: Bool[Array, "batch"], step: Any, restart: Any = 0
    ) -> "Shortest":
        """Replace the perturbation of each example by r where `success` holds and r is shorter.

        `step` and `restart` are those of r.
        """
        distance = jnp.where(success, problem.norm.length(r), jnp.inf)
        return self.merge(Shortest(r, distance, step, restart))

    def merge(self, other: "Shortest") -> "Shortest":
        """Select the shorter perturbation per example; that of `self` if both are equally short."""
        return select(other.distance < self.distance, other, self)


def refine(
    problem: Problem, shortest: Shortest, gradients: Any, queries: Any, examples: Flat | None
) -> Search:
    """Shorten the perturbations that a search found to the decision boundary.

    Args:
        problem: examples and model.
        shortest: the perturbations that the search found. Where it found none, the bisection starts
            from the nearest adversarial one of `examples`, or else from random points.
        gradients: (batch,), the number of forward-and-backward passes so far.
        queries: (batch,), the number of forward-only passes so far.
        examples: (examples, n), the starting points that the user gave, or None.

    Returns:
        The result of the search, as a `Search`.
    """
    require_same_size(examples, problem)
    found = shortest.found
    shortest = jax.lax.cond(
        found.all(),
        lambda: shortest,
        lambda: select(found, shortest, _fallback(problem, examples)),
    )
    r, halvings = bisect_to_boundary(problem, shortest.r)
    fallback_queries = 0 if examples is None else len(examples)
    fallback_gradients = _RANDOM_STARTS * (_ASCENT_STEPS + 1)
    return Search(
        r,
        shortest.step,
        shortest.restart,
        gradients + jnp.where(found, 0, fallback_gradients),
        queries + halvings + jnp.where(found, 0, fallback_queries),
    )


def bisect_to_boundary(problem: Problem, r: Flat) -> tuple[Flat, Integer[Array, "batch"]]:
    """Shorten each adversarial perturbation r until x + r is at the decision boundary.

    Returns the new r, and the number of model evaluations per example. An r that is not adversarial
    is returned unchanged.
    """
    scaled = lambda t: problem.clip_to_box((t[:, None] * r).astype(r.dtype))

    def is_clearly_adversarial(t: PerExample) -> Bool[Array, "batch"]:
        logits = problem.perturbed_logits(scaled(t))
        # Compiled anew, f may round differently. The margin must exceed that rounding error for the
        # result to stay adversarial.
        rounding = 64 * jnp.finfo(r.dtype).eps * jnp.abs(logits).max(-1)
        return problem.is_adversarial(logits) & (problem.margin(logits) > rounding)

    # At least float32: in 16 bits the bisection would stall before the bracket is narrow.
    one = (r != 0).any(1).astype(jnp.promote_types(r.dtype, jnp.float32))
    extended = (1 + _EXTENSION) * one
    end = jnp.where(is_clearly_adversarial(extended) & ~is_clearly_adversarial(one), extended, one)
    t, queries = bisect(is_clearly_adversarial, end, RELATIVE_WIDTH, jnp.finfo(r.dtype).eps)
    return scaled(t), queries + 2


def bisect(
    is_outside: Callable[[PerExample], Bool[Array, "batch"]],
    outer: PerExample,
    relative_width: float,
    smallest: Any,
) -> tuple[PerExample, Integer[Array, "batch"]]:
    """Find per example by bisection where is_outside(t) changes from False at 0 to True at `outer`.

    Returns the outer ends t (batch,) of the last brackets, and the number of evaluations of
    `is_outside` for each. A bracket is halved until it is narrower than `relative_width` times t,
    or t is below `smallest`.
    """

    def is_wide(inner: PerExample, outer: PerExample) -> Bool[Array, "batch"]:
        return (outer - inner > relative_width * outer) & (outer > smallest)

    def halve(carry: tuple[PerExample, PerExample, Array]) -> tuple[PerExample, PerExample, Array]:
        inner, outer, count = carry
        middle, active = (inner + outer) / 2, is_wide(inner, outer)
        outside = is_outside(middle)
        inner = jnp.where(active & ~outside, middle, inner)
        return inner, jnp.where(active & outside, middle, outer), count + active

    start = jnp.zeros_like(outer), outer, jnp.zeros(len(outer), int)
    return jax.lax.while_loop(lambda carry: is_wide(*carry[:2]).any(), halve, start)[1:]


def _fallback(problem: Problem, examples: Flat | None) -> Shortest:
    if examples is None:
        return _random_ascent(problem)
    nearest = _nearest_example(problem, examples.astype(problem.x.dtype))
    return jax.lax.cond(
        nearest.found.all(),
        lambda: nearest,
        lambda: select(nearest.found, nearest, _random_ascent(problem)),
    )


def _nearest_example(problem: Problem, examples: Flat) -> Shortest:
    """Find the perturbation from x to the nearest of the given examples that is adversarial."""
    logits = problem.logits(examples)

    def compare(k: Array, shortest: Shortest) -> Shortest:
        repeated = jnp.broadcast_to(logits[k], (len(problem.x), logits.shape[1]))
        success = problem.is_adversarial(repeated)
        return shortest.update(problem, examples[k] - problem.x, success, -1, -1)

    return jax.lax.fori_loop(0, len(examples), compare, Shortest.empty(problem))


def _random_ascent(problem: Problem) -> Shortest:
    """Find the shortest adversarial perturbation on paths of gradient ascent from random points.

    The ascent maximizes the log-odds of success.
    """
    low, width = problem.bounds[0], problem.box_width

    def ascend(start: Array, shortest: Shortest) -> Shortest:
        uniform = problem.sample(jax.random.uniform, start)
        # Corners of the box for odd starts, noise for even ones.
        point = low + width * jnp.where(start % 2, uniform > 0.5, uniform)

        def step(k: Array, carry: tuple[Flat, Shortest]) -> tuple[Flat, Shortest]:
            r, shortest = carry
            gradient, logits = _log_odds_gradient(problem, r)
            shortest = shortest.update(problem, r, problem.is_adversarial(logits), -1, -1)
            step_size = width * 0.5 * 0.02 ** (k / _ASCENT_STEPS)
            # Signs reach the corners of the box, the gradient itself the points between them.
            direction = jnp.where(
                start % 4 < 2, jnp.sign(gradient), r.shape[1] ** 0.5 * norms.l2.ascent(gradient)
            )
            return problem.clip_to_box(r + step_size.astype(r.dtype) * direction), shortest

        r = problem.clip_to_box(point - problem.x)
        return jax.lax.fori_loop(0, _ASCENT_STEPS + 1, step, (r, shortest))[1]

    return jax.lax.fori_loop(0, _RANDOM_STARTS, ascend, Shortest.empty(problem))


def _log_odds_gradient(problem: Problem, r: Flat) -> tuple[Flat, Logits]:
    """Return the gradient of the log-odds of success at x + r, and the logits there.

    With p_y the probability of class y, the log-odds are log p_y / (1 - p_y) if y is a target, and
    their negative if y is a label. Unlike the margin they are smooth in the logits.
    """

    def total(r: Flat) -> tuple[Array, Logits]:
        logits = problem.perturbed_logits(r)
        others = jax.nn.logsumexp(_losses.mask_label(logits, problem.y), axis=1)
        log_odds = _losses.pick_label(logits, problem.y) - others
        return (log_odds if problem.targeted else -log_odds).sum(), logits

    gradient, logits = jax.grad(total, has_aux=True)(r)
    return _base.zero_nonfinite(gradient), logits


def validate_starting_examples(examples: Any, bounds: Bounds) -> Flat | None:
    """Check the argument `examples` of an attack and flatten it to rows; None stays None."""
    if examples is None:
        return None
    bounds = _validation.bounds("bounds", bounds)
    _validation.floating_leaves("examples", examples)
    _validation.batch(examples=examples)
    _validation.finite("examples", examples)
    for path, leaf in jax.tree_util.tree_leaves_with_path(examples):
        _validation.within("examples" + jax.tree_util.keystr(path), leaf, *bounds)
    return _base.flatten_examples(jax.tree.map(jnp.asarray, examples))[0]


def require_same_size(examples: Flat | None, problem: Problem) -> None:
    """Raise ValueError if the starting examples have a different number of values than x."""
    if examples is not None and examples.shape[1] != problem.x.shape[1]:
        raise ValueError(
            f"examples must have {problem.x.shape[1]} values each, like x, got {examples.shape[1]}"
        )


def random_half(problem: Problem, r: Flat, index: Array) -> Flat:
    """Set each value of r to zero with probability 1/2; the loop index selects the PRNG keys."""
    draw = lambda key, shape, _: jax.random.bernoulli(key, shape=shape)
    return jnp.where(problem.sample(draw, index), r, 0)
