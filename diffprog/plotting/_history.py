"""Numbers as curves: a cost that falls, an accuracy that an attack brings down."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from diffprog import _validation
from diffprog.plotting._image_grid import FAINT, FRAME, INK

_COLORS = ["#1f6fb2", "#c8741a", "#3a8f5c", "#8a5fb0", "#b8475f", "#5d6670"]


def draw_costs(
    costs: Float[Any, "steps"] | Mapping[str, Float[Any, "steps"]],
    *,
    steps: str = "step",
    cost: str = "cost",
    scale: str = "linear",
) -> Figure:
    """The cost J_k after each step k = 1, 2, ..., one curve or several.

    Args:
        costs: the costs, or several of them by name; each finite and of any length from 1.
        steps, cost: what the axes are called.
        scale: of the cost axis, "linear" or "log"; a logarithm needs costs above 0.

    Raises:
        TypeError: costs that are not float arrays.
        ValueError: costs of another rank, empty, not finite or, for a logarithm, not positive; an unknown scale.

    >>> draw_costs({"training": np.array([1.0, 0.5, 0.3]), "held out": np.array([1.1, 0.7, 0.6])}, steps="epoch")
    <Figure size ... with 1 Axes>
    """
    _validation.choice("scale", scale, ["linear", "log"])
    curves = dict(costs) if isinstance(costs, Mapping) else {"": costs}
    if not curves:
        raise ValueError("costs must hold at least one array, got none")
    for name, curve in curves.items():
        given = f"costs[{name!r}]" if isinstance(costs, Mapping) else "costs"
        _validation.floating(given, curve, rank=1)
        _validation.batch(**{given: curve})
        _validation.finite(given, curve)
        if scale == "log" and np.min(curve) <= 0:
            raise ValueError(
                f"{given} must be above 0 on a logarithmic scale, got {np.min(curve):g}"
            )
    axes = _axes(steps, cost)
    axes.set_yscale(scale)
    for (name, curve), color in zip(curves.items(), _colors(len(curves)), strict=True):
        # A few points are seen as points, many as a line.
        axes.plot(
            np.arange(1, len(curve) + 1),
            np.asarray(curve, np.float64),
            color=color,
            label=name,
            linewidth=1.4,
            marker="o" if len(curve) < 30 else "",
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(curves) > 1:
        axes.legend(frameon=False, labelcolor=INK)
    return _figure(axes)


def draw_curves(
    x: Float[Any, "points"],
    curves: Mapping[str, Float[Any, "points"]],
    *,
    xlabel: str,
    ylabel: str,
    scale: str = "linear",
) -> Figure:
    """Several quantities against one: a line for each name.

    Args:
        x: increasing, finite.
        curves: values at each x by name, finite.
        xlabel, ylabel: what the axes are called.
        scale: of the upright axis, "linear" or "log"; a logarithm needs values above 0.

    Raises:
        TypeError: arrays that are not float.
        ValueError: lengths that do not agree, no curve, values that are not finite or, for a logarithm, not positive, an x that does not
            increase.

    >>> draw_curves(np.array([0.0, 0.5, 1.0]), {"y": np.array([1.0, 0.2, 0.0])}, xlabel="share", ylabel="score")
    <Figure size ... with 1 Axes>
    """
    _validation.choice("scale", scale, ["linear", "log"])
    if not isinstance(curves, Mapping) or not curves:
        raise ValueError(
            f"curves must be a dict of values by name, at least one, got {curves!r:.60}"
        )
    for name, values in {
        "x": x,
        **{f"curves[{name!r}]": curve for name, curve in curves.items()},
    }.items():
        _validation.floating(name, values, rank=1)
        _validation.finite(name, values)
        _validation.same_shape(**{"x": x, name: values})
        if scale == "log" and name != "x" and np.min(values) <= 0:
            raise ValueError(
                f"{name} must be above 0 on a logarithmic scale, got {np.min(values):g}"
            )
    if (np.diff(np.asarray(x)) <= 0).any():
        raise ValueError("x must increase")
    axes = _axes(xlabel, ylabel)
    axes.set_yscale(scale)
    marker = "o" if len(x) < 30 else ""
    for k, ((name, curve), color) in enumerate(
        zip(curves.items(), _colors(len(curves)), strict=True)
    ):
        # More curves than colours: the colours come again, dashed.
        dashes = ("-", "--", ":")[k // len(_COLORS) % 3]
        axes.plot(
            x,
            np.asarray(curve, np.float64),
            dashes,
            color=color,
            label=name,
            linewidth=1.4,
            marker=marker,
            markersize=4,
        )
    if len(curves) > 1:
        axes.legend(frameon=False, labelcolor=INK)
    return _figure(axes)


def draw_accuracy(
    epsilons: Float[Any, "sizes"],
    accuracy: Float[Any, "sizes"],
    intervals: Float[Any, "sizes 2"] | None = None,
    *,
    norm: str = "",
) -> Figure:
    """Robust accuracy, the share of examples that no perturbation found with ‖r‖ <= ε turns, against ε.

    Args:
        epsilons: sizes of the perturbation, >= 0 and increasing.
        accuracy: the accuracy at each, in [0, 1].
        intervals: (low, high) around each accuracy, drawn as a band.
        norm: the norm's name, for the axis.

    Raises:
        TypeError: arrays that are not float.
        ValueError: lengths that do not agree, epsilons that do not increase from 0 or more, accuracies outside [0, 1] or their interval.

    >>> draw_accuracy(np.array([0.0, 0.1]), np.array([0.98, 0.6]), np.array([[0.97, 0.99], [0.55, 0.65]]), norm="linf")
    <Figure size ... with 1 Axes>
    """
    given = {"epsilons": epsilons, "accuracy": accuracy} | (
        {} if intervals is None else {"intervals": intervals}
    )
    for name, values in given.items():
        _validation.floating(name, values, rank=2 if name == "intervals" else 1)
        _validation.finite(name, values)
    _validation.batch(**given)
    sizes, share = np.asarray(epsilons, np.float64), np.asarray(accuracy, np.float64)
    if sizes[0] < 0 or (np.diff(sizes) <= 0).any():
        raise ValueError(f"epsilons must be >= 0 and increase, got {sizes.tolist()}")
    _validation.within("accuracy", accuracy, 0, 1)
    axes = _axes(f"size ε of the perturbation{f' ({norm})' if norm else ''}", "robust accuracy")
    if intervals is not None:
        low, high = _around(share, intervals)
        axes.fill_between(sizes, low, high, color=_COLORS[0], alpha=0.18, linewidth=0)
    axes.plot(sizes, share, color=_COLORS[0], marker="o")
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return _figure(axes)


def _around(share: np.ndarray, intervals: Any) -> tuple[np.ndarray, np.ndarray]:
    """The two ends of intervals that hold the accuracies."""
    if intervals.shape[1] != 2:
        raise ValueError(f"intervals must have shape (sizes, 2), got {list(intervals.shape)}")
    low, high = np.asarray(intervals, np.float64).T
    if (low > share).any() or (high < share).any():
        raise ValueError(
            f"intervals must hold the accuracies {share.tolist()}, got {np.stack([low, high], 1).tolist()}"
        )
    return low, high


def _axes(x: str, y: str) -> Axes:
    axes = Figure(figsize=(6.4, 3.4), layout="constrained").add_subplot()
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(FRAME)
    axes.tick_params(color=FRAME, labelcolor=FAINT, which="both")
    axes.grid(axis="y", color=FRAME, linewidth=0.5, alpha=0.7)
    return axes


def _colors(count: int) -> list[str]:
    return [_COLORS[k % len(_COLORS)] for k in range(count)]


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure
