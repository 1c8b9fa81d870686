"""Diagnosis of a wrong gradient: compare it with the gradients that common mistakes would give.

Some mistakes transform the correct gradient: a sign, a factor, a transposition. Others give the
gradient of another function: with a weight transposed, with a kernel not flipped, with one path of
a fan-out missing. For the last, every operand h of every operation is replaced by

    s h + (1 - s) stop_gradient(h),

which keeps its value and multiplies the cotangent that flows back along this edge of the graph by
s. The wrong gradient is compared with the gradients for which s is 0 at one edge and 1 elsewhere.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog._jaxpr import ClosedJaxpr, Handler, JaxprEqn, Path, evaluate_equation, interpret
from diffprog.checks._finite_differences import reference_gradient
from diffprog.checks._gradient_function import (
    GradientUnderTest,
    Variables,
    WithConstants,
    jit_unoptimized,
)
from diffprog.checks._rounding_error import innermost_equations

_Matches: TypeAlias = Callable[[np.ndarray], bool]

# Programs with more edges, and larger Jacobians, are not searched for mistakes.
_MAX_EDGES, _MAX_JACOBIAN = 200, 1024


class _Edge(NamedTuple):
    """An edge of a computation graph: an operand of the equation at a path, by its position."""

    path: Path
    equation: JaxprEqn
    position: int

    @property
    def operand(self) -> Any:
        return self.equation.invars[self.position]


def diagnose(
    test: GradientUnderTest,
    variables: Variables,
    dy: Any,
    path: str,
    got: np.ndarray,
    want: np.ndarray,
    wrong: np.ndarray,
) -> str:
    """Describe the mistake in the gradient of one leaf.

    Args:
        test: the function and its gradient under test.
        variables: float64 arguments of the function by path.
        dy: cotangent.
        path: path of the leaf.
        got: wrong gradient of the leaf.
        want: correct gradient of the leaf, of the same shape.
        wrong: mask of the elements that differ by more than rounding.
    """
    # A mistake is recognized if it explains all but a thousandth of the error.
    tolerance = 1e-3 * float(np.abs(got - want)[wrong].max())

    def matches(other: np.ndarray) -> bool:
        return other.shape == got.shape and bool(np.abs(got - other).max() <= tolerance)

    sizes = {
        leaf.shape[0]
        for leaf in jax.tree.leaves((variables, test.function, dy))
        if getattr(leaf, "ndim", 0)
    }
    diagnoses = itertools.chain(
        _transformations(got, want, sizes, matches),
        _mistakes_in_function(test.function, variables, dy, path, matches),
    )
    diagnosis, elements = next(diagnoses, None), _describe_elements(wrong)
    if diagnosis is None:
        return elements
    return diagnosis if wrong.all() else f"{diagnosis}; {elements}"


def diagnose_shape(got: tuple[int, ...], want: tuple[int, ...]) -> str:
    """Describe the mistake in a gradient whose shape is not that of its leaf."""
    description = f"has shape {list(got)}, the leaf {list(want)}"
    if sorted(got) == sorted(want):
        return f"{description}: transposed"
    for axis in range(len(got)):
        if got[:axis] + got[axis + 1 :] == want:
            return f"{description}: a sum over axis {axis} is missing"
    return description


def _transformations(
    got: np.ndarray, want: np.ndarray, sizes: set[int], matches: _Matches
) -> Iterator[str]:
    """Yield each sign, factor, transposition or flip that turns `want` into the wrong gradient."""
    if not got.any():
        yield "detached: the gradient is zero"
        return
    if matches(-want):
        yield "sign: the negative of the gradient"
    factor = float((got * want).sum() / (want * want).sum()) if want.any() else math.nan
    if math.isfinite(factor) and matches(factor * want):
        yield f"a constant factor {factor:.6g}{_explain_factor(factor, sizes)}"
    # `matches` compares shapes too, so non-square transposes are rejected.
    for axes in itertools.permutations(range(want.ndim)):
        if axes != tuple(range(want.ndim)) and matches(want.transpose(axes)):
            yield "transposed" if want.ndim == 2 else f"transposed: axes {axes}"
    for count in range(1, want.ndim + 1):
        for axes in itertools.combinations(range(want.ndim), count):
            if matches(np.flip(want, axes)):
                yield f"flipped along axes {axes}"


def _explain_factor(factor: float, sizes: set[int]) -> str:
    """Explain a wrong factor of n or 1/n, for n among the lengths of leading axes."""
    for size in sizes - {1}:
        if math.isclose(factor * size, 1, rel_tol=1e-6):
            return f" = 1/{size}: a mean instead of a sum"
        if math.isclose(factor, size, rel_tol=1e-6):
            return ": a sum instead of a mean"
    return ""


def _mistakes_in_function(
    function: WithConstants, variables: Variables, dy: Any, path: str, matches: _Matches
) -> Iterator[str]:
    """Yield each change of the function after which its gradient is the wrong gradient.

    Square matrices are transposed, kernels flipped, and edges of the graph detached, one at a time.
    """
    for name, leaf in variables.items():
        if name == path:
            continue
        if leaf.ndim == 2 and leaf.shape[0] == leaf.shape[1]:
            mistake, changed = f"{name} in place of its transpose, or vice versa", leaf.T
        elif leaf.ndim >= 3:
            mistake, changed = f"the kernel {name} is not flipped", np.flip(leaf, (0, 1))
        else:
            continue
        gradient = reference_gradient(function, variables | {name: changed}, dy)
        if matches(np.asarray(gradient[path])):
            yield mistake
    edges = _edges(jax.make_jaxpr(WithConstants.__call__)(function, variables))
    if len(edges) <= _MAX_EDGES:
        consumers = Counter(edge.operand for edge in edges)
        for number, edge in enumerate(edges):
            # One compiled program for all edges: the scales are an argument of it.
            scales = np.ones(len(edges))
            scales[number] = 0
            gradient = _scaled_gradient(function, variables, dy, scales)
            if matches(np.asarray(gradient[path])):
                yield _describe_edge(edge, consumers[edge.operand])
    diagonal = _diagonal_gradient(function, variables, dy, path)
    if diagonal is not None and matches(diagonal):
        yield "only the diagonal of the Jacobian is used"


def _describe_edge(edge: _Edge, consumers: int) -> str:
    """Describe an edge without gradient; `consumers` edges start at the same value."""
    target = edge.equation.primitive.name
    if len(edge.equation.invars) > 1:
        target = f"operand {edge.position} of {target}"
    if consumers > 1:
        return f"one path of a fan-out is missing, the one into {target}"
    return f"detached at {target}"


def _edges(program: ClosedJaxpr) -> list[_Edge]:
    """List the edges of a computation graph: every float operand of every equation."""
    return [
        _Edge(site.path, site.equation, position)
        for site in innermost_equations(program)
        for position, operand in enumerate(site.equation.invars)
        if not hasattr(operand, "val")
        and jnp.issubdtype(getattr(operand.aval, "dtype", int), jnp.floating)
    ]


@jit_unoptimized
def _scaled_gradient(
    function: WithConstants, variables: Variables, dy: Any, scales: Array
) -> Variables:
    """Compute the gradient with the cotangent along each edge multiplied by its scale."""
    trace = jax.make_jaxpr(WithConstants.__call__, return_shape=True)
    program, shape = trace(function, variables)
    scales_at: dict[Path, dict[int, Array]] = {}
    for edge, scale in zip(_edges(program), scales, strict=True):
        scales_at.setdefault(edge.path, {})[edge.position] = scale
    handlers: dict[Path, Handler] = {
        path: functools.partial(_evaluate_scaled, scales) for path, scales in scales_at.items()
    }

    def run(variables: Variables) -> Any:
        outputs, _ = interpret(program, handlers, jax.tree.leaves((function, variables)))
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return jax.vjp(run, variables)[1](dy)[0]


def _evaluate_scaled(
    scales: dict[int, Array], equation: JaxprEqn, inputs: list[Any], side_input: None
) -> tuple[Sequence[Any], None]:
    """Evaluate an equation so that the cotangent of each operand is multiplied by its scale."""
    inputs = list(inputs)
    for position, scale in scales.items():
        operand = inputs[position]
        constant = jax.lax.stop_gradient(operand)
        inputs[position] = (constant + scale * (operand - constant)).astype(operand.dtype)
    return evaluate_equation(equation, inputs), None


def _diagonal_gradient(
    function: WithConstants, variables: Variables, dy: Any, path: str
) -> np.ndarray | None:
    """Compute the gradient from the Jacobian's diagonal; None if it is large or not square."""
    outputs, leaf = jax.tree.leaves(dy), variables[path]
    if len(outputs) != 1 or outputs[0].shape != leaf.shape or outputs[0].size > _MAX_JACOBIAN:
        return None

    def f(leaf: Array) -> Array:
        return jax.tree.leaves(function(variables | {path: leaf}))[0].ravel()

    jacobian = jax.jacrev(f)(leaf).reshape(outputs[0].size, -1)
    return np.asarray(outputs[0] * jnp.diagonal(jacobian).reshape(outputs[0].shape))


def _describe_elements(wrong: np.ndarray) -> str:
    """Describe the wrong elements: their number and the indices that all of them share."""
    count, indices = int(wrong.sum()), np.argwhere(wrong)
    description = f"{count} of {wrong.size} elements wrong"
    shared = [
        f"index {indices[0][axis]} of axis {axis}"
        for axis in range(wrong.ndim)
        if wrong.shape[axis] > 1 and (indices[:, axis] == indices[0][axis]).all()
    ]
    return f"{description}, all at {' and '.join(shared)}" if count > 1 and shared else description
