"""Descents of two variables on the contours of a surface, and the rate of a descent over the plane of its hyper-parameters."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffprog import _validation
from diffprog.plotting._history import _colors
from diffprog.plotting._image_grid import FAINT, FRAME, INK
from diffprog.plotting._line_panels import Curve, finish, row

Path = Float[Any, "steps 2"]

_FEW = 40  # steps that are seen one by one; more of them are a line
_LEVELS = (0.3, 0.5, 0.7, 0.8, 0.9)  # of the rate


def draw_paths(
    x: Float[Any, "columns"],
    y: Float[Any, "rows"],
    heights: Float[Any, "rows columns"],
    paths: Mapping[str, Path] | Mapping[str, Mapping[str, Path]],
    *,
    xlabel: str = "θ₁",
    ylabel: str = "θ₂",
) -> Figure:
    """Paths of descents on the contours of a surface: an open circle where each starts, a full one where it ends.

    Contours lie at quantiles of the heights, so that a steep surface shows its flat valleys too.

    Args:
        x, y: the grid, increasing; the figure shows this range, and a path that leaves it is cut off.
        heights: of the surface at (x, y), finite.
        paths: the points of each descent, (steps, 2), by name; or several panels of such paths, by title. The first is drawn on top.
        xlabel, ylabel: what the axes are called.

    Raises:
        TypeError: arrays that are not float.
        ValueError: shapes that do not agree, values that are not finite, a grid that does not increase, no path.

    >>> x = y = np.linspace(-1.0, 1.0, 9)
    >>> draw_paths(x, y, x**2 + 4 * y[:, None] ** 2, {"slow": np.array([[0.9, 0.9], [0.5, 0.1]])})
    <Figure size ... with 1 Axes>
    """
    _check_grid({"x": x, "y": y}, heights, "heights")
    panels = _panels(paths)
    for title, named in panels.items():
        for name, path in named.items():
            _check_path(f"paths[{title!r}][{name!r}]" if title else f"paths[{name!r}]", path)
    figure, all_axes = row(len(panels), xlabel, ylabel, height=3.9)
    levels = np.unique(np.quantile(np.asarray(heights), np.linspace(0, 1, 18) ** 1.5))
    for axes, (title, named) in zip(all_axes, panels.items(), strict=True):
        if len(levels) > 1:
            axes.contour(x, y, heights, levels=levels, colors=FRAME, linewidths=0.7, zorder=0)
        for k, ((name, path), color) in enumerate(
            zip(named.items(), _colors(len(named)), strict=True)
        ):
            _draw_path(axes, np.asarray(path, np.float64), color, name, zorder=3 + len(named) - k)
        axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
        finish(axes, title, len(named) > 1, below=True)
    return figure


def _draw_path(axes: Axes, path: np.ndarray, color: str, name: str, zorder: int) -> None:
    many = len(path) > _FEW
    axes.plot(
        *path.T,
        color=color,
        label=name,
        linewidth=0.7 if many else 1.2,
        marker="" if many else "o",
        markersize=2.5,
        zorder=zorder,
    )
    axes.plot(*path[0], "o", color=color, markerfacecolor="white", markersize=6, zorder=zorder)
    axes.plot(*path[-1], "o", color=color, markeredgecolor="white", markersize=6.5, zorder=20)


def draw_clouds(
    clouds: Mapping[str, Float[Any, "points 2"]], *, xlabel: str, ylabel: str
) -> Figure:
    """Points in the plane by name, such as the gradients of single examples, of batches and of all; the last is drawn on top.

    The fewer points a cloud has the larger they are, down to one.

    Args:
        clouds: points by name.
        xlabel, ylabel: what the axes are called.

    Raises:
        TypeError: arrays that are not float.
        ValueError: no cloud, one that is empty or not (points, 2), values that are not finite.

    >>> draw_clouds({"one": np.array([[0.0, 1.0], [2.0, 1.0]]), "all": np.array([[1.0, 1.0]])}, xlabel="x", ylabel="y")
    <Figure size ... with 1 Axes>
    """
    if not isinstance(clouds, Mapping) or not clouds:
        raise ValueError(
            f"clouds must be a dict of points by name, at least one, got {clouds!r:.60}"
        )
    for name, cloud in clouds.items():
        _check_path(f"clouds[{name!r}]", cloud)
    figure, (axes,) = row(1, xlabel, ylabel, height=4.2)
    for (name, cloud), color in zip(clouds.items(), _colors(len(clouds)), strict=True):
        size = 3 + 9 / len(cloud) ** 0.5
        axes.plot(
            *np.asarray(cloud, np.float64).T,
            "o",
            color=color,
            markersize=size,
            markeredgecolor="white",
            markeredgewidth=0.4,
            label=name,
        )
    for line in (axes.axhline, axes.axvline):
        line(0, color=FRAME, linewidth=0.7, zorder=0)
    axes.set_aspect("equal", adjustable="box")
    finish(axes, "", len(clouds) > 1)
    return figure


def draw_rates(
    x: Float[Any, "columns"],
    y: Float[Any, "rows"],
    rates: Mapping[str, Float[Any, "rows columns"]],
    *,
    xlabel: str,
    ylabel: str,
    border: Curve | None = None,
    marks: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """The factor by which an error shrinks in one step, over a plane of two hyper-parameters: dark is fast, grey does not converge.

    Args:
        x, y: the grid, increasing.
        rates: at (x, y), >= 0 and finite; a panel for each title. Grey from 1 on.
        xlabel, ylabel: what the axes are called.
        border: (x, y), drawn as a dashed line.
        marks: points (x, y), by name.

    Raises:
        TypeError: arrays that are not float.
        ValueError: shapes that do not agree, values that are not finite, rates below 0, a grid that does not increase, no panel.

    >>> x = y = np.linspace(0.0, 2.0, 9)
    >>> draw_rates(x, y, {"measured": np.abs(1 - x) + 0 * y[:, None]}, xlabel="η", ylabel="α")
    <Figure size ... with 2 Axes>
    """
    if not isinstance(rates, Mapping) or not rates:
        raise ValueError(f"rates must be a dict of them by title, at least one, got {rates!r:.60}")
    for title, plane in rates.items():
        _check_grid({"x": x, "y": y}, plane, f"rates[{title!r}]")
        _validation.within(f"rates[{title!r}]", plane, 0, np.inf)
    figure, all_axes = row(len(rates), xlabel, ylabel, height=3.7)
    for axes, (title, plane) in zip(all_axes, rates.items(), strict=True):
        converging = np.ma.masked_greater_equal(np.asarray(plane, np.float64), 1)
        axes.set_facecolor("#e3e5e8")
        image = axes.pcolormesh(
            x, y, converging, vmin=0, vmax=1, cmap="viridis", shading="nearest", rasterized=True
        )
        if levels := [level for level in _LEVELS if np.min(plane) < level < np.max(plane)]:
            axes.clabel(
                axes.contour(x, y, plane, levels=levels, colors="white", linewidths=0.5),
                fontsize=6.5,
            )
        if border is not None:
            axes.plot(*border, "--", color=INK, linewidth=1.2, label="border of stability")
        for (name, point), marker in zip((marks or {}).items(), "*Xs^", strict=False):
            axes.plot(
                *point,
                marker,
                color="#ffffff",
                markeredgecolor=INK,
                markersize=9,
                label=name,
                linestyle="",
                clip_on=False,
            )
        axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
        finish(axes, title, False)
    bar = figure.colorbar(image, ax=all_axes, pad=0.02, aspect=30)
    bar.set_label("rate per step", color=INK)
    bar.ax.tick_params(color=FRAME, labelcolor=FAINT)
    bar.outline.set_visible(False)
    if border is not None or marks:
        figure.legend(
            *all_axes[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=5,
            fontsize=8,
            frameon=False,
            labelcolor=INK,
        )
    return figure


def _panels(paths: Any) -> dict[str, dict[str, Any]]:
    """Paths by name by title; one panel without a title where they are given by name alone."""
    if not isinstance(paths, Mapping) or not paths:
        raise ValueError(f"paths must be a dict of paths by name, at least one, got {paths!r:.60}")
    nested = isinstance(next(iter(paths.values())), Mapping)
    panels = {title: dict(named) for title, named in paths.items()} if nested else {"": dict(paths)}
    if not all(panels.values()):
        raise ValueError("paths must hold at least one path in each panel")
    return panels


def _check_path(name: str, path: Any) -> None:
    _validation.floating(name, path, rank=2)
    _validation.finite(name, path)
    _validation.batch(**{name: path})
    if path.shape[1] != 2:
        raise ValueError(f"{name} must have shape (steps, 2), got {list(path.shape)}")


def _check_grid(grid: dict[str, Any], plane: Any, name: str) -> None:
    for axis, values in grid.items():
        _validation.floating(axis, values, rank=1)
        _validation.finite(axis, values)
        if len(values) < 2 or (np.diff(np.asarray(values)) <= 0).any():
            raise ValueError(f"{axis} must increase and have at least 2 values")
    _validation.floating(name, plane, rank=2)
    _validation.finite(name, plane)
    expected = (len(grid["y"]), len(grid["x"]))
    if tuple(plane.shape) != expected:
        raise ValueError(
            f"{name} must have shape {list(expected)}, a row for each y, got {list(plane.shape)}"
        )
