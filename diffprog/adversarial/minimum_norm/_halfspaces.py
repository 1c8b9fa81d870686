"""The nearest point of several half-spaces inside a box: a target must rise above every other class at once.

    min Σ c(t_i) + PRICE Σ e_j   such that   <g_j, d> + e_j >= need_j,   low <= d <= high,   |d_i| <= t_i,   e_j >= 0

    linf    one t for all, c(t) = t            l2    c(t) = t²/2            l1    c(t) = t

e_j is by how much a half-space is missed: a price above all multipliers of the problem without it makes it zero where there is a common
point, and where there is none what is missed is least. Every inequality has a slack s > 0 and a weight w > 0, its multiplier, and the
conditions of the optimum with s w = μ instead of 0 are solved by Newton's method while μ goes to 0, each step once foretold and once
corrected (Mehrotra). In them d_i and t_i meet only the weights of their own bounds, so the step is theirs through a division, and what is
left is one small system for the weights λ of the half-spaces:

    (G M Gᵀ + diag(s / λ)) Δλ = ...,       M = (the curvature of (d, t))⁻¹, a diagonal, for linf with one border

A step takes a few passes over G, and about ten steps suffice; in l1, the more the more coordinates there are, thirty for 10^4. For 10^5 the
steps end before: there d was up to 4 % too long.

Sources: S. Mehrotra, "On the implementation of a primal-dual interior point method", 1992; J. Nocedal and S. Wright, "Numerical
    optimization", 2006, chapters 14 and 16.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffprog.adversarial._base import Flat
from diffprog.adversarial.minimum_norm._halfspace_projection import nearest

_STEPS = 50
_PRICE = 1e3
_CLOSE = 1e-3  # the part of the length by which it may be too long
_FAR = 1e3  # what is farther away than so many of the lengths sought bounds nothing
_AHEAD = 0.95  # of the way to the first bound that is met

# Of low <= d, d <= high, d <= t and -t <= d: how each slack grows with d and with t.
_BY_D, _BY_T = (1, -1, -1, 1), (0, 0, 1, 1)

_Row = Float[Array, "n"]
_Spaces = Float[Array, "spaces n"]


class _Pairs(NamedTuple):
    """A number for each inequality: of each coordinate, and of each half-space the two that it and e >= 0 are."""

    bounds: Float[Array, "4 n"]
    spaces: Float[Array, "2 spaces"]


class _Point(NamedTuple):
    d: _Row
    t: Float[Array, "n_or_1"]
    slack: _Pairs
    weight: _Pairs

    @property
    def gap(self) -> Float[Array, ""]:
        """How much longer than the optimum this is, at most."""
        return jnp.vdot(self.slack.bounds, self.weight.bounds) + jnp.vdot(
            self.slack.spaces, self.weight.spaces
        )


class _Lengths(NamedTuple):
    """What differs from norm to norm.

    Attributes:
        total: the sum over all d_i that share a t.
        slope: c'.
        curve: c''.
        start: a first t for n coordinates; for l1 it is no less than l2's, since its few d_i that are not 0 are large.
        dual: the dual norm.
    """

    total: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    curve: float
    start: Callable[[int], float]
    dual: Callable[[Array], Array]


_LENGTHS = {
    "linf": _Lengths(
        lambda v: v.sum(-1, keepdims=True),
        jnp.ones_like,
        0,
        lambda n: 1.0,
        lambda g: jnp.abs(g).sum(-1),
    ),
    "l2": _Lengths(
        lambda v: v, lambda t: t, 1, lambda n: n**-0.5, lambda g: jnp.linalg.norm(g, axis=-1)
    ),
    "l1": _Lengths(lambda v: v, jnp.ones_like, 0, lambda n: n**-0.5, lambda g: jnp.abs(g).max(-1)),
}


def nearest_common(
    norm: str,
    g: Float[Array, "spaces batch n"],
    need: Float[Array, "spaces batch"],
    low: Flat,
    high: Flat,
) -> Flat:
    """The smallest d in the norm with every gain, to a part in 10^3; where no d of the box has them all, one that lacks little."""
    if len(g) == 1:
        return nearest(norm, g[0], need[0], low, high)
    given = g, need, jnp.minimum(low, 0), jnp.maximum(high, 0)
    kind = jnp.promote_types(
        jnp.result_type(*given), jnp.float32
    )  # the least that has a Cholesky factorisation
    solved = jax.vmap(functools.partial(_nearest, norm), in_axes=(1, 1, 0, 0))(
        *(array.astype(kind) for array in given)
    )
    return jnp.clip(solved.astype(g.dtype), low, high)


def _nearest(norm: str, g: _Spaces, need: Float[Array, "spaces"], low: _Row, high: _Row) -> _Row:
    """In units in which the longest way to one of them alone, were there no box, is 1."""
    steepness = _LENGTHS[norm].dual(g)
    usable = (steepness >= jnp.finfo(g.dtype).tiny) & jnp.isfinite(steepness)
    per = jnp.where(usable, 1 / jnp.where(usable, steepness, 1), 0)
    g = g * per[:, None]
    need = jnp.minimum(need * per, jnp.maximum(g * low, g * high).sum(1))
    longest = need.max()
    unit = jnp.where(longest > 0, longest, 1)
    d = _solve(
        _LENGTHS[norm],
        g,
        jnp.maximum(need / unit, -_FAR),
        jnp.maximum(low / unit, -_FAR),
        jnp.minimum(high / unit, _FAR),
    )
    return jnp.where(longest > 0, jnp.clip(unit * d, low, high), 0)


def _solve(
    lengths: _Lengths, g: _Spaces, need: Float[Array, "spaces"], low: _Row, high: _Row
) -> _Row:
    def bounds(d: _Row, t: Array) -> Float[Array, "4 n"]:
        return jnp.stack([d - low, high - d, t - d, t + d])

    def missed(point: _Point) -> _Pairs:
        """By how much the slacks are not those of the point."""
        e = point.slack.spaces[1]
        return _Pairs(
            point.slack.bounds - bounds(point.d, point.t),
            jnp.stack([point.slack.spaces[0] - (g @ point.d + e - need), 0 * e]),
        )

    def open(carried: tuple[Array, _Point, Bool[Array, ""]]) -> Bool[Array, ""]:
        k, point, sound = carried
        solved = (point.gap <= _CLOSE) & (jnp.abs(missed(point).spaces).max() <= _CLOSE / 10)
        return (k < _STEPS) & sound & ~solved

    def once(
        carried: tuple[Array, _Point, Bool[Array, ""]],
    ) -> tuple[Array, _Point, Bool[Array, ""]]:
        k, point, _ = carried
        further = _step(lengths, g, point, missed(point))
        sound = functools.reduce(
            jnp.logical_and, [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(further)]
        )
        return k + 1, jax.tree.map(functools.partial(jnp.where, sound), further, point), sound

    t = jnp.full(jnp.shape(lengths.total(low)), lengths.start(len(low)), g.dtype)
    inside = jnp.minimum(t, high - low) / 10
    d = jnp.clip(jnp.zeros_like(low), low + inside, high - inside)
    slack, share = bounds(d, t), 1 / len(need)
    level = jnp.full_like(need, share)
    spaces = jnp.stack([jnp.maximum(g @ d - need, level), jnp.full_like(need, 1 / _PRICE)])
    weight = _Pairs(
        t * lengths.slope(t) * len(t) / len(low) / 2 / slack, jnp.stack([level, _PRICE - level])
    )
    begun = jnp.int32(0), _Point(d, t, _Pairs(slack, spaces), weight), jnp.bool_(True)
    return jax.lax.while_loop(open, once, begun)[1].d


def _step(lengths: _Lengths, g: _Spaces, point: _Point, missed: _Pairs) -> _Point:
    """Newton's step towards s w = μ: first as if μ were 0, and how far that leads says which μ to go for."""
    direction = _newton(lengths, g, point, missed)
    count = sum(leaf.size for leaf in point.slack)
    towards = lambda wish: direction(
        jax.tree.map(lambda s, w: wish - s * w, point.slack, point.weight)
    )
    foretold = towards(0.0)
    share = jnp.clip(_along(lengths, point, foretold, 1.0).gap / point.gap, 0, 1)
    # An end of its own for μ: nearer to 0 the rounding of the system's large and small numbers would lead astray.
    wish = jnp.maximum(share**3 * point.gap, 0.3 * _CLOSE) / count
    bent = lambda s, w, ds, dw: wish - s * w - ds * dw
    step = direction(jax.tree.map(bent, point.slack, point.weight, foretold.slack, foretold.weight))
    return _along(lengths, point, step, _AHEAD)


