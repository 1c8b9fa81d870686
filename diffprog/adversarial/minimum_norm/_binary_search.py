"""The boundary: what a search for the smallest perturbation keeps, where it starts when it finds none, and the last stretch of its way.

    t* = min { t : f(x + t r) is wanted },  by halving  [0, 1],        r <- t* r

Whatever a search found, its result ends on the boundary between the classes: on the segment from x to x + r there is a crossing, and
halving the bracket around it reaches it to a part in 10^5, with f's own word on every point. The point kept is always the outer end of the
bracket, one that f was asked about.

An example for which a search found nothing is given a perturbation to halve. It is the nearest of the `examples` that f reads otherwise; or
failing that, the nearest of the points that the example's own key draws: noise and corners of the box, each followed up the odds of what is
wanted, which have no kinks, along their gradient or its signs, by steps that shrink from half the box's width to a hundredth.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Integer

from diffprog import _validation, norms
from diffprog.adversarial._base import Bounds, Flat, PerExample, Problem, Search, flatten_examples
from diffprog.adversarial._losses import Logits, is_adversarial, margin

DUAL = {
    "linf": norms.l1,
    "l2": norms.l2,
    "l1": norms.linf,
}  # a flat boundary lies at |m| / ||g||_dual
_CLOSE = 1e-5  # the relative width of the last bracket
_PAST = 1e-3  # how much farther than what was found one may have to go
_DRAWS, _CLIMB = 8, 20


class Best(NamedTuple):
    """The shortest perturbation seen so far that has what is wanted, for each example.

    Attributes:
        r: (batch, n); zero where there is none.
        distance: (batch,), its norm; infinite where there is none.
        step: (batch,), the step it was seen at; -1 for none.
        restart: (batch,), the restart, or the round of a search in rounds.
    """

    r: Flat
    distance: PerExample
    step: Integer[Array, "batch"]
    restart: Integer[Array, "batch"]

    @property
    def found(self) -> Bool[Array, "batch"]:
        """Whether there is one."""
        return jnp.isfinite(self.distance)

    def or_shorter(
        self, problem: Problem, r: Flat, success: Bool[Array, "batch"], step: Any, restart: Any = 0
    ) -> "Best":
        """With r instead, where it succeeds and is shorter."""
        distance = jnp.where(success, problem.norm.length(r), jnp.inf)
        return _where(distance < self.distance, Best(r, distance, step, restart), self)

    def or_best(self, other: "Best") -> "Best":
        """With the other's instead, where that is shorter."""
        return _where(other.distance < self.distance, other, self)


def nothing(problem: Problem) -> Best:
    """Before anything was seen."""
    none = jnp.full(len(problem.x), -1)
    return Best(
        jnp.zeros_like(problem.x), jnp.full(len(problem.x), jnp.inf, problem.x.dtype), none, none
    )


def success(problem: Problem, logits: Logits) -> Bool[Array, "batch"]:
    """Whether the logits are what is wanted."""
    return is_adversarial(logits, problem.y, problem.targeted)


def ahead(problem: Problem, logits: Logits) -> PerExample:
    """The margin: positive where the logits are what is wanted, linear in them."""
    return margin(logits, problem.y, problem.targeted)


def finite(gradient: Flat) -> Flat:
    """Zero where it is not finite, so that it does not reach r."""
    return jnp.where(jnp.isfinite(gradient), gradient, 0)


def slope(problem: Problem, r: Flat) -> tuple[PerExample, Flat, Logits]:
    """The margin at x + r, its gradient, and the logits."""

    def total(r: Flat) -> tuple[Array, tuple[PerExample, Logits]]:
        logits = problem.perturbed_logits(r)
        value = ahead(problem, logits)
        return value.sum(), (value, logits)

    gradient, (value, logits) = jax.grad(total, has_aux=True)(r)
    return value, finite(gradient), logits


def as_examples(examples: Any, bounds: Bounds) -> Flat | None:
    """Examples to start from as rows; None for none."""
    if examples is None:
        return None
    _validation.floating_leaves("examples", examples)
    _validation.batch(examples=examples)
    _validation.finite("examples", examples)
    for path, leaf in jax.tree_util.tree_leaves_with_path(examples):
        _validation.within("examples" + jax.tree_util.keystr(path), leaf, *bounds)
    return flatten_examples(jax.tree.map(jnp.asarray, examples))[0]


def require_like_x(examples: Flat | None, problem: Problem) -> None:
    """Examples, if any, with as many numbers as x."""
    if examples is not None and examples.shape[1] != problem.x.shape[1]:
        raise ValueError(
            f"examples must be like x, {problem.x.shape[1]} numbers each, got {examples.shape[1]}"
        )


def finished(
    problem: Problem, best: Best, gradients: Any, queries: Any, examples: Flat | None
) -> Search:
    """The search's result: started elsewhere where it found nothing, and brought back to the boundary."""
    require_like_x(examples, problem)
    searched = best.found
    best = jax.lax.cond(
        searched.all(), lambda: best, lambda: _where(searched, best, _fallback(problem, examples))
    )
    r, halvings = nearer(problem, best.r)
    asked = 0 if examples is None else len(examples)
    climbed = jnp.where(searched, 0, _DRAWS * (_CLIMB + 1))
    return Search(
        r,
        best.step,
        best.restart,
        gradients + climbed,
        queries + halvings + jnp.where(searched, 0, asked),
    )


