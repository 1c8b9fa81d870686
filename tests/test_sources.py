"""The worked examples of the five sources: every number of `golden.json`, by hand-written layers, by `jax.grad` and by finite differences.

The programs are those of `experiments.sources`; what they must give was computed apart from them, in NumPy. A test is named by its example
and by the rows of the sources that it stands for.
"""

import numpy as np
import pytest

from experiments import worked_examples
from experiments.sources import EXAMPLES, by_autodiff, by_differences, by_hand, golden, quantities

GOLDEN = golden()
NAMES = {f"{name}, row {EXAMPLES[name][0]}" if name in EXAMPLES else name: name for name in GOLDEN}
every_example = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


def test_no_example_is_left_out():
    assert set(EXAMPLES) == set(GOLDEN)
    assert len(GOLDEN) == 31


@every_example
@pytest.mark.parametrize("route", [by_hand, by_autodiff, by_differences])
def test_every_number(name, route):
    true, found = GOLDEN[name]["true"], quantities(name, GOLDEN[name]["inputs"], route)
    assert found.keys() == true.keys()
    tolerance = 1e-9 if route is by_differences else 1e-12
    for quantity, value in true.items():
        value = np.asarray(value, float)
        got = found[quantity].reshape(value.shape)
        np.testing.assert_allclose(got, value, rtol=tolerance, atol=tolerance, err_msg=quantity)


@every_example
def test_verdict_on_every_printed_number(name):
    """Row 1b, what the sources misprint, round and truncate."""
    for check in GOLDEN[name]["check"]:
        expected = check["verdict"].replace("WRONG", "MISPRINT")
        assert worked_examples.verdict(check["printed"], check["true"]) == expected, check["key"]


def test_softmax_exercise_has_exact_zeros_below_the_last_layer():
    """Row 2.5: symmetric weights pass on the sum of yhat - y, which is 0."""
    found = quantities(
        "exercise_4433_softmax_ce", GOLDEN["exercise_4433_softmax_ce"]["inputs"], by_hand
    )
    for name in ("dW1", "db1", "dW2", "db2", "dh2", "dx"):
        assert abs(found[name]).max() < 1e-15
    np.testing.assert_allclose(found["dz3"].ravel(), [1 / 3, -2 / 3, 1 / 3], rtol=1e-12)


def test_lecture_001_follows_from_the_numbers_it_printed_before():
    """Row 1b: "rounding chained"."""
    for quantity, values in GOLDEN["sigmoid_221"]["printed_chain"].items():
        np.testing.assert_allclose(
            worked_examples.printed_chain()[quantity], np.ravel(values), rtol=1e-12
        )


def test_lecture_001_is_at_most_1_7_percent_off():
    printed, true = (GOLDEN["sigmoid_221"][key]["dW1"] for key in ("printed", "true"))
    off = np.abs(np.array(printed, float) / np.ravel(true) - 1)
    assert 0.016 < off.max() < 0.0175
