"""`draw_robustness`: curve, points, intervals and legend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp
from diffprog.plotting import draw_robustness

adv = dp.adversarial
WEIGHTS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
X = jnp.asarray(np.random.default_rng(1).uniform(size=(20, 6)), jnp.float32)


def evaluate(attacks):
    f = dp.program(lambda weights, x: (x - 0.5) @ weights, jnp.asarray(WEIGHTS))
    return adv.evaluate(f, X, f(X).argmax(1), attacks, key=jax.random.key(0), flags=False)


@pytest.fixture(scope="module")
def report():
    return evaluate([adv.fgsm(epsilon=0.05), adv.fgsm(epsilon=0.1), adv.fmn(steps=20)])


@pytest.mark.slow
def test_line_is_the_robust_accuracy_curve(report):
    axes = draw_robustness(report).axes[0]
    line = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    np.testing.assert_allclose(line.get_xdata()[:-1], report.curve().epsilons)
    np.testing.assert_allclose(line.get_ydata()[:-1], report.curve().accuracy)
    assert "(linf)" in axes.get_xlabel()


def points(axes):
    """Return the positions of the points with error bars."""
    return {
        (
            round(float(bars.lines[0].get_xdata()[0]), 6),
            round(float(bars.lines[0].get_ydata()[0]), 6),
        )
        for bars in axes.containers
    }


def test_attacks_with_a_radius_are_points_with_error_bars(report):
    axes = draw_robustness(report).axes[0]
    assert points(axes) == {
        (outcome.epsilon, round(outcome.accuracy.value, 6)) for outcome in report.outcomes[:2]
    }
    ends = axes.containers[0].lines[2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose(
        ends, [report.outcomes[0].accuracy.low, report.outcomes[0].accuracy.high]
    )
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "all attacks together",
        "fgsm alone",
    ]


@pytest.mark.slow
def test_without_minimum_norm_attack_there_is_only_the_clean_accuracy():
    axes = draw_robustness(evaluate([adv.fgsm(epsilon=0.05)])).axes[0]
    assert not any(line.get_drawstyle() == "steps-post" for line in axes.lines)
    assert (0.0, 1.0) in points(axes)


@pytest.mark.slow
def test_several_reports_have_different_colours(report):
    axes = draw_robustness({"one": report, "two": report}).axes[0]
    lines = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert len({line.get_color() for line in lines}) == 2
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "one, all attacks together",
        "two, all attacks together",
        "fgsm alone",
    ]


def test_invalid_reports_raise(report):
    with pytest.raises(TypeError, match="report must be a Report, got ndarray"):
        draw_robustness(np.zeros(3))
    with pytest.raises(TypeError, match=r"report\['a'\] must be a Report, got int"):
        draw_robustness({"a": 3})
    with pytest.raises(ValueError, match="at least one Report, got none"):
        draw_robustness({})
    with pytest.raises(ValueError, match="agree in norm, got l2, linf"):
        draw_robustness({"a": report, "b": report._replace(norm="l2")})
