"""Rounding error of a gradient in float32, bfloat16 and float16, compared with a bound.

The variables are rounded to the dtype. At the rounded values the gradient is computed in that dtype
and in float64; the error is the root mean square of the difference. The bound is the error that
rounding makes unavoidable: the spread of gradients that are computed in float64 with random
perturbations as large as the rounding errors of the dtype (`_rounding_error`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffprog.checks._finite_differences import cast_cotangent, value_and_gradient
from diffprog.checks._gradient_function import GradientUnderTest, Variables, cast, cast_constants
from diffprog.checks._kinks import Branches, find_branches, first_branch_change
from diffprog.checks._report import Precision
from diffprog.checks._rounding_error import rounding_spread

DTYPES = ("float32", "bfloat16", "float16")
_SLACK = 4.0  # the spread is of autodiff's formula, not the rule's, and of four samples only


def measure_precision(
    test: GradientUnderTest, paths: list[str], dy: Any
) -> tuple[list[Precision], list[str]]:
    """Measure the rounding errors of a gradient in float32, bfloat16 and float16.

    Args:
        test: the function and its gradient under test.
        paths: paths of the variables whose gradients are measured.
        dy: float64 cotangent of the function's output.

    Returns:
        A list with one `Precision` (error and bound) per path and dtype, and a list with a note on
        each dtype that cannot be assessed.
    """
    precision, notes = [], []
    for dtype in DTYPES:
        try:
            precision += _precision_in(dtype, test, paths, dy)
        except _NotComparableError as reason:
            notes.append(f"{dtype}: not assessed, {reason}")
    return precision, notes


class _NotComparableError(Exception):
    """Raised if a gradient in low precision cannot be compared with the one in float64.

    The function fails in this dtype, or has another value there than in float64.
    """


def _precision_in(
    dtype: str, test: GradientUnderTest, paths: list[str], dy: Any
) -> list[Precision]:
    rounded, info = cast(test.variables, dtype), jnp.finfo(dtype)
    # Constants are rounded to the dtype, then widened: both evaluations see the same numbers.
    test = cast_constants(cast_constants(test, dtype), np.float64)
    low_dy = jax.tree.map(lambda leaf: leaf.astype(dtype), dy)
    y, got, branches = _evaluate_below_float64(cast_constants(test, dtype), rounded, low_dy)
    with jax.enable_x64(True):
        wide = cast(rounded, np.float64)
        wide_dy = cast_cotangent(test.function, wide, low_dy)
        # On another branch the function has another gradient, not an inexact one.
        kink = first_branch_change(find_branches(test.function, wide), branches)
        if kink is not None:
            raise _NotComparableError(f"rounding changes the branch of {kink}")
        exact_y, want = value_and_gradient(test, wide, wide_dy)
        eps = float(info.eps)
        subnormal = float(info.smallest_subnormal)
        spread = rounding_spread(test.function, wide, wide_dy, eps, subnormal)
    for low, exact, deviation in zip(*map(jax.tree.leaves, (y, exact_y, spread.y)), strict=True):
        if _rms(_wide(low) - _wide(exact)) > _SLACK * (_rms(deviation) + eps * _rms(exact)):
            raise _NotComparableError(
                "the function has another value in this dtype "
                "(random draws depend on the dtype; sums may overflow)"
            )
    return [
        Precision(
            path,
            dtype,
            error=_rms(_wide(got[path]) - np.asarray(want[path])),
            bound=_SLACK * float(np.hypot(_rms(spread.gradient[path]), eps * _rms(want[path]))),
        )
        for path in paths
    ]


def _evaluate_below_float64(
    test: GradientUnderTest, variables: Variables, dy: Any
) -> tuple[Any, dict[str, Any], dict[str, Branches]]:
    with jax.enable_x64(False):
        try:
            dy = cast_cotangent(test.function, variables, dy)
            return *value_and_gradient(test, variables, dy), find_branches(test.function, variables)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise _NotComparableError(f"raises {str(error).splitlines()[0]}") from None


def _wide(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def _rms(array: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(array, np.float64)))))
