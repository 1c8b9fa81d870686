"""Norms per example: how long a perturbation is, the nearest one that is allowed, the steepest one, a random one.

For a perturbation r of one example (all axes but the first) and its ball {r : ||r|| <= ε}:

    norm    length        steepest ascent along g    dual norm of g
    linf    max |r_i|     sign(g)                    sum |g_i|
    l2      sqrt(Σ r_i²)  g / ||g||                  sqrt(Σ g_i²)
    l1      Σ |r_i|       ± e_i at the largest |g_i|  max |g_i|

The point of the ball nearest to r, in the Euclidean sense, with or without a box low <= x + r <= high around it, keeps every sign of r.
What remains is a problem of sizes a_i = |r_i| >= 0 with a room b_i >= 0 on r_i's side of the box (no box: b_i = ∞), and one dual variable:

    linf    min(a_i, b_i, ε)
    l2      min(s a_i, b_i)             s in [0, 1] such that the length is ε
    l1      clip(d - (a_max - a_i), 0, b_i)   d >= 0, the same; a_max - d is the soft threshold

Length grows with the dual variable, so bisection finds which coordinates are cut; on those that are free the variable then has a closed
form. Value and derivative are that closed form's: exact to rounding, at a cost linear in the number of coordinates (no sort).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffprog import _validation

_Rows = Float[Array, "batch n"]
_Column = Float[Array, "batch 1"]


class Norm(NamedTuple):
    """One norm, as five pure functions; `linf`, `l2` and `l1` are the three there are.

    Each works per example, over all axes but the first, keeps shape and dtype, and can be called inside `jax.jit`, `jax.vmap` and
    `jax.grad`. `r`, `x` and `gradient` are finite float arrays (batch, ...); `epsilon` is a radius >= 0, one for all or one for each
    example (batch,), and may be traced. Each raises TypeError or ValueError for anything else, before it computes.

    Attributes:
        length: `length(r)`, the norms ||r||, shape (batch,). Its gradient at r = 0 is finite (for l2: zero).
        project: `project(r, epsilon)`, the point of {||r|| <= ε} nearest to r in the Euclidean sense. A point inside comes back as it is.
        project_in_box: `project_in_box(r, x, epsilon, bounds=(0, 1))`, the point nearest to r that satisfies both ||r|| <= ε and
            low <= x + r <= high; x itself must lie in the bounds. In the arrays returned, x + r never leaves the box, not by one rounding.
        ascent: `ascent(gradient)`, the d of length 1 with the largest <d, gradient>, which then is the dual norm of the gradient.
            Zero where the gradient is zero; l1 takes the first of equally large entries.
        sample: `sample(key, shape, epsilon, dtype=None)`, a point drawn uniformly from the ball for each example; `dtype` defaults to
            JAX's float.

    Sources: the l1 ball, Duchi et al. 2008; with a box, Croce and Hein 2021 ("Mind the box"); uniform points, Barthe et al. 2005.

    >>> import jax.numpy as jnp
    >>> print(l2.project(jnp.array([[3.0, 4.0], [0.3, 0.4]]), 1.0))
    [[0.6 0.8]
     [0.3 0.4]]
    >>> print(l1.project_in_box(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 0.5]]), 1.0))
    [[0.5 0.5]]
    """

    length: Callable[[Float[Array, "batch ..."]], Float[Array, "batch"]]
    project: Callable[..., Float[Array, "batch ..."]]
    project_in_box: Callable[..., Float[Array, "batch ..."]]
    ascent: Callable[[Float[Array, "batch ..."]], Float[Array, "batch ..."]]
    sample: Callable[..., Float[Array, "batch ..."]]


def named(norm: str) -> Norm:
    """The norm of that name.

    Args:
        norm: "linf", "l2" or "l1".

    Raises:
        ValueError: any other name.

    >>> named("l2") is l2
    True
    """
    norms = {"linf": linf, "l2": l2, "l1": l1}
    _validation.choice("norm", norm, norms)
    return norms[norm]


def _sum(rows: _Rows) -> _Column:
    return jnp.sum(rows, axis=1, keepdims=True)


def _linf_length(rows: _Rows) -> _Column:
    return jnp.max(jnp.abs(rows), axis=1, keepdims=True)


def _l1_length(rows: _Rows) -> _Column:
    return _sum(jnp.abs(rows))


def _unit(rows: _Rows) -> _Column:
    """The largest size, or the nearest number that can be divided by: measured in it, no square under- or overflows."""
    tiny = jnp.finfo(rows.dtype).tiny
    return jax.lax.stop_gradient(jnp.clip(_linf_length(rows), tiny, 1 / tiny))


def _l2_length(rows: _Rows) -> _Column:
    unit = _unit(rows)
    squares = _sum(jnp.square(rows / unit))
    return jnp.where(
        squares == 0, 0, unit * jnp.sqrt(jnp.where(squares == 0, 1, squares))
    )  # no derivative of the root at 0


def _linf_ascent(rows: _Rows) -> _Rows:
    return jnp.sign(rows)


def _l2_ascent(rows: _Rows) -> _Rows:
    scaled = rows / _unit(rows)
    return scaled / jnp.maximum(_l2_length(scaled), 1)


def _l1_ascent(rows: _Rows) -> _Rows:
    return jnp.sign(rows) * jax.nn.one_hot(
        jnp.argmax(jnp.abs(rows), axis=1), rows.shape[1], dtype=rows.dtype
    )


def _linf_draw(key: Array, shape: tuple[int, int], dtype: Any) -> _Rows:
    return jax.random.uniform(key, shape, dtype, -1, 1)


def _l2_draw(key: Array, shape: tuple[int, int], dtype: Any) -> _Rows:
    direction, depth = jax.random.split(key)
    normal = jax.random.normal(direction, shape, dtype) / math.sqrt(2)
    return normal / jnp.sqrt(
        _sum(jnp.square(normal)) + jax.random.exponential(depth, (shape[0], 1), dtype)
    )


def _l1_draw(key: Array, shape: tuple[int, int], dtype: Any) -> _Rows:
    direction, depth = jax.random.split(key)
    laplace = jax.random.laplace(direction, shape, dtype)
    return laplace / (_l1_length(laplace) + jax.random.exponential(depth, (shape[0], 1), dtype))


def _bisect(fits: Callable[[_Column], Array], low: _Column, high: _Column) -> _Column:
    """The largest t in low .. high that fits, to rounding; halved on the logarithm, since t may span many decades."""

    def halve(_: Any, bracket: tuple[_Column, _Column]) -> tuple[_Column, _Column]:
        low, high = bracket
        middle = jnp.sqrt(low) * jnp.sqrt(high)
        fit = fits(middle)
        return jnp.where(fit, middle, low), jnp.where(fit, high, middle)

    steps = jnp.finfo(low.dtype).nmant + 8
    return jax.lax.stop_gradient(jax.lax.fori_loop(0, steps, halve, (low, high))[0])


def _linf_shrink(size: _Rows, room: _Rows, epsilon: _Column) -> _Rows:
    return jnp.minimum(jnp.minimum(size, room), epsilon)


def _l2_shrink(size: _Rows, room: _Rows, epsilon: _Column) -> _Rows:
    """min(s size, room) of length epsilon > 0; min(size, room) is longer."""
    known, edge = jax.lax.stop_gradient((size, room))
    low = epsilon / jnp.maximum(_l2_length(known), epsilon)
    bisected = functools.partial(
        _bisect,
        lambda s: _l2_length(jnp.minimum(s * known, edge)) <= epsilon,
        low,
        jnp.ones_like(low),
    )
    s = jax.lax.cond(
        jnp.any(low * known > edge), bisected, lambda: low
    )  # where nothing is cut, low is the answer
    free = s * size < room
    squares = jnp.square(jnp.minimum(s * size, room) / epsilon)
    rest, moving = 1 - _sum(jnp.where(free, 0, squares)), _sum(jnp.where(free, squares, 0))
    solvable = (rest > 0) & (moving > 0)
    stretch = jnp.sqrt(jnp.where(solvable, rest, 1) / jnp.where(solvable, moving, 1))
    return jnp.minimum(stretch * s * size, room)


def _l1_shrink(size: _Rows, room: _Rows, epsilon: _Column) -> _Rows:
    """clip(d - gap, 0, room) of length epsilon > 0; min(size, room) is longer."""
    top = jnp.max(jnp.where(room > 0, size, 0), axis=1, keepdims=True)
    gap = (
        top - size
    )  # a difference of near numbers is exact, so a small d keeps its digits beside a large size
    known, edge, most = jax.lax.stop_gradient((gap, room, top))
    d = _bisect(
        lambda d: _l1_length(jnp.clip(d - known, 0, edge)) <= epsilon, epsilon / size.shape[1], most
    )
    free = (d - gap > 0) & (d - gap < room)
    rest = epsilon - _sum(jnp.clip(d - gap, 0, room))
    return jnp.clip(d + rest / jnp.maximum(_sum(free), 1) - gap, 0, room)


_Shrink = Callable[[_Rows, _Rows, _Column], _Rows]


def _into_ball(length: Callable[[_Rows], _Column], shrink: _Shrink) -> _Shrink:
    """`shrink` also for what is inside already, which stays as it is bit for bit, for epsilon 0, and with no rounding beyond the ball."""

    def into(size: _Rows, room: _Rows, epsilon: _Column) -> _Rows:
        cut = jnp.minimum(size, room)
        radius = jnp.where(epsilon > 0, epsilon, 1)
        shrunk = jnp.minimum(shrink(size, room, radius), room)
        back = epsilon / jnp.maximum(length(shrunk), radius)
        return jnp.where(length(cut) <= epsilon, cut, back * shrunk)

    return into


def _room(r: _Rows, x: _Rows, low: Float[Array, ""], high: Float[Array, ""]) -> _Rows:
    """How far x may move towards the side of r, such that the rounded sum still lies in the box."""
    gap = jnp.where(r < 0, low, high) - x
    outside = (x + gap < low) | (x + gap > high)
    return jnp.abs(jnp.where(outside, jnp.nextafter(gap, jnp.zeros_like(gap)), gap))


def _checked(name: str, value: Any) -> Array:
    _validation.floating(name, value)
    _validation.batch(**{name: value})
    given = jnp.asarray(value)
    _validation.finite(name, given)
    return given


def _radii(epsilon: Any, batch: int, dtype: Any) -> _Column:
    if isinstance(epsilon, bool | int | float):
        return jnp.full((batch, 1), _validation.number("epsilon", epsilon, low=0), dtype)
    _validation.floating("epsilon", epsilon, rank=(0, 1))
    if epsilon.ndim == 1 and epsilon.shape[0] != batch:
        raise ValueError(
            f"epsilon must be a number or have one value for each of {batch} examples, got shape {list(epsilon.shape)}"
        )
    _validation.finite("epsilon", epsilon)
    _validation.within("epsilon", epsilon, 0, np.inf)
    radii = jnp.broadcast_to(jnp.asarray(epsilon, dtype), (batch,))[:, None]
    return jnp.where(
        radii >= 0, radii, jnp.nan
    )  # for a radius that is traced, and so could not be refused


def _rows(r: Float[Array, "batch ..."]) -> _Rows:
    return r.reshape(r.shape[0], -1)


def _norm(
    length: Callable[[_Rows], _Column],
    shrink: _Shrink,
    ascent: Callable[[_Rows], _Rows],
    draw: Callable[..., _Rows],
) -> Norm:
    """The five functions of a norm from its four formulas on rows: checked where they are called, compiled behind that."""
    measured = jax.jit(lambda r: length(_rows(r))[:, 0])
    ascended = jax.jit(lambda gradient: ascent(_rows(gradient)).reshape(gradient.shape))

    @jax.jit
    def nearest(r: Array, x: Array, epsilon: _Column, low: Array, high: Array) -> Array:
        rows = _rows(r)
        size = shrink(jnp.abs(rows), _room(rows, _rows(x), low, high), epsilon)
        return jnp.where(rows < 0, -size, size).reshape(r.shape)

    @functools.partial(jax.jit, static_argnames=("shape", "dtype"))
    def drawn(key: Array, epsilon: _Column, shape: tuple[int, ...], dtype: Any) -> Array:
        return (epsilon * draw(key, (shape[0], math.prod(shape[1:])), dtype)).reshape(shape)

    def project(r: Any, epsilon: Any) -> Array:
        given = _checked("r", r)
        return nearest(
            given,
            jnp.zeros_like(given),
            _radii(epsilon, given.shape[0], given.dtype),
            -jnp.inf,
            jnp.inf,
        )

    def project_in_box(
        r: Any, x: Any, epsilon: Any, bounds: tuple[float, float] = (0.0, 1.0)
    ) -> Array:
        given, centre = _checked("r", r), _checked("x", x)
        _validation.same_shape(r=given, x=centre)
        if given.dtype != centre.dtype:
            raise TypeError(f"r and x must share a dtype, got r: {given.dtype}, x: {centre.dtype}")
        low, high = _validation.bounds("bounds", bounds)
        _validation.within("x", centre, low, high)
        return nearest(given, centre, _radii(epsilon, given.shape[0], given.dtype), low, high)

    def sample(key: Array, shape: tuple[int, ...], epsilon: Any, dtype: Any = None) -> Array:
        sizes = tuple(
            _validation.integer(f"shape[{axis}]", size, low=1) for axis, size in enumerate(shape)
        )
        if not sizes:
            raise ValueError("shape must have a leading axis of examples, got ()")
        kind = jnp.zeros((), dtype).dtype
        if not jnp.issubdtype(kind, jnp.floating):
            raise TypeError(f"dtype must be a float dtype, got {kind}")
        return drawn(key, _radii(epsilon, sizes[0], kind), sizes, kind)

    return Norm(
        length=lambda r: measured(_checked("r", r)),
        project=project,
        project_in_box=project_in_box,
        ascent=lambda gradient: ascended(_checked("gradient", gradient)),
        sample=sample,
    )


linf = _norm(_linf_length, _linf_shrink, _linf_ascent, _linf_draw)
l2 = _norm(_l2_length, _into_ball(_l2_length, _l2_shrink), _l2_ascent, _l2_draw)
l1 = _norm(_l1_length, _into_ball(_l1_length, _l1_shrink), _l1_ascent, _l1_draw)
