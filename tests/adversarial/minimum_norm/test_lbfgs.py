"""L-BFGS in a box: scipy's minima, the faces, and what one search must not do to another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from diffprog.adversarial.minimum_norm import _lbfgs

BATCH, SIZE = 6, 10


@functools.partial(jax.jit, static_argnames=("memory",))
def _searched(matrices, targets, bent, point, low, high, steps, memory=5):
    """Bowls (v - t)' A (v - t) / 2 plus `bent` times Rosenbrock's valley in the first two coordinates; no number where v_0 > 0.9."""

    def cost(v):
        away = v - targets
        bowl = jnp.einsum("bi,bij,bj->b", away, matrices, away) / 2
        value = bowl + bent * (10 * (v[:, 1] - v[:, 0] ** 2) ** 2 + (1 - v[:, 0]) ** 2)
        return jnp.where(v[:, 0] > 0.9, jnp.nan, value), v.sum(1)

    state = _lbfgs.init(cost, point, memory)
    values = state.value
    state = jax.lax.fori_loop(0, steps, lambda _, state: _lbfgs.step(cost, low, high, state), state)
    return state, values


def searched(problem, steps):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, _searched(*map(jnp.asarray, problem), steps))


def case(seed, bent=0.0, reach=0.5):
    """Bowls of condition 100 whose middles lie in the box or beside it, for different rows in different places."""
    rng = np.random.default_rng(seed)
    turns = np.stack([np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0] for _ in range(BATCH)])
    matrices = np.einsum("bij,j,bkj->bik", turns, np.logspace(-1, 1, SIZE), turns)
    targets = rng.uniform(-reach, reach, (BATCH, SIZE))
    low, high = np.full((BATCH, SIZE), -0.6), np.full((BATCH, SIZE), 0.8)
    return matrices, targets, np.full(BATCH, bent), np.zeros((BATCH, SIZE)), low, high


def scipys(matrices, targets, bent, point, low, high):
    def least(row):
        def cost(v):
            away = v - targets[row]
            return away @ matrices[row] @ away / 2 + bent[row] * (
                10 * (v[1] - v[0] ** 2) ** 2 + (1 - v[0]) ** 2
            )

        numbers = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 2000, "maxfun": 10**6}
        return minimize(
            cost,
            point[row],
            bounds=list(zip(low[row], high[row], strict=True)),
            method="L-BFGS-B",
            options=numbers,
        ).fun

    return np.array([least(row) for row in range(len(point))])


@pytest.mark.slow
@pytest.mark.parametrize("reach", [0.3, 3.0], ids=["inside", "on faces"])
@pytest.mark.parametrize("bent", [0.0, 1.0])
def test_the_minimum_is_scipys(reach, bent):
    problem = case(0, bent, reach)
    state, first = searched(problem, 200)
    least = scipys(*problem)
    assert (state.value < first).all()
    np.testing.assert_allclose(state.value, least, rtol=1e-6, atol=1e-10)
    low, high = problem[-2:]
    assert ((state.point >= low) & (state.point <= high)).all()
    on_faces = ((state.point == low) | (state.point == high)).any(1)
    assert on_faces.all() if reach > 1 else not on_faces.all()


@pytest.mark.slow
def test_a_bowl_takes_few_gradients():
    """Of steepest descent a condition of 100 takes hundreds."""
    problem = case(1, reach=0.3)
    state, first = searched(problem, 40)
    least = scipys(*problem)
    assert (state.value - least < 1e-6 * (first - least)).all()
    assert (state.taken <= 60).all()
    np.testing.assert_allclose(state.aux, state.point.sum(1), atol=1e-14)


@pytest.mark.slow
def test_a_row_is_searched_alike_whatever_the_others_are():
    problem, others = case(2), case(3, 1.0, 3.0)
    mixed = tuple(
        np.concatenate([mine[:2], theirs[2:]]) for mine, theirs in zip(problem, others, strict=True)
    )
    (state, _), (beside, _) = searched(problem, 30), searched(mixed, 30)
    np.testing.assert_allclose(beside.point[:2], state.point[:2], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(beside.taken[:2], state.taken[:2])


@pytest.mark.slow
def test_what_is_no_number_is_never_stepped_to():
    """The bowls' middles lie where there are none."""
    matrices, _, bent, point, low, _ = case(4)
    state, first = searched(
        (matrices, np.full_like(point, 0.95), bent, point, low, np.ones_like(low)), 50
    )
    assert np.isfinite(state.value).all()
    assert (state.value < first).all()
    assert (state.point[:, 0] <= 0.9).all()
    assert (state.point[:, 0] > 0.5).any()


@pytest.mark.slow
def test_where_there_is_nothing_to_gain_nothing_moves_and_nothing_is_asked():
    matrices, targets, bent, _, low, high = case(5)
    state, _ = searched((matrices, targets, bent, targets, low, high), 10)
    np.testing.assert_array_equal(state.point, targets)
    np.testing.assert_array_equal(state.taken, 1)
    assert not state.moves.any()
