"""Validate the arguments of public functions.

Public functions call these checks on entry, before anything is traced or compiled. `name` is the
name of the argument in the error message. A wrong type or dtype raises `TypeError`, a wrong value
or shape `ValueError`; the message names the argument, what was expected and what was given.

Under a JAX transformation arrays have shapes and dtypes but no values. Checks of values are then
skipped; checks of shapes and dtypes still apply.
"""

import math
import operator
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path


def values(array: Any) -> np.ndarray | None:
    """Return an array's values as NumPy, or None if they are not available.

    They are not available for a traced array, a `jax.ShapeDtypeStruct`, or an array that is sharded
    over several processes.
    """
    concrete = isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer)
    is_here = not concrete or array.is_fully_addressable or array.is_fully_replicated
    if isinstance(array, jax.ShapeDtypeStruct) or not is_here:
        return None
    try:
        return np.asarray(array)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        return None


def _dtype_and_shape(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"


def array(name: str, value: Any) -> jax.Array | np.ndarray:
    """Check that `value` is an array or a number, and return it as an array."""
    if isinstance(value, Real):
        return np.asarray(value)
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise TypeError(f"{name} must be an array, got {type(value).__name__}")
    return value


def floating(name: str, value: Any, *, rank: int | tuple[int, ...] | None = None) -> None:
    """Check that `value` is a float array; `rank` is its required rank or a tuple of such."""
    x = array(name, value)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} must be a float array, got {_dtype_and_shape(x)}")
    ranks = (rank,) if isinstance(rank, int) else rank
    if ranks is not None and x.ndim not in ranks:
        expected = " or ".join(str(r) for r in ranks)
        raise ValueError(f"{name} must have rank {expected}, got {_dtype_and_shape(x)}")


def concrete(name: str, tree: Any, instead: str) -> None:
    """Check that a pytree holds no traced arrays; the error message ends with advice, `instead`."""
    for path, leaf in tree_leaves_with_path(tree):
        leaf_name = name + keystr(path)
        if isinstance(array(leaf_name, leaf), jax.core.Tracer | jax.ShapeDtypeStruct):
            raise TypeError(f"{leaf_name} must have values, got a traced array; {instead}")


def floating_leaves(name: str, tree: Any) -> None:
    """Check that a pytree has at least one leaf and that every leaf is a float array."""
    leaves = tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name} must hold at least one array, got {tree!r}")
    for path, leaf in leaves:
        floating(name + keystr(path), leaf)


def finite(name: str, tree: Any) -> None:
    """Check that no float leaf of a pytree has a NaN or an infinity."""
    for path, leaf in tree_leaves_with_path(tree):
        x = array(name + keystr(path), leaf)
        if not jnp.issubdtype(x.dtype, jnp.inexact):  # NumPy does not know bfloat16 and keys
            continue
        numbers = values(x)
        if numbers is None or np.isfinite(numbers).all():
            continue
        bad = np.argwhere(~np.isfinite(numbers))
        raise ValueError(
            f"{name}{keystr(path)} must be finite, got {len(bad)} NaN or infinite of "
            f"{numbers.size} values, the first at index {tuple(int(i) for i in bad[0])}"
        )


def batch(**arrays: Any) -> int:
    """Check that arrays, passed by name, share a nonempty leading axis; return its length."""
    sizes = {}
    for name, tree in arrays.items():
        for path, leaf in tree_leaves_with_path(tree):
            x = array(name + keystr(path), leaf)
            if x.ndim == 0:
                raise ValueError(
                    f"{name}{keystr(path)} must have a leading axis of examples, got a scalar"
                )
            sizes[name + keystr(path)] = x.shape[0]
    if not sizes:
        raise ValueError(f"{' and '.join(arrays)} must hold at least one array")
    if len(set(sizes.values())) > 1:
        got = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ValueError(f"leading axes must agree, got {got}")
    size = next(iter(sizes.values()))
    if size == 0:
        raise ValueError(f"{' and '.join(sizes)} must not be empty, got a leading axis of 0")
    return size


