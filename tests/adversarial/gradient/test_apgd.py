"""Auto-PGD: exact distances of linear classifiers, several targets, and the step size schedules.

What holds for every attack is in `test_protocol`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

import diffprog as dp
from diffprog.adversarial import apgd
from diffprog.adversarial.gradient._apgd import (
    TARGET_LOSSES,
    _HalvingSchedule,
    _Point,
    _signs_of_largest,
    _SparseSchedule,
)
from tests.adversarial.boxes import (
    BATCH,
    BOUNDS,
    HIGH,
    LOW,
    assert_in_ball_and_box,
    every_norm,
    linear,
    linear_case,
    max_gain,
)


def exact_distance(norm, f, x, y, target):
    """Compute the length of the shortest r in the box with which a linear f predicts the target."""
    weights, x = np.asarray(f.arrays[0], np.float64), x.astype(np.float64)
    slope = weights[:, target] - weights[:, y]
    room = np.where(slope > 0, HIGH - x, x - LOW)
    gap = (0.5 - x) @ slope
    if np.abs(slope) @ room < gap:
        return np.inf
    excess = lambda epsilon: max_gain(norm, np.abs(slope), room, epsilon) - gap
    return brentq(excess, 0, np.abs(room).sum())


# --- exact distances -----------------------------------------------------------------------------


@pytest.mark.slow
@every_norm
def test_targets_find_the_nearest_of_several_linear_boundaries(key, norm):
    """Each run maximizes one logit difference, which is linear."""
    for seed, faces in ((0, 0.0), (1, 0.3)):
        f, x, y = linear_case(seed, faces=faces, classes=3)
        distances = [
            [exact_distance(norm, f, x[k], y[k], (y[k] + shift) % 3) for shift in (1, 2)]
            for k in range(BATCH)
        ]
        for factor, expected in ((1.005, True), (0.999, False)):
            epsilon = np.float32(factor * np.min(distances, 1))
            attack = apgd(norm=norm, epsilon=epsilon, targets=9, loss="dlr", bounds=BOUNDS)
            result = attack(f, x, y, key=key)
            np.testing.assert_array_equal(result.success, expected)
            np.testing.assert_array_equal(result.restart[result.success] < 2, True)
            assert_in_ball_and_box(norm, result, x, epsilon)


@pytest.mark.slow
@every_norm
def test_a_target_is_reached_exactly_beyond_its_distance(key, norm):
    for seed, faces in ((2, 0.0), (3, 0.4)):
        f, x, y = linear_case(seed, classes=2, faces=faces)
        distance = np.array([exact_distance(norm, f, x[k], y[k], 1 - y[k]) for k in range(BATCH)])
        for factor, expected in ((1.005, True), (0.999, False)):
            epsilon = np.float32(factor * distance)
            attack = apgd(norm=norm, epsilon=epsilon, bounds=BOUNDS, targeted=True)
            result = attack(f, x, 1 - y, key=key)
            np.testing.assert_array_equal(result.success, expected)
            assert_in_ball_and_box(norm, result, x, epsilon)


@pytest.mark.slow
def test_the_first_target_is_the_likeliest_other_class(key):
    f, x, y = linear_case(4, classes=3)
    order = np.argsort(-np.asarray(f(x)), 1)
    epsilon = np.float32(
        [1.005 * exact_distance("linf", f, x[k], y[k], order[k, 1]) for k in range(BATCH)]
    )
    result = apgd(epsilon=epsilon, targets=1, loss="dlr", bounds=BOUNDS)(f, x, y, key=key)
    assert result.success.all()
    np.testing.assert_array_equal(result.restart, 0)
    np.testing.assert_array_equal(result.gradients, 100)


@pytest.mark.slow
def test_saturated_logits_of_a_target_are_no_defence(key):
    f, x, y = linear_case(10, classes=2)
    distance = np.array([exact_distance("linf", f, x[k], y[k], 1 - y[k]) for k in range(BATCH)])
    saturated = dp.program(linear, 1000 * f.arrays[0])
    for factor, expected in ((1.01, True), (0.999, False)):
        attack = apgd(epsilon=np.float32(factor * distance), bounds=BOUNDS, targeted=True)
        result = attack(saturated, x, 1 - y, key=key)
        np.testing.assert_array_equal(result.success, expected)


@pytest.mark.slow
def test_nan_gradients_affect_no_other_example(key):
    @jax.custom_jvp
    def nan_gradient(x):
        return x

    nan_gradient.defjvp(
        lambda primals, tangents: (
            primals[0],
            jnp.where(primals[0][:, :1] > 0, jnp.nan, 1) * tangents[0],
        )
    )
    f, x, y = linear_case(8, classes=3)
    x[:4, 0], x[4:, 0] = 0.9, -0.9
    y = np.asarray(f(x).argmax(1))
    attack = apgd(epsilon=0.2, random_start=False, bounds=BOUNDS)
    faulty = dp.program(lambda weights, x: linear(weights, nan_gradient(x)), f.arrays[0])
    result, healthy = attack(faulty, x, y, key=key), attack(f, x, y, key=key)
    np.testing.assert_array_equal(result.adversarial[4:], healthy.adversarial[4:])
    np.testing.assert_array_equal(result.adversarial[:4], x[:4])


# --- parts ---------------------------------------------------------------------------------------


signs_of_largest = jax.jit(_signs_of_largest)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_signs_of_largest_agree_with_sorting(seed):
    rng = np.random.default_rng(seed)
    scale = np.float32(10.0) ** rng.integers(-5, 5, (4, 1))
    direction = rng.normal(size=(4, 20)).astype(np.float32) * scale
    share = np.array([0.0, 0.05, 0.2, 1.0], np.float32)
    computed = np.asarray(signs_of_largest(direction, share))
    for row, size, signs in zip(direction, np.maximum(share * 20, 1), computed, strict=True):
        largest = np.argsort(-np.abs(row))[: int(size)]
        expected = np.zeros(20)
        expected[largest] = np.sign(row[largest])
        # Bisection resolves sizes to 2^-16 of the largest.
        if (np.diff(np.sort(np.abs(row))) > 2.0**-15 * np.abs(row).max()).all():
            np.testing.assert_allclose(signs, expected / int(size), rtol=1e-6)
        np.testing.assert_allclose(np.abs(signs).sum(), 1, rtol=1e-5)
    np.testing.assert_array_equal(signs_of_largest(0 * direction, share), 0)


def point(value, r=None):
    return _Point(jnp.zeros((4, 10)) if r is None else r, jnp.asarray(value), jnp.zeros((4, 10)))


def test_the_rate_is_halved_where_the_loss_stopped_rising():
    schedule = _HalvingSchedule(
        rate=jnp.full(4, 2.0),
        rises=jnp.array([8.0, 7.0, 9.0, 9.0]),
        last_best=jnp.array([0.0, 0.0, 1.0, 1.0]),
        halved=jnp.array([False, False, False, True]),
    )
    schedule, go_back = schedule.at_checkpoint(point([1.0, 1.0, 1.0, 1.0]), jnp.int32(10))
    # 8 rises of 10 and a better best loss; 7 rises; no better best loss; the same, η just halved.
    np.testing.assert_array_equal(go_back, [False, True, True, False])
    np.testing.assert_array_equal(schedule.rate, [2, 1, 1, 2])
    np.testing.assert_array_equal(schedule.rises, 0)
    np.testing.assert_array_equal(schedule.last_best, 1)


def test_the_l1_schedule_restarts_where_the_best_point_became_sparser():
    r = jnp.where(jnp.arange(10) < jnp.array([10, 5, 5, 3])[:, None], 1.0, 0.0)
    schedule = _SparseSchedule(
        rate=jnp.array([1, 0.5, 0.12, 0.5]),
        share=jnp.full(4, 0.2),
        last_nonzero=jnp.array([10.0, 10, 5, 3]),
    )
    schedule, go_back = schedule.at_checkpoint(point(0 * r[:, 0], r), 4)
    np.testing.assert_array_equal(go_back, [False, True, False, False])
    np.testing.assert_allclose(schedule.rate, [1 / 1.5, 1, 0.1, 0.5 / 1.5], rtol=1e-6)
    np.testing.assert_allclose(schedule.share, np.array([10, 5, 5, 3]) / 10 / 1.5, rtol=1e-6)


def test_target_losses_are_their_formulas():
    logits, y, target = jnp.array([[5.0, 1.0, 3.0, 2.0, 0.0]]), jnp.array([0]), jnp.array([2])
    assert TARGET_LOSSES["margin"](logits, y, target)[0] == -2
    assert TARGET_LOSSES["dlr"](logits, y, target)[0] == -2 / (5 - (2 + 1) / 2)
    assert TARGET_LOSSES["dlr"](logits[:, :3], y, target)[0] == -2
    np.testing.assert_allclose(
        TARGET_LOSSES["cross_entropy"](logits, y, target),
        jax.nn.log_softmax(logits)[:, 2],
        rtol=1e-6,
    )


@pytest.mark.slow
def test_targets_of_a_targeted_attack_raise():
    with pytest.raises(ValueError, match="targets must be None for a targeted attack"):
        apgd(targets=2, targeted=True)
