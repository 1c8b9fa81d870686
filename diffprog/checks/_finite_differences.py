"""Directional derivatives by finite differences (Ridders' method), and the gradients to compare.

A gradient check compares three derivatives of a function y = f(v) in float64: the gradient under
test, the reference gradient by `jax.vjp`, and finite differences along a direction d. Outputs are
weighted by a cotangent dy. The one-sided difference quotients

    r(h) = dy (f(v + h d) - f(v)) / h,        l(h) = dy (f(v) - f(v - h d)) / h

are computed for steps h a factor 4 apart and extrapolated to h = 0 with Neville's table (Ridders'
method). The table entry with the smallest error estimate is the result; its error estimate is the
distance to its neighbours in the table plus the rounding error of the quotients it is made of. The
central difference (r + l) / 2 has only even powers of h in its error. Where the limits of r and l
differ by more than their errors, f has a kink at v.

Source: Ridders, Accurate computation of F'(x) and F'(x)F''(x), 1982.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog.checks._gradient_function import (
    GradientUnderTest,
    Variables,
    WithConstants,
    jit_unoptimized,
)

NOT_TRACEABLE = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)
_STEP_RATIO, _STEP_COUNT = 4.0, 10
# Powers of two: with a direction of a power of two, steps along a coordinate are exact.
_STEPS = 2.0**-3 * _STEP_RATIO ** -np.arange(_STEP_COUNT)
_SAFETY = 10.0  # the distance of two table entries only estimates the error


class Estimate(NamedTuple):
    """An estimated derivative and a bound of its error."""

    value: float
    error: float


class DirectionalDerivatives(NamedTuple):
    """Central, right-sided and left-sided derivatives of a function along one direction."""

    central: Estimate
    right: Estimate
    left: Estimate

    @property
    def is_kink(self) -> bool:
        """Check if the right and left derivatives differ by more than their errors explain."""
        difference = abs(self.right.value - self.left.value)
        magnitude = max(abs(self.right.value), abs(self.left.value))
        return difference > 2 * (self.right.error + self.left.error) + 1e-6 * magnitude

    @property
    def interval(self) -> tuple[float, float]:
        """Left and right derivative, the smaller one first; the subgradients lie between them."""
        return min(self.right.value, self.left.value), max(self.right.value, self.left.value)


def random_cotangent(
    test: GradientUnderTest, variables: Variables, rng: np.random.Generator
) -> Any:
    """Sample a cotangent of the function's output from a standard normal distribution.

    For a scalar function with a gradient function (not a layer) it is 1. A cotangent of ones for an
    array would weight all outputs alike and so hide mistakes that permute or average them.
    """
    leaves, treedef = jax.tree.flatten(test.function.output_shapes(variables))
    if wrong := [leaf for leaf in leaves if not jnp.issubdtype(leaf.dtype, jnp.floating)]:
        raise TypeError(
            f"the function must return float arrays, got {wrong[0].dtype}{list(wrong[0].shape)}"
        )
    # Gradient functions differentiate f itself; a layer with one output may have any cotangent.
    if len(leaves) == 1 and leaves[0].shape == () and test.function_with_rule is None:
        return jax.tree.unflatten(treedef, [np.ones((), leaves[0].dtype)])
    return jax.tree.unflatten(
        treedef, [np.asarray(rng.normal(size=leaf.shape)).astype(leaf.dtype) for leaf in leaves]
    )


def cast_cotangent(function: WithConstants, variables: Variables, dy: Any) -> Any:
    """Cast a cotangent to the dtypes of the function's outputs at these variables."""
    shapes = function.output_shapes(variables)
    return jax.tree.map(lambda leaf, like: np.asarray(leaf).astype(like.dtype), dy, shapes)


def value_and_gradient(
    test: GradientUnderTest, variables: Variables, dy: Any
) -> tuple[Any, dict[str, Any]]:
    """Evaluate the function and its gradient under test, under jit if both are written in JAX.

    Returns the pair of the output y and a dict of gradients by path, for the output cotangent `dy`.
    """
    try:
        return _value_and_gradient(test.function, test.gradient, variables, dy)
    except NOT_TRACEABLE:
        return _value(test.function, variables), test.gradient(variables, dy)


def random_direction(variables: Variables, path: str, rng: np.random.Generator) -> np.ndarray:
    """Sample a direction for the variable at `path`: a normal array of about its magnitude."""
    leaf = variables[path]
    return rng.normal(size=leaf.shape) * _round_to_power_of_two(magnitude(leaf))


def embed_direction(variables: Variables, path: str, direction: np.ndarray) -> Variables:
    """Extend a direction of the variable at `path` to all variables, by zeros for the others."""
    return {other: np.zeros_like(leaf) for other, leaf in variables.items()} | {path: direction}


def coordinate_direction(
    variables: Variables, path: str, index: tuple[int, ...]
) -> tuple[Variables, float]:
    """Return a direction along one element of the variable at `path`, and its length.

    The direction, a dict like `variables`, is zero but for this element. Its value is the length, a
    power of two of about the magnitude of the variable.
    """
    leaf = variables[path]
    length = _round_to_power_of_two(max(abs(float(leaf[index])), magnitude(leaf)))
    direction = np.zeros_like(leaf)
    direction[index] = length
    return embed_direction(variables, path, direction), length


