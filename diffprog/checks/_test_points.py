"""Choose the points at which gradients are compared, and the tolerance of the comparison.

The given point, the arguments that the user passed, may hide a mistake: at zeros, ones or symmetric
weights a wrong formula can give the correct value. So there is a second, generic point: random
signs, and magnitudes sampled log-uniformly around the magnitude of each array.

Two formulas of one gradient differ by rounding. The tolerance is the sensitivity of each element to
rounding (`_rounding_error`) times the unit roundoff, with slack for a formula that loses up to
three more digits.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from diffprog.checks._finite_differences import (
    magnitude,
    random_cotangent,
    reference_gradient,
    value_and_gradient,
)
from diffprog.checks._gradient_function import GradientUnderTest, Variables
from diffprog.checks._kinks import nearest_kink
from diffprog.checks._rounding_error import rounding_spread

KINK_MARGIN = 2.0**-40  # a smaller margin is zero up to rounding
FORMULA_SLACK = 2.0**10  # another formula of the same gradient may lose three more digits
ULPS = 8  # of the largest element of the leaf
_PERTURBATION = 2.0**-30
_ATTEMPTS = 4


class TestPoint(NamedTuple):
    """Gradient under test, reference gradient and tolerance at one value of the variables.

    Attributes:
        test: the function and its gradient under test.
        name: "given" for the arguments that the user passed, "generic" for random ones.
        variables: float64 arrays by path, at which the gradients are evaluated.
        dy: cotangent of the function's output.
        y: value of the function.
        got: gradient under test by path, as the user's code returned it, of any shape and dtype.
        want: reference gradient by path.
        tolerance: largest difference of `got` and `want` that rounding explains, by path.
        unit_roundoff: unit roundoff of the function; above 2^-53 if it computes in float32 or less.
        at_kink: whether the function has a kink here, for example max(a, b) at a = b.
    """

    test: GradientUnderTest
    name: str
    variables: Variables
    dy: Any
    y: Any
    got: dict[str, Any]
    want: dict[str, np.ndarray]
    tolerance: dict[str, np.ndarray]
    unit_roundoff: float
    at_kink: bool


def evaluate_point(
    test: GradientUnderTest, name: str, variables: Variables, dy: Any, unit_roundoff: float
) -> TestPoint:
    """Evaluate the gradient under test, the reference gradient and the tolerance at one point.

    The point is `variables`; `name` is "given" or "generic". `dy` is the cotangent of the output,
    and `unit_roundoff` the relative error of the function's arithmetic.
    """
    reference = reference_gradient(test.function, variables, dy)
    want = {path: np.asarray(leaf) for path, leaf in reference.items()}
    y, got = value_and_gradient(test, variables, dy)
    perturbation = max(_PERTURBATION, unit_roundoff)
    spread = rounding_spread(test.function, variables, dy, perturbation).gradient
    # Three digits of slack are too many for a function that computes in float32 or below.
    slack = FORMULA_SLACK if unit_roundoff < _PERTURBATION else ULPS
    tolerance = {
        path: _tolerance(leaf, np.asarray(spread[path]) / perturbation, unit_roundoff, slack)
        for path, leaf in want.items()
    }
    kink = nearest_kink(test.function, variables)
    at_kink = kink is not None and kink.margin < KINK_MARGIN
    return TestPoint(test, name, variables, dy, y, got, want, tolerance, unit_roundoff, at_kink)


def _tolerance(
    want: np.ndarray, sensitivity: np.ndarray, unit_roundoff: float, slack: float
) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        largest = np.nanmax(np.abs(want), initial=0.0, where=np.isfinite(want))
        relative = np.nan_to_num(sensitivity, posinf=0.0) + np.abs(np.nan_to_num(want))
        return slack * unit_roundoff * relative + ULPS * unit_roundoff * largest


def generic_point(given: TestPoint, rng: np.random.Generator) -> TestPoint | None:
    """Sample random values of all variables, and evaluate the gradients there.

    Magnitudes are around those of the given values. Signs are random, or the given ones if the
    function is finite only for these. Of a few attempts, the point is returned at which the
    fewest variables have a zero gradient that is zero at the given point too. Returns None if the
    function or its gradient is not finite in any attempt.
    """
    best, fewest = None, len(given.want) + 1
    # The last attempt keeps the given signs, for functions such as log and sqrt.
    for random_signs in [True] * _ATTEMPTS + [False]:
        variables = {
            path: _scatter(leaf, random_signs, rng) for path, leaf in given.variables.items()
        }
        dy = random_cotangent(given.test, variables, rng)
        point = evaluate_point(given.test, "generic", variables, dy, given.unit_roundoff)
        zero = sum(not point.want[path].any() and not given.want[path].any() for path in given.want)
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((point.y, point.want)))
        if finite and zero < fewest:
            best, fewest = point, zero
        if fewest == 0:
            break
    return best


def _scatter(leaf: np.ndarray, random_signs: bool, rng: np.random.Generator) -> np.ndarray:
    """Sample an array like `leaf`, with log-uniform magnitudes over 2.5 decades.

    The magnitudes lie around the root mean square of `leaf`; the signs are random or those of it.
    """
    size = magnitude(leaf) * 10 ** rng.uniform(-2.0, 0.5, leaf.shape)
    return np.asarray(
        size * (rng.choice([-1.0, 1.0], leaf.shape) if random_signs else np.sign(leaf))
    )
