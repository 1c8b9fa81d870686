"""Taylor test: the order of the Taylor remainder tells a correct gradient from a wrong one.

For a function f, a random direction d and steps h, the remainder

    R(h) = |f(x + h d) - f(x) - h g d|

falls like h^2 if g is the gradient of f at x, and like h if it is not. On logarithmic axes these
are lines of slope 2 and 1, down to the rounding error of f, where R levels out.

Source: the Taylor test of adjoint methods in PDE-constrained optimization; Griewank and Walther,
Evaluating Derivatives, 2008.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.checks._finite_differences import (
    embed_direction,
    random_direction,
    value_and_gradient,
    values_along,
)
from diffprog.checks._gradient_function import (
    Variables,
    WithConstants,
    cast,
    cast_constants,
    function_under_test,
    jit_unoptimized,
    require_variables,
)

_STEPS = 2.0 ** -np.arange(1, 27)
_FLOOR = 30.0  # remainders below this multiple of the rounding error have no meaningful slope
_FITTED_STEPS = 4  # the slope is fitted to the smallest steps above the floor


class SlopeReport(NamedTuple):
    """Result of a Taylor test: the remainders for each array of x, and their order.

    The remainder for a step h is R(h) = |f(x + h d) - f(x) - h g d|, with the gradient g under test
    and a random direction d that changes one array only.

    Attributes:
        paths: path of each float array of x, such as "x['weight']".
        steps: step sizes h, decreasing.
        remainders: R(h), one row per array, one column per step.
        rounding: rounding error of the remainders of each array.
        orders: slope of log R against log h for each array, at the smallest steps where R is above
            its rounding error; infinite where R is rounding error at every step, NaN where R is
            not finite.
    """

    paths: tuple[str, ...]
    steps: Float[np.ndarray, " steps"]
    remainders: Float[np.ndarray, "leaves steps"]
    rounding: Float[np.ndarray, " leaves"]
    orders: Float[np.ndarray, " leaves"]

    @property
    def ok(self) -> bool:
        """Check if the Taylor remainder of each array has order > 1.5 (2 is correct, 1 wrong)."""
        return bool((self.orders > 1.5).all())

    def __str__(self) -> str:
        width = max(map(len, self.paths))
        return "\n".join(
            f"{path.ljust(width)}  order {order:.2f}  {_conclusion(order)}"
            for path, order in zip(self.paths, self.orders, strict=True)
        )


def slope_test(
    f: Callable[..., Any], grad_f: Callable[..., Any], x: Any, *, key: Array
) -> SlopeReport:
    """Taylor test of a gradient for each array of x: order 2 is correct, order 1 is wrong.

    The remainder R(h) = |f(x + h d) - f(x) - h grad_f(x) d| along a random direction d is computed
    in float64 for decreasing steps h, and the exponent p of R(h) ~ h^p is fitted.

    Args:
        f: `f(x)`, a float scalar, written in JAX.
        grad_f: `grad_f(x)`, the gradient under test, laid out as x.
        x: any pytree; a direction is sampled for each of its float arrays.
        key: PRNG key of the directions.

    Returns:
        A `SlopeReport` with the remainders and the order of each float array; its `ok` says if all
        are correct.

    Raises:
        TypeError: f or grad_f is not callable, or key is not a PRNG key.
        ValueError: f(x) is not a float scalar, grad_f(x) has other leaves or shapes than x, or x
            has no float array, an empty or a non-finite one.

    >>> x = np.array([1.0, 2.0])
    >>> report = slope_test(lambda x: (x**3).sum(), lambda x: 3 * x**2, x, key=jax.random.key(0))
    >>> report.orders.round(1)
    array([2.])
    """
    _validation.function("f", f)
    _validation.function("grad_f", grad_f)
    _validation.scalar("f", jax.eval_shape(f, x))
    test = function_under_test(f, grad_f, {"x": x}, 0)
    require_variables(test.variables)
    _validation.key("key", key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    with jax.enable_x64(True):
        test = cast_constants(test, np.float64)
        variables = cast(test.variables, np.float64)
        gradient = value_and_gradient(test, variables, np.ones(()))[1]
        for path, leaf in variables.items():
            if path not in gradient or np.shape(gradient[path]) != leaf.shape:
                shape = list(np.shape(gradient[path])) if path in gradient else "none"
                raise ValueError(
                    f"grad_f must return a gradient of shape {list(leaf.shape)} for {path}, "
                    f"got {shape}"
                )
        rows = [
            _remainders(test.function, variables, np.asarray(gradient[path]), path, rng)
            for path in variables
        ]
    remainders, rounding = map(np.array, zip(*rows, strict=True))
    orders = np.array([_order(*row) for row in rows])
    return SlopeReport(tuple(variables), _STEPS, remainders, rounding, orders)


_values_along = jit_unoptimized(values_along)


def _remainders(
    function: WithConstants,
    variables: Variables,
    gradient: np.ndarray,
    path: str,
    rng: np.random.Generator,
) -> tuple[np.ndarray, float]:
    """Compute Taylor remainders for a random change of the array at `path`.

    Returns the remainders, one per step, and their rounding error. `gradient` is the gradient under
    test with respect to this array.
    """
    direction = random_direction(variables, path, rng)
    if not np.isfinite(gradient).all():
        return np.full(len(_STEPS), np.nan), np.nan
    embedded = embed_direction(variables, path, direction)
    steps = np.append(_STEPS, 0.0)
    values = np.asarray(_values_along(function, variables, embedded, steps))
    products = gradient * direction
    smallest_change = float(np.abs(products).sum()) * _STEPS[-1]
    # f is evaluated twice, and the linear term is subtracted.
    rounding = 2.0**-53 * (2 * np.abs(values[-1]) + smallest_change)
    return np.abs(values[:-1] - values[-1] - _STEPS * float(products.sum())), float(rounding)


def _order(remainders: np.ndarray, rounding: float) -> float:
    """Fit the exponent p of remainder ~ step^p at the smallest steps above the rounding error.

    Infinite if fewer than two remainders are above the rounding error, NaN if they are not finite.
    """
    if np.isfinite(remainders).sum() < 2:
        return float("nan")
    usable = np.flatnonzero(np.isfinite(remainders) & (remainders > _FLOOR * rounding))
    if len(usable) < 2:
        return float("inf")
    fitted = usable[-_FITTED_STEPS:]
    return float(np.polyfit(np.log(_STEPS[fitted]), np.log(remainders[fitted]), 1)[0])


def _conclusion(order: float) -> str:
    if np.isnan(order):
        return "not finite"
    if np.isinf(order):
        return "correct, f is linear"
    return "correct" if order > 1.5 else "wrong"
