"""Square attack: random search over squares of extreme values, from logits alone.

    r' = r with the values in a random square replaced
    r  ← r'  if loss(x + r') > loss(x + r) or x + r' is adversarial,  else  r

with x the example and r its perturbation. The new values are extreme, since the strongest
perturbations lie on the surface of the ball of radius ε:

    linf    every channel of the square is +ε or -ε
    l2, l1  a second square is set to zero, and the first is set to a pattern of the largest norm
            that the ball then allows, in the direction r / ||r|| + h / ||h|| with r restricted to
            the square; h is +1 in one half of the square and -1 in the other

The share of the image that a square covers is halved nine times: coarse changes come first, single
pixels last. In l2 the smallest side is two pixels. (On digits flat halves did as well as the
paper's decaying ones, and in l2 a smallest side of two better than its three.) Examples other than
images (H, W, C) are one row of values, with intervals as squares. A square is a mask, so squares of
all sides share one compiled function.

Early stopping in linf: each square of the smallest side is sampled with probability at least 1 / N,
N = positions × 2^channels, or N = positions for one channel. After N (ln N + 5) rejections in a row
all squares have been tried with probability 1 - e^-5. Then r is a local optimum and the restart
ends. On 8 × 8 pixels this takes about 1500 of 5000 queries; on 32 × 32 all are used.

Sources: M. Andriushchenko, F. Croce, N. Flammarion and M. Hein, "Square attack: a query-efficient
black-box adversarial attack via random search", 2020; the l1 ball, F. Croce and M. Hein, "Mind the
box", 2021.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from diffprog import _validation, norms
from diffprog.adversarial import _base
from diffprog.adversarial._base import Attack, Bounds, Flat, PerExample, Problem, Search
from diffprog.adversarial._losses import Loss
from diffprog.adversarial.gradient._pgd import resolve_loss

Image = Float[Array, "height width channels"]
Mask = Bool[Array, "height width 1"]
ImageShape = tuple[int, int, int]
Proposal = Callable[[Problem, jax.Array, Flat, Array], Flat]
"""Function (problem, keys, r, share of the image that a square covers) -> proposal r'."""

