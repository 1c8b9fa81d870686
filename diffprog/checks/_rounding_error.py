"""Rounding error bounds of a gradient, by Monte Carlo arithmetic (Parker, 1997).

Arithmetic with unit roundoff eps returns each result only to a relative error of eps. To simulate
it, the function and its gradient are computed in float64 with every variable and every arithmetic
result multiplied by 1 + eps xi, xi random in [-1, 1]. The spread of the gradients over a few such
runs estimates the error that is unavoidable in a dtype of that eps. A sum of n terms is perturbed
by sqrt(n) eps, its probabilistic error bound. Operations that only move or compare numbers are
exact. xi is a hash of the number that it perturbs, because rounding is a function of the number
too: equal values stay equal, and ties stay ties.

The spread at eps = 2^-30, scaled down to float64, also gives the tolerance for comparing the
gradients of two formulas in float64.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog import _jaxpr
from diffprog.checks._gradient_function import Variables, WithConstants, jit_unoptimized

_SAMPLES = 4
_MOVES = (
    "broadcast_in_dim concatenate copy copy_p dynamic_slice dynamic_update_slice gather iota name "
    "optimization_barrier pad reshape rev select_n slice split squeeze stop_gradient transpose"
)
_COMPARISONS = "abs argmax argmin clamp max min neg reduce_max reduce_min sign sort"
_CASTS = "convert_element_type reduce_precision"
_EXACT_PRIMITIVES = frozenset(f"{_MOVES} {_COMPARISONS} {_CASTS}".split())


class RoundingSpread(NamedTuple):
    """Estimated rounding error of each element of a function's output y and of its gradient.

    It is the largest deviation from the exact result over several randomly perturbed evaluations.
    """

    y: Any
    gradient: Variables


def rounding_spread(
    function: WithConstants,
    variables: Variables,
    dy: Any,
    unit_roundoff: float,
    smallest_subnormal: float = 0.0,
) -> RoundingSpread:
    """Estimate the rounding error of a function and its gradient by random perturbations.

    Args:
        function: the function.
        variables: its float64 arguments by path.
        dy: cotangent of its output.
        unit_roundoff: relative perturbation of every arithmetic result, a power of two.
        smallest_subnormal: absolute perturbation of every arithmetic result, for underflow.

    Returns:
        The estimated errors of the output and of the gradient, element by element.
    """
    run = functools.partial(_perturbed_vjp, function, variables, dy)
    exact = run(np.int64(0), 0.0, np.uint64(0))
    bits = np.int64(52 + round(math.log2(unit_roundoff)))
    samples = [run(bits, smallest_subnormal, np.uint64(salt)) for salt in range(1, _SAMPLES + 1)]

    def largest_deviation(exact: Array, *perturbed: Array) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            deviations = [np.abs(np.asarray(sample) - np.asarray(exact)) for sample in perturbed]
            return functools.reduce(np.maximum, deviations)

    return RoundingSpread(*jax.tree.map(largest_deviation, exact, *samples))


def innermost_equations(program: _jaxpr.ClosedJaxpr) -> list[_jaxpr.EquationSite]:
    """List the equations of a jaxpr, nested ones included, that `interpret` can evaluate otherwise.

    A loop is left out in favour of the equations in its body. Equations inside custom derivatives,
    or inside primitives that `interpret` cannot enter, are left out too.
    """
    sites = [
        site
        for site in _jaxpr.find_equations(program, lambda equation: True)
        if site.opaque_primitive is None and site.custom_rule_primitive is None
    ]
    enclosing = {site.path[:depth] for site in sites for depth in range(1, len(site.path))}
    return [site for site in sites if site.path not in enclosing]


@jit_unoptimized
def _perturbed_vjp(
    function: WithConstants,
    variables: Variables,
    dy: Any,
    bits: Array,
    smallest_subnormal: Array,
    salt: Array,
) -> tuple[Any, Variables]:
    """Evaluate a function and its gradient with a random error added to each arithmetic result.

    Returns the pair of output and gradient for the output cotangent `dy`. The errors change the
    last `bits` binary digits, none if `bits` is 0; `salt` is the seed.
    """

    def value_and_vjp(function: WithConstants, variables: Variables, dy: Any) -> Any:
        y, vjp = jax.vjp(function, variables)
        return y, vjp(dy)[0]

    perturb = functools.partial(_perturb, bits, smallest_subnormal)

    def evaluate_perturbed(
        salt: Array, equation: _jaxpr.JaxprEqn, inputs: list[Any], side_input: None
    ) -> tuple[Sequence[Any], None]:
        outputs = _jaxpr.evaluate_equation(equation, inputs)
        return [perturb(output, salt, _summed_terms(equation)) for output in outputs], None

    variables = {path: perturb(leaf, salt) for path, leaf in variables.items()}
    args = function, variables, dy
    program, shape = jax.make_jaxpr(value_and_vjp, return_shape=True)(*args)
    handlers: dict[_jaxpr.Path, _jaxpr.Handler] = {
        # Another salt per equation, so that equal numbers get independent errors.
        site.path: functools.partial(evaluate_perturbed, salt + np.uint64(97 * number))
        for number, site in enumerate(innermost_equations(program))
        if site.equation.primitive.name not in _EXACT_PRIMITIVES
    }
    outputs, _ = _jaxpr.interpret(program, handlers, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), outputs)


def _summed_terms(equation: _jaxpr.JaxprEqn) -> float:
    """Count the terms that an equation sums for one output element; 1 if it computes no sum."""
    name = equation.primitive.name
    shapes = [getattr(variable.aval, "shape", ()) for variable in equation.invars]
    if name == "dot_general":
        return math.prod(shapes[0][axis] for axis in _jaxpr.dot_dimensions(equation)[0][0])
    if name == "conv_general_dilated":
        return math.prod(shapes[1]) / shapes[1][_jaxpr.convolution_dimensions(equation).rhs_spec[0]]
    if name in ("reduce_sum", "cumsum"):
        return math.prod(shapes[0][axis] for axis in _jaxpr.reduced_axes(equation))
    return 1.0


def _perturb(
    bits: Array, smallest_subnormal: Array, number: Any, salt: Array, terms: float = 1.0
) -> Any:
    """Add pseudorandom noise to the last `bits` binary digits of each float in the array `number`.

    More digits are changed if the number is the sum of many `terms`. The noise depends only on
    number and `salt`. It is added to the bits as integers: a compiler may evaluate a float
    expression twice with different rounding, and then the largest element of a row is unequal to
    itself. `number` is returned unchanged if it is not of float dtype.
    """
    if not jnp.issubdtype(getattr(number, "dtype", int), jnp.floating):
        return number
    wide = jnp.asarray(number, jnp.float64)
    noise = _hash(wide, salt)
    usable = (wide != 0) & jnp.isfinite(wide)
    width = jnp.clip(bits + round(math.log2(terms) / 2), 0, 51)
    # An arithmetic shift keeps the sign: noise of width + 1 bits in units of the last place.
    offset = jnp.where(usable & (bits > 0), noise >> (63 - width), 0)
    as_integer = jax.lax.bitcast_convert_type(wide, jnp.int64)
    perturbed = jax.lax.bitcast_convert_type(as_integer + offset, jnp.float64)
    absolute = jnp.where(noise < 0, -smallest_subnormal, smallest_subnormal)
    return (perturbed + jnp.where(usable, absolute, 0.0)).astype(number.dtype)


def _hash(number: Array, salt: Array) -> Array:
    """Hash float64 numbers and a salt to pseudorandom 64-bit integers, as splitmix64 does."""
    bits = jax.lax.bitcast_convert_type(number, jnp.uint64) ^ (salt * np.uint64(0x9E3779B97F4A7C15))
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        bits = (bits ^ (bits >> np.uint64(31))) * np.uint64(factor)
    return jax.lax.bitcast_convert_type(bits ^ (bits >> np.uint64(29)), jnp.int64)
