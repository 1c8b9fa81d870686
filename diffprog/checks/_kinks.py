"""Find the kinks and jumps of a function, where operations such as `max` or `floor` change branch.

Gradients are not unique at a kink, and finite differences across one are wrong. A piecewise
operation has for each output element a branch (which operand of a `max` is larger, which index of
an `argmax`) and a margin, the distance of its operands from values where the branch changes:

    max, min, comparisons    |a - b|
    abs, sign                |a|         (sqrt, rsqrt, cbrt, log, pow: singular derivative at 0)
    clamp                    distance to the nearer bound
    reduce_max, argmax, ...  largest minus second largest
    sort                     difference of neighbours in the sorted order
    floor, ceil, round       distance to the nearest jump

A direction crosses a kink if a branch differs between a small step forwards and a small step
backwards.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog._jaxpr import JaxprEqn, evaluate_equation, find_equations, interpret, reduced_axes
from diffprog.checks._gradient_function import Variables, WithConstants, jit_unoptimized

_STEP = 2.0**-22


class Kink(NamedTuple):
    """Output element of a piecewise operation (relu, max, abs, ...), and how near a kink it is.

    `margin` is the distance of its operands to the kink, such as |a - b| for max(a, b).
    """

    operation: str
    element: tuple[int, ...]
    margin: float

    def __str__(self) -> str:
        return f"{self.operation} at element {self.element}, margin {self.margin:.2g}"


class Branches(NamedTuple):
    """Which branch of a piecewise operation each output element is on, and how far from another.

    For max(a, b), for example, `branch` is the sign of a - b and `margin` is |a - b|.
    """

    margin: Any
    branch: Any


def kinks_along(function: WithConstants, variables: Variables, direction: Variables) -> list[Kink]:
    """List the kinks of a function that a small step along a direction crosses, nearest first."""
    here, after, before = (
        find_branches(
            function, {path: leaf + step * direction[path] for path, leaf in variables.items()}
        )
        for step in (0.0, _STEP, -_STEP)
    )
    kinks = []
    for name, branches in here.items():
        changed = after[name].branch != before[name].branch
        # Only the nearest kinks are reported, so a bounded number of candidates is enough.
        kinks += [_kink(name, branches, index) for index in np.argwhere(changed)[:100]]
    return sorted(kinks, key=lambda kink: kink.margin)


def find_branches(function: WithConstants, variables: Variables) -> dict[str, Branches]:
    """Evaluate a function and return the `Branches` of each of its piecewise operations.

    The keys are the operation's name and number, such as "max#0".
    """
    return jax.device_get(_evaluate_branches(function, variables))


def first_branch_change(before: dict[str, Branches], after: dict[str, Branches]) -> Kink | None:
    """Return the first array element that is on another side of a kink in the second evaluation.

    `before` and `after` are results of `find_branches` at two points. None if there is none.
    """
    for name, branches in before.items():
        changed = np.argwhere(branches.branch != after[name].branch)
        if len(changed):
            return _kink(name, branches, changed[0])
    return None


def nearest_kink(function: WithConstants, variables: Variables) -> Kink | None:
    """Return the element with the smallest margin over all piecewise operations of a function.

    Returns None if the function has no piecewise operation.
    """
    kinks = []
    for name, branches in find_branches(function, variables).items():
        margin = np.nan_to_num(branches.margin, nan=np.inf)
        if margin.size:
            index = np.unravel_index(int(np.argmin(margin)), margin.shape)
            kinks.append(_kink(name, branches, index))
    return min(kinks, key=lambda kink: kink.margin, default=None)


def _kink(name: str, branches: Branches, index: Sequence[Any] | np.ndarray) -> Kink:
    element = tuple(int(i) for i in index)
    return Kink(name.split("#")[0], element, float(branches.margin[element]))


@jit_unoptimized
def _evaluate_branches(function: WithConstants, variables: Variables) -> dict[str, Branches]:
    args = function, variables
    program = jax.make_jaxpr(WithConstants.__call__)(*args)
    sites = [
        site for site in find_equations(program, _is_branching) if site.opaque_primitive is None
    ]
    handlers = {
        site.path: functools.partial(_record, _BRANCHES_OF_PRIMITIVE[site.equation.primitive.name])
        for site in sites
    }
    _, side_outputs = interpret(program, handlers, jax.tree.leaves(args))
    return {
        f"{site.equation.primitive.name}#{number}": side_outputs[site.path]
        for number, site in enumerate(sites)
    }


def _is_branching(equation: JaxprEqn) -> bool:
    dtypes = [getattr(variable.aval, "dtype", None) for variable in equation.invars]
    return equation.primitive.name in _BRANCHES_OF_PRIMITIVE and any(
        dtype is not None and jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes
    )


def _record(
    branches: Callable[..., Branches], equation: JaxprEqn, inputs: list[Any], side_input: None
) -> tuple[Sequence[Any], Branches]:
    return evaluate_equation(equation, inputs), branches(equation, *inputs)


def _sign(equation: JaxprEqn, a: Array, *others: Any) -> Branches:
    return Branches(jnp.abs(a), jnp.sign(a))


def _comparison(equation: JaxprEqn, a: Array, b: Array) -> Branches:
    return _sign(equation, a - b)


def _clamp(equation: JaxprEqn, low: Array, x: Array, high: Array) -> Branches:
    margin = jnp.minimum(jnp.abs(x - low), jnp.abs(x - high))
    return Branches(margin, jnp.sign(x - low) + jnp.sign(x - high))


def _rounding(equation: JaxprEqn, a: Array) -> Branches:
    # floor and ceil jump at integers, round halfway between them.
    shifted = a - 0.5 if equation.primitive.name == "round" else a
    return Branches(jnp.abs(shifted - jnp.round(shifted)), evaluate_equation(equation, [a])[0])


def _extremum(equation: JaxprEqn, a: Array) -> Branches:
    axes = reduced_axes(equation)
    rows = jnp.moveaxis(a, axes, range(-len(axes), 0))
    rows = rows.reshape(*rows.shape[: a.ndim - len(axes)], -1)
    rows = -rows if equation.primitive.name in ("reduce_min", "argmin") else rows
    if rows.shape[-1] < 2:  # no competitor
        return Branches(jnp.full(rows.shape[:-1], jnp.inf), jnp.zeros(rows.shape[:-1]))
    top = jax.lax.top_k(rows, 2)[0]
    return Branches(top[..., 0] - top[..., 1], jnp.argmax(rows, -1))


def _sort(equation: JaxprEqn, a: Array, *others: Any) -> Branches:
    axis = equation.params["dimension"]
    gaps = jnp.abs(jnp.diff(jnp.sort(a, axis), axis=axis))
    order = jnp.argsort(a, axis)
    return Branches(gaps, jax.lax.slice_in_dim(order, 0, gaps.shape[axis], axis=axis))


_BRANCHES_OF_PRIMITIVE: dict[str, Callable[..., Branches]] = {
    **dict.fromkeys(("max", "min", "gt", "ge", "lt", "le", "eq", "ne"), _comparison),
    **dict.fromkeys(("abs", "sign", "sqrt", "rsqrt", "cbrt", "log", "pow"), _sign),
    **dict.fromkeys(("reduce_max", "reduce_min", "argmax", "argmin"), _extremum),
    **dict.fromkeys(("floor", "ceil", "round"), _rounding),
    "clamp": _clamp,
    "sort": _sort,
}
