"""The three witnesses of a gradient: what is claimed, what `jax.grad` finds, and what the function does when its variables are moved.

The first two are compared number by number in float64. The third decides between them, along single coordinates or random directions d:
from the one-sided slopes

    r(h) = dy (f(v + h d) - f(v)) / h,        l(h) = dy (f(v) - f(v - h d)) / h

for steps h a factor 4 apart, Neville's table extrapolates to h = 0, as in Ridders' method: the entry is taken whose distance to its
neighbours, plus the rounding error it inherits, is the least, and that is its error bar. The central slope is (r + l) / 2, whose error
has even powers of h only. Where r and l differ by more than their bars, f has a kink at v.

Source: Ridders, Accurate computation of F'(x) and F'(x)F''(x), 1982.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog.checks._gradient_function import Claim, Variables, compiled
from diffprog.program import Program

_RATIO, _COUNT = 4.0, 10
_STEPS = 2.0**-3 * _RATIO ** -np.arange(_COUNT)
NOT_IN_JAX = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)
_CAUTION = 10.0  # times the distance of neighbours in the table, which is itself only an estimate


class Measured(NamedTuple):
    """A number and how far from the truth it may be."""

    value: float
    bar: float


class Slopes(NamedTuple):
    """The derivative along one direction, from both sides, from the right and from the left."""

    central: Measured
    right: Measured
    left: Measured

    @property
    def kinked(self) -> bool:
        """The two sides differ by more than their bars and more than a millionth."""
        apart = abs(self.right.value - self.left.value)
        size = max(abs(self.right.value), abs(self.left.value))
        return apart > 2 * (self.right.bar + self.left.bar) + 1e-6 * size

    @property
    def interval(self) -> tuple[float, float]:
        """From the lesser to the greater of the one-sided derivatives."""
        return min(self.right.value, self.left.value), max(self.right.value, self.left.value)


def cotangent(claim: Claim, variables: Variables, draw: np.random.Generator) -> Any:
    """A random one, as no two outputs may be weighted alike: a uniform cotangent hides every symmetric bug. 1 for a scalar."""
    shapes = jax.eval_shape(claim.value, variables, claim.fixed)
    leaves, treedef = jax.tree.flatten(shapes)
    if wrong := [leaf for leaf in leaves if not jnp.issubdtype(leaf.dtype, jnp.floating)]:
        raise TypeError(
            f"the function must return float arrays, got {wrong[0].dtype}{list(wrong[0].shape)}"
        )
    if len(leaves) == 1 and leaves[0].shape == () and claim.rule is None:
        return jax.tree.unflatten(treedef, [np.ones((), leaves[0].dtype)])
    return jax.tree.unflatten(
        treedef, [np.asarray(draw.normal(size=leaf.shape)).astype(leaf.dtype) for leaf in leaves]
    )


def fitted(claim: Claim, variables: Variables, dy: Any) -> Any:
    """A cotangent in the dtypes of y at these variables."""
    shapes = jax.eval_shape(claim.value, variables, claim.fixed)
    return jax.tree.map(lambda leaf, like: np.asarray(leaf).astype(like.dtype), dy, shapes)


def value_and_claimed(claim: Claim, variables: Variables, dy: Any) -> tuple[Any, dict[str, Any]]:
    """y and the claimed gradient, run under jit; the gradient as it is, if it is not written in JAX."""
    try:
        return _value_and_claimed(claim.value, claim.gradient, variables, claim.fixed, dy)
    except NOT_IN_JAX:
        return compiled(claim.value)(variables, claim.fixed), claim.gradient(
            variables, claim.fixed, dy
        )


def automatic(claim: Claim, variables: Variables, dy: Any) -> Variables:
    """dy df/dv by `jax.vjp`."""
    return _automatic(claim.value, variables, claim.fixed, dy)


def coordinate(variables: Variables, path: str, index: tuple[int, ...]) -> tuple[Variables, float]:
    """The direction that moves one number by its own size or that of its leaf, and that length."""
    leaf = variables[path]
    length = _power_of_two(max(abs(float(leaf[index])), size_of(leaf)))
    moved = np.zeros_like(leaf)
    moved[index] = length
    return along_leaf(variables, path, moved), length


def random_direction(variables: Variables, path: str, draw: np.random.Generator) -> np.ndarray:
    """What moves every number of one leaf, by about the leaf's size."""
    return draw.normal(size=variables[path].shape) * _power_of_two(size_of(variables[path]))


