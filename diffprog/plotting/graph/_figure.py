"""Figure of a computation graph with values, adjoints and local derivatives in three colors."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch
from matplotlib.path import Path

from diffprog import _validation
from diffprog.graph import Graph
from diffprog.graph._format import FRAME, INK, PAPER, WRONG
from diffprog.plotting.graph._primitives import SYMBOLS, Box, Spline, Text, require_graph
from diffprog.plotting.graph._scene import build_scene

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


def draw_graph(graph: Graph, *, most: int = 60) -> Figure:
    """Draw a computation graph with its values, adjoints and local derivatives.

    The value h of a node and its adjoint dJ/dh are written along the line that leaves its box, the
    local derivative on each edge. Small arrays are written in full, large ones as shape and norm.
    Long graphs run downward. The figure is as large as the graph needs at a readable size.

    Args:
        graph: made by `diffprog.graph.trace`.
        most: maximum number of boxes, at least 2, default 60. In a larger graph, a box stands for a
            group of nodes: those of a name scope, those up to the next value that is named with
            `tap`, or equally many consecutive ones.

    Raises:
        TypeError: `graph` is not a `Graph`, or `most` is not an integer.
        ValueError: `most` is below 2.

    Source: lecture 003 (values above, gradients below the edges); lecture 004 (edges that carry
    derivatives).

    >>> from diffprog.graph import trace
    >>> draw_graph(trace(lambda x, y, z: (x + y) * z, -2.0, 5.0, -4.0))
    <Figure size ... with 1 Axes>
    """
    require_graph(graph)
    _validation.integer("most", most, low=2)
    scene = build_scene(graph, most)
    figure = Figure(figsize=(scene.width / 72, scene.height / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, scene.width), ylim=(scene.height, 0), autoscale_on=False)
    for spline in scene.splines:
        _draw_spline(axes, spline)
    for box in scene.boxes:
        _draw_box(axes, box)
    for text in scene.texts:
        _draw_text(axes, text)
    return figure


def _draw_spline(axes: Axes, spline: Spline) -> None:
    color, width, style = _LINES[spline.kind]
    path = Path(spline.points, [Path.MOVETO, *[Path.CURVE4] * (len(spline.points) - 1)])
    line = {"edgecolor": color, "linewidth": width, "linestyle": style, "capstyle": "round"}
    axes.add_patch(PathPatch(path, fill=False, **line))


def _draw_box(axes: Axes, box: Box) -> None:
    style: dict[str, Any] = {
        "facecolor": _FILLS[box.kind],
        "edgecolor": INK,
        "linewidth": 0.9,
        "linestyle": "--" if box.kind == "integer" else "-",
    }
    center = (box.x + box.width / 2, box.y + box.height / 2)
    if box.text in SYMBOLS:
        axes.add_patch(Circle(center, box.height / 2, **style))
    else:
        axes.add_patch(_rounded_box(box, 0.0, box.corner_radius, style))
        if box.kind == "rule":
            axes.add_patch(_rounded_box(box, 2.0, 1.0, style | {"linewidth": 0.5}))
    font: dict[str, Any] = {"fontsize": box.size, "color": INK, "linespacing": 1.2}
    axes.text(*center, box.text, ha="center", va="center", **font)


def _rounded_box(box: Box, inset: float, radius: float, style: dict[str, Any]) -> FancyBboxPatch:
    corner = (box.x + inset, box.y + inset)
    width, height = box.width - 2 * inset, box.height - 2 * inset
    rounding = f"round,pad=0,rounding_size={radius}"
    return FancyBboxPatch(corner, width, height, boxstyle=rounding, **style)


def _draw_text(axes: Axes, text: Text) -> None:
    if not text.text:
        return
    background = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
    axes.text(
        text.x,
        text.y,
        text.text,
        ha={0.0: "left", 0.5: "center", 1.0: "right"}[text.right],
        va={0.0: "top", 0.5: "center", 1.0: "bottom"}[text.down],
        multialignment="center",
        fontsize=text.size,
        color=text.color,
        bbox=background if text.background else None,
        linespacing=1.1,
    )
