"""The nearest point of a half-space in a box: against scipy's linear programs and roots, at corners, ties and without room."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog

from diffprog.adversarial.minimum_norm import _halfspace_projection

NORMS = ("linf", "l2", "l1")
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}

nearest = jax.jit(_halfspace_projection.nearest, static_argnums=0)
every_norm = pytest.mark.parametrize("norm", NORMS)


def shortest(norm, g, gain, low, high):
    """min ||d|| such that <g, d> = gain and low <= d <= high: the root of the dual for l2, else a linear program."""
    if norm == "l2":
        step = lambda t: np.clip(t * g, low, high)
        enough = 2.0 ** next((k for k in range(-60, 200) if g @ step(2.0**k) >= gain), 200)
        lacking = lambda t: g @ step(t) - gain
        return np.linalg.norm(
            step(
                brentq(lacking, 0, enough, xtol=1e-16, rtol=1e-15)
                if lacking(enough) > 0
                else enough
            )
        )
    # d, and the sizes that bound it: one for all, or one for each.
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
    """Slopes of many magnitudes, some equal, nearly equal or zero; boxes with little room, or none, on some sides."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=shape) * 10.0 ** rng.uniform(-3, 3, (shape[0], 1))
    if ties:
        g = np.abs(g).max(1, keepdims=True) * rng.choice([-1, 1, 1 - 1e-12, 0, 0.3], g.shape)
    low, high = (
        side * rng.choice([0, 1e-6, 1], g.shape) * rng.uniform(size=g.shape) for side in (-1, 1)
    )
    return g, low, high


def most(g, low, high):
    return np.where(g > 0, g * high, g * low).sum(-1)


@every_norm
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.0, 1e-6, 0.1, 0.5, 0.9, 1 - 1e-9, 1.0]),
    ties=st.booleans(),
)
def test_it_is_scipys(norm, seed, share, ties):
    g, low, high = case(seed, ties)
    gain = share * most(g, low, high)
    with jax.enable_x64(True):
        d = np.asarray(
            nearest(norm, jnp.asarray(g), jnp.asarray(gain), jnp.asarray(low), jnp.asarray(high))
        )
    assert ((low <= d) & (d <= high)).all()
    np.testing.assert_allclose((g * d).sum(1), gain, rtol=1e-8, atol=1e-12)
    for row in np.flatnonzero(gain):
        # In units in which the linear program's tolerances are small; and not beyond the corner by a rounding of these.
        unit = g[row] / np.abs(g[row]).max()
        asked = min(gain[row] / np.abs(g[row]).max(), most(unit, low[row], high[row]))
        expected = shortest(norm, unit, asked, low[row], high[row])
        np.testing.assert_allclose(
            np.linalg.norm(d[row], ORDER[norm]), expected, rtol=1e-8, atol=1e-9
        )


@every_norm
def test_what_has_no_solution_goes_as_far_as_the_box(norm):
    g, low, high = (jnp.asarray(array, jnp.float32) for array in case(0, ties=False))
    d = nearest(norm, g, 2 * jnp.asarray(most(g, low, high)), low, high)
    assert ((low <= d) & (d <= high)).all()
    np.testing.assert_allclose((g * d).sum(1), most(g, low, high), rtol=1e-6)


@every_norm
@pytest.mark.parametrize("share", [0.3, 0.9, 0.9999])
def test_float32_of_an_images_size_and_six_decades(norm, share):
    """The Newton steps suffice: the gain is reached to float32's rounding of a sum of a thousand terms."""
    rng = np.random.default_rng(1)
    g, room = (rng.normal(size=(20, 1024)) * 10 ** rng.uniform(-6, 0, (20, 1024)) for _ in range(2))
    low, high = -np.abs(room), np.abs(room)
    gain = share * most(g, low, high)
    d = nearest(norm, *(jnp.asarray(array, jnp.float32) for array in (g, gain, low, high)))
    np.testing.assert_allclose((np.asarray(d, np.float64) * g).sum(1), gain, rtol=1e-5)
