"""Curves that have points of their own, in panels side by side: a quantity against steps, time or work."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffprog import _validation
from diffprog.plotting._history import _colors
from diffprog.plotting._image_grid import FAINT, FRAME, INK

Curve = tuple[Float[Any, "points"], Float[Any, "points"]]

_DASHES = ("-", "--", ":", "-.")
_FEW = 20  # points that are seen one by one; more of them are a line


class Panel(NamedTuple):
    """Curves on one pair of axes.

    Attributes:
        curves: (x, y) by name, each of its own length.
        xlabel: what the horizontal axis is called.
        title: above the panel.
        expected: (x, y) by name, drawn thin, dashed and in ink over the curves: what a formula or another route says.
    """

    curves: Mapping[str, Curve]
    xlabel: str
    title: str = ""
    expected: Mapping[str, Curve] = {}


def draw_traces(
    panels: Panel | Sequence[Panel],
    *,
    ylabel: str,
    scales: tuple[str, str] = ("log", "log"),
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Curves that each have points of their own, such as a cost against the work it took, in one panel or several beside each other.

    Args:
        panels: a `Panel` or several.
        ylabel: what the upright axis is called, which they share.
        scales: of both axes, "linear" or "log"; a logarithm needs values above 0.
        groups: names of curves that share a colour and differ in their dashes; without it each has a colour of its own.

    Raises:
        TypeError: something that is no `Panel`, arrays that are not float.
        ValueError: no panel or curve, lengths that do not agree, values that are not finite or, for a logarithm, not positive.

    >>> k = np.arange(1.0, 9.0)
    >>> draw_traces(Panel({"a": (k, 1 / k), "b": (k[:4], 2 / k[:4])}, "step", expected={"1/k": (k, 1 / k)}), ylabel="error")
    <Figure size ... with 1 Axes>
    """
    shown = [panels] if isinstance(panels, Panel) else list(panels)
    if not shown:
        raise ValueError("panels must hold at least one Panel, got none")
    for axis, scale in zip(("scales[0]", "scales[1]"), scales, strict=True):
        _validation.choice(axis, scale, ["linear", "log"])
    for k, panel in enumerate(shown):
        _check_panel(f"panels[{k}]", panel, scales)
    names = list(dict.fromkeys(name for panel in shown for name in panel.curves))
    styles = _styles(names, groups or {})
    figure, all_axes = row(len(shown), "", ylabel, height=3.8)
    told = set[str]()
    for axes, panel in zip(all_axes, shown, strict=True):
        axes.set(xscale=scales[0], yscale=scales[1])
        axes.set_xlabel(panel.xlabel, color=INK)
        for name, (x, y) in panel.curves.items():
            axes.plot(
                x,
                y,
                label=name,
                linewidth=1.5,
                marker="o" if len(x) < _FEW else "",
                markersize=3.5,
                **styles[name],
            )
        for k, (name, (x, y)) in enumerate(panel.expected.items()):
            axes.plot(x, y, _DASHES[1 + k % 3], color=INK, linewidth=0.9, label=name)
        axes.grid(color=FRAME, linewidth=0.5, alpha=0.6)
        here = {*panel.curves, *panel.expected}
        finish(axes, panel.title, len(here) > 1 and not here <= told)
        told |= here
    return figure


def _styles(names: list[str], groups: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """The colour and the dashes of each curve."""
    grouped = {
        name: (group, k) for group, members in groups.items() for k, name in enumerate(members)
    }
    places = [grouped.get(name, (f"{name}, alone", 0)) for name in names]
    kinds = list(dict.fromkeys(group for group, _ in places))
    colors = dict(zip(kinds, _colors(len(kinds)), strict=True))
    return {
        name: {"color": colors[group], "linestyle": _DASHES[k % 4]}
        for name, (group, k) in zip(names, places, strict=True)
    }


def _check_panel(name: str, panel: Any, scales: tuple[str, str]) -> None:
    if not isinstance(panel, Panel):
        raise TypeError(f"{name} must be a Panel, got {type(panel).__name__}")
    if not panel.curves:
        raise ValueError(f"{name}.curves must hold at least one curve, got none")
    for kind in ("curves", "expected"):
        for curve, points in getattr(panel, kind).items():
            _check_curve(f"{name}.{kind}[{curve!r}]", points, scales)


def _check_curve(name: str, points: Any, scales: tuple[str, str]) -> None:
    if not isinstance(points, tuple) or len(points) != 2:
        raise TypeError(f"{name} must be a pair of arrays (x, y), got {type(points).__name__}")
    for k, (values, scale) in enumerate(zip(points, scales, strict=True)):
        _validation.floating(f"{name}[{k}]", values, rank=1)
        _validation.finite(f"{name}[{k}]", values)
        if scale == "log" and len(values) and np.min(values) <= 0:
            raise ValueError(
                f"{name}[{k}] must be above 0 on a logarithmic scale, got {np.min(values):g}"
            )
    _validation.batch(**{f"{name}[0]": points[0], f"{name}[1]": points[1]})


def row(count: int, xlabel: str, ylabel: str, *, height: float) -> tuple[Figure, list[Axes]]:
    """Empty axes side by side; the upright axis is shared and named once."""
    figure = Figure(
        figsize=(5.8 if count == 1 else min(4.2 * count, 10.4), height), layout="constrained"
    )
    all_axes = list(figure.subplots(1, count, sharey=True, squeeze=False)[0])
    all_axes[0].set_ylabel(ylabel, color=INK)
    for axes in all_axes:
        axes.set_xlabel(xlabel, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(FRAME)
        axes.tick_params(color=FRAME, labelcolor=FAINT, which="both")
    return figure, all_axes


def finish(axes: Axes, title: str, named: bool, *, below: bool = False) -> None:
    """The title of a panel and its legend: on a ground of its own or, where every place matters, below the panel."""
    axes.set_title(title, fontsize=9.5, color=INK)
    style: dict[str, Any] = {
        "labelcolor": INK,
        "fontsize": 7.5,
        "edgecolor": "none",
        "handlelength": 2.6,
    }
    if named and below:
        axes.legend(
            **style,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            ncols=3,
            frameon=False,
            columnspacing=1.2,
        )
    elif named:
        axes.legend(**style, framealpha=0.85).set_zorder(30)
