"""FAB: radius, gradients per step, walks and restarts. Distances: see `test_minimum_norm`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp
from diffprog.adversarial import fab
from tests.adversarial.minimum_norm.linear_programs import (
    assert_near,
    exact_distances,
    linear_case,
)

SIZE = 16  # random samples of rows that are no multiple of 8 take three times as long to compile
WIDE = (-100.0, 100.0)


def curved_case(seed, batch=16):
    """Draw a nonlinear program and examples, in a box so wide that it is never met."""
    rng = np.random.default_rng(seed)
    weights = [jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((SIZE, 16), (16, 3))]
    f = dp.program(lambda weights, x: jnp.tanh(x @ weights[0]) @ weights[1], weights)
    x = jnp.asarray(rng.normal(size=(batch, SIZE)), jnp.float32)
    return f, x, f(x).argmax(1)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_one_walk_per_class_is_exact_and_takes_one_gradient_per_step(key, norm):
    f, x, y = linear_case(3)
    one_by_one = fab(norm=norm, steps=10, targets=2)(f, x, y, key=key)
    nearest = fab(norm=norm, steps=10)(f, x, y, key=key)
    assert_near(one_by_one, exact_distances(norm, f, x, y))
    # Two classes: two walks of 10 gradients, or 10 steps of two gradients.
    np.testing.assert_array_equal(one_by_one.gradients, 20)
    np.testing.assert_array_equal(nearest.gradients, 20)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_success_within_a_radius_is_decided_by_the_distance(key, norm):
    f, x, y = linear_case(3, inner=True)
    exact = exact_distances(norm, f, x, y)
    assert np.isfinite(exact).all()
    for factor in (1.02, 0.99):
        epsilon = jnp.asarray(factor * exact, jnp.float32)
        result = fab(norm=norm, epsilon=epsilon)(f, x, y, key=key)
        assert result.success.mean() >= 0.9 if factor > 1 else not result.success.any()
        np.testing.assert_array_equal(result.step >= 0, result.success)
        # Examples with a success stop early; the others take two gradients in all 100 steps.
        assert (result.gradients[result.success] < 200).all()
        np.testing.assert_array_equal(result.gradients[~result.success], 200)


def test_a_walk_ends_where_the_perturbation_is_normal_to_the_boundary(key):
    f, x, y = curved_case(0)

    def cosines(result):
        is_y = jax.nn.one_hot(y, 3, dtype=bool)
        other = jnp.where(is_y, -jnp.inf, f(result.adversarial)).argmax(1)
        select = lambda logits, labels: jnp.take_along_axis(logits, labels[:, None], 1).sum()
        g = jax.grad(lambda x: select(f(x), other) - select(f(x), y))(result.adversarial)
        r = result.perturbation
        return (g * r).sum(1) / np.linalg.norm(g, axis=1) / np.linalg.norm(r, axis=1)

    one, many = (fab(norm="l2", steps=steps, bounds=WIDE)(f, x, y, key=key) for steps in (1, 100))
    assert one.success.all()
    assert many.distance.sum() < one.distance.sum()
    assert np.median(cosines(one)) < 0.99 < 0.999 < np.median(cosines(many))


@pytest.mark.slow
def test_restarts_shorten_perturbations_and_are_reported(key):
    f, x, y = curved_case(1)
    one, five = (
        fab(norm="l2", steps=10, restarts=restarts, bounds=WIDE)(f, x, y, key=key)
        for restarts in (1, 5)
    )
    # The shortest is selected before the bisection, which may shorten another one more.
    assert (five.distance <= one.distance).mean() > 0.8
    assert five.distance.sum() < one.distance.sum()
    assert (five.restart > 0).any()
    np.testing.assert_array_equal(five.gradients, 5 * one.gradients)


@pytest.mark.slow
def test_the_fallback_starts_from_an_example(key):
    stairs = dp.program(
        lambda x: jnp.stack([jnp.zeros(len(x)), jnp.where(x.min(1) > 0.9, 1.0, -1.0)], 1)
    )
    x, y = jnp.full((3, SIZE), 0.5), jnp.zeros(3, int)
    examples = jnp.stack([jnp.full(SIZE, 1.0), jnp.full(SIZE, 0.7)])
    result = fab(norm="l2", steps=3, examples=examples)(stairs, x, y, key=key)
    assert result.success.all()
    np.testing.assert_allclose(result.distance, 0.4 * np.sqrt(SIZE), rtol=2e-5)
    np.testing.assert_array_equal(result.step, -1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"targets": 2, "targeted": True}, "targets"),
        ({"overshoot": -0.1}, "overshoot"),
        ({"pull": 1.5}, "pull"),
        ({"backward": float("nan")}, "backward"),
    ],
)
def test_a_bad_argument_is_named_in_the_error(arguments, named):
    with pytest.raises(ValueError, match=named):
        fab(**arguments)
