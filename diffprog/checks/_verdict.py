"""Verdict on the gradient of one leaf at one point.

The gradient under test is compared with autodiff element by element. Where they differ by more than
rounding, finite differences along that coordinate decide. Where they agree, both may still be
wrong, by a custom rule inside the function or because autodiff meets a kink: finite differences
along a random direction and a few coordinates must agree too.
"""

from typing import Any

import jax
import numpy as np

from diffprog.checks._diagnosis import diagnose, diagnose_shape
from diffprog.checks._finite_differences import (
    DirectionalDerivatives,
    Estimate,
    coordinate_direction,
    directional_derivatives,
    embed_direction,
    partial_derivatives,
    random_direction,
)
from diffprog.checks._gradient_function import GradientUnderTest
from diffprog.checks._kinks import kinks_along, nearest_kink
from diffprog.checks._report import Finding, worst
from diffprog.checks._test_points import KINK_MARGIN, TestPoint

_MAX_ELEMENTS = 12  # elements of a leaf that are compared with finite differences
_MIN_DISAGREEMENT = 1e-6  # relative, for finite differences to refute both other gradients


def check_leaf(
    test: GradientUnderTest, point: TestPoint, path: str, rng: np.random.Generator
) -> Finding:
    """Compare the gradient of one leaf with autodiff and finite differences at one point."""
    want, tolerance = point.want[path], point.tolerance[path]
    if path not in point.got:
        index, zeros = (0,) * want.ndim, np.zeros_like(want)
        return _finding(point, path, "wrong", index, zeros, hint="no gradient is returned")
    got = np.asarray(point.got[path], np.float64)
    if got.shape != want.shape:
        hint = diagnose_shape(got.shape, want.shape)
        return Finding(path, "wrong", (), np.nan, np.nan, np.inf, 0.0, hint=hint, point=point.name)
    if not np.isfinite(got).all():
        return _nonfinite_finding(test, point, path, got)
    with np.errstate(invalid="ignore"):
        excess = np.where(np.isfinite(want), np.abs(got - want) - tolerance, np.inf)
    if (excess > 0).any():
        return _resolve_difference(test, point, path, got, excess)
    return _confirm(test, point, path, got, rng)


def _finding(
    point: TestPoint,
    path: str,
    verdict: str,
    index: tuple[int, ...],
    got: np.ndarray,
    reference: Estimate | None = None,
    hint: str = "",
    interval: tuple[float, float] | None = None,
) -> Finding:
    """Build a finding; `reference` takes the place of the reference gradient and its tolerance."""
    if reference is None:
        reference = Estimate(float(point.want[path][index]), float(point.tolerance[path][index]))
    value = float(got[index])
    return Finding(
        path,
        verdict,
        index,
        value,
        reference.value,
        abs(value - reference.value),
        reference.error,
        hint,
        point=point.name,
        interval=interval,
    )


def _nonfinite_finding(
    test: GradientUnderTest, point: TestPoint, path: str, got: np.ndarray
) -> Finding:
    nonfinite = ~np.isfinite(got)
    index = _unravel(np.argmax(nonfinite), got.shape)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(point.y)):
        cause = "the value of the function is not finite either"
    elif not np.isfinite(point.want[path][index]):
        cause = "autodiff is not finite either"
        kink = nearest_kink(test, point.variables)
        if kink is not None and kink.margin < KINK_MARGIN:
            cause += f": {kink}"
    else:
        cause = "autodiff is finite"
    hint = f"{cause}; {int(nonfinite.sum())} of {nonfinite.size} elements"
    return _finding(point, path, "nonfinite", index, got, hint=hint)


def _resolve_difference(
    test: GradientUnderTest, point: TestPoint, path: str, got: np.ndarray, excess: np.ndarray
) -> Finding:
    """Return the most severe finding among the elements that differ most from autodiff.

    Args:
        excess: |got - want| - tolerance of each element.
    """
    tolerance = point.tolerance[path]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(excess > 0, (excess + tolerance) / tolerance, -1.0).ravel()
    candidates = np.argsort(-np.nan_to_num(ratio, nan=np.inf), kind="stable")[:_MAX_ELEMENTS]
    finding = worst(
        [
            _resolve_element(test, point, path, got, _unravel(flat, got.shape))
            for flat in candidates
            if excess.ravel()[flat] > 0
        ]
    )
    if finding.verdict != "wrong":
        return finding
    want = point.want[path]
    hint = diagnose(test, point.variables, point.dy, path, got, want, excess > 0)
    return finding._replace(hint=hint)


def _resolve_element(
    test: GradientUnderTest, point: TestPoint, path: str, got: np.ndarray, index: tuple[int, ...]
) -> Finding:
    """Decide by finite differences between the gradient under test and autodiff."""
    want = point.want[path][index]
    derivatives = _partial_derivatives(test, point, path, index)
    if derivatives.is_kink:
        return _kink_finding(test, point, path, got, index, derivatives)
    central = derivatives.central
    got_agrees = abs(got[index] - central.value) <= central.error
    autodiff_agrees = abs(want - central.value) <= central.error
    if got_agrees and not autodiff_agrees:
        hint = f"jax.grad gives {want:.6g} here"
        return _finding(point, path, "autodiff-wrong", index, got, central, hint)
    # The derivative shown as wanted is autodiff's, unless finite differences contradict it.
    if not autodiff_agrees and np.isfinite(central.value):
        return _finding(point, path, "wrong", index, got, central)
    if np.isfinite(want):
        return _finding(point, path, "wrong", index, got)
    hint = "finite, but neither autodiff nor finite differences are"
    return _finding(point, path, "nonfinite", index, got, hint=hint)


