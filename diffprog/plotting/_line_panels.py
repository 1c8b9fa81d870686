"""Figures of curves that each have their own x values, in panels side by side."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from matplotlib.figure import Figure

from diffprog import _validation
from diffprog.plotting import _axes
from diffprog.plotting._axes import FRAME, INK

Line = tuple[Float[Any, "points"], Float[Any, "points"]]  # (x, y)

_LINESTYLES = ("-", "--", ":", "-.")
_MAX_MARKERS = 20  # curves of fewer points get markers


class Panel(NamedTuple):
    """Curves to plot on one pair of axes.

    Attributes:
        curves: arrays (x, y) by name of the curve, each pair of its own length.
        xlabel: label of the x-axis.
        title: title of the panel; default none.
        expected: reference curves (x, y) by name, such as the prediction of a formula, drawn thin
            and dashed in black over the others; default none.
    """

    curves: Mapping[str, Line]
    xlabel: str
    title: str = ""
    expected: Mapping[str, Line] = {}


def draw_traces(
    panels: Panel | Sequence[Panel],
    *,
    ylabel: str,
    scales: tuple[str, str] = ("log", "log"),
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Plot curves with x values of their own, in one panel or several side by side.

    A typical use is the loss against steps, time or work. A curve has the same style in all panels.

    Args:
        panels: a `Panel` or several.
        ylabel: label of the shared y-axis.
        scales: scales of the x-axis and the y-axis, "linear" or "log", which needs values above
            0; default both "log".
        groups: lists of names of curves, by name of the group. The curves of a group have the same
            colour and different dashes. Default: a colour for each curve.

    Raises:
        TypeError: an element of panels is not a `Panel`; a curve is not a pair of float arrays.
        ValueError: there is no panel or no curve; lengths disagree; values are not finite or, on a
            logarithmic scale, not positive.

    >>> import numpy as np
    >>> k = np.arange(1.0, 9.0)
    >>> curves = {"a": (k, 1 / k), "b": (k[:4], 2 / k[:4])}
    >>> draw_traces(Panel(curves, "step", expected={"1/k": (k, 1 / k)}), ylabel="error")
    <Figure size ... with 1 Axes>
    """
    panels = [panels] if isinstance(panels, Panel) else list(panels)
    if not panels:
        raise ValueError("panels must hold at least one Panel, got none")
    for name, scale in zip(("scales[0]", "scales[1]"), scales, strict=True):
        _validation.choice(name, scale, ["linear", "log"])
    for k, panel in enumerate(panels):
        _validate_panel(f"panels[{k}]", panel, scales)
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    styles = _curve_styles(names, groups or {})
    figure, all_axes = _axes.make_panels(len(panels), "", ylabel, height=3.8)
    explained = set[str]()
    for axes, panel in zip(all_axes, panels, strict=True):
        axes.set(xscale=scales[0], yscale=scales[1])
        axes.set_xlabel(panel.xlabel, color=INK)
        for name, (x, y) in panel.curves.items():
            style = {"marker": "o" if len(x) < _MAX_MARKERS else "", **styles[name]}
            axes.plot(x, y, label=name, linewidth=1.5, markersize=3.5, **style)
        for k, (name, (x, y)) in enumerate(panel.expected.items()):
            axes.plot(x, y, _LINESTYLES[1 + k % 3], color=INK, linewidth=0.9, label=name)
        axes.grid(color=FRAME, linewidth=0.5, alpha=0.6)
        # A legend is left out if those of the panels before explain all curves.
        labels = {*panel.curves, *panel.expected}
        _axes.finish_panel(axes, panel.title, legend=len(labels) > 1 and not labels <= explained)
        explained |= labels
    return figure


def _curve_styles(
    names: list[str], groups: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Return the style of each curve by name, as keyword arguments of matplotlib's `plot`.

    `groups` are lists of names; the curves of a group share a colour and differ in their dashes.
    """
    positions = {
        name: (("group", group), k)
        for group, members in groups.items()
        for k, name in enumerate(members)
    }
    positions = {name: positions.get(name, (("curve", name), 0)) for name in names}
    kinds = list(dict.fromkeys(kind for kind, _ in positions.values()))
    colors = dict(zip(kinds, _axes.cycle_colors(len(kinds)), strict=True))
    return {
        name: {"color": colors[kind], "linestyle": _LINESTYLES[k % 4]}
        for name, (kind, k) in positions.items()
    }


def _validate_panel(name: str, panel: Any, scales: tuple[str, str]) -> None:
    if not isinstance(panel, Panel):
        raise TypeError(f"{name} must be a Panel, got {type(panel).__name__}")
    if not panel.curves:
        raise ValueError(f"{name}.curves must hold at least one curve, got none")
    for field in ("curves", "expected"):
        for key, line in getattr(panel, field).items():
            _validate_line(f"{name}.{field}[{key!r}]", line, scales)


def _validate_line(name: str, line: Any, scales: tuple[str, str]) -> None:
    if not isinstance(line, tuple) or len(line) != 2:
        raise TypeError(f"{name} must be a pair of arrays (x, y), got {type(line).__name__}")
    for k, (values, scale) in enumerate(zip(line, scales, strict=True)):
        _axes.validate_curve(f"{name}[{k}]", values, scale)
    _validation.batch(**{f"{name}[0]": line[0], f"{name}[1]": line[1]})
