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

from diffprog.graph._parts import Summary
from diffprog.graph._unroll import Operation

_FULL = 1024  # entries of a derivative that is listed
_COUNTED = 2**20  # entries of one that is computed for its norm
_PROBES = 16


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


# Each output of these depends on the input of the same place only: the derivative is diagonal.
_ELEMENTWISE = _words(
    "add sub mul div neg pow integer_pow square sqrt rsqrt cbrt abs sign max min clamp rem nextafter select_n floor ceil round",
    "exp exp2 log log1p expm1 sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh logistic erf erfc erf_inv lgamma digamma",
    "add_any convert_element_type copy stop_gradient name real imag",
    "relu relu6 elu celu selu gelu silu sigmoid softplus leaky_relu log_sigmoid soft_sign mish squareplus hard_tanh hard_sigmoid hard_silu",
)
# Entries of the derivative of these are 0 and 1: their sum is the sum of their squares.
_SELECTING = _words(
    "broadcast_in_dim reduce_sum reshape squeeze expand_dims transpose rev",
    "slice dynamic_slice concatenate pad gather split index stack cumsum",
)
# Every entry of the derivative is an entry of the other factor.
_PRODUCTS = {"dot_general", "conv_general_dilated", "mul"}
# One entry, 1 or -1, in every row.
_SUMS = {"add", "sub", "add_any"}
_UNSUMMED = _PRODUCTS | _SUMS
# Every input of these is used by one output at most: the derivative's columns have one entry.
_REDUCING = {"reduce_max", "reduce_min", "reduce_prod"}


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


def derivatives(operations: Sequence[Operation], values: Sequence[Any], output: int) -> tuple[dict[int, Any], list[list[Derivative]]]:
    """The adjoint of each place, where there is one, and the derivatives of each operation."""
    adjoints: dict[int, Any] = {output: _ones(values[output])}
    found: list[list[Derivative]] = []
    for operation in reversed(operations):
        of_operation = _of_operation(
            operation, [values[place] for place in operation.outputs], [adjoints.get(p) for p in operation.outputs]
        )
        for derivative in of_operation:
            source = operation.sources[derivative.slot]
            if derivative.flow is not None and source is not None:
                adjoints[source] = adjoints[source] + derivative.flow if source in adjoints else derivative.flow
        found.append(of_operation)
    return adjoints, found[::-1]


def _of_operation(operation: Operation, outputs: list[Any], adjoints: list[Any]) -> list[Derivative]:
    slots = [k for k, source in enumerate(operation.sources) if source is not None and differentiable(operation.inputs[k])]
    made = [k for k, output in enumerate(outputs) if differentiable(output)]
    if not slots or not made:
        return []

    def run(*inputs: Any) -> list[Any]:
        given = dict(zip(slots, inputs, strict=True))
        results = operation.run(*(given.get(k, value) for k, value in enumerate(operation.inputs)))
        return [results[k] for k in made]

    _, pull_all = jax.vjp(run, *(operation.inputs[slot] for slot in slots))
    zeros = [np.zeros(outputs[k].shape, outputs[k].dtype) for k in made] if len(made) > 1 else [None]
    found = []
    for position, k in enumerate(made):
        pull = functools.partial(_pull, pull_all, zeros, position)
        adjoint = None if operation.op == "stop_gradient" else adjoints[k]
        flows = [None] * len(slots) if adjoint is None else pull(adjoint)
        for place, (slot, local) in enumerate(zip(slots, _locals(operation, slots, outputs[k], pull), strict=True)):
            found.append(Derivative(slot, k, local, flows[place], functools.partial(_pull_one, pull, outputs[k].dtype, place)))
    return found


def _pull(pull_all: Any, zeros: list[Any], position: int, adjoint: Any) -> tuple[Any, ...]:
    return pull_all([*zeros[:position], adjoint, *zeros[position + 1 :]])


def _pull_one(pull: Any, dtype: Any, place: int, adjoint: Any) -> np.ndarray:
    return np.asarray(_pull_place(pull, place, jnp.asarray(adjoint, dtype)))


