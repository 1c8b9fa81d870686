"""What an evaluation found, as numbers one can hold somebody to: shares of examples with the intervals they lie in, and a table.

Robust accuracy at ε is the share of examples for which no attack found a perturbation of norm <= ε. With d_i the smallest distance at which
any attack turned example i (0 where f misreads it anyway, infinite where none did), that is one curve, which can only fall:

    accuracy(ε) = 1/n #{i : d_i > ε}

It is an upper bound: a stronger attack may find more. How far n examples speak for all is the Wilson interval of a share p = k/n,

    (p + z²/2n ± z sqrt(p (1 - p)/n + z²/4n²)) / (1 + z²/n),      z the normal quantile of (1 + confidence) / 2
"""

import math
import statistics
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer

from diffprog import _validation
from diffprog.adversarial._base import AttackResult, Bounds

SLACK = 1e-6  # relative; by what a returned perturbation may be longer than its radius


class Share(NamedTuple):
    """A share of examples.

    Attributes:
        value: count / total.
        low, high: the ends of its Wilson interval.
        count: how many they are.
        total: of how many.
    """

    value: float
    low: float
    high: float
    count: int  # type: ignore[assignment]  # the method `tuple.count` has no use here
    total: int

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} .. {self.high:.1%})"


def share(count: int, total: int, confidence: float = 0.95) -> Share:
    """A share and its interval.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    >>> print(share(90, 100))
    90.0% (82.6% .. 94.5%)
    """
    p, z = count / total, statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    middle, width = (
        p + z**2 / (2 * total),
        z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2)),
    )
    low, high = ((middle + side) / (1 + z**2 / total) for side in (-width, width))
    # Exact at the ends, where the two terms cancel only up to rounding.
    return Share(
        p, max(low, 0.0) if count else 0.0, min(high, 1.0) if count < total else 1.0, count, total
    )


class Flag(NamedTuple):
    """A sign that an evaluation says less than it seems to.

    Attributes:
        name: what it is called.
        measured: what was seen.
        meaning: what that means for the numbers beside it.
        remedy: what to do.
    """

    name: str
    measured: str
    meaning: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {self.measured}\n    {self.meaning}\n    {self.remedy}"


class Outcome(NamedTuple):
    """What one attack did.

    Attributes:
        name: it was given.
        method: the attack's own name.
        epsilon: its radius, one for all or one for each example; None for a search for the smallest perturbation.
        accuracy: the share of examples read rightly that it did not turn.
        found: the `AttackResult`, or `Cascaded`, of all examples, in NumPy arrays.
    """

    name: str
    method: str
    epsilon: Any
    accuracy: Share
    found: AttackResult


class Worst(NamedTuple):
    """The shortest perturbation that any attack found, for each example.

    Attributes:
        distance: (batch,), its norm; 0 where f misreads the example itself, infinite where none was found.
        attack: (batch,), the outcome it is from, the first of equally short ones; -1 where there is none.
        step: (batch,), the step that found it, as the attack counts; -1 where there is none.
        restart: (batch,), the restart.
    """

    distance: Float[np.ndarray, "batch"]
    attack: Integer[np.ndarray, "batch"]
    step: Integer[np.ndarray, "batch"]
    restart: Integer[np.ndarray, "batch"]


class Curve(NamedTuple):
    """Robust accuracy against the radius.

    Attributes:
        epsilons: (points,), increasing from 0.
        accuracy: (points,), never rising.
        intervals: (points, 2), the ends of their intervals.
    """

    epsilons: Float[np.ndarray, "points"]
    accuracy: Float[np.ndarray, "points"]
    intervals: Float[np.ndarray, "points 2"]


