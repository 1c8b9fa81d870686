"""The claimed gradient in float32, bfloat16 and float16, against what rounding explains.

The variables are rounded to the dtype first. The rule is run on them in that dtype and in float64, and the root mean square of the
difference is held against the spread of `_rounding` at the dtype's eps: the error that the function's own sensitivity makes unavoidable.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffprog.checks._finite_differences import fitted, value_and_claimed
from diffprog.checks._gradient_function import Claim, Variables, cast, in_dtype
from diffprog.checks._kinks import Choice, choices, first_changed
from diffprog.checks._rounding_error import Precision, spread

DTYPES = ("float32", "bfloat16", "float16")
_SLACK = 4.0  # for the rule's formula, which is another than autodiff's, and for four samples


def precisions(claim: Claim, paths: list[str], dy: Any) -> tuple[list[Precision], list[str]]:
    """The error and bound of each leaf in each dtype, and what could not be measured."""
    found, notes = [], []
    for dtype in DTYPES:
        try:
            found += _precision(claim, paths, dy, dtype)
        except _Incomparable as reason:
            notes.append(f"{dtype}: {reason}")
    return found, notes


class _Incomparable(Exception):
    """The function is another one, or none, in this dtype."""


def _precision(claim: Claim, paths: list[str], dy: Any, dtype: str) -> list[Precision]:
    rounded, limits = cast(claim.variables, dtype), jnp.finfo(dtype)
    claim = in_dtype(in_dtype(claim, dtype), np.float64)
    low_dy = jax.tree.map(lambda leaf: leaf.astype(dtype), dy)
    y, got, chosen = _run_in(in_dtype(claim, dtype), rounded, low_dy)
    with jax.enable_x64(True):
        wide = cast(rounded, np.float64)
        wide_dy = fitted(claim, wide, low_dy)
        if (crossed := first_changed(choices(claim, wide), chosen)) is not None:
            raise _Incomparable(f"not judged, rounding takes {crossed}, to its other side")
        exact_y, want = value_and_claimed(claim, wide, wide_dy)
        moved = spread(claim, wide, wide_dy, float(limits.eps), float(limits.smallest_subnormal))
    pairs = list(zip(*map(jax.tree.leaves, (y, exact_y, moved.y)), strict=True))
    if any(
        _rms(_wide(low) - _wide(high)) > _SLACK * (_rms(near) + float(limits.eps) * _rms(high))
        for low, high, near in pairs
    ):
        raise _Incomparable(
            "not judged, the value of the function itself is another (random draws depend on the dtype; sums may overflow)"
        )
    return [
        _of_leaf(path, dtype, got[path], want[path], moved.gradient[path], float(limits.eps))
        for path in paths
    ]


def _run_in(
    claim: Claim, variables: Variables, dy: Any
) -> tuple[Any, dict[str, Any], dict[str, Choice]]:
    with jax.enable_x64(False):
        try:
            return *value_and_claimed(claim, variables, fitted(claim, variables, dy)), choices(
                claim, variables
            )
        except (TypeError, ValueError, NotImplementedError) as error:
            raise _Incomparable(f"does not run, {str(error).splitlines()[0]}") from None


def _of_leaf(path: str, dtype: str, got: Any, want: Any, moved: Any, eps: float) -> Precision:
    bound = _SLACK * float(np.hypot(_rms(moved), eps * _rms(want)))
    return Precision(path, dtype, _rms(_wide(got) - np.asarray(want)), bound)


def _wide(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def _rms(array: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(array, np.float64)))))
