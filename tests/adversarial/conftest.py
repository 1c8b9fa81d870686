"""What the searches for the smallest perturbation are held against: programs whose boundaries are at known distances."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog, nnls

import diffprog as dp

BATCH, SIZE = 16, 12
TRACES = []  # one for each time that JAX traced the program
SOUND, NO_NUMBER_FOR_A_SLOPE, NO_NUMBER_FOR_A_LOGIT, NO_SLOPE = range(4)


def _linear(weights, x):
    """x W + b + a multiple of squares, with a fault that is a number: one compiled program is flat or bent, sound and faulty."""
    TRACES.append(1)
    matrix, bias, fault, bent = weights
    # The root of 0 has an infinite slope, and with the rectifier's slope of 0 it makes one that is no number.
    first = jnp.where(fault == NO_NUMBER_FOR_A_SLOPE, x[:, :1] - 0.5, 1.0)
    logits = (
        x @ matrix
        + bias
        + 0.1 * jnp.sqrt(jnp.maximum(first, 0)) * jnp.where(fault == NO_NUMBER_FOR_A_SLOPE, 1, 0)
    )
    logits = jnp.where((fault == NO_NUMBER_FOR_A_LOGIT) & (x[:, :1] > 0.5), jnp.nan, logits)
    logits += bent * jnp.sum((x - 0.5) ** 2, axis=1, keepdims=True) * (jnp.arange(len(bias)) == 1)
    return jnp.where(fault == NO_SLOPE, jax.lax.stop_gradient(logits), logits)


def _case(seed, classes=3, *, inner=False, fault=SOUND, dtype=np.float32, uneven=False):
    """A linear program, examples, and what it reads; in the inner box, or with many numbers on its faces, where it bites.

    Uneven: with classes ten times as steep as others, so that the likeliest is not the nearest.
    """
    rng = np.random.default_rng(seed)
    x = (
        rng.uniform(0.4, 0.6, (BATCH, SIZE))
        if inner
        else np.clip(rng.uniform(-0.5, 1.5, (BATCH, SIZE)), 0, 1)
    )
    matrix = rng.normal(size=(SIZE, classes)) * (np.geomspace(0.3, 3, classes) if uneven else 1)
    x, matrix = x.astype(dtype), matrix.astype(dtype)
    bias = (-x.mean(0) @ matrix).astype(dtype)
    f = dp.program(
        _linear,
        (jnp.asarray(matrix), jnp.asarray(bias), jnp.asarray(fault, dtype), jnp.zeros((), dtype)),
    )
    y = (x.astype(np.float64) @ matrix + bias).argmax(1)
    return f, jnp.asarray(x), jnp.asarray(y)


RADIUS = 0.4


def _ball(seed, dtype=np.float32):
    """A program that reads 0 inside the ball of radius 0.4 around the middle of the box, and 1 outside, and examples inside."""
    rng = np.random.default_rng(seed)
    away = rng.normal(size=(BATCH, SIZE))
    x = (
        0.5 + away * rng.uniform(0.1, 0.3, (BATCH, 1)) / np.linalg.norm(away, axis=1, keepdims=True)
    ).astype(dtype)
    weights = (
        jnp.zeros((SIZE, 3), dtype),
        jnp.asarray([0, -(RADIUS**2), -9], dtype),
        jnp.zeros((), dtype),
        jnp.ones((), dtype),
    )
    return dp.program(_linear, weights), jnp.asarray(x), jnp.zeros(BATCH, int)


def _depth(norm, x):
    """From a point in the ball to its surface: along the radius; in every coordinate alike; in the one farthest out."""
    away = np.abs(np.asarray(x, np.float64) - 0.5)
    short = RADIUS**2 - (away**2).sum(1)
    if norm == "l2":
        return RADIUS - np.linalg.norm(away, axis=1)
    half, count = (away.sum(1), away.shape[1]) if norm == "linf" else (away.max(1), 1)
    return (np.sqrt(half**2 + count * short) - half) / count


def _shortest(norm, above, need, low, high):
    """min ||d|| of one d with above @ d >= need and low <= d <= high, infinite if there is none: a linear program, or least distance.

    The latter by nonnegative least squares, Lawson and Hanson 1974, chapter 23.
    """
    size = len(low)
    if norm == "l2":
        rows, sides = np.vstack([above, np.eye(size), -np.eye(size)]), np.r_[need, low, -high]
        multipliers, residual = nnls(
            np.vstack([rows.T, sides]), np.r_[np.zeros(size), 1], maxiter=1000
        )
        rest = np.vstack([rows.T, sides]) @ multipliers - np.r_[np.zeros(size), 1]
        return np.linalg.norm(rest[:-1] / rest[-1]) if residual > 1e-7 else np.inf
    lengths = -np.ones((size, 1)) if norm == "linf" else -np.eye(size)
    rows = np.block(
        [
            [np.eye(size), lengths],
            [-np.eye(size), lengths],
            [-above, np.zeros((len(above), lengths.shape[1]))],
        ]
    )
    answer = linprog(
        np.r_[np.zeros(size), np.ones(lengths.shape[1])],
        A_ub=rows,
        b_ub=np.r_[np.zeros(2 * size), -need],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * lengths.shape[1]],
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    return answer.fun if answer.status == 0 else np.inf


def _truth(norm, f, x, y, targeted=False):
    """The distance of each example to the nearest other class, or to the target, in the unit box; infinite where there is none."""
    (matrix, bias), x = (
        (np.asarray(array, np.float64) for array in f.arrays[:2]),
        np.asarray(x, np.float64),
    )

    def distance(point, label):
        logits, others = point @ matrix + bias, np.delete(np.arange(len(bias)), label)
        above, need = (matrix[:, others] - matrix[:, [label]]).T, logits[label] - logits[others]
        solve = lambda above, need: _shortest(norm, above, need, -point, 1 - point)
        return (
            solve(-above, -need)
            if targeted
            else min(solve(above[k : k + 1], need[k : k + 1]) for k in range(len(others)))
        )

    return np.array([distance(point, int(label)) for point, label in zip(x, y, strict=True)])


def _near(found, truth, dtype=np.float32):
    """AttackResult wherever there is something, within 0.5 % in the median and 2 % in the 90th percentile, and never below the truth."""
    there = np.isfinite(truth)
    np.testing.assert_array_equal(found.success, there)
    distance, truth = np.asarray(found.distance, np.float64)[there], truth[there]
    # The rounding of the logits, sums of 12 products of at most 3, over the slope of their difference, at least 1 in every dual norm.
    assert (distance >= truth - 36 * np.finfo(dtype).eps - 1e-9).all()
    ratio = (distance + 1e-9) / (truth + 1e-9)
    assert np.median(ratio) <= 1.005
    assert np.percentile(ratio, 90) <= 1.02


def _on_the_boundary(found, f, x, y, targeted=False):
    """A little nearer to x, f reads what it should."""
    r = np.asarray(found.perturbation)
    logits = np.asarray(f(x))
    # The crossing is kept clear of f's rounding, by 64 units in the last place of the largest logit.
    gap = np.abs(
        np.take_along_axis(logits, np.asarray(y)[:, None], 1)[:, 0]
        - np.sort(logits, 1)[:, -1 if targeted else -2]
    )
    share = 1e-4 + 2 * 64 * np.finfo(r.dtype).eps * np.abs(logits).max(1) / gap
    back = f(jnp.asarray(np.asarray(x) + (1 - share[:, None]) * r)).argmax(1)
    there = np.asarray(found.success & ~found.initially_misclassified)
    assert there.any()
    assert ((back != y) if targeted else (back == y))[there].all()


@pytest.fixture(scope="session")
def linear():
    """Programs with faults to switch on, their examples, the truth about them, and what a result must be."""
    return SimpleNamespace(
        case=_case,
        ball=_ball,
        depth=_depth,
        truth=_truth,
        near=_near,
        on_the_boundary=_on_the_boundary,
        traces=TRACES,
        no_number_for_a_slope=NO_NUMBER_FOR_A_SLOPE,
        no_number_for_a_logit=NO_NUMBER_FOR_A_LOGIT,
        no_slope=NO_SLOPE,
    )
