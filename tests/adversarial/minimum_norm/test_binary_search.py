"""The boundary: what is kept, where a search that finds nothing starts, and the halving."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import norms
from diffprog.adversarial import ddn, deep_fool
from diffprog.adversarial._base import Problem
from diffprog.adversarial.minimum_norm._binary_search import (
    as_examples,
    finished,
    nearer,
    nothing,
    number,
    width,
)

BOUNDS = (-1.0, 2.0)


def stairs(x):
    """Reads 1 where the first number is above 0.75 or between 0.2 and 0.3, else 0; without a slope."""
    above = jnp.where((x[:, 0] > 0.75) | ((x[:, 0] > 0.2) & (x[:, 0] < 0.3)), 1.0, -1.0)
    return jnp.stack([jnp.zeros_like(above), above], axis=1).astype(x.dtype)


def problem(f, x, y, targeted=False, bounds=BOUNDS, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(x))
    infinite = jnp.full(len(x), jnp.inf, x.dtype)
    return Problem(
        f, x, jnp.asarray(y), infinite, keys, norms.l2, bounds, targeted, x.shape[1:], f(x)
    )


@pytest.mark.slow
def test_the_shortest_success_is_kept_for_each_example():
    given = problem(stairs, jnp.zeros((3, 2)), [0, 0, 0])
    best = nothing(given)
    assert not best.found.any()
    yes, no = jnp.array([True, True, False]), jnp.array([True, False, True])
    best = best.or_shorter(given, jnp.full((3, 2), 0.5), yes, 4, 1)
    best = best.or_shorter(given, jnp.full((3, 2), 0.1), no, 5, 2)
    best = best.or_shorter(given, jnp.full((3, 2), 0.9), yes, 6, 3)
    np.testing.assert_array_equal(best.found, True)
    np.testing.assert_allclose(best.r[:, 0], [0.1, 0.5, 0.1])
    np.testing.assert_array_equal(best.step, [5, 4, 5])
    np.testing.assert_array_equal(best.restart, [2, 1, 2])
    np.testing.assert_allclose(best.distance, np.sqrt(2) * np.array([0.1, 0.5, 0.1]), rtol=1e-6)
    other = nothing(given).or_shorter(given, jnp.full((3, 2), 0.2), yes, 7, 0)
    np.testing.assert_array_equal(best.or_best(other).step, [5, 7, 5])


@pytest.mark.slow
@pytest.mark.parametrize("targeted", [False, True])
def test_the_segment_is_halved_to_a_crossing(targeted):
    """To one of them, where there are three; an r that never crosses comes back as it is; no r stays none."""
    given = problem(stairs, jnp.zeros((4, 2)), [int(targeted)] * 4, targeted)
    r = jnp.array([[1.5, 1.0], [0.25, -1.0], [0.15, 0.5], [0.0, 0.0]])
    back, asked = jax.jit(lambda r: nearer(given, r))(r)
    share = np.asarray(back[:, 0] / jnp.where(r[:, 0] == 0, 1, r[:, 0]))
    np.testing.assert_allclose(back[0], share[0] * r[0], rtol=1e-6)
    assert min(abs(back[0, 0] - crossing) / crossing for crossing in (0.2, 0.75)) < 2e-5
    assert back[0, 0] > 0.2
    assert 0.2 < back[1, 0] < 0.2 * (1 + 2e-5)
    np.testing.assert_array_equal(back[2:], r[2:])
    assert (asked[:2] <= 22).all()
    assert asked[3] == 2


@pytest.mark.slow
def test_a_success_too_near_the_boundary_to_be_sure_of_is_moved_past_it():
    """Its margin is a rounding: f compiled anew might say otherwise."""
    sloping = lambda x: jnp.stack([jnp.full(len(x), 0.5), x[:, 0]], axis=1)
    given = problem(sloping, jnp.zeros((2, 2)), [0, 0])
    r = jnp.array([[np.nextafter(np.float32(0.5), np.float32(1)), 0.0], [1.0, 0.0]])
    back, _ = jax.jit(lambda r: nearer(given, r))(r)
    eps = np.finfo(np.float32).eps
    assert (back[:, 0] > 0.5 * (1 + 64 * eps)).all()
    assert (back[:, 0] < 0.5 * (1 + 2e-5 + 65 * eps)).all()


@pytest.mark.slow
def test_where_nothing_was_found_the_nearest_example_that_f_reads_otherwise_is_brought_back():
    x = jnp.array([[0.0, 0.0], [0.1, 1.0], [0.9, 0.0]])
    given = problem(stairs, x, [0, 0, 1])
    examples = as_examples(jnp.array([[1.9, 0.0], [1.0, 0.0], [0.05, 0.0], [-0.9, 1.9]]), BOUNDS)
    none = jnp.zeros(3, int)
    found = jax.jit(lambda: finished(given, nothing(given), none, none, examples))()
    np.testing.assert_array_equal(stairs(x + found.r).argmax(1), [1, 1, 0])
    directions = np.array([[1.0, 0.0], [0.9, -1.0], [-0.85, 0.0]])
    np.testing.assert_allclose(
        found.r, directions * (found.r[:, :1] / directions[:, :1]), atol=1e-6
    )
    np.testing.assert_array_equal(found.step, -1)
    assert (found.queries >= 4).all()


@pytest.mark.slow
def test_where_there_are_no_examples_points_are_drawn_by_the_examples_own_key():
    x = jnp.full((6, 2), 0.5)
    attack = jax.jit(lambda x, seed: _drawn(x, seed))
    found, again, other = attack(x, 0), attack(x, 0), attack(x, 1)
    assert (stairs(x + found.r).argmax(1) == 1).all()
    assert ((x + found.r >= BOUNDS[0]) & (x + found.r <= BOUNDS[1])).all()
    assert len(np.unique(found.r[:, 1])) == 6
    np.testing.assert_array_equal(found.r, again.r)
    assert (found.r != other.r).any(1).all()


def _drawn(x, seed):
    given = problem(stairs, x, [0] * len(x), seed=seed)
    return finished(given, nothing(given), jnp.zeros(len(x), int), jnp.zeros(len(x), int), None)


@pytest.mark.slow
def test_what_was_found_keeps_its_step_and_is_not_started_elsewhere():
    x = jnp.zeros((2, 2))
    given = problem(stairs, x, [0, 0])
    best = nothing(given).or_shorter(given, jnp.full((2, 2), 1.5), jnp.array([True, False]), 3, 1)
    found = jax.jit(lambda: finished(given, best, jnp.full(2, 10), jnp.zeros(2, int), None))()
    np.testing.assert_array_equal(found.step, [3, -1])
    np.testing.assert_allclose(found.r[0, 0], found.r[0, 1])
    assert found.gradients[0] == 10
    assert found.gradients[1] > 10
    np.testing.assert_array_equal(stairs(x + found.r).argmax(1), 1)


@pytest.mark.slow
def test_a_program_that_says_the_same_everywhere_is_not_fooled_and_that_is_said(key):
    x = jnp.full((3, 2), 0.5)
    found = deep_fool()(
        lambda x: jnp.zeros_like(x).at[:, 0].set(1) + 0 * x, x, jnp.zeros(3, int), key=key
    )
    assert not found.success.any()
    np.testing.assert_array_equal(found.adversarial, x)


def test_examples_unlike_x_are_refused(key):
    with pytest.raises(ValueError, match="examples must be like x, 2 numbers each, got 3"):
        ddn(examples=jnp.zeros((4, 3)))(lambda x: x, jnp.zeros((1, 2)), jnp.zeros(1, int), key=key)


@pytest.mark.parametrize(
    ("examples", "error", "says"),
    [
        (jnp.zeros((2, 3), int), TypeError, "examples"),
        (jnp.full((2, 3), jnp.nan), ValueError, "examples must be finite"),
        (jnp.full((2, 3), 3.0), ValueError, "examples must lie in"),
        ((), ValueError, "examples"),
        ({"a": jnp.zeros((2, 3)), "b": jnp.zeros((3, 3))}, ValueError, "leading axes"),
    ],
)
def test_bad_examples_are_refused(examples, error, says):
    with pytest.raises(error, match=says):
        as_examples(examples, BOUNDS)


@pytest.mark.slow
def test_examples_of_any_shape_are_rows():
    rows = as_examples({"a": jnp.zeros((2, 2, 3)), "b": jnp.ones((2, 4))}, BOUNDS)
    np.testing.assert_array_equal(rows, [[0] * 6 + [1] * 4] * 2)
    assert as_examples(None, BOUNDS) is None


@pytest.mark.slow
def test_small_things():
    assert width(problem(stairs, jnp.zeros((1, 2)), [0])) == 3
    assert number(0.5).shape == ()
