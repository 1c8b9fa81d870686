"""Report of a robustness evaluation: accuracies with confidence intervals, a printed table.

The robust accuracy at radius ε is the share of examples that are correctly classified and for which
no attack found an adversarial perturbation of norm at most ε. Let d_i be the smallest distance at
which any attack succeeded on example i: 0 if x_i is misclassified without an attack, infinite if no
attack succeeded. Then

    accuracy(ε) = 1/n #{i : d_i > ε}

It is an upper bound on the true robust accuracy: a stronger attack may find more. The confidence
interval of an accuracy p = k/n is Wilson's,

    (p + z²/2n ± z sqrt(p (1 - p)/n + z²/4n²)) / (1 + z²/n)

with z the normal quantile of (1 + confidence)/2.
"""

import math
import statistics
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer

from diffprog import _validation
from diffprog.adversarial._base import AttackResult, Bounds

# Relative amount by which rounding may make a returned perturbation longer than its radius.
TOLERANCE = 1e-6


class Share(NamedTuple):
    """A share of examples, such as an accuracy, with its confidence interval.

    Attributes:
        value: count / total.
        low, high: ends of the Wilson interval.
        count: number of examples counted.
        total: number of all examples.
    """

    value: float
    low: float
    high: float
    count: int  # type: ignore[assignment]  # shadows the method `tuple.count`
    total: int

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} .. {self.high:.1%})"


def share_with_interval(count: int, total: int, confidence: float = 0.95) -> Share:
    """Compute the share count / total and its Wilson confidence interval.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    1927.

    >>> print(share_with_interval(90, 100))
    90.0% (82.6% .. 94.5%)
    """
    p, z = count / total, statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    center = p + z**2 / (2 * total)
    half_width = z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    low, high = ((center + side) / (1 + z**2 / total) for side in (-half_width, half_width))
    # At the ends the two terms cancel only up to rounding; set those exactly.
    low, high = max(low, 0.0) if count else 0.0, min(high, 1.0) if count < total else 1.0
    return Share(p, low, high, count, total)


class Flag(NamedTuple):
    """A warning that robust accuracy may be overestimated, usually because gradients are masked.

    Attributes:
        name: short name of the symptom.
        measured: the measurement that raised the flag.
        meaning: consequence for the reported accuracies.
        remedy: what to try.
    """

    name: str
    measured: str
    meaning: str
    remedy: str

    def __str__(self) -> str:
        lines = [f"gradient masking suspected: {self.name}", *self[1:]]
        return "\n    ".join(lines)


class Outcome(NamedTuple):
    """Result of one attack on all evaluated examples, in a `Report`.

    Attributes:
        name: key of the attack in `attacks` if that is a dict, else the attack's own name.
        method: the attack's own name, `Attack.name`.
        epsilon: radius, a number or one per example; None for a minimum-norm attack.
        accuracy: share of examples that are correctly classified and on which the attack failed.
        found: the result of the attack, an `AttackResult` or `Cascaded` of NumPy arrays.
        uses_gradients: whether the attack differentiates the model.
    """

    name: str
    method: str
    epsilon: Any
    accuracy: Share
    found: AttackResult
    uses_gradients: bool = True


class Worst(NamedTuple):
    """Smallest adversarial perturbation found by any attack, per example.

    Attributes:
        distance: (batch,), norm of the perturbation; 0 if x itself is misclassified, infinite if no
            attack succeeded.
        attack: (batch,), index in `Report.outcomes` of the attack that found the perturbation, the
            first of several equally small ones; -1 if no attack was needed or succeeded.
        step: (batch,), `AttackResult.step` of that attack; -1 without an attack.
        restart: (batch,), `AttackResult.restart` of that attack; -1 without an attack.
    """

    distance: Float[np.ndarray, "batch"]
    attack: Integer[np.ndarray, "batch"]
    step: Integer[np.ndarray, "batch"]
    restart: Integer[np.ndarray, "batch"]


class Curve(NamedTuple):
    """Robust accuracy as a function of the radius.

    Attributes:
        epsilons: (points,), increasing radii.
        accuracy: (points,), robust accuracy at each radius, non-increasing.
        intervals: (points, 2), ends of the confidence intervals.
    """

    epsilons: Float[np.ndarray, "points"]
    accuracy: Float[np.ndarray, "points"]
    intervals: Float[np.ndarray, "points 2"]


