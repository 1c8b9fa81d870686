"""What a caller may pass, said in one place.

Every public function calls these where the user's call enters, before anything is traced or compiled. Each raises `TypeError` (the wrong
kind of thing) or `ValueError` (the wrong value) with one sentence: the argument, what was expected, what came.

Under a JAX transformation an array has a shape and a dtype but no values yet: there the checks of values pass, and the
checks of shape and dtype still hold.
"""

import math
import operator
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def values(array: Any) -> np.ndarray | None:
    """The numbers in `array`; None while it is traced or only a shape and has none, or where other processes have some of them."""
    if isinstance(array, jax.ShapeDtypeStruct) or _is_elsewhere(array):
        return None
    try:
        return np.asarray(array)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        return None


def _is_elsewhere(array: Any) -> bool:
    concrete = isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer)
    return concrete and not (array.is_fully_addressable or array.is_fully_replicated)


def _said(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"


def array(name: str, value: Any) -> jax.Array | np.ndarray:
    """`value`, if it is an array or a number."""
    if isinstance(value, Real):
        return np.asarray(value)
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise TypeError(f"{name} must be an array, got {type(value).__name__}")
    return value


def floating(name: str, value: Any, *, rank: int | tuple[int, ...] | None = None) -> None:
    """A float array, of one of the given ranks."""
    given = array(name, value)
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise TypeError(f"{name} must be a float array, got {_said(given)}")
    ranks = (rank,) if isinstance(rank, int) else rank
    if ranks is not None and given.ndim not in ranks:
        expected = " or ".join(str(r) for r in ranks)
        raise ValueError(f"{name} must have rank {expected}, got {_said(given)}")


def concrete(name: str, tree: Any, instead: str) -> None:
    """Values in every leaf: none that is traced. `instead` says what to do under a JAX transformation."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        given = array(name + jax.tree_util.keystr(path), leaf)
        if isinstance(given, jax.core.Tracer | jax.ShapeDtypeStruct):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} must have values, got a traced array; {instead}"
            )


def floating_leaves(name: str, tree: Any) -> None:
    """At least one leaf, and every leaf a float array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name} must hold at least one array, got {tree!r}")
    for path, leaf in leaves:
        floating(name + jax.tree_util.keystr(path), leaf)


def finite(name: str, tree: Any) -> None:
    """No NaN and no infinity in any float leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        given = array(name + jax.tree_util.keystr(path), leaf)
        if not jnp.issubdtype(given.dtype, jnp.inexact):
            continue
        known = values(given)
        if known is None or np.isfinite(known).all():
            continue
        bad = np.argwhere(~np.isfinite(known))
        raise ValueError(
            f"{name}{jax.tree_util.keystr(path)} must be finite, got {len(bad)} NaN or infinite of {known.size} values, "
            f"the first at index {tuple(int(i) for i in bad[0])}"
        )


def batch(**arrays: Any) -> int:
    """One leading axis, the same in every array and not empty; returns its length."""
    sizes = {}
    for name, tree in arrays.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            where = name + jax.tree_util.keystr(path)
            given = array(where, leaf)
            if given.ndim == 0:
                raise ValueError(f"{where} must have a leading axis of examples, got a scalar")
            sizes[where] = given.shape[0]
    if not sizes:
        raise ValueError(f"{' and '.join(arrays)} must hold at least one array")
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"leading axes must agree, got {', '.join(f'{name}: {size}' for name, size in sizes.items())}"
        )
    size = next(iter(sizes.values()))
    if size == 0:
        raise ValueError(f"{' and '.join(sizes)} must not be empty, got a leading axis of 0")
    return size


def same_shape(**arrays: Any) -> None:
    """All arrays of one shape."""
    shapes = {name: tuple(array(name, value).shape) for name, value in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"shapes must agree, got {', '.join(f'{name}: {list(shape)}' for name, shape in shapes.items())}"
        )


def same_structure(**trees: Any) -> None:
    """All pytrees of one structure, with leaves of one shape."""
    structures = {name: str(jax.tree.structure(tree)) for name, tree in trees.items()}
    if len(set(structures.values())) > 1:
        raise ValueError(
            f"structures must agree, got {', '.join(f'{name}: {structure}' for name, structure in structures.items())}"
        )
    jax.tree.map(
        lambda *leaves: same_shape(**dict(zip(trees, leaves, strict=True))), *trees.values()
    )


def labels(name: str, value: Any, classes: int) -> None:
    """Integer labels of rank 1 in 0 .. classes - 1."""
    given = array(name, value)
    if not jnp.issubdtype(given.dtype, jnp.integer) or given.ndim != 1:
        raise TypeError(f"{name} must be integer labels of shape (batch,), got {_said(given)}")
    known = values(given)
    if known is not None and known.size and not (known.min() >= 0 and known.max() < classes):
        raise ValueError(
            f"{name} must lie in 0 .. {classes - 1}, got values from {known.min()} to {known.max()}"
        )


def number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
) -> float:
    """A finite real number with low <= value <= high and value > above."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high and number > above):
        bounds = (
            [f">= {low:g}"] * (low > -math.inf)
            + [f"> {above:g}"] * (above > -math.inf)
            + [f"<= {high:g}"] * (high < math.inf)
        )
        raise ValueError(
            f"{name} must be a finite number{' ' + ' and '.join(bounds) if bounds else ''}, got {value}"
        )
    return number


