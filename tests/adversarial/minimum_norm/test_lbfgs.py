"""Batched L-BFGS in a box against scipy's L-BFGS-B."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from diffprog.adversarial.minimum_norm import _lbfgs

BATCH, SIZE = 6, 10


@functools.partial(jax.jit, static_argnames=("memory",))
def _minimize(matrices, targets, curvature, point, low, high, steps, memory=5):
    """Minimize (v - t)' A (v - t) / 2 + curvature Rosenbrock(v_0, v_1), NaN where v_0 > 0.9."""

    def objective(v):
        offset = v - targets
        quadratic = jnp.einsum("bi,bij,bj->b", offset, matrices, offset) / 2
        value = quadratic + curvature * (10 * (v[:, 1] - v[:, 0] ** 2) ** 2 + (1 - v[:, 0]) ** 2)
        return jnp.where(v[:, 0] > 0.9, jnp.nan, value), v.sum(1)

    state = _lbfgs.init(objective, point, memory)
    initial = state.value
    step = lambda _, state: _lbfgs.step(objective, low, high, state)
    return jax.lax.fori_loop(0, steps, step, state), initial


def minimized(problem, steps):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, _minimize(*map(jnp.asarray, problem), steps))


def case(seed, curvature=0.0, reach=0.5):
    """Draw quadratics of condition number 100 whose minima lie inside or outside the box."""
    rng = np.random.default_rng(seed)
    rotations = np.stack([np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0] for _ in range(BATCH)])
    matrices = np.einsum("bij,j,bkj->bik", rotations, np.logspace(-1, 1, SIZE), rotations)
    targets = rng.uniform(-reach, reach, (BATCH, SIZE))
    low, high = np.full((BATCH, SIZE), -0.6), np.full((BATCH, SIZE), 0.8)
    return matrices, targets, np.full(BATCH, curvature), np.zeros((BATCH, SIZE)), low, high


def scipy_minima(matrices, targets, curvature, point, low, high):
    def minimum(row):
        def objective(v):
            offset = v - targets[row]
            rosenbrock = 10 * (v[1] - v[0] ** 2) ** 2 + (1 - v[0]) ** 2
            return offset @ matrices[row] @ offset / 2 + curvature[row] * rosenbrock

        options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 2000, "maxfun": 10**6}
        return minimize(
            objective,
            point[row],
            bounds=list(zip(low[row], high[row], strict=True)),
            method="L-BFGS-B",
            options=options,
        ).fun

    return np.array([minimum(row) for row in range(len(point))])


@pytest.mark.slow
@pytest.mark.parametrize("reach", [0.3, 3.0], ids=["inside", "on faces"])
@pytest.mark.parametrize("curvature", [0.0, 1.0])
def test_minima_equal_those_of_scipy(reach, curvature):
    problem = case(0, curvature, reach)
    state, initial = minimized(problem, 200)
    minima = scipy_minima(*problem)
    assert (state.value < initial).all()
    np.testing.assert_allclose(state.value, minima, rtol=1e-6, atol=1e-10)
    low, high = problem[-2:]
    assert ((state.point >= low) & (state.point <= high)).all()
    on_faces = ((state.point == low) | (state.point == high)).any(1)
    assert on_faces.all() if reach > 1 else not on_faces.all()


def test_a_quadratic_takes_few_gradients():
    """Steepest descent takes hundreds at this condition number."""
    problem = case(1, reach=0.3)
    state, initial = minimized(problem, 40)
    minima = scipy_minima(*problem)
    assert (state.value - minima < 1e-6 * (initial - minima)).all()
    assert (state.gradients <= 60).all()
    np.testing.assert_allclose(state.aux, state.point.sum(1), atol=1e-14)


@pytest.mark.slow
def test_an_example_does_not_depend_on_the_others():
    problem, others = case(2), case(3, 1.0, 3.0)
    mixed = tuple(
        np.concatenate([mine[:2], theirs[2:]]) for mine, theirs in zip(problem, others, strict=True)
    )
    (state, _), (mixed_state, _) = minimized(problem, 30), minimized(mixed, 30)
    np.testing.assert_allclose(mixed_state.point[:2], state.point[:2], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(mixed_state.gradients[:2], state.gradients[:2])


@pytest.mark.slow
def test_no_step_leads_to_nan():
    """The minima of the quadratics lie where the objective is NaN."""
    matrices, _, curvature, point, low, _ = case(4)
    state, initial = minimized(
        (matrices, np.full_like(point, 0.95), curvature, point, low, np.ones_like(low)), 50
    )
    assert np.isfinite(state.value).all()
    assert (state.value < initial).all()
    assert (state.point[:, 0] <= 0.9).all()
    assert (state.point[:, 0] > 0.5).any()


@pytest.mark.slow
def test_a_minimum_is_not_left_and_takes_no_further_gradients():
    matrices, targets, curvature, _, low, high = case(5)
    state, _ = minimized((matrices, targets, curvature, targets, low, high), 10)
    np.testing.assert_array_equal(state.point, targets)
    np.testing.assert_array_equal(state.gradients, 1)
    assert not state.steps.any()