def _locals(operation: Operation, slots: list[int], output: Any, pull: Callable[[Any], Any]) -> list[Any]:
    """The local derivative of one output with respect to each of the inputs at `slots`."""
    inputs = [operation.inputs[slot] for slot in slots]
    sizes = [output.size * value.size for value in inputs]
    if any(jnp.iscomplexobj(array) for array in (output, *inputs)):
        return [Summary((*output.shape, *value.shape), math.nan) for value in inputs]
    diagonal = operation.op in _ELEMENTWISE and all(value.shape == output.shape for value in inputs)
    small = [size <= _FULL for size in sizes]
    rows = None if diagonal or not any(0 < size <= _FULL for size in sizes) else _rows(output, pull, small)
    sums = pull(_ones(output)) if diagonal or not (all(small) or operation.op in _UNSUMMED) else [None] * len(slots)
    found: list[Any] = []
    for place, (slot, value) in enumerate(zip(slots, inputs, strict=True)):
        whole = (*output.shape, *value.shape)
        if sizes[place] == 0:
            found.append(np.zeros(whole, output.dtype))
        elif not small[place]:
            found.append(Summary(whole, *_norm(operation, slot, output, sums[place], functools.partial(_pull_place, pull, place))))
        elif rows is None:
            found.append(np.diag(np.asarray(sums[place]).ravel()).reshape(whole))
        else:
            found.append(np.asarray(rows[place]).reshape(whole))
    return found


def _pull_place(pull: Callable[[Any], Any], place: int, adjoint: Any) -> Any:
    return pull(adjoint)[place]


def _rows(output: Any, pull: Callable[[Any], Any], wanted: list[bool]) -> list[Any]:
    """The Jacobians, a row for each entry of the output, of the inputs that are wanted."""
    if output.size == 1:
        return list(pull(_ones(output)))
    unit = _unit(output)
    return jax.vmap(lambda row: [flow if keep else None for flow, keep in zip(pull(row), wanted, strict=True)])(unit)


def _norm(operation: Operation, slot: int, output: Any, sums: Any, pull: Callable[[Any], Any]) -> tuple[float, bool]:
    """The Frobenius norm of a large derivative, and whether it is exact.

    Most derivatives have a structure that gives it from the sums of their columns. One without is summed up entry by entry or, if it is too
    large for that, probed with random signs s, as E|s J|^2 = |J|^2.
    """
    value = operation.inputs[slot]
    if operation.op in _SUMS:
        return math.sqrt(output.size), True
    if operation.op in _PRODUCTS:
        return _factor_norm(operation, slot), True
    if operation.op in _SELECTING:
        return math.sqrt(np.asarray(sums, np.float64).sum()), True
    if operation.op in _REDUCING or (operation.op in _ELEMENTWISE and value.shape == output.shape):
        return _length(sums), True
    if output.size * value.size <= _COUNTED:
        return _length(jax.vmap(pull)(_unit(output))), True
    # One by one: the program for one row is compiled already.
    draw = np.random.default_rng(0)
    probes = [_length(pull(draw.choice([-1.0, 1.0], output.shape).astype(output.dtype))) for _ in range(_PROBES)]
    return math.sqrt(np.mean(np.square(probes))), False


def _unit(output: Any) -> np.ndarray:
    return np.eye(output.size, dtype=output.dtype).reshape(-1, *output.shape)


def _ones(array: Any) -> np.ndarray:
    """Made by NumPy: JAX would compile a program for each shape."""
    return np.ones(array.shape, array.dtype)


def _length(array: Any) -> float:
    flat = np.asarray(array).ravel()
    flat = flat if flat.dtype in (np.float32, np.float64) else flat.astype(np.float32)
    return math.sqrt(np.vdot(flat, flat))


def _factor_norm(operation: Operation, slot: int) -> float:
    """The norm of the derivative of a product with respect to one factor: every entry of it is an entry of the other factor."""
    one, other = operation.inputs[slot], operation.inputs[1 - slot]
    if operation.op == "dot_general":
        contracted, batch = operation.params["dimension_numbers"]
        held = {*contracted[slot], *batch[slot]}
        return _length(other) * math.sqrt(math.prod(size for axis, size in enumerate(one.shape) if axis not in held))
    squares = [jnp.ones_like(one), other**2] if slot == 0 else [other**2, jnp.ones_like(one)]
    return math.sqrt(float(operation.run(*squares)[0].sum()))
