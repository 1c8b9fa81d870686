"""Narrow dtypes and nondeterminism, read off the traced programs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffprog._jaxpr import ClosedJaxpr, find_equations
from diffprog.checks._finite_differences import NOT_TRACEABLE
from diffprog.checks._gradient_function import GradientUnderTest, Variables
from diffprog.program import Program


class TraceProperties(NamedTuple):
    """Properties of a function and its gradient, traced with float64 arguments.

    Attributes:
        function_dtypes: float dtypes below float64 in which the function computes.
        gradient_dtypes: the same of the gradient under test; empty if it cannot be traced.
        varies: whether two traces differ.
    """

    function_dtypes: list[str]
    gradient_dtypes: list[str]
    varies: bool


def trace_properties(test: GradientUnderTest, variables: Variables) -> TraceProperties:
    """Trace the function and its gradient twice each."""
    functions = [_trace(test.function, variables, test.fixed) for _ in range(2)]
    dy = jax.eval_shape(test.function, variables, test.fixed)
    varies = not _same_program(*functions)
    try:
        gradients = [_trace(test.gradient, variables, test.fixed, dy) for _ in range(2)]
    except NOT_TRACEABLE:
        return TraceProperties(_narrow_dtypes(functions[0]), [], varies)
    return TraceProperties(
        _narrow_dtypes(functions[0]),
        _narrow_dtypes(gradients[0]),
        varies or not _same_program(*gradients),
    )


def _trace(f: Program, *args: Any) -> ClosedJaxpr:
    # A new function object each time, because JAX caches traces by function.
    return jax.make_jaxpr(lambda *args: f(*args))(*args)


def _same_program(a: ClosedJaxpr, b: ClosedJaxpr) -> bool:
    return str(a.jaxpr) == str(b.jaxpr) and all(
        np.array_equal(x, y)
        for x, y in zip(a.consts, b.consts, strict=True)
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )


def _narrow_dtypes(program: ClosedJaxpr) -> list[str]:
    """List the float dtypes below float64 among the results of all equations."""
    outputs = [
        variable.aval
        for site in find_equations(program, lambda equation: True)
        for variable in site.equation.outvars
    ]
    dtypes = {getattr(aval, "dtype", np.dtype(bool)) for aval in outputs}
    return sorted(
        str(dtype) for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 8
    )


def bitwise_equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Check if two gradients agree bit for bit."""
    return a.keys() == b.keys() and all(
        np.array_equal(a[path], b[path], equal_nan=True) for path in a
    )
