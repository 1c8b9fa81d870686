import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import backprop as bp
from diffprog.checks import Finding, Precision, Report, check_layer, slope_test

CORRECT = Finding("params['bias']", "ok", (0,), 1.0, 1.0, 0.0, 1e-12)
WRONG = Finding(
    "params['weight']",
    "wrong",
    (1, 2),
    2.0,
    1.0,
    1.0,
    1e-12,
    "factor 2",
    layer="affine2",
)


def test_report_prints_every_finding():
    assert str(Report((CORRECT, WRONG))).splitlines() == [
        "1 of 2 gradients correct",
        "layer    leaf              worst index  got  want  error/tolerance  verdict  hint",
        "         params['bias']    (0)          1    1     0                ok",
        "affine2  params['weight']  (1, 2)       2    1     1e+12            wrong    factor 2",
    ]


def test_report_prints_one_precision_line_per_dtype():
    precision = (
        Precision("x", "float32", 1.0, 2.0),
        Precision("y", "float32", 3.0, 4.0),
        Precision("x", "bfloat16", 5.0, 2.0),
    )
    assert str(Report((CORRECT,), precision)).splitlines()[-2:] == [
        "float32: error at most 0.75 of the rounding bound, in y",
        "bfloat16: error at most 2.50 of the rounding bound, in x  <- exceeds the bound",
    ]


@pytest.mark.parametrize(
    ("verdict", "ok"),
    [
        ("ok", True),
        ("kink", True),
        ("degenerate", True),
        ("unused", True),
        ("autodiff-wrong", True),
        ("precision", False),
        ("nondeterministic", False),
        ("nonfinite", False),
        ("invalid-kink", False),
        ("wrong", False),
    ],
)
def test_report_is_ok_for_acceptable_verdicts_only(verdict, ok):
    assert Report((CORRECT, WRONG._replace(verdict=verdict))).ok is ok


def test_raise_if_wrong_raises_the_printed_report():
    Report((CORRECT,)).raise_if_wrong()
    with pytest.raises(AssertionError, match="affine2  params"):
        Report((WRONG,)).raise_if_wrong()


def test_error_and_tolerance_belong_to_the_reported_element():
    layer = bp.affine(3, 2)
    wrong = layer._replace(
        backward=lambda p, x, dz: ({"weight": dz.T @ x, "bias": 2 * dz.sum(0)}, dz @ p["weight"])
    )
    report = check_layer(
        wrong, layer.init(jax.random.key(0)), jnp.ones((4, 3)), key=jax.random.key(1)
    )
    (finding,) = [finding for finding in report.findings if not finding.ok]
    assert finding.got == pytest.approx(2 * finding.want, rel=1e-12)
    assert finding.error == pytest.approx(abs(finding.want), rel=1e-9)
    assert 0 < finding.tolerance < 1e-10


def cubic(tree):
    return (tree["a"] ** 3).sum() + tree["b"].sum()


X = {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.ones(2)}


def test_slope_test_order_is_2_if_correct_1_if_wrong_and_infinite_if_linear():
    correct = slope_test(cubic, jax.grad(cubic), X, key=jax.random.key(0))
    assert correct.paths == ("x['a']", "x['b']")
    np.testing.assert_allclose(correct.orders, [2, math.inf], atol=0.05)
    assert correct.ok
    wrong = slope_test(
        cubic, lambda t: {**jax.grad(cubic)(t), "b": jnp.ones(2) * 1.001}, X, key=jax.random.key(0)
    )
    np.testing.assert_allclose(wrong.orders, [2, 1], atol=0.05)
    assert not wrong.ok
    assert str(wrong).splitlines()[1] == "x['b']  order 1.00  wrong"


def test_slope_test_remainders_of_a_quadratic_fall_by_four():
    report = slope_test(
        lambda x: (x**2).sum(), lambda x: 2 * x, jnp.array([3.0]), key=jax.random.key(0)
    )
    np.testing.assert_allclose(
        report.remainders[0, :10] / report.remainders[0, 0], 4.0 ** -np.arange(10), rtol=1e-6
    )
