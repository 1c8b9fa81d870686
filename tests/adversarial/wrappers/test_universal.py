"""Universal perturbations: linear programs, whose distances are known; the box; minibatches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp
from diffprog.adversarial import universal
from diffprog.adversarial.wrappers._universal import _minibatches
from tests.adversarial.boxes import (
    BOUNDS,
    HIGH,
    LOW,
    ORDER,
    distances,
    every_norm,
    inner_case,
    linear,
)


def one_class_case(seed, dtype=np.float32):
    """Draw a linear program, 16 examples of class 0, and the gradient of the margin."""
    f, x, y = inner_case(seed, batch=16, dtype=dtype)
    x = np.where(y[:, None] == 1, 1 - x, x)
    return f, x, np.zeros(16, int), np.diff(np.asarray(f.arrays[0]))[:, 0]


def make_small(**arguments):
    return universal(**{"steps": 50, "batch_size": 8, "bounds": BOUNDS, **arguments})


@pytest.mark.slow
@every_norm
def test_one_perturbation_misclassifies_all_examples_of_a_class(key, norm):
    """Beyond the largest distance; none within the smallest. Its length is the radius."""
    f, x, y, _ = one_class_case(4)
    distance = distances(norm, f, x)
    for epsilon, expected in ((1.02 * distance.max(), True), (0.99 * distance.min(), False)):
        result = make_small(norm=norm, epsilon=float(epsilon))(f, x, y, key=key)
        np.testing.assert_array_equal(result.found.success, expected)
        length = np.linalg.norm(np.asarray(result.perturbation, np.float64), ORDER[norm])
        np.testing.assert_allclose(length, epsilon, rtol=1e-6)
        np.testing.assert_allclose(result.found.adversarial, x + result.perturbation, rtol=2e-7)


def test_results_stay_in_the_box_and_misclassified_examples_are_not_perturbed(key):
    f, x, _, _ = one_class_case(5)
    rng = np.random.default_rng(0)
    x = rng.uniform(1.2 * LOW, 1.2 * HIGH, x.shape).astype(np.float32).clip(LOW, HIGH)
    y = np.where(np.arange(16) < 5, 1, 0) ^ np.asarray(f(x).argmax(1))
    for epsilon in (4.7, 1e-3, 0.0):
        result = make_small(epsilon=epsilon)(f, x, y, key=key)
        found = result.found
        assert ((found.adversarial >= LOW) & (found.adversarial <= HIGH)).all()
        assert (found.distance <= epsilon * (1 + 1e-6)).all()
        assert (np.abs(result.perturbation) <= epsilon * (1 + 1e-6)).all()
        np.testing.assert_array_equal(found.initially_misclassified, np.arange(16) < 5)
        np.testing.assert_array_equal(found.adversarial[:5], x[:5])
        np.testing.assert_array_equal(found.success, f(found.adversarial).argmax(1) != y)
        np.testing.assert_array_equal((found.step, found.gradients), [[50] * 16, [25] * 16])
    np.testing.assert_array_equal(found.adversarial, x)


@pytest.mark.slow
def test_examples_with_nan_logits_or_gradients_are_ignored(key):
    @jax.custom_jvp
    def nan_gradient(x):
        return x

    nan_gradient.defjvp(
        lambda primals, tangents: (
            primals[0],
            jnp.where(primals[0][:, :1] > 1, jnp.nan, 1) * tangents[0],
        )
    )
    f, x, y, slope = one_class_case(7)
    x[:3, 0], x[3:6, 0] = 2.0, -1.0
    nan_logits = lambda x: jnp.where(x[:, :1] < -0.5, jnp.nan, 1)
    faulty = lambda weights, x: nan_logits(x) * linear(weights, nan_gradient(x))
    result = make_small(epsilon=0.05)(dp.program(faulty, f.arrays[0]), x, y, key=key)
    assert not result.found.success[3:6].any()
    np.testing.assert_allclose(result.perturbation, 0.05 * np.sign(slope), rtol=1e-5)
    np.testing.assert_array_equal(result.found.step, 50)


@pytest.mark.slow
def test_new_numbers_do_not_compile_again():
    traces, counts = [], []

    def traced(weights, x):
        traces.append(1)
        return linear(weights, x)

    for seed, steps in ((0, 5), (1, 30)):
        f, x, y, _ = one_class_case(seed)
        attack = make_small(epsilon=0.1 + seed, ceiling=5.0 + seed, steps=steps)
        attack(dp.program(traced, f.arrays[0]), x, y, key=jax.random.key(seed))
        counts.append(len(traces))
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_float64_is_kept(key):
    with jax.enable_x64(True):
        f, x, y, _ = one_class_case(8, dtype=np.float64)
        result = make_small(norm="l2", epsilon=0.1)(f, x, y, key=key)
        assert result.perturbation.dtype == result.found.adversarial.dtype == np.float64
        np.testing.assert_allclose(np.linalg.norm(result.perturbation), 0.1, rtol=0, atol=1e-10)


def test_minibatches_are_drawn_without_replacement_from_all_examples(key):
    batches = np.asarray(_minibatches(key, 10, 3, 31))
    assert batches.shape == (31, 3)
    for first in range(0, 30, 3):
        assert len(set(batches[first : first + 3].ravel().tolist())) == 9
    assert (batches[:3] != batches[3:6]).any()
    assert set(batches.ravel().tolist()) == set(range(10))


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("norm", "l3", ValueError),
        ("epsilon", -1.0, ValueError),
        ("epsilon", np.ones(3), TypeError),
        ("steps", 0, ValueError),
        ("batch_size", 0, ValueError),
        ("ceiling", np.nan, ValueError),
        ("loss", "hinge", ValueError),
        ("bounds", (1, 0), ValueError),
    ],
)
def test_a_bad_argument_is_named_in_the_error(argument, value, error):
    with pytest.raises(error, match=argument):
        universal(**{argument: value})
