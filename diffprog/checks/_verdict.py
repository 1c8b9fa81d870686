"""Decide if the gradient with respect to one array is correct at one point.

The gradient under test is compared with autodiff element by element. Where they differ by more than
rounding, finite differences along that coordinate decide which is correct. Where they agree, both
may still be wrong, by a custom rule inside the function or because autodiff meets a kink: finite
differences along a random direction and a few coordinates must agree too.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from diffprog.checks._diagnosis import diagnose, diagnose_shape
from diffprog.checks._finite_differences import (
    DirectionalDerivatives,
    Estimate,
    coordinate_direction,
    directional_derivatives,
    embed_direction,
    random_direction,
)
from diffprog.checks._gradient_function import Variables
from diffprog.checks._kinks import kinks_along, nearest_kink
from diffprog.checks._report import Finding, worst
from diffprog.checks._test_points import KINK_MARGIN, TestPoint

_MAX_ELEMENTS = 12  # elements of a leaf that are compared with finite differences
_MIN_DISAGREEMENT = 1e-6  # relative, for finite differences to refute both other gradients


class _Leaf(NamedTuple):
    """The tested and the reference gradient with respect to one array of the arguments.

    Attributes:
        point: record of the evaluation: function, values of the variables, all gradients.
        path: path of the array, such as "params['weight']".
        got: gradient under test.
        want: reference gradient, by autodiff.
        tolerance: per element, the largest |got - want| that rounding errors can explain.
    """

    point: TestPoint
    path: str
    got: np.ndarray
    want: np.ndarray
    tolerance: np.ndarray

    def finding(
        self,
        verdict: str,
        index: tuple[int, ...],
        reference: Estimate | None = None,
        hint: str = "",
        interval: tuple[float, float] | None = None,
    ) -> Finding:
        """Return a `Finding` (the result for this array) that shows the element at `index`.

        The element is compared with autodiff, or with the estimate `reference` if it is given.
        `interval` are the one-sided derivatives at a kink.
        """
        got = float(self.got[index])
        want, tolerance = reference or (float(self.want[index]), float(self.tolerance[index]))
        finding = Finding(self.path, verdict, index, got, want, abs(got - want), tolerance, hint)
        return finding._replace(point=self.point.name, interval=interval)

    def derivatives_along(self, direction: Variables) -> DirectionalDerivatives:
        """Estimate central and one-sided derivatives along a direction by finite differences."""
        point = self.point
        return directional_derivatives(
            point.test.function, point.variables, point.dy, direction, point.unit_roundoff
        )

    def partial_derivatives(self, index: tuple[int, ...]) -> DirectionalDerivatives:
        """Estimate central and one-sided derivatives of dy f with respect to one array element."""
        direction, length = coordinate_direction(self.point.variables, self.path, index)
        along = self.derivatives_along(direction)
        # Division by the length is exact: it is a power of two.
        return DirectionalDerivatives(
            *(Estimate(estimate.value / length, estimate.error / length) for estimate in along)
        )


def check_leaf(point: TestPoint, path: str, rng: np.random.Generator) -> Finding:
    """Check the gradient of one array at one point against autodiff and finite differences.

    `path` names the array, such as "params['weight']". Returns a `Finding` with the verdict and the
    worst element.
    """
    want, tolerance = point.want[path], point.tolerance[path]
    if path not in point.got:
        leaf = _Leaf(point, path, np.zeros_like(want), want, tolerance)
        return leaf.finding("wrong", (0,) * want.ndim, hint="no gradient is returned")
    got = np.asarray(point.got[path], np.float64)
    if got.shape != want.shape:
        hint = diagnose_shape(got.shape, want.shape)
        return Finding(path, "wrong", (), np.nan, np.nan, np.inf, 0.0, hint=hint, point=point.name)
    leaf = _Leaf(point, path, got, want, tolerance)
    if not np.isfinite(got).all():
        return _nonfinite_finding(leaf)
    with np.errstate(invalid="ignore"):
        excess = np.where(np.isfinite(want), np.abs(got - want) - tolerance, np.inf)
    if (excess > 0).any():
        return _resolve_difference(leaf, excess)
    return _confirm(leaf, rng)


def _nonfinite_finding(leaf: _Leaf) -> Finding:
    """Return a finding with verdict "nonfinite" for a gradient with NaN or infinite elements."""
    nonfinite = ~np.isfinite(leaf.got)
    index = _unravel(np.argmax(nonfinite), nonfinite.shape)
    if not all(np.isfinite(y).all() for y in jax.tree.leaves(leaf.point.y)):
        cause = "the value of the function is not finite either"
    elif not np.isfinite(leaf.want[index]):
        cause = "autodiff is not finite either"
        kink = nearest_kink(leaf.point.test.function, leaf.point.variables)
        if kink is not None and kink.margin < KINK_MARGIN:
            cause += f": {kink}"
    else:
        cause = "autodiff is finite"
    hint = f"{cause}; {int(nonfinite.sum())} of {nonfinite.size} elements"
    return leaf.finding("nonfinite", index, hint=hint)


def _resolve_difference(leaf: _Leaf, excess: np.ndarray) -> Finding:
    """Decide by finite differences which is wrong where gradient and autodiff differ.

    The elements that differ most are examined, and the most severe finding is returned.

    Args:
        leaf: gradients to compare.
        excess: |got - want| - tolerance of each element.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = (excess + leaf.tolerance) / leaf.tolerance
    ratio = np.where(excess > 0, relative, -1.0).ravel()
    candidates = np.argsort(-np.nan_to_num(ratio, nan=np.inf), kind="stable")[:_MAX_ELEMENTS]
    finding = worst(
        [
            _resolve_element(leaf, _unravel(flat, leaf.got.shape))
            for flat in candidates
            if excess.ravel()[flat] > 0
        ]
    )
    if finding.verdict != "wrong":
        return finding
    test, _, variables, dy, *_ = leaf.point
    hint = diagnose(test, variables, dy, leaf.path, leaf.got, leaf.want, excess > 0)
    return finding._replace(hint=hint)