def _newton(
    lengths: _Lengths, g: _Spaces, point: _Point, missed: _Pairs
) -> Callable[[_Pairs], _Point]:
    """The function from what s w lacks to the step that brings it and mends what is missed, to first order."""
    (s, (room, e)), (w, (pull, rest)) = point.slack, point.weight
    by_d, by_t = (jnp.asarray(sign, g.dtype)[:, None] for sign in (_BY_D, _BY_T))
    stiff = w / s
    own, cross = stiff.sum(0), stiff[3] - stiff[2]
    # Of t when d has given way; written without the difference of its large numbers.
    left = (
        lengths.total(
            ((stiff[2] + stiff[3]) * (stiff[0] + stiff[1]) + 4 * stiff[2] * stiff[3]) / own
        )
        + lengths.curve
    )
    by_bounds, by_length = (
        (by_d * w).sum(0) + pull @ g,
        lengths.total((by_t * w).sum(0)) - lengths.slope(point.t),
    )

    def give_way(force: _Row, on_t: Array) -> tuple[_Row, Array]:
        t = (on_t - lengths.total(cross * force / own)) / left
        return (force - cross * t) / own, t

    moved = jax.vmap(lambda row: give_way(row, jnp.zeros_like(point.t))[0])(g)
    solve = _inverse(g @ moved.T + jnp.diag(room / pull + e / rest))

    def direction(lack: _Pairs) -> _Point:
        (on_room, on_e), short = lack.spaces, missed.spaces[0]
        push = (lack.bounds + w * missed.bounds) / s
        force, on_t = (
            by_bounds + (by_d * push).sum(0),
            by_length + lengths.total((by_t * push).sum(0)),
        )
        d_pull = solve(on_room / pull + short - on_e / rest - g @ give_way(force, on_t)[0])
        d, t = give_way(force + d_pull @ g, on_t)
        d_slack = by_d * d + by_t * t - missed.bounds
        d_e = (on_e + e * d_pull) / rest
        spaces = _Pairs(d_slack, jnp.stack([g @ d + d_e - short, d_e]))
        return _Point(
            d, t, spaces, _Pairs((lack.bounds - w * d_slack) / s, jnp.stack([d_pull, -d_pull]))
        )

    return direction


