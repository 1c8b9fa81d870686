"""FGSM, PGD and MI-FGSM: the exact optimum on linear classifiers, restarts, losses and optimizers.

What holds for every attack is in `test_protocol`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import brentq

import diffprog as dp
from diffprog.adversarial import fgsm, mi_fgsm, pgd
from diffprog.adversarial._base import Problem
from diffprog.adversarial._losses import LOSSES
from diffprog.adversarial.gradient._pgd import Iterate, drop_blocked_coordinates, select_better
from tests.adversarial.boxes import (
    BATCH,
    BOUNDS,
    HIGH,
    LOW,
    assert_in_ball_and_box,
    every_norm,
    lengths,
    linear,
    linear_case,
    max_gain,
)


def exact_gains(norm, f, x, y, epsilon):
    """Compute how far the margin of the other of two classes can rise, for each example."""
    weights = np.asarray(f.arrays[0], np.float64)
    slopes = np.where(y == 0, 1, -1)[:, None] * (weights[:, 1] - weights[:, 0])
    room = np.where(slopes > 0, HIGH - x.astype(np.float64), x.astype(np.float64) - LOW)
    rows = zip(np.abs(slopes), room, np.broadcast_to(epsilon, len(x)), strict=True)
    return np.array([max_gain(norm, *row) for row in rows])


def margins(f, x, y):
    z = (np.asarray(x, np.float64) - 0.5) @ np.asarray(f.arrays[0], np.float64)
    return np.where(y == 0, 1, -1) * (z[:, 1] - z[:, 0])


def exact_distances(norm, f, x, y):
    gap = -margins(f, x, y)
    excess = lambda epsilon, k: (
        exact_gains(norm, f, x[k : k + 1], y[k : k + 1], epsilon)[0] - gap[k]
    )
    return np.array([brentq(excess, 0, 1e3, args=(k,)) for k in range(BATCH)])


def pgd_from_x(**arguments):
    """Make a PGD attack without a random start, which compiles in half the time."""
    return pgd(**{"random_start": False, "bounds": BOUNDS, **arguments})


# --- exact optimum -------------------------------------------------------------------------------

# (seed, radii, share of the values on the faces): in the second the box is active, for many values
# lie on its faces and the ball is nearly as wide.
CASES = (
    (0, {"linf": 0.1, "l2": 0.2, "l1": 0.3}, 0.0),
    (1, {"linf": 1.0, "l2": 3.0, "l1": 6.0}, 0.4),
)


def assert_optimal(make, norm, key, rtol):
    for seed, epsilon, faces in CASES:
        f, x, y = linear_case(seed, faces=faces)
        exact, before = exact_gains(norm, f, x, y, epsilon[norm]), margins(f, x, y)
        result = make(norm=norm, epsilon=epsilon[norm], bounds=BOUNDS)(f, x, y, key=key)
        gains = margins(f, result.adversarial, y) - before
        assert (gains <= exact * (1 + 1e-5)).all()
        assert (gains >= exact * (1 - rtol)).all()
        assert_in_ball_and_box(norm, result, x, epsilon[norm])


@pytest.mark.slow
@every_norm
def test_pgd_maximizes_the_margin_of_a_linear_classifier(key, norm):
    # The direction is exact up to the last step, 2 / 40, and the gain up to its square. In l1 the
    # iterates take longer to reach the corner, and may then still be on their way.
    attack = functools.partial(pgd, steps=100) if norm == "l1" else pgd
    assert_optimal(attack, norm, key, {"linf": 1e-5, "l2": 2.5e-3, "l1": 5e-3}[norm])


def test_mi_fgsm_goes_straight_to_the_corner_in_linf(key):
    assert_optimal(mi_fgsm, "linf", key, 1e-5)


@pytest.mark.slow
@every_norm
def test_pgd_succeeds_exactly_beyond_the_distance_to_the_boundary(key, norm):
    for seed, faces in ((2, 0.0), (3, 0.4)):
        f, x, y = linear_case(seed, faces=faces)
        distance = exact_distances(norm, f, x, y)
        for factor, expected in ((1.02 if norm == "l1" else 1.005, True), (0.999, False)):
            epsilon = jnp.asarray(factor * distance, jnp.float32)
            result = pgd(norm=norm, epsilon=epsilon, bounds=BOUNDS)(f, x, y, key=key)
            np.testing.assert_array_equal(result.success, expected)
            assert_in_ball_and_box(norm, result, x, np.asarray(epsilon))


@pytest.mark.parametrize(
    "norm", ["l2", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("linf", "l1"))]
)
def test_fgsm_is_the_exact_optimum_in_float64(key, norm):
    """ε sign(g), ε g / ||g||, ε in the largest entry; and the optimum where the box is active."""
    with jax.enable_x64(True):
        f, x, y = linear_case(7, faces=0.3, dtype=np.float64)
        x = np.clip(x, *BOUNDS)
        epsilon = np.array([0, 1e-3, 0.1, 0.3, 0.5, 1, 1.5, 2.0])
        attack = fgsm(norm=norm, epsilon=epsilon, bounds=BOUNDS)
        result = attack(f, x, y, key=key)
        np.testing.assert_allclose(lengths(norm, result.perturbation), epsilon, rtol=0, atol=1e-10)
        # The box of `exact_gains` is that of float32, larger or smaller by a rounding error.
        np.testing.assert_allclose(
            margins(f, result.adversarial, y) - margins(f, x, y),
            exact_gains(norm, f, x, y, epsilon),
            rtol=1e-6,
            atol=1e-6,
        )
        np.testing.assert_array_equal(
            (result.step, result.gradients), np.where(epsilon > 0, 1, [[-1], [1]])
        )
        x = np.full_like(x, 0.25)
        y = np.asarray(f(x).argmax(1))
        slope = np.where(y == 0, 1, -1)[:, None] * np.diff(np.asarray(f.arrays[0]))[:, 0]
        largest = np.abs(slope) == np.abs(slope).max(1, keepdims=True)
        steepest = {
            "linf": np.sign(slope),
            "l2": slope / np.linalg.norm(slope, axis=1, keepdims=True),
            "l1": np.where(largest, np.sign(slope), 0),
        }[norm]
        np.testing.assert_allclose(
            attack(f, x, y, key=key).perturbation, epsilon[:, None] * steepest, atol=1e-10
        )


# --- NaN, restarts, losses, optimizers -----------------------------------------------------------


def test_nan_logits_and_gradients_affect_no_other_example(key):
    @jax.custom_jvp
    def nan_gradient(x):
        return x

    # Rows whose first value is above 0 have a gradient of NaN or infinity.
    nan_gradient.defjvp(
        lambda primals, tangents: (
            primals[0],
            jnp.where(primals[0][:, :1] > 0, primals[0][:, 1:2] / 0, 1) * tangents[0],
        )
    )
    nan_logits = lambda x: jnp.where(x[:, 2:3] > 1, jnp.nan, 1)
    f, x, _ = linear_case(8)
    faulty = dp.program(
        lambda weights, x: nan_logits(x) * linear(weights, nan_gradient(x)), f.arrays[0]
    )
    x = np.clip(x, -0.9, 0.9)
    x[:4, 0], x[4:, 0], x[0, 1] = 0.9, -0.9, 0.0
    y = np.asarray(f(x).argmax(1))
    attack = pgd_from_x(epsilon=0.05)
    result, healthy = attack(faulty, x, y, key=key), attack(f, x, y, key=key)
    np.testing.assert_array_equal(result.adversarial[:4], x[:4])
    np.testing.assert_array_equal(result.adversarial[4:], healthy.adversarial[4:])
    # Where the third value is above 1 every logit is NaN: never the best iterate, never a success.
    result = pgd_from_x(epsilon=1.5)(faulty, x, y, key=key)
    assert np.isfinite(faulty(result.adversarial)).all()
    assert result.success[4:].any()
    all_nan = np.array(x)
    all_nan[:, 2] = 2.0
    assert not attack(faulty, all_nan, y, key=key).success.any()


def test_misclassified_examples_use_no_gradients(key):
    f, x, y = linear_case(11)
    wrong = np.arange(BATCH) < 3
    attack = pgd_from_x(epsilon=0.1)
    result = attack(f, x, np.where(wrong, 1 - y, y), key=key)
    np.testing.assert_array_equal(result.gradients[wrong], 0)
    np.testing.assert_array_equal(result.step[wrong], -1)
    assert (result.gradients[~wrong] == 40).all()


def test_the_best_iterate_is_a_success_then_the_larger_loss():
    iterate = lambda success, loss, step: Iterate(
        jnp.zeros((5, 2)), *map(jnp.array, (loss, success, [step] * 5, [0] * 5))
    )
    best = iterate([True, False, True, False, False], [0.0, 9.0, 1.0, 1.0, -np.inf], 1)
    new = iterate([False, True, True, False, False], [9.0, 0.0, 2.0, 2.0, -np.inf], 2)
    np.testing.assert_array_equal(select_better(best, new).step, [1, 2, 2, 2, 1])


@pytest.mark.slow
def test_each_example_restarts_until_its_own_success(key):
    """Class 1 is a small corner that most random starts miss, and the gradient elsewhere is 0."""
    corner = dp.program(
        lambda x: jnp.stack([jnp.zeros(len(x)), jnp.where((x[:, :2] > 0.5).all(1), 1.0, -1.0)], 1)
    )
    x, y = linear_case(12)[1] * 0.01, np.zeros(BATCH, int)
    one, many = (
        pgd(epsilon=1.0, steps=2, restarts=restarts, bounds=BOUNDS)(corner, x, y, key=key)
        for restarts in (1, 200)
    )
    assert many.success.all()
    assert not one.success.all()
    assert len(set(np.asarray(many.restart).tolist())) > 3
    assert_in_ball_and_box("linf", many, x, 1.0)
    np.testing.assert_array_equal(many.gradients, 2 * (many.restart + 1))
    np.testing.assert_array_equal(many.adversarial[one.success], one.adversarial[one.success])
    # An example has the same result in a batch where no other example goes on.
    copies = pgd(epsilon=1.0, steps=2, restarts=200, bounds=BOUNDS)(
        corner, np.repeat(x[3:4], BATCH, 0), y, key=key
    )
    np.testing.assert_array_equal(copies.restart, many.restart[3])
    np.testing.assert_array_equal(copies.adversarial[5], many.adversarial[3])


@pytest.mark.slow
def test_new_numbers_of_an_optimizer_do_not_compile_again(key):
    traces, counts = [], []

    def traced(weights, x):
        traces.append(1)
        return linear(weights, x)

    for seed, steps in ((0, 5), (1, 30)):
        f, x, y = linear_case(seed)
        attack = pgd_from_x(steps=steps, optimizer=optax.sgd(jnp.float32(0.1 + seed)))
        attack(dp.program(traced, f.arrays[0]), x, y, key=key)
        counts.append(len(traces))
    assert counts == counts[:1] * 2


def test_an_optimizer_has_a_state_per_example(key):
    f, x, y = linear_case(13)
    # Clipping by the norm of the whole batch's gradient would make examples depend on each other.
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1))
    result = pgd_from_x(epsilon=0.5, optimizer=optimizer)(f, x, y, key=key)
    exact = exact_gains("linf", f, x, y, 0.5)
    np.testing.assert_allclose(
        margins(f, result.adversarial, y) - margins(f, x, y), exact, rtol=0.02
    )
    others = np.where(np.arange(BATCH)[:, None] == 2, x, np.clip(-x, LOW, HIGH))
    short = pgd_from_x(epsilon=0.5, steps=3, optimizer=optimizer)
    one, other = (
        short(f, x, np.asarray(f(x).argmax(1)), key=key).adversarial[2] for x in (x, others)
    )
    np.testing.assert_array_equal(one, other)
    assert_in_ball_and_box("linf", result, x, 0.5)


def negative_logit(logits, y, targeted):
    return -jnp.take_along_axis(logits, y[:, None], 1)[:, 0]


@pytest.mark.parametrize(
    "loss",
    [
        negative_logit,
        pytest.param("margin", marks=pytest.mark.slow),
        pytest.param("dlr", marks=pytest.mark.slow),
    ],
)
def test_any_loss_is_increased(key, loss):
    f, x, y = linear_case(5, classes=3)
    result = fgsm(epsilon=0.3, loss=loss, bounds=BOUNDS)(f, x, y, key=key)
    value = lambda x: LOSSES.get(loss, negative_logit)(f(x), y, False)
    assert (value(result.adversarial) > value(x)).all()
    assert_in_ball_and_box("linf", result, x, 0.3)


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (
            fgsm,
            {"loss": "hinge"},
            ValueError,
            "loss must be one of 'cross_entropy', 'margin', 'dlr', got 'hinge'",
        ),
        (pgd, {"optimizer": "adam"}, TypeError, "optimizer must be an optax optimizer, got str"),
        (
            pgd,
            {"optimizer": optax.lbfgs()},
            ValueError,
            "optimizer must need nothing but gradients",
        ),
        (mi_fgsm, {"decay": -1.0}, ValueError, "decay"),
    ],
)
def test_bad_arguments_raise(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make(**arguments)


def test_a_loss_must_return_one_number_per_example(key):
    f, x, y = linear_case(0)
    with pytest.raises(
        ValueError, match=r"loss must return one number for each of 8 examples, got shape \[\]"
    ):
        fgsm(loss=lambda logits, y, targeted: logits.mean(), bounds=BOUNDS)(f, x, y, key=key)


def test_directions_out_of_the_box_are_dropped_also_exactly_on_its_faces():
    x = jnp.array([[0.0, 0.0, 1.0, 1.0, 0.5, 0.5]])
    direction = jnp.array([[-1.0, 2.0, 3.0, -4.0, 5.0, jnp.inf]])
    problem = Problem(None, x, None, None, None, None, (0.0, 1.0), False, (6,), None)
    dropped = drop_blocked_coordinates(problem, direction, jnp.zeros_like(x))
    np.testing.assert_array_equal(dropped, [[0, 2, 0, -4, 5, 0]])
    at_faces = drop_blocked_coordinates(problem, direction, jnp.array([[0.1, 1, 0, 0, 0.5, 0]]))
    np.testing.assert_array_equal(at_faces, [[-1, 0, 0, -4, 0, 0]])
