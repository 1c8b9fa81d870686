"""Short texts and colors for graph drawings: operations "× 2", arrays "[0.22 0.26]"."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffprog.graph._types import Node, Summary

INK, FAINT, FRAME, PAPER = "#22262b", "#5d6670", "#aab2ba", "#ffffff"
VALUE, ADJOINT, LOCAL, WRONG = "#2b7d4f", "#b8580c", "#1f6fb2", "#d4142a"

_SYMBOLS = {
    "add": "+",
    "add_any": "+",
    "broadcast_in_dim": "broadcast",
    "concatenate": "concat",
    "conv_general_dilated": "conv",
    "convert_element_type": "convert",
    "div": "÷",
    "dot_general": "matmul",
    "dynamic_slice": "slice",
    "eq": "=",
    "ge": "≥",
    "gt": ">",
    "integer_pow": "power",
    "le": "≤",
    "logistic": "sigmoid",
    "lt": "<",
    "mul": "×",
    "ne": "≠",
    "neg": "−",
    "pow": "power",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_prod": "product",
    "reduce_sum": "sum",
    "select_n": "select",
    "stop_gradient": "stop",
    "sub": "−",
}
_INFIX = {"+", "−", "×", "÷", ">", "≥", "<", "≤", "=", "≠", "power", "max", "min"}


def operation_label(op: str, params: dict[str, Any], constants: dict[int, Any]) -> str:
    """Return an operation in short notation: its symbol, with its constant operand if it has one.

    Args:
        op: name of the JAX primitive.
        params: parameters of its equation in the jaxpr.
        constants: values of the operands that have no node in the graph, by position.

    >>> operation_label("mul", {}, {0: 2.0}), operation_label("integer_pow", {"y": 3}, {})
    ('2 ×', '^3')
    """
    sign = symbol(op)
    if op == "integer_pow":
        return f"^{params['y']}"
    if op == "convert_element_type":
        return f"to {np.dtype(params['new_dtype']).name}"
    if op == "neg":
        return "negate"
    if sign not in _INFIX or len(constants) != 1:
        return sign
    ((slot, constant),) = constants.items()
    if np.size(constant) > 1:
        return sign
    number = format_array(constant)
    if op not in _SYMBOLS:  # max and min are functions of two arguments
        return f"{sign}(·, {number})" if slot else f"{sign}({number}, ·)"
    sign = "^" if sign == "power" else sign
    return f"{sign} {number}" if slot else f"{number} {sign}"


def symbol(op: str) -> str:
    """Return the sign or word that stands for a JAX primitive.

    >>> symbol("mul"), symbol("reduce_sum"), symbol("tanh")
    ('×', 'sum', 'tanh')
    """
    return _SYMBOLS.get(op, op)


def node_title(node: Node) -> str:
    """Return the title of a node: the name of an argument or constant, else the operation.

    A value that is named with `tap` has the title "name = operation".
    """
    if node.kind in ("argument", "constant"):
        return node.name
    return f"{node.tap} = {node.label}" if node.tap else node.label


def format_number(value: Any, digits: int = 4) -> str:
    """Format a number with `digits` significant digits; integers below a million in full.

    >>> format_number(0.1160000001), format_number(-12.0), format_number(1.5e-9)
    ('0.116', '−12', '1.5e−9')
    """
    if not isinstance(value, (bool, int, float, complex)):
        value = np.asarray(value).item()
    if isinstance(value, (bool, complex)):
        return str(value)
    if isinstance(value, int) and abs(value) < 10**6:
        text = str(value)
    else:
        text = f"{value + 0:.{digits}g}"  # + 0 turns -0.0 into 0.0
    mantissa, _, exponent = text.partition("e")
    return (mantissa + (f"e{int(exponent)}" if exponent else "")).replace("-", "−")


def format_array(array: Any, max_size: int = 9, max_columns: int = 3) -> str:
    """Format an array: its entries, one row per line, if it is small, else its shape and norm.

    A matrix is small if it has at most `max_size` entries and `max_columns` columns; a vector may
    have 4 entries. Large arrays of integers are shown as shape and dtype.

    >>> format_array(np.array([0.22, 0.26])), format_array(np.ones((256, 10)))
    ('[0.22 0.26]', '256×10, norm 50.6')
    """
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return "key" if array.ndim == 0 else f"{format_shape(array.shape)} keys"
    array = np.asarray(array)
    if array.ndim == 0:
        return format_number(array)
    columns = max(max_columns, 4) if array.ndim == 1 else max_columns
    if 0 < array.size <= max_size and array.ndim <= 2 and array.shape[-1] <= columns:
        rows = [" ".join(format_number(entry, 3) for entry in row) for row in np.atleast_2d(array)]
        return "\n".join(f"[{row}]" for row in rows)
    if array.dtype.kind in "biu":
        return f"{format_shape(array.shape)} {array.dtype}"
    norm = np.linalg.norm(np.abs(array.astype(np.complex128)))
    return f"{format_shape(array.shape)}, norm {format_number(norm, 3)}"


def format_shape(shape: tuple[int, ...]) -> str:
    """Format a shape as "256×10"; the empty shape () gives "scalar"."""
    return "×".join(map(str, shape)) if shape else "scalar"


def format_local(local: Any, target: tuple[int, ...]) -> str:
    """Format the local derivative of an edge: its entries if they are few, its diagonal or norm.

    Args:
        local: d target / d source, an array of the target's shape followed by the source's, or a
            `Summary`. None gives "".
        target: shape of the target. The printed matrix has a row for each entry of the target.

    >>> format_local(np.diag([2.0, 2.0]), (2,)), format_local(np.ones((2, 9)), (2,))
    ('2·I', 'norm 4.24')
    """
    if local is None or local.shape.count(0):
        return ""
    if isinstance(local, Summary):
        return f"norm {'' if local.exact else '≈ '}{format_number(local.norm, 3)}"
    matrix = local.reshape(math.prod(target), -1)
    diagonal = np.diag(matrix)
    if matrix.shape[0] == matrix.shape[1] > 1 and np.array_equal(matrix, np.diag(diagonal)):
        if np.all(diagonal == diagonal[0]):
            return "I" if diagonal[0] == 1 else f"{format_number(diagonal[0], 3)}·I"
        if diagonal.size <= 4:
            return f"diag{format_array(diagonal)}"
        return f"diagonal, norm {format_number(np.linalg.norm(diagonal), 3)}"
    if matrix.size > 12 or matrix.shape[1] > 4:
        return f"norm {format_number(np.linalg.norm(matrix), 3)}"
    return format_number(matrix[0, 0]) if matrix.size == 1 else format_array(matrix, 12, 4)
