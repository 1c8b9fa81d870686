"""`draw_costs`, `draw_curves` and `draw_accuracy`: lines, axes and legends."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffprog.plotting import draw_accuracy, draw_costs, draw_curves

COSTS = np.array([3.0, 2.0, 1.5])
RADII, SHARES = np.array([0.0, 0.1, 0.2]), np.array([0.9, 0.5, 0.1])


def test_first_loss_is_at_step_one():
    (line,) = draw_costs(COSTS).axes[0].lines
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert line.get_ydata().tolist() == [3, 2, 1.5]


def test_several_curves_have_a_legend_and_different_colours():
    axes = draw_costs(
        {"training": COSTS, "validation": jnp.asarray(COSTS[:2])}, steps="epoch", cost="entropy"
    ).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "validation"]
    assert len({line.get_color() for line in axes.lines}) == 2
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "entropy")


def test_one_curve_has_no_legend():
    assert draw_costs(COSTS).axes[0].get_legend() is None


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_scale_is_applied(scale):
    assert draw_costs(COSTS, scale=scale).axes[0].get_yscale() == scale


@pytest.mark.parametrize(
    ("costs", "keywords", "error", "message"),
    [
        (COSTS[None], {}, ValueError, r"costs must have rank 1, got float64\[1, 3\]"),
        ({"a": COSTS, "b": COSTS[None]}, {}, ValueError, r"costs\['b'\] must have rank 1"),
        (COSTS[:0], {}, ValueError, "costs must not be empty"),
        ({}, {}, ValueError, "costs must hold at least one array"),
        (np.array([1, 2]), {}, TypeError, "costs must be a float array, got int64"),
        ([1.0, 2.0], {}, TypeError, "costs must be an array, got list"),
        (COSTS * np.inf, {}, ValueError, "costs must be finite"),
        (
            COSTS,
            {"scale": "square"},
            ValueError,
            "scale must be one of 'linear', 'log', got 'square'",
        ),
        (
            COSTS - 2,
            {"scale": "log"},
            ValueError,
            "costs must be above 0 on a logarithmic scale, got -0.5",
        ),
    ],
)
def test_invalid_costs_raise(costs, keywords, error, message):
    with pytest.raises(error, match=message):
        draw_costs(costs, **keywords)


def test_accuracy_is_drawn_over_the_radius_within_its_interval():
    axes = draw_accuracy(RADII, SHARES, np.stack([SHARES - 0.1, SHARES + 0.05], 1), norm="l2").axes[
        0
    ]
    (line,), (band,) = axes.lines, axes.collections
    np.testing.assert_allclose(line.get_xydata(), np.stack([RADII, SHARES], 1))
    corners = band.get_paths()[0].vertices
    assert {(0.1, 0.4), (0.1, 0.55), (0.2, 0.0), (0.2, 0.15)} <= {
        (round(x, 9), round(y, 9)) for x, y in corners
    }
    assert "(l2)" in axes.get_xlabel()


def test_accuracy_axis_covers_0_to_100_percent():
    axes = draw_accuracy(RADII, SHARES).axes[0]
    assert axes.get_ylim()[0] <= 0
    assert axes.get_ylim()[1] >= 1
    assert axes.yaxis.get_major_formatter()(0.25) == "25%"
    assert not axes.collections


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((RADII - 0.1, SHARES), ValueError, "epsilons must be >= 0 and increase"),
        ((RADII[::-1], SHARES), ValueError, "epsilons must be >= 0 and increase"),
        ((RADII, SHARES[:2]), ValueError, "leading axes must agree, got epsilons: 3, accuracy: 2"),
        ((RADII[:0], SHARES[:0]), ValueError, "must not be empty"),
        ((RADII, 100 * SHARES), ValueError, "accuracy must lie in 0 .. 1"),
        ((RADII, SHARES * np.nan), ValueError, "accuracy must be finite"),
        ((RADII, SHARES.astype(int)), TypeError, "accuracy must be a float array"),
        ((RADII, SHARES, SHARES), ValueError, "intervals must have rank 2"),
        (
            (RADII, SHARES, np.ones((3, 3))),
            ValueError,
            r"intervals must have shape \(radii, 2\), got \[3, 3\]",
        ),
        (
            (RADII, SHARES, np.stack([SHARES + 0.1, SHARES], 1)),
            ValueError,
            "intervals must contain the accuracies",
        ),
        (
            (RADII, SHARES, np.stack([SHARES, SHARES - 0.1], 1)),
            ValueError,
            "intervals must contain the accuracies",
        ),
    ],
)
def test_invalid_accuracies_raise(arguments, error, message):
    with pytest.raises(error, match=message):
        draw_accuracy(*arguments)


def test_more_curves_than_colours_have_different_dashes():
    figure = draw_curves(
        np.array([0.0, 1.0]),
        {f"c{k}": np.array([0.0, k]) for k in range(9)},
        xlabel="x",
        ylabel="y",
    )
    lines = figure.axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9


def test_curves_pass_through_their_points():
    figure = draw_curves(RADII, {"a": SHARES, "b": SHARES / 2}, xlabel="share", ylabel="score")
    axes = figure.axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [
        SHARES.tolist(),
        (SHARES / 2).tolist(),
    ]
    assert axes.lines[0].get_xdata().tolist() == RADII.tolist()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("share", "score")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]


@pytest.mark.parametrize(
    ("x", "curves", "options", "error", "message"),
    [
        (RADII, {}, {}, ValueError, "at least one"),
        (RADII, SHARES, {}, ValueError, "dict"),
        (RADII, {"a": SHARES[:2]}, {}, ValueError, "shapes must agree"),
        (RADII[::-1], {"a": SHARES}, {}, ValueError, "x must increase"),
        (RADII, {"a": np.full(3, np.nan)}, {}, ValueError, r"curves\['a'\] must be finite"),
        (RADII, {"a": -SHARES}, {"scale": "log"}, ValueError, "above 0"),
        (RADII, {"a": SHARES}, {"scale": "cubic"}, ValueError, "scale"),
    ],
)
def test_invalid_curves_raise(x, curves, options, error, message):
    with pytest.raises(error, match=message):
        draw_curves(x, curves, xlabel="x", ylabel="y", **options)
