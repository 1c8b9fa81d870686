"""HopSkipJump: a minimum-norm attack that only queries the predicted class.

Iteration k starts at a point x + r on the decision boundary, with x the example. It uses random
unit vectors u_b, a radius δ that is small against ||r||, and the decision φ of the model: +1 for an
adversarial point, else -1.

    v = Σ_b (φ(x + r + δ u_b) - mean φ) u_b            estimates the gradient of the margin
    r' = r + ξ v / ||v||_2   (linf: ξ sign(v))         ξ = ||r|| / sqrt(k), halved until x + r'
                                                       is adversarial
    r  ← the point between x and x + r' on the boundary, by bisection

In l2 the bisection scales r'; in linf it clips the entries of r' to a smaller and smaller range.

Source: J. Chen, M. Jordan and M. Wainwright, "HopSkipJumpAttack: a query-efficient decision-based
attack", 2020.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from diffprog import _validation, norms
from diffprog.adversarial import _base
from diffprog.adversarial._base import Attack, Bounds, Flat, PerExample, Problem, Search
from diffprog.adversarial.minimum_norm import _binary_search
from diffprog.adversarial.minimum_norm._binary_search import RELATIVE_WIDTH

Decision = Callable[[Flat], Bool[Array, "batch"]]
"""Function r -> whether x + r is adversarial; the search queries f in no other way."""

_RANDOM_STARTS, _MAX_HALVINGS, _MAX_PROBES = 100, 30, 10_000
_FIRST_PROBE_RADIUS = 0.1  # in widths of the box
_MIN_PROBE_RADIUS = 1e-3  # in distances; float32 would round smaller probes away


def hop_skip_jump(
    *,
    norm: str = "l2",
    steps: int = 40,
    draws: int = 100,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """HopSkipJump decision-based attack (Chen, Jordan and Wainwright, 2020).

    It estimates the direction of the margin's gradient on the decision boundary from the predicted
    classes of random probes, steps along it and returns to the boundary by bisection.

    Args:
        norm: "l2" or "linf".
        steps: number of steps, at least 1. Step k = 1, 2, ... queries `draws` * sqrt(k) probes and
            some tens of other points.
        draws: number of probes in the first step, at least 1; default the paper's 100.
        bounds: (low, high) of every value of x + r.
        targeted: whether y holds target classes.
        examples: inputs like x, of any batch size. The search starts from the nearest of them that
            is adversarial. If none is, it starts from the first adversarial one of 100 samples of
            uniform noise, which are rarely classified as a given target.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or outside its range.

    Source: Chen, Jordan and Wainwright 2020, with its defaults.

    >>> attack = hop_skip_jump(steps=10)
    >>> x, y = jnp.array([[0.7, 0.4]]), jnp.array([0])
    >>> result = attack(lambda x: x @ jnp.eye(2), x, y, key=jax.random.key(0))
    >>> print(result.distance.round(2), result.success)
    [0.21] [ True]
    """
    _validation.choice("norm", norm, ("l2", "linf"))
    num_steps = jnp.int32(_validation.integer("steps", steps, low=1))
    num_probes = jnp.int32(_validation.integer("draws", draws, low=1))
    starts = _binary_search.validate_starting_examples(examples, bounds)

    def search(problem: Problem) -> Search:
        _binary_search.require_same_size(starts, problem)

        def decide(r: Flat) -> Bool[Array, "batch"]:
            return problem.is_adversarial(problem.perturbed_logits(r))

        # The rest of the search must not see the logits.
        blind = problem._replace(logits=_no_logits)
        return _search(decide, blind, num_steps, num_probes, starts)

    return _base.make_attack(
        "hop_skip_jump", search, norm=norm, bounds=bounds, targeted=targeted, uses_gradients=False
    )


def _no_logits(_: Flat) -> Any:
    raise AssertionError("a decision-based attack must not query logits")


class _State(NamedTuple):
    """State of the HopSkipJump search; the leading axis is the example.

    Attributes:
        r: (batch, n), an adversarial perturbation; zero as long as none has been found.
        found: (batch,), whether an adversarial perturbation has been found.
        queries: (batch,), the number of queries so far.
    """

    r: Flat
    found: Bool[Array, "batch"]
    queries: Integer[Array, "batch"]


def _search(
    decide: Decision, problem: Problem, num_steps: Array, num_probes: Array, examples: Flat | None
) -> Search:
    tolerance = max(problem.x.shape[1] ** -1.5, RELATIVE_WIDTH)

    def step(k: Array, carry: tuple[_State, Flat, Array]) -> tuple[_State, Flat, Array]:
        state, shortest, found_at = carry
        probes = jnp.minimum(num_probes * jnp.sqrt(k + 1.0), _MAX_PROBES).astype(jnp.int32)
        state, v = _estimate_direction(decide, problem, state, k, probes)
        state = _step_along(decide, problem, state, v, k)
        state = _bisect(decide, problem, state, tolerance)
        lengths = problem.norm.length(state.r), problem.norm.length(shortest)
        shorter = state.found & (lengths[0] < lengths[1])
        shortest = jnp.where(shorter[:, None], state.r, shortest)
        return state, shortest, jnp.where(shorter, k, found_at)

    state = _bisect(decide, problem, _initialize(decide, problem, examples), tolerance)
    start = state, state.r, jnp.where(state.found, 0, -1)
    state, shortest, found_at = _for_while(
        num_steps, lambda carry: carry[0].found.any(), step, start
    )
    state = _bisect(decide, problem, state._replace(r=shortest), RELATIVE_WIDTH)
    state = _move_past_rounding(decide, problem, state)
    none = jnp.zeros_like(state.queries)
    return Search(state.r, found_at, none, none, state.queries)


def _initialize(decide: Decision, problem: Problem, examples: Flat | None) -> _State:
    """Create the state at which the search starts, with an adversarial perturbation per example.

    x + r is the nearest adversarial one of `examples`, or else adversarial noise. decide(r) is
    whether x + r is adversarial.
    """
    none = jnp.zeros(len(problem.x), int)
    state = _State(jnp.zeros_like(problem.x), none > 0, none)
    low, high = problem.bounds
    uniform = functools.partial(jax.random.uniform, minval=low, maxval=high)

    def compare(k: Array, state: _State) -> _State:
        r = problem.clip_to_box(rows[k] - problem.x)
        shorter = problem.norm.length(r) < problem.norm.length(state.r)
        nearer = decide(r) & (~state.found | shorter)
        r = jnp.where(nearer[:, None], r, state.r)
        return _State(r, state.found | nearer, state.queries + 1)

    def sample(k: Array, state: _State) -> _State:
        r = problem.clip_to_box(problem.sample(uniform, -1 - k) - problem.x)
        success = decide(r) & ~state.found
        queries = state.queries + ~state.found
        return _State(_base.select(success, r, state.r), state.found | success, queries)

    if examples is not None:
        rows = examples.astype(problem.x.dtype)
        state = jax.lax.fori_loop(0, len(rows), compare, state)
    return _for_while(jnp.int32(_RANDOM_STARTS), lambda state: ~state.found.all(), sample, state)


def _estimate_direction(
    decide: Decision, problem: Problem, state: _State, k: Array, num_probes: Array
) -> tuple[_State, Flat]:
    """Estimate the direction of the margin's gradient at x + r from decisions at random points.

    decide(r) is whether x + r is adversarial, k the step. Returns the state with the queries
    counted, and the direction (batch, n): a unit vector in l2, signs in linf.
    """
    distance = problem.norm.length(state.r)
    relative_radius = max(1 / problem.x.shape[1], _MIN_PROBE_RADIUS)
    first_radius = _FIRST_PROBE_RADIUS * problem.box_width
    delta = jnp.where(k == 0, first_radius, relative_radius * distance)
    delta = jnp.maximum(delta, jnp.finfo(distance.dtype).tiny)[:, None]

    def probe(b: Array, sums: tuple[Flat, Flat, PerExample]) -> tuple[Flat, Flat, PerExample]:
        normal = problem.sample(jax.random.normal, k, b)
        point = problem.clip_to_box(state.r + delta * norms.l2.ascent(normal))
        u = (point - state.r) / delta  # the unit vector, clipped to the box
        phi = jnp.where(decide(point), 1, -1).astype(u.dtype)
        return sums[0] + phi[:, None] * u, sums[1] + u, sums[2] + phi

    zeros = jnp.zeros_like(state.r), jnp.zeros_like(state.r), jnp.zeros_like(distance)
    sum_phi_u, sum_u, sum_phi = jax.lax.fori_loop(0, num_probes, probe, zeros)
    mean_phi = (sum_phi / num_probes)[:, None]
    # With all decisions equal, subtracting the mean would leave nothing.
    v = jnp.where(jnp.abs(mean_phi) < 1, sum_phi_u - mean_phi * sum_u, sum_phi_u)
    state = state._replace(queries=state.queries + state.found * num_probes)
    return state, problem.norm.ascent(v)


def _step_along(decide: Decision, problem: Problem, state: _State, v: Flat, k: Array) -> _State:
    """Step from the perturbation r along v, halving the step until x + r is adversarial.

    decide(r) is whether x + r is adversarial. The first step tried in iteration k has the length of
    r divided by sqrt(k + 1). Returns the state; r is unchanged where no step succeeds.
    """

    def halve(
        _: Array, carry: tuple[_State, PerExample, Array]
    ) -> tuple[_State, PerExample, Array]:
        stepped, xi, active = carry
        r = problem.clip_to_box(state.r + xi[:, None] * v)
        success = decide(r) & active
        r = _base.select(success, r, stepped.r)
        return _State(r, state.found, stepped.queries + active), xi / 2, active & ~success

    xi = (problem.norm.length(state.r) / jnp.sqrt(k + 1.0)).astype(v.dtype)
    start = state, xi, state.found
    return _for_while(jnp.int32(_MAX_HALVINGS), lambda carry: carry[2].any(), halve, start)[0]


def _bisect(decide: Decision, problem: Problem, state: _State, tolerance: float) -> _State:
    """Shorten the perturbation r by bisection until x + r is next to the decision boundary.

    decide(r) is whether x + r is adversarial; `tolerance` is the relative width at which the
    bisection ends. Returns the state with the shorter r and the queries counted.
    """

    dtype = state.r.dtype

    def shrink(t: PerExample) -> Flat:
        if problem.norm is norms.linf:
            radius = (t * problem.norm.length(state.r))[:, None]
            return jnp.clip(state.r, -radius, radius).astype(dtype)
        return (t[:, None] * state.r).astype(dtype)

    # At least float32: in 16 bits the bisection would stall before the bracket is narrow.
    one = state.found.astype(jnp.promote_types(dtype, jnp.float32))
    smallest = jnp.finfo(dtype).eps
    t, queries = _binary_search.bisect(lambda t: decide(shrink(t)), one, tolerance, smallest)
    return state._replace(r=shrink(t), queries=state.queries + queries)


def _move_past_rounding(decide: Decision, problem: Problem, state: _State) -> _State:
    """Lengthen r by one part in 1e5, so that x + r stays adversarial if f is rounded differently.

    decide(r) is whether x + r is adversarial; where the longer r is not, r is kept.
    """
    r = problem.clip_to_box(state.r * (1 + RELATIVE_WIDTH))
    success = decide(r) & state.found
    r = _base.select(success, r, state.r)
    return _State(r, state.found, state.queries + state.found)


def _for_while(
    count: Array, condition: Callable[[Any], Array], body: Callable[[Array, Any], Any], start: Any
) -> Any:
    """Iterate carry = body(k, carry) for k = 0 .. count - 1 while condition(carry) holds."""
    _, carry = jax.lax.while_loop(
        lambda state: (state[0] < count) & condition(state[1]),
        lambda state: (state[0] + 1, body(*state)),
        (jnp.int32(0), start),
    )
    return carry
