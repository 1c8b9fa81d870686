"""The nearest point of several half-spaces in a box: against linear programs and least distances, with no common point, at any numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, nnls

from diffprog.adversarial.minimum_norm import _halfspaces

NORMS = ("linf", "l2", "l1")
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
BATCH = 8

nearest = jax.jit(_halfspaces.nearest_common, static_argnums=0)
every_norm = pytest.mark.parametrize("norm", NORMS)
# Each shape and norm is a program to compile.
one_norm = pytest.mark.parametrize(
    "norm", ["l1", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("linf", "l2"))]
)


def shortest(norm, g, need, low, high):
    """min ||d|| such that g @ d >= need and low <= d <= high: least distance by nonnegative least squares, else a linear program."""
    size = len(low)
    if norm == "l2":
        rows = np.vstack([np.vstack([g, np.eye(size), -np.eye(size)]).T, np.r_[need, low, -high]])
        last = np.r_[np.zeros(size), 1]
        rest = rows @ nnls(rows, last, maxiter=1000)[0] - last
        return np.linalg.norm(rest[:-1] / rest[-1])
    lengths = -np.ones((size, 1)) if norm == "linf" else -np.eye(size)
    return linprog(
        np.r_[np.zeros(size), np.ones(lengths.shape[1])],
        A_ub=np.block(
            [
                [np.eye(size), lengths],
                [-np.eye(size), lengths],
                [-g, np.zeros((len(g), lengths.shape[1]))],
            ]
        ),
        b_ub=np.r_[np.zeros(2 * size), -need],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * lengths.shape[1]],
    ).fun


def case(seed, spaces, size, faces=0.3):
    """Half-spaces that have a point of the box in common, of slopes of several magnitudes, and boxes without room on some sides."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(BATCH, size))
    x = np.where(rng.uniform(size=x.shape) < faces, rng.choice([0, 1], x.shape), x)
    g = rng.normal(size=(spaces, BATCH, size)) * 10.0 ** rng.uniform(-2, 2, (spaces, 1, 1))
    common = rng.uniform(size=x.shape) - x
    need = (g * common).sum(2) - rng.uniform(size=(spaces, BATCH)) * np.linalg.norm(g, axis=2) / 10
    return g, need, -x, 1 - x


def lacking(g, need, d):
    """By how much of its largest wish a row misses a wish, in units of the slopes."""
    slope = np.linalg.norm(g, axis=2)
    return ((need - (g * d).sum(2)) / slope).max(0) / np.maximum((need / slope).max(0), 1e-3)


@one_norm
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize(
    ("spaces", "size"),
    [(9, 20), *(pytest.param(*shape, marks=pytest.mark.slow) for shape in ((2, 20), (9, 4)))],
)
def test_it_is_scipys(norm, spaces, size, seed):
    g, need, low, high = case(seed, spaces, size)
    with jax.enable_x64(True):
        d = np.asarray(nearest(norm, *map(jnp.asarray, (g, need, low, high))))
    assert ((low <= d) & (d <= high)).all()
    assert (lacking(g, need, d) <= 2e-3).all()
    expected = np.array(
        [shortest(norm, g[:, row], need[:, row], low[row], high[row]) for row in range(BATCH)]
    )
    # What may be missing of a wish changes the length by the multipliers' sum, which in so few dimensions can be large.
    np.testing.assert_allclose(
        np.linalg.norm(d, ORDER[norm], axis=1), expected, rtol=3e-3 if size > 4 else 3e-2, atol=1e-6
    )


@pytest.mark.slow
@every_norm
def test_float32_is_float64_to_what_is_promised(norm):
    g, need, low, high = case(0, 9, 300)
    single = nearest(norm, *(jnp.asarray(array, jnp.float32) for array in (g, need, low, high)))
    with jax.enable_x64(True):
        double = nearest(norm, *map(jnp.asarray, (g, need, low, high)))
    length = [
        np.linalg.norm(np.asarray(d, np.float64), ORDER[norm], axis=1) for d in (single, double)
    ]
    np.testing.assert_allclose(*length, rtol=2e-3)
    assert (lacking(g, need, np.asarray(single)) <= 1e-3).all()


@pytest.mark.slow
@every_norm
def test_nothing_is_done_where_nothing_is_needed(norm):
    g, need, low, high = (jnp.asarray(array, jnp.float32) for array in case(1, 3, 20))
    np.testing.assert_array_equal(nearest(norm, g, -jnp.abs(need), low, high), 0)


@one_norm
def test_without_a_common_point_as_little_as_can_be_is_lacking(norm):
    """Two that want the same and one that looks away from them: what is missed is least where the two have what they want."""
    g = np.ones((3, 1, 6), np.float32)
    g[2] = -1
    d = np.asarray(
        nearest(norm, jnp.asarray(g), jnp.ones((3, 1)), -jnp.ones((1, 6)), jnp.ones((1, 6)))
    )
    np.testing.assert_allclose(d.sum(), 1, rtol=1e-2)


@pytest.mark.slow
@every_norm
def test_wishes_beyond_the_box_lead_into_its_corner(norm):
    g, _, low, high = case(2, 3, 20)
    g = np.abs(g)
    d = nearest(
        norm,
        *(jnp.asarray(array, jnp.float32) for array in (g, np.full((3, BATCH), 1e6), low, high)),
    )
    np.testing.assert_allclose(d, high, atol=1e-2)


@pytest.mark.slow
@every_norm
@pytest.mark.parametrize("wish", [np.finfo(np.float32).max, 1e-30, -np.finfo(np.float32).max])
@pytest.mark.parametrize("slope", [0.0, 1e-38, 1e-20, 1e30, 3e38])
def test_no_number_is_made_of_any_numbers(norm, slope, wish):
    g, need, low, high = (jnp.asarray(array, jnp.float32) for array in case(3, 3, 20))
    d = nearest(norm, g.at[0].set(slope * jnp.sign(g[0])), need.at[1].set(wish), low, high)
    assert jnp.isfinite(d).all()
    assert ((low <= d) & (d <= high)).all()


@pytest.mark.slow
@every_norm
def test_an_example_is_met_alone_as_in_a_batch(norm):
    g, need, low, high = (jnp.asarray(array, jnp.float32) for array in case(4, 4, 20))
    together = nearest(norm, g, need, low, high)
    alone = nearest(norm, g[:, :1], need[:, :1], low[:1], high[:1])
    np.testing.assert_allclose(alone, together[:1], atol=2e-3)
