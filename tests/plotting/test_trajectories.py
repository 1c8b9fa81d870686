"""`draw_paths`, `draw_clouds`, `draw_rates` and `draw_traces`: lines, styles and legends."""

import matplotlib.collections
import matplotlib.contour
import numpy as np
import pytest

from diffprog.plotting import Panel, draw_clouds, draw_paths, draw_rates, draw_traces

X, Y = np.linspace(-1.0, 1.0, 5), np.linspace(0.0, 2.0, 4)
PLANE = np.abs(X) + 0.6 * Y[:, None]
PATH = np.array([[0.9, 1.9], [0.3, 1.0], [0.1, 0.2]])
CURVE = (np.array([1.0, 2.0, 4.0]), np.array([0.9, 0.3, 0.1]))


def legend_texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_paths_start_at_an_open_circle_and_end_at_a_full_one():
    axes = draw_paths(X, Y, PLANE, {"a": PATH}).axes[0]
    line, start, end = axes.lines
    np.testing.assert_array_equal(line.get_xydata(), PATH)
    assert (start.get_xydata()[0].tolist(), start.get_markerfacecolor()) == (
        PATH[0].tolist(),
        "white",
    )
    assert (end.get_xydata()[0].tolist(), end.get_markerfacecolor()) == (
        PATH[-1].tolist(),
        end.get_color(),
    )
    assert (axes.get_xlim(), axes.get_ylim()) == ((-1, 1), (0, 2))


def test_first_path_is_on_top_and_limits_are_those_of_the_grid():
    axes = draw_paths(X, Y, PLANE, {"a": PATH, "b": 100 * PATH}).axes[0]
    first, second = (line for line in axes.lines if len(line.get_xdata()) > 1)
    assert first.get_zorder() > second.get_zorder()
    assert axes.get_xlim() == (-1, 1)
    assert legend_texts(axes) == ["a", "b"]


def test_nested_paths_give_a_panel_for_each_title():
    figure = draw_paths(X, Y, PLANE, {"slow": {"a": PATH}, "fast": {"a": PATH, "b": PATH}})
    assert [axes.get_title() for axes in figure.axes] == ["slow", "fast"]
    assert [axes.get_legend() is None for axes in figure.axes] == [True, False]


def test_flat_valleys_have_contours_too():
    contours = draw_paths(X, Y, np.exp(20 * PLANE), {"a": PATH}).axes[0].collections[0]
    assert (contours.levels < np.median(np.exp(20 * PLANE))).sum() >= 5


def test_constant_functions_have_no_contours():
    for figure in (
        draw_paths(X, Y, np.ones_like(PLANE), {"a": PATH}),
        draw_rates(X, Y, {"a": np.full_like(PLANE, 0.5)}, xlabel="x", ylabel="y"),
    ):
        figure.canvas.draw()
        assert not [
            c for c in figure.axes[0].collections if isinstance(c, matplotlib.contour.ContourSet)
        ]


def test_curves_and_expected_curves_are_drawn():
    axes = draw_traces(
        Panel({"a": CURVE}, "work", "title", {"1/x": (CURVE[0], 1 / CURVE[0])}), ylabel="cost"
    ).axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [
        CURVE[1].tolist(),
        (1 / CURVE[0]).tolist(),
    ]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("work", "cost", "title")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert legend_texts(axes) == ["a", "1/x"]


def test_curves_have_one_style_in_all_panels_and_one_legend_entry():
    figure = draw_traces(
        [Panel({"a": CURVE, "b": CURVE}, "work"), Panel({"b": CURVE, "a": CURVE}, "time")],
        ylabel="cost",
    )
    left, right = (
        {line.get_label(): line.get_color() for line in axes.lines} for axes in figure.axes
    )
    assert left == right
    assert left["a"] != left["b"]
    assert legend_texts(figure.axes[0]) == ["a", "b"]
    assert figure.axes[1].get_legend() is None


def test_curves_of_a_group_share_a_colour_and_differ_in_dashes():
    lines = (
        draw_traces(
            Panel(dict.fromkeys("abc", CURVE), "x"),
            ylabel="y",
            groups={"g": ["a", "b"], "h": ["c"]},
        )
        .axes[0]
        .lines
    )
    a, b, c = lines
    assert a.get_color() == b.get_color() != c.get_color()
    assert a.get_linestyle() != b.get_linestyle()


def test_rates_from_one_on_are_masked_and_panels_share_the_colour_scale():
    figure = draw_rates(X, Y, {"measured": PLANE, "formula": PLANE / 3}, xlabel="η", ylabel="α")
    meshes = [
        next(c for c in axes.collections if isinstance(c, matplotlib.collections.QuadMesh))
        for axes in figure.axes[:2]
    ]
    assert meshes[0].get_array().mask.sum() == (PLANE >= 1).sum() > 0
    assert meshes[1].get_array().mask.sum() == 0
    assert [mesh.get_clim() for mesh in meshes] == [(0, 1), (0, 1)]
    assert not figure.legends


