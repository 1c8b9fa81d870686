"""Projections of the origin onto half-spaces inside a box, used by the attacks that linearize.

    min ||d||   subject to   <g, d> >= gain,   low <= d <= high          (low <= 0 <= high)

The half-space has the normal g. Every coordinate d_i has the sign of g_i, and its size is limited
by the distance b_i to the bound on that side:

    linf    |d_i| = min(t, b_i)
    l2      |d_i| = min(t |g_i|, b_i)
    l1      |d_i| = b_i where |g_i| > τ,  a share of b_i where |g_i| = τ,  else 0

t and τ are such that <g, d> = gain. <g, d> is concave and piecewise linear in t. Newton's method
from t = 0 therefore never overshoots, and ends after a few pieces. The threshold τ is found by
bisection. Nothing is sorted.

For the projection onto the intersection of several half-spaces, note that every convex combination
of the constraints is a half-space that contains the intersection. The weights of the combination
are found by multiplicative updates, which increase the weights of violated constraints; the average
of the projections onto the combined half-spaces approaches the solution.

Source: F. Glover, "Surrogate constraint duality in mathematical programming", 1975; S. Arora,
E. Hazan and S. Kale, "The multiplicative weights update method", 2012.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffprog import norms
from diffprog.adversarial._base import Flat, PerExample

# The distance from a point with margin -m to a hyperplane with normal g is m / ||g||_dual.
DUAL_NORMS = {"linf": norms.l1, "l2": norms.l2, "l1": norms.linf}
_MAX_PIECES = 30
_WEIGHT_UPDATES, _WEIGHT_RATE, _MAX_SLACK = 60, 3.0, 1e3


def project_to_halfspace(norm: str, g: Flat, gain: PerExample, low: Flat, high: Flat) -> Flat:
    """Compute the smallest d in the box with <g, d> >= gain, or else the d with the largest <g, d>.

    Args:
        norm: "linf", "l2" or "l1".
        g: (batch, n), the normals of the half-spaces.
        gain: (batch,), lower bounds of <g, d>; where negative, d is 0.
        low: (batch, n), lower bounds of d, at most 0.
        high: (batch, n), upper bounds of d, at least 0.

    Returns:
        d: (batch, n).
    """
    size = jnp.abs(g)
    room = jnp.where(g > 0, high, -low)
    gain = jnp.clip(gain, 0, jnp.sum(size * jnp.where(size > 0, room, 0), axis=1))
    if norm == "l1":
        return jnp.sign(g) * _largest_slopes_first(size, room, gain)
    speed = jnp.sign(size) if norm == "linf" else size
    return jnp.sign(g) * _all_coordinates_together(size, speed, room, gain)


def project_to_intersection(
    norm: str,
    g: Float[Array, "halfspaces batch n"],
    gains: Float[Array, "halfspaces batch"],
    low: Flat,
    high: Flat,
) -> Flat:
    """Return approximately the smallest d in the box with <g_j, d> >= gain_j for all j.

    g has shape (halfspaces, batch, n), gains (halfspaces, batch); low <= d <= high is the box.
    Constraints are missed by about one part in a hundred. Where no d satisfies all of them, the
    result violates them by little on average.
    """
    if len(g) == 1:
        return project_to_halfspace(norm, g[0], gains[0], low, high)
    # In units of the distance to each hyperplane, limited to what the box can reach.
    slopes = jax.vmap(DUAL_NORMS[norm].length)(g)
    usable = (slopes >= jnp.finfo(g.dtype).tiny) & jnp.isfinite(slopes)
    scale = jnp.where(usable, 1 / jnp.where(usable, slopes, 1), 0)
    g = g * scale[..., None]
    gains = jnp.clip(
        gains * scale, jnp.minimum(g * low, g * high).sum(2), jnp.maximum(g * low, g * high).sum(2)
    )
    farthest = jnp.where(gains.max(0) > 0, gains.max(0), 1)

    def update(k: Array, carry: tuple[Array, Flat]) -> tuple[Array, Flat]:
        log_weights, total = carry
        weights = jax.nn.softmax(log_weights, axis=0)
        combined = (weights[..., None] * g).sum(0)
        d = project_to_halfspace(norm, combined, (weights * gains).sum(0), low, high)
        # The limit keeps at least one of the logarithmic weights finite.
        violation = jnp.maximum((gains - (g * d).sum(2)) / farthest, -_MAX_SLACK)
        rate = (_WEIGHT_RATE / jnp.sqrt(1.0 + k)).astype(g.dtype)
        # The first half of the iterates is still far from the solution and is not averaged.
        return log_weights + rate * violation, total + jnp.where(k < _WEIGHT_UPDATES // 2, 0, d)

    start = jnp.zeros_like(gains), jnp.zeros_like(low)
    total = jax.lax.fori_loop(0, _WEIGHT_UPDATES, update, start)[1]
    return total / (_WEIGHT_UPDATES - _WEIGHT_UPDATES // 2)


def _all_coordinates_together(size: Flat, speed: Flat, room: Flat, gain: PerExample) -> Flat:
    """Return d = min(t speed, room), with t found by Newton's method such that <size, d> = gain.

    It projects the origin onto the half-space in linf and l2: size = |g|, room is the largest |d_i|
    in the box, and speed is 1 (linf) or |g| (l2).
    """

    def newton(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        k, t, _ = carry
        inside = (t * speed < room) & (speed > 0)
        reached = jnp.sum(size * jnp.minimum(t * speed, room), axis=1, keepdims=True)
        slope = jnp.sum(jnp.where(inside, size * speed, 0), axis=1, keepdims=True)
        next_t = t + jnp.maximum(gain[:, None] - reached, 0) / jnp.where(slope > 0, slope, jnp.inf)
        return k + 1, next_t, (next_t != t).any()

    unfinished = lambda carry: (carry[0] < _MAX_PIECES) & carry[2]
    start = jnp.int32(0), jnp.zeros_like(gain)[:, None], jnp.bool_(True)
    t = jax.lax.while_loop(unfinished, newton, start)[1]
    return jnp.minimum(t * speed, room)


def _largest_slopes_first(size: Flat, room: Flat, gain: PerExample) -> Flat:
    """Return the d with <size, d> = gain that is `room` where size > τ and 0 where size < τ.

    It projects the origin onto the half-space in l1: size = |g|, and room is the largest |d_i| in
    the box. Where size equals the threshold τ, d is a common share of the room.
    """

    def reached(selected: Array) -> PerExample:
        return jnp.sum(jnp.where(selected, size * room, 0), axis=1)

    def halve(_: Array, bracket: tuple[PerExample, PerExample]) -> tuple[PerExample, PerExample]:
        low, high = bracket
        middle = jnp.sqrt(low) * jnp.sqrt(high)
        enough = reached(size > middle[:, None]) >= gain
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    top = size.max(axis=1)
    info = jnp.finfo(size.dtype)
    low, high = jax.lax.fori_loop(0, info.nmant + 8, halve, (top * info.eps, top))
    full = size > high[:, None]
    last = (size > low[:, None]) & ~full
    share = (gain - reached(full)) / jnp.where(reached(last) > 0, reached(last), jnp.inf)
    return jnp.where(full, room, jnp.where(last, jnp.clip(share, 0, 1)[:, None] * room, 0))
