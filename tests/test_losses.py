"""Losses: worked examples of the sources, closed-form gradients, identities, invalid input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from diffprog import losses
from experiments.sources import golden

GOLDEN = golden()
exactly = {"rtol": 1e-12, "atol": 1e-12}


def value_and_gradients(loss, *args):
    """Loss of one example without a batch axis, and its gradients by both arguments."""
    with jax.enable_x64(True):
        batched = [jnp.asarray(arg, float)[None] for arg in args]
        value, gradients = jax.value_and_grad(lambda *args: loss(*args).sum(), (0, 1))(*batched)
        return float(value), *(np.asarray(gradient)[0] for gradient in gradients)


def test_half_squared_error_of_the_worked_exercise():
    example = GOLDEN["exercise_4433_sq"]
    value, gradient, _ = value_and_gradients(
        losses.half_squared_error, example["true"]["yhat"], example["inputs"]["y"]
    )
    np.testing.assert_allclose(value, example["true"]["loss"], **exactly)
    np.testing.assert_allclose(
        gradient, np.subtract(example["true"]["yhat"], example["inputs"]["y"]), **exactly
    )


def test_the_softmax_gradient_of_the_worked_example():
    example = GOLDEN["softmax_jacobian"]
    with jax.enable_x64(True):
        logits = jnp.asarray(example["inputs"]["z"])[None]
        by_label = jax.grad(lambda z: losses.softmax_cross_entropy(z, jnp.array([2])).sum())(logits)
    _, by_target, _ = value_and_gradients(
        losses.softmax_kl, example["inputs"]["z"], example["inputs"]["onehot"]
    )
    np.testing.assert_allclose(by_label[0], example["true"]["dCE_dz"], **exactly)
    np.testing.assert_allclose(by_target, example["true"]["dCE_dz"], **exactly)


@pytest.mark.parametrize("name", ["digit_softmax_kl_10", "digit_softmax_kl_11"])
def test_softmax_kl_of_the_digit(name):
    inputs, true = GOLDEN[name]["inputs"], GOLDEN[name]["true"]
    value, by_logits, _ = value_and_gradients(losses.softmax_kl, inputs["z"], inputs["d"])
    np.testing.assert_allclose(value, true["KL"], **exactly)
    np.testing.assert_allclose(by_logits, true["dKL_dz"], **exactly)
    at_chance, *_ = value_and_gradients(losses.softmax_kl, np.zeros(len(inputs["z"])), inputs["d"])
    np.testing.assert_allclose(at_chance, true["chance_loss"], **exactly)


def test_sigmoid_kl_of_two_or_not_two():
    inputs, true = GOLDEN["two_or_not_two"]["inputs"], GOLDEN["two_or_not_two"]["true"]
    for target, loss, gradient in (
        (1.0, true["KL"], true["dKL_dz"]),
        (0.0, true["KL_d0"], true["dKL_dz_d0"]),
    ):
        value, by_logits, _ = value_and_gradients(losses.sigmoid_kl, inputs["z"], target)
        np.testing.assert_allclose(value, loss, **exactly)
        np.testing.assert_allclose(by_logits, gradient, **exactly)


def examples(seed=0, batch=6, classes=4):
    rng = np.random.default_rng(seed)
    target = rng.dirichlet(np.full(classes, 0.5), batch)
    target[0], target[1, 0] = np.eye(classes)[2], 0
    return 3 * rng.normal(size=(batch, classes)), target / target.sum(1, keepdims=True)


def test_softmax_kl_equals_scipy():
    logits, target = examples()
    with jax.enable_x64(True):
        found = losses.softmax_kl(logits, target)
    np.testing.assert_allclose(found, rel_entr(target, softmax(logits, axis=1)).sum(1), **exactly)


def test_softmax_kl_of_its_own_softmax_is_zero():
    logits, _ = examples()
    np.testing.assert_allclose(losses.softmax_kl(logits, softmax(logits, axis=1)), 0, atol=1e-6)


def test_softmax_kl_of_one_hot_targets_is_the_cross_entropy():
    logits, labels = examples()[0], np.array([0, 1, 2, 3, 0, 1])
    np.testing.assert_allclose(
        losses.softmax_kl(logits, np.eye(4)[labels]),
        losses.softmax_cross_entropy(logits, labels),
        atol=2e-6,
    )


def test_sigmoid_kl_is_softmax_kl_of_two_classes():
    rng = np.random.default_rng(1)
    logits, target = 3 * rng.normal(size=6), np.array([0.0, 1.0, 0.5, 0.1, 0.999, 1e-6])
    with jax.enable_x64(True):
        two_classes = losses.softmax_kl(
            np.stack([logits, 0 * logits], 1), np.stack([target, 1 - target], 1)
        )
        np.testing.assert_allclose(losses.sigmoid_kl(logits, target), two_classes, **exactly)


def test_the_gradient_by_the_target_equals_its_closed_form():
    logits, target = examples()
    for z, d in zip(logits, target, strict=True):
        _, _, by_target = value_and_gradients(losses.softmax_kl, z, d)
        log_y = np.log(softmax(z))
        expected = np.where(d > 0, np.log(np.where(d > 0, d, 1)) + 1 - log_y, -log_y)
        np.testing.assert_allclose(by_target, expected, **exactly)
    for d in (0.0, 1.0, 0.3):
        assert np.isfinite(value_and_gradients(losses.sigmoid_kl, 0.7, d)[2])


def test_large_logits_give_finite_losses():
    logits, wrong = np.array([[1e4, -1e4]], np.float32), np.array([[0, 1]], np.float32)
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, np.array([1])), 2e4)
    np.testing.assert_allclose(losses.softmax_kl(logits, wrong), 2e4)
    np.testing.assert_allclose(losses.sigmoid_kl(logits[:, 0], wrong[:, 0]), 1e4)


def test_half_squared_error_sums_over_all_axes_but_the_first():
    found = losses.half_squared_error(np.full((3, 2, 4), 3.0), np.ones((3, 2, 4)))
    np.testing.assert_allclose(found, np.full(3, 0.5 * 4 * 8))
    np.testing.assert_allclose(
        losses.half_squared_error(np.array([3.0, 1.0]), np.array([1.0, 1.0])), [2, 0]
    )


ONE_HOT, LOGITS, LABELS = (
    np.eye(3, dtype=np.float32)[:2],
    np.zeros((2, 3), np.float32),
    np.array([0, 2]),
)
BINARY = np.array([0.0, 1.0], np.float32)
CALLS = {
    losses.half_squared_error: (LOGITS, ONE_HOT),
    losses.softmax_cross_entropy: (LOGITS, LABELS),
    losses.softmax_kl: (LOGITS, ONE_HOT),
    losses.sigmoid_kl: (np.zeros(2, np.float32), BINARY),
}
every_loss = pytest.mark.parametrize(
    ("loss", "args"), CALLS.items(), ids=lambda value: getattr(value, "__name__", "")
)


@pytest.mark.slow
@every_loss
def test_losses_are_per_example_and_work_under_jit_and_vmap(loss, args):
    expected = loss(*args)
    assert expected.shape == (2,)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(jax.jit(loss)(*args), expected, rtol=1e-6)
    np.testing.assert_allclose(
        jax.vmap(lambda *row: loss(*(part[None] for part in row))[0])(*args), expected, rtol=1e-6
    )


@every_loss
@pytest.mark.parametrize("position", [0, 1])
def test_invalid_arrays_raise(loss, args, position):
    def assert_raises(value, error, message):
        with pytest.raises(error, match=message):
            loss(*(value if i == position else arg for i, arg in enumerate(args)))

    name = loss.__code__.co_varnames[position]
    assert_raises("text", TypeError, f"{name} must be an array, got str")
    assert_raises(
        args[position][:1], ValueError, r"must agree, got .*: .*2.*1|must agree, got .*: .*1.*2"
    )
    assert_raises(args[position] + 1j, TypeError, f"{name} must be")
    if name != "labels":
        assert_raises(
            np.ones_like(args[position], np.int32),
            TypeError,
            f"{name} must be a float array, got int32",
        )
        assert_raises(np.full_like(args[position], np.nan), ValueError, f"{name} must be finite")
        assert_raises(np.full_like(args[position], np.inf), ValueError, f"{name} must be finite")


@every_loss
def test_an_empty_batch_raises(loss, args):
    with pytest.raises(ValueError, match="must not be empty"):
        loss(*(arg[:0] for arg in args))


@pytest.mark.parametrize("loss", [losses.softmax_cross_entropy, losses.softmax_kl])
def test_logits_of_another_rank_raise(loss):
    with pytest.raises(ValueError, match="logits must have rank 2"):
        loss(np.zeros(3), LABELS)
    with pytest.raises(ValueError, match="logits must have rank 1"):
        losses.sigmoid_kl(LOGITS, ONE_HOT)
    with pytest.raises(ValueError, match="prediction must have a leading axis"):
        losses.half_squared_error(np.float32(1), np.float32(1))


@pytest.mark.parametrize("labels", [np.array([0, 3]), np.array([-1, 0])])
def test_labels_out_of_range_raise(labels):
    with pytest.raises(ValueError, match=r"labels must lie in 0 .. 2, got values from"):
        losses.softmax_cross_entropy(LOGITS, labels)


def test_traced_labels_out_of_range_give_nan():
    labels = jnp.array([-1, 2, 3])
    loss = jax.jit(losses.softmax_cross_entropy)(jnp.zeros((3, 3)), labels)
    np.testing.assert_allclose(loss, [np.nan, np.log(3), np.nan], rtol=1e-6)


def test_one_hot_or_float_labels_raise():
    for labels in (ONE_HOT, BINARY, LABELS[:, None]):
        with pytest.raises(TypeError, match="labels must be integer labels of shape"):
            losses.softmax_cross_entropy(LOGITS, labels)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.5, 0.6, 0.0], "row 1 with sum 1.1"),
        ([0.0, 0.0, 0.0], "row 1 with sum 0"),
        ([1.5, -0.5, 0.0], "target must lie in 0"),
    ],
)
def test_targets_that_are_not_distributions_raise(row, message):
    with pytest.raises(ValueError, match=message):
        losses.softmax_kl(LOGITS, np.array([[1, 0, 0], row], np.float32))


def test_targets_that_sum_to_one_within_rounding_pass():
    target = softmax(np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32), axis=1)
    assert np.isfinite(losses.softmax_kl(np.zeros((2, 1000), np.float32), target)).all()
    assert np.isfinite(
        losses.softmax_kl(LOGITS, np.full((2, 3), np.float32(1 / 3)).astype(np.float64))
    ).all()
    assert np.isfinite(losses.softmax_kl(LOGITS, jnp.full((2, 3), 1 / 3, jnp.bfloat16))).all()


@pytest.mark.parametrize("target", [-0.1, 1.1])
def test_probabilities_outside_zero_to_one_raise(target):
    with pytest.raises(ValueError, match=r"target must lie in 0 .. 1, got values from"):
        losses.sigmoid_kl(np.zeros(2), np.array([target, 0.5]))