class Report(NamedTuple):
    """What an evaluation found; `str(report)` is a table of it.

    Attributes:
        norm: the norm of every attack.
        bounds: (low, high).
        confidence: of the intervals.
        clean: the accuracy without an attack.
        right: (batch,), whether f reads the example itself rightly.
        outcomes: one for each attack, in their order.
        worst: of all attacks, for each example.
        flags: the signs that this says less than it seems to; none if all is well, or nobody looked.
    """

    norm: str
    bounds: Bounds
    confidence: float
    clean: Share
    right: Bool[np.ndarray, "batch"]
    outcomes: tuple[Outcome, ...]
    worst: Worst
    flags: tuple[Flag, ...]

    def robust(self, epsilon: Any) -> Share:
        """The worst case at a radius >= 0, one for all or one for each example: who stands against all attacks together.

        Raises:
            TypeError, ValueError: a radius that is none.
        """
        radius, batch = (
            np.asarray(_validation.array("epsilon", epsilon), np.float64),
            len(self.right),
        )
        _validation.within("epsilon", radius, 0, np.inf)
        if radius.shape not in ((), (batch,)):
            raise ValueError(
                f"epsilon must be a number or have one value for each of {batch} examples, got {list(radius.shape)}"
            )
        return share(
            int(
                (np.isinf(self.worst.distance) | (self.worst.distance > radius * (1 + SLACK))).sum()
            ),
            batch,
            self.confidence,
        )

    def curve(self, epsilons: Any = None) -> Curve:
        """The worst case at each radius; without any given, at 0 and every radius at which it falls.

        Below the radii of the attacks it hangs on the searches for the smallest perturbation: without one it is far too high there.

        Raises:
            TypeError, ValueError: radii that do not increase from 0 or more.
        """
        radii = (
            np.unique(np.append(0, self.worst.distance[np.isfinite(self.worst.distance)]))
            if epsilons is None
            else epsilons
        )
        _validation.floating("epsilons", radii, rank=1)
        _validation.batch(epsilons=radii)
        if (np.diff(radii) <= 0).any():
            raise ValueError("epsilons must increase")
        shares = np.array([self.robust(float(epsilon))[:3] for epsilon in radii])
        return Curve(np.asarray(radii, np.float64), shares[:, 0], shares[:, 1:])

    def __str__(self) -> str:
        low, high = self.bounds
        header = f"{len(self.right)} examples, {self.norm}, numbers in {low:g} .. {high:g}; {self.confidence:.0%} intervals, means per example"
        rows: list[tuple[str, ...]] = [_COLUMNS, ("none", "", str(self.clean), "", "", "", "")]
        for outcome in self.outcomes:
            rows += _rows_of(outcome, self.right)
        together = [
            ("all together", _radius(epsilon), str(self.robust(epsilon)), "", "", "", "")
            for epsilon in _radii(self.outcomes)
        ]
        rows += together if len(self.outcomes) > 1 else []
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = lambda row: [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        lines = ["  ".join(aligned(row)).rstrip() for row in rows]
        signs = (
            [f"{len(self.flags)} flag{'s' * (len(self.flags) != 1)}", *map(str, self.flags)]
            if self.flags
            else []
        )
        return "\n".join([header, *lines, *signs])


_COLUMNS = ("attack", "ε", "accuracy", "broken", "median |r|", "gradients", "queries")


def _rows_of(outcome: Outcome, right: Bool[np.ndarray, "batch"]) -> list[tuple[str, ...]]:
    """The row of an attack, and one for each stage of a cascade."""
    found, broken = outcome.found, right & outcome.found.success
    length = f"{np.median(found.distance[broken]):.4g}" if broken.any() else ""
    work = (f"{np.mean(found.gradients):.0f}", f"{np.mean(found.queries):.0f}")
    accuracy = "" if outcome.epsilon is None else str(outcome.accuracy)
    stages = [
        (f"  {name}", "", "", str(count), "", "", "")
        for name, count in getattr(found, "broken", {}).items()
    ]
    return [
        (outcome.name, _radius(outcome.epsilon), accuracy, str(int(broken.sum())), length, *work),
        *stages,
    ]


def _radius(epsilon: Any) -> str:
    if epsilon is None:
        return "smallest"
    return (
        f"{float(epsilon):g}"
        if np.ndim(epsilon) == 0
        else f"{np.min(epsilon):g} .. {np.max(epsilon):g}"
    )


def _radii(outcomes: tuple[Outcome, ...]) -> list[Any]:
    """The radii of the attacks, each once: the numbers in their order, then those of one for each example."""
    given = [outcome.epsilon for outcome in outcomes if outcome.epsilon is not None]
    numbers = sorted({float(epsilon) for epsilon in given if np.ndim(epsilon) == 0})
    arrays = {np.asarray(epsilon).tobytes(): epsilon for epsilon in given if np.ndim(epsilon)}
    return [*numbers, *arrays.values()]
