"""What the traced programs tell: whether a function insists on a lower precision than its arguments', and whether it changes by itself."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffprog._jaxpr import ClosedJaxpr, find_equations
from diffprog.checks._finite_differences import NOT_IN_JAX
from diffprog.checks._gradient_function import Claim, Variables
from diffprog.program import Program


class Traced(NamedTuple):
    """Of float64 arguments.

    Attributes:
        narrow: the lower float dtypes in which the function computes.
        narrow_rule: those in which the claimed gradient does.
        changing: whether two tracings differ.
    """

    narrow: list[str]
    narrow_rule: list[str]
    changing: bool


def traced(claim: Claim, variables: Variables) -> Traced:
    """Trace the function and the rule, twice."""
    value, again = (_trace(claim.value, variables, claim.fixed) for _ in range(2))
    dy = jax.eval_shape(claim.value, variables, claim.fixed)
    try:
        rule, rule_again = (_trace(claim.gradient, variables, claim.fixed, dy) for _ in range(2))
    except NOT_IN_JAX:
        return Traced(_narrow_dtypes(value), [], not _same_program(value, again))
    return Traced(
        _narrow_dtypes(value),
        _narrow_dtypes(rule),
        not (_same_program(value, again) and _same_program(rule, rule_again)),
    )


def _trace(f: Program, *args: Any) -> ClosedJaxpr:
    # A function of its own each time: JAX remembers the programs it has traced.
    return jax.make_jaxpr(lambda *args: f(*args))(*args)


def _same_program(a: ClosedJaxpr, b: ClosedJaxpr) -> bool:
    return str(a.jaxpr) == str(b.jaxpr) and all(
        np.array_equal(x, y) for x, y in zip(a.consts, b.consts, strict=True) if not _is_key(x)
    )


def _is_key(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def _narrow_dtypes(program: ClosedJaxpr) -> list[str]:
    """The float dtypes below float64 in which a program computes."""
    outputs = [
        variable.aval
        for site in find_equations(program, lambda equation: True)
        for variable in site.equation.outvars
    ]
    dtypes = {getattr(aval, "dtype", np.dtype(bool)) for aval in outputs}
    return sorted(
        str(dtype) for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 8
    )


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Two claimed gradients, bit for bit."""
    return a.keys() == b.keys() and all(
        np.array_equal(a[path], b[path], equal_nan=True) for path in a
    )
