"""Name and validate the arrays that a traced function takes as arguments or closes over."""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffprog import _validation
from diffprog.graph._purity import is_code
from diffprog.graph._types import is_x64_enabled

_NUMBERS = (np.bool_, np.number, jax.dtypes.extended)


def named_leaves(f: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    """Return the arrays in the arguments of f as a dict by path, such as "params['weight']".

    The order is that of `jax.tree`. Functions among the leaves, such as a module's activation, are
    left out.

    Raises:
        TypeError: f does not take these arguments, or a leaf is not an array of numbers.
        ValueError: an array is not finite, or an integer is too large for JAX.
    """
    arrays = {}
    for name, leaf in _flatten_with_paths(zip(_argument_names(f, args), args, strict=True)):
        if not is_code(leaf):
            _require_array(name, leaf)
            arrays[name] = leaf
    return arrays


def _argument_names(f: Callable[..., Any], args: tuple[Any, ...]) -> list[str]:
    try:
        signature = inspect.signature(f)
    except (TypeError, ValueError):
        return [f"args[{k}]" for k in range(len(args))]
    try:
        bound = signature.bind(*range(len(args))).arguments
    except TypeError as error:
        raise TypeError(
            f"f must take the arguments that are given, {len(args)}, got one that takes "
            f"{signature}: {error}"
        ) from None
    names: list[str] = []
    for name, position in bound.items():
        variadic = isinstance(position, tuple)
        names += [f"{name}[{k}]" for k in range(len(position))] if variadic else [name]
    return names


def _require_array(name: str, leaf: Any) -> None:
    limit = 2 ** (63 if is_x64_enabled() else 31)
    if isinstance(leaf, int) and not -limit <= leaf < limit:
        raise ValueError(f"{name} must fit into an integer of JAX, got {leaf}: give it as a float")
    if isinstance(leaf, (bool, int, float, complex)):
        _validation.finite(name, leaf)
        return
    is_array = hasattr(leaf, "dtype") and hasattr(leaf, "shape")
    if isinstance(leaf, jax.ShapeDtypeStruct) or not is_array:
        raise TypeError(f"{name} must be an array or a number, got {type(leaf).__name__}")
    if not any(jnp.issubdtype(leaf.dtype, numbers) for numbers in _NUMBERS):
        raise TypeError(f"{name} must be an array of numbers, got one of {leaf.dtype}")
    _validation.concrete(name, leaf, "trace outside of jit, grad and vmap, as a graph shows values")
    _validation.finite(name, leaf)


def constant_names(f: Callable[..., Any], constants: list[Any]) -> list[str]:
    """Return the variable name of each of the arrays `constants` that f closes over.

    Names are looked up in the closure and the globals of a function, or in the pytree leaves of a
    module. An array that is not found there is called "constant".
    """
    function = inspect.unwrap(f)
    variables: list[tuple[str, Any]] = [] if inspect.isfunction(function) else [("", f)]
    if inspect.isfunction(function):
        with contextlib.suppress(ValueError):  # a variable of the closure is not assigned yet
            closure = inspect.getclosurevars(function)
            variables = [*closure.nonlocals.items(), *closure.globals.items()]
    leaves = _flatten_with_paths(variables)
    arrays = [(name, leaf) for name, leaf in leaves if isinstance(leaf, jax.Array | np.ndarray)]

    def name_of(constant: Any) -> str:
        matches = (name for name, array in arrays if _is_same_constant(array, constant))
        return next(matches, "constant")

    return [name_of(constant) for constant in constants]


def _is_same_constant(array: Any, constant: Any) -> bool:
    # JAX may have converted the array, from float64 to float32 say: only the kind must agree.
    return array is constant or (
        array.shape == constant.shape
        and array.dtype.kind == constant.dtype.kind
        and np.array_equal(array, constant)
    )


def _flatten_with_paths(named: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for name, tree in named:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            yield (name + jax.tree_util.keystr(path)).removeprefix("."), leaf
