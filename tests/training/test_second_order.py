"""Second order and zeroth order against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffprog.descent import descent, run
from diffprog.training import antithetic, newton_cg, spsa


def test_newton_with_a_line_search_goes_down_the_valley():
    valley = lambda w, k: (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2
    rule = optax.chain(newton_cg(), optax.scale_by_backtracking_linesearch(20))
    np.testing.assert_allclose(
        run(descent(valley, rule), jnp.array([-1.2, 1.0]), 40).variable, 1, atol=1e-3
    )


def test_estimates_are_the_slope_of_a_linear_cost_on_the_mean():
    slope = jnp.array([1.0, -2.0])
    for estimator in (antithetic, spsa):
        estimate = jax.grad(estimator(lambda w: w @ slope, samples=4096))(
            jnp.zeros(2), key=jax.random.key(0)
        )
        # The deviation of one sample is at most |slope| sqrt(2) = 3.2; of the mean of 4096, 0.05.
        np.testing.assert_allclose(estimate, slope, atol=0.2)
