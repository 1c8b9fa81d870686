"""C&W, EAD and box L-BFGS: the search for c. Distances: see `test_minimum_norm`."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffprog.adversarial import box_lbfgs, carlini_wagner, elastic_net
from tests.adversarial.minimum_norm.linear_programs import linear_case

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
