"""Projections onto half-spaces in a box against scipy, at corners, ties and without room."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog

from diffprog.adversarial.minimum_norm._halfspace_projection import (
    project_to_halfspace,
    project_to_intersection,
)
from tests.adversarial.minimum_norm.linear_programs import smallest_norm

NORMS = ("linf", "l2", "l1")
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
DUAL_ORDER = {"linf": 1, "l2": 2, "l1": np.inf}

project = jax.jit(project_to_halfspace, static_argnums=0)
project_to_all = jax.jit(project_to_intersection, static_argnums=0)
every_norm = pytest.mark.parametrize("norm", NORMS)


def exact_norm(norm, g, gain, low, high):
    """Solve min ||d||, <g, d> = gain: the root of the dual in l2, else a linear program."""
    if norm == "l2":
        step = lambda t: np.clip(t * g, low, high)
        enough = 2.0 ** next((k for k in range(-60, 200) if g @ step(2.0**k) >= gain), 200)
        shortfall = lambda t: g @ step(t) - gain
        return np.linalg.norm(
            step(
                brentq(shortfall, 0, enough, xtol=1e-16, rtol=1e-15)
                if shortfall(enough) > 0
                else enough
            )
        )
    # Variables: d, and the bounds on |d|, one for all in linf or one each in l1.
    size = -np.ones((len(g), 1)) if norm == "linf" else -np.eye(len(g))
    return linprog(
        np.r_[np.zeros(len(g)), np.ones(size.shape[1])],
        A_ub=np.block([[np.eye(len(g)), size], [-np.eye(len(g)), size]]),
        b_ub=np.zeros(2 * len(g)),
        A_eq=np.r_[g, np.zeros(size.shape[1])][None],
        b_eq=[gain],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * size.shape[1]],
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    ).fun


def case(seed, ties, shape=(4, 7)):
    """Draw slopes of many magnitudes, some equal or zero, and boxes with little or no room."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=shape) * 10.0 ** rng.uniform(-3, 3, (shape[0], 1))
    if ties:
        g = np.abs(g).max(1, keepdims=True) * rng.choice([-1, 1, 1 - 1e-12, 0, 0.3], g.shape)
    low, high = (
        side * rng.choice([0, 1e-6, 1], g.shape) * rng.uniform(size=g.shape) for side in (-1, 1)
    )
    return g, low, high


def largest_gain(g, low, high):
    return np.where(g > 0, g * high, g * low).sum(-1)


@every_norm
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.0, 1e-6, 0.1, 0.5, 0.9, 1 - 1e-9, 1.0]),
    ties=st.booleans(),
)
def test_the_projection_equals_that_of_scipy(norm, seed, share, ties):
    g, low, high = case(seed, ties)
    gain = share * largest_gain(g, low, high)
    with jax.enable_x64(True):
        d = np.asarray(
            project(norm, jnp.asarray(g), jnp.asarray(gain), jnp.asarray(low), jnp.asarray(high))
        )
    assert ((low <= d) & (d <= high)).all()
    np.testing.assert_allclose((g * d).sum(1), gain, rtol=1e-8, atol=1e-12)
    for row in np.flatnonzero(gain):
        # Scaled so that the solver's tolerances are small, and not beyond the corner by rounding.
        unit = g[row] / np.abs(g[row]).max()
        reachable = min(gain[row] / np.abs(g[row]).max(), largest_gain(unit, low[row], high[row]))
        expected = exact_norm(norm, unit, reachable, low[row], high[row])
        np.testing.assert_allclose(
            np.linalg.norm(d[row], ORDER[norm]), expected, rtol=1e-8, atol=1e-9
        )


@every_norm
def test_an_unreachable_halfspace_gives_the_corner_of_the_box(norm):
    g, low, high = (jnp.asarray(array, jnp.float32) for array in case(0, ties=False))
    d = project(norm, g, 2 * jnp.asarray(largest_gain(g, low, high)), low, high)
    assert ((low <= d) & (d <= high)).all()
    np.testing.assert_allclose((g * d).sum(1), largest_gain(g, low, high), rtol=1e-6)


