"""Figure of a Taylor test of a gradient: remainders over step sizes on logarithmic axes."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffprog import _validation
from diffprog.plotting._axes import FAINT, FRAME, INK, cycle_colors, make_axes


def draw_slopes(report: Any) -> Figure:
    """Plot the Taylor remainders |f(x + h d) - f(x) - h g·d| against the step size h.

    f is the function under test, g its claimed gradient at x, and d a random direction. There is a
    curve for each leaf of x, labelled with its measured order, and reference lines of slope 1
    (wrong gradient) and 2 (right gradient).

    Args:
        report: a `checks.SlopeReport`: paths, steps, remainders (leaves, steps), orders.

    Raises:
        TypeError: steps or remainders are not float arrays.
        ValueError: steps or remainders have another rank, or lengths disagree.

    >>> from types import SimpleNamespace
    >>> h = 2.0 ** -np.arange(1, 20)
    >>> report = SimpleNamespace(
    ...     paths=("x",), steps=h, remainders=h[None] ** 2, orders=np.array([2.0])
    ... )
    >>> draw_slopes(report)
    <Figure size ... with 1 Axes>
    """
    _validation.floating("report.steps", report.steps, rank=1)
    _validation.floating("report.remainders", report.remainders, rank=2)
    leaves, steps = len(report.paths), len(report.steps)
    if report.remainders.shape != (leaves, steps) or len(report.orders) != leaves:
        raise ValueError(
            f"report.remainders must have shape ({leaves}, {steps}), "
            f"got {list(report.remainders.shape)}"
        )
    # A logarithmic axis leaves out NaN, but not zero.
    positive = np.isfinite(report.remainders) & (report.remainders > 0)
    remainders = np.where(positive, report.remainders, np.nan)
    figure, axes = make_axes("step size h", "Taylor remainder")
    axes.set(xscale="log", yscale="log")
    curves = zip(report.paths, remainders, report.orders, cycle_colors(leaves), strict=True)
    for path, curve, order, color in curves:
        label = f"{path}, order {order:.2f}"
        axes.plot(report.steps, curve, "-o", color=color, markersize=3, linewidth=1.2, label=label)
    highest = np.nanmax(remainders, initial=1e-300)
    lowest = np.nanmin(remainders, initial=highest)
    for order, linestyle in ((1, "--"), (2, ":")):
        reference = highest * (report.steps / report.steps[0]) ** order
        label = f"slope {order}"
        axes.plot(report.steps, reference, linestyle, color=FAINT, linewidth=0.8, label=label)
    axes.set_ylim(lowest / 3, highest * 10)
    axes.grid(axis="both", color=FRAME, linewidth=0.5, alpha=0.5)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure
