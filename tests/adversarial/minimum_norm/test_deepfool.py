"""DeepFool: the number of its steps and gradients. Distances: see `test_minimum_norm`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import norms
from diffprog.adversarial import deep_fool
from diffprog.adversarial._base import Problem
from diffprog.adversarial.minimum_norm._deepfool import linearized_boundaries
from tests.adversarial.minimum_norm.linear_programs import (
    ball_case,
    distances_to_sphere,
    linear_case,
)

every_norm = pytest.mark.parametrize("norm", ["l2", "linf", "l1"])


@pytest.mark.slow
@every_norm
def test_a_curved_boundary_takes_several_steps(key, norm):
    f, x, y = ball_case(1)
    one, many = (deep_fool(norm=norm, steps=steps)(f, x, y, key=key) for steps in (1, 50))
    assert many.success.all()
    assert (many.distance >= distances_to_sphere(norm, x) - 1e-6).all()
    # Two candidate classes: two gradients per step.
    np.testing.assert_array_equal(many.gradients, 2 * many.step)
    assert (one.gradients == 2).all()


@pytest.mark.slow
def test_initially_misclassified_examples_take_no_gradients(key):
    f, x, y = linear_case(2)
    wrong = np.arange(len(x)) < 5
    result = deep_fool()(f, x, np.where(wrong, (y + 1) % 3, y), key=key)
    np.testing.assert_array_equal(result.gradients[wrong], 0)
    assert (result.gradients[~wrong] > 0).all()


@pytest.mark.slow
def test_fewer_candidates_take_fewer_gradients_and_may_miss_the_nearest_class(key):
    f, x, y = linear_case(6, 10, inner=True, uneven=True)
    one, every = (deep_fool(candidates=count)(f, x, y, key=key) for count in (1, 20))
    np.testing.assert_array_equal(one.gradients * 9, every.gradients)
    assert (every.distance <= one.distance + 1e-5).all()
    assert (every.distance < 0.98 * one.distance).any()


@pytest.mark.slow
@pytest.mark.parametrize("logits", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("targeted", [False, True])
def test_sixteen_bits_succeed_and_are_kept(targeted, logits):
    """In 16 bits the bisection would stall, and the logits may have more bits than x."""
    x = jax.random.uniform(jax.random.key(0), (5, 12)).astype(jnp.bfloat16)
    weights = jax.random.normal(jax.random.key(1), (12, 4))
    f = lambda x: x.astype(logits) @ weights.astype(logits)
    y = (f(x).argmax(1) + targeted) % 4
    result = deep_fool(targeted=targeted)(f, x, y, key=jax.random.key(2))
    assert result.success.all()
    assert result.adversarial.dtype == jnp.bfloat16


def test_a_negative_overshoot_is_refused():
    with pytest.raises(ValueError, match="overshoot"):
        deep_fool(overshoot=-0.1)


@every_norm
def test_a_boundary_outside_the_box_is_infinitely_far(norm):
    """From x = 0.5 the box allows a gain of 1 in the class 1, whose gap is 1.25, 1 and 0.5."""
    x = jnp.full((3, 4), 0.5)
    gap = jnp.array([1.25, 1.0, 0.5])
    f = lambda x: jnp.stack([gap, 0.5 * (x - 0.5).sum(1)], 1)
    y = jnp.zeros(3, int)
    problem = Problem(f, x, y, None, None, norms.named(norm), (0.0, 1.0), False, (4,), f(x))
    lengths = linearized_boundaries(problem, norm, jnp.ones((1, 3), int), 0 * x).lengths[0]
    np.testing.assert_array_equal(jnp.isfinite(lengths), [False, True, True])
    np.testing.assert_allclose(lengths[2], {"linf": 0.25, "l2": 0.5, "l1": 1.0}[norm], rtol=1e-4)
