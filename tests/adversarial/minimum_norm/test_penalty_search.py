"""C&W, EAD and box L-BFGS: the search for c. Distances: see `test_minimum_norm`."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffprog.adversarial import box_lbfgs, carlini_wagner, elastic_net
from diffprog.adversarial._base import Problem
from diffprog.adversarial.minimum_norm._penalty_search import _first_order_weight
from diffprog.norms import l2
from tests.adversarial.minimum_norm.linear_programs import assert_near, exact_distances, linear_case

ATTACKS = {"box_lbfgs": box_lbfgs, "carlini_wagner": carlini_wagner, "elastic_net": elastic_net}
every_attack = pytest.mark.parametrize("name", ATTACKS)


@pytest.mark.slow
@every_attack
def test_more_searches_find_no_longer_perturbations_and_are_counted(key, name):
    f, x, y = linear_case(7)
    one, six = (ATTACKS[name](searches=searches)(f, x, y, key=key) for searches in (1, 6))
    # The shortest is selected before the bisection, which may shorten another one more.
    assert (six.distance <= one.distance * (1 + 1e-2)).all()
    assert (six.restart < 6).all()
    gradients = (six.gradients - one.gradients) / 5
    if name == "box_lbfgs":
        assert (gradients >= 2).all()
    else:
        np.testing.assert_array_equal(gradients, 100 if name == "elastic_net" else 200)


@pytest.mark.slow
@every_attack
def test_c_grows_until_the_first_success(key, name):
    """The slope of the logits falls from 18 at x to 0.5 at the boundary."""

    def saturating(x):
        rise = x.mean(1) - 0.2
        logit = 0.9 * jnp.tanh(20 * rise) + 0.5 * rise - 0.9 * np.tanh(4) - 0.1
        return jnp.stack([jnp.zeros_like(logit), logit], axis=1)

    result = ATTACKS[name]()(saturating, jnp.full((2, 4), 0.2), jnp.zeros(2, int), key=key)
    assert (result.step >= 0).all()
    distance = 0.8 if name == "elastic_net" else 0.4
    np.testing.assert_allclose(result.distance, distance, rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "argument", "value", "error"),
    [
        (carlini_wagner, "rate", 0, ValueError),
        (elastic_net, "rate", -1, ValueError),
        (elastic_net, "beta", -1, ValueError),
        (elastic_net, "beta", "1", TypeError),
    ],
)
def test_a_bad_argument_is_named_in_the_error(make, argument, value, error):
    with pytest.raises(error, match=argument):
        make(**{argument: value})


def test_the_first_penalty_weight_is_the_smallest_that_reaches_a_linear_boundary():
    """Of ||r||² + c max(m - <g, r>, 0) the minimum is r = c g / 2 until <g, r> = m."""
    g, m = jnp.array([[0.3, 0.4]]), 0.1
    f = lambda x: jnp.stack([m + 0 * x[:, 0], (x - 0.5) @ g[0]], 1)
    x = jnp.full((1, 2), 0.5)
    problem = Problem(f, x, jnp.array([0]), None, None, l2, (0.0, 1.0), False, (2,), f(x))
    boundary = m * g / (g**2).sum()
    c = _first_order_weight(problem, jnp.array([1]), boundary, jnp.zeros(()))
    np.testing.assert_allclose(c * g / 2, boundary, rtol=1e-5)


def test_carlini_wagner_starts_at_the_boundary_of_the_linear_model(key):
    """There the first step already succeeds, however small the learning rate."""
    f, x, y = linear_case(3, inner=True)
    result = carlini_wagner(steps=1, searches=1, rate=1e-6)(f, x, y, key=key)
    np.testing.assert_array_equal(result.step[~result.initially_misclassified], 0)


def test_elastic_net_reaches_linear_targets_at_their_distance(key):
    f, x, y = linear_case(3, inner=True)
    target = (y + 1) % 3
    result = elastic_net(targeted=True)(f, x, target, key=key)
    assert_near(result, exact_distances("l1", f, x, target, targeted=True))