def same_shape(**arrays: Any) -> None:
    """Check that arrays, passed by name, all have the same shape."""
    shapes = {name: tuple(array(name, value).shape) for name, value in arrays.items()}
    if len(set(shapes.values())) > 1:
        got = ", ".join(f"{name}: {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"shapes must agree, got {got}")


def same_structure(**trees: Any) -> None:
    """Check that pytrees, passed by name, all have the same structure and leaf shapes."""
    structures = {name: str(jax.tree.structure(tree)) for name, tree in trees.items()}
    if len(set(structures.values())) > 1:
        got = ", ".join(f"{name}: {structure}" for name, structure in structures.items())
        raise ValueError(f"structures must agree, got {got}")
    jax.tree.map(
        lambda *leaves: same_shape(**dict(zip(trees, leaves, strict=True))), *trees.values()
    )


def labels(name: str, value: Any, classes: int) -> None:
    """Check that `value` is a vector of integer labels in 0 .. classes - 1."""
    x = array(name, value)
    if not jnp.issubdtype(x.dtype, jnp.integer) or x.ndim != 1:
        raise TypeError(
            f"{name} must be integer labels of shape (batch,), got {_dtype_and_shape(x)}"
        )
    numbers = values(x)
    if numbers is not None and numbers.size and not 0 <= numbers.min() <= numbers.max() < classes:
        raise ValueError(
            f"{name} must lie in 0 .. {classes - 1}, "
            f"got values from {numbers.min()} to {numbers.max()}"
        )


def number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
) -> float:
    """Check that `value` is finite, low <= value <= high and value > above; return a float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high and number > above):
        limits = {">=": low, ">": above, "<=": high}
        expected = " and ".join(
            f"{sign} {limit:g}" for sign, limit in limits.items() if math.isfinite(limit)
        )
        raise ValueError(
            f"{name} must be a finite number{expected and f' {expected}'}, got {value}"
        )
    return number


def within(name: str, value: Any, low: float, high: float) -> None:
    """Check that every value of an array lies in low .. high, both rounded to its dtype."""
    numbers = values(array(name, value))
    if numbers is None or not numbers.size:
        return
    least, most = numbers.min(), numbers.max()
    if not (numbers.dtype.type(low) <= least and most <= numbers.dtype.type(high)):
        raise ValueError(
            f"{name} must lie in {low:g} .. {high:g}, got values from {least} to {most}"
        )


def bounds(name: str, value: Any) -> tuple[float, float]:
    """Check that `value` is a pair of finite numbers (low, high), low < high, and return it."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{name} must be a pair of numbers (low, high), got {value!r}")
    low, high = number(f"{name}[0]", value[0]), number(f"{name}[1]", value[1])
    if not low < high:
        raise ValueError(f"{name} must be (low, high) with low < high, got ({low:g}, {high:g})")
    return low, high


def integer(name: str, value: Any, *, low: int) -> int:
    """Check that `value` is an integer of at least `low`, and return it as an int."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got bool")
    try:
        integer = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if integer < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {integer}")
    return integer


def integers(name: str, value: Any, *, least: int = 0, most: int | None = None) -> tuple[int, ...]:
    """Check that `value` is a sequence of `least` to `most` positive integers; return a tuple."""
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_sequence or not least <= len(value) <= (math.inf if most is None else most):
        count = f"{least} or more" if most is None else f"{least} to {most}"
        count = f"{least}" if least == most else count
        raise ValueError(f"{name} must be {count} positive integers, got {value!r}")
    return tuple(integer(f"{name}[{k}]", entry, low=1) for k, entry in enumerate(value))


def entries(name: str, value: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that `value` is a dict with the keys of `shapes`, and its arrays have these shapes."""
    if not isinstance(value, Mapping) or value.keys() != shapes.keys():
        got = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(f"{name} must be a dict with entries {sorted(shapes)}, got {got}")
    for entry, shape in shapes.items():
        if tuple(array(f"{name}[{entry!r}]", value[entry]).shape) != tuple(shape):
            raise ValueError(
                f"{name}[{entry!r}] must have shape {list(shape)}, got {list(value[entry].shape)}"
            )


def key(name: str, value: Any) -> None:
    """Check that `value` is a single PRNG key, typed or raw."""
    dtype = getattr(value, "dtype", None)
    # A raw key, from jax.random.PRNGKey, is a uint32 array of two numbers.
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed and not (dtype == jnp.uint32 and value.shape[-1:] == (2,)):
        got = type(value).__name__ if dtype is None else _dtype_and_shape(value)
        raise TypeError(f"{name} must be a PRNG key from jax.random.key, got {got}")
    if value.ndim != (0 if typed else 1):
        raise ValueError(f"{name} must be one PRNG key, got an array of shape {list(value.shape)}")


def choice(name: str, value: Any, options: Iterable[Any]) -> None:
    """Check that `value` is one of `options`."""
    allowed = list(options)
    if not isinstance(value, Hashable) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def function(name: str, value: Any) -> Callable[..., Any]:
    """Check that `value` is callable, and return it."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {type(value).__name__}")
    return value


def scalar(name: str, output: Any) -> None:
    """Check that `output`, returned by the function called `name`, is one float scalar."""
    has_shape = hasattr(output, "shape")
    if not (has_shape and output.shape == () and jnp.issubdtype(output.dtype, jnp.floating)):
        got = _dtype_and_shape(output) if has_shape else type(output).__name__
        raise ValueError(
            f"{name} must return one float scalar, got {got}; sum or average over the examples"
        )
