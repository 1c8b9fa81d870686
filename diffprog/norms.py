"""Norms of perturbations per example: length, projection, steepest ascent and uniform samples.

For a perturbation r of one example (all axes but the first) and its ball {r : ||r|| <= ε}:

    norm    length        steepest ascent along g      dual norm of g
    linf    max |r_i|     sign(g)                      Σ |g_i|
    l2      sqrt(Σ r_i²)  g / ||g||                    sqrt(Σ g_i²)
    l1      Σ |r_i|       ± e_i at the largest |g_i|   max |g_i|

The Euclidean projection on the ball, or on its intersection with a box low <= x + r <= high, keeps
every sign of r. It remains to project the sizes a_i = |r_i|, where b_i >= 0 is the room, the
largest size that the box allows in the direction of r_i (∞ without a box). The solution has one
unknown number, s or d, for each example, and a_max is the largest a_i with b_i > 0:

    linf    min(a_i, b_i, ε)
    l2      min(s a_i, b_i)                   s in [0, 1] such that the length is ε
    l1      clip(d - (a_max - a_i), 0, b_i)   d >= 0 likewise; a_max - d is the soft threshold

The length grows with this number, so bisection finds which coordinates are clipped. Once these are
known, the number has a closed form. Values and derivatives are those of the closed form: exact
to rounding, and linear in the number of coordinates (there is no sort).
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

_Flat = Float[Array, "batch n"]
_PerExample = Float[Array, "batch 1"]
_Project = Callable[[_Flat, _Flat, _PerExample], _Flat]  # (sizes, room, epsilon) -> sizes


class Norm(NamedTuple):
    """A norm of perturbations as five pure functions; `linf`, `l2` and `l1` are the instances.

    Each works per example, over all axes but the first, keeps shape and dtype, and can be used
    inside `jax.jit`, `jax.vmap` and `jax.grad`. `r`, `x` and `gradient` are finite float arrays
    (batch, ...). `epsilon` is a radius >= 0, one for all examples or one for each (batch,), and may
    be traced. Any other argument raises TypeError or ValueError.

    Attributes:
        length: `length(r)`, the norms ||r||, shape (batch,). Its gradient at r = 0 is finite, and
            zero for l2.
        project: `project(r, epsilon)`, the Euclidean projection of r on {||r|| <= ε}. It returns a
            point of the ball unchanged.
        project_in_box: `project_in_box(r, x, epsilon, bounds=(0, 1))`, the Euclidean projection of
            r on {||r|| <= ε, low <= x + r <= high}, for x within the bounds. x + r, computed in
            floating point, satisfies the bounds exactly.
        ascent: `ascent(gradient)`, the d of length 1 that maximizes <d, gradient>; the maximum is
            the dual norm of the gradient. Zero where the gradient is zero; l1 takes the first of
            equally large entries.
        sample: `sample(key, shape, epsilon, dtype=None)`, a uniform sample of the ball for each
            example; `dtype` defaults to JAX's float.

    Sources: l1 ball, Duchi et al. 2008; with a box, Croce and Hein 2021 ("Mind the box"); uniform
    samples, Barthe et al. 2005.

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
    """Return the norm named "linf", "l2" or "l1".

    Raises:
        ValueError: any other name.

    >>> named("l2") is l2
    True
    """
    norms = {"linf": linf, "l2": l2, "l1": l1}
    _validation.choice("norm", norm, norms)
    return norms[norm]


def _sum(r: _Flat) -> _PerExample:
    return jnp.sum(r, axis=1, keepdims=True)


def _linf_length(r: _Flat) -> _PerExample:
    return jnp.max(jnp.abs(r), axis=1, keepdims=True)


def _l1_length(r: _Flat) -> _PerExample:
    return _sum(jnp.abs(r))


def _l2_length(r: _Flat) -> _PerExample:
    scale = _scale(r)
    squares = _sum(jnp.square(r / scale))
    # The inner `where` keeps the derivative of the square root at 0 out of the gradient.
    return jnp.where(squares == 0, 0, scale * jnp.sqrt(jnp.where(squares == 0, 1, squares)))


def _scale(r: _Flat) -> _PerExample:
    """Return max |r_i| per example, by which r is divided before it is squared.

    It is clipped so that the quotient neither overflows nor divides by zero.
    """
    tiny = jnp.finfo(r.dtype).tiny
    return jax.lax.stop_gradient(jnp.clip(_linf_length(r), tiny, 1 / tiny))


def _linf_ascent(gradient: _Flat) -> _Flat:
    return jnp.sign(gradient)


def _l2_ascent(gradient: _Flat) -> _Flat:
    scaled = gradient / _scale(gradient)
    return scaled / jnp.maximum(_l2_length(scaled), 1)


def _l1_ascent(gradient: _Flat) -> _Flat:
    largest = jnp.argmax(jnp.abs(gradient), axis=1)
    return jnp.sign(gradient) * jax.nn.one_hot(largest, gradient.shape[1], dtype=gradient.dtype)


def _linf_sample(key: Array, shape: tuple[int, int], dtype: Any) -> _Flat:
    return jax.random.uniform(key, shape, dtype, -1, 1)


