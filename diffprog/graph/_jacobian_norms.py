"""Frobenius norms of local derivatives that are too large to be stored, computed on demand.

Most operations have a Jacobian J with structure, which gives the norm in one backward pass:

    one nonzero entry in each column   ||J|| = ||1ᵀJ||, the norm of the vector of column sums
    entries 0 and 1                    ||J||² = sum of the column sums
    product with another factor        every nonzero entry of J is an entry of that factor

Otherwise J is computed row by row or, if it is too large for that, its norm is estimated from
random vectors s of signs ±1, as E ||sᵀJ||² = ||J||² (Hutchinson, 1989). The estimate of ||J||² from
n vectors has a relative standard error of at most √(2/n), that of ||J|| about half of it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np

from diffprog.graph._flatten import RecordedOperation
from diffprog.graph._types import Summary, preserve_x64

_MAX_ROWS = 2**12  # of a derivative that is computed row by row
_MAX_ENTRIES = 2**20
_PROBES = 16


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ELEMENTWISE = _words(
    """
    abs acos acosh add add_any asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy
    cos cosh digamma div erf erf_inv erfc exp exp2 expm1 floor imag integer_pow lgamma log log1p
    logistic max min mul name neg nextafter pow real rem round rsqrt select_n sign sin sinh sqrt
    square stop_gradient sub tan tanh
    celu elu gelu hard_sigmoid hard_silu hard_tanh leaky_relu log_sigmoid mish relu relu6 selu
    sigmoid silu soft_sign softplus squareplus
    """
)
_SUMS = {"add", "add_any", "sub"}  # one entry, 1 or -1, in each row; operands may be scalars
_REDUCTIONS = {"reduce_max", "reduce_min", "reduce_prod"}
_ZEROS_AND_ONES = _words(
    """
    broadcast_in_dim concatenate cumsum dynamic_slice expand_dims gather index pad reduce_sum
    reshape rev slice split squeeze stack transpose
    """
)
_PRODUCTS = {"conv_general_dilated", "dot_general", "mul"}

Pull: TypeAlias = Callable[[Any], Any]
"""Function from the adjoint of an output to those of the inputs; a pytree of its residuals."""


def is_diagonal(operation: RecordedOperation, inputs: list[Any], output: Any) -> bool:
    """Check whether an operation has a diagonal derivative with respect to each of the inputs.

    It has if it is elementwise and the inputs have the shape of its output.
    """
    return operation.builtin in _ELEMENTWISE and all(x.shape == output.shape for x in inputs)


def jacobian_norms(
    operation: RecordedOperation, slots: list[int], output: Any, pull: Pull
) -> list[Summary]:
    """Return a `Summary` of the derivative of `output` with respect to each input at `slots`.

    Args:
        operation: the operation that computes `output`.
        slots: positions of inputs of the operation.
        output: one of its outputs.
        pull: function from the adjoint of `output` to those of the inputs at `slots`.
    """
    op = operation.builtin
    estimates = functools.cache(lambda: _estimate_squared_norms(output, pull))

    def summary(position: int, slot: int) -> Summary:
        value = operation.inputs[slot]
        measure: Callable[[], float]
        exact = True

        def column_sums() -> np.ndarray:
            return _float64(pull(ones(output))[position])

        if op in _SUMS:
            measure = lambda: math.sqrt(output.size)
        elif op in _PRODUCTS:
            measure = functools.partial(_factor_norm, operation, slot)
        elif op in _ZEROS_AND_ONES:
            measure = lambda: math.sqrt(column_sums().sum())
        elif op in _REDUCTIONS or is_diagonal(operation, [value], output):
            measure = lambda: float(np.linalg.norm(column_sums()))
        elif output.size <= _MAX_ROWS and output.size * value.size <= _MAX_ENTRIES:
            # Compiled, so that XLA drops the adjoints of the other inputs; `pull` is an argument,
            # a pytree of residuals, because XLA would fold constants through the program.
            jacobian = jax.jit(lambda pull, rows: jax.vmap(lambda row: pull(row)[position])(rows))
            measure = lambda: float(np.linalg.norm(_float64(jacobian(pull, unit_rows(output)))))
        else:
            measure, exact = lambda: math.sqrt(estimates()[position]), False
        return Summary((*output.shape, *value.shape), preserve_x64(measure), exact)

    return [summary(position, slot) for position, slot in enumerate(slots)]


def _factor_norm(operation: RecordedOperation, slot: int) -> float:
    """Return the norm of the derivative of a product with respect to its factor at `slot`.

    The product may be elementwise, of matrices, or a convolution.
    """
    factors = [x**2 for x in operation.inputs]
    factors[slot] = ones(factors[slot])
    return math.sqrt(_float64(operation.run(*factors)[0]).sum())


def _estimate_squared_norms(output: Any, pull: Pull) -> np.ndarray:
    """Estimate the squared norm of the derivative of `output` with respect to each input.

    The estimates use random vectors of signs (Hutchinson, 1989). `pull` maps an adjoint of
    `output` to the adjoints of the inputs.
    """
    rng = np.random.default_rng(0)
    signs = (rng.choice([-1, 1], output.shape).astype(output.dtype) for _ in range(_PROBES))
    squares = [[np.sum(_float64(adjoint) ** 2) for adjoint in pull(s)] for s in signs]
    return np.mean(squares, axis=0)


def _float64(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def unit_rows(output: Any) -> np.ndarray:
    """Return all one-hot arrays of the shape of `output`, stacked on a leading axis."""
    return np.eye(output.size, dtype=output.dtype).reshape(-1, *output.shape)


def ones(array: Any) -> np.ndarray:
    """Return ones like `array`, in NumPy because JAX would compile for each shape."""
    return np.ones(array.shape, array.dtype)
