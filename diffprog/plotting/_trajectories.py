"""Figures of optimizer trajectories in two variables, point sets and convergence rates."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from diffprog import _validation
from diffprog.plotting import _axes
from diffprog.plotting._axes import FAINT, FRAME, INK, cycle_colors, finish_panel, make_panels
from diffprog.plotting._line_panels import Line

Trajectory = Float[Any, "steps 2"]

_MAX_MARKERS = 40  # trajectories of at most so many steps get markers
_RATE_LEVELS = (0.3, 0.5, 0.7, 0.8, 0.9)  # contour lines of the convergence rate
_DIVERGING = "#e3e5e8"


def draw_paths(
    x: Float[Any, "columns"],
    y: Float[Any, "rows"],
    heights: Float[Any, "rows columns"],
    paths: Mapping[str, Trajectory] | Mapping[str, Mapping[str, Trajectory]],
    *,
    xlabel: str = "θ₁",
    ylabel: str = "θ₂",
) -> Figure:
    """Plot the trajectories of optimizers in two variables on the contour lines of a function.

    An open circle marks the start of each trajectory, a full circle its end. Contour lines lie at
    quantiles of the heights, so that flat valleys of a steep function show too.

    Args:
        x, y: grid of the function, increasing arrays (columns,) and (rows,). The figure shows this
            range and cuts off trajectories that leave it.
        heights: values of the function at the grid points, (rows, columns), finite.
        paths: trajectories (steps, 2) by name, the first drawn on top; or several panels of such
            trajectories, by title.
        xlabel, ylabel: labels of the axes.

    Raises:
        TypeError: an array is not of floats.
        ValueError: shapes disagree; values are not finite; the grid does not increase; there is no
            trajectory.

    >>> x = y = np.linspace(-1.0, 1.0, 9)
    >>> heights = x**2 + 4 * y[:, None] ** 2
    >>> draw_paths(x, y, heights, {"slow": np.array([[0.9, 0.9], [0.5, 0.1]])})
    <Figure size ... with 1 Axes>
    """
    _validate_plane("heights", heights, x, y)
    _axes.validate_mapping("paths", paths, "paths by name")
    panels: dict[str, dict[str, Any]]
    if isinstance(next(iter(paths.values())), Mapping):
        panels = {title: dict(panel) for title, panel in paths.items()}
    else:
        panels = {"": dict(paths)}
    if not all(panels.values()):
        raise ValueError("paths must hold at least one path in each panel")
    for title, panel in panels.items():
        for name, path in panel.items():
            _validate_points(f"paths[{title!r}][{name!r}]" if title else f"paths[{name!r}]", path)
    figure, all_axes = make_panels(len(panels), xlabel, ylabel, height=3.9)
    levels = np.unique(np.quantile(np.asarray(heights), np.linspace(0, 1, 18) ** 1.5))
    for axes, (title, panel) in zip(all_axes, panels.items(), strict=True):
        if len(levels) > 1:
            axes.contour(x, y, heights, levels=levels, colors=FRAME, linewidths=0.7, zorder=0)
        colors = cycle_colors(len(panel))
        for k, ((name, path), color) in enumerate(zip(panel.items(), colors, strict=True)):
            points, zorder = np.asarray(path, np.float64), 3 + len(panel) - k
            marker, width = ("o", 1.2) if len(points) <= _MAX_MARKERS else ("", 0.7)
            style: dict[str, Any] = {"color": color, "zorder": zorder}
            line = {"linewidth": width, "marker": marker, "markersize": 2.5, **style}
            axes.plot(*points.T, label=name, **line)
            axes.plot(*points[0], "o", markerfacecolor="white", markersize=6, **style)
            style["zorder"] = 20
            axes.plot(*points[-1], "o", markeredgecolor="white", markersize=6.5, **style)
        axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
        axes.locator_params(nbins=5)
        finish_panel(axes, title, legend=len(panel) > 1, legend_below=True)
    return figure


def draw_clouds(
    clouds: Mapping[str, Float[Any, "points 2"]], *, xlabel: str, ylabel: str
) -> Figure:
    """Plot sets of points in the plane, such as the gradients of single examples and of batches.

    The last set is drawn on top. The fewer points a set has, the larger they are drawn.

    Args:
        clouds: sets of points (points, 2) by name, finite.
        xlabel, ylabel: labels of the axes.

    Raises:
        TypeError: an array is not of floats.
        ValueError: there is no set; a set is empty, not (points, 2) or not finite.

    >>> clouds = {"one": np.array([[0.0, 1.0], [2.0, 1.0]]), "all": np.array([[1.0, 1.0]])}
    >>> draw_clouds(clouds, xlabel="x", ylabel="y")
    <Figure size ... with 1 Axes>
    """
    _axes.validate_mapping("clouds", clouds, "points by name")
    for name, cloud in clouds.items():
        _validate_points(f"clouds[{name!r}]", cloud)
    figure, (axes,) = make_panels(1, xlabel, ylabel, height=4.2)
    for (name, cloud), color in zip(clouds.items(), cycle_colors(len(clouds)), strict=True):
        style: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.4}
        style |= {"color": color, "markersize": 3 + 9 / len(cloud) ** 0.5}
        axes.plot(*np.asarray(cloud, np.float64).T, "o", label=name, **style)
    axes.axhline(0, color=FRAME, linewidth=0.7, zorder=0)
    axes.axvline(0, color=FRAME, linewidth=0.7, zorder=0)
    axes.set_aspect("equal", adjustable="box")
    finish_panel(axes, "", legend=len(clouds) > 1)
    return figure


def draw_rates(
    x: Float[Any, "columns"],
    y: Float[Any, "rows"],
    rates: Mapping[str, Float[Any, "rows columns"]],
    *,
    xlabel: str,
    ylabel: str,
    border: Line | None = None,
    marks: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Plot convergence rates over two hyper-parameters, such as learning rate and momentum.

    The rate is the factor by which the error shrinks per step: dark is fast, and grey, from 1 on,
    does not converge.

    Args:
        x, y: grid of hyper-parameters, increasing arrays (columns,) and (rows,).
        rates: rates at the grid points, (rows, columns), by title of the panel; >= 0, finite.
        xlabel, ylabel: labels of the axes.
        border: stability boundary, a pair of arrays (x, y), drawn as a dashed line; default none.
        marks: points (x, y) to mark, by name; default none.

    Raises:
        TypeError: an array is not of floats.
        ValueError: shapes disagree; values are not finite; a rate is negative; the grid does not
            increase; there is no panel.

    >>> x = y = np.linspace(0.0, 2.0, 9)
    >>> rates = {"measured": np.abs(1 - x) + 0 * y[:, None]}
    >>> draw_rates(x, y, rates, xlabel="learning rate η", ylabel="momentum β")
    <Figure size ... with 2 Axes>
    """
    _axes.validate_mapping("rates", rates, "rates by title")
    for title, plane in rates.items():
        _validate_plane(f"rates[{title!r}]", plane, x, y)
        _validation.within(f"rates[{title!r}]", plane, 0, np.inf)
    figure, all_axes = make_panels(len(rates), xlabel, ylabel, height=3.7)
    for axes, (title, plane) in zip(all_axes, rates.items(), strict=True):
        converging = np.ma.masked_greater_equal(np.asarray(plane, np.float64), 1)
        axes.set_facecolor(_DIVERGING)
        colors: dict[str, Any] = {"vmin": 0, "vmax": 1, "cmap": "viridis", "shading": "nearest"}
        image = axes.pcolormesh(x, y, converging, rasterized=True, **colors)
        if levels := [level for level in _RATE_LEVELS if np.min(plane) < level < np.max(plane)]:
            contour = axes.contour(x, y, plane, levels=levels, colors="white", linewidths=0.5)
            axes.clabel(contour, fontsize=6.5)
        if border is not None:
            axes.plot(*border, "--", color=INK, linewidth=1.2, label="stability boundary")
        for (name, point), marker in zip((marks or {}).items(), "*Xs^", strict=False):
            style: dict[str, Any] = {"color": "white", "markeredgecolor": INK, "markersize": 9}
            axes.plot(*point, marker, linestyle="", label=name, clip_on=False, **style)
        axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
        finish_panel(axes, title, legend=False)
    bar = figure.colorbar(image, ax=all_axes, pad=0.02, aspect=30)
    bar.set_label("convergence rate per step", color=INK)
    bar.ax.tick_params(color=FRAME, labelcolor=FAINT)
    bar.outline.set_visible(False)
    if border is not None or marks:
        entries = all_axes[0].get_legend_handles_labels()
        style = {"ncols": 5, "fontsize": 8, "frameon": False, "labelcolor": INK}
        figure.legend(*entries, loc="outside lower center", **style)
    return figure


def _validate_points(name: str, points: Any) -> None:
    _axes.validate_floats(name, points, rank=2)
    _validation.batch(**{name: points})
    if points.shape[1] != 2:
        raise ValueError(f"{name} must have shape (points, 2), got {list(points.shape)}")


def _validate_plane(name: str, plane: Any, x: Any, y: Any) -> None:
    for axis, values in (("x", x), ("y", y)):
        _axes.validate_floats(axis, values, rank=1)
        if len(values) < 2 or (np.diff(np.asarray(values)) <= 0).any():
            raise ValueError(f"{axis} must increase and have at least 2 values")
    _axes.validate_floats(name, plane, rank=2)
    expected, got = [len(y), len(x)], list(plane.shape)
    if got != expected:
        raise ValueError(f"{name} must have shape {expected}, a row for each y, got {got}")