def magnitude(leaf: np.ndarray) -> float:
    """Root mean square of an array; 1 if the array is zero."""
    return float(np.sqrt(np.mean(np.square(leaf)))) or 1.0


def directional_derivatives(
    function: WithConstants,
    variables: Variables,
    dy: Any,
    direction: Variables,
    unit_roundoff: float,
) -> DirectionalDerivatives:
    """Estimate derivatives of a function along a direction by Ridders' method.

    `dy` is the cotangent by which the outputs are weighted and summed. `unit_roundoff` is the
    relative error of the function's arithmetic, for the error estimates.
    """
    differences = _one_sided_differences(function, variables, dy, direction, _STEPS)
    right, left, scale = map(np.asarray, differences)
    with np.errstate(all="ignore"):
        # Each difference has a handful of roundings: in f twice, in v + h d, and in the products.
        noise = 8 * unit_roundoff * (scale + (np.abs(right) + np.abs(left)) / _STEPS)
        return DirectionalDerivatives(
            _extrapolate((right + left) / 2, noise, 2),
            _extrapolate(right, noise, 1),
            _extrapolate(left, noise, 1),
        )


def _extrapolate(row: np.ndarray, noise: np.ndarray, power: int) -> Estimate:
    """Extrapolate difference quotients to step 0 with Neville's table; ignore non-finite entries.

    Args:
        row: difference quotients at decreasing steps h, whose error is a power series in h^power.
        noise: rounding error of each quotient.
        power: 1 for one-sided differences, 2 for central ones.
    """
    best = Estimate(float("nan"), float("inf"))
    for order in range(1, len(row)):
        factor = _STEP_RATIO ** (power * order)
        # Cancels the error term of this order in h, as each step is a factor below the previous.
        finer = (factor * row[1:] - row[:-1]) / (factor - 1)
        noise = (factor * noise[1:] + noise[:-1]) / (factor - 1)
        errors = _SAFETY * np.maximum(np.abs(finer - row[1:]), np.abs(finer - row[:-1])) + noise
        smallest = int(np.argmin(np.where(np.isfinite(errors), errors, np.inf)))
        if errors[smallest] < best.error:
            best = Estimate(float(finer[smallest]), float(errors[smallest]))
        row = finer
    return best


def _round_to_power_of_two(size: float) -> float:
    # With such a length, steps along a coordinate are exact in floating point.
    return float(2.0 ** np.clip(np.round(np.log2(size)), -1000, 1000)) if np.isfinite(size) else 1.0


@jit_unoptimized
def _value(function: WithConstants, variables: Variables) -> Any:
    return function(variables)


@jit_unoptimized
def _value_and_gradient(
    function: WithConstants, gradient: WithConstants, variables: Variables, dy: Any
) -> tuple[Any, dict[str, Any]]:
    return function(variables), gradient(variables, dy)


@jit_unoptimized
def reference_gradient(function: WithConstants, variables: Variables, dy: Any) -> Variables:
    """Compute dy times the Jacobian of the function by each variable, with `jax.vjp`."""
    return jax.vjp(function, variables)[1](dy)[0]


def values_along(
    function: WithConstants, variables: Variables, direction: Variables, steps: Array
) -> Any:
    """Evaluate the function at variables + step * direction for every step.

    Returns the outputs stacked on a new leading axis of steps.
    """
    return jax.lax.map(
        lambda step: function(
            {path: leaf + step * direction[path] for path, leaf in variables.items()}
        ),
        steps,
    )


@jit_unoptimized
def _one_sided_differences(
    function: WithConstants, variables: Variables, dy: Any, direction: Variables, steps: Array
) -> tuple[Array, Array, Array]:
    """Compute right and left difference quotients, and the scale of their rounding error.

    The function's outputs are weighted by the cotangent `dy` and summed. Returns three arrays
    (right, left, scale) with one entry per step. Scale times unit roundoff is the rounding error.
    """
    all_steps = jnp.concatenate([steps, -steps, jnp.zeros(1)])
    ys = values_along(function, variables, direction, all_steps)
    count = len(steps)
    y, right, left = (
        jax.tree.map(lambda leaf, part=part: leaf[part], ys)
        for part in (-1, slice(count), slice(count, -1))
    )
    # Outputs constant at the largest step do not depend on the direction and add no rounding error.
    # If all are constant, the change may have been lost in rounding: then all of them count.
    changes = jax.tree.map(lambda y, a, b: (y != a[0]) | (y != b[0]), y, right, left)
    none = ~functools.reduce(jnp.logical_or, [leaf.any() for leaf in jax.tree.leaves(changes)])
    terms = jax.tree.map(lambda y, changes: 2 * jnp.abs(y) * (changes | none), y, changes)
    size = _inner(jax.tree.map(jnp.abs, dy), terms)

    def difference(after: Any, before: Any) -> Array:
        return _inner(dy, jax.tree.map(jnp.subtract, after, before))

    from_y, to_y = jax.vmap(difference, (0, None)), jax.vmap(difference, (None, 0))
    return from_y(right, y) / steps, to_y(y, left) / steps, size / steps


def _inner(dy: Any, dv: Any) -> Array:
    products = jax.tree.map(lambda a, b: (a * b).sum(), dy, dv)
    return functools.reduce(jnp.add, jax.tree.leaves(products))
