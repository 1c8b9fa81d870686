"""Attacks that see nothing of f but the class it reads.

HopSkipJump stands on the boundary, and finds from labels alone which way leads deeper into what is wanted. φ is +1 where f is fooled and
-1 where it is not, u_b are random unit vectors and δ is small against the distance:

    v = Σ_b (φ(x + r + δ u_b) - mean φ) u_b              points along the gradient of the margin, as many u_b as there are
    r' = r + ξ v / ||v||_2      (linf: ξ sign(v))        ξ = ||r|| / sqrt(k) first, then halved until f is fooled at x + r'
    r <- the point where the way from r' back to x crosses the boundary, by halving

That way is the segment for l2; for linf it is r' cut to smaller and smaller cubes.

Source: J. Chen, M. Jordan and M. Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack", 2020.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from diffprog import _validation, norms
from diffprog.adversarial._base import (
    Attack,
    Bounds,
    Flat,
    PerExample,
    Problem,
    Search,
    make_attack,
)
from diffprog.adversarial._losses import is_adversarial
from diffprog.adversarial.minimum_norm._binary_search import as_examples, require_like_x

Decide = Callable[[Flat], Bool[Array, "batch"]]

_TRIES, _HALVINGS, _MOST_DRAWS = 100, 30, 10_000
_FIRST_PROBE, _NEAREST_PROBE = (
    0.1,
    1e-3,
)  # in widths of the box; in distances, below which float32 would round the probe away
_CLOSE = 1e-5  # the relative width of the last bracket


def hop_skip_jump(
    *,
    norm: str = "l2",
    steps: int = 40,
    draws: int = 100,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """A small perturbation from labels alone: r' = r + ξ v, with v the direction that random probes say is the margin's gradient.

    Args:
        norm: "l2" or "linf".
        steps: at least 1; step k asks f about sqrt(k) `draws` probes and some tens of points.
        draws: probes of the first step, at least 1. 100 is the paper's.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.
        examples: like x, of any number: the search starts at the nearest that f reads as wanted; from noise in the box where there is none,
            a hundred draws of it, which seldom meet a target.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Source: Chen, Jordan and Wainwright 2020, with its defaults.

    >>> attack = hop_skip_jump(steps=10)
    >>> found = attack(lambda x: x @ jnp.eye(2), jnp.array([[0.7, 0.4]]), jnp.array([0]), key=jax.random.key(0))
    >>> print(found.distance.round(2), found.success)
    [0.21] [ True]
    """
    _validation.choice("norm", norm, ("l2", "linf"))
    count, first = (
        jnp.int32(_validation.integer(name, value, low=1))
        for name, value in (("steps", steps), ("draws", draws))
    )
    starts = as_examples(examples, _validation.bounds("bounds", bounds))

    def search(problem: Problem) -> Search:
        decide = lambda r: is_adversarial(problem.perturbed_logits(r), problem.y, problem.targeted)
        require_like_x(starts, problem)
        # From here on there is no f but what it decides.
        return _hopped(decide, problem._replace(logits=_no_logits), count, first, starts)

    return make_attack(
        "hop_skip_jump",
        search,
        norm=norm,
        bounds=bounds,
        targeted=targeted,
        uses_gradients=False,
    )


def _no_logits(_: Flat) -> Any:
    raise AssertionError("an attack by decisions sees no logits")


class _Point(NamedTuple):
    """Where the search of each example stands.

    Attributes:
        r: (batch, n), a perturbation that f is fooled by; zero where none is found.
        found: (batch,), whether one is.
        queries: (batch,), how many decisions it took.
    """

    r: Flat
    found: Bool[Array, "batch"]
    queries: Integer[Array, "batch"]


def _hopped(
    decide: Decide, problem: Problem, count: Array, draws: Array, examples: Flat | None
) -> Search:
    close = max(problem.x.shape[1] ** -1.5, _CLOSE)

    def hop(k: Array, carried: tuple[_Point, Flat, Array]) -> tuple[_Point, Flat, Array]:
        point, best, step = carried
        probes = jnp.minimum(draws * jnp.sqrt(k + 1.0), _MOST_DRAWS).astype(jnp.int32)
        keys = jax.vmap(jax.random.fold_in, (0, None))(problem.keys, k)
        point = _returned(
            decide,
            problem,
            _jumped(decide, problem, *_uphill(decide, problem, point, k, probes, keys), k),
            close,
        )
        shorter = point.found & (problem.norm.length(point.r) < problem.norm.length(best))
        return point, jnp.where(shorter[:, None], point.r, best), jnp.where(shorter, k, step)

    point = _returned(decide, problem, _started(decide, problem, examples), close)
    begun = point, point.r, jnp.where(point.found, 0, -1)
    _, (point, best, step) = _while(lambda carried: carried[0].found.any(), hop, begun, count)
    last = _clear(decide, problem, _returned(decide, problem, point._replace(r=best), _CLOSE))
    none = jnp.zeros_like(last.queries)
    return Search(last.r, step, none, none, last.queries)


def _started(decide: Decide, problem: Problem, examples: Flat | None) -> _Point:
    """The nearest of the examples that f is fooled by; else the first such draw of noise."""
    none = jnp.zeros(len(problem.x), int)
    nothing = _Point(jnp.zeros_like(problem.x), none > 0, none)
    given = (
        nothing
        if examples is None
        else _nearest(decide, problem, nothing, examples.astype(problem.x.dtype))
    )
    low, high = problem.bounds

    def draw(k: Array, point: _Point) -> _Point:
        keys = jax.vmap(jax.random.fold_in, (0, None))(problem.keys, -1 - k)
        noise = jax.vmap(
            lambda key: jax.random.uniform(key, problem.x.shape[1:], problem.x.dtype, low, high)
        )(keys)
        r = problem.clip_to_box(noise - problem.x)
        fooled = decide(r) & ~point.found
        return _Point(
            jnp.where(fooled[:, None], r, point.r),
            point.found | fooled,
            point.queries + ~point.found,
        )

    return _while(lambda point: ~point.found.all(), draw, given, jnp.int32(_TRIES))[1]


def _nearest(decide: Decide, problem: Problem, nothing: _Point, examples: Flat) -> _Point:
    def compare(k: Array, point: _Point) -> _Point:
        r = problem.clip_to_box(examples[k] - problem.x)
        closer = decide(r) & (
            ~point.found | (problem.norm.length(r) < problem.norm.length(point.r))
        )
        return _Point(
            jnp.where(closer[:, None], r, point.r), point.found | closer, point.queries + 1
        )

    return jax.lax.fori_loop(0, len(examples), compare, nothing)


def _uphill(
    decide: Decide, problem: Problem, point: _Point, k: Array, probes: Array, keys: jax.Array
) -> tuple[_Point, Flat]:
    """The direction in which f is fooled more often: of length 1, or the signs of it."""
    low, high = problem.bounds
    distance = problem.norm.length(point.r)
    reach = jnp.where(
        k == 0,
        _FIRST_PROBE * (high - low),
        jnp.maximum(1 / problem.x.shape[1], _NEAREST_PROBE) * distance,
    )
    reach = jnp.maximum(reach, jnp.finfo(distance.dtype).tiny)[:, None]

    def probe(b: Array, sums: tuple[Flat, Flat, PerExample]) -> tuple[Flat, Flat, PerExample]:
        drawn = jax.vmap(
            lambda key: jax.random.normal(
                jax.random.fold_in(key, b), problem.x.shape[1:], problem.x.dtype
            )
        )(keys)
        there = problem.clip_to_box(point.r + reach * norms.l2.ascent(drawn))
        u = (there - point.r) / reach  # what the box leaves of the probe
        sign = jnp.where(decide(there), 1, -1).astype(u.dtype)
        return sums[0] + sign[:, None] * u, sums[1] + u, sums[2] + sign

    none = jnp.zeros_like(point.r), jnp.zeros_like(point.r), jnp.zeros_like(distance)
    signed, plain, signs = jax.lax.fori_loop(0, probes, probe, none)
    mean = (signs / probes)[:, None]
    v = jnp.where(jnp.abs(mean) < 1, signed - mean * plain, signed)
    return point._replace(queries=point.queries + point.found * probes), problem.norm.ascent(v)


def _jumped(decide: Decide, problem: Problem, point: _Point, v: Flat, k: Array) -> _Point:
    """As far along v as f is fooled, of a step and its halves; nowhere if at none of them."""
    stride = problem.norm.length(point.r) / jnp.sqrt(k + 1.0)

    def halve(
        _: Array, carried: tuple[_Point, PerExample, Array]
    ) -> tuple[_Point, PerExample, Array]:
        moved, stride, waiting = carried
        ahead = problem.clip_to_box(point.r + stride[:, None] * v)
        fooled = decide(ahead) & waiting
        moved = moved._replace(
            r=jnp.where(fooled[:, None], ahead, moved.r), queries=moved.queries + waiting
        )
        return moved, stride / 2, waiting & ~fooled

    begun = point, stride.astype(v.dtype), point.found
    return _while(lambda carried: carried[2].any(), halve, begun, jnp.int32(_HALVINGS))[1][0]


def _returned(decide: Decide, problem: Problem, point: _Point, close: float) -> _Point:
    """Where the way back to x crosses the boundary, on the outer side, to a part `close` of the way."""

    def back(t: PerExample) -> Flat:
        if problem.norm is norms.linf:
            cube = (t * problem.norm.length(point.r))[:, None]
            return jnp.clip(point.r, -cube, cube)
        return t[:, None] * point.r

    def wide(inner: PerExample, outer: PerExample) -> Bool[Array, "batch"]:
        return point.found & (outer - inner > close * outer) & (outer > jnp.finfo(outer.dtype).eps)

    def halve(
        _: Array, bracket: tuple[PerExample, PerExample, Array]
    ) -> tuple[PerExample, PerExample, Array]:
        inner, outer, queries = bracket
        middle, halving = (inner + outer) / 2, wide(inner, outer)
        fooled = decide(back(middle))
        return (
            jnp.where(halving & ~fooled, middle, inner),
            jnp.where(halving & fooled, middle, outer),
            queries + halving,
        )

    ends = jnp.zeros_like(problem.epsilon), jnp.ones_like(problem.epsilon), point.queries
    _, (_, outer, queries) = _while(
        lambda bracket: wide(*bracket[:2]).any(), halve, ends, jnp.int32(64)
    )
    return point._replace(r=back(outer), queries=queries)


def _clear(decide: Decide, problem: Problem, point: _Point) -> _Point:
    """A part in 10^5 beyond the boundary, so that f reads the same there when it is compiled anew and rounds otherwise."""
    ahead = problem.clip_to_box(point.r * (1 + _CLOSE))
    fooled = decide(ahead) & point.found
    return point._replace(
        r=jnp.where(fooled[:, None], ahead, point.r), queries=point.queries + point.found
    )


def _while(
    more: Callable[[Any], Array], body: Callable[[Array, Any], Any], start: Any, count: Array
) -> tuple[Array, Any]:
    """`count` rounds of body(k, carried), as long as there is more to do."""
    go_on = lambda state: (state[0] < count) & more(state[1])
    return jax.lax.while_loop(
        go_on, lambda state: (state[0] + 1, body(*state)), (jnp.int32(0), start)
    )
