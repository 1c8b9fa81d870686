"""One-sided derivatives: kinks and the interval of their subgradients."""

import pytest

from diffprog.checks._finite_differences import DirectionalDerivatives, Estimate


def derivatives(left, right, error=1e-8):
    mean = Estimate((left + right) / 2, error)
    return DirectionalDerivatives(mean, Estimate(right, error), Estimate(left, error))


@pytest.mark.parametrize(("left", "right"), [(-1.0, 2.0), (2.0, -1.0)], ids=["convex", "concave"])
def test_the_interval_of_a_kink_starts_at_the_smaller_derivative(left, right):
    assert derivatives(left, right).interval == (-1.0, 2.0)
    assert derivatives(left, right).is_kink


def test_one_sided_derivatives_that_agree_within_their_errors_are_no_kink():
    assert not derivatives(1.0, 1.003, error=1e-3).is_kink
    assert derivatives(1.0, 1.003, error=1e-4).is_kink


def test_one_sided_derivatives_that_differ_by_less_than_a_millionth_are_no_kink():
    assert not derivatives(1.0, 1.0 + 5e-7, error=0.0).is_kink
    assert derivatives(1.0, 1.0 + 3e-6, error=0.0).is_kink
