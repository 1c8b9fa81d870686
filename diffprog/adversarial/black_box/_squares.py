"""The squares of the Square attack: what a proposal changes, and how many proposals of one size there are.

What the square holds is extreme, since the most harmful perturbations of a ball lie on its border. With linf every channel of it becomes
+ε or -ε. With l2 and l1, r spends all its length: a second square of the same size is emptied, and what is then left of ε goes into the
first, along

    r there / ||r there|| + h / ||h||,     h = +1 in one half of the square and -1 in the other

(On digits, flat halves did as well as the paper's, which fall off from their middle, and with l2 a least side of two better than its
three.) Examples that are not images, arrays of shape (H, W, C), count as one row of numbers, with intervals for squares. A square is a
mask, so every side is one program.

Sources: as for `_square`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffprog import norms
from diffprog.adversarial._base import Flat, PerExample, Problem

Image = Float[Array, "height width channels"]
Mask = Bool[Array, "height width 1"]
Proposal = Callable[[Problem, jax.Array, Flat, Array], Flat]


def frame_of(problem: Problem) -> tuple[int, int, int]:
    """Height, width and channels of an image; of what is no image, one row of numbers."""
    height, width, channels = (
        problem.shape if len(problem.shape) == 3 else (1, problem.x.shape[1], 1)
    )
    return height, width, channels


def side_of(frame: tuple[int, int, int], covered: Array, least: int) -> Array:
    """The side of a square that covers this share of the frame; the length of an interval."""
    height, width, _ = frame
    return jnp.maximum(jnp.round((covered * height * width) ** (0.5 if height > 1 else 1)), least)


def draws_of_all(frame: tuple[int, int, int], side: Array) -> Array:
    """N (ln N + 5): after so many draws, each square with a chance of 1 / N at least, the chance that one was never drawn is at most e^-5.

    Of one channel there is one square at each place, since a colour that is there already becomes the other one.
    """
    height, width, channels = frame
    places = (height - jnp.minimum(side, height) + 1) * (width - jnp.minimum(side, width) + 1)
    squares = places * (jnp.exp2(float(channels)) if channels > 1 else 1.0)
    return squares * (jnp.log(squares) + 5)


def _signs(drawn: Array) -> Array:
    return jnp.where(drawn < 0.5, -1, 1)


def stripes(problem: Problem, keys: jax.Array) -> Flat:
    """Where a search starts: vertical stripes, one pixel wide, of +ε or -ε; scaled into the ball."""
    height, width, channels = frame_of(problem)
    signs = jax.vmap(lambda key: jax.random.rademacher(key, (width, channels), problem.x.dtype))(
        keys
    )
    whole = jnp.broadcast_to(signs[:, None], (len(signs), height, width, channels)).reshape(
        problem.x.shape
    )
    return _within(problem, whole * (problem.epsilon / problem.norm.length(whole))[:, None])


def _within(problem: Problem, r: Flat) -> Flat:
    """r cut to the box, then scaled to the ball if a rounding has led out of it."""
    cut = problem.clip_to_box(r)
    length = problem.norm.length(cut)
    inside = length <= problem.epsilon
    return jnp.where(
        inside[:, None], cut, cut * (problem.epsilon / jnp.where(inside, 1, length))[:, None]
    )


def _window(frame: tuple[int, int, int], side: Array, place: Array) -> tuple[Mask, Array, Array]:
    """A square at a place drawn from 0 .. 1, as a mask; and how far each pixel lies in it, from 0 to 1, down and right."""
    height, width, _ = frame
    down, right = jnp.minimum(side, height), jnp.minimum(side, width)
    row = jnp.arange(height)[:, None, None] - jnp.floor(place[0] * (height - down + 1))
    column = jnp.arange(width)[None, :, None] - jnp.floor(place[1] * (width - right + 1))
    mask = (row >= 0) & (row < down) & (column >= 0) & (column < right)
    return mask, (row + 0.5) / down, (column + 0.5) / right


def _linf_proposal(problem: Problem, keys: jax.Array, r: Flat, covered: Array) -> Flat:
    """A square of +ε or -ε in each channel; of the opposite sign, where it holds that already."""
    frame = frame_of(problem)
    side = side_of(frame, covered, 1)

    def painted(key: jax.Array) -> tuple[Image, Image]:
        drawn = jax.random.uniform(key, (2 + frame[2],))
        mask = jnp.broadcast_to(_window(frame, side, drawn)[0], frame)
        return mask, jnp.broadcast_to(_signs(drawn[2:]), frame)

    mask, signs = (part.reshape(r.shape) for part in jax.vmap(painted)(keys))
    colour = signs * problem.epsilon[:, None]
    ahead, against = (problem.project(jnp.where(mask, content, r)) for content in (colour, -colour))
    return jnp.where((ahead == r).all(1, keepdims=True), against, ahead)


def _spending(left: Callable[[PerExample, PerExample], PerExample], least: int) -> Proposal:
    """A square, of at least this side, filled with what another had and what the ball has left."""

    def propose(problem: Problem, keys: jax.Array, r: Flat, covered: Array) -> Flat:
        frame = frame_of(problem)
        drawn = jax.vmap(functools.partial(_two_windows, frame, side_of(frame, covered, least)))(
            keys
        )
        halves, filled, emptied = (part.reshape(r.shape) for part in drawn)
        rest = jnp.where(filled | emptied, 0, r)
        content = _unit(problem.norm, jnp.where(filled, r, 0)) + _unit(
            problem.norm, halves.astype(r.dtype)
        )
        budget = left(problem.epsilon, jnp.minimum(problem.norm.length(rest), problem.epsilon))
        return _within(problem, rest + budget[:, None] * _unit(problem.norm, content))

    return propose


def _two_windows(
    frame: tuple[int, int, int], side: Array, key: jax.Array
) -> tuple[Image, Image, Image]:
    """What goes into the one, h; the one and the other as masks."""
    drawn = jax.random.uniform(key, (5 + frame[2],))
    filled, down, right = _window(frame, side, drawn[0:2])
    emptied = _window(frame, side, drawn[2:4])[0]
    halves = jnp.where(jnp.where(drawn[4] < 0.5, down, right) < 0.5, -1, 1)
    return (
        jnp.where(filled, halves, 0) * _signs(drawn[5:]),
        jnp.broadcast_to(filled, frame),
        jnp.broadcast_to(emptied, frame),
    )


def _unit(norm: norms.Norm, rows: Flat) -> Flat:
    """Flat of length 1; those of zeros stay."""
    length = norm.length(rows)
    return rows / jnp.where(length > 0, length, 1)[:, None]


PROPOSALS: dict[str, Proposal] = {
    "linf": _linf_proposal,
    "l2": _spending(lambda whole, part: jnp.sqrt((whole + part) * (whole - part)), least=2),
    "l1": _spending(lambda whole, part: whole - part, least=1),
}
