"""`draw_slopes`: remainders, orders and reference slopes."""

from types import SimpleNamespace

import numpy as np
import pytest

from diffprog import plotting

STEPS = 2.0 ** -np.arange(1, 11)
REPORT = SimpleNamespace(
    paths=("a", "b"),
    steps=STEPS,
    remainders=np.stack([STEPS**2, 0.1 * STEPS]),
    orders=np.array([2.0, 1.0]),
)


def test_there_is_a_curve_for_each_leaf_and_two_reference_slopes():
    (axes,) = plotting.draw_slopes(REPORT).axes
    assert [line.get_label() for line in axes.lines] == [
        "a, order 2.00",
        "b, order 1.00",
        "slope 1",
        "slope 2",
    ]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    for line, row in zip(axes.lines, REPORT.remainders, strict=False):
        np.testing.assert_array_equal(line.get_ydata(), row)


def test_remainders_of_zero_are_left_out():
    report = SimpleNamespace(
        paths=("a",), steps=STEPS, remainders=np.zeros((1, 10)), orders=np.array([np.inf])
    )
    figure = plotting.draw_slopes(report)
    figure.canvas.draw()
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).all()


def test_invalid_reports_raise():
    with pytest.raises(
        ValueError, match=r"report.remainders must have shape \(2, 10\), got \[2, 9\]"
    ):
        plotting.draw_slopes(
            SimpleNamespace(**vars(REPORT) | {"remainders": REPORT.remainders[:, :9]})
        )
    with pytest.raises(TypeError, match=r"report.steps must be a float array"):
        plotting.draw_slopes(SimpleNamespace(**vars(REPORT) | {"steps": np.arange(10)}))