@every_norm
@pytest.mark.parametrize("share", [0.3, 0.9, 0.9999])
def test_float32_is_exact_at_image_size_over_six_decades(norm, share):
    """Newton's method converges: to the rounding of a sum of a thousand terms."""
    rng = np.random.default_rng(1)
    g, room = (rng.normal(size=(20, 1024)) * 10 ** rng.uniform(-6, 0, (20, 1024)) for _ in range(2))
    low, high = -np.abs(room), np.abs(room)
    gain = share * largest_gain(g, low, high)
    d = project(norm, *(jnp.asarray(array, jnp.float32) for array in (g, gain, low, high)))
    np.testing.assert_allclose((np.asarray(d, np.float64) * g).sum(1), gain, rtol=1e-5)


def intersection_case(seed, halfspaces, size):
    """Draw half-spaces of several magnitudes with a common point, and boxes without room."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(8, size))
    x = np.where(rng.uniform(size=x.shape) < 0.3, rng.choice([0, 1], x.shape), x)
    g = rng.normal(size=(halfspaces, 8, size)) * 10.0 ** rng.uniform(-2, 2, (halfspaces, 1, 1))
    common = rng.uniform(size=x.shape) - x
    slack = rng.uniform(size=(halfspaces, 8)) * np.linalg.norm(g, axis=2) / 10
    return g, (g * common).sum(2) - slack, -x, 1 - x


@every_norm
@pytest.mark.parametrize(("halfspaces", "size"), [(2, 20), (9, 20)])
def test_the_projection_to_an_intersection_is_near_that_of_scipy(norm, halfspaces, size):
    lengths, violations = [], []
    for seed in range(8):
        g, gains, low, high = intersection_case(seed, halfspaces, size)
        arrays = (jnp.asarray(array, jnp.float32) for array in (g, gains, low, high))
        d = np.asarray(project_to_all(norm, *arrays), np.float64)
        assert ((low - 1e-6 <= d) & (d <= high + 1e-6)).all()
        outside = np.flatnonzero(gains.max(0) > 0)
        exact = np.array(
            [smallest_norm(norm, g[:, k], gains[:, k], low[k], high[k]) for k in outside]
        )
        violation = (gains - (g * d).sum(2)) / np.linalg.norm(g, DUAL_ORDER[norm], axis=2)
        lengths.extend(np.linalg.norm(d, ORDER[norm], axis=1)[outside] / exact)
        violations.extend(violation.max(0)[outside] / exact)
    assert len(lengths) > 40
    assert np.max(lengths) <= 1.01
    assert np.percentile(lengths, 10) >= 0.9
    assert np.percentile(violations, 90) <= 0.05


@pytest.mark.slow
@every_norm
@pytest.mark.parametrize("gain", [np.finfo(np.float32).max, 1e-30, -np.finfo(np.float32).max])
@pytest.mark.parametrize("slope", [0.0, 1e-38, 1e-20, 1e30, 3e38])
def test_the_projection_to_an_intersection_is_finite_and_in_the_box(norm, slope, gain):
    arrays = (jnp.asarray(array, jnp.float32) for array in intersection_case(3, 3, 20))
    g, gains, low, high = arrays
    d = project_to_all(norm, g.at[0].set(slope * jnp.sign(g[0])), gains.at[1].set(gain), low, high)
    assert jnp.isfinite(d).all()
    assert ((low - 1e-6 <= d) & (d <= high + 1e-6)).all()


@every_norm
def test_no_step_is_taken_inside_all_halfspaces(norm):
    arrays = (jnp.asarray(array, jnp.float32) for array in intersection_case(1, 3, 20))
    g, gains, low, high = arrays
    np.testing.assert_array_equal(project_to_all(norm, g, -jnp.abs(gains), low, high), 0)
