"""The nearest point of a half-space inside a box: the closed form under attacks that take the boundary for flat.

    min ||d||   such that   <g, d> >= need,   low <= d <= high          (low <= 0 <= high)

Each coordinate moves along sign(g_i) and has a room b_i on that side. Of all moves of one size the best gain most for their length:

    linf    |d_i| = min(t, b_i)             gain rises in t by the |g_i| of those not yet at the border of the box
    l2      |d_i| = min(t |g_i|, b_i)       ... by their g_i²
    l1      |d_i| = b_i where |g_i| > τ, a share of b_i where |g_i| = τ, else 0

The gain is concave and piecewise linear in t: Newton's method from t = 0 never passes the solution and meets it after a few pieces. τ is
found by halving. No sort.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffprog.adversarial._base import Flat, PerExample

_PIECES = 30


def nearest(norm: str, g: Flat, need: PerExample, low: Flat, high: Flat) -> Flat:
    """The smallest d in the norm; where no d of the box has the gain, the one that has most."""
    size = jnp.abs(g)
    room = jnp.where(g > 0, high, -low)
    most = jnp.sum(size * jnp.where(size > 0, room, 0), axis=1)
    wish = jnp.clip(need, 0, most)
    moved = (
        _whole_then_part(size, room, wish)
        if norm == "l1"
        else _together(size, jnp.sign(size) if norm == "linf" else size, room, wish)
    )
    return jnp.sign(g) * moved


def _together(size: Flat, pace: Flat, room: Flat, need: PerExample) -> Flat:
    """min(t pace, room) with the t at which the gain is what is needed."""

    def piece(carried: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        k, t, _ = carried
        moving = (t * pace < room) & (pace > 0)
        gain = jnp.sum(size * jnp.minimum(t * pace, room), axis=1, keepdims=True)
        rise = jnp.sum(jnp.where(moving, size * pace, 0), axis=1, keepdims=True)
        further = t + jnp.maximum(need[:, None] - gain, 0) / jnp.where(rise > 0, rise, jnp.inf)
        return k + 1, further, (further != t).any()

    moves = lambda carried: (carried[0] < _PIECES) & carried[2]
    t = jax.lax.while_loop(
        moves, piece, (jnp.int32(0), jnp.zeros_like(need)[:, None], jnp.bool_(True))
    )[1]
    return jnp.minimum(t * pace, room)


def _whole_then_part(size: Flat, room: Flat, need: PerExample) -> Flat:
    """The largest gains first, and of the last as much as is still needed."""

    def gain(above: Array) -> PerExample:
        return jnp.sum(jnp.where(above, size * room, 0), axis=1)

    def halve(_: Array, bracket: tuple[PerExample, PerExample]) -> tuple[PerExample, PerExample]:
        low, high = bracket
        middle = jnp.sqrt(low) * jnp.sqrt(high)
        enough = gain(size > middle[:, None]) >= need
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    top = size.max(axis=1)
    info = jnp.finfo(size.dtype)
    low, high = jax.lax.fori_loop(0, info.nmant + 8, halve, (top * info.eps, top))
    whole = size > high[:, None]
    last = (size > low[:, None]) & ~whole
    part = (need - gain(whole)) / jnp.where(gain(last) > 0, gain(last), jnp.inf)
    return jnp.where(whole, room, jnp.where(last, jnp.clip(part, 0, 1)[:, None] * room, 0))
