"""What a graph is made of: nodes, edges, and what is said of a derivative that is too large to be listed."""

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
    """A local derivative too large to be listed.

    Attributes:
        shape: that of the target, then that of the source.
        measure: computes the norm, which takes as long as a few steps back through the operation.
        exact: whether the norm is computed or, to a few percent, estimated.
    """

    shape: tuple[int, ...]
    measure: Callable[[], float] = dataclasses.field(repr=False)
    exact: bool = True

    @functools.cached_property
    def norm(self) -> float:
        """The square root of the sum of its squared entries (Frobenius); NaN for complex numbers."""
        return self.measure()


def has_64_bits() -> bool:
    """Whether 64-bit numbers are enabled now."""
    return jnp.result_type(float) == jnp.float64


def in_this_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run with 64-bit numbers if they are enabled now, whenever it is called."""
    enabled = has_64_bits()

    def run(*args: Any) -> Any:
        with jax.enable_x64(enabled):
            return function(*args)

    return run


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """A value of the computation.

    Attributes:
        name: the path of an argument, "params['weight']"; the name of a tap, numbered as `diffprog.nodes` does it where it is used several
            times, "h#0"; or the operation, numbered where it would share its name, "mul:0".
        op: "argument", "constant" (an array that the function closes over), a JAX primitive such as "mul", or the function of a box. Where
            f takes derivatives itself, "jvp(softmax)" is the function with what its derivative needs, "transpose(softmax)" the derivative.
        value: its value.
        adjoint: dJ/dvalue, of the same shape; None for integers, booleans and random keys.
        label: the operation as one reads it, "× 2" for a product with the number 2.
        scope: where it was computed, by the program's named scopes and the steps of unrolled loops: "Net/Dense_0", "step 2".
        tap: the name that a tap gave it, "" if none did.
        kind: "argument", "constant", "operation", "box" (a function shown whole) or "rule" (a box with a derivative rule of its own).
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
    """One operand of one operation: x * x has two edges.

    Attributes:
        source, target: names of nodes.
        slot: which operand of the target the source is.
        local: d target / d source, an array of the target's shape followed by the source's; a `Summary` where that is large; None where
            source or target is an integer, a boolean or a key. A rule that is not linear in the adjoint, such as one that clips it, has no
            derivative: here is what it makes of ones, and `flow` is what it does.
        flow: adjoint of the target times `local`: what this edge adds to the adjoint of the source; None as `local`.
        pull: any adjoint of the target times `local`, a function; None as `local`.
        cut: whether derivatives are stopped here, by `stop_gradient`.
        wrong: why a hand-written derivative is wrong here, from the report that the graph was held against; "" elsewhere.
    """

    source: str
    target: str
    slot: int
    local: Array | Summary | None
    flow: Array | None = None
    pull: Callable[[Array], Array] | None = dataclasses.field(default=None, repr=False)
    cut: bool = False
    wrong: str = ""