def _resolve_element(leaf: _Leaf, index: tuple[int, ...]) -> Finding:
    """Decide by finite differences whether the gradient or autodiff is correct at one element.

    Returns the finding for this element.
    """
    got, want = leaf.got[index], leaf.want[index]
    derivatives = leaf.partial_derivatives(index)
    if derivatives.is_kink:
        return _kink_finding(leaf, index, derivatives)
    central = derivatives.central
    autodiff_agrees = abs(want - central.value) <= central.error
    if abs(got - central.value) <= central.error and not autodiff_agrees:
        return leaf.finding("autodiff-wrong", index, central, f"jax.grad gives {want:.6g} here")
    # The derivative shown as wanted is autodiff's, unless finite differences contradict it.
    if not autodiff_agrees and np.isfinite(central.value):
        return leaf.finding("wrong", index, central)
    if np.isfinite(want):
        return leaf.finding("wrong", index)
    hint = "finite, but neither autodiff nor finite differences are"
    return leaf.finding("nonfinite", index, hint=hint)


def _kink_finding(
    leaf: _Leaf, index: tuple[int, ...], derivatives: DirectionalDerivatives
) -> Finding:
    """Return the finding for an element at which the one-sided derivatives differ.

    A gradient between them is a subgradient: the verdict is "kink", or "ok" if the kink is only
    near the point and the gradient is that of autodiff. Otherwise it is "invalid-kink".
    """
    low, high = derivatives.interval
    margin = derivatives.left.error + derivatives.right.error + _MIN_DISAGREEMENT * (high - low)
    direction, _ = coordinate_direction(leaf.point.variables, leaf.path, index)
    kinks = kinks_along(leaf.point.test.function, leaf.point.variables, direction)
    hint = "; ".join([f"one-sided derivatives {low:.6g} and {high:.6g}", *map(str, kinks[:1])])
    value, want = float(leaf.got[index]), float(leaf.want[index])
    if not low - margin <= value <= high + margin:
        nearer = Estimate(low if value < low else high, margin)
        return leaf.finding("invalid-kink", index, nearer, hint, (low, high))
    # A small step crosses the kink, but the point itself is not at it: the gradient is unique.
    agrees = abs(value - want) <= leaf.tolerance[index]
    if agrees and kinks and kinks[0].margin > KINK_MARGIN:
        return leaf.finding("ok", index)
    reference = Estimate(want, max(margin, high - low))
    return leaf.finding("kink", index, reference, hint, (low, high))