def test_border_and_marks_are_in_every_panel_and_once_in_the_legend():
    figure = draw_rates(
        X,
        Y,
        {"a": PLANE, "b": PLANE},
        xlabel="η",
        ylabel="α",
        border=(Y, Y),
        marks={"best": (0.0, 0.5)},
    )
    for axes in figure.axes[:2]:
        assert [line.get_label() for line in axes.lines] == ["stability boundary", "best"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "stability boundary",
        "best",
    ]


def test_smaller_clouds_have_larger_points():
    axes = draw_clouds(
        {"one": np.ones((100, 2)), "batch": np.ones((9, 2)), "all": np.ones((1, 2))},
        xlabel="x",
        ylabel="y",
    ).axes[0]
    sizes = [
        line.get_markersize() for line in axes.lines if line.get_label() in ("one", "batch", "all")
    ]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3
    assert axes.get_aspect() == 1


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (
            lambda: draw_paths(X, Y, PLANE.T, {"a": PATH}),
            ValueError,
            r"heights must have shape \[4, 5\], a row for each y, got \[5, 4\]",
        ),
        (lambda: draw_paths(X[::-1], Y, PLANE, {"a": PATH}), ValueError, "x must increase"),
        (
            lambda: draw_paths(X, Y, np.full_like(PLANE, np.nan), {"a": PATH}),
            ValueError,
            "heights must be finite",
        ),
        (
            lambda: draw_paths(X, Y, PLANE, {}),
            ValueError,
            "paths must be a dict of paths by name, at least one",
        ),
        (lambda: draw_paths(X, Y, PLANE, {"t": {}}), ValueError, "at least one path in each panel"),
        (
            lambda: draw_paths(X, Y, PLANE, {"a": PATH.T}),
            ValueError,
            r"paths\['a'\] must have shape \(points, 2\), got \[2, 3\]",
        ),
        (
            lambda: draw_paths(X, Y, PLANE, {"t": {"a": PATH.astype(int)}}),
            TypeError,
            r"paths\['t'\]\['a'\] must be a float array",
        ),
        (
            lambda: draw_paths(X, Y, PLANE, {"a": PATH * np.inf}),
            ValueError,
            r"paths\['a'\] must be finite",
        ),
        (lambda: draw_traces([], ylabel="y"), ValueError, "panels must hold at least one Panel"),
        (
            lambda: draw_traces([CURVE], ylabel="y"),
            TypeError,
            r"panels\[0\] must be a Panel, got tuple",
        ),
        (
            lambda: draw_traces(Panel({}, "x"), ylabel="y"),
            ValueError,
            r"panels\[0\].curves must hold at least one curve",
        ),
        (
            lambda: draw_traces(Panel({"a": CURVE[0]}, "x"), ylabel="y"),
            TypeError,
            r"curves\['a'\] must be a pair of arrays",
        ),
        (
            lambda: draw_traces(Panel({"a": (CURVE[0], CURVE[1][:2])}, "x"), ylabel="y"),
            ValueError,
            "leading axes must agree",
        ),
        (
            lambda: draw_traces(Panel({"a": (CURVE[0], -CURVE[1])}, "x"), ylabel="y"),
            ValueError,
            r"\['a'\]\[1\] must be above 0",
        ),
        (
            lambda: draw_traces(Panel({"a": CURVE}, "x"), ylabel="y", scales=("log", "cubic")),
            ValueError,
            r"scales\[1\] must be one of",
        ),
        (
            lambda: draw_traces(
                Panel({"a": CURVE}, "x", expected={"b": (CURVE[0], -CURVE[1])}), ylabel="y"
            ),
            ValueError,
            r"expected\['b'\]",
        ),
        (lambda: draw_rates(X, Y, {}, xlabel="x", ylabel="y"), ValueError, "rates must be a dict"),
        (
            lambda: draw_rates(X, Y, {"a": -PLANE}, xlabel="x", ylabel="y"),
            ValueError,
            r"rates\['a'\] must lie in 0",
        ),
        (
            lambda: draw_rates(X, Y, {"a": PLANE.T}, xlabel="x", ylabel="y"),
            ValueError,
            r"rates\['a'\] must have shape \[4, 5\]",
        ),
        (lambda: draw_clouds({}, xlabel="x", ylabel="y"), ValueError, "clouds must be a dict"),
        (
            lambda: draw_clouds({"a": np.ones((0, 2))}, xlabel="x", ylabel="y"),
            ValueError,
            r"clouds\['a'\] must not be empty",
        ),
    ],
)
def test_invalid_arguments_raise(draw, error, message):
    with pytest.raises(error, match=message):
        draw()
