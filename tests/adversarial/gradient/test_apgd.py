"""Auto-PGD: the exact optimum on linear classifiers, targets in turn, ball and box, the pace it finds; and what it does with no numbers."""

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
    TOWARDS,
    _Halving,
    _Point,
    _signs_of_largest,
    _Sparse,
)
from tests.adversarial.boxes import BATCH, BOUNDS, HIGH, LOW, ORDER, case, every_norm, linear, most


def shortest(norm, f, x, y, target):
    """The length of the shortest r in the box with which a linear f reads the target rather than y."""
    weights, x = np.asarray(f.arrays[0], np.float64), x.astype(np.float64)
    slope = weights[:, target] - weights[:, y]
    room = np.where(slope > 0, HIGH - x, x - LOW)
    gap = (0.5 - x) @ slope
    if np.abs(slope) @ room < gap:
        return np.inf
    return brentq(
        lambda epsilon: most(norm, np.abs(slope), room, epsilon) - gap, 0, np.abs(room).sum()
    )


def lengths(norm, r):
    return np.linalg.norm(np.asarray(r, np.float64).reshape(len(r), -1), ORDER[norm], axis=1)


def inside(norm, found, x, epsilon):
    assert ((found.adversarial >= LOW) & (found.adversarial <= HIGH)).all()
    assert (lengths(norm, found.perturbation) <= epsilon * (1 + 1e-6)).all()
    np.testing.assert_array_equal(found.perturbation, found.adversarial - x)


# --- the exact truth ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@every_norm
def test_with_targets_a_linear_classifier_of_three_falls_beyond_its_distance_and_not_within(
    key, norm
):
    """Each run ascends one difference of logits, which is linear: the nearest of both boundaries is found, box or not."""
    for seed, faces in ((0, 0.0), (1, 0.3)):
        f, x, y = case(seed, faces=faces, classes=3)
        others = [
            [shortest(norm, f, x[k], y[k], (y[k] + step) % 3) for step in (1, 2)]
            for k in range(BATCH)
        ]
        for factor, expected in ((1.005, True), (0.999, False)):
            epsilon = np.float32(factor * np.min(others, 1))
            found = apgd(norm=norm, epsilon=epsilon, targets=9, loss="dlr", bounds=BOUNDS)(
                f, x, y, key=key
            )
            np.testing.assert_array_equal(found.success, expected)
            np.testing.assert_array_equal(found.restart[found.success] < 2, True)
            inside(norm, found, x, epsilon)


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm", ["linf", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("l2", "l1"))]
)
def test_a_target_of_two_classes_is_reached_beyond_its_distance_and_not_within(key, norm):
    for seed, faces in ((2, 0.0), (3, 0.4)):
        f, x, y = case(seed, classes=2, faces=faces)
        distance = np.array([shortest(norm, f, x[k], y[k], 1 - y[k]) for k in range(BATCH)])
        for factor, expected in ((1.005, True), (0.999, False)):
            epsilon = np.float32(factor * distance)
            found = apgd(norm=norm, epsilon=epsilon, bounds=BOUNDS, targeted=True)(
                f, x, 1 - y, key=key
            )
            np.testing.assert_array_equal(found.success, expected)
            inside(norm, found, x, epsilon)


@pytest.mark.slow
def test_one_target_is_the_likeliest_other_class(key):
    """The margin of a linear f in the one run there is, is that of the second class; the third may be nearer, and is not looked for."""
    f, x, y = case(4, classes=3)
    order = np.argsort(-np.asarray(f(x)), 1)
    epsilon = np.float32(
        [1.005 * shortest("linf", f, x[k], y[k], order[k, 1]) for k in range(BATCH)]
    )
    found = apgd(epsilon=epsilon, targets=1, loss="dlr", bounds=BOUNDS)(f, x, y, key=key)
    assert found.success.all()
    np.testing.assert_array_equal(found.restart, 0)
    np.testing.assert_array_equal(found.gradients, 100)


# --- what always holds -------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@every_norm
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(-4, 1), constant=st.booleans())
def test_ball_and_box_are_never_left(norm, seed, scale, constant):
    f, x, _ = case(seed, faces=0.3, classes=3)
    x = np.full_like(x, x[0, 0]) if constant else x
    y = np.asarray(f(x).argmax(1))
    epsilon = np.float32(10**scale) * np.linspace(0, 3, BATCH, dtype=np.float32)
    attack = apgd(norm=norm, epsilon=epsilon, steps=12, targets=2, loss="dlr", bounds=BOUNDS)
    found = attack(f, x, y, key=jax.random.key(seed % 1000))
    inside(norm, found, x, epsilon)
    np.testing.assert_array_equal(
        np.asarray(found.adversarial[0]).view(np.uint32), x[0].view(np.uint32)
    )
    np.testing.assert_array_equal(found.success, f(found.adversarial).argmax(1) != y)


