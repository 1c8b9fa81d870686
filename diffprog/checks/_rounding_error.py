"""How exactly a gradient can be computed at all: its sensitivity to rounding, from the function itself.

Arithmetic in a dtype of unit eps returns each result only to within a relative eps. So the program of `jax.vjp(f)` is run in float64 with
every result of an arithmetic operation, and every variable, multiplied by 1 + eps xi, xi in [-1, 1]: the spread of the gradients that
come out is the error one must expect of that dtype (Parker's Monte Carlo arithmetic, 1997). A sum of n terms is disturbed by sqrt(n) eps,
its probabilistic error bound. Operations that only move or compare numbers are exact. xi is a hash of the number that it disturbs, since
rounding too is a function of the number: equal values stay equal, and a tie stays a tie.

The same spread at eps = 2^-30, scaled down, is the tolerance within which two programs of float64 may differ.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog._jaxpr import (
    ClosedJaxpr,
    EquationSite,
    Handler,
    JaxprEqn,
    Path,
    convolution_dimensions,
    dot_dimensions,
    evaluate_equation,
    find_equations,
    interpret,
    reduced_axes,
)
from diffprog.checks._gradient_function import Claim, Variables, compiled
from diffprog.program import Program

_SAMPLES = 4
_MOVING = {
    "broadcast_in_dim",
    "concatenate",
    "copy",
    "copy_p",
    "dynamic_slice",
    "dynamic_update_slice",
    "gather",
    "iota",
    "pad",
    "reshape",
}
_MOVING |= {
    "rev",
    "name",
    "optimization_barrier",
    "select_n",
    "slice",
    "split",
    "squeeze",
    "stop_gradient",
    "transpose",
}
_CHOOSING = {
    "abs",
    "argmax",
    "argmin",
    "clamp",
    "max",
    "min",
    "neg",
    "reduce_max",
    "reduce_min",
    "sign",
    "sort",
}
_EXACT = frozenset(_MOVING | _CHOOSING | {"convert_element_type", "reduce_precision"})


class Precision(NamedTuple):
    """The accuracy of a claimed gradient in one dtype.

    Attributes:
        path: the leaf.
        dtype: the dtype it was computed in.
        error: root mean square of its difference from the same gradient in float64.
        bound: what `diffprog.checks` expects of the dtype.
    """

    path: str
    dtype: str
    error: float
    bound: float


class Spread(NamedTuple):
    """How far the value and the gradients moved, number by number: the largest of the samples."""

    y: Any
    gradient: Variables


def spread(claim: Claim, variables: Variables, dy: Any, unit: float, least: float = 0.0) -> Spread:
    """The spread of y and of dy df/dv at relative errors `unit`, and absolute ones `least` where results are that small."""
    run = functools.partial(_disturbed, claim.value, variables, claim.fixed, dy)
    exact = run(np.int64(0), 0.0, np.uint64(0))
    bits = np.int64(52 + round(math.log2(unit)))
    moved = [run(bits, least, np.uint64(salt)) for salt in range(1, _SAMPLES + 1)]
    return Spread(*jax.tree.map(_furthest, exact, *moved))


def _furthest(exact: Array, *moved: Array) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return functools.reduce(
            np.maximum, [np.abs(np.asarray(other) - np.asarray(exact)) for other in moved]
        )


def smallest(program: ClosedJaxpr) -> list[EquationSite]:
    """The equations that can be acted on and hold no other such equation."""
    open_ = [
        site
        for site in find_equations(program, lambda equation: True)
        if site.opaque_primitive is None and site.custom_rule_primitive is None
    ]
    around = {site.path[:depth] for site in open_ for depth in range(1, len(site.path))}
    return [site for site in open_ if site.path not in around]


@compiled
def _disturbed(
    value: Program,
    variables: Variables,
    fixed: dict[str, Any],
    dy: Any,
    bits: Array,
    least: Array,
    salt: Array,
) -> tuple[Any, Variables]:
    def both(variables: Variables, fixed: dict[str, Any], dy: Any) -> tuple[Any, Variables]:
        y, pull = jax.vjp(lambda variables: value(variables, fixed), variables)
        return y, pull(dy)[0]

    disturb = functools.partial(_disturb, bits, least)
    variables = {path: disturb(leaf, salt) for path, leaf in variables.items()}
    program, shape = jax.make_jaxpr(both, return_shape=True)(variables, fixed, dy)
    actions: dict[Path, Handler] = {
        site.path: functools.partial(_act, disturb, salt + np.uint64(97 * number))
        for number, site in enumerate(smallest(program))
        if site.equation.primitive.name not in _EXACT
    }
    outputs, _ = interpret(program, actions, jax.tree.leaves((variables, fixed, dy)))
    return jax.tree.unflatten(jax.tree.structure(shape), outputs)


def _act(
    disturb: Any, salt: Array, equation: JaxprEqn, inputs: list[Any], given: None
) -> tuple[Sequence[Any], None]:
    outputs = evaluate_equation(equation, inputs)
    return [disturb(output, salt, _terms(equation)) for output in outputs], None


def _terms(equation: JaxprEqn) -> float:
    """How many numbers are added up to one."""
    name, shapes = (
        equation.primitive.name,
        [getattr(variable.aval, "shape", ()) for variable in equation.invars],
    )
    if name == "dot_general":
        return math.prod(shapes[0][axis] for axis in dot_dimensions(equation)[0][0])
    if name == "conv_general_dilated":
        return math.prod(shapes[1]) / shapes[1][convolution_dimensions(equation).rhs_spec[0]]
    if name in ("reduce_sum", "cumsum"):
        return math.prod(shapes[0][axis] for axis in reduced_axes(equation))
    return 1.0


def _disturb(bits: Array, least: Array, number: Any, salt: Array, terms: float = 1.0) -> Any:
    """The number, its last `bits` binary digits changed, and more for a sum of many terms.

    In integers, since a compiler may compute a float twice, rounded in two ways, and then find the largest of a row unequal to itself.
    """
    if not jnp.issubdtype(getattr(number, "dtype", int), jnp.floating):
        return number
    wide = jnp.asarray(number, jnp.float64)
    hashed = _hash(wide, salt)
    usable = (wide != 0) & jnp.isfinite(wide)
    width = jnp.clip(bits + round(math.log2(terms) / 2), 0, 51)
    steps = jnp.where(usable & (bits > 0), hashed >> (63 - width), 0)
    moved = jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(wide, jnp.int64) + steps, jnp.float64
    )
    return (moved + jnp.where(usable, jnp.where(hashed < 0, -least, least), 0.0)).astype(
        number.dtype
    )


def _hash(number: Array, salt: Array) -> Array:
    """Integers of 64 bits that look random; the same for the same number and salt."""
    bits = jax.lax.bitcast_convert_type(number, jnp.uint64) ^ (salt * np.uint64(0x9E3779B97F4A7C15))
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        bits = (bits ^ (bits >> np.uint64(31))) * np.uint64(factor)
    return jax.lax.bitcast_convert_type(bits ^ (bits >> np.uint64(29)), jnp.int64)
