"""Parts that all minimum-norm attacks share: the shortest success, the fallback, the bisection.

    t* = min { t in [0, 1] : x + t r is adversarial },     r ← t* r

Whatever a search finds is moved to the decision boundary: bisection of the segment from x to x + r
brackets a crossing to a relative width of 1e-5. The result is the outer end of the bracket, a point
at which f was evaluated.

Where a search found nothing, the bisection starts from the nearest adversarial one of the
`examples` that the user gave. Without such an example it starts from random points: uniform noise
and corners of the box, each followed by gradient ascent on log-odds, with steps that shrink from
half the width of the box to a hundredth.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from diffprog import _validation, norms
from diffprog.adversarial._base import Bounds, Flat, PerExample, Problem, Search, flatten_examples
from diffprog.adversarial._losses import Logits

_RELATIVE_WIDTH = 1e-5  # of the final bracket
_EXTENSION = 1e-3  # by which r may be lengthened to cross the boundary clearly
_RANDOM_STARTS, _ASCENT_STEPS = 8, 20


class Shortest(NamedTuple):
    """Shortest successful perturbation so far; the leading axis is the example.

    Attributes:
        r: (batch, n), the perturbations; zero for none.
        distance: (batch,), their norms; infinite for none.
        step: (batch,), the step at which each was found; -1 for none.
        restart: (batch,), the restart, or the outer iteration, in which it was found.
    """

    r: Flat
    distance: PerExample
    step: Integer[Array, "batch"]
    restart: Integer[Array, "batch"]

    @classmethod
    def empty(cls, problem: Problem) -> "Shortest":
        """Create the state before the first success."""
        none = jnp.full(len(problem.x), -1)
        infinite = jnp.full(len(problem.x), jnp.inf, problem.x.dtype)
        return cls(jnp.zeros_like(problem.x), infinite, none, none)

    @property
    def found(self) -> Bool[Array, "batch"]:
        """Whether there has been a success."""
        return jnp.isfinite(self.distance)

    def update(
        self, problem: Problem, r: Flat, success: Bool[Array, "batch"], step: Any, restart: Any = 0
    ) -> "Shortest":
        """Replace the perturbations by r where r succeeds and is shorter."""
        distance = jnp.where(success, problem.norm.length(r), jnp.inf)
        return self.merge(Shortest(r, distance, step, restart))

    def merge(self, other: "Shortest") -> "Shortest":
        """Select the shorter one per example, in case of a tie this one."""
        return _select(other.distance < self.distance, other, self)


def refine(
    problem: Problem, shortest: Shortest, gradients: Any, queries: Any, examples: Flat | None
) -> Search:
    """Turn the outcome of a search into its result on the decision boundary.

    Args:
        problem: the problem.
        shortest: the outcome of the search. Where it is empty, the fallback replaces it.
        gradients: (batch,), the gradient evaluations so far.
        queries: (batch,), the further forward passes so far.
        examples: rows for the fallback, or None.
    """
    require_same_size(examples, problem)
    found = shortest.found
    shortest = jax.lax.cond(
        found.all(),
        lambda: shortest,
        lambda: _select(found, shortest, _fallback(problem, examples)),
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
    """Shorten each r to where it crosses the decision boundary, and count the forward passes.

    An r that is not adversarial is returned as it is.
    """
    scaled = lambda t: problem.clip_to_box((t[:, None] * r).astype(r.dtype))

    def is_clearly_adversarial(t: PerExample) -> Bool[Array, "batch"]:
        logits = problem.perturbed_logits(scaled(t))
        # Compiled anew, f may round differently. The margin must exceed that rounding error for the
        # result to stay adversarial.
        rounding = 64 * jnp.finfo(r.dtype).eps * jnp.abs(logits).max(-1)
        return problem.is_adversarial(logits) & (problem.margin(logits) > rounding)

    def is_wide(inner: PerExample, outer: PerExample) -> Bool[Array, "batch"]:
        return (outer - inner > _RELATIVE_WIDTH * outer) & (outer > jnp.finfo(r.dtype).eps)

    def halve(
        bracket: tuple[PerExample, PerExample, Array],
    ) -> tuple[PerExample, PerExample, Array]:
        inner, outer, queries = bracket
        middle, active = (inner + outer) / 2, is_wide(inner, outer)
        crossed = is_clearly_adversarial(middle)
        return (
            jnp.where(active & ~crossed, middle, inner),
            jnp.where(active & crossed, middle, outer),
            queries + active,
        )

    # At least float32: in 16 bits the bisection would stall before the bracket is narrow.
    one = (r != 0).any(1).astype(jnp.promote_types(r.dtype, jnp.float32))
    extended = (1 + _EXTENSION) * one
    end = jnp.where(is_clearly_adversarial(extended) & ~is_clearly_adversarial(one), extended, one)
    start = jnp.zeros_like(end), end, jnp.full(len(r), 2)
    _, outer, queries = jax.lax.while_loop(
        lambda bracket: is_wide(*bracket[:2]).any(), halve, start
    )
    return scaled(outer), queries


def _fallback(problem: Problem, examples: Flat | None) -> Shortest:
    if examples is None:
        return _random_ascent(problem)
    nearest = _nearest_example(problem, examples.astype(problem.x.dtype))
    return jax.lax.cond(
        nearest.found.all(),
        lambda: nearest,
        lambda: _select(nearest.found, nearest, _random_ascent(problem)),
    )


def _nearest_example(problem: Problem, examples: Flat) -> Shortest:
    """Find the nearest example that is adversarial as it is."""
    logits = problem.logits(examples)

    def compare(k: Array, shortest: Shortest) -> Shortest:
        repeated = jnp.broadcast_to(logits[k], (len(problem.x), logits.shape[1]))
        success = problem.is_adversarial(repeated)
        return shortest.update(problem, examples[k] - problem.x, success, -1, -1)

    return jax.lax.fori_loop(0, len(examples), compare, Shortest.empty(problem))


def _random_ascent(problem: Problem) -> Shortest:
    """Find the shortest success among random points and the gradient ascents from them."""
    low, width = problem.bounds[0], box_width(problem)

    def ascend(start: Array, shortest: Shortest) -> Shortest:
        keys = jax.vmap(jax.random.fold_in, (0, None))(problem.keys, start)
        uniform = jax.vmap(
            lambda key: jax.random.uniform(key, problem.x.shape[1:], problem.x.dtype)
        )(keys)
        # Corners of the box for odd starts, noise for even ones.
        point = low + width * jnp.where(start % 2, uniform > 0.5, uniform)

        def step(k: Array, carry: tuple[Flat, Shortest]) -> tuple[Flat, Shortest]:
            r, shortest = carry
            gradient, logits = _log_odds_gradient(problem, r)
            shortest = shortest.update(problem, r, problem.is_adversarial(logits), -1, -1)
            step_size = width * 0.5 * 0.02 ** (k / _ASCENT_STEPS)
            # Signs reach the corners of the box, the gradient itself the points between them.
            direction = jnp.where(
                start % 4 < 2,
                jnp.sign(gradient),
                r.shape[1] ** 0.5 * norms.l2.ascent(gradient),
            )
            return problem.clip_to_box(r + step_size.astype(r.dtype) * direction), shortest

        r = problem.clip_to_box(point - problem.x)
        return jax.lax.fori_loop(0, _ASCENT_STEPS + 1, step, (r, shortest))[1]

    return jax.lax.fori_loop(0, _RANDOM_STARTS, ascend, Shortest.empty(problem))


def _log_odds_gradient(problem: Problem, r: Flat) -> tuple[Flat, Logits]:
    """Compute the gradient of log p_y / (1 - p_y), negated for labels, and the logits.

    Unlike the margin it is smooth in the logits.
    """

    def total(r: Flat) -> tuple[Array, Logits]:
        logits = problem.perturbed_logits(r)
        is_y = jax.nn.one_hot(problem.y, logits.shape[1], dtype=bool)
        others = jax.nn.logsumexp(jnp.where(is_y, -jnp.inf, logits), axis=1)
        log_odds = jnp.where(is_y, logits, 0).sum(1) - others
        return (log_odds if problem.targeted else -log_odds).sum(), logits

    gradient, logits = jax.grad(total, has_aux=True)(r)
    return zero_nonfinite(gradient), logits


def _select(condition: Bool[Array, "batch"], new: Shortest, old: Shortest) -> Shortest:
    """Select `new` where the condition holds, else `old`, per example."""

    def where(new: Array, old: Array) -> Array:
        return jnp.where(condition.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return jax.tree.map(where, new, old)


def validate_starting_examples(examples: Any, bounds: Bounds) -> Flat | None:
    """Validate the argument `examples` of an attack and flatten it to rows; None stays None."""
    if examples is None:
        return None
    _validation.floating_leaves("examples", examples)
    _validation.batch(examples=examples)
    _validation.finite("examples", examples)
    for path, leaf in jax.tree_util.tree_leaves_with_path(examples):
        _validation.within("examples" + jax.tree_util.keystr(path), leaf, *bounds)
    return flatten_examples(jax.tree.map(jnp.asarray, examples))[0]


def require_same_size(examples: Flat | None, problem: Problem) -> None:
    """Raise ValueError if the examples have not as many values each as x."""
    if examples is not None and examples.shape[1] != problem.x.shape[1]:
        raise ValueError(
            f"examples must have {problem.x.shape[1]} values each, like x, got {examples.shape[1]}"
        )


def zero_nonfinite(gradient: Flat) -> Flat:
    """Replace NaN and infinite values by zero, so that they do not reach r."""
    return jnp.where(jnp.isfinite(gradient), gradient, 0)


def random_half(r: Flat, keys: jax.Array) -> Flat:
    """Set each value of r to zero with probability 1/2."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, shape=r.shape[1:]))(keys)
    return jnp.where(kept, r, 0)


def box_width(problem: Problem) -> float:
    """Return high - low."""
    low, high = problem.bounds
    return high - low