def within(name: str, value: Any, low: float, high: float) -> None:
    """Every value in low .. high; the bounds are rounded to the array's dtype, as they are wherever it is compared with them."""
    known = values(array(name, value))
    if known is None or not known.size:
        return
    least, most = known.min(), known.max()
    if not (known.dtype.type(low) <= least and most <= known.dtype.type(high)):
        raise ValueError(
            f"{name} must lie in {low:g} .. {high:g}, got values from {least} to {most}"
        )


def bounds(name: str, value: Any) -> tuple[float, float]:
    """Two finite numbers (low, high) with low < high."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{name} must be a pair of numbers (low, high), got {value!r}")
    low, high = number(f"{name}[0]", value[0]), number(f"{name}[1]", value[1])
    if not low < high:
        raise ValueError(f"{name} must be (low, high) with low < high, got ({low:g}, {high:g})")
    return low, high


def integer(name: str, value: Any, *, low: int) -> int:
    """An integer that is at least `low`."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got bool")
    try:
        integer = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if integer < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {integer}")
    return integer


def entries(name: str, given: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A dict with one array of the given shape for each name, and no more."""
    if not isinstance(given, Mapping) or given.keys() != shapes.keys():
        came = sorted(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
        raise ValueError(f"{name} must be a dict with entries {sorted(shapes)}, got {came}")
    for entry, shape in shapes.items():
        if tuple(array(f"{name}[{entry!r}]", given[entry]).shape) != tuple(shape):
            raise ValueError(
                f"{name}[{entry!r}] must have shape {list(shape)}, got {list(given[entry].shape)}"
            )


def key(name: str, value: Any) -> None:
    """A random key, from `jax.random.key`: one."""
    dtype = getattr(value, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed and not (dtype == jnp.uint32 and value.shape[-1:] == (2,)):
        raise TypeError(
            f"{name} must be a random key, from jax.random.key, got {_said(value) if dtype is not None else type(value).__name__}"
        )
    if value.ndim != (0 if typed else 1):
        raise ValueError(
            f"{name} must be one random key, got an array of them, {list(value.shape)}"
        )


def integers(name: str, given: Any, *, least: int = 0, most: int | None = None) -> tuple[int, ...]:
    """A sequence of positive integers, `least` to `most` of them."""
    if (
        not isinstance(given, Sequence)
        or isinstance(given, str)
        or len(given) < least
        or (most is not None and len(given) > most)
    ):
        count = (
            f"{least} or more"
            if most is None
            else f"{least} to {most}"
            if least < most
            else f"{least}"
        )
        raise ValueError(f"{name} must be {count} positive integers, got {given!r}")
    return tuple(integer(f"{name}[{k}]", value, low=1) for k, value in enumerate(given))


def choice(name: str, value: Any, options: Iterable[Any]) -> None:
    """One of the named options."""
    known = list(options)
    if not isinstance(value, Hashable) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def function(name: str, value: Any) -> Callable[..., Any]:
    """Something that can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {type(value).__name__}")
    return value


def scalar(name: str, shape: Any) -> None:
    """The abstract value of one float: what a cost must return."""
    if not (
        hasattr(shape, "shape") and shape.shape == () and jnp.issubdtype(shape.dtype, jnp.floating)
    ):
        came = _said(shape) if hasattr(shape, "shape") else type(shape).__name__
        raise ValueError(
            f"{name} must return one float scalar, got {came}; sum or average over the examples"
        )