def _kink_finding(
    test: GradientUnderTest,
    point: TestPoint,
    path: str,
    got: np.ndarray,
    index: tuple[int, ...],
    derivatives: DirectionalDerivatives,
) -> Finding:
    """Check if an element at a kink lies between the one-sided derivatives."""
    low, high = derivatives.interval
    margin = derivatives.left.error + derivatives.right.error + _MIN_DISAGREEMENT * (high - low)
    direction, _ = coordinate_direction(point.variables, path, index)
    kinks = kinks_along(test, point.variables, direction)
    hint = "; ".join([f"one-sided derivatives {low:.6g} and {high:.6g}", *map(str, kinks[:1])])
    value = float(got[index])
    if not low - margin <= value <= high + margin:
        nearer = Estimate(low if value < low else high, margin)
        return _finding(point, path, "invalid-kink", index, got, nearer, hint, (low, high))
    want = float(point.want[path][index])
    # A small step crosses the kink, but the point itself is not at it: the gradient is unique.
    agrees = abs(value - want) <= point.tolerance[path][index]
    if agrees and kinks and kinks[0].margin > KINK_MARGIN:
        return _finding(point, path, "ok", index, got)
    reference = Estimate(want, max(margin, high - low))
    return _finding(point, path, "kink", index, got, reference, hint, (low, high))


def _confirm(
    test: GradientUnderTest,
    point: TestPoint,
    path: str,
    got: np.ndarray,
    rng: np.random.Generator,
) -> Finding:
    """Compare a gradient that agrees with autodiff with finite differences."""
    if not point.at_kink:
        finding = _confirm_along_random_direction(test, point, path, got, rng)
        if finding is not None:
            return finding
    # A generic point is almost surely away from kinks, so the random direction is enough there.
    if point.name == "given":
        finding = worst(
            [
                _confirm_element(test, point, path, got, index)
                for index in _elements_to_confirm(point, path, got)
            ]
        )
        if finding.verdict != "ok":
            return finding
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(np.abs(got - point.want[path]) / point.tolerance[path])
    verdict = "ok" if got.any() or point.want[path].any() else "degenerate"
    return _finding(point, path, verdict, _unravel(np.argmax(ratio), got.shape), got)


def _elements_to_confirm(point: TestPoint, path: str, got: np.ndarray) -> list[tuple[int, ...]]:
    """Select all elements of a small leaf; else the largest, and some at zero (often kinks)."""
    if got.size <= _MAX_ELEMENTS:
        return list(np.ndindex(got.shape))
    zeros = np.flatnonzero(np.asarray(point.variables[path]) == 0)[: _MAX_ELEMENTS // 2]
    return [_unravel(flat, got.shape) for flat in (int(np.argmax(np.abs(got))), *zeros)]


def _confirm_element(
    test: GradientUnderTest, point: TestPoint, path: str, got: np.ndarray, index: tuple[int, ...]
) -> Finding:
    derivatives = _partial_derivatives(test, point, path, index)
    if derivatives.is_kink:
        return _kink_finding(test, point, path, got, index, derivatives)
    if _is_refuted(got[index], derivatives.central, abs(got[index])):
        return _refuted_finding(point, path, got, index, derivatives.central)
    return _finding(point, path, "ok", index, got)


def _confirm_along_random_direction(
    test: GradientUnderTest, point: TestPoint, path: str, got: np.ndarray, rng: np.random.Generator
) -> Finding | None:
    """Compare along a random direction; if that fails, bisect the direction down to one element."""
    direction = random_direction(point.variables, path, rng)

    def is_refuted_along(direction: np.ndarray) -> bool:
        derivatives = directional_derivatives(
            test,
            point.variables,
            point.dy,
            embed_direction(point.variables, path, direction),
            unit_roundoff=point.unit_roundoff,
        )
        products = got * direction
        return not derivatives.is_kink and _is_refuted(
            float(products.sum()), derivatives.central, float(np.abs(products).sum())
        )

    if not is_refuted_along(direction):
        return None
    # Invariant: the disagreement is within elements low .. high - 1.
    low, high = 0, direction.size
    while high - low > 1:
        middle = (low + high) // 2
        half = np.zeros(direction.size)
        half[low:middle] = direction.ravel()[low:middle]
        in_first_half = is_refuted_along(half.reshape(direction.shape))
        low, high = (low, middle) if in_first_half else (middle, high)
    index = _unravel(low, direction.shape)
    central = _partial_derivatives(test, point, path, index).central
    if not _is_refuted(got[index], central, abs(got[index])):
        return None
    return _refuted_finding(point, path, got, index, central)


def _partial_derivatives(
    test: GradientUnderTest, point: TestPoint, path: str, index: tuple[int, ...]
) -> DirectionalDerivatives:
    return partial_derivatives(test, point.variables, point.dy, path, index, point.unit_roundoff)


def _is_refuted(value: float, estimate: Estimate, size: float) -> bool:
    """Check if a derivative, a sum of terms of total magnitude `size`, contradicts an estimate."""
    tolerance = estimate.error + _MIN_DISAGREEMENT * (abs(estimate.value) + size)
    return bool(abs(value - estimate.value) > tolerance)


def _refuted_finding(
    point: TestPoint, path: str, got: np.ndarray, index: tuple[int, ...], estimate: Estimate
) -> Finding:
    hint = (
        "autodiff agrees, but finite differences do not: "
        "a custom rule or a stop_gradient inside the function, or a kink"
    )
    return _finding(point, path, "wrong", index, got, estimate, hint)


def _unravel(flat: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(flat), shape))
