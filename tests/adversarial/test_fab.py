"""FAB: hyperplanes in a box against scipy, the truth of linear classifiers in a box, the radius, and how often f was asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog

import diffprog as dp
from diffprog.adversarial._fab import fab
from diffprog.adversarial._halfspace import nearest

NORMS = ("linf", "l2", "l1")
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
BOUNDS = (-2.1179, 2.64)

every_norm = pytest.mark.parametrize("norm", NORMS)


def linear(weights, x):
    return (x.reshape(len(x), -1) - 0.5) @ weights


def case(seed, batch=8, size=10, classes=3, bounds=(0.0, 1.0), dtype=np.float32, faces=0.0):
    """A linear program, examples (some numbers of them on the faces of the box), and what it reads."""
    rng = np.random.default_rng(seed)
    low, high = (dtype(bound) for bound in bounds)
    x = rng.uniform(low, high, (batch, size)).astype(dtype)
    x = np.where(rng.uniform(size=x.shape) < faces, rng.choice([low, high], x.shape), x)
    f = dp.program(linear, jnp.asarray(rng.normal(size=(size, classes)).astype(dtype)))
    return f, jnp.asarray(x), f(x).argmax(1)


def lengths(norm, r):
    return np.linalg.norm(np.asarray(r, np.float64).reshape(len(r), -1), ORDER[norm], axis=1)


def shortest(norm, g, gain, low, high):
    """min ||d|| of one d with <g, d> = gain > 0 and low <= d <= high: a linear program, or the root of the dual; infinite if there is none."""
    n = len(g)
    if np.where(g > 0, g * high, g * low).sum() < gain:
        return np.inf
    if norm == "l2":
        step = lambda t: np.clip(t * g, low, high)  # noqa: E731
        enough = 2.0 ** next(k for k in range(-60, 200) if g @ step(2.0**k) >= gain)
        return np.linalg.norm(step(brentq(lambda t: g @ step(t) - gain, 0, enough, xtol=1e-16, rtol=1e-15)))
    sizes = 1 if norm == "linf" else n
    above = np.block([[np.eye(n), -np.ones((n, 1)) if norm == "linf" else -np.eye(n)]])
    below = np.block([[-np.eye(n), -np.ones((n, 1)) if norm == "linf" else -np.eye(n)]])
    answer = linprog(
        np.r_[np.zeros(n), np.ones(sizes)],
        A_ub=np.vstack([above, below]),
        b_ub=np.zeros(2 * n),
        A_eq=np.r_[g, np.zeros(sizes)][None],
        b_eq=[gain],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * sizes],
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    return answer.fun


@every_norm
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.0, 1e-6, 0.1, 0.5, 0.9, 1 - 1e-9, 1.0]), ties=st.booleans())
def test_the_nearest_point_of_a_hyperplane_in_a_box_is_scipys(norm, seed, share, ties):
    """Also with equal and near slopes, no slope, no room, and at the corner of the box."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(4, 7)) * 10.0 ** rng.uniform(-3, 3, (4, 1))
    if ties:
        g = np.abs(g).max(1, keepdims=True) * rng.choice([-1, 1, 1 - 1e-12, 0, 0.3], g.shape)
    low, high = (side * rng.choice([0, 1e-6, 1], g.shape) * rng.uniform(size=g.shape) for side in (-1, 1))
    gain = share * np.where(g > 0, g * high, g * low).sum(1)
    with jax.enable_x64(True):
        d = np.asarray(nearest(norm, jnp.asarray(g), jnp.asarray(gain), jnp.asarray(low), jnp.asarray(high)))
    assert ((low <= d) & (d <= high)).all()
    np.testing.assert_allclose((g * d).sum(1), gain, rtol=1e-8, atol=1e-12)
    # Each problem in its own units, in which a linear program's tolerances are small.
    expected = [shortest(norm, *(row / np.abs(row[0]).max() if k < 2 else row for k, row in enumerate(rows))) for rows in []]
    for row in range(len(g)):
        if gain[row] > 0:
            unit = np.abs(g[row]).max()
            expected = shortest(norm, g[row] / unit, min(gain[row] / unit, np.where(g[row] > 0, g[row] * high[row], g[row] * low[row]).sum() / unit), low[row], high[row])
            np.testing.assert_allclose(lengths(norm, d)[row], expected, rtol=1e-8, atol=1e-9)


def truth(norm, f, x, y, bounds=(0.0, 1.0)):
    """The distance to the nearest other class of a linear program inside the box."""
    weights, logits, x = (np.asarray(array, np.float64) for array in (f.arrays[0], f(x), x))
    low, high = bounds
    others = lambda i: (j for j in range(weights.shape[1]) if j != y[i])  # noqa: E731
    to = lambda i, j: shortest(norm, weights[:, j] - weights[:, y[i]], logits[i, y[i]] - logits[i, j], low - x[i], high - x[i])  # noqa: E731
    return np.array([min(to(i, j) for j in others(i)) for i in range(len(x))])


@every_norm
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("targets", [None, 2])
def test_a_linear_classifiers_distance_in_the_box_is_met(key, norm, classes, targets):
    f, x, y = case(classes, batch=30, classes=classes, faces=0.2)
    found = fab(norm=norm, targets=targets)(f, x, y, key=key)
    expected = truth(norm, f, x, y)
    assert np.isfinite(expected).sum() > 20
    np.testing.assert_array_equal(found.success, np.isfinite(expected))
    ratio = (np.asarray(found.distance) / expected)[np.isfinite(expected)]
    assert ratio.min() > 1 - 1e-5
    assert np.median(ratio) <= 1.005
    assert np.percentile(ratio, 90) <= 1.02