# Shares of the queries at which p is halved. The paper states them for 10,000 queries.
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
    """Square attack (Andriushchenko et al., 2020).

    Random search from logits alone: in every query the perturbation is changed in a random square
    of the image, and the change is kept if it makes the loss larger.

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: the radius, a number or an array (batch,).
        queries: maximum number of forward passes per restart, at least 1; default the paper's 5000.
            An example stops at its first success, or when no square of the smallest side increases
            its loss.
        p: share of the image that the first squares cover, 0 < p <= 1; default 0.8, as in
            AutoAttack.
        loss: "margin", "cross_entropy", "dlr", or a function (logits, y, targeted) -> (batch,) to
            maximize.
        restarts: number of independent searches for examples without success, at least 1.
        bounds: (low, high) of every value of x + r.
        targeted: whether y holds target classes.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or outside its range.

    Source: Andriushchenko, Croce, Flammarion and Hein 2020.

    >>> attack = square(epsilon=0.3, queries=20)
    >>> x, y = jnp.array([[0.7, 0.4]]), jnp.array([0])
    >>> print(attack(lambda x: x @ jnp.eye(2), x, y, key=jax.random.key(0)).success)
    [ True]
    """
    _validation.choice("norm", norm, _PROPOSALS)
    _base.per_example_epsilon(epsilon, None, jnp.float32)  # `make_attack` allows None
    propose, loss_function = _PROPOSALS[norm], resolve_loss(loss)
    max_queries = jnp.int32(_validation.integer("queries", queries, low=1))
    num_restarts = jnp.int32(_validation.integer("restarts", restarts, low=1))
    initial_share = jnp.float32(_validation.number("p", p, above=0, high=1))

    def search(problem: Problem) -> Search:
        shape = _image_shape(problem)
        smallest = _side(shape, initial_share * 0.5 ** len(_HALVINGS), 1)
        patience = _draws_to_cover(shape, smallest) if problem.norm is norms.linf else jnp.inf

        def evaluate(state: _State, r: Flat, query: Array, restart: Array) -> _State:
            logits = problem.perturbed_logits(r)
            value = loss_function(logits, problem.y, problem.targeted)
            return state.update(r, value, problem.is_adversarial(logits), query, restart)

        def run_restart(restart: Array, best: _State) -> _State:

            def step(query: Array, state: _State) -> _State:
                halvings = (query > max_queries * jnp.array(_HALVINGS)).sum()
                share = initial_share * 0.5**halvings
                r = propose(problem, problem.keys_at(restart, query), state.r, share)
                state = evaluate(state, r, query, restart)
                return state.stop_early(_side(shape, share, 1) == smallest, patience)

            state = best._replace(loss=jnp.full_like(best.loss, -jnp.inf), stopped=best.found)
            first = _stripes(problem, problem.keys_at(restart))
            state = evaluate(state, first, jnp.int32(0), restart)
            state = _for_until_all(lambda state: state.stopped, step, state, 1, max_queries)
            return state.keep_better(best)

        zeros = jnp.zeros_like(problem.y)
        state = _State(
            r=jnp.zeros_like(problem.x),
            loss=jnp.full_like(problem.epsilon, -jnp.inf),
            found=zeros > 0,
            stopped=zeros > 0,
            rejections=zeros,
            step=zeros - 1,
            restart=zeros,
            queries=zeros,
        )
        state = _for_until_all(lambda state: state.found, run_restart, state, 0, num_restarts)
        return Search(state.r, state.step, state.restart, zeros, state.queries)

    settings: Any = {"norm": norm, "epsilon": epsilon, "bounds": bounds, "targeted": targeted}
    return _base.make_attack("square", search, **settings, uses_gradients=False)


class _State(NamedTuple):
    """State of the Square attack's random search; the leading axis is the example.

    Attributes:
        r: (batch, n), the perturbation.
        loss: (batch,), the loss at x + r; never NaN.
        found: (batch,), whether x + r is adversarial.
        stopped: (batch,), whether the restart has ended, by a success or in a local optimum.
        rejections: (batch,), the number of rejected proposals since the last accepted one.
        step: (batch,), the query of the first success; -1 before it.
        restart: (batch,), the restart in which r was accepted.
        queries: (batch,), the number of forward passes so far.
    """

    r: Flat
    loss: PerExample
    found: Bool[Array, "batch"]
    stopped: Bool[Array, "batch"]
    rejections: Integer[Array, "batch"]
    step: Integer[Array, "batch"]
    restart: Integer[Array, "batch"]
    queries: Integer[Array, "batch"]

    def update(
        self, r: Flat, loss: PerExample, success: Bool[Array, "batch"], query: Array, restart: Array
    ) -> "_State":
        """Return the state with the proposal r accepted where it succeeds or has a larger loss.

        `loss` and `success` are those of x + r; `query` and `restart` are the loop indices.
        Examples that have stopped do not change.
        """
        success = success & ~self.stopped
        accepted = success | ((loss > self.loss) & ~self.stopped)
        return _State(
            r=jnp.where(accepted[:, None], r, self.r),
            loss=jnp.where(accepted & ~jnp.isnan(loss), loss, self.loss),
            found=self.found | success,
            stopped=self.stopped | success,
            rejections=jnp.where(accepted, 0, self.rejections + 1),
            step=jnp.where(success, query, self.step),
            restart=jnp.where(accepted, restart, self.restart),
            queries=self.queries + ~self.stopped,
        )

    def stop_early(self, is_smallest: Array, patience: Any) -> "_State":
        """Stop examples after `patience` rejections in a row of squares of the smallest side.

        `is_smallest` is whether the last square had this side; if not, the count restarts at 0.
        """
        rejections = jnp.where(is_smallest, self.rejections, 0)
        return self._replace(rejections=rejections, stopped=self.stopped | (rejections >= patience))

    def keep_better(self, best: "_State") -> "_State":
        """Return this restart's state where it succeeded or has a larger loss, else `best`."""
        better = self.found | (self.loss > best.loss)
        return _base.select(better, self, best)._replace(queries=self.queries)


