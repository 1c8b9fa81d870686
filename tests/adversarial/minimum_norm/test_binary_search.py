"""The shortest success, the fallback and the bisection of minimum-norm attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import norms
from diffprog.adversarial import ddn, deep_fool
from diffprog.adversarial._base import Problem
from diffprog.adversarial.minimum_norm._binary_search import (
    Shortest,
    _random_ascent,
    bisect_to_boundary,
    refine,
    validate_starting_examples,
)

BOUNDS = (-1.0, 2.0)


def stairs(x):
    """Predict 1 where the first value is above 0.75 or between 0.2 and 0.3; without gradients."""
    is_one = (x[:, 0] > 0.75) | ((x[:, 0] > 0.2) & (x[:, 0] < 0.3))
    logit = jnp.where(is_one, 1.0, -1.0)
    return jnp.stack([jnp.zeros_like(logit), logit], axis=1).astype(x.dtype)


def make_problem(f, x, y, targeted=False, seed=0, bounds=BOUNDS):
    keys = jax.random.split(jax.random.key(seed), len(x))
    infinite = jnp.full(len(x), jnp.inf, x.dtype)
    return Problem(
        f, x, jnp.asarray(y), infinite, keys, norms.l2, bounds, targeted, x.shape[1:], f(x)
    )


@pytest.mark.slow
def test_the_shortest_success_is_kept_per_example():
    problem = make_problem(stairs, jnp.zeros((3, 2)), [0, 0, 0])
    shortest = Shortest.empty(problem)
    assert not shortest.found.any()
    success, other_success = jnp.array([True, True, False]), jnp.array([True, False, True])
    shortest = shortest.update(problem, jnp.full((3, 2), 0.5), success, 4, 1)
    shortest = shortest.update(problem, jnp.full((3, 2), 0.1), other_success, 5, 2)
    shortest = shortest.update(problem, jnp.full((3, 2), 0.9), success, 6, 3)
    expected = np.array([0.1, 0.5, 0.1])
    np.testing.assert_array_equal(shortest.found, True)
    np.testing.assert_allclose(shortest.r[:, 0], expected)
    np.testing.assert_array_equal(shortest.step, [5, 4, 5])
    np.testing.assert_array_equal(shortest.restart, [2, 1, 2])
    np.testing.assert_allclose(shortest.distance, np.sqrt(2) * expected, rtol=1e-6)
    other = Shortest.empty(problem).update(problem, jnp.full((3, 2), 0.2), success, 7, 0)
    np.testing.assert_array_equal(shortest.merge(other).step, [5, 7, 5])


@pytest.mark.slow
@pytest.mark.parametrize("targeted", [False, True])
def test_bisection_ends_at_a_crossing(targeted):
    """At one of three crossings; an r that is not adversarial is returned as it is."""
    problem = make_problem(stairs, jnp.zeros((4, 2)), [int(targeted)] * 4, targeted)
    r = jnp.array([[1.5, 1.0], [0.25, -1.0], [0.15, 0.5], [0.0, 0.0]])
    result, queries = jax.jit(lambda r: bisect_to_boundary(problem, r))(r)
    np.testing.assert_allclose(result[0], result[0, 0] / r[0, 0] * r[0], rtol=1e-6)
    assert min(abs(result[0, 0] - crossing) / crossing for crossing in (0.2, 0.75)) < 2e-5
    assert result[0, 0] > 0.2
    assert 0.2 < result[1, 0] < 0.2 * (1 + 2e-5)
    np.testing.assert_array_equal(result[2:], r[2:])
    assert (queries[:2] <= 22).all()
    assert queries[3] == 2


@pytest.mark.slow
def test_bisection_leaves_a_margin_above_rounding():
    """Compiled anew, f may round a smaller margin to the other side."""
    sloping = lambda x: jnp.stack([jnp.full(len(x), 0.5), x[:, 0]], axis=1)
    problem = make_problem(sloping, jnp.zeros((2, 2)), [0, 0])
    r = jnp.array([[np.nextafter(np.float32(0.5), np.float32(1)), 0.0], [1.0, 0.0]])
    result, _ = jax.jit(lambda r: bisect_to_boundary(problem, r))(r)
    eps = np.finfo(np.float32).eps
    assert (result[:, 0] > 0.5 * (1 + 64 * eps)).all()
    assert (result[:, 0] < 0.5 * (1 + 2e-5 + 65 * eps)).all()


@pytest.mark.slow
def test_the_fallback_bisects_to_the_nearest_adversarial_example():
    x = jnp.array([[0.0, 0.0], [0.1, 1.0], [0.9, 0.0]])
    problem = make_problem(stairs, x, [0, 0, 1])
    examples = jnp.array([[1.9, 0.0], [1.0, 0.0], [0.05, 0.0], [-0.9, 1.9]])
    rows, zeros = validate_starting_examples(examples, BOUNDS), jnp.zeros(3, int)
    result = jax.jit(lambda: refine(problem, Shortest.empty(problem), zeros, zeros, rows))()
    np.testing.assert_array_equal(stairs(x + result.r).argmax(1), [1, 1, 0])
    directions = np.array([[1.0, 0.0], [0.9, -1.0], [-0.85, 0.0]])
    expected = directions * (result.r[:, :1] / directions[:, :1])
    np.testing.assert_allclose(result.r, expected, atol=1e-6)
    np.testing.assert_array_equal(result.step, -1)
    assert (result.queries >= 4).all()


@pytest.mark.slow
def test_the_fallback_without_examples_is_random_per_example():
    x = jnp.full((6, 2), 0.5)

    @jax.jit
    def fall_back(seed):
        problem = make_problem(stairs, x, [0] * len(x), seed=seed)
        zeros = jnp.zeros(len(x), int)
        return refine(problem, Shortest.empty(problem), zeros, zeros, None)

    result, again, other = fall_back(0), fall_back(0), fall_back(1)
    assert (stairs(x + result.r).argmax(1) == 1).all()
    assert ((x + result.r >= BOUNDS[0]) & (x + result.r <= BOUNDS[1])).all()
    assert len(np.unique(result.r[:, 1])) == 6
    np.testing.assert_array_equal(result.r, again.r)
    assert (result.r != other.r).any(1).all()


@pytest.mark.slow
def test_the_fallback_leaves_successes_of_the_search_alone():
    x, zeros = jnp.zeros((2, 2)), jnp.zeros(2, int)
    problem = make_problem(stairs, x, [0, 0])
    shortest = Shortest.empty(problem).update(
        problem, jnp.full((2, 2), 1.5), jnp.array([True, False]), 3, 1
    )
    result = jax.jit(lambda: refine(problem, shortest, zeros + 10, zeros, None))()
    np.testing.assert_array_equal(result.step, [3, -1])
    np.testing.assert_allclose(result.r[0, 0], result.r[0, 1])
    assert result.gradients[0] == 10
    assert result.gradients[1] > 10
    np.testing.assert_array_equal(stairs(x + result.r).argmax(1), 1)


@pytest.mark.slow
def test_a_constant_program_is_robust(key):
    x = jnp.full((3, 2), 0.5)
    constant = lambda x: jnp.zeros_like(x).at[:, 0].set(1) + 0 * x
    result = deep_fool()(constant, x, jnp.zeros(3, int), key=key)
    assert not result.success.any()
    np.testing.assert_array_equal(result.adversarial, x)


def test_examples_of_another_size_than_x_are_refused(key):
    attack = ddn(examples=jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match="examples must have 2 values each, like x, got 3"):
        attack(lambda x: x, jnp.zeros((1, 2)), jnp.zeros(1, int), key=key)


@pytest.mark.parametrize(
    ("examples", "error", "message"),
    [
        (jnp.zeros((2, 3), int), TypeError, "examples"),
        (jnp.full((2, 3), jnp.nan), ValueError, "examples must be finite"),
        (jnp.full((2, 3), 3.0), ValueError, "examples must lie in"),
        ((), ValueError, "examples"),
        ({"a": jnp.zeros((2, 3)), "b": jnp.zeros((3, 3))}, ValueError, "leading axes"),
    ],
)
def test_bad_examples_are_refused(examples, error, message):
    with pytest.raises(error, match=message):
        ddn(examples=examples, bounds=BOUNDS)


@pytest.mark.slow
def test_examples_of_any_structure_become_rows():
    tree = {"a": jnp.zeros((2, 2, 3)), "b": jnp.ones((2, 4))}
    np.testing.assert_array_equal(validate_starting_examples(tree, BOUNDS), [[0] * 6 + [1] * 4] * 2)
    assert validate_starting_examples(None, BOUNDS) is None


def test_the_random_fallback_scales_with_the_box():
    x = jnp.array([[0.5, 0.25], [0.25, 0.75]])

    def fallback(width):
        f = lambda x: jnp.stack([0 * x[:, 0], (x / width) @ jnp.array([1.0, 0.3]) - 1], axis=1)
        return _random_ascent(make_problem(f, width * x, [0, 0], bounds=(0.0, width)))

    unit, wide = fallback(1.0), fallback(64.0)
    assert unit.found.all()
    np.testing.assert_allclose(wide.r, 64 * unit.r, rtol=1e-4)
