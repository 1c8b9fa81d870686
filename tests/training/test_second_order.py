"""Second-order rules and zeroth-order estimates against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffprog.descent import descent, run
from diffprog.training import antithetic, newton_cg, spsa
from diffprog.training._second_order import _conjugate_gradients


def test_newton_cg_with_a_line_search_minimizes_the_rosenbrock_function():
    rosenbrock = lambda w, k: (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2
    rule = optax.chain(newton_cg(), optax.scale_by_backtracking_linesearch(20))
    np.testing.assert_allclose(
        run(descent(rosenbrock, rule), jnp.array([-1.2, 1.0]), 40).variable, 1, atol=1e-3
    )


def test_estimates_average_to_the_gradient_of_a_linear_cost():
    gradient = jnp.array([1.0, -2.0])
    for estimator in (antithetic, spsa):
        estimate = jax.grad(estimator(lambda w: w @ gradient, samples=4096))(
            jnp.zeros(2), key=jax.random.key(0)
        )
        # The standard deviation is at most |gradient| sqrt(2) = 3.2, that of the mean 0.05.
        np.testing.assert_allclose(estimate, gradient, atol=0.2)


def test_conjugate_gradients_stop_at_nonpositive_curvature():
    """H = diag(1, -1): the first direction, -g, has positive curvature and the second has not."""
    g = jnp.array([-1.0, -0.1])
    solve = _conjugate_gradients(damping=0.0, iterations=10, tolerance=1e-6)
    step = solve(lambda v: v * jnp.array([1.0, -1.0]), g)
    np.testing.assert_allclose(step, -g * 1.01 / 0.99, rtol=1e-6)
    np.testing.assert_array_equal(solve(lambda v: -v, g), -g)
    definite = solve(lambda v: v * jnp.array([2.0, 5.0]), g)
    np.testing.assert_allclose(definite, [0.5, 0.02], rtol=1e-5)
