"""Distances of the operands of primitives from their kinks."""

import jax.numpy as jnp
import numpy as np

from diffprog.checks._kinks import _clamp, _comparison


def test_the_margin_of_clamp_is_the_distance_to_the_nearer_bound():
    x = jnp.array([-1.0, 0.25, 1.5, 3.75, 7.0])
    margin, branch = _clamp(None, jnp.zeros(5), x, jnp.full(5, 4.0))
    np.testing.assert_allclose(margin, [1, 0.25, 1.5, 0.25, 3])
    np.testing.assert_array_equal(branch, [-2, 0, 0, 0, 2])


def test_the_margin_of_a_comparison_is_the_difference_of_its_operands():
    margin, branch = _comparison(None, jnp.array([1.0, 2.0, 3.0]), jnp.full(3, 2.0))
    np.testing.assert_allclose(margin, [1, 0, 1])
    np.testing.assert_array_equal(branch, [-1, 0, 1])