def _inverse(matrix: Float[Array, "k k"]) -> Callable[[Float[Array, "k"]], Float[Array, "k"]]:
    """Of a symmetric matrix with numbers of many magnitudes: with a diagonal of ones, and a little more."""
    scale = jax.lax.rsqrt(jnp.diag(matrix))
    even = scale[:, None] * (matrix + matrix.T) / 2 * scale + 4 * jnp.finfo(
        matrix.dtype
    ).eps * jnp.eye(len(matrix), dtype=matrix.dtype)
    factor = jnp.linalg.cholesky(even)
    return lambda side: scale * jax.scipy.linalg.cho_solve((factor, True), scale * side)


def _along(lengths: _Lengths, point: _Point, step: _Point, part: float) -> _Point:
    """As far as slacks and weights stay positive, or a part of it; where c is curved, equally far with both."""

    def most(values: _Pairs, change: _Pairs) -> Array:
        reach = lambda v, dv: jnp.min(jnp.where(dv < 0, -v / jnp.where(dv < 0, dv, -1), jnp.inf))
        return jnp.minimum(part * functools.reduce(jnp.minimum, map(reach, values, change)), 1)

    first, second = most(point.slack, step.slack), most(point.weight, step.weight)
    if lengths.curve:
        first = second = jnp.minimum(first, second)
    go = lambda far: lambda v, dv: v + far * dv
    d, t, slack = jax.tree.map(go(first), point[:3], step[:3])
    return _Point(d, t, slack, jax.tree.map(go(second), point.weight, step.weight))