def _l2_sample(key: Array, shape: tuple[int, int], dtype: Any) -> _Flat:
    # Barthe et al.: with z_i of density ∝ exp(-|z|^p) and w exponential, z / (Σ |z_i|^p + w)^(1/p)
    # is uniform in the lp ball.
    direction, depth = jax.random.split(key)
    normal = jax.random.normal(direction, shape, dtype) / math.sqrt(2)
    exponential = jax.random.exponential(depth, (shape[0], 1), dtype)
    return normal / jnp.sqrt(_sum(jnp.square(normal)) + exponential)


def _l1_sample(key: Array, shape: tuple[int, int], dtype: Any) -> _Flat:
    direction, depth = jax.random.split(key)
    laplace = jax.random.laplace(direction, shape, dtype)
    exponential = jax.random.exponential(depth, (shape[0], 1), dtype)
    return laplace / (_l1_length(laplace) + exponential)


def _bisect(
    fits: Callable[[_PerExample], Array], low: _PerExample, high: _PerExample
) -> _PerExample:
    """Return, per example, the largest t in low .. high with `fits(t)` true; bisects log t."""

    def halve(_: Any, bracket: tuple[_PerExample, _PerExample]) -> tuple[_PerExample, _PerExample]:
        low, high = bracket
        middle = jnp.sqrt(low) * jnp.sqrt(high)
        fit = fits(middle)
        return jnp.where(fit, middle, low), jnp.where(fit, high, middle)

    # About 8 halvings find the exponent, and one each the bits of the mantissa.
    steps = jnp.finfo(low.dtype).nmant + 8
    return jax.lax.stop_gradient(jax.lax.fori_loop(0, steps, halve, (low, high))[0])


def _linf_project(size: _Flat, room: _Flat, epsilon: _PerExample) -> _Flat:
    return jnp.minimum(jnp.minimum(size, room), epsilon)


def _l2_project(size: _Flat, room: _Flat, epsilon: _PerExample) -> _Flat:
    """Project the sizes |r_i| onto the intersection of the l2 ball of radius ε and a box.

    The box is 0 <= size_i <= room_i. The result is min(s size, room), where s in [0, 1] is such
    that its norm is ε. Requires ε > 0 and a norm of min(size, room) above ε.
    """
    fixed_size, fixed_room = jax.lax.stop_gradient((size, room))
    low = epsilon / jnp.maximum(_l2_length(fixed_size), epsilon)
    bisect = functools.partial(
        _bisect,
        lambda s: _l2_length(jnp.minimum(s * fixed_size, fixed_room)) <= epsilon,
        low,
        jnp.ones_like(low),
    )
    # If nothing is clipped, low is the solution.
    s = jax.lax.cond(jnp.any(low * fixed_size > fixed_room), bisect, lambda: low)
    # Closed form: the free coordinates fill the length that the clipped ones leave.
    free = s * size < room
    squares = jnp.square(jnp.minimum(s * size, room) / epsilon)
    remaining, moving = 1 - _sum(jnp.where(free, 0, squares)), _sum(jnp.where(free, squares, 0))
    solvable = (remaining > 0) & (moving > 0)
    stretch = jnp.sqrt(jnp.where(solvable, remaining, 1) / jnp.where(solvable, moving, 1))
    return jnp.minimum(stretch * s * size, room)


def _l1_project(size: _Flat, room: _Flat, epsilon: _PerExample) -> _Flat:
    """Project the sizes |r_i| onto the intersection of the l1 ball of radius ε and a box.

    The box is 0 <= size_i <= room_i. The result is clip(d - gap, 0, room), where d >= 0 is such
    that its norm is ε, and gap_i = max size - size_i, with the maximum over all i with room_i > 0.
    Requires ε > 0 and a norm of min(size, room) above ε.
    """
    top = jnp.max(jnp.where(room > 0, size, 0), axis=1, keepdims=True)
    # Differences of near numbers are exact, so a small d keeps its digits beside a large size.
    gap = top - size
    fixed_gap, fixed_room, fixed_top = jax.lax.stop_gradient((gap, room, top))
    d = _bisect(
        lambda d: _l1_length(jnp.clip(d - fixed_gap, 0, fixed_room)) <= epsilon,
        epsilon / size.shape[1],
        fixed_top,
    )
    free = (d - gap > 0) & (d - gap < room)
    remaining = epsilon - _sum(jnp.clip(d - gap, 0, room))
    return jnp.clip(d + remaining / jnp.maximum(_sum(free), 1) - gap, 0, room)


def _within_ball(length: Callable[[_Flat], _PerExample], project: _Project) -> _Project:
    """Extend `project`, a projection of points outside the ball, to all points and to ε = 0.

    A point inside the ball is returned unchanged, bit for bit; a projected point is in the ball
    also after rounding. `length` is the norm.
    """

    def project_any(size: _Flat, room: _Flat, epsilon: _PerExample) -> _Flat:
        clipped = jnp.minimum(size, room)
        radius = jnp.where(epsilon > 0, epsilon, 1)
        projected = jnp.minimum(project(size, room, radius), room)
        rescale = epsilon / jnp.maximum(length(projected), radius)
        return jnp.where(length(clipped) <= epsilon, clipped, rescale * projected)

    return project_any


