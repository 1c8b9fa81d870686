"""Colours, axes and argument checks that the figures share."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffprog import _validation

INK, FAINT, FRAME = "#22262b", "#5d6670", "#c9ced4"
COLORS = ("#1f6fb2", "#c8741a", "#3a8f5c", "#8a5fb0", "#b8475f", "#5d6670")


def cycle_colors(count: int) -> list[str]:
    """Return a list of `count` colours of the palette, which repeats after the sixth."""
    return [COLORS[k % len(COLORS)] for k in range(count)]


def make_axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return a new figure and its one pair of axes, with horizontal grid lines."""
    figure, (axes,) = make_panels(1, xlabel, ylabel, height=3.4, width=6.4)
    axes.grid(axis="y", color=FRAME, linewidth=0.5, alpha=0.7)
    return figure, axes


def make_panels(
    count: int, xlabel: str, ylabel: str, *, height: float, width: float = 5.8
) -> tuple[Figure, list[Axes]]:
    """Return a new figure and its `count` axes, panels side by side that share the y-axis.

    Sizes are in inches. `width` is the width of the figure if there is only one panel.
    """
    figsize = (width if count == 1 else min(4.2 * count, 10.4), height)
    figure = Figure(figsize=figsize, layout="constrained")
    panels = list(figure.subplots(1, count, sharey=True, squeeze=False)[0])
    panels[0].set_ylabel(ylabel, color=INK)
    for axes in panels:
        axes.set_xlabel(xlabel, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(FRAME)
        axes.tick_params(color=FRAME, labelcolor=FAINT, which="both")
    return figure, panels


def finish_panel(axes: Axes, title: str, *, legend: bool, legend_below: bool = False) -> None:
    """Add the title of a panel and, if `legend` is true, a legend inside or below it."""
    axes.set_title(title, fontsize=9.5, color=INK)
    if not legend:
        return
    style: dict[str, Any] = {"labelcolor": INK, "fontsize": 7.5, "handlelength": 2.6}
    if legend_below:
        style |= {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 3}
        axes.legend(**style, frameon=False, columnspacing=1.2)
    else:
        axes.legend(**style, edgecolor="none", framealpha=0.85).set_zorder(30)


def validate_mapping(name: str, value: Any, content: str) -> None:
    """Check that `value` is a nonempty dict; the error message calls its contents `content`."""
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{name} must be a dict of {content}, at least one, got {value!r:.60}")


def validate_floats(name: str, value: Any, *, rank: int | tuple[int, ...]) -> None:
    """Check that `value` is a finite float array of the given rank or one of the ranks."""
    _validation.floating(name, value, rank=rank)
    _validation.finite(name, value)


def validate_curve(name: str, curve: Any, scale: str) -> None:
    """Check that `curve` is a finite float array (points,), positive if the scale is "log"."""
    validate_floats(name, curve, rank=1)
    if scale == "log" and len(curve) and np.min(curve) <= 0:
        raise ValueError(f"{name} must be above 0 on a logarithmic scale, got {np.min(curve):g}")
