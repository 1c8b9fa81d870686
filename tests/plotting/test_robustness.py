import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp
from diffprog.plotting import draw_robustness

adv = dp.adversarial
WEIGHTS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
X = jnp.asarray(np.random.default_rng(1).uniform(size=(20, 6)), jnp.float32)


def evaluated(attacks):
    f = dp.program(lambda weights, x: (x - 0.5) @ weights, jnp.asarray(WEIGHTS))
    return adv.evaluate(f, X, f(X).argmax(1), attacks, key=jax.random.key(0), flags=False)


@pytest.fixture(scope="module")
def report():
    return evaluated([adv.fgsm(epsilon=0.05), adv.fgsm(epsilon=0.1), adv.fmn(steps=20)])


@pytest.mark.slow
def test_the_line_falls_where_the_worst_case_does(report):
    axes = draw_robustness(report).axes[0]
    line = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    np.testing.assert_allclose(line.get_xdata()[:-1], report.curve().epsilons)
    np.testing.assert_allclose(line.get_ydata()[:-1], report.curve().accuracy)
    assert "(linf)" in axes.get_xlabel()


def points(axes):
    return {
        (
            round(float(bars.lines[0].get_xdata()[0]), 6),
            round(float(bars.lines[0].get_ydata()[0]), 6),
        )
        for bars in axes.containers
    }


@pytest.mark.slow
def test_each_attack_with_a_radius_is_a_point_with_its_interval(report):
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
def test_without_a_smallest_perturbation_there_is_no_line_but_a_point_at_zero():
    axes = draw_robustness(evaluated([adv.fgsm(epsilon=0.05)])).axes[0]
    assert not any(line.get_drawstyle() == "steps-post" for line in axes.lines)
    assert (0.0, 1.0) in points(axes)


@pytest.mark.slow
def test_several_reports_have_a_colour_each(report):
    axes = draw_robustness({"one": report, "two": report}).axes[0]
    lines = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert len({line.get_color() for line in lines}) == 2
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "one, all together",
        "two, all together",
        "fgsm alone",
    ]


def test_what_is_no_report_is_refused(report):
    with pytest.raises(TypeError, match="report must be a Report, got ndarray"):
        draw_robustness(np.zeros(3))
    with pytest.raises(TypeError, match=r"report\['a'\] must be a Report, got int"):
        draw_robustness({"a": 3})
    with pytest.raises(ValueError, match="at least one, got none"):
        draw_robustness({})
    with pytest.raises(ValueError, match="of one norm, got l2, linf"):
        draw_robustness({"a": report, "b": report._replace(norm="l2")})