class Report(NamedTuple):
    """Result of `evaluate`; `str(report)` is a table of accuracies, distances, costs and flags.

    Attributes:
        norm: norm of the perturbations, shared by all attacks.
        bounds: (low, high) of the input values.
        confidence: confidence level of the intervals.
        clean: accuracy on the unperturbed examples.
        correct: (batch,), whether x itself is correctly classified.
        outcomes: the result of each attack, in the order given to `evaluate`.
        worst: smallest perturbation of all attacks, per example.
        flags: warnings of gradient masking; empty if there are none or `evaluate` was called with
            flags=False.
    """

    norm: str
    bounds: Bounds
    confidence: float
    clean: Share
    correct: Bool[np.ndarray, "batch"]
    outcomes: tuple[Outcome, ...]
    worst: Worst
    flags: tuple[Flag, ...]

    def robust(self, epsilon: Any) -> Share:
        """Compute the robust accuracy at a radius against all attacks together.

        Args:
            epsilon: radius >= 0, a number or one per example (batch,).

        Returns:
            A `Share`: the share of examples that are correctly classified and for which no attack
            found an adversarial perturbation of at most this norm.

        Raises:
            TypeError: epsilon is not a number or array.
            ValueError: epsilon is negative or has another shape.
        """
        radius = np.asarray(_validation.array("epsilon", epsilon), np.float64)
        batch = len(self.correct)
        _validation.within("epsilon", radius, 0, np.inf)
        if radius.shape not in ((), (batch,)):
            raise ValueError(
                f"epsilon must be a number or have one value for each of {batch} examples, "
                f"got {list(radius.shape)}"
            )
        distance = self.worst.distance
        robust = np.isinf(distance) | (distance > radius * (1 + TOLERANCE))
        return share_with_interval(int(robust.sum()), batch, self.confidence)

    def curve(self, epsilons: Any = None) -> Curve:
        """Compute the robust accuracy at several radii.

        Below the radii of the attacks, only minimum-norm attacks tell which examples are robust:
        without a minimum-norm attack, the curve is far too high there.

        Args:
            epsilons: (points,), increasing float radii >= 0; default 0 and every radius at which
                the accuracy drops.

        Returns:
            A `Curve` with the radii, the accuracies and their confidence intervals.

        Raises:
            TypeError: epsilons are not a float array.
            ValueError: epsilons are negative, not increasing, empty or not of rank 1.
        """
        distance = self.worst.distance
        radii = np.unique(np.append(0, distance[np.isfinite(distance)]))
        radii = radii if epsilons is None else epsilons
        _validation.floating("epsilons", radii, rank=1)
        _validation.batch(epsilons=radii)
        if (np.diff(radii) <= 0).any():
            raise ValueError("epsilons must increase")
        shares = np.array([self.robust(float(epsilon))[:3] for epsilon in radii])
        return Curve(np.asarray(radii, np.float64), shares[:, 0], shares[:, 1:])

    def __str__(self) -> str:
        low, high = self.bounds
        header = (
            f"{len(self.correct)} examples, norm {self.norm}, bounds {low:g} .. {high:g}; "
            f"{self.confidence:.0%} confidence intervals; gradients and queries per example"
        )
        rows: list[tuple[str, ...]] = [
            ("attack", "ε", "accuracy", "successes", "median distance", "gradients", "queries"),
            ("none (clean accuracy)", "", str(self.clean), "", "", "", ""),
        ]
        for outcome in self.outcomes:
            rows += _table_rows(outcome, self.correct)
        if len(self.outcomes) > 1:
            name, rest = "all (robust accuracy)", [""] * 4
            rows += [
                (name, _format_radius(radius), str(self.robust(radius)), *rest)
                for radius in _distinct_radii(self.outcomes)
            ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in rows
        ]
        return "\n".join([header, *lines, *map(str, self.flags)])


def _table_rows(outcome: Outcome, correct: Bool[np.ndarray, "batch"]) -> list[tuple[str, ...]]:
    """Format the result of an attack as rows of the printed table, as tuples of strings.

    The first row is the attack; if it is a cascade, a row for each of its attacks follows.
    `correct` tells which examples are correctly classified.
    """
    found, success = outcome.found, correct & outcome.found.success
    row = (
        outcome.name,
        _format_radius(outcome.epsilon),
        "" if outcome.epsilon is None else str(outcome.accuracy),
        str(int(success.sum())),
        f"{np.median(found.distance[success]):.4g}" if success.any() else "",
        f"{np.mean(found.gradients):.0f}",
        f"{np.mean(found.queries):.0f}",
    )
    stages = getattr(found, "broken", {})
    return [row, *((f"  {name}", "", "", str(count), "", "", "") for name, count in stages.items())]


def _format_radius(epsilon: Any) -> str:
    if epsilon is None:
        return "minimum"
    if np.ndim(epsilon) == 0:
        return f"{float(epsilon):g}"
    return f"{np.min(epsilon):g} .. {np.max(epsilon):g}"


def _distinct_radii(outcomes: tuple[Outcome, ...]) -> list[Any]:
    """List the distinct radii of the attacks: first numbers, ascending, then arrays (batch,)."""
    radii = [outcome.epsilon for outcome in outcomes if outcome.epsilon is not None]
    numbers = sorted({float(radius) for radius in radii if np.ndim(radius) == 0})
    arrays = {np.asarray(radius).tobytes(): radius for radius in radii if np.ndim(radius)}
    return [*numbers, *arrays.values()]