def nearer(problem: Problem, r: Flat) -> tuple[Flat, Integer[Array, "batch"]]:
    """The part of each r that reaches the boundary, and how many points f was asked about. An r that never crosses comes back as it is."""
    stretched = lambda t: problem.clip_to_box((t[:, None] * r).astype(r.dtype))

    def beyond(t: PerExample) -> Bool[Array, "batch"]:
        logits = problem.perturbed_logits(stretched(t))
        # By more than f's own rounding: compiled anew it may round otherwise, and the point shall still be one.
        clear = 64 * jnp.finfo(r.dtype).eps * jnp.abs(logits).max(-1)
        return success(problem, logits) & (ahead(problem, logits) > clear)

    def wide(inner: PerExample, outer: PerExample) -> Bool[Array, "batch"]:
        return (outer - inner > _CLOSE * outer) & (outer > jnp.finfo(r.dtype).eps)

    def halve(
        bracket: tuple[PerExample, PerExample, Array],
    ) -> tuple[PerExample, PerExample, Array]:
        inner, outer, asked = bracket
        middle, halving = (inner + outer) / 2, wide(inner, outer)
        crossed = beyond(middle)
        return (
            jnp.where(halving & ~crossed, middle, inner),
            jnp.where(halving & crossed, middle, outer),
            asked + halving,
        )

    # Halving in 16 bits would stand still before the bracket is closed.
    whole = (r != 0).any(1).astype(jnp.promote_types(r.dtype, jnp.float32))
    # An end too near the boundary to be clear is moved past it.
    farther = (1 + _PAST) * whole
    end = jnp.where(beyond(farther) & ~beyond(whole), farther, whole)
    start = jnp.zeros_like(end), end, jnp.full(len(r), 2)
    _, outer, asked = jax.lax.while_loop(lambda bracket: wide(*bracket[:2]).any(), halve, start)
    return stretched(outer), asked


def _fallback(problem: Problem, examples: Flat | None) -> Best:
    given = (
        nothing(problem)
        if examples is None
        else _nearest(problem, examples.astype(problem.x.dtype))
    )
    return jax.lax.cond(
        given.found.all(), lambda: given, lambda: _where(given.found, given, _drawn(problem))
    )


def _nearest(problem: Problem, examples: Flat) -> Best:
    """The nearest of the examples that f does not read as x, or reads as the target."""
    said = problem.logits(examples)

    def compare(k: Array, best: Best) -> Best:
        logits = jnp.broadcast_to(said[k], (len(problem.x), said.shape[1]))
        return best.or_shorter(problem, examples[k] - problem.x, success(problem, logits), -1, -1)

    return jax.lax.fori_loop(0, len(examples), compare, nothing(problem))


def _drawn(problem: Problem) -> Best:
    """The shortest success among points drawn from the box and those met on the way up from them."""
    low, wide = problem.bounds[0], width(problem)

    def climb(draw: Array, best: Best) -> Best:
        keys = jax.vmap(jax.random.fold_in, (0, None))(problem.keys, draw)
        share = jax.vmap(lambda key: jax.random.uniform(key, problem.x.shape[1:], problem.x.dtype))(
            keys
        )
        point = low + wide * jnp.where(draw % 2, share > 0.5, share)

        def up(k: Array, carried: tuple[Flat, Best]) -> tuple[Flat, Best]:
            r, best = carried
            gradient, logits = _smooth_slope(problem, r)
            best = best.or_shorter(problem, r, success(problem, logits), -1, -1)
            stride = wide * 0.5 * 0.02 ** (k / _CLIMB)
            # Signs reach the corners of the box, the gradient itself what lies between them.
            along = jnp.where(
                draw % 4 < 2, jnp.sign(gradient), r.shape[1] ** 0.5 * norms.l2.ascent(gradient)
            )
            return problem.clip_to_box(r + stride.astype(r.dtype) * along), best

        return jax.lax.fori_loop(0, _CLIMB + 1, up, (problem.clip_to_box(point - problem.x), best))[
            1
        ]

    return jax.lax.fori_loop(0, _DRAWS, climb, nothing(problem))


def _smooth_slope(problem: Problem, r: Flat) -> tuple[Flat, Logits]:
    """The gradient of log p_target / (1 - p_target), or of minus that of the label, which has no kinks; and the logits."""

    def total(r: Flat) -> tuple[Array, Logits]:
        logits = problem.perturbed_logits(r)
        own = jax.nn.one_hot(problem.y, logits.shape[1], dtype=bool)
        ahead = jnp.where(own, logits, 0).sum(1) - jax.nn.logsumexp(
            jnp.where(own, -jnp.inf, logits), axis=1
        )
        return (ahead if problem.targeted else -ahead).sum(), logits

    gradient, logits = jax.grad(total, has_aux=True)(r)
    return finite(gradient), logits


def _where(condition: Bool[Array, "batch"], new: Any, old: Any) -> Any:
    pick: Callable[[Any, Array], Array] = lambda new, old: jnp.where(
        condition.reshape(-1, *[1] * (old.ndim - 1)), new, old
    )
    return jax.tree.map(pick, new, old)


def width(problem: Problem) -> float:
    """The box's."""
    low, high = problem.bounds
    return high - low


def number(value: float) -> np.ndarray:
    """A number as an array: what a search holds as one is no part of its code, and another value no other program."""
    return np.asarray(value)
