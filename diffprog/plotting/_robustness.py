"""Figure of robust accuracy over the perturbation radius, from an evaluation report."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffprog.plotting._axes import FAINT, INK, cycle_colors
from diffprog.plotting._history import make_accuracy_axes

if TYPE_CHECKING:
    from diffprog.adversarial import Report

_MARKERS = "osD^vP*X"
_DISTANCE_QUANTILE = 0.98  # the x-axis ends there, as the largest distances may be very large


def draw_robustness(report: "Report | Mapping[str, Report]") -> Figure:
    """Plot robust accuracy against the radius ε, from one evaluation or several.

    A falling line shows the robust accuracy against all attacks together, with its confidence band.
    A point with an error bar shows the accuracy under one attack at its radius: a point high above
    the line is an attack that misses adversarial examples which others find. The line is drawn if
    a minimum-norm attack was run; otherwise a point at ε = 0 shows the clean accuracy. Attacks with
    a different radius for each example have no point.

    Args:
        report: report of `adversarial.evaluate`, or several by name, with the same norm.

    Raises:
        TypeError: an argument is not a `Report`.
        ValueError: there is no report, or norms disagree.

    >>> import jax, jax.numpy as jnp, diffprog as dp
    >>> x, y = jnp.array([[0.9, 0.1], [0.6, 0.5]]), jnp.array([0, 0])
    >>> attacks = [dp.adversarial.fgsm(epsilon=0.1), dp.adversarial.fmn()]
    >>> key = jax.random.key(0)
    >>> draw_robustness(dp.adversarial.evaluate(lambda x: x, x, y, attacks, key=key))
    <Figure size ... with 1 Axes>
    """
    reports = _validate_reports(report)
    first = next(iter(reports.values()))
    figure, axes = make_accuracy_axes(first.norm)
    farthest = max(_axis_end(one) for one in reports.values())
    markers: dict[str, str] = {}
    for (name, one), color in zip(reports.items(), cycle_colors(len(reports)), strict=True):
        prefix = f"{name}, " if len(reports) > 1 else ""
        if any(outcome.epsilon is None for outcome in one.outcomes):
            _draw_curve(axes, one.curve(), farthest, color, f"{prefix}all attacks together")
        else:
            _draw_point(axes, 0.0, one.clean, color, ".", f"{prefix}clean accuracy")
        for outcome in one.outcomes:
            if outcome.epsilon is None or np.ndim(outcome.epsilon):
                continue
            marker = markers.setdefault(outcome.name, _MARKERS[len(markers) % len(_MARKERS)])
            _draw_point(axes, float(outcome.epsilon), outcome.accuracy, color, marker)
    for name, marker in markers.items():
        style: dict[str, Any] = {"markerfacecolor": "white", "markersize": 5.5}
        axes.plot([], [], marker, color=FAINT, label=f"{name} alone", **style)
    axes.set_xlim(-0.02 * farthest, 1.02 * farthest)
    note = f"{first.confidence:.0%} confidence intervals; upper bounds, as a stronger attack may "
    axes.set_title(f"{note}lower the accuracy", fontsize=7.5, color=FAINT, loc="left")
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure


def _validate_reports(report: Any) -> dict[str, Any]:
    from diffprog.adversarial import Report

    is_mapping = isinstance(report, Mapping)
    reports = dict(report) if is_mapping else {"": report}
    if not reports:
        raise ValueError("report must hold at least one Report, got none")
    for name, one in reports.items():
        if not isinstance(one, Report):
            argument = f"report[{name!r}]" if is_mapping else "report"
            raise TypeError(f"{argument} must be a Report, got {type(one).__name__}")
    if len(norms := sorted({one.norm for one in reports.values()})) > 1:
        raise ValueError(f"reports must agree in norm, got {', '.join(norms)}")
    return reports


def _axis_end(report: Any) -> float:
    """Return the right end of the x-axis of a robustness figure, for one evaluation report.

    It lies beyond the radius of every attack and nearly all distances of adversarial examples.
    """
    distance = report.worst.distance[np.isfinite(report.worst.distance)]
    distance = distance[distance > 0]
    radii = (one.epsilon for one in report.outcomes if one.epsilon is not None)
    ends = [1.15 * float(np.max(epsilon)) for epsilon in radii]
    if len(distance):
        ends.append(float(np.quantile(distance, _DISTANCE_QUANTILE)))
    return max(ends, default=0.0) or 1.0


def _draw_curve(axes: Axes, curve: Any, farthest: float, color: str, label: str) -> None:
    # The last accuracy continues beyond the edge of the figure.
    x = np.append(curve.epsilons, max(farthest * 1.1, curve.epsilons[-1]))
    accuracy = np.append(curve.accuracy, curve.accuracy[-1])
    low, high = np.append(curve.intervals, curve.intervals[-1:], axis=0).T
    axes.fill_between(x, low, high, step="post", color=color, alpha=0.15, linewidth=0)
    axes.plot(x, accuracy, drawstyle="steps-post", color=color, linewidth=1.4, label=label)


def _draw_point(
    axes: Axes, epsilon: float, share: Any, color: str, marker: str, label: str = "_"
) -> None:
    style: dict[str, Any] = {"markerfacecolor": "white", "markersize": 5.5, "capsize": 2}
    style |= {"fmt": marker, "color": color, "elinewidth": 0.8, "clip_on": False}
    errors = [[share.value - share.low], [share.high - share.value]]
    axes.errorbar([epsilon], [share.value], yerr=errors, label=label, **style)
