import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import backprop as bp
from diffprog.checks import Finding, Precision, Report, check_layer, slope_test

RIGHT = Finding("params['bias']", "ok", (0,), 1.0, 1.0, 0.0, 1e-12)
WRONG = Finding(
    "params['weight']",
    "wrong",
    (1, 2),
    2.0,
    1.0,
    1.0,
    1e-12,
    "a constant factor 2",
    layer="affine2",
)


def test_the_table_says_everything():
    assert str(Report((RIGHT, WRONG))).splitlines() == [
        "1 of 2 gradients right",
        "layer    leaf              worst index  got  want  error/tolerance  verdict  hint",
        "         params['bias']    (0)          1    1     0                ok",
        "affine2  params['weight']  (1, 2)       2    1     1e+12            wrong    a constant factor 2",
    ]


def test_precision_is_one_line_a_dtype():
    found = (
        Precision("x", "float32", 1.0, 2.0),
        Precision("y", "float32", 3.0, 4.0),
        Precision("x", "bfloat16", 5.0, 2.0),
    )
    assert str(Report((RIGHT,), found)).splitlines()[-2:] == [
        "float32: 0.75 of what rounding explains at most, in y",
        "bfloat16: 2.50 of what rounding explains at most, in x  <- too inexact",
    ]


@pytest.mark.parametrize(
    ("verdict", "ok"),
    [
        ("ok", True),
        ("kink", True),
        ("degenerate", True),
        ("unused", True),
        ("autodiff-wrong", True),
        ("wrong", False),
    ]
    + [
        (verdict, False)
        for verdict in ("invalid-kink", "nonfinite", "nondeterministic", "precision")
    ],
)
def test_which_verdicts_leave_a_report_ok(verdict, ok):
    assert Report((RIGHT, WRONG._replace(verdict=verdict))).ok is ok


def test_raise_if_wrong_raises_the_table():
    Report((RIGHT,)).raise_if_wrong()
    with pytest.raises(AssertionError, match="affine2  params"):
        Report((WRONG,)).raise_if_wrong()


def test_error_and_tolerance_are_of_the_element_named():
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


def cubes(t):
    return (t["a"] ** 3).sum() + t["b"].sum()


X = {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.ones(2)}


def test_the_order_of_the_remainder_is_2_right_1_wrong_and_infinite_for_a_linear_function():
    right = slope_test(cubes, jax.grad(cubes), X, key=jax.random.key(0))
    assert right.paths == ("x['a']", "x['b']")
    np.testing.assert_allclose(right.orders, [2, math.inf], atol=0.05)
    assert right.ok
    wrong = slope_test(
        cubes, lambda t: {**jax.grad(cubes)(t), "b": jnp.ones(2) * 1.001}, X, key=jax.random.key(0)
    )
    np.testing.assert_allclose(wrong.orders, [2, 1], atol=0.05)
    assert not wrong.ok
    assert str(wrong).splitlines()[1] == "x['b']  order 1.00  wrong"


def test_the_remainders_are_those_of_the_function():
    report = slope_test(
        lambda x: (x**2).sum(), lambda x: 2 * x, jnp.array([3.0]), key=jax.random.key(0)
    )
    np.testing.assert_allclose(
        report.remainders[0, :10] / report.remainders[0, 0], 4.0 ** -np.arange(10), rtol=1e-6
    )
