"""What a wrong gradient looks like: the usual mistakes, each made on purpose and compared with what was claimed.

Some leave the true gradient recognisable (a sign, a factor, a transposition). Others are the gradient of a neighbouring problem: with a
weight transposed, with a kernel turned, with one path of a fan-out cut. For the last, every operand of every operation has a switch s,

    h -> s h + (1 - s) stop_gradient(h),

which leaves the value and scales what flows back along that edge; the gradient with one switch off is compared with the claim.
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
from diffprog.checks._finite_differences import automatic
from diffprog.checks._gradient_function import Claim, Variables, compiled
from diffprog.checks._rounding_error import smallest
from diffprog.program import Program

Alike: TypeAlias = Callable[[np.ndarray, np.ndarray], bool]

_EDGES, _JACOBIAN = 200, 1024  # no more switches, and no larger a Jacobian, than these are tried


def hint(
    claim: Claim,
    variables: Variables,
    dy: Any,
    path: str,
    got: np.ndarray,
    want: np.ndarray,
    wrong: np.ndarray,
) -> str:
    """What the claimed gradient of one leaf looks like.

    Args:
        claim, variables, dy: the problem.
        path: the leaf.
        got: its claimed gradient.
        want: its true gradient, of the same shape.
        wrong: where they differ by more than rounding.
    """
    # A mistake is recognised if it leaves a thousandth of the error at most.
    alike = functools.partial(_alike, most=1e-3 * float(np.abs(got - want)[wrong].max()))
    sizes = {
        leaf.shape[0]
        for leaf in jax.tree.leaves((variables, claim.fixed, dy))
        if getattr(leaf, "ndim", 0)
    }
    found = next(
        itertools.chain(
            _of_itself(got, want, sizes, alike),
            _of_neighbours(claim, variables, dy, path, got, alike),
        ),
        None,
    )
    return f"{found}; {_where(wrong)}" if found and not wrong.all() else found or _where(wrong)


def shape_hint(got: tuple[int, ...], want: tuple[int, ...]) -> str:
    """What a gradient of another shape than its leaf may be."""
    said = f"has shape {list(got)}, the leaf {list(want)}"
    if sorted(got) == sorted(want):
        return f"{said}: transposed"
    return (
        f"{said}: a sum over axis {_extra(got, want)} is missing"
        if _extra(got, want) is not None
        else said
    )


def _extra(got: tuple[int, ...], want: tuple[int, ...]) -> int | None:
    return next((axis for axis in range(len(got)) if got[:axis] + got[axis + 1 :] == want), None)


def _alike(a: np.ndarray, b: np.ndarray, most: float) -> bool:
    return a.shape == b.shape and bool(np.abs(a - b).max() <= most)


def _of_itself(got: np.ndarray, want: np.ndarray, sizes: set[int], alike: Alike) -> Iterator[str]:
    if not got.any():
        yield "detached: the claimed gradient is zero"
        return
    if alike(got, -want):
        yield "sign: minus the gradient"
    factor = float((got * want).sum() / (want * want).sum()) if want.any() else math.nan
    if math.isfinite(factor) and alike(got, factor * want):
        yield f"a constant factor {factor:.6g}{_meant(factor, sizes)}"
    for axes in itertools.permutations(range(want.ndim)):
        if axes != tuple(range(want.ndim)) and alike(got, want.transpose(axes)):
            yield "transposed" if want.ndim == 2 else f"transposed: axes {axes}"
    for count in range(1, want.ndim + 1):
        for axes in itertools.combinations(range(want.ndim), count):
            if alike(got, np.flip(want, axes)):
                yield f"flipped along axes {axes}"


def _meant(factor: float, sizes: set[int]) -> str:
    """What the factor is, if it counts examples."""
    for size in sizes - {1}:
        if math.isclose(factor * size, 1, rel_tol=1e-6):
            return f" = 1/{size}: a mean where a sum is meant"
        if math.isclose(factor, size, rel_tol=1e-6):
            return ": a sum where a mean is meant"
    return ""


def _of_neighbours(
    claim: Claim, variables: Variables, dy: Any, path: str, got: np.ndarray, alike: Alike
) -> Iterator[str]:
    for name, other in _altered(variables, path):
        if alike(got, np.asarray(automatic(claim, other, dy)[path])):
            yield name
    cut = _with_edges_cut(claim, variables, dy, path)
    yield from (name for name, gradient in cut if alike(got, gradient))
    diagonal = _diagonal(claim, variables, dy, path)
    if diagonal is not None and alike(got, diagonal):
        yield "only the diagonal of the Jacobian is used"


def _altered(variables: Variables, path: str) -> Iterator[tuple[str, Variables]]:
    """The variables with a square weight transposed, or a kernel turned by 180 degrees."""
    for name, leaf in variables.items():
        if name != path and leaf.ndim == 2 and leaf.shape[0] == leaf.shape[1]:
            yield (
                f"{name} is used where its transpose is meant, or the other way about",
                variables | {name: leaf.T},
            )
        if name != path and leaf.ndim >= 3:
            yield f"the kernel {name} is not flipped", variables | {name: np.flip(leaf, (0, 1))}


def _with_edges_cut(
    claim: Claim, variables: Variables, dy: Any, path: str
) -> list[tuple[str, np.ndarray]]:
    """For every edge of the program, the gradient of the leaf without what flows back along it."""
    program = jax.make_jaxpr(claim.value)(variables, claim.fixed)
    edges = _edges(program)
    if not 0 < len(edges) <= _EDGES:
        return []
    rows = 1 - np.eye(len(edges))
    run = functools.partial(_switched, claim.value, variables, claim.fixed, dy)
    readers = _readers(program)
    return [
        (_cut_name(edge, readers), np.asarray(run(row)[path]))
        for edge, row in zip(edges, rows, strict=True)
    ]


def _cut_name(edge: tuple[Path, JaxprEqn, int], readers: Counter[Any]) -> str:
    equation, operand = edge[1:]
    where = (
        f"operand {operand} of {equation.primitive.name}"
        if len(equation.invars) > 1
        else equation.primitive.name
    )
    if readers[equation.invars[operand]] > 1:
        return f"one path of a fan-out is missing, the one into {where}"
    return f"detached at {where}"


def _edges(program: ClosedJaxpr) -> list[tuple[Path, JaxprEqn, int]]:
    """Every float operand of every equation: path, equation, position."""
    return [
        (site.path, site.equation, position)
        for site in smallest(program)
        for position, operand in enumerate(site.equation.invars)
        if not hasattr(operand, "val")
        and jnp.issubdtype(getattr(operand.aval, "dtype", int), jnp.floating)
    ]


def _readers(program: ClosedJaxpr) -> Counter[Any]:
    operands = [operand for site in smallest(program) for operand in site.equation.invars]
    return Counter(operand for operand in operands if not hasattr(operand, "val"))


@compiled
def _switched(
    value: Program, variables: Variables, fixed: dict[str, Any], dy: Any, switches: Array
) -> Variables:
    program, shape = jax.make_jaxpr(value, return_shape=True)(variables, fixed)
    given: dict[Path, dict[int, Array]] = {}
    for (path, _, position), switch in zip(_edges(program), switches, strict=True):
        given.setdefault(path, {})[position] = switch
    actions: dict[Path, Handler] = {
        path: functools.partial(_switch, of_path) for path, of_path in given.items()
    }

    def run(variables: Variables) -> Any:
        outputs, _ = interpret(program, actions, jax.tree.leaves((variables, fixed)))
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return jax.vjp(run, variables)[1](dy)[0]


def _switch(
    switches: dict[int, Array], equation: JaxprEqn, inputs: list[Any], given: None
) -> tuple[Sequence[Any], None]:
    scaled = [
        _scaled(inputs[k], switches[k]) if k in switches else inputs[k] for k in range(len(inputs))
    ]
    return evaluate_equation(equation, scaled), None


def _scaled(operand: Array, switch: Array) -> Array:
    held = jax.lax.stop_gradient(operand)
    return (held + switch * (operand - held)).astype(operand.dtype)


def _diagonal(claim: Claim, variables: Variables, dy: Any, path: str) -> np.ndarray | None:
    """dy_i dy_i/dx_i, for a function from a leaf to one output of its shape."""
    outputs = jax.tree.leaves(dy)
    if (
        len(outputs) != 1
        or outputs[0].shape != variables[path].shape
        or outputs[0].size > _JACOBIAN
    ):
        return None
    f = lambda leaf: jax.tree.leaves(claim.value(variables | {path: leaf}, claim.fixed))[0].ravel()
    jacobian = jax.jacrev(f)(variables[path]).reshape(outputs[0].size, -1)
    return np.asarray(outputs[0] * jnp.diagonal(jacobian).reshape(outputs[0].shape))


def _where(wrong: np.ndarray) -> str:
    """How many elements are wrong, and what they have in common."""
    count = int(wrong.sum())
    said = f"{count} of {wrong.size} elements wrong"
    at = np.argwhere(wrong)
    shared = [
        f"index {at[0][axis]} of axis {axis}"
        for axis in range(wrong.ndim)
        if wrong.shape[axis] > 1 and (at[:, axis] == at[0][axis]).all()
    ]
    return f"{said}, all at {' and '.join(shared)}" if count > 1 and shared else said