@pytest.mark.slow
def test_an_example_is_searched_alone_as_in_a_batch_in_any_order(key):
    f, x, y = case(6, classes=3)
    # Long before the plateau of the optimum, where the rounding of a loss would decide which of many equals is the best.
    attack = apgd(epsilon=0.05, steps=4, targets=2, loss="dlr", bounds=BOUNDS)
    together, backwards = attack(f, x, y, key=key), attack(f, x[::-1], y[::-1], key=key)
    np.testing.assert_array_equal(backwards.adversarial[::-1], together.adversarial)
    jax.tree.map(np.testing.assert_array_equal, attack(f, x, y, key=key), together)
    copies = attack(f, np.repeat(x[2:3], BATCH, 0), np.repeat(y[2:3], BATCH), key=key)
    np.testing.assert_allclose(
        copies.adversarial, np.repeat(together.adversarial[2:3], BATCH, 0), atol=1e-6
    )
    np.testing.assert_array_equal(copies.gradients, together.gradients[2])


@pytest.mark.slow
def test_other_numbers_are_no_other_program(key):
    traces = []

    def traced(weights, x):
        traces.append(1)
        return linear(weights, x)

    counts = []
    for seed, steps, restarts, targets in ((0, 5, 1, 1), (1, 50, 3, 2), (2, 7, 2, 9)):
        f, x, y = case(seed, classes=3)
        program = dp.program(traced, f.arrays[0])
        attack = apgd(
            epsilon=0.1 * seed, steps=steps, restarts=restarts, targets=targets, bounds=BOUNDS
        )
        attack(program, x, y, key=jax.random.key(seed))
        counts.append(len(traces))
    assert counts == counts[:1] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm", ["l1", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("linf", "l2"))]
)
def test_float64_stays_inside_to_its_own_rounding(key, norm):
    with jax.enable_x64(True):
        f, x, y = case(7, faces=0.3, dtype=np.float64, classes=3)
        x = np.clip(x, *BOUNDS)
        epsilon = np.array([0, 1e-3, 0.1, 0.2, 0.3, 0.5, 1, 2])
        found = apgd(norm=norm, epsilon=epsilon, steps=30, bounds=BOUNDS)(f, x, y, key=key)
        assert found.adversarial.dtype == np.float64
        assert ((found.adversarial >= BOUNDS[0]) & (found.adversarial <= BOUNDS[1])).all()
        assert (lengths(norm, found.perturbation) <= epsilon * (1 + 1e-15)).all()
        assert found.success.any()


# --- numbers that are none, and logits that say nothing ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_gradients_and_logits_that_are_no_numbers_harm_nobody(key):
    @jax.custom_jvp
    def broken(x):
        return x

    broken.defjvp(
        lambda primals, tangents: (
            primals[0],
            jnp.where(primals[0][:, :1] > 0, jnp.nan, 1) * tangents[0],
        )
    )
    f, x, y = case(8, classes=3)
    x[:4, 0], x[4:, 0] = 0.9, -0.9
    y = np.asarray(f(x).argmax(1))
    attack = apgd(epsilon=0.2, random_start=False, bounds=BOUNDS)
    sick = dp.program(lambda weights, x: linear(weights, broken(x)), f.arrays[0])
    found, sound = attack(sick, x, y, key=key), attack(f, x, y, key=key)
    np.testing.assert_array_equal(found.adversarial[4:], sound.adversarial[4:])
    np.testing.assert_array_equal(found.adversarial[:4], x[:4])
    torn = dp.program(
        lambda weights, x: jnp.where(x[:, :1] > 1, jnp.nan, 1) * linear(weights, x), f.arrays[0]
    )
    found = attack(torn, x, y, key=key)
    assert jnp.isfinite(torn(found.adversarial)).all()


@pytest.mark.slow
def test_saturated_logits_are_attacked_as_the_others(key):
    """Logits a thousand times as large: softmax is rounded to 1, and the gradient of plain cross-entropy is 0."""
    f, x, y = case(10, classes=2)
    distance = np.array([shortest("linf", f, x[k], y[k], 1 - y[k]) for k in range(BATCH)])
    saturated = dp.program(linear, 1000 * f.arrays[0])
    for factor, expected in ((1.01, True), (0.999, False)):
        found = apgd(epsilon=np.float32(factor * distance), bounds=BOUNDS, targeted=True)(
            saturated, x, 1 - y, key=key
        )
        np.testing.assert_array_equal(found.success, expected)