def _confirm(leaf: _Leaf, rng: np.random.Generator) -> Finding:
    """Compare a gradient with finite differences too, after it agreed with autodiff.

    Returns the finding.
    """
    if not leaf.point.at_kink:
        finding = _confirm_along_random_direction(leaf, rng)
        if finding is not None:
            return finding
    # A generic point is almost surely away from kinks, so the random direction is enough there.
    if leaf.point.name == "given":
        finding = worst([_confirm_element(leaf, index) for index in _elements_to_confirm(leaf)])
        if finding.verdict != "ok":
            return finding
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(np.abs(leaf.got - leaf.want) / leaf.tolerance)
    verdict = "ok" if leaf.got.any() or leaf.want.any() else "degenerate"
    return leaf.finding(verdict, _unravel(np.argmax(ratio), ratio.shape))


def _elements_to_confirm(leaf: _Leaf) -> list[tuple[int, ...]]:
    """Return the indices of elements to compare with finite differences.

    These are all elements of a small array. For a larger one they are the element with the largest
    gradient and a few where the variable is 0, since kinks are often there.
    """
    shape = leaf.got.shape
    if leaf.got.size <= _MAX_ELEMENTS:
        return list(np.ndindex(shape))
    zeros = np.flatnonzero(np.asarray(leaf.point.variables[leaf.path]) == 0)[: _MAX_ELEMENTS // 2]
    return [_unravel(flat, shape) for flat in (int(np.argmax(np.abs(leaf.got))), *zeros)]


def _confirm_element(leaf: _Leaf, index: tuple[int, ...]) -> Finding:
    """Compare one element with finite differences too, after it agreed with autodiff.

    Returns the finding.
    """
    derivatives = leaf.partial_derivatives(index)
    if derivatives.is_kink:
        return _kink_finding(leaf, index, derivatives)
    return _refuted_finding(leaf, index, derivatives.central) or leaf.finding("ok", index)


def _confirm_along_random_direction(leaf: _Leaf, rng: np.random.Generator) -> Finding | None:
    """Compare a gradient with finite differences along a random direction.

    If they disagree, the direction is bisected down to one element, and the finding for this
    element is returned; otherwise None.
    """
    direction = random_direction(leaf.point.variables, leaf.path, rng)

    def is_refuted_along(direction: np.ndarray) -> bool:
        embedded = embed_direction(leaf.point.variables, leaf.path, direction)
        derivatives = leaf.derivatives_along(embedded)
        products = leaf.got * direction
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
    return _refuted_finding(leaf, index, leaf.partial_derivatives(index).central)


def _is_refuted(value: float, estimate: Estimate, size: float) -> bool:
    """Check if a derivative differs from a finite-difference estimate by more than its error.

    `value` is the derivative. It is a sum; `size` is the sum of the magnitudes of its terms.
    """
    tolerance = estimate.error + _MIN_DISAGREEMENT * (abs(estimate.value) + size)
    return bool(abs(value - estimate.value) > tolerance)


def _refuted_finding(leaf: _Leaf, index: tuple[int, ...], estimate: Estimate) -> Finding | None:
    """Return a "wrong" finding if a gradient element disagrees with finite differences, else None.

    The element is known to agree with autodiff, whose value is then wrong too. `estimate` is the
    derivative by finite differences.
    """
    if not _is_refuted(leaf.got[index], estimate, abs(leaf.got[index])):
        return None
    hint = (
        "autodiff agrees, but finite differences do not: "
        "a custom rule or a stop_gradient inside the function, or a kink"
    )
    return leaf.finding("wrong", index, estimate, hint)


def _unravel(flat: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(flat), shape))
