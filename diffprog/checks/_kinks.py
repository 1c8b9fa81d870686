"""Where a function has kinks and jumps: which operation chooses there, for which element, and by what margin.

Each operation that chooses has a state (which side of a max, which of a row is the largest) and a margin, how far its operands are from
another state:

    max, min, comparisons    a - b
    abs, sign                a           (sqrt, rsqrt, log, pow: a too, where the derivative is infinite)
    clamp                    the distance to the nearer bound
    reduce_max, argmax, ...  the largest less the second largest
    sort                     the least difference of two neighbours
    floor, ceil, round       the distance to the nearest jump

A kink lies in the way of a direction if some state is another after a small step forwards than after a small step backwards.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog._jaxpr import (
    JaxprEqn,
    evaluate_equation,
    find_equations,
    interpret,
    reduced_axes,
)
from diffprog.checks._gradient_function import Claim, Variables, compiled
from diffprog.program import Program

_STEP = 2.0**-22


class Kink(NamedTuple):
    """An operation that chooses, the element of its output, and the margin by which it does."""

    operation: str
    element: tuple[int, ...]
    margin: float

    def __str__(self) -> str:
        return f"{self.operation} at element {self.element}, margin {self.margin:.2g}"


class Choice(NamedTuple):
    """Margin and state of one operation, element by element."""

    margin: Any
    state: Any


def kinks_along(claim: Claim, variables: Variables, direction: Variables) -> list[Kink]:
    """The kinks within a small step of `variables` in the way of a direction, nearest first."""
    here, after, before = (
        choices(claim, _moved(variables, direction, step)) for step in (0.0, _STEP, -_STEP)
    )
    found = []
    for name, at in here.items():
        changed = np.asarray(after[name].state) != np.asarray(before[name].state)
        found += [_kink(name, at, index) for index in np.argwhere(changed)[:100]]
    return sorted(found, key=lambda kink: kink.margin)


def choices(claim: Claim, variables: Variables) -> dict[str, Choice]:
    """Every choice that the function makes, by operation and number."""
    return {
        name: Choice(*map(np.asarray, choice))
        for name, choice in _traced_choices(claim.value, variables, claim.fixed).items()
    }


def first_changed(before: dict[str, Choice], after: dict[str, Choice]) -> Kink | None:
    """A choice that was made in another way the second time."""
    changed = (
        (name, at, np.argwhere(at.state != after[name].state)) for name, at in before.items()
    )
    return next((_kink(name, at, where[0]) for name, at, where in changed if len(where)), None)


def nearest_kink(claim: Claim, variables: Variables) -> Kink | None:
    """The choice with the least margin of all."""
    found = {name: at for name, at in choices(claim, variables).items() if at.margin.size}
    nearest = [
        _kink(
            name,
            at,
            np.unravel_index(int(np.argmin(np.nan_to_num(at.margin, nan=np.inf))), at.margin.shape),
        )
        for name, at in found.items()
    ]
    return min(nearest, key=lambda kink: kink.margin, default=None)


def _kink(name: str, at: Choice, index: Sequence[Any] | np.ndarray) -> Kink:
    element = tuple(int(i) for i in index)
    return Kink(name.split("#")[0], element, float(np.asarray(at.margin)[element]))


def _moved(variables: Variables, direction: Variables, step: float) -> Variables:
    return {path: leaf + step * direction[path] for path, leaf in variables.items()}


@compiled
def _traced_choices(
    value: Program, variables: Variables, fixed: dict[str, Any]
) -> dict[str, Choice]:
    program = jax.make_jaxpr(value)(variables, fixed)
    found = [site for site in find_equations(program, _chooses) if site.opaque_primitive is None]
    actions = {
        site.path: functools.partial(_look, _CHOOSING[site.equation.primitive.name])
        for site in found
    }
    _, side = interpret(program, actions, jax.tree.leaves((variables, fixed)))
    return {
        f"{site.equation.primitive.name}#{number}": side[site.path]
        for number, site in enumerate(found)
    }


def _chooses(equation: JaxprEqn) -> bool:
    dtypes = [getattr(variable.aval, "dtype", None) for variable in equation.invars]
    return equation.primitive.name in _CHOOSING and any(
        dtype is not None and jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes
    )


def _look(
    choice: Callable[..., Choice], equation: JaxprEqn, inputs: list[Any], given: None
) -> tuple[Sequence[Any], Choice]:
    return evaluate_equation(equation, inputs), choice(equation, *inputs)


def _difference(equation: JaxprEqn, a: Array, b: Array) -> Choice:
    return _signed(equation, a - b)


def _signed(equation: JaxprEqn, a: Array, *others: Any) -> Choice:
    return Choice(jnp.abs(a), jnp.sign(a))


def _clamped(equation: JaxprEqn, low: Array, x: Array, high: Array) -> Choice:
    return Choice(
        jnp.minimum(jnp.abs(x - low), jnp.abs(x - high)), jnp.sign(x - low) + jnp.sign(x - high)
    )


def _jumping(equation: JaxprEqn, a: Array) -> Choice:
    shifted = a - 0.5 if equation.primitive.name == "round" else a
    return Choice(jnp.abs(shifted - jnp.round(shifted)), evaluate_equation(equation, [a])[0])


def _extreme(equation: JaxprEqn, a: Array) -> Choice:
    axes = reduced_axes(equation)
    rows = jnp.moveaxis(a, axes, range(-len(axes), 0))
    rows = rows.reshape(*rows.shape[: a.ndim - len(axes)], -1)
    rows = -rows if equation.primitive.name in ("reduce_min", "argmin") else rows
    if rows.shape[-1] < 2:
        return Choice(jnp.full(rows.shape[:-1], jnp.inf), jnp.zeros(rows.shape[:-1]))
    top = jax.lax.top_k(rows, 2)[0]
    return Choice(top[..., 0] - top[..., 1], jnp.argmax(rows, -1))


def _sorted(equation: JaxprEqn, a: Array, *others: Any) -> Choice:
    axis = equation.params["dimension"]
    gaps = jnp.abs(jnp.diff(jnp.sort(a, axis), axis=axis))
    order = jnp.argsort(a, axis)
    return Choice(gaps, jax.lax.slice_in_dim(order, 0, gaps.shape[axis], axis=axis))


_CHOOSING: dict[str, Callable[..., Choice]] = {
    **dict.fromkeys(("max", "min", "gt", "ge", "lt", "le", "eq", "ne"), _difference),
    **dict.fromkeys(("abs", "sign", "sqrt", "rsqrt", "cbrt", "log", "pow"), _signed),
    **dict.fromkeys(("reduce_max", "reduce_min", "argmax", "argmin"), _extreme),
    **dict.fromkeys(("floor", "ceil", "round"), _jumping),
    "clamp": _clamped,
    "sort": _sorted,
}