# --- its parts ---------------------------------------------------------------------------------------------------------------------------


signs_of_largest = jax.jit(_signs_of_largest)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_signs_of_the_largest_share_are_numpys(seed):
    rng = np.random.default_rng(seed)
    up = rng.normal(size=(4, 20)).astype(np.float32) * np.float32(10.0) ** rng.integers(
        -5, 5, (4, 1)
    )
    share = np.array([0.0, 0.05, 0.2, 1.0], np.float32)
    found = np.asarray(signs_of_largest(up, share))
    for row, size, signs in zip(up, np.maximum(share * 20, 1), found, strict=True):
        chosen = np.argsort(-np.abs(row))[: int(size)]
        expected = np.zeros(20)
        expected[chosen] = np.sign(row[chosen])
        # Bisection tells sizes apart by a part in 2^16 of the largest.
        if (np.diff(np.sort(np.abs(row))) > 2.0**-15 * np.abs(row).max()).all():
            np.testing.assert_allclose(signs, expected / int(size), rtol=1e-6)
        np.testing.assert_allclose(np.abs(signs).sum(), 1, rtol=1e-5)
    np.testing.assert_array_equal(signs_of_largest(0 * up, share), 0)


def point(value, r=None):
    return _Point(jnp.zeros((4, 10)) if r is None else r, jnp.asarray(value), jnp.zeros((4, 10)))


@pytest.mark.slow
def test_the_rate_is_halved_where_the_loss_stopped_rising():
    rises, reached, halved = (
        jnp.array([8.0, 7.0, 9.0, 9.0]),
        jnp.array([0.0, 0.0, 1.0, 1.0]),
        jnp.array([False, False, False, True]),
    )
    pace, back = _Halving(jnp.full(4, 2.0), rises, reached, halved).at_checkpoint(
        point([1.0, 1.0, 1.0, 1.0]), jnp.int32(10)
    )
    # 8 rises of 10 and a better best; 7 rises; no better best; no better best, but halved the last time.
    np.testing.assert_array_equal(back, [False, True, True, False])
    np.testing.assert_array_equal(pace.rate, [2, 1, 1, 2])
    np.testing.assert_array_equal(pace.rises, 0)
    np.testing.assert_array_equal(pace.reached, 1)


@pytest.mark.slow
def test_the_l1_pace_starts_again_where_the_best_grew_sparser():
    r = jnp.where(jnp.arange(10) < jnp.array([10, 5, 5, 3])[:, None], 1.0, 0.0)
    pace, back = _Sparse(
        jnp.array([1, 0.5, 0.12, 0.5]), jnp.full(4, 0.2), jnp.array([10.0, 10, 5, 3])
    ).at_checkpoint(point(0 * r[:, 0], r), 4)
    np.testing.assert_array_equal(back, [False, True, False, False])
    np.testing.assert_allclose(pace.rate, [1 / 1.5, 1, 0.1, 0.5 / 1.5], rtol=1e-6)
    np.testing.assert_allclose(pace.share, np.array([10, 5, 5, 3]) / 10 / 1.5, rtol=1e-6)


@pytest.mark.slow
def test_leads_are_their_formulas():
    logits, y, target = jnp.array([[5.0, 1.0, 3.0, 2.0, 0.0]]), jnp.array([0]), jnp.array([2])
    assert TOWARDS["margin"](logits, y, target)[0] == -2
    assert TOWARDS["dlr"](logits, y, target)[0] == -2 / (5 - (2 + 1) / 2)
    assert TOWARDS["dlr"](logits[:, :3], y, target)[0] == -2
    np.testing.assert_allclose(
        TOWARDS["cross_entropy"](logits, y, target), jax.nn.log_softmax(logits)[:, 2], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("numbers", "error", "says"),
    [
        ({"norm": "l3"}, ValueError, "norm"),
        ({"epsilon": -1.0}, ValueError, "epsilon"),
        ({"steps": 0}, ValueError, "steps"),
        ({"steps": 2.5}, TypeError, "steps"),
        ({"restarts": 0}, ValueError, "restarts"),
        ({"targets": 0}, ValueError, "targets"),
        ({"targets": 1.5}, TypeError, "targets"),
        (
            {"targets": 2, "targeted": True},
            ValueError,
            "targets must be None for a targeted attack",
        ),
        ({"loss": "hinge"}, ValueError, "loss"),
        ({"bounds": (1, 0)}, ValueError, "bounds"),
    ],
)
def test_bad_numbers_are_refused_at_once(numbers, error, says):
    with pytest.raises(error, match=says):
        apgd(**numbers)
