"""Taylor's test: the remainder tells a right gradient from a wrong one by its order.

    R(h) = |f(x + h d) - f(x) - h g d|

falls like h^2 if g is the gradient and like h if it is not, d random. On logarithmic axes these are straight lines of slope 2 and 1, down
to the rounding error of f, where every remainder levels out.

Source: the adjoint "Taylor test" of PDE-constrained optimisation; Griewank and Walther, Evaluating Derivatives, 2008.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.checks._finite_differences import along_leaf, random_direction, value_and_claimed
from diffprog.checks._gradient_function import (
    Claim,
    Variables,
    cast,
    compiled,
    function_claim,
    in_dtype,
    require_variables,
)
from diffprog.program import Program

_STEPS = 2.0 ** -np.arange(1, 27)
_FLOOR = 30.0  # remainders below this multiple of the rounding error have no slope
_USED = 4  # of the smallest steps above that


class SlopeReport(NamedTuple):
    """Remainders along a random direction of each leaf.

    Attributes:
        paths: the leaves.
        steps: h, falling.
        remainders: R(h), a row for each leaf.
        rounding: the rounding error of each leaf's remainders.
        orders: the slope of log R against log h at the smallest steps above rounding; infinite where R is rounding at every step.
    """

    paths: tuple[str, ...]
    steps: Float[np.ndarray, " steps"]
    remainders: Float[np.ndarray, "leaves steps"]
    rounding: Float[np.ndarray, " leaves"]
    orders: Float[np.ndarray, " leaves"]

    @property
    def ok(self) -> bool:
        """Every order is nearer to 2 than to 1, or higher."""
        return bool((self.orders > 1.5).all())

    def __str__(self) -> str:
        width = max(map(len, self.paths))
        return "\n".join(
            f"{path.ljust(width)}  order {order:.2f}  {_said(order)}"
            for path, order in zip(self.paths, self.orders, strict=True)
        )


def slope_test(
    f: Callable[..., Any], grad_f: Callable[..., Any], x: Any, *, key: Array
) -> SlopeReport:
    """The order of the Taylor remainder of f with the claimed gradient, leaf by leaf: 2 is right, 1 is wrong.

    Computed in float64.

    Args:
        f: `f(x)`, a float scalar, written in JAX.
        grad_f: `grad_f(x)`, the claimed gradient.
        x: any pytree; its float leaves are moved.
        key: for the directions.

    Raises:
        TypeError, ValueError: functions that are not callable, a value that is not one float; x without float arrays, empty or not finite.

    >>> slope_test(lambda x: (x**3).sum(), lambda x: 3 * x**2, np.array([1.0, 2.0]), key=jax.random.key(0)).orders.round(1)
    array([2.])
    """
    _validation.function("f", f)
    _validation.function("grad_f", grad_f)
    _validation.scalar("f", jax.eval_shape(f, x))
    claim = function_claim(f, grad_f, {"x": x}, 0)
    require_variables(claim.variables)
    _validation.key("key", key)
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    with jax.enable_x64(True):
        claim = in_dtype(claim, np.float64)
        variables = cast(claim.variables, np.float64)
        claimed = value_and_claimed(claim, variables, np.ones(()))[1]
        for path, leaf in variables.items():
            if path not in claimed or np.shape(claimed[path]) != leaf.shape:
                came = list(np.shape(claimed[path])) if path in claimed else "none"
                raise ValueError(
                    f"grad_f must return a gradient of shape {list(leaf.shape)} for {path}, got {came}"
                )
        rows = [
            _of_leaf(claim, variables, np.asarray(claimed[path]), path, draw) for path in variables
        ]
    remainders, rounding = (
        np.array([row for row, _ in rows]),
        np.array([floor for _, floor in rows]),
    )
    orders = np.array([_order(row, floor) for row, floor in rows])
    return SlopeReport(tuple(variables), _STEPS, remainders, rounding, orders)


def _of_leaf(
    claim: Claim, variables: Variables, gradient: np.ndarray, path: str, draw: np.random.Generator
) -> tuple[np.ndarray, float]:
    moved = random_direction(variables, path, draw)
    values = np.asarray(
        _values(
            claim.value,
            variables,
            claim.fixed,
            along_leaf(variables, path, moved),
            np.append(_STEPS, 0.0),
        )
    )
    if not np.isfinite(gradient).all():
        return np.full(len(_STEPS), np.nan), np.nan
    rounding = 2.0**-53 * (
        2 * np.abs(values[-1]) + float(np.abs(gradient * moved).sum()) * _STEPS[-1]
    )
    return np.abs(values[:-1] - values[-1] - _STEPS * float((gradient * moved).sum())), float(
        rounding
    )


@compiled
def _values(
    value: Program, variables: Variables, fixed: dict[str, Any], direction: Variables, steps: Array
) -> Array:
    return jax.lax.map(
        lambda step: value(
            {path: leaf + step * direction[path] for path, leaf in variables.items()}, fixed
        ),
        steps,
    )


def _order(remainders: np.ndarray, rounding: float) -> float:
    if np.isfinite(remainders).sum() < 2:
        return float("nan")
    usable = np.flatnonzero(np.isfinite(remainders) & (remainders > _FLOOR * rounding))
    if len(usable) < 2:
        return float("inf")
    used = usable[-_USED:]
    return float(np.polyfit(np.log(_STEPS[used]), np.log(remainders[used]), 1)[0])


def _said(order: float) -> str:
    return (
        "not finite"
        if np.isnan(order)
        else "right, f is linear"
        if np.isinf(order)
        else "right"
        if order > 1.5
        else "wrong"
    )
