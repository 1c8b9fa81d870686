"""Operations and numbers as one reads them: "× 2", "[0.22 0.26]", "256×10, norm 3.1"."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SYMBOLS = {
    **{
        "add": "+",
        "add_any": "+",
        "sub": "−",
        "mul": "×",
        "div": "÷",
        "neg": "−",
        "dot_general": "matmul",
        "conv_general_dilated": "conv",
    },
    **{
        "reduce_sum": "sum",
        "reduce_max": "max",
        "reduce_min": "min",
        "reduce_prod": "product",
        "integer_pow": "power",
        "pow": "power",
    },
    **{
        "broadcast_in_dim": "broadcast",
        "convert_element_type": "convert",
        "logistic": "sigmoid",
        "select_n": "select",
        "stop_gradient": "stop",
    },
    **{
        "gt": ">",
        "ge": "≥",
        "lt": "<",
        "le": "≤",
        "eq": "=",
        "ne": "≠",
        "dynamic_slice": "slice",
        "concatenate": "concat",
    },
}
_INFIX = {"+", "−", "×", "÷", ">", "≥", "<", "≤", "=", "≠", "power", "max", "min"}


def operation_label(op: str, params: dict[str, Any], constants: dict[int, Any]) -> str:
    """An operation with what it takes beside values that are nodes.

    Args:
        op: the primitive.
        params: its parameters.
        constants: numbers among its operands, by slot.

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
    number = said(constant)
    if np.size(constant) > 1 or op not in _SYMBOLS:
        return (
            f"{sign}({'·, ' if slot else ''}{number}{'' if slot else ', ·'})"
            if np.size(constant) == 1
            else sign
        )
    sign = "^" if sign == "power" else sign
    return f"{sign} {number}" if slot else f"{number} {sign}"


def symbol(op: str) -> str:
    """A primitive as one reads it, a sign or a word.

    >>> symbol("mul"), symbol("reduce_sum"), symbol("tanh")
    ('×', 'sum', 'tanh')
    """
    return _SYMBOLS.get(op, op)


def number(value: Any, digits: int = 4) -> str:
    """One number, short.

    >>> number(0.1160000001), number(-12.0), number(1.5e-9)
    ('0.116', '−12', '1.5e−9')
    """
    value = (
        np.asarray(value).item() if not isinstance(value, (bool, int, float, complex)) else value
    )
    if isinstance(value, (bool, complex)):
        return str(value)
    text = (
        f"{value:.{digits}g}"
        if isinstance(value, float) and not math.isfinite(value)
        else f"{value + 0:.{digits}g}"
    )
    if isinstance(value, int) and abs(value) < 10**6:
        text = str(value)
    mantissa, _, exponent = text.partition("e")
    return (mantissa + (f"e{int(exponent)}" if exponent else "")).replace("-", "−")


def said(array: Any, most: int = 9, width: int = 3) -> str:
    """An array: its numbers where they are few (one line for each row), else its shape and norm.

    >>> said(np.array([0.22, 0.26])), said(np.ones((256, 10)))
    ('[0.22 0.26]', '256×10, norm 50.6')
    """
    if is_key(array):
        return "key" if array.ndim == 0 else f"{shape(array.shape)} keys"
    array = np.asarray(array)
    if array.ndim == 0:
        return number(array)
    if (
        0 < array.size <= most
        and array.ndim <= 2
        and array.shape[-1] <= max(width, 4 if array.ndim == 1 else 0)
    ):
        return "\n".join(
            f"[{' '.join(number(entry, 3) for entry in row)}]" for row in np.atleast_2d(array)
        )
    if array.dtype.kind in "biu":
        return f"{shape(array.shape)} {array.dtype}"
    return f"{shape(array.shape)}, norm {number(np.linalg.norm(np.abs(array.astype(np.complex128))), 3)}"


def is_key(array: Any) -> bool:
    """Whether it is an array of random keys, which NumPy does not know."""
    return isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.extended)


def shape(sizes: tuple[int, ...]) -> str:
    """Sizes of axes, 256×10."""
    return "×".join(map(str, sizes)) if sizes else "scalar"


def said_local(local: Any, target: tuple[int, ...]) -> str:
    """A local derivative as a matrix, with rows for the target and columns for the source: its entries where they are few, else its norm.

    >>> said_local(np.diag([2.0, 2.0]), (2,)), said_local(np.ones((2, 9)), (2,))
    ('2·I', 'norm 4.24')
    """
    if local is None or local.shape.count(0):
        return ""
    if hasattr(local, "norm"):
        return f"norm {'' if local.exact else '≈ '}{number(local.norm, 3)}"
    matrix = local.reshape(math.prod(target), -1)
    diagonal = np.diag(matrix)
    if matrix.shape[0] == matrix.shape[1] > 1 and np.array_equal(matrix, np.diag(diagonal)):
        if np.all(diagonal == diagonal[0]):
            return f"{'' if diagonal[0] == 1 else number(diagonal[0], 3) + '·'}I"
        return (
            f"diag{said(diagonal)}"
            if diagonal.size <= 4
            else f"diagonal, norm {number(np.linalg.norm(diagonal), 3)}"
        )
    if matrix.size > 12 or matrix.shape[1] > 4:
        return f"norm {number(np.linalg.norm(matrix), 3)}"
    return number(matrix[0, 0]) if matrix.size == 1 else said(matrix, 12, 4)
