"""Norms of derivatives that are too large to be listed, each computed when it is first asked for.

The Frobenius norm of most operations' derivatives follows from their structure: a sum's entries are ones, a product's are the entries of
the other factor, and where a column has one entry only, the sums of the columns, 1 J, are all there is. A derivative without structure is
summed up entry by entry or, if it is too large for that, probed with random signs s, as E |s J|^2 = |J|^2.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np

from diffprog.graph._flatten import Operation
from diffprog.graph._types import Summary, preserve_x64

_COUNTED = 2**20  # entries of a derivative that is computed for its norm
_PROBES = range(4, 17)  # fewest and most
_NEAR = 0.1  # standard error of the square at which probing ends


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
# Every input of these is used by one output at most: the derivative's columns have one entry.
_REDUCING = {"reduce_max", "reduce_min", "reduce_prod"}

Pull: TypeAlias = Callable[[Any], Any]
"""From the adjoint of an output to those of the inputs."""


def is_diagonal(operation: Operation, inputs: list[Any], output: Any) -> bool:
    """Whether the derivatives of an operation with respect to these of its inputs are known to be diagonal."""
    return operation.known in _ELEMENTWISE and all(value.shape == output.shape for value in inputs)


def norms_of(operation: Operation, slots: list[int], output: Any, pull: Pull) -> list[Summary]:
    """The derivatives of one output with respect to the inputs at `slots`, by shape and norm."""
    sums = functools.cache(lambda: [np.asarray(flow) for flow in pull(ones(output))])
    squares = functools.cache(lambda: _probed(output, pull))
    ways = [
        _norm(operation, place, slot, output, pull, sums, squares)
        for place, slot in enumerate(slots)
    ]
    shapes = [(*output.shape, *operation.inputs[slot].shape) for slot in slots]
    return [
        Summary(shape, preserve_x64(norm), exact)
        for shape, (norm, exact) in zip(shapes, ways, strict=True)
    ]


def _norm(
    operation: Operation,
    place: int,
    slot: int,
    output: Any,
    pull: Pull,
    sums: Callable[[], Any],
    squares: Callable[[], Any],
) -> tuple[Callable[[], float], bool]:
    """How to compute the norm with respect to one input, and whether that is exact."""
    op, value = operation.known, operation.inputs[slot]
    if op in _SUMS:
        return lambda: math.sqrt(output.size), True
    if op in _PRODUCTS:
        return lambda: _factor_norm(operation, slot), True
    if op in _SELECTING:
        return lambda: math.sqrt(sums()[place].astype(np.float64).sum()), True
    if op in _REDUCING or (op in _ELEMENTWISE and value.shape == output.shape):
        return lambda: _length(sums()[place]), True
    if output.size * value.size <= _COUNTED:
        return lambda: _length(jax.vmap(lambda row: pull(row)[place])(unit(output))), True
    return lambda: math.sqrt(squares()[place]), False


def _probed(output: Any, pull: Pull) -> np.ndarray:
    """Estimates of |J|^2, one for each input. One by one: the program for one row is compiled already."""
    draw, found = np.random.default_rng(0), list[list[float]]()
    while len(found) < _PROBES.stop - 1:
        signs = draw.integers(0, 2, output.shape, np.int8) * 2 - 1
        found.append([_length(flow) ** 2 for flow in pull(signs.astype(output.dtype))])
        mean, error = (
            np.mean(found, 0),
            np.std(found, 0, ddof=1) / math.sqrt(len(found)) if len(found) > 1 else math.inf,
        )
        if len(found) >= _PROBES.start and np.all(error <= _NEAR * mean):
            break
    return mean


def _factor_norm(operation: Operation, slot: int) -> float:
    """The norm of the derivative of a product with respect to one factor: every entry of it is an entry of the other factor."""
    one, other = operation.inputs[slot], operation.inputs[1 - slot]
    if operation.op == "dot_general":
        contracted, batch = operation.params["dimension_numbers"]
        held = {*contracted[slot], *batch[slot]}
        return _length(other) * math.sqrt(
            math.prod(size for axis, size in enumerate(one.shape) if axis not in held)
        )
    squares = (
        [np.ones(one.shape, one.dtype), other**2]
        if slot == 0
        else [other**2, np.ones(one.shape, one.dtype)]
    )
    return math.sqrt(float(operation.run(*squares)[0].sum()))


def _length(array: Any) -> float:
    flat = np.asarray(array).ravel()
    flat = flat if flat.dtype in (np.float32, np.float64) else flat.astype(np.float32)
    return math.sqrt(np.vdot(flat, flat))


def unit(output: Any) -> np.ndarray:
    """Every adjoint of an output that has a single one."""
    return np.eye(output.size, dtype=output.dtype).reshape(-1, *output.shape)


def ones(array: Any) -> np.ndarray:
    """Made by NumPy: JAX would compile a program for each shape."""
    return np.ones(array.shape, array.dtype)
