"""Taylor's test as a picture: remainders on logarithmic axes, beside lines of slope 1 and 2."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffprog import _validation
from diffprog.plotting._history import _axes, _colors, _figure
from diffprog.plotting._image_grid import FAINT, FRAME, INK


def draw_slopes(report: Any) -> Figure:
    """The remainders |f(x + h d) - f(x) - h g d| against h, a curve for each leaf, with the order that was found.

    Args:
        report: a `checks.SlopeReport`: paths, steps, remainders (leaves, steps), orders.

    Raises:
        TypeError, ValueError: steps or remainders that are not float arrays of these ranks, or of lengths that do not agree.

    >>> from types import SimpleNamespace
    >>> h = 2.0 ** -np.arange(1, 20)
    >>> draw_slopes(SimpleNamespace(paths=("x",), steps=h, remainders=h[None] ** 2, orders=np.array([2.0])))
    <Figure size ... with 1 Axes>
    """
    _validation.floating("report.steps", report.steps, rank=1)
    _validation.floating("report.remainders", report.remainders, rank=2)
    leaves, steps = len(report.paths), len(report.steps)
    if report.remainders.shape != (leaves, steps) or len(report.orders) != leaves:
        raise ValueError(
            f"report.remainders must have shape ({leaves}, {steps}), got {list(report.remainders.shape)}"
        )
    axes = _axes("step h", "remainder")
    axes.set(xscale="log", yscale="log")
    for path, row, order, color in zip(
        report.paths, report.remainders, report.orders, _colors(leaves), strict=True
    ):
        axes.plot(
            report.steps,
            _positive(row),
            color=color,
            marker="o",
            markersize=3,
            linewidth=1.2,
            label=f"{path}, order {order:.2f}",
        )
    highest = np.nanmax(_positive(report.remainders), initial=1e-300)
    lowest = np.nanmin(_positive(report.remainders), initial=highest)
    for order in (1, 2):
        line = highest * (report.steps / report.steps[0]) ** order
        axes.plot(
            report.steps,
            line,
            color=FAINT,
            linewidth=0.8,
            linestyle=":" if order == 2 else "--",
            label=f"slope {order}",
        )
    axes.set_ylim(lowest / 3, highest * 10)
    axes.grid(axis="both", color=FRAME, linewidth=0.5, alpha=0.5)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return _figure(axes)


def _positive(remainders: np.ndarray) -> np.ndarray:
    """What a logarithm can show."""
    return np.where(np.isfinite(remainders) & (remainders > 0), remainders, np.nan)
