"""Worked examples of the five sources, by hand-written layers, `jax.grad` and finite differences.

The programs are those of `experiments.sources`; the expected numbers in `golden.json` were computed
independently in NumPy. A test is named by its example and the rows of the sources that it covers.
"""

import numpy as np
import pytest

from experiments import worked_examples
from experiments.sources import (
    EXAMPLES,
    autodiff,
    finite_differences,
    golden,
    hand_written,
    quantities,
)

GOLDEN = golden()
NAMES = {f"{name}, row {EXAMPLES[name][0]}" if name in EXAMPLES else name: name for name in GOLDEN}
every_example = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


def test_every_example_has_a_program():
    assert set(EXAMPLES) == set(GOLDEN)
    assert len(GOLDEN) == 31


@every_example
@pytest.mark.parametrize("differentiate", [hand_written, autodiff, finite_differences])
def test_every_quantity(name, differentiate):
    true, values = GOLDEN[name]["true"], quantities(name, GOLDEN[name]["inputs"], differentiate)
    assert values.keys() == true.keys()
    tolerance = 1e-9 if differentiate is finite_differences else 1e-12
    for quantity, number in true.items():
        expected = np.asarray(number, float)
        actual = values[quantity].reshape(expected.shape)
        np.testing.assert_allclose(
            actual, expected, rtol=tolerance, atol=tolerance, err_msg=quantity
        )


@every_example
def test_verdict_on_every_printed_number(name):
    """Row 1b: numbers that the sources misprint, round or truncate."""
    for check in GOLDEN[name]["check"]:
        expected = check["verdict"].replace("WRONG", "MISPRINT")
        assert worked_examples.verdict(check["printed"], check["true"]) == expected, check["key"]


def test_softmax_exercise_has_zero_gradients_below_the_last_layer():
    """Row 2.5: symmetric weights propagate the sum of yhat - y, which is 0."""
    inputs = GOLDEN["exercise_4433_softmax_ce"]["inputs"]
    values = quantities("exercise_4433_softmax_ce", inputs, hand_written)
    for name in ("dW1", "db1", "dW2", "db2", "dh2", "dx"):
        assert abs(values[name]).max() < 1e-15
    np.testing.assert_allclose(values["dz3"].ravel(), [1 / 3, -2 / 3, 1 / 3], rtol=1e-12)


def test_lecture_001_follows_from_its_rounded_numbers():
    """Row 1b: errors from rounding intermediate results."""
    numbers = worked_examples.recompute_from_printed_numbers()
    for quantity, expected in GOLDEN["sigmoid_221"]["printed_chain"].items():
        np.testing.assert_allclose(numbers[quantity], np.ravel(expected), rtol=1e-12)


def test_lecture_001_is_off_by_at_most_1_7_percent():
    printed, true = (GOLDEN["sigmoid_221"][key]["dW1"] for key in ("printed", "true"))
    error = np.abs(np.array(printed, float) / np.ravel(true) - 1)
    assert 0.016 < error.max() < 0.0175
