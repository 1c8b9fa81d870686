"""Square attack: random search by squares of one colour. It asks for logits, never for a gradient.

    r'      = r with another content in a square of side s_k, at a place drawn uniformly
    r_{k+1} = r' if loss(x + r') > loss(x + r) or f is fooled at x + r', else r

What the square holds is extreme, since the most harmful perturbations of a ball lie on its border. With linf every channel of it becomes
+ε or -ε. With l2 and l1, r spends all its length: a second square of the same size is emptied, and what is then left of ε goes into the
first, along

    r there / ||r there|| + h / ||h||,     h = +1 in one half of the square and -1 in the other

The share p_k of the image that a square covers is halved nine times on the way: coarse changes first, then single pixels; with l2 two by
two, since no pixel by itself can carry an even share of the length. (On digits, flat halves did as well as the paper's, which fall off from
their middle, and two by two better than its least side, three.) Examples that are not images, arrays of shape (H, W, C), count as one row
of numbers, with intervals for squares. A square is a mask, so every side is one program.

Sources: M. Andriushchenko, F. Croce, N. Flammarion and M. Hein, "Square attack: a query-efficient black-box adversarial attack via random
search", 2020; the l1 ball, F. Croce and M. Hein, "Mind the box", 2021.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from diffprog import norms, require
from diffprog.adversarial._attack import Attack, Bounds, Column, Problem, Rows, Search, radii, searching
from diffprog.adversarial._criterion import Loss, wanted
from diffprog.adversarial._gradient import named_loss

Image = Float[Array, "height width channels"]
Mask = Bool[Array, "height width 1"]
Proposal = Callable[[Problem, jax.Array, Rows, Array], Rows]

# Where p is halved, as shares of the queries: those of the paper, which states them for 10,000 queries.
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def square(
    *,
    norm: str = "linf",
    epsilon: Any = 0.1,
    queries: int = 5000,
    p: float = 0.8,
    loss: str | Loss = "margin",
    restarts: int = 1,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
) -> Attack:
    """Square attack: r' replaces r where the loss of x + r' is larger; r' differs from r in a random square.

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: the radius, one for all or one for each example.
        queries: how many values of f each restart may ask for, at least 1; an example that is found asks no more. 5000 is the paper's.
        p: the share of the image that the first squares cover, in 0 .. 1; 0.8 is what the attack has in AutoAttack.
        loss: "margin", "cross_entropy", "dlr", or a function (logits, y, targeted) -> (batch,) that grows towards what is wanted.
        restarts: how many searches, each with its own draws, for the examples that are not found yet.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Source: Andriushchenko, Croce, Flammarion and Hein 2020.

    >>> attack = square(epsilon=0.3, queries=20)
    >>> print(attack(lambda x: x @ jnp.eye(2), jnp.array([[0.7, 0.4]]), jnp.array([0]), key=jax.random.key(0)).success)
    [ True]
    """
    require.choice("norm", norm, _PROPOSALS)
    radii(epsilon, None, jnp.float32)
    propose, value = _PROPOSALS[norm], named_loss(loss)
    allowed, runs = (jnp.int32(require.integer(*named, low=1)) for named in (("queries", queries), ("restarts", restarts)))
    share = jnp.float32(require.number("p", p, above=0, high=1))

    def search(problem: Problem) -> Search:
        def offered(kept: _Kept, r: Rows, query: Array, restart: Array) -> _Kept:
            logits = problem.seen(r)
            loss = value(logits, problem.y, problem.targeted)
            return kept.or_else(r, loss, wanted(logits, problem.y, problem.targeted), query, restart)

        def climb(restart: Array, best: _Kept) -> _Kept:
            keys = jax.vmap(jax.random.fold_in, (0, None))(problem.keys, restart)
            fresh = best._replace(loss=jnp.full_like(best.loss, -jnp.inf))
            first = offered(fresh, _stripes(problem, keys), jnp.int32(0), restart)

            def ask(query: Array, kept: _Kept) -> _Kept:
                own = jax.vmap(jax.random.fold_in, (0, None))(keys, query)
                covered = share * 0.5 ** (query > allowed * jnp.array(_HALVINGS)).sum()
                return offered(kept, propose(problem, own, kept.r, covered), query, restart)

            return _until_all(lambda kept: kept.found, ask, first, jnp.int32(1), allowed).at_least(best)

        none = jnp.zeros_like(problem.y)
        nothing = _Kept(jnp.zeros_like(problem.x), jnp.full_like(problem.epsilon, -jnp.inf), none > 0, none - 1, none, none)
        kept = _until_all(lambda kept: kept.found, climb, nothing, jnp.int32(0), runs)
        return Search(kept.r, kept.step, kept.restart, none, kept.queries)

    return searching("square", search, norm=norm, epsilon=epsilon, bounds=bounds, targeted=targeted)


class _Kept(NamedTuple):
    """What the search of each example keeps.

    Attributes:
        r: (batch, n), the perturbation.
        loss: (batch,), its loss; never NaN.
        found: (batch,), whether it has what is wanted; it then stays as it is.
        step: (batch,), the query that found it, or -1.
        restart: (batch,), the restart of r.
        queries: (batch,), the values of f that it took to get here.
    """

    r: Rows
    loss: Column
    found: Bool[Array, "batch"]
    step: Integer[Array, "batch"]
    restart: Integer[Array, "batch"]
    queries: Integer[Array, "batch"]

    def or_else(self, r: Rows, loss: Column, hit: Bool[Array, "batch"], query: Array, restart: Array) -> "_Kept":
        """This, or the proposal where it is better."""
        hit = hit & ~self.found
        taken = hit | ((loss > self.loss) & ~self.found)
        return _Kept(
            jnp.where(taken[:, None], r, self.r),
            jnp.where(taken & ~jnp.isnan(loss), loss, self.loss),
            self.found | hit,
            jnp.where(hit, query, self.step),
            jnp.where(taken, restart, self.restart),
            self.queries + ~self.found,
        )

    def at_least(self, best: "_Kept") -> "_Kept":
        """This, or `best` where an earlier restart came further; the queries of both."""
        better = self.found | (self.loss > best.loss)
        chosen = jax.tree.map(lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old), self, best)
        return chosen._replace(queries=self.queries)


def _until_all(done: Callable[[_Kept], Array], body: Callable[[Array, _Kept], _Kept], start: _Kept, first: Array, last: Array) -> _Kept:
    """A loop over first .. last - 1 that ends early where all are done."""
    advance = lambda carried: (carried[0] + 1, body(*carried))  # noqa: E731
    return jax.lax.while_loop(lambda carried: (carried[0] < last) & ~done(carried[1]).all(), advance, (first, start))[1]


def _frame(problem: Problem) -> tuple[int, int, int]:
    """Height, width and channels of an image; of what is no image, one row of numbers."""
    height, width, channels = problem.shape if len(problem.shape) == 3 else (1, problem.x.shape[1], 1)
    return height, width, channels


def _side(frame: tuple[int, int, int], covered: Array, least: int) -> Array:
    """The side of a square that covers this share of the frame; the length of an interval."""
    height, width, _ = frame
    return jnp.maximum(jnp.round((covered * height * width) ** (0.5 if height > 1 else 1)), least)


def _signs(drawn: Array) -> Array:
    return jnp.where(drawn < 0.5, -1, 1)


def _stripes(problem: Problem, keys: jax.Array) -> Rows:
    """Where a search starts: vertical stripes, one pixel wide, of +ε or -ε; scaled into the ball."""
    height, width, channels = _frame(problem)
    signs = jax.vmap(lambda key: jax.random.rademacher(key, (width, channels), problem.x.dtype))(keys)
    whole = jnp.broadcast_to(signs[:, None], (len(signs), height, width, channels)).reshape(problem.x.shape)
    return _within(problem, whole * (problem.epsilon / problem.norm.length(whole))[:, None])


def _within(problem: Problem, r: Rows) -> Rows:
    """r cut to the box, then scaled to the ball if a rounding has led out of it."""
    cut = problem.into_box(r)
    length = problem.norm.length(cut)
    inside = length <= problem.epsilon
    return jnp.where(inside[:, None], cut, cut * (problem.epsilon / jnp.where(inside, 1, length))[:, None])


def _window(frame: tuple[int, int, int], side: Array, place: Array) -> tuple[Mask, Array, Array]:
    """A square at a place drawn from 0 .. 1, as a mask; and how far each pixel lies in it, from 0 to 1, down and right."""
    height, width, _ = frame
    down, right = jnp.minimum(side, height), jnp.minimum(side, width)
    row = jnp.arange(height)[:, None, None] - jnp.floor(place[0] * (height - down + 1))
    column = jnp.arange(width)[None, :, None] - jnp.floor(place[1] * (width - right + 1))
    mask = (row >= 0) & (row < down) & (column >= 0) & (column < right)
    return mask, (row + 0.5) / down, (column + 0.5) / right


def _linf_proposal(problem: Problem, keys: jax.Array, r: Rows, covered: Array) -> Rows:
    """A square of +ε or -ε in each channel; of the opposite sign, where it holds that already."""
    frame = _frame(problem)
    side = _side(frame, covered, 1)

    def painted(key: jax.Array) -> tuple[Image, Image]:
        drawn = jax.random.uniform(key, (2 + frame[2],))
        mask = jnp.broadcast_to(_window(frame, side, drawn)[0], frame)
        return mask, jnp.broadcast_to(_signs(drawn[2:]), frame)

    mask, signs = (part.reshape(r.shape) for part in jax.vmap(painted)(keys))
    colour = signs * problem.epsilon[:, None]
    ahead, against = (problem.project(jnp.where(mask, content, r)) for content in (colour, -colour))
    return jnp.where((ahead == r).all(1, keepdims=True), against, ahead)


def _spending(left: Callable[[Column, Column], Column], least: int) -> Proposal:
    """A square, of at least this side, filled with what another had and what the ball has left."""

    def propose(problem: Problem, keys: jax.Array, r: Rows, covered: Array) -> Rows:
        frame = _frame(problem)
        drawn = jax.vmap(functools.partial(_two_windows, frame, _side(frame, covered, least)))(keys)
        halves, filled, emptied = (part.reshape(r.shape) for part in drawn)
        rest = jnp.where(filled | emptied, 0, r)
        content = _unit(problem.norm, jnp.where(filled, r, 0)) + _unit(problem.norm, halves.astype(r.dtype))
        budget = left(problem.epsilon, jnp.minimum(problem.norm.length(rest), problem.epsilon))
        return _within(problem, rest + budget[:, None] * _unit(problem.norm, content))

    return propose


def _two_windows(frame: tuple[int, int, int], side: Array, key: jax.Array) -> tuple[Image, Image, Image]:
    """What goes into the one, h; the one and the other as masks."""
    drawn = jax.random.uniform(key, (5 + frame[2],))
    filled, down, right = _window(frame, side, drawn[0:2])
    emptied = _window(frame, side, drawn[2:4])[0]
    halves = jnp.where(jnp.where(drawn[4] < 0.5, down, right) < 0.5, -1, 1)
    return jnp.where(filled, halves, 0) * _signs(drawn[5:]), jnp.broadcast_to(filled, frame), jnp.broadcast_to(emptied, frame)


def _unit(norm: norms.Norm, rows: Rows) -> Rows:
    """Rows of length 1; those of zeros stay."""
    length = norm.length(rows)
    return rows / jnp.where(length > 0, length, 1)[:, None]


_PROPOSALS: dict[str, Proposal] = {
    "linf": _linf_proposal,
    "l2": _spending(lambda whole, part: jnp.sqrt((whole + part) * (whole - part)), least=2),
    "l1": _spending(lambda whole, part: whole - part, least=1),
}
