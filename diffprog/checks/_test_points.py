"""The points at which a gradient is checked, and what the claim and autodiff say there.

The given point may hide a bug: zeros, ones and symmetric weights make wrong formulas right. So there is a second one, generic: every
number of random sign and of a magnitude drawn log-uniformly around the size of its leaf.

Two programs for one gradient differ by rounding. What of a difference that explains is the tolerance: the sensitivity of each number to
rounding (`_rounding`) times the unit of float64, and a factor for a formula that loses up to three digits more.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from diffprog.checks._finite_differences import automatic, cotangent, size_of, value_and_claimed
from diffprog.checks._gradient_function import Claim, Variables
from diffprog.checks._kinks import nearest_kink
from diffprog.checks._rounding_error import spread

AT_KINK = 2.0**-40  # margins below this are zero but for rounding
SLACK = 2.0**10  # another formula for the same gradient may lose three digits more
ULPS = 8  # of the largest number of the leaf
_DISTURBED = 2.0**-30
_TRIES = 4


class Point(NamedTuple):
    """The witnesses at one point; `want` and `tolerance` hold arrays of the leaf's shape, `got` whatever was claimed."""

    name: str
    variables: Variables
    dy: Any
    y: Any
    got: dict[str, Any]
    want: dict[str, np.ndarray]
    tolerance: dict[str, np.ndarray]
    unit: float
    kinked: bool


def observe(claim: Claim, name: str, variables: Variables, dy: Any, unit: float) -> Point:
    """Ask the claim and autodiff; `unit` is the relative rounding error of the function."""
    want = automatic(claim, variables, dy)
    y, got = value_and_claimed(claim, variables, dy)
    disturbed = max(_DISTURBED, unit)
    moved = spread(claim, variables, dy, disturbed).gradient
    slack = SLACK if unit < _DISTURBED else ULPS
    tolerance = {
        path: _tolerance(np.asarray(want[path]), np.asarray(moved[path]) / disturbed, unit, slack)
        for path in want
    }
    nearest = nearest_kink(claim, variables)
    return Point(
        name,
        variables,
        dy,
        y,
        got,
        {path: np.asarray(leaf) for path, leaf in want.items()},
        tolerance,
        unit,
        nearest is not None and nearest.margin < AT_KINK,
    )


def _tolerance(want: np.ndarray, sensitivity: np.ndarray, unit: float, slack: float) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        largest = np.nanmax(np.abs(want), initial=0.0, where=np.isfinite(want))
        return (
            slack * unit * (np.nan_to_num(sensitivity, posinf=0.0) + np.abs(np.nan_to_num(want)))
            + ULPS * unit * largest
        )


def generic_point(claim: Claim, given: Point, draw: np.random.Generator) -> Point | None:
    """A point of log-uniform magnitudes, over two and a half decades, and random signs; with the given signs if f needs them.

    Where a gradient is zero at the given point and here too, another point may show it; a few are tried.
    """
    best, fewest = None, len(given.want) + 1
    for signed in [True] * _TRIES + [False]:
        moved = {path: _scattered(leaf, signed, draw) for path, leaf in given.variables.items()}
        point = observe(claim, "generic", moved, cotangent(claim, moved, draw), given.unit)
        blind = sum(
            not point.want[path].any() and not given.want[path].any() for path in given.want
        )
        if (
            all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((point.y, point.want)))
            and blind < fewest
        ):
            best, fewest = point, blind
        if fewest == 0:
            break
    return best


def _scattered(leaf: np.ndarray, signed: bool, draw: np.random.Generator) -> np.ndarray:
    magnitude = size_of(leaf) * 10 ** draw.uniform(-2.0, 0.5, leaf.shape)
    return np.asarray(
        magnitude * (draw.choice([-1.0, 1.0], leaf.shape) if signed else np.sign(leaf))
    )