def _for_until_all(
    done: Callable[[_State], Array],
    body: Callable[[Array, _State], _State],
    start: _State,
    first: int,
    end: Array,
) -> _State:
    """Iterate state = body(k, state) for k = first .. end - 1 until all of done(state) are True."""
    return jax.lax.while_loop(
        lambda carry: (carry[0] < end) & ~done(carry[1]).all(),
        lambda carry: (carry[0] + 1, body(*carry)),
        (jnp.int32(first), start),
    )[1]


def _image_shape(problem: Problem) -> ImageShape:
    """Return (height, width, channels) of an example; (1, n, 1) if it is n values but no image."""
    if len(problem.shape) != 3:
        return 1, problem.x.shape[1], 1
    height, width, channels = problem.shape
    return height, width, channels


def _side(shape: ImageShape, share: Array, minimum: int) -> Array:
    """Return the side of a square that covers this share of the image's pixels, at least `minimum`.

    For examples that are not images, it is the length of an interval.
    """
    height, width, _ = shape
    exponent = 0.5 if height > 1 else 1
    return jnp.maximum(jnp.round((share * height * width) ** exponent), minimum)


def _draws_to_cover(shape: ImageShape, side: Array) -> Array:
    """Return after how many random squares all have been drawn with probability 1 - e^-5.

    The number is N (ln N + 5). N counts the positions of a square of this side, times the sign
    patterns over channels. With one channel N counts positions only: a proposal that would change
    nothing is replaced by the one of opposite sign.
    """
    height, width, channels = shape
    positions = (height - jnp.minimum(side, height) + 1) * (width - jnp.minimum(side, width) + 1)
    squares = positions * (jnp.exp2(float(channels)) if channels > 1 else 1.0)
    return squares * (jnp.log(squares) + 5)


def _sign_of_uniform(uniform: Array) -> Array:
    return jnp.where(uniform < 0.5, -1, 1)


def _stripes(problem: Problem, keys: jax.Array) -> Flat:
    """Sample the initial perturbation: vertical stripes one pixel wide of random sign, with norm ε.

    It is clipped to the box.
    """
    height, width, channels = _image_shape(problem)
    draw = lambda key: jax.random.rademacher(key, (width, channels), problem.x.dtype)
    signs = jax.vmap(draw)(keys)
    stripes = jnp.broadcast_to(signs[:, None], (len(signs), height, width, channels))
    stripes = stripes.reshape(problem.x.shape)
    scale = problem.epsilon / problem.norm.length(stripes)
    return _clip_and_scale(problem, stripes * scale[:, None])


def _clip_and_scale(problem: Problem, r: Flat) -> Flat:
    """Clip r to the box, and scale it down to norm ε where rounding errors make it longer."""
    clipped = problem.clip_to_box(r)
    length = problem.norm.length(clipped)
    is_inside = length <= problem.epsilon
    scaled = clipped * (problem.epsilon / jnp.where(is_inside, 1, length))[:, None]
    return jnp.where(is_inside[:, None], clipped, scaled)


def _window(
    shape: ImageShape, side: Array, position: Float[Array, "2"]
) -> tuple[Mask, Array, Array]:
    """Return the mask of a square in the image, and pixel rows and columns relative to the square.

    Rows and columns are scaled such that they lie between 0 and 1 inside the square. `position` is
    a pair of numbers in 0 .. 1 that places the square.
    """
    height, width, _ = shape
    rows, columns = jnp.minimum(side, height), jnp.minimum(side, width)
    row = jnp.arange(height)[:, None, None] - jnp.floor(position[0] * (height - rows + 1))
    column = jnp.arange(width)[None, :, None] - jnp.floor(position[1] * (width - columns + 1))
    mask = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return mask, (row + 0.5) / rows, (column + 0.5) / columns


