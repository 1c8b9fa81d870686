"""Find low-precision dtypes and nondeterminism in the jaxprs of a function and its gradient.

A function that casts to float32 inside cannot be checked to float64 accuracy, and one whose jaxpr
differs from trace to trace is random without a PRNG key. Both are reported by the gradient checks.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffprog._jaxpr import ClosedJaxpr, find_equations
from diffprog.checks._finite_differences import NOT_TRACEABLE
from diffprog.checks._gradient_function import GradientUnderTest, Variables, WithConstants


class TraceProperties(NamedTuple):
    """Precision in which a function and its gradient compute, and whether they are deterministic.

    Attributes:
        function_dtypes: float dtypes below float64 in which the function computes, for float64
            arguments.
        gradient_dtypes: float dtypes below float64 in which the gradient computes; empty if it
            cannot be traced.
        varies: whether two traces of the function or of the gradient differ.
    """

    function_dtypes: list[str]
    gradient_dtypes: list[str]
    varies: bool


def trace_properties(test: GradientUnderTest, variables: Variables) -> TraceProperties:
    """Return the `TraceProperties` of a function and its gradient, by tracing each twice."""
    dy = test.function.output_shapes(variables)
    function_dtypes, varies = _trace_twice(test.function, variables)
    try:
        gradient_dtypes, gradient_varies = _trace_twice(test.gradient, variables, dy)
    except NOT_TRACEABLE:
        gradient_dtypes, gradient_varies = [], False
    return TraceProperties(function_dtypes, gradient_dtypes, varies or gradient_varies)


def _trace_twice(f: WithConstants, *args: Any) -> tuple[list[str], bool]:
    """Return the float dtypes below float64 in f's jaxpr, and whether a second trace differs."""
    # A new function object each time, because JAX caches traces by function.
    first, second = (jax.make_jaxpr(lambda f, *args: f(*args))(f, *args) for _ in range(2))
    return _narrow_dtypes(first), not _same_program(first, second)


def _same_program(a: ClosedJaxpr, b: ClosedJaxpr) -> bool:
    return str(a.jaxpr) == str(b.jaxpr) and all(
        np.array_equal(x, y)
        for x, y in zip(a.consts, b.consts, strict=True)
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )


def _narrow_dtypes(program: ClosedJaxpr) -> list[str]:
    """List the float dtypes below float64 in which a jaxpr computes, sorted by name."""
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
    """Check if two gradients, given as dicts of arrays, are equal without any tolerance."""
    return a.keys() == b.keys() and all(
        np.array_equal(a[path], b[path], equal_nan=True) for path in a
    )
