"""The verdict on one leaf at one point.

The claim and autodiff are compared number by number; where they differ by more than rounding explains, the function itself is moved along
that coordinate, and its one-sided slopes decide. Where they agree, the function is moved along a random direction and a few coordinates, as
both may be wrong: through a custom rule inside the function, or where autodiff meets a kink.
"""

from typing import Any

import jax
import numpy as np

from diffprog.checks._diagnosis import hint, shape_hint
from diffprog.checks._finite_differences import (
    Measured,
    along_leaf,
    coordinate,
    random_direction,
    slopes,
)
from diffprog.checks._gradient_function import Claim
from diffprog.checks._kinks import kinks_along, nearest_kink
from diffprog.checks._report import Finding, worst
from diffprog.checks._test_points import AT_KINK, Point

_MOST = 12  # elements of a leaf that the numeric witness is asked about
_PART = 1e-6  # of the derivative: what the numeric witness must miss by to overrule the other two


def judge(claim: Claim, point: Point, path: str, draw: np.random.Generator) -> Finding:
    """The finding on one leaf."""
    want, tolerance = point.want[path], point.tolerance[path]
    if path not in point.got:
        return _finding(
            point,
            path,
            "wrong",
            (0,) * want.ndim,
            np.zeros_like(want),
            hint="no gradient is returned",
        )
    got = np.asarray(point.got[path], np.float64)
    if got.shape != want.shape:
        return Finding(
            path,
            "wrong",
            (),
            np.nan,
            np.nan,
            np.inf,
            0.0,
            shape_hint(got.shape, want.shape),
            point=point.name,
        )
    if not np.isfinite(got).all():
        return _nonfinite(claim, point, path, got)
    with np.errstate(invalid="ignore"):
        over = np.where(np.isfinite(want), np.abs(got - want) - tolerance, np.inf)
    if (over > 0).any():
        return _disputed(claim, point, path, got, over)
    return _undisputed(claim, point, path, got, draw)


def _finding(
    point: Point, path: str, verdict: str, index: tuple[int, ...], got: np.ndarray, **more: Any
) -> Finding:
    want = more.pop("want", float(point.want[path][index]))
    tolerance = more.pop("tolerance", float(point.tolerance[path][index]))
    value = float(got[index])
    return Finding(
        path, verdict, index, value, want, abs(value - want), tolerance, point=point.name, **more
    )


def _nonfinite(claim: Claim, point: Point, path: str, got: np.ndarray) -> Finding:
    bad = ~np.isfinite(got)
    index = _index(np.argmax(bad), got.shape)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(point.y)):
        said = "the value of the function is not finite either"
    elif not np.isfinite(point.want[path][index]):
        said = "autodiff is not finite either"
        nearest = nearest_kink(claim, point.variables)
        said += f": {nearest}" if nearest is not None and nearest.margin < AT_KINK else ""
    else:
        said = "autodiff is finite"
    return _finding(
        point,
        path,
        "nonfinite",
        index,
        got,
        hint=f"{said}; {int(bad.sum())} of {bad.size} elements",
    )