def _linf_proposal(problem: Problem, keys: jax.Array, r: Flat, share: Array) -> Flat:
    """Return r with a random square of each example set to +ε or -ε, one random sign per channel.

    `share` is the share of the image that the square covers. Where r has these values already, the
    signs are flipped.
    """
    shape = _image_shape(problem)
    side = _side(shape, share, 1)

    def sample(key: jax.Array) -> tuple[Image, Image]:
        uniform = jax.random.uniform(key, (2 + shape[2],))
        mask = jnp.broadcast_to(_window(shape, side, uniform)[0], shape)
        return mask, jnp.broadcast_to(_sign_of_uniform(uniform[2:]), shape)

    mask, signs = (image.reshape(r.shape) for image in jax.vmap(sample)(keys))
    content = signs * problem.epsilon[:, None]
    proposal = problem.project(jnp.where(mask, content, r))
    opposite = problem.project(jnp.where(mask, -content, r))
    return jnp.where((proposal == r).all(1, keepdims=True), opposite, proposal)


def _two_square_proposal(
    remaining_norm: Callable[[PerExample, PerExample], PerExample], smallest_side: int
) -> Proposal:
    """Return a function (problem, keys, r, share) -> r that proposes a change of r in l2 or l1.

    It sets one random square to zero and enlarges the values in another. remaining_norm(ε, length)
    is the norm that the enlarged square may have if r has norm `length` outside both squares.
    """

    def propose(problem: Problem, keys: jax.Array, r: Flat, share: Array) -> Flat:
        shape = _image_shape(problem)
        side = _side(shape, share, smallest_side)
        samples = jax.vmap(functools.partial(_two_windows, shape, side))(keys)
        halves, filled, emptied = (image.reshape(r.shape) for image in samples)
        rest = jnp.where(filled | emptied, 0, r)
        content = _normalize(problem.norm, jnp.where(filled, r, 0))
        content = content + _normalize(problem.norm, halves.astype(r.dtype))
        length = jnp.minimum(problem.norm.length(rest), problem.epsilon)
        budget = remaining_norm(problem.epsilon, length)[:, None]
        return _clip_and_scale(problem, rest + budget * _normalize(problem.norm, content))

    return propose


def _two_windows(shape: ImageShape, side: Array, key: jax.Array) -> tuple[Image, Image, Image]:
    """Sample two squares of this side; return a pattern for the first, and the masks of both.

    The pattern is +1 in one half of the first square, -1 in the other half and 0 outside, times one
    random sign per channel.
    """
    uniform = jax.random.uniform(key, (5 + shape[2],))
    filled, row, column = _window(shape, side, uniform[0:2])
    emptied = _window(shape, side, uniform[2:4])[0]
    halves = jnp.where(jnp.where(uniform[4] < 0.5, row, column) < 0.5, -1, 1)
    return (
        jnp.where(filled, halves, 0) * _sign_of_uniform(uniform[5:]),
        jnp.broadcast_to(filled, shape),
        jnp.broadcast_to(emptied, shape),
    )


def _normalize(norm: norms.Norm, rows: Flat) -> Flat:
    """Scale each row to norm 1; rows of zeros stay zero."""
    length = norm.length(rows)
    return rows / jnp.where(length > 0, length, 1)[:, None]


_PROPOSALS: dict[str, Proposal] = {
    "linf": _linf_proposal,
    "l2": _two_square_proposal(
        lambda epsilon, length: jnp.sqrt((epsilon + length) * (epsilon - length)), smallest_side=2
    ),
    "l1": _two_square_proposal(lambda epsilon, length: epsilon - length, smallest_side=1),
}
