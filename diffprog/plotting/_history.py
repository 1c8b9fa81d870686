"""Figures of curves: loss of a training run, quantities over a variable, robust accuracy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from diffprog import _validation
from diffprog.plotting import _axes
from diffprog.plotting._axes import COLORS, INK, cycle_colors, make_axes, validate_curve

_MAX_MARKERS = 30  # curves of fewer points get markers


def draw_costs(
    costs: Float[Any, "steps"] | Mapping[str, Float[Any, "steps"]],
    *,
    steps: str = "step",
    cost: str = "loss",
    scale: str = "linear",
) -> Figure:
    """Plot the loss J_k after each step k = 1, 2, ..., as one curve or several.

    Args:
        costs: losses, an array (steps,), or several such arrays by name; finite and not empty.
        steps, cost: labels of the x-axis and the y-axis; default "step" and "loss".
        scale: scale of the y-axis, "linear" (default) or "log", which needs losses above 0.

    Raises:
        TypeError: costs are not float arrays.
        ValueError: costs are empty, not of rank 1, not finite or, on a logarithmic scale, not
            positive; the scale is unknown.

    >>> losses = {"training": np.array([1.0, 0.5, 0.3]), "validation": np.array([1.1, 0.7, 0.6])}
    >>> draw_costs(losses, steps="epoch")
    <Figure size ... with 1 Axes>
    """
    _validation.choice("scale", scale, ["linear", "log"])
    curves = dict(costs) if isinstance(costs, Mapping) else {"": costs}
    if not curves:
        raise ValueError("costs must hold at least one array, got none")
    for name, curve in curves.items():
        argument = f"costs[{name!r}]" if isinstance(costs, Mapping) else "costs"
        validate_curve(argument, curve, scale)
        _validation.batch(**{argument: curve})
    figure, axes = make_axes(steps, cost)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    lines = {name: (np.arange(1, len(curve) + 1), curve) for name, curve in curves.items()}
    _plot_curves(axes, lines, scale)
    return figure


def draw_curves(
    x: Float[Any, "points"],
    curves: Mapping[str, Float[Any, "points"]],
    *,
    xlabel: str,
    ylabel: str,
    scale: str = "linear",
) -> Figure:
    """Plot one or more curves y(x) over shared x values.

    Args:
        x: x values (points,), increasing and finite.
        curves: y values (points,) at x by name of the curve, finite.
        xlabel, ylabel: labels of the axes.
        scale: scale of the y-axis, "linear" (default) or "log", which needs values above 0.

    Raises:
        TypeError: an array is not of floats.
        ValueError: there is no curve; lengths disagree; values are not finite or, on a logarithmic
            scale, not positive; x does not increase.

    >>> curves = {"y": np.array([1.0, 0.2, 0.0])}
    >>> draw_curves(np.array([0.0, 0.5, 1.0]), curves, xlabel="share", ylabel="score")
    <Figure size ... with 1 Axes>
    """
    _validation.choice("scale", scale, ["linear", "log"])
    _axes.validate_mapping("curves", curves, "values by name")
    validate_curve("x", x, "linear")
    for name, curve in curves.items():
        validate_curve(f"curves[{name!r}]", curve, scale)
        _validation.same_shape(**{"x": x, f"curves[{name!r}]": curve})
    if (np.diff(np.asarray(x)) <= 0).any():
        raise ValueError("x must increase")
    figure, axes = make_axes(xlabel, ylabel)
    _plot_curves(axes, {name: (x, curve) for name, curve in curves.items()}, scale)
    return figure


def draw_accuracy(
    epsilons: Float[Any, "radii"],
    accuracy: Float[Any, "radii"],
    intervals: Float[Any, "radii 2"] | None = None,
    *,
    norm: str = "",
) -> Figure:
    """Plot robust accuracy against the perturbation radius ε.

    Args:
        epsilons: radii (radii,), increasing and >= 0.
        accuracy: robust accuracy (radii,) at each radius, in [0, 1].
        intervals: confidence interval (low, high) of each accuracy, (radii, 2), drawn as a band;
            default none.
        norm: name of the norm, for the label of the x-axis.

    Raises:
        TypeError: an array is not of floats.
        ValueError: lengths disagree; epsilons are negative or do not increase; accuracies lie
            outside [0, 1] or outside their interval.

    >>> intervals = np.array([[0.97, 0.99], [0.55, 0.65]])
    >>> draw_accuracy(np.array([0.0, 0.1]), np.array([0.98, 0.6]), intervals, norm="linf")
    <Figure size ... with 1 Axes>
    """
    arrays = {"epsilons": epsilons, "accuracy": accuracy}
    arrays |= {} if intervals is None else {"intervals": intervals}
    for name, values in arrays.items():
        _axes.validate_floats(name, values, rank=2 if name == "intervals" else 1)
    _validation.batch(**arrays)
    radii, shares = np.asarray(epsilons, np.float64), np.asarray(accuracy, np.float64)
    if radii[0] < 0 or (np.diff(radii) <= 0).any():
        raise ValueError(f"epsilons must be >= 0 and increase, got {radii.tolist()}")
    _validation.within("accuracy", accuracy, 0, 1)
    figure, axes = make_accuracy_axes(norm)
    if intervals is not None:
        if intervals.shape[1] != 2:
            raise ValueError(f"intervals must have shape (radii, 2), got {list(intervals.shape)}")
        low, high = np.asarray(intervals, np.float64).T
        if (low > shares).any() or (high < shares).any():
            raise ValueError(
                f"intervals must contain the accuracies {shares.tolist()}, "
                f"got {np.stack([low, high], 1).tolist()}"
            )
        axes.fill_between(radii, low, high, color=COLORS[0], alpha=0.18, linewidth=0)
    axes.plot(radii, shares, color=COLORS[0], marker="o")
    return figure


def make_accuracy_axes(norm: str) -> tuple[Figure, Axes]:
    """Return a new figure and axes for robust accuracy in percent (y) against radius ε (x)."""
    radius = f"perturbation radius ε ({norm})" if norm else "perturbation radius ε"
    figure, axes = make_axes(radius, "robust accuracy")
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return figure, axes


def _plot_curves(axes: Axes, curves: Mapping[str, tuple[Any, Any]], scale: str) -> None:
    """Plot (x, y) curves given as a dict by name, with a legend if there are several."""
    axes.set_yscale(scale)
    colors = cycle_colors(len(curves))
    for k, ((name, (x, y)), color) in enumerate(zip(curves.items(), colors, strict=True)):
        # Colours repeat after six curves; dashes then tell them apart.
        dashes = ("-", "--", ":")[k // len(COLORS) % 3]
        marker = "o" if len(y) < _MAX_MARKERS else ""
        style: dict[str, Any] = {"color": color, "linewidth": 1.4, "markersize": 4}
        axes.plot(x, np.asarray(y, np.float64), dashes, label=name, marker=marker, **style)
    if len(curves) > 1:
        axes.legend(labelcolor=INK, edgecolor="none", framealpha=0.85)
