"""DDN and FMN: their restarts. Distances: see `test_minimum_norm`."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from diffprog.adversarial import ddn, fmn
from tests.adversarial.minimum_norm.linear_programs import exact_distances, linear_case


@pytest.mark.slow
@pytest.mark.parametrize("attack", [ddn, functools.partial(fmn, norm="l2")], ids=["ddn", "fmn"])
def test_restarts_find_nearest_classes_that_the_first_run_misses(key, attack):
    """The likeliest class is not always the nearest of ten."""
    f, x, y = linear_case(6, 10, inner=True, uneven=True)
    exact = exact_distances("l2", f, x, y)
    one, three = (attack(steps=100, restarts=restarts)(f, x, y, key=key) for restarts in (1, 3))
    rounding = 1e-5
    assert (three.distance <= one.distance + rounding).all()
    assert (one.distance > 1.02 * exact + rounding).any()
    assert (three.distance < 1.005 * exact + rounding).all()
    assert set(np.unique(three.restart)) <= {0, 1, 2}
    np.testing.assert_array_equal(one.gradients, 100)
    np.testing.assert_array_equal(three.gradients, 300 + 9)


@pytest.mark.parametrize("make", [ddn, fmn])
@pytest.mark.parametrize(("argument", "value"), [("rate", 0), ("gamma", 0), ("gamma", 1.5)])
def test_a_bad_argument_is_named_in_the_error(make, argument, value):
    with pytest.raises(ValueError, match=argument):
        make(**{argument: value})


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_fmn_crosses_a_linear_boundary_in_its_first_step(key, norm):
    """Its first radius is the margin over the dual norm of the gradient."""
    g = jnp.array([0.2, 3.0, -0.1, 0.1])
    f = lambda x: jnp.stack([0.3 + 0 * x[:, 0], (x - 0.5) @ g], 1)
    x, y = jnp.full((2, 4), 0.5), jnp.zeros(2, int)
    result = fmn(norm=norm, steps=2, restarts=1)(f, x, y, key=key)
    np.testing.assert_array_equal(result.step, 1)
    dual = {"l2": 2, "l1": np.inf}[norm]
    np.testing.assert_allclose(result.distance, 0.3 / np.linalg.norm(g, dual), rtol=2e-3)