def _disputed(claim: Claim, point: Point, path: str, got: np.ndarray, over: np.ndarray) -> Finding:
    """The claim and autodiff differ: the gravest verdict among the elements where they do so most."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(
            over > 0, (over + point.tolerance[path]) / point.tolerance[path], -1.0
        ).ravel()
    candidates = np.argsort(-np.nan_to_num(ratio, nan=np.inf), kind="stable")[:_MOST]
    found = [
        _decide(claim, point, path, got, _index(flat, got.shape))
        for flat in candidates
        if over.ravel()[flat] > 0
    ]
    finding = worst(found)
    if finding.verdict != "wrong":
        return finding
    return finding._replace(
        hint=hint(claim, point.variables, point.dy, path, got, point.want[path], over > 0)
    )


def _decide(
    claim: Claim, point: Point, path: str, got: np.ndarray, index: tuple[int, ...]
) -> Finding:
    """One element on which claim and autodiff differ, by the numeric witness."""
    direction, length = coordinate(point.variables, path, index)
    seen = slopes(claim, point.variables, point.dy, direction, unit=point.unit)
    value, want = got[index] * length, point.want[path][index] * length
    if seen.kinked:
        return _at_kink(claim, point, path, got, index)
    measured = seen.central
    claim_stands, autodiff_stands = _stands(value, measured), _stands(want, measured)
    if claim_stands and not autodiff_stands:
        more = {"want": measured.value / length, "tolerance": measured.bar / length}
        return _finding(
            point,
            path,
            "autodiff-wrong",
            index,
            got,
            hint=f"jax.grad says {want / length:.6g} here",
            **more,
        )
    if not autodiff_stands and np.isfinite(measured.value):
        return _finding(
            point,
            path,
            "wrong",
            index,
            got,
            want=measured.value / length,
            tolerance=measured.bar / length,
        )
    if np.isfinite(want):
        return _finding(point, path, "wrong", index, got)
    return _finding(
        point,
        path,
        "nonfinite",
        index,
        got,
        hint="the claim is finite, autodiff and the numeric witness are not",
    )


def _stands(value: float, measured: Measured) -> bool:
    return bool(abs(value - measured.value) <= measured.bar)


def _at_kink(
    claim: Claim, point: Point, path: str, got: np.ndarray, index: tuple[int, ...]
) -> Finding:
    direction, length = coordinate(point.variables, path, index)
    seen = slopes(claim, point.variables, point.dy, direction, unit=point.unit)
    low, high = (end / length for end in seen.interval)
    margin = (seen.left.bar + seen.right.bar) / length + _PART * (high - low)
    kinks = kinks_along(claim, point.variables, direction)
    interval = f"one-sided derivatives {low:.6g} and {high:.6g}" + (
        f"; {kinks[0]}" if kinks else ""
    )
    value = float(got[index])
    if not low - margin <= value <= high + margin:
        end = low if value < low else high
        return _finding(
            point,
            path,
            "invalid-kink",
            index,
            got,
            want=end,
            tolerance=margin,
            hint=interval,
            interval=(low, high),
        )
    agreed = abs(value - point.want[path][index]) <= point.tolerance[path][index]
    if agreed and kinks and kinks[0].margin > AT_KINK:
        return _finding(point, path, "ok", index, got)
    return _finding(
        point,
        path,
        "kink",
        index,
        got,
        tolerance=max(margin, high - low),
        hint=interval,
        interval=(low, high),
    )


def _undisputed(
    claim: Claim, point: Point, path: str, got: np.ndarray, draw: np.random.Generator
) -> Finding:
    """Claim and autodiff agree; does the function move as they say?"""
    if not point.kinked and (element := _overruled(claim, point, path, draw)) is not None:
        return element
    if point.name == "given":
        found = [_confirm(claim, point, path, got, index) for index in _asked(point, path, got)]
        if (finding := worst(found)).verdict != "ok":
            return finding
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(np.abs(got - point.want[path]) / point.tolerance[path])
    verdict = "ok" if got.any() or point.want[path].any() else "degenerate"
    return _finding(point, path, verdict, _index(np.argmax(ratio), got.shape), got)


def _asked(point: Point, path: str, got: np.ndarray) -> list[tuple[int, ...]]:
    """All elements of a small leaf; of a large one the greatest, and some at zero, where kinks often are."""
    if got.size <= _MOST:
        return list(np.ndindex(got.shape))
    zeros = np.flatnonzero(np.asarray(point.variables[path]) == 0)[: _MOST // 2]
    return [_index(flat, got.shape) for flat in (int(np.argmax(np.abs(got))), *zeros)]


def _confirm(
    claim: Claim, point: Point, path: str, got: np.ndarray, index: tuple[int, ...]
) -> Finding:
    direction, length = coordinate(point.variables, path, index)
    seen = slopes(claim, point.variables, point.dy, direction, unit=point.unit)
    if seen.kinked:
        return _at_kink(claim, point, path, got, index)
    measured = seen.central
    if _misses(got[index] * length, measured, abs(got[index]) * length):
        return _both_wrong(
            point, path, index, Measured(measured.value / length, measured.bar / length)
        )
    return _finding(point, path, "ok", index, got)


def _misses(value: float, measured: Measured, size: float) -> bool:
    return bool(abs(value - measured.value) > measured.bar + _PART * (abs(measured.value) + size))


def _both_wrong(point: Point, path: str, index: tuple[int, ...], measured: Measured) -> Finding:
    said = "autodiff says the same, yet the function moves otherwise: a rule or a stop_gradient inside it, or a kink"
    return _finding(
        point,
        path,
        "wrong",
        index,
        np.asarray(point.got[path], np.float64),
        want=measured.value,
        tolerance=measured.bar,
        hint=said,
    )


def _overruled(claim: Claim, point: Point, path: str, draw: np.random.Generator) -> Finding | None:
    """Ask along a random direction; if the function moves otherwise, halve the direction down to one element."""
    direction = random_direction(point.variables, path, draw)
    got = np.asarray(point.got[path], np.float64)

    def missed(part: np.ndarray) -> bool:
        seen = slopes(
            claim,
            point.variables,
            point.dy,
            along_leaf(point.variables, path, part),
            unit=point.unit,
        )
        return not seen.kinked and _misses(
            float((got * part).sum()), seen.central, float(np.abs(got * part).sum())
        )

    if not missed(direction):
        return None
    low, high = 0, direction.size
    while high - low > 1:
        middle = (low + high) // 2
        part = np.zeros(direction.size)
        part[low:middle] = direction.ravel()[low:middle]
        low, high = (low, middle) if missed(part.reshape(direction.shape)) else (middle, high)
    index = _index(low, direction.shape)
    along, length = coordinate(point.variables, path, index)
    measured = slopes(claim, point.variables, point.dy, along, unit=point.unit).central
    if not _misses(float(got[index]) * length, measured, abs(float(got[index])) * length):
        return None
    return _both_wrong(point, path, index, Measured(measured.value / length, measured.bar / length))


def _index(flat: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(flat), shape))
