"""Derivatives of a list of operations: a local one for each operand, and what they send back from the output.

From the last operation to the first, an operation with inputs a_i and outputs b_k turns the adjoints dJ/db_k, by then complete, into flows
dJ/db_k db_k/da_i, and the adjoint of a value is the sum of the flows that reach it. An adjoint that nothing has reached is a zero which is
not multiplied with anything, as in JAX: 0 times an infinite derivative stays out.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffprog.graph._flatten import Operation
from diffprog.graph._jacobian_norms import is_diagonal, norms_of, ones, unit
from diffprog.graph._types import Summary, preserve_x64

_FULL = 1024  # entries of a derivative that is listed


class Derivative(NamedTuple):
    """The derivative of one output of an operation with respect to one input, and the flow along it, None where it is zero."""

    slot: int
    output: int
    local: Any
    flow: Any
    pull: Callable[[Any], Any]


def differentiable(value: Any) -> bool:
    """Whether a value has an adjoint."""
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact)


def derivatives(
    operations: Sequence[Operation], values: Sequence[Any], output: int
) -> tuple[dict[int, Any], list[list[Derivative]]]:
    """The adjoint of each place, where there is one, and the derivatives of each operation."""
    adjoints: dict[int, Any] = {output: ones(values[output])}
    found: list[list[Derivative]] = []
    for operation in reversed(operations):
        of_operation = _of_operation(
            operation,
            [values[place] for place in operation.outputs],
            [adjoints.get(p) for p in operation.outputs],
        )
        for derivative in of_operation:
            source = operation.sources[derivative.slot]
            if derivative.flow is not None and source is not None:
                adjoints[source] = (
                    adjoints[source] + derivative.flow if source in adjoints else derivative.flow
                )
        found.append(of_operation)
    return adjoints, found[::-1]


def _of_operation(
    operation: Operation, outputs: list[Any], adjoints: list[Any]
) -> list[Derivative]:
    slots = [
        k
        for k, source in enumerate(operation.sources)
        if source is not None and differentiable(operation.inputs[k])
    ]
    made = [k for k, output in enumerate(outputs) if differentiable(output)]
    if not slots or not made:
        return []

    def run(*inputs: Any) -> list[Any]:
        given = dict(zip(slots, inputs, strict=True))
        results = operation.run(*(given.get(k, value) for k, value in enumerate(operation.inputs)))
        return [results[k] for k in made]

    pull_all = _vjp(operation, run, [operation.inputs[slot] for slot in slots])
    zeros = (
        [np.zeros(outputs[k].shape, outputs[k].dtype) for k in made] if len(made) > 1 else [None]
    )
    found = []
    for position, k in enumerate(made):
        pull = functools.partial(_pull, pull_all, zeros, position)
        adjoint = None if operation.op == "stop_gradient" else adjoints[k]
        flows = [None] * len(slots) if adjoint is None else pull(adjoint)
        for place, (slot, local) in enumerate(
            zip(slots, _locals(operation, slots, outputs[k], pull), strict=True)
        ):
            found.append(
                Derivative(
                    slot,
                    k,
                    local,
                    flows[place],
                    functools.partial(_pull_one, pull, outputs[k].dtype, place),
                )
            )
    return found


def _pull(pull_all: Any, zeros: list[Any], position: int, adjoint: Any) -> tuple[Any, ...]:
    return pull_all([*zeros[:position], adjoint, *zeros[position + 1 :]])


def _pull_one(pull: Any, dtype: Any, place: int, adjoint: Any) -> np.ndarray:
    return np.asarray(pull(np.asarray(adjoint, dtype))[place])


def _vjp(operation: Operation, run: Callable[..., Any], inputs: list[Any]) -> Callable[[Any], Any]:
    try:
        return preserve_x64(jax.vjp(run, *inputs)[1])
    except (TypeError, ValueError, NotImplementedError) as error:
        said = str(error).partition("\n")[0]
        raise TypeError(
            f"f must be differentiable, but its operation {operation.op!r} is not: give it a derivative with jax.custom_vjp, or cut it off "
            f"with stop_gradient on what it reads. JAX says: {said}"
        ) from error


def _locals(
    operation: Operation, slots: list[int], output: Any, pull: Callable[[Any], Any]
) -> list[Any]:
    """The local derivative of one output with respect to each of the inputs at `slots`."""
    inputs = [operation.inputs[slot] for slot in slots]
    if any(jnp.iscomplexobj(array) for array in (output, *inputs)):
        return [Summary((*output.shape, *value.shape), lambda: math.nan) for value in inputs]
    small = [output.size * value.size <= _FULL for value in inputs]
    listed = _listed(operation, inputs, output, pull, small)
    norms = norms_of(operation, slots, output, pull)
    return [
        np.zeros((*output.shape, *value.shape), output.dtype)
        if output.size * value.size == 0
        else whole
        if keep
        else norm
        for value, whole, keep, norm in zip(inputs, listed, small, norms, strict=True)
    ]


def _listed(
    operation: Operation,
    inputs: list[Any],
    output: Any,
    pull: Callable[[Any], Any],
    small: list[bool],
) -> list[Any]:
    """The derivatives that are small, all entries."""
    if output.size == 0 or not any(
        keep and value.size for keep, value in zip(small, inputs, strict=True)
    ):
        return [None] * len(inputs)
    if is_diagonal(operation, inputs, output):
        return [
            np.diag(np.asarray(flow).ravel()).reshape(output.shape * 2)
            for flow in pull(ones(output))
        ]
    rows = _rows(output, pull, small)
    return [
        np.asarray(row).reshape((*output.shape, *value.shape)) if keep else None
        for row, value, keep in zip(rows, inputs, small, strict=True)
    ]


def _rows(output: Any, pull: Callable[[Any], Any], wanted: list[bool]) -> list[Any]:
    """The Jacobians, a row for each entry of the output, of the inputs that are wanted."""
    if output.size == 1:
        return list(pull(ones(output)))
    return jax.vmap(
        lambda row: [flow if keep else None for flow, keep in zip(pull(row), wanted, strict=True)]
    )(unit(output))
