"""Confidence intervals, the robust accuracy curve and the printed table of a report."""

import math
import statistics

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffprog as dp
from diffprog.adversarial.evaluation._report import share_with_interval

adv = dp.adversarial


@given(
    total=st.integers(1, 2000),
    part=st.floats(0, 1),
    confidence=st.sampled_from([0.5, 0.9, 0.95, 0.999]),
)
def test_interval_ends_satisfy_the_defining_equation(total, part, confidence):
    """Check Wilson's equation (p - q)² = z² q (1 - q) / n at both ends q."""
    count = round(part * total)
    result = share_with_interval(count, total, confidence)
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    for end in (result.low, result.high):
        assert math.isclose(
            (result.value - end) ** 2, z**2 * end * (1 - end) / total, rel_tol=1e-6, abs_tol=1e-15
        )
    assert 0 <= result.low <= result.value <= result.high <= 1
    assert result.low < result.high


def test_intervals_have_their_nominal_coverage():
    """The exact coverage for p = 0.8, n = 360; Wilson's error at this size is below 0.01."""
    n, p = 360, 0.8
    log_choose = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)
    ]
    is_covered = [
        share_with_interval(k, n).low <= p <= share_with_interval(k, n).high for k in range(n + 1)
    ]
    coverage = sum(
        math.exp(log_choose[k] + k * math.log(p) + (n - k) * math.log(1 - p))
        for k in range(n + 1)
        if is_covered[k]
    )
    assert abs(coverage - 0.95) < 0.01


def make_report(distances, right, epsilons=(None,), flags=()):
    """Build a report from the distances of each attack, infinite where it failed."""
    distances, right = np.array(distances, np.float64), np.array(right)
    none = np.zeros(distances.shape[1], int)
    outcomes = []
    for k, (row, epsilon) in enumerate(zip(distances, epsilons, strict=True)):
        success = np.isfinite(row) | ~right
        distance = np.where(np.isfinite(row), row, 0.0)
        result = adv.AttackResult(
            none, none, success, distance, none + 1.0, ~right, none, none, none + 7, none + 3
        )
        outcomes.append(
            adv.Outcome(
                f"attack {k}",
                "pgd",
                epsilon,
                share_with_interval(int((right & ~success).sum()), len(right)),
                result,
            )
        )
    shortest = np.where(right, distances.min(0), 0)
    worst = adv.Worst(
        shortest, np.where(right & np.isfinite(shortest), distances.argmin(0), -1), none, none
    )
    return adv.Report(
        "l2",
        (0.0, 1.0),
        0.95,
        share_with_interval(int(right.sum()), len(right)),
        right,
        tuple(outcomes),
        worst,
        tuple(flags),
    )


DISTANCES = [[0.1, 0.3, np.inf, 0.2, np.inf], [0.2, 0.1, 0.5, np.inf, np.inf]]
RIGHT = [True, True, True, False, True]


def test_an_example_is_robust_if_no_attack_succeeded_within_the_radius():
    result = make_report(DISTANCES, RIGHT, (0.3, None))
    radii = (0, 0.0999, 0.1, 0.3, 0.5, 1e9, np.inf)
    assert [result.robust(radius).count for radius in radii] == [4, 4, 2, 2, 1, 1, 1]
    assert result.robust(np.array([0.0, 0.0, 0.6, 0.0, 0.0])).count == 3
    curve = result.curve()
    np.testing.assert_allclose(curve.epsilons, [0, 0.1, 0.5])
    np.testing.assert_allclose(curve.accuracy, [0.8, 0.4, 0.2])


@settings(max_examples=30)
@given(st.lists(st.one_of(st.floats(0, 1), st.just(np.inf)), min_size=1, max_size=20))
def test_curve_never_rises_and_lies_in_its_intervals(distances):
    curve = make_report([distances], [True] * len(distances)).curve()
    assert (np.diff(curve.epsilons) > 0).all()
    assert (np.diff(curve.accuracy) <= 0).all()
    assert (np.diff(curve.intervals, axis=0) <= 0).all()
    assert (curve.intervals[:, 0] <= curve.accuracy).all()
    assert (curve.accuracy <= curve.intervals[:, 1]).all()


def test_printed_report_has_a_row_per_attack_and_every_flag():
    flag = adv.Flag(
        "zero gradients", "Exactly zero at 3 of 3 examples.", "No evidence.", "Add square."
    )
    lines = str(make_report(DISTANCES, RIGHT, (0.3, None), [flag])).splitlines()
    assert lines[0].startswith("5 examples, norm l2, bounds 0 .. 1; 95% confidence intervals")
    assert lines[2].split()[:4] == ["none", "(clean", "accuracy)", "80.0%"]
    assert lines[3].split() == [
        "attack",
        "0",
        "0.3",
        "40.0%",
        "(11.8%",
        "..",
        "76.9%)",
        "2",
        "0.2",
        "7",
        "3",
    ]
    assert lines[4].split() == ["attack", "1", "minimum", "3", "0.2", "7", "3"]
    assert lines[5].split()[:5] == ["all", "(robust", "accuracy)", "0.3", "40.0%"]
    assert lines[6:] == str(flag).splitlines()


def test_printed_report_without_flags_does_not_mention_them():
    assert "masking" not in str(make_report(DISTANCES, RIGHT, (0.3, None)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: r.robust(-0.1), ValueError, "epsilon must lie in 0 .. inf"),
        (lambda r: r.robust("0.1"), TypeError, "epsilon must be an array, got str"),
        (
            lambda r: r.robust(np.zeros(3)),
            ValueError,
            r"one value for each of 5 examples, got \[3\]",
        ),
        (lambda r: r.curve(np.array([0.2, 0.1])), ValueError, "epsilons must increase"),
        (lambda r: r.curve(jnp.array([1, 2])), TypeError, "epsilons must be a float array"),
    ],
)
def test_invalid_radii_raise(call, error, message):
    with pytest.raises(error, match=message):
        call(make_report(DISTANCES, RIGHT, (0.3, None)))