def along_leaf(variables: Variables, path: str, moved: np.ndarray) -> Variables:
    """The direction in which one leaf moves and the others stay."""
    return {other: np.zeros_like(leaf) for other, leaf in variables.items()} | {path: moved}


def size_of(leaf: np.ndarray) -> float:
    """The root mean square; 1 for zeros."""
    return float(np.sqrt(np.mean(np.square(leaf)))) or 1.0


def slopes(
    claim: Claim, variables: Variables, dy: Any, direction: Variables, *, unit: float = 2.0**-53
) -> Slopes:
    """The numeric witness along a direction."""
    right, left, rounding = (
        np.asarray(found)
        for found in _along(claim.value, variables, claim.fixed, dy, direction, _STEPS)
    )
    with np.errstate(all="ignore"):
        noise = 8 * unit * (rounding + (np.abs(right) + np.abs(left)) / _STEPS)
        return Slopes(
            _extrapolate((right + left) / 2, noise, 2),
            _extrapolate(right, noise, 1),
            _extrapolate(left, noise, 1),
        )


def _extrapolate(row: np.ndarray, noise: np.ndarray, power: int) -> Measured:
    """The entry of Neville's table with the least error bar; steps at which the function is not finite do not count."""
    best = Measured(float("nan"), float("inf"))
    inherited = noise
    for order in range(1, len(row)):
        factor = _RATIO ** (power * order)
        finer = (factor * row[1:] - row[:-1]) / (factor - 1)
        inherited = (factor * inherited[1:] + inherited[:-1]) / (factor - 1)
        bars = _CAUTION * np.maximum(np.abs(finer - row[1:]), np.abs(finer - row[:-1])) + inherited
        at = int(np.argmin(np.where(np.isfinite(bars), bars, np.inf)))
        if bars[at] < best.bar:
            best = Measured(float(finer[at]), float(bars[at]))
        row = finer
    return best


def _power_of_two(size: float) -> float:
    """So that steps along a coordinate are exact."""
    return float(2.0 ** np.clip(np.round(np.log2(size)), -1000, 1000)) if np.isfinite(size) else 1.0


@compiled
def _value_and_claimed(
    value: Program, gradient: Program, variables: Variables, fixed: dict[str, Any], dy: Any
) -> tuple[Any, dict[str, Any]]:
    return value(variables, fixed), gradient(variables, fixed, dy)


@compiled
def _automatic(value: Program, variables: Variables, fixed: dict[str, Any], dy: Any) -> Variables:
    return jax.vjp(lambda variables: value(variables, fixed), variables)[1](dy)[0]


@compiled
def _along(
    value: Program,
    variables: Variables,
    fixed: dict[str, Any],
    dy: Any,
    direction: Variables,
    steps: Array,
) -> tuple[Array, Array, Array]:
    """r(h), l(h) and the size of the terms in their numerators over h."""
    everywhere = jnp.concatenate([steps, -steps, jnp.zeros(1)])
    ys = jax.lax.map(
        lambda step: value(
            {path: leaf + step * direction[path] for path, leaf in variables.items()}, fixed
        ),
        everywhere,
    )
    up, down, y = (
        jax.tree.map(lambda leaf, part=part: leaf[part], ys)
        for part in (slice(0, len(steps)), slice(len(steps), -1), -1)
    )
    # Outputs that do not move at the largest step do not depend on the direction; if none moves, the move is lost in rounding.
    moves = jax.tree.map(lambda y, up, down: (y != up[0]) | (y != down[0]), y, up, down)
    none = ~functools.reduce(jnp.logical_or, [leaf.any() for leaf in jax.tree.leaves(moves)])
    size = _contract(
        jax.tree.map(jnp.abs, dy),
        jax.tree.map(lambda y, moves: 2 * jnp.abs(y) * (moves | none), y, moves),
    )
    slope = jax.vmap(
        lambda after, before: _contract(dy, jax.tree.map(jnp.subtract, after, before)),
        in_axes=(0, 0),
    )
    still = jax.tree.map(lambda y, up: jnp.broadcast_to(y, up.shape), y, up)
    return slope(up, still) / steps, slope(still, down) / steps, size / steps


def _contract(dy: Any, dv: Any) -> Array:
    return functools.reduce(
        jnp.add, jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), dy, dv))
    )
