"""Reverse pass over recorded operations: adjoints of all values and local derivatives of all edges.

Operations are visited from the last to the first. One with inputs a_i and outputs b_k turns the
adjoints dJ/db_k of its outputs, which are complete by then, into flows dJ/db_k db_k/da_i, where J
is the scalar output. The adjoint of a value is the sum of the flows that reach it. As in JAX, an
adjoint that no flow has reached is a symbolic zero that is never multiplied, so that zero times an
infinite derivative does not give NaN.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffprog.graph._flatten import RecordedOperation
from diffprog.graph._jacobian_norms import Pull, is_diagonal, jacobian_norms, ones, unit_rows
from diffprog.graph._types import Summary, preserve_x64

_MAX_STORED = 1024  # entries of a local derivative that is stored


class LocalDerivative(NamedTuple):
    """Derivative of one output of an operation with respect to one of its inputs.

    Attributes:
        slot: position of the input among the inputs of the operation.
        output: position of the output among its outputs.
        local: the derivative, an array or a `Summary`.
        flow: adjoint of the output times `local`; None if it is zero.
        pull: function that multiplies any adjoint of the output with `local`.
    """

    slot: int
    output: int
    local: Any
    flow: Any
    pull: Callable[[Any], Any]


def is_differentiable(value: Any) -> bool:
    """Check whether a value is floating-point or complex: only such values have an adjoint."""
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact)


def reverse_pass(
    operations: Sequence[RecordedOperation], values: Sequence[Any], output: int
) -> tuple[dict[int, Any], list[list[LocalDerivative]]]:
    """Differentiate `values[output]` with respect to all values that the operations use.

    Args:
        operations: recorded operations in the order of evaluation.
        values: values of their inputs and outputs, see `Recorder.values`.
        output: index of the scalar to differentiate.

    Returns:
        A pair: a dict of adjoints by index of the value, without those that are zero; and for each
        operation a list of its local derivatives.
    """
    adjoints: dict[int, Any] = {output: ones(values[output])}
    derivatives: list[list[LocalDerivative]] = []
    for operation in reversed(operations):
        outputs = [values[index] for index in operation.outputs]
        output_adjoints = [adjoints.get(index) for index in operation.outputs]
        of_operation = _differentiate(operation, outputs, output_adjoints)
        for slot, _, _, flow, _ in of_operation:
            source = operation.sources[slot]
            if flow is not None and source is not None:
                adjoints[source] = adjoints[source] + flow if source in adjoints else flow
        derivatives.append(of_operation)
    return adjoints, derivatives[::-1]


def _differentiate(
    operation: RecordedOperation, outputs: list[Any], adjoints: list[Any]
) -> list[LocalDerivative]:
    """Return a `LocalDerivative` for each pair of an input and an output of an operation.

    `adjoints` holds the adjoint of each output, None for zero; a local derivative also records what
    it sends back to the input. Integers and random keys are left out.
    """
    slots = [
        slot
        for slot, source in enumerate(operation.sources)
        if source is not None and is_differentiable(operation.inputs[slot])
    ]
    positions = [k for k, output in enumerate(outputs) if is_differentiable(output)]
    if not slots or not positions:
        return []
    zeros = [jnp.zeros_like(outputs[k]) for k in positions] if len(positions) > 1 else [None]
    pull_all = _vjp(operation, slots, positions)
    derivatives = []
    for rank, k in enumerate(positions):
        pull = jax.tree_util.Partial(functools.partial(_pull_output, rank), pull_all, zeros)
        adjoint = None if operation.op == "stop_gradient" else adjoints[k]
        flows = [None] * len(slots) if adjoint is None else pull(adjoint)
        jacobians = _local_derivatives(operation, slots, outputs[k], pull)
        for place, slot in enumerate(slots):
            pull_input = functools.partial(_pull_input, pull, outputs[k].dtype, place)
            values = slot, k, jacobians[place], flows[place]
            derivatives.append(LocalDerivative(*values, preserve_x64(pull_input)))
    return derivatives


def _vjp(operation: RecordedOperation, slots: list[int], positions: list[int]) -> Pull:
    """Return the VJP of an operation.

    It maps a list of adjoints of the outputs at `positions` to those of the inputs at `slots`.
    """

    def run(*inputs: Any) -> list[Any]:
        given = list(operation.inputs)
        for slot, value in zip(slots, inputs, strict=True):
            given[slot] = value
        results = operation.run(*given)
        return [results[k] for k in positions]

    try:
        _, pull = jax.vjp(run, *(operation.inputs[slot] for slot in slots))
    except (TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(
            f"f must be differentiable, but its operation {operation.op!r} is not: give it a "
            "derivative with jax.custom_vjp, or apply stop_gradient to its operands. "
            f"JAX says: {reason}"
        ) from error
    return pull


def _pull_output(rank: int, pull_all: Pull, zeros: list[Any], adjoint: Any) -> Any:
    return pull_all([*zeros[:rank], adjoint, *zeros[rank + 1 :]])


def _pull_input(pull: Pull, dtype: Any, place: int, adjoint: Any) -> np.ndarray:
    return np.asarray(pull(np.asarray(adjoint, dtype))[place])


def _local_derivatives(
    operation: RecordedOperation, slots: list[int], output: Any, pull: Pull
) -> list[Any]:
    """Return the derivative of `output` with respect to each input at `slots` of an operation.

    Each is an array or, if it is large or complex, a `Summary`. `pull` maps an adjoint of `output`
    to the adjoints of these inputs.
    """
    inputs = [operation.inputs[slot] for slot in slots]
    if any(jnp.iscomplexobj(array) for array in (output, *inputs)):
        return [Summary((*output.shape, *value.shape), lambda: math.nan) for value in inputs]
    derivatives: list[Any] = list(jacobian_norms(operation, slots, output, pull))
    sizes = [output.size * value.size for value in inputs]
    if any(0 < size <= _MAX_STORED for size in sizes):
        if is_diagonal(operation, inputs, output):
            rows = [np.diag(np.asarray(flow).ravel()) for flow in pull(ones(output))]
        elif output.size == 1:
            rows = pull(ones(output))
        else:
            rows = jax.vmap(pull)(unit_rows(output))
    for place, (value, size) in enumerate(zip(inputs, sizes, strict=True)):
        if size <= _MAX_STORED:
            entries = np.asarray(rows[place]) if size else np.zeros(0, output.dtype)
            derivatives[place] = entries.reshape((*output.shape, *value.shape))
    return derivatives
