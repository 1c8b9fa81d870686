"""FGSM, PGD and momentum: the exact optimum on linear classifiers, ball and box, examples that do not meddle, other optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

import diffprog as dp
from diffprog.adversarial import fgsm, mi_fgsm, pgd
from diffprog.adversarial._losses import LOSSES
from diffprog.adversarial.gradient._pgd import Best, select_better
from tests.adversarial.boxes import BATCH, BOUNDS, HIGH, LOW, ORDER, case, every_norm, linear, most


def exact_gains(norm, f, x, y, epsilon):
    """How far the margin of the other of two classes can rise, for each example."""
    weights = np.asarray(f.arrays[0], np.float64)
    slopes = np.where(y == 0, 1, -1)[:, None] * (weights[:, 1] - weights[:, 0])
    room = np.where(slopes > 0, HIGH - x.astype(np.float64), x.astype(np.float64) - LOW)
    return np.array(
        [
            most(norm, *row)
            for row in zip(np.abs(slopes), room, np.broadcast_to(epsilon, len(x)), strict=True)
        ]
    )


def margins(f, x, y):
    z = np.asarray(x, np.float64) - 0.5
    z = z @ np.asarray(f.arrays[0], np.float64)
    return np.where(y == 0, 1, -1) * (z[:, 1] - z[:, 0])


def lengths(norm, r):
    return np.linalg.norm(np.asarray(r, np.float64).reshape(len(r), -1), ORDER[norm], axis=1)


def from_x(**numbers):
    """PGD from x, which compiles in half the time."""
    return pgd(**{"random_start": False, "bounds": BOUNDS, **numbers})


def inside(norm, found, x, epsilon):
    assert ((found.adversarial >= LOW) & (found.adversarial <= HIGH)).all()
    assert (lengths(norm, found.perturbation) <= epsilon * (1 + 1e-6)).all()
    np.testing.assert_array_equal(found.perturbation, found.adversarial - x)


def alike(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


# --- the exact truth ---------------------------------------------------------------------------------------------------------------------


# The box bites in the second: many numbers lie on its faces, and the ball is nearly as wide.
SETTINGS = (
    (0, {"linf": 0.1, "l2": 0.2, "l1": 0.3}, 0.0),
    (1, {"linf": 1.0, "l2": 3.0, "l1": 6.0}, 0.4),
)


def assert_optimal(make, norm, key, rtol):
    for seed, epsilon, faces in SETTINGS:
        f, x, y = case(seed, faces=faces)
        exact, before = exact_gains(norm, f, x, y, epsilon[norm]), margins(f, x, y)
        found = make(norm=norm, epsilon=epsilon[norm], bounds=BOUNDS)(f, x, y, key=key)
        gains = margins(f, found.adversarial, y) - before
        assert (gains <= exact * (1 + 1e-5)).all()
        assert (gains >= exact * (1 - rtol)).all()
        inside(norm, found, x, epsilon[norm])


@pytest.mark.slow
@every_norm
def test_pgd_raises_a_linear_classifiers_margin_as_far_as_it_goes(key, norm):
    # A direction is right to about a last step, 2 / 40, and the gain to its square; in l1 it may still be on its way to the corner.
    assert_optimal(pgd, norm, key, {"linf": 1e-5, "l2": 2.5e-3, "l1": 5e-3}[norm])


def test_momentum_is_a_straight_line_to_the_corner_in_linf(key):
    assert_optimal(mi_fgsm, "linf", key, 1e-5)


@pytest.mark.slow
@every_norm
def test_pgd_flips_a_linear_classifier_beyond_its_distance_and_not_within(key, norm):
    for seed, faces in ((2, 0.0), (3, 0.4)):
        f, x, y = case(seed, faces=faces)
        gap = -margins(f, x, y)
        reached = lambda epsilon, k: (
            exact_gains(norm, f, x[k : k + 1], y[k : k + 1], epsilon)[0] - gap[k]
        )
        distance = np.array([brentq(reached, 0, 1e3, args=(k,)) for k in range(BATCH)])
        for factor, expected in ((1.02 if norm == "l1" else 1.005, True), (0.999, False)):
            epsilon = jnp.asarray(factor * distance, jnp.float32)
            found = pgd(norm=norm, epsilon=epsilon, bounds=BOUNDS)(f, x, y, key=key)
            np.testing.assert_array_equal(found.success, expected)
            inside(norm, found, x, np.asarray(epsilon))


@pytest.mark.parametrize(
    "norm", ["l2", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("linf", "l1"))]
)
def test_fgsm_is_the_optimum_in_one_step_and_in_float64_to_its_rounding(key, norm):
    """ε sign(g), ε g / ||g||, ε at the largest entry; and where the box bites, what is best there."""
    with jax.enable_x64(True):
        f, x, y = case(7, faces=0.3, dtype=np.float64)
        x = np.clip(x, *BOUNDS)
        epsilon = np.array([0, 1e-3, 0.1, 0.3, 0.5, 1, 1.5, 2.0])
        attack = fgsm(norm=norm, epsilon=epsilon, bounds=BOUNDS)
        found = attack(f, x, y, key=key)
        assert found.adversarial.dtype == np.float64
        assert ((found.adversarial >= BOUNDS[0]) & (found.adversarial <= BOUNDS[1])).all()
        assert (lengths(norm, found.perturbation) <= epsilon * (1 + 1e-15)).all()
        np.testing.assert_allclose(lengths(norm, found.perturbation), epsilon, rtol=0, atol=1e-10)
        exact = exact_gains(norm, f, x, y, epsilon)
        # The box of `exact_gains` is that of float32, a rounding larger or smaller.
        np.testing.assert_allclose(
            margins(f, found.adversarial, y) - margins(f, x, y), exact, rtol=1e-6, atol=1e-6
        )
        np.testing.assert_array_equal(
            (found.step, found.gradients), np.where(epsilon > 0, 1, [[-1], [1]])
        )
        x = np.full_like(x, 0.25)
        y = np.asarray(f(x).argmax(1))
        slope = np.where(y == 0, 1, -1)[:, None] * np.diff(np.asarray(f.arrays[0]))[:, 0]
        largest = np.where(np.abs(slope) == np.abs(slope).max(1, keepdims=True), np.sign(slope), 0)
        steepest = {
            "linf": np.sign(slope),
            "l2": slope / np.linalg.norm(slope, axis=1, keepdims=True),
            "l1": largest,
        }[norm]
        np.testing.assert_allclose(
            attack(f, x, y, key=key).perturbation, epsilon[:, None] * steepest, atol=1e-10
        )


# --- what always holds -------------------------------------------------------------------------------------------------------------------


@every_norm
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(-4, 1), constant=st.booleans())
def test_ball_and_box_are_never_left(norm, seed, scale, constant):
    f, x, y = case(seed, faces=0.3)
    if constant:
        x = np.full_like(x, x[0, 0])
        y = np.asarray(f(x).argmax(1))
    epsilon = np.float32(10**scale) * np.linspace(0, 3, BATCH, dtype=np.float32)
    found = pgd(norm=norm, epsilon=epsilon, steps=5, bounds=BOUNDS)(
        f, x, y, key=jax.random.key(seed % 1000)
    )
    inside(norm, found, x, epsilon)
    np.testing.assert_array_equal(
        np.asarray(found.adversarial[0]).view(np.uint32), x[0].view(np.uint32)
    )
    np.testing.assert_array_equal(found.success, f(found.adversarial).argmax(1) != y)


def test_three_classes_and_targets(key):
    f, x, y = case(5, classes=3)
    for step in (1, 2):
        target = (y + step) % 3
        found = from_x(epsilon=2.0, targeted=True)(f, x, target, key=key, labels=y)
        np.testing.assert_array_equal(found.success, f(found.adversarial).argmax(1) == target)
        assert found.success.sum() >= BATCH - 2
        inside("linf", found, x, 2.0)


def test_an_example_is_searched_alone_as_in_a_batch_in_any_order(key):
    f, x, y = case(6)
    attack = pgd(epsilon=0.1, bounds=BOUNDS)
    together, backwards = attack(f, x, y, key=key), attack(f, x[::-1], y[::-1], key=key)
    jax.tree.map(
        lambda one, other: np.testing.assert_array_equal(one, other[::-1]),
        together.adversarial,
        backwards.adversarial,
    )
    alike(together, attack(f, x, y, key=key))
    copies = attack(f, np.repeat(x[2:3], BATCH, 0), np.repeat(y[2:3], BATCH), key=key)
    np.testing.assert_array_equal(
        copies.adversarial, np.repeat(together.adversarial[2:3], BATCH, 0)
    )
    short = pgd(norm="l2", epsilon=0.1, steps=2, bounds=BOUNDS)
    one, other = (short(f, x, y, key=key).adversarial for key in (key, jax.random.key(9)))
    assert (one != other).any(1).all()


@pytest.mark.slow
def test_other_numbers_are_no_other_program(key):
    traces = []

    def traced(weights, x):
        traces.append(1)
        return linear(weights, x)

    counts = []
    for seed, epsilon, steps, restarts in (
        (0, 0.1, 5, 1),
        (1, 0.2, 50, 3),
        (2, np.linspace(0, 1, BATCH), 7, 2),
    ):
        f, x, y = case(seed)
        program = dp.program(traced, f.arrays[0])
        pgd(epsilon=epsilon, steps=steps, restarts=restarts, bounds=BOUNDS)(
            program, x, y, key=jax.random.key(seed)
        )
        counts.append(len(traces))
    assert counts == counts[:1] * 3


# --- numbers that are none, and logits that say nothing ----------------------------------------------------------------------------------


def test_logits_and_gradients_that_are_no_numbers_harm_no_example(key):
    @jax.custom_jvp
    def broken(x):
        return x

    # Flat that start above 0 have a gradient of NaN or infinity, and right values.
    broken.defjvp(
        lambda primals, tangents: (
            primals[0],
            jnp.where(primals[0][:, :1] > 0, primals[0][:, 1:2] / 0, 1) * tangents[0],
        )
    )
    torn = lambda weights, x: jnp.where(x[:, 2:3] > 1, jnp.nan, 1) * linear(weights, broken(x))
    f, x, _ = case(8)
    x = np.clip(x, -0.9, 0.9)
    x[:4, 0], x[4:, 0], x[0, 1] = 0.9, -0.9, 0.0
    y = np.asarray(f(x).argmax(1))
    attack, sick = from_x(epsilon=0.05), dp.program(torn, f.arrays[0])
    found, sound = attack(sick, x, y, key=key), attack(f, x, y, key=key)
    np.testing.assert_array_equal(found.adversarial[:4], x[:4])
    np.testing.assert_array_equal(found.adversarial[4:], sound.adversarial[4:])
    # Beyond 1 in the third number every logit is NaN: never the best point, never a success.
    found = from_x(epsilon=1.5)(sick, x, y, key=key)
    assert np.isfinite(sick(found.adversarial)).all()
    assert found.success[4:].any()
    beyond = np.array(x)
    beyond[:, 2] = 2.0
    assert not attack(sick, beyond, y, key=key).success.any()


def test_saturated_logits_are_attacked_as_the_others(key):
    """Logits a thousand times as large: softmax is rounded to 1, and the gradient of plain cross-entropy is 0."""
    f, x, y = case(10)
    saturated = dp.program(linear, 1000 * f.arrays[0])
    plain = jax.grad(
        lambda x: optax.losses.softmax_cross_entropy_with_integer_labels(saturated(x), y).sum()
    )(jnp.asarray(x))
    assert (np.abs(plain) == 0).all(1).sum() >= BATCH - 2
    attack = from_x(epsilon=0.5)
    np.testing.assert_array_equal(
        attack(saturated, x, y, key=key).success, attack(f, x, y, key=key).success
    )
    assert attack(f, x, y, key=key).success.any()


def test_examples_that_are_read_wrongly_take_no_part(key):
    f, x, y = case(11)
    wrong = np.arange(BATCH) < 3
    found = pgd(epsilon=0.1, restarts=2, bounds=BOUNDS)(f, x, np.where(wrong, 1 - y, y), key=key)
    np.testing.assert_array_equal(found.initially_misclassified, wrong)
    np.testing.assert_array_equal(found.adversarial[wrong], x[wrong])
    np.testing.assert_array_equal(found.gradients[wrong], 0)
    np.testing.assert_array_equal(found.step[wrong], -1)
    assert found.success[wrong].all()


# --- the best of what is seen, restarts, losses, optimizers ------------------------------------------------------------------------------


def test_the_best_is_a_success_and_then_the_larger_loss():
    of = lambda success, loss, step: Best(
        jnp.zeros((5, 2)), *map(jnp.array, (loss, success, [step] * 5, [0] * 5))
    )
    kept = of([True, False, True, False, False], [0.0, 9.0, 1.0, 1.0, -np.inf], 1)
    seen = of([False, True, True, False, False], [9.0, 0.0, 2.0, 2.0, -np.inf], 2)
    np.testing.assert_array_equal(select_better(kept, seen).step, [1, 2, 2, 2, 1])


@pytest.mark.slow
def test_restarts_are_each_examples_own(key):
    """A program that reads 1 only in a small corner that most random starts do not see: its gradient elsewhere is 0."""
    corner = dp.program(
        lambda x: jnp.stack([jnp.zeros(len(x)), jnp.where((x[:, :2] > 0.5).all(1), 1.0, -1.0)], 1)
    )
    x, y = case(12)[1] * 0.01, np.zeros(BATCH, int)
    once, often = (
        pgd(epsilon=1.0, steps=2, restarts=restarts, bounds=BOUNDS)(corner, x, y, key=key)
        for restarts in (1, 200)
    )
    assert often.success.all()
    assert not once.success.all()
    assert len(set(np.asarray(often.restart).tolist())) > 3
    inside("linf", often, x, 1.0)
    np.testing.assert_array_equal(often.gradients, 2 * (often.restart + 1))
    np.testing.assert_array_equal(often.adversarial[once.success], once.adversarial[once.success])
    # Each alone finds what it finds in the batch, though there the others go on.
    copies = pgd(epsilon=1.0, steps=2, restarts=200, bounds=BOUNDS)(
        corner, np.repeat(x[3:4], BATCH, 0), y, key=key
    )
    np.testing.assert_array_equal(copies.restart, often.restart[3])
    np.testing.assert_array_equal(copies.adversarial[5], often.adversarial[3])


@pytest.mark.slow
def test_momentum_takes_numbers_and_optimizers_keep_their_state_without_a_new_program(key):
    traces = []

    def traced(weights, x):
        traces.append(1)
        return linear(weights, x)

    counts = []
    for seed, steps in ((0, 5), (1, 30)):
        f, x, y = case(seed)
        program = dp.program(traced, f.arrays[0])
        mi_fgsm(steps=steps, decay=0.5 * seed, bounds=BOUNDS)(program, x, y, key=key)
        from_x(steps=steps, optimizer=optax.sgd(jnp.float32(0.1 + seed)))(program, x, y, key=key)
        counts.append(len(traces))
    assert counts == counts[:1] * 2


def test_any_optimizer_moves_each_example_by_itself(key):
    f, x, y = case(13)
    # Of the whole batch's gradients this norm would be another.
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1))
    found = from_x(epsilon=0.5, optimizer=optimizer)(f, x, y, key=key)
    exact = exact_gains("linf", f, x, y, 0.5)
    np.testing.assert_allclose(
        margins(f, found.adversarial, y) - margins(f, x, y), exact, rtol=0.02
    )
    others = np.where(np.arange(BATCH)[:, None] == 2, x, np.clip(-x, LOW, HIGH))
    short = from_x(epsilon=0.5, steps=3, optimizer=optimizer)
    one, other = (
        short(f, x, np.asarray(f(x).argmax(1)), key=key).adversarial[2] for x in (x, others)
    )
    np.testing.assert_array_equal(one, other)
    inside("linf", found, x, 0.5)


def own_loss(logits, y, targeted):
    return -jnp.take_along_axis(logits, y[:, None], 1)[:, 0]


@pytest.mark.parametrize(
    "loss",
    [
        own_loss,
        pytest.param("margin", marks=pytest.mark.slow),
        pytest.param("dlr", marks=pytest.mark.slow),
    ],
)
def test_losses_are_exchangeable(key, loss):
    f, x, y = case(5, classes=3)
    found = fgsm(epsilon=0.3, loss=loss, bounds=BOUNDS)(f, x, y, key=key)
    value = lambda x: LOSSES.get(loss, own_loss)(f(x), y, False)
    assert (value(found.adversarial) > value(x)).all()
    inside("linf", found, x, 0.3)


@pytest.mark.parametrize(
    ("make", "numbers", "error", "says"),
    [
        (fgsm, {"norm": "l3"}, ValueError, "norm"),
        (fgsm, {"epsilon": -1.0}, ValueError, "epsilon"),
        (
            fgsm,
            {"loss": "hinge"},
            ValueError,
            "loss must be one of 'cross_entropy', 'margin', 'dlr', got 'hinge'",
        ),
        (fgsm, {"bounds": (1, 0)}, ValueError, "bounds"),
        (pgd, {"norm": 2}, ValueError, "norm"),
        (pgd, {"steps": 0}, ValueError, "steps"),
        (pgd, {"steps": 2.5}, TypeError, "steps"),
        (pgd, {"restarts": 0}, ValueError, "restarts"),
        (pgd, {"loss": None}, ValueError, "loss"),
        (pgd, {"optimizer": "adam"}, TypeError, "optimizer must be an optax optimizer, got str"),
        (
            pgd,
            {"optimizer": optax.lbfgs()},
            ValueError,
            "optimizer must need nothing but gradients",
        ),
        (mi_fgsm, {"decay": -1.0}, ValueError, "decay"),
        (mi_fgsm, {"steps": True}, TypeError, "steps"),
    ],
)
def test_bad_numbers_are_refused_at_once(make, numbers, error, says):
    with pytest.raises(error, match=says):
        make(**numbers)


def test_a_loss_of_the_whole_batch_is_refused(key):
    f, x, y = case(0)
    with pytest.raises(
        ValueError, match=r"loss must return one number for each of 8 examples, got shape \[\]"
    ):
        fgsm(loss=lambda logits, y, targeted: logits.mean(), bounds=BOUNDS)(f, x, y, key=key)
