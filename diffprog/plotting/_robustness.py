"""Accuracy against the size of the perturbation, from an evaluation: what falls when, and how sure one can be of it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffprog.plotting._history import _axes, _colors, _figure
from diffprog.plotting._image_grid import FAINT, INK

if TYPE_CHECKING:
    from diffprog.adversarial import Report

_MARKERS = "osD^vP*X"
_SHOWN = 0.98  # of the broken examples; the last few may lie very far out


def draw_robustness(report: "Report | Mapping[str, Report]") -> Figure:
    """Robust accuracy against ε: a falling line from the searches for the smallest perturbation, a point for each attack with a radius.

    The line is the worst case of all attacks together, with the band of its interval; each point, with the bar of its interval, one attack
    alone. A point high above the line is an attack that misses what others find. Without a search for the smallest perturbation there is no
    line, but the accuracy without an attack as a point at 0. An attack with a radius for each example has no point.

    Args:
        report: from `adversarial.evaluate`, or several by name, of one norm.

    Raises:
        TypeError: something that is no report.
        ValueError: none at all, or reports of several norms.

    >>> import jax, jax.numpy as jnp, diffprog as dp
    >>> x, y = jnp.array([[0.9, 0.1], [0.6, 0.5]]), jnp.array([0, 0])
    >>> attacks = [dp.adversarial.fgsm(epsilon=0.1), dp.adversarial.fmn()]
    >>> draw_robustness(dp.adversarial.evaluate(lambda x: x, x, y, attacks, key=jax.random.key(0)))
    <Figure size ... with 1 Axes>
    """
    reports = _reports(report)
    axes = _axes(
        f"size ε of the perturbation ({next(iter(reports.values())).norm})", "robust accuracy"
    )
    farthest = max(_farthest(one) for one in reports.values())
    several, markers = len(reports) > 1, dict[str, str]()
    for (name, one), color in zip(reports.items(), _colors(len(reports)), strict=True):
        if any(outcome.epsilon is None for outcome in one.outcomes):
            _draw_line(
                axes,
                one,
                farthest,
                color,
                f"{name}, all together" if several else "all attacks together",
            )
        else:
            _draw_point(
                axes, 0.0, one.clean, color, ".", f"{name}, no attack" if several else "no attack"
            )
        for outcome in _with_one_radius(one):
            markers.setdefault(outcome.name, _MARKERS[len(markers) % len(_MARKERS)])
            _draw_point(
                axes, float(outcome.epsilon), outcome.accuracy, color, markers[outcome.name]
            )
    for name, marker in markers.items():
        axes.plot(
            [],
            [],
            marker,
            color=FAINT,
            markerfacecolor="white",
            markersize=5.5,
            label=f"{name} alone",
        )
    axes.set(xlim=(-0.02 * farthest, 1.02 * farthest), ylim=(-0.03, 1.03))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    confidence = next(iter(reports.values())).confidence
    axes.set_title(
        f"{confidence:.0%} intervals; an upper bound, as a stronger attack may find more",
        fontsize=7.5,
        color=FAINT,
        loc="left",
    )
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return _figure(axes)


def _reports(report: Any) -> dict[str, Any]:
    from diffprog.adversarial import Report

    reports = dict(report) if isinstance(report, Mapping) else {"": report}
    if not reports:
        raise ValueError("report must hold at least one, got none")
    for name, one in reports.items():
        if not isinstance(one, Report):
            raise TypeError(
                f"report{f'[{name!r}]' if name else ''} must be a Report, got {type(one).__name__}"
            )
    if len(norms := sorted({one.norm for one in reports.values()})) > 1:
        raise ValueError(f"reports must be of one norm, got {', '.join(norms)}")
    return reports


def _farthest(report: Any) -> float:
    """Where nearly all that falls has fallen, and every point is in."""
    lengths = report.worst.distance[
        np.isfinite(report.worst.distance) & (report.worst.distance > 0)
    ]
    radii = [
        float(np.max(outcome.epsilon)) for outcome in report.outcomes if outcome.epsilon is not None
    ]
    return (
        max(
            [
                1.15 * max(radii, default=0.0),
                *([np.quantile(lengths, _SHOWN)] if len(lengths) else []),
            ]
        )
        or 1.0
    )


def _draw_line(axes: Axes, report: Any, farthest: float, color: str, label: str) -> None:
    curve = report.curve()
    # On to the edge of the figure, where nothing falls any more.
    x = np.append(curve.epsilons, max(farthest * 1.1, curve.epsilons[-1]))
    low, high = np.append(curve.intervals, curve.intervals[-1:], axis=0).T
    axes.fill_between(x, low, high, step="post", color=color, alpha=0.15, linewidth=0)
    axes.plot(
        x,
        np.append(curve.accuracy, curve.accuracy[-1]),
        drawstyle="steps-post",
        color=color,
        linewidth=1.4,
        label=label,
    )


def _with_one_radius(report: Any) -> list[Any]:
    return [
        outcome
        for outcome in report.outcomes
        if outcome.epsilon is not None and np.ndim(outcome.epsilon) == 0
    ]


def _draw_point(
    axes: Axes, epsilon: float, share: Any, color: str, marker: str, label: str = "_"
) -> None:
    bar = [[share.value - share.low], [share.high - share.value]]
    style: dict[str, Any] = {
        "color": color,
        "markerfacecolor": "white",
        "markersize": 5.5,
        "elinewidth": 0.8,
        "capsize": 2,
    }
    axes.errorbar(
        [epsilon], [share.value], yerr=bar, fmt=marker, label=label, clip_on=False, **style
    )
