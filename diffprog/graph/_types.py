"""Nodes and edges of a computation graph, and the summary of a derivative too large to store."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Array: TypeAlias = Any
"""A NumPy array; a JAX array for random keys, which NumPy does not have."""


@dataclasses.dataclass(frozen=True, eq=False)
class Summary:
    """Shape and Frobenius norm of a local derivative too large to be stored.

    Attributes:
        shape: shape of the derivative d target / d source: that of the target of an edge followed
            by that of its source.
        measure: function that computes the norm, by a few backward passes through the operation.
        exact: True if the norm is computed, False if it is estimated from 16 random probes, with a
            standard error of at most 18 percent.
    """

    shape: tuple[int, ...]
    measure: Callable[[], float] = dataclasses.field(repr=False)
    exact: bool = True

    @functools.cached_property
    def norm(self) -> float:
        """Frobenius norm, the root of the sum of squared entries; NaN for complex numbers."""
        return self.measure()


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """Node of a computation graph: a value h and its adjoint dJ/dh, where J is the output.

    Attributes:
        name: unique name. That of an argument is its path, "params['weight']"; that of a value
            named with `tap` this name, with a number if it is used several times, "h#0"; that of
            others the operation, with a number if it is not unique, "mul:0".
        op: "argument", "constant" (an array that the function closes over), a JAX primitive such
            as "mul", or the name of a function that is shown as one node, such as "softmax".
        value: the array h that was computed.
        adjoint: dJ/dh, of the same shape; None for integers, booleans and random keys.
        label: the operation in short notation, "× 2" for a product with the number 2.
        scope: named scopes and steps of unrolled loops in which it was computed, "Net/Dense_0".
        tap: the name given with `tap`, or "".
        kind: "argument", "constant", "operation", "box" (a function shown as one node) or "rule"
            (a box with a custom derivative rule).
    """

    name: str
    op: str
    value: Array
    adjoint: Array | None
    label: str = ""
    scope: str = ""
    tap: str = ""
    kind: str = "operation"


@dataclasses.dataclass(frozen=True, eq=False)
class Edge:
    """Edge of a computation graph, from an operand to an operation, with its local derivative.

    An operation has an edge for each of its operands: x * x has two from x.

    Attributes:
        source, target: names of nodes.
        slot: position of the source among the operands of the target.
        local: d target / d source, an array of the target's shape followed by the source's; a
            `Summary` if that is large; None if source or target is an integer, a boolean or a
            random key. A custom rule that is not linear in the adjoint (gradient clipping, say)
            has no such array: `local` is then the rule applied to ones, and `flow` is exact.
        flow: adjoint of the target times `local`: the contribution of this edge to the adjoint of
            the source; None if `local` is None.
        pull: function that multiplies any adjoint of the target with `local`; None if `local` is.
        cut: True if `stop_gradient` stops the derivative here.
        wrong: why the hand-written derivative is wrong here, according to the report given to
            `trace`; else "".
    """

    source: str
    target: str
    slot: int
    local: Array | Summary | None
    flow: Array | None = None
    pull: Callable[[Array], Array] | None = dataclasses.field(default=None, repr=False)
    cut: bool = False
    wrong: str = ""


def is_x64_enabled() -> bool:
    """Check whether JAX has 64-bit numbers enabled."""
    return jnp.result_type(float) == jnp.float64


def preserve_x64(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `function` so that it always runs with the 64-bit setting that JAX has now."""
    enabled = is_x64_enabled()

    def wrapped(*args: Any) -> Any:
        with jax.enable_x64(enabled):
            return function(*args)

    return wrapped
