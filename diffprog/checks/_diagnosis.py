"""Diagnosis of a wrong gradient: compare it with the gradients that common mistakes would give.

Some mistakes transform the correct gradient: a sign, a factor, a transposition. Others give the
gradient of another function: with a weight transposed, a kernel not flipped, or one of the paths
missing by which a value reaches the output. To simulate a missing path, every operand h of every
operation in the computation graph is replaced by

    s h + (1 - s) stop_gradient(h),

with a scale s of its own. This keeps the value of h and multiplies the cotangent that the operation
passes back to it by s. The wrong gradient is compared with those where one s is 0 and all others 1.
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
    """Edge of a computation graph: the use of a value as an operand of an equation of a jaxpr.

    `path` says where the equation is in the jaxpr, `position` which of its operands is meant.
    """

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
    """Explain in words why the gradient with respect to one array is wrong, for a report.

    The text names the mistake, if a common one gives this gradient, and the wrong elements.

    Args:
        test: the function and its gradient under test.
        variables: float64 arguments of the function by path.
        dy: cotangent of the function's output.
        path: path of the array.
        got: its wrong gradient.
        want: its correct gradient, of the same shape.
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
    """Describe how the shape `got` of a gradient differs from the shape `want` of its variable."""
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
    """Yield a description of each simple transformation of the correct gradient into the wrong one.

    Tried are zero, the sign, a factor, transpositions and flips. `got` is the wrong gradient and
    `want` the correct one. `sizes` are lengths of batch axes, which may explain a factor.
    `matches(g)` tells if an array g equals the wrong gradient.
    """
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
    """Return a hint if `factor`, a wrong gradient over the correct one, is the length of an axis.

    A factor n or 1/n, for n in `sizes`, suggests a sum in place of a mean or the reverse. For any
    other factor the hint is empty.
    """
    for size in sizes - {1}:
        if math.isclose(factor * size, 1, rel_tol=1e-6):
            return f" = 1/{size}: a mean instead of a sum"
        if math.isclose(factor, size, rel_tol=1e-6):
            return ": a sum instead of a mean"
    return ""


def _mistakes_in_function(
    function: WithConstants, variables: Variables, dy: Any, path: str, matches: _Matches
) -> Iterator[str]:
    """Yield a description of each mistake in the function that would explain a wrong gradient.

    One at a time, square matrices are transposed, convolution kernels flipped, and operands of
    operations detached by `stop_gradient`. A mistake is yielded if the gradient of the changed
    function with respect to the array at `path` is the wrong one, as `matches(gradient)` tells.
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
    """Describe the mistake that no gradient flows back along an edge of the computation graph.

    `consumers` is the number of uses of the edge's value, including this one.
    """
    target = edge.equation.primitive.name
    if len(edge.equation.invars) > 1:
        target = f"operand {edge.position} of {target}"
    if consumers > 1:
        return f"one path of a fan-out is missing, the one into {target}"
    return f"detached at {target}"


def _edges(program: ClosedJaxpr) -> list[_Edge]:
    """List the edges of a jaxpr's computation graph: every float operand of every equation."""
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
    """Compute a gradient with the cotangent along each edge of the graph scaled by a factor.

    `scales` has one factor for each edge, in the order of `_edges`; a factor 0 detaches the edge.
    Returns the gradient with respect to each array of `variables`, for the output cotangent `dy`.
    """
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
    """Evaluate an equation so that in the backward pass the cotangents of its operands are scaled.

    `scales` maps positions of operands to factors. This is a handler for `interpret`: it returns
    the outputs of the equation, and None in place of a side output.
    """
    inputs = list(inputs)
    for position, scale in scales.items():
        operand = inputs[position]
        constant = jax.lax.stop_gradient(operand)
        inputs[position] = (constant + scale * (operand - constant)).astype(operand.dtype)
    return evaluate_equation(equation, inputs), None


def _diagonal_gradient(
    function: WithConstants, variables: Variables, dy: Any, path: str
) -> np.ndarray | None:
    """Compute the wrong gradient that results if the function is taken to be elementwise.

    It is dy times the diagonal of the Jacobian with respect to the array at `path`. Returns None if
    output and array differ in shape or are too large for a Jacobian.
    """
    outputs, leaf = jax.tree.leaves(dy), variables[path]
    if len(outputs) != 1 or outputs[0].shape != leaf.shape or outputs[0].size > _MAX_JACOBIAN:
        return None

    def f(leaf: Array) -> Array:
        return jax.tree.leaves(function(variables | {path: leaf}))[0].ravel()

    jacobian = jax.jacrev(f)(leaf).reshape(outputs[0].size, -1)
    return np.asarray(outputs[0] * jnp.diagonal(jacobian).reshape(outputs[0].shape))


def _describe_elements(wrong: np.ndarray) -> str:
    """Describe the True elements of a mask: their number and the indices that all of them share."""
    count, indices = int(wrong.sum()), np.argwhere(wrong)
    description = f"{count} of {wrong.size} elements wrong"
    shared = [
        f"index {indices[0][axis]} of axis {axis}"
        for axis in range(wrong.ndim)
        if wrong.shape[axis] > 1 and (indices[:, axis] == indices[0][axis]).all()
    ]
    return f"{description}, all at {' and '.join(shared)}" if count > 1 and shared else description
