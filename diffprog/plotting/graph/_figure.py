"""A computation graph as a figure: values, adjoints and local derivatives in three colors."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch
from matplotlib.path import Path

from diffprog import _validation
from diffprog.graph import Graph
from diffprog.plotting.graph._primitives import FRAME, INK, PAPER, SYMBOLS, WRONG, Box, Curve, Text
from diffprog.plotting.graph._scene import picture

_MOST = 60
_FILLS = {
    "argument": "#eef1f4",
    "constant": "#eef1f4",
    "integer": "#ffffff",
    "operation": "#ffffff",
    "box": "#fff8e8",
    "rule": "#fff8e8",
    "group": "#f3f0fa",
}
_LINES = {
    "wire": (INK, 0.9, "-"),
    "edge": (FRAME, 0.9, "-"),
    "none": (FRAME, 0.9, (0, (2, 2))),
    "cut": (FRAME, 0.9, (0, (5, 3))),
    "wrong": (WRONG, 1.8, "-"),
}


def draw_graph(graph: Graph, *, most: int = _MOST) -> Figure:
    """Every node with its value and adjoint dJ/dvalue on the wire that leaves it, every edge with its local derivative.

    Numbers of arrays are written out where they are few; of others there is the shape and the norm. Long graphs run downwards. A graph
    with more than `most` nodes is drawn in blocks: by scope, or from tap to tap, or by stretches of operations. The figure is as large as
    the graph needs at a readable size.

    Args:
        graph: made by `diffprog.graph.trace`.
        most: the most nodes that are drawn one by one.

    Raises:
        TypeError: not a graph.
        ValueError: most < 2.

    Source: lecture 003 (values above, gradients below the edges); lecture 004 (edges that carry derivatives).

    >>> from diffprog.graph import trace
    >>> draw_graph(trace(lambda x, y, z: (x + y) * z, -2.0, 5.0, -4.0))
    <Figure size ... with 1 Axes>
    """
    if not isinstance(graph, Graph):
        raise TypeError(
            f"graph must be a Graph, made by diffprog.graph.trace, got {type(graph).__name__}"
        )
    _validation.integer("most", most, low=2)
    drawn = picture(graph, most)
    figure = Figure(figsize=(drawn.width / 72, drawn.height / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, drawn.width), ylim=(drawn.height, 0), autoscale_on=False)
    for curve in drawn.curves:
        axes.add_patch(_curve(curve))
    for box in drawn.boxes:
        _draw_box(axes, box)
    for text in drawn.texts:
        _draw_text(axes, text)
    return figure


def _curve(curve: Curve) -> PathPatch:
    color, width, style = _LINES[curve.kind]
    codes = [Path.MOVETO, *[Path.CURVE4] * (len(curve.points) - 1)]
    return PathPatch(
        Path(curve.points, codes),
        fill=False,
        edgecolor=color,
        linewidth=width,
        linestyle=style,
        capstyle="round",
    )


def _draw_box(axes: Axes, box: Box) -> None:
    look: dict[str, Any] = {
        "facecolor": _FILLS[box.kind],
        "edgecolor": INK,
        "linewidth": 0.9,
        "linestyle": "--" if box.kind == "integer" else "-",
    }
    middle = (box.x + box.width / 2, box.y + box.height / 2)
    if box.text in SYMBOLS:
        axes.add_patch(Circle(middle, box.height / 2, **look))
    else:
        rounding = {"box": 2.0, "rule": 2.0, "group": 5.0}.get(box.kind, box.height / 2.2)
        axes.add_patch(_rounded(box, 0.0, rounding, look))
        if box.kind == "rule":
            axes.add_patch(_rounded(box, 2.0, 1.0, look | {"linewidth": 0.5}))
    axes.text(
        *middle, box.text, ha="center", va="center", fontsize=box.size, color=INK, linespacing=1.2
    )


def _rounded(box: Box, inset: float, rounding: float, look: dict[str, Any]) -> FancyBboxPatch:
    style = f"round,pad=0,rounding_size={rounding}"
    return FancyBboxPatch(
        (box.x + inset, box.y + inset),
        box.width - 2 * inset,
        box.height - 2 * inset,
        boxstyle=style,
        **look,
    )


def _draw_text(axes: Axes, text: Text) -> None:
    if not text.text:
        return
    sides = (
        {0.0: "left", 0.5: "center", 1.0: "right"}[text.right],
        {0.0: "top", 0.5: "center", 1.0: "bottom"}[text.down],
    )
    back = (
        {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
        if text.backed
        else None
    )
    axes.text(
        text.x,
        text.y,
        text.text,
        ha=sides[0],
        va=sides[1],
        multialignment="center",
        fontsize=text.size,
        color=text.color,
        bbox=back,
        linespacing=1.1,
    )
