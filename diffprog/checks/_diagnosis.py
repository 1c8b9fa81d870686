"""Diagnosis of a wrong gradient: common mistakes are made on purpose and compared with it.

Some mistakes transform the correct gradient: a sign, a factor, a transposition. Others give the
gradient of an altered function: with a weight transposed, with a kernel not flipped, with one path
of a fan-out missing. For the last, every operand of every operation has a switch s,

    h -> s h + (1 - s) stop_gradient(h),

which keeps the value and scales the cotangent that flows back along that edge. The gradient with
one switch off is compared with the wrong gradient.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog._jaxpr import ClosedJaxpr, Handler, JaxprEqn, Path, evaluate_equation, interpret
from diffprog.checks._finite_differences import reference_gradient
from diffprog.checks._gradient_function import GradientUnderTest, Variables, jit_unoptimized
from diffprog.checks._rounding_error import innermost_equations
from diffprog.program import Program

_Matches: TypeAlias = Callable[[np.ndarray], bool]
_Edge: TypeAlias = tuple[Path, JaxprEqn, int]

# Programs with more edges, and larger Jacobians, are not searched for mistakes.
_MAX_EDGES, _MAX_JACOBIAN = 200, 1024


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
        test: the function.
        variables: the point at which it is differentiated.
        dy: cotangent.
        path: the leaf.
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
        for leaf in jax.tree.leaves((variables, test.fixed, dy))
        if getattr(leaf, "ndim", 0)
    }
    diagnoses = itertools.chain(
        _transformations(got, want, sizes, matches),
        _altered_functions(test, variables, dy, path, matches),
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
    """Yield the signs, factors, transposes and flips that explain the wrong gradient."""
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
    """Explain a factor that is the length of a leading axis, or one over it."""
    for size in sizes - {1}:
        if math.isclose(factor * size, 1, rel_tol=1e-6):
            return f" = 1/{size}: a mean instead of a sum"
        if math.isclose(factor, size, rel_tol=1e-6):
            return ": a sum instead of a mean"
    return ""


def _altered_functions(
    test: GradientUnderTest, variables: Variables, dy: Any, path: str, matches: _Matches
) -> Iterator[str]:
    """Yield the alterations of the function that explain the wrong gradient."""
    for name, leaf in variables.items():
        if name == path:
            continue
        if leaf.ndim == 2 and leaf.shape[0] == leaf.shape[1]:
            alteration, altered = f"{name} in place of its transpose, or vice versa", leaf.T
        elif leaf.ndim >= 3:
            alteration, altered = f"the kernel {name} is not flipped", np.flip(leaf, (0, 1))
        else:
            continue
        gradient = reference_gradient(test, variables | {name: altered}, dy)
        if matches(np.asarray(gradient[path])):
            yield alteration
    program = jax.make_jaxpr(test.function)(variables, test.fixed)
    edges = _edges(program)
    if len(edges) <= _MAX_EDGES:
        consumers = _count_consumers(program)
        for number, edge in enumerate(edges):
            # One compiled program for all edges: the switches are an argument of it.
            switches = np.ones(len(edges))
            switches[number] = 0
            gradient = _switched_gradient(test.function, variables, test.fixed, dy, switches)
            if matches(np.asarray(gradient[path])):
                yield _describe_edge(edge, consumers)
    diagonal = _diagonal_gradient(test, variables, dy, path)
    if diagonal is not None and matches(diagonal):
        yield "only the diagonal of the Jacobian is used"


def _describe_edge(edge: _Edge, consumers: Counter[Any]) -> str:
    """Describe the edge of the computation graph along which no gradient flows back."""
    _, equation, operand = edge
    target = equation.primitive.name
    if len(equation.invars) > 1:
        target = f"operand {operand} of {target}"
    if consumers[equation.invars[operand]] > 1:
        return f"one path of a fan-out is missing, the one into {target}"
    return f"detached at {target}"


def _edges(program: ClosedJaxpr) -> list[_Edge]:
    """List path, equation and position of every float operand of every equation."""
    return [
        (site.path, site.equation, position)
        for site in innermost_equations(program)
        for position, operand in enumerate(site.equation.invars)
        if not hasattr(operand, "val")
        and jnp.issubdtype(getattr(operand.aval, "dtype", int), jnp.floating)
    ]


def _count_consumers(program: ClosedJaxpr) -> Counter[Any]:
    """Count the equations that use each variable."""
    return Counter(
        operand
        for site in innermost_equations(program)
        for operand in site.equation.invars
        if not hasattr(operand, "val")
    )


@jit_unoptimized
def _switched_gradient(
    function: Program, variables: Variables, fixed: dict[str, Any], dy: Any, switches: Array
) -> Variables:
    """Evaluate the gradient with the cotangent along every edge scaled by its switch."""
    program, shape = jax.make_jaxpr(function, return_shape=True)(variables, fixed)
    switches_at: dict[Path, dict[int, Array]] = {}
    for (path, _, position), switch in zip(_edges(program), switches, strict=True):
        switches_at.setdefault(path, {})[position] = switch
    handlers: dict[Path, Handler] = {
        path: functools.partial(_evaluate_switched, of_equation)
        for path, of_equation in switches_at.items()
    }

    def run(variables: Variables) -> Any:
        outputs, _ = interpret(program, handlers, jax.tree.leaves((variables, fixed)))
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return jax.vjp(run, variables)[1](dy)[0]


def _evaluate_switched(
    switches: dict[int, Array], equation: JaxprEqn, inputs: list[Any], side_input: None
) -> tuple[Sequence[Any], None]:
    inputs = list(inputs)
    for position, switch in switches.items():
        operand = inputs[position]
        constant = jax.lax.stop_gradient(operand)
        inputs[position] = (constant + switch * (operand - constant)).astype(operand.dtype)
    return evaluate_equation(equation, inputs), None


def _diagonal_gradient(
    test: GradientUnderTest, variables: Variables, dy: Any, path: str
) -> np.ndarray | None:
    """Compute the gradient from the Jacobian's diagonal; None if it is large or not square."""
    outputs, leaf = jax.tree.leaves(dy), variables[path]
    if len(outputs) != 1 or outputs[0].shape != leaf.shape or outputs[0].size > _MAX_JACOBIAN:
        return None

    def f(leaf: Array) -> Array:
        return jax.tree.leaves(test.function(variables | {path: leaf}, test.fixed))[0].ravel()

    jacobian = jax.jacrev(f)(leaf).reshape(outputs[0].size, -1)
    return np.asarray(outputs[0] * jnp.diagonal(jacobian).reshape(outputs[0].shape))


def _describe_elements(wrong: np.ndarray) -> str:
    """Count the wrong elements and name the indices they share."""
    count, indices = int(wrong.sum()), np.argwhere(wrong)
    description = f"{count} of {wrong.size} elements wrong"
    shared = [
        f"index {indices[0][axis]} of axis {axis}"
        for axis in range(wrong.ndim)
        if wrong.shape[axis] > 1 and (indices[:, axis] == indices[0][axis]).all()
    ]
    return f"{description}, all at {' and '.join(shared)}" if count > 1 and shared else description