def _room(r: _Flat, x: _Flat, low: Float[Array, ""], high: Float[Array, ""]) -> _Flat:
    """Return the room of each x_i: how far it can move in the direction of r_i inside the box.

    x_i moved by that distance is in the box also after rounding.
    """
    gap = jnp.where(r < 0, low, high) - x
    # Rounding of the difference can put x + gap one float outside of the box.
    outside = (x + gap < low) | (x + gap > high)
    return jnp.abs(jnp.where(outside, jnp.nextafter(gap, jnp.zeros_like(gap)), gap))


def _validate_batch(name: str, value: Any) -> Array:
    _validation.floating(name, value)
    _validation.batch(**{name: value})
    array = jnp.asarray(value)
    _validation.finite(name, array)
    return array


def _validate_radii(epsilon: Any, batch: int, dtype: Any) -> _PerExample:
    if isinstance(epsilon, bool | int | float):
        return jnp.full((batch, 1), _validation.number("epsilon", epsilon, low=0), dtype)
    _validation.floating("epsilon", epsilon, rank=(0, 1))
    if epsilon.ndim == 1 and epsilon.shape[0] != batch:
        raise ValueError(
            f"epsilon must be a number or have one value for each of {batch} examples, "
            f"got shape {list(epsilon.shape)}"
        )
    _validation.finite("epsilon", epsilon)
    _validation.within("epsilon", epsilon, 0, np.inf)
    radii = jnp.broadcast_to(jnp.asarray(epsilon, dtype), (batch,))[:, None]
    # A traced radius cannot raise: if negative, it gives NaN.
    return jnp.where(radii >= 0, radii, jnp.nan)


def _flatten(r: Float[Array, "batch ..."]) -> _Flat:
    return r.reshape(r.shape[0], -1)


def _norm(
    length: Callable[[_Flat], _PerExample],
    project_sizes: _Project,
    ascent: Callable[[_Flat], _Flat],
    sample_unit_ball: Callable[..., _Flat],
) -> Norm:
    """Build a `Norm` from four functions of arrays (batch, n); adds reshape, validation, jit."""
    jitted_length = jax.jit(lambda r: length(_flatten(r))[:, 0])
    jitted_ascent = jax.jit(lambda gradient: ascent(_flatten(gradient)).reshape(gradient.shape))

    @jax.jit
    def jitted_project(r: Array, x: Array, epsilon: _PerExample, low: Array, high: Array) -> Array:
        flat = _flatten(r)
        size = project_sizes(jnp.abs(flat), _room(flat, _flatten(x), low, high), epsilon)
        return jnp.where(flat < 0, -size, size).reshape(r.shape)

    @functools.partial(jax.jit, static_argnames=("shape", "dtype"))
    def jitted_sample(
        key: Array, epsilon: _PerExample, shape: tuple[int, ...], dtype: Any
    ) -> Array:
        flat = sample_unit_ball(key, (shape[0], math.prod(shape[1:])), dtype)
        return (epsilon * flat).reshape(shape)

    def project(r: Any, epsilon: Any) -> Array:
        r = _validate_batch("r", r)
        radii = _validate_radii(epsilon, r.shape[0], r.dtype)
        return jitted_project(r, jnp.zeros_like(r), radii, -jnp.inf, jnp.inf)

    def project_in_box(
        r: Any, x: Any, epsilon: Any, bounds: tuple[float, float] = (0.0, 1.0)
    ) -> Array:
        r, x = _validate_batch("r", r), _validate_batch("x", x)
        _validation.same_shape(r=r, x=x)
        if r.dtype != x.dtype:
            raise TypeError(f"r and x must share a dtype, got r: {r.dtype}, x: {x.dtype}")
        low, high = _validation.bounds("bounds", bounds)
        _validation.within("x", x, low, high)
        return jitted_project(r, x, _validate_radii(epsilon, r.shape[0], r.dtype), low, high)

    def sample(key: Array, shape: tuple[int, ...], epsilon: Any, dtype: Any = None) -> Array:
        sizes = _validation.integers("shape", shape, least=1)
        dtype = jnp.zeros((), dtype).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"dtype must be a float dtype, got {dtype}")
        return jitted_sample(key, _validate_radii(epsilon, sizes[0], dtype), sizes, dtype)

    return Norm(
        length=lambda r: jitted_length(_validate_batch("r", r)),
        project=project,
        project_in_box=project_in_box,
        ascent=lambda gradient: jitted_ascent(_validate_batch("gradient", gradient)),
        sample=sample,
    )


linf = _norm(_linf_length, _linf_project, _linf_ascent, _linf_sample)
l2 = _norm(_l2_length, _within_ball(_l2_length, _l2_project), _l2_ascent, _l2_sample)
l1 = _norm(_l1_length, _within_ball(_l1_length, _l1_project), _l1_ascent, _l1_sample)
