"""What can be traced: a pure JAX function of arrays to one float scalar, and what its arguments and constants are called."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffprog import _validation
from diffprog._jaxpr import ClosedJaxpr
from diffprog.graph._purity import held_by, without_side_effects
from diffprog.graph._types import is_x64_enabled

_NUMBERS = (np.bool_, np.number, jax.dtypes.extended)


def traced(f: Callable[..., Any], args: tuple[Any, ...]) -> ClosedJaxpr:
    """The equations of f, which takes the arrays among the leaves of `args` and returns one float scalar; or an error that says why there
    are none."""
    leaves, structure = jax.tree.flatten(args)
    arrays = [leaf for leaf in leaves if not _is_code(leaf)]

    def run(*arrays: Any) -> Any:
        rest = iter(arrays)
        returned = f(
            *jax.tree.unflatten(
                structure, [leaf if _is_code(leaf) else next(rest) for leaf in leaves]
            )
        )
        _require_numbers(returned)
        return returned

    # A new function each time: JAX keeps the equations of one it knows, and would not notice that another run gives others.
    program, returned = without_side_effects(f, lambda: _make(lambda *arrays: run(*arrays), arrays))
    _require_scalar(returned)
    return program


def _make(run: Callable[..., Any], arrays: list[Any]) -> tuple[ClosedJaxpr, Any]:
    try:
        return jax.make_jaxpr(run, return_shape=True)(*arrays)
    except jax.errors.UnexpectedTracerError:
        raise
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise TypeError(
            "f must be a JAX function, got one that needs the numbers in its arguments while it is traced: use jnp for np and math, "
            f"jnp.where or lax.cond for if, lax.while_loop for while. JAX says: {_first_line(error)}"
        ) from error
    except TypeError as error:
        if "immutable" not in str(error):
            raise
        raise TypeError(
            "f must have no side effects, got one that changes an array in place: write x = x.at[index].set(value) for x[index] = value"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _require_numbers(returned: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(returned):
        if not (isinstance(leaf, (bool, int, float, complex)) or hasattr(leaf, "dtype")):
            raise ValueError(
                f"f must return one float scalar, got {type(leaf).__name__} for f(...){jax.tree_util.keystr(path)}"
            )


def _require_scalar(returned: Any) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(returned)
    if len(leaves) != 1 or leaves[0][0]:
        raise ValueError(f"f must return one float scalar, got {_said_tree(returned)}")
    if returned.shape != ():
        index = ", ".join("0" for _ in returned.shape)
        raise ValueError(
            f"f must return one float scalar, got {_said(returned)}; take its sum, f(...).sum(), or one entry, f(...)[{index}]"
        )
    if not jnp.issubdtype(returned.dtype, jnp.floating):
        raise ValueError(
            f"f must return one float scalar, got {_said(returned)}, which has no derivative"
        )


def _said_tree(returned: Any) -> str:
    """What several values are, and how to take one: a float scalar if there is one."""
    leaves = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(returned)
    }
    kind = type(returned).__name__
    if not leaves:
        return f"{kind} without a number in it; return what is to be differentiated"
    floats = [path for path, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.floating)]
    path = min(floats or leaves, key=lambda path: leaves[path].ndim)
    kinds = ", ".join(_said(leaf) for leaf in list(leaves.values())[:4]) + (
        ", ..." if len(leaves) > 4 else ""
    )
    return f"{kind} of {len(leaves)} ({kinds}); take one, f(...){path}" + (
        ".sum()" if leaves[path].shape else ""
    )


def _said(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def named_leaves(f: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    """The arrays among the arguments by their paths, "params['weight']", in the order of `jax.tree.leaves`.

    Raises:
        TypeError: arguments that f does not take, or that are neither arrays and numbers nor code, such as a module's activation function.
        ValueError: arrays that are not finite.
    """
    _require_taken(f, args)
    named = _with_paths(zip(_argument_names(f, len(args)), args, strict=True))
    arrays = {name: leaf for name, leaf in named if not _is_code(leaf)}
    for name, leaf in arrays.items():
        _require_array(name, leaf)
    return arrays


def _is_code(leaf: Any) -> bool:
    """Whether a leaf of the arguments is a function, which is held as it is."""
    return callable(leaf) and not hasattr(leaf, "dtype")


def _require_taken(f: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        signature = inspect.signature(f)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args)
    except TypeError as error:
        raise TypeError(
            f"f must take the arguments that are given, {len(args)}, got one that takes {signature}: {error}"
        ) from None


def _require_array(name: str, leaf: Any) -> None:
    if isinstance(leaf, int) and abs(leaf) >= 2 ** (63 if is_x64_enabled() else 31):
        raise ValueError(f"{name} must fit into an integer of JAX, got {leaf}: give it as a float")
    if isinstance(leaf, (bool, int, float, complex)):
        _validation.finite(name, leaf)
        return
    if isinstance(leaf, jax.ShapeDtypeStruct) or not (
        hasattr(leaf, "dtype") and hasattr(leaf, "shape")
    ):
        raise TypeError(f"{name} must be an array or a number, got {type(leaf).__name__}")
    if not any(jnp.issubdtype(leaf.dtype, numbers) for numbers in _NUMBERS):
        raise TypeError(f"{name} must be an array of numbers, got one of {leaf.dtype}")
    _validation.concrete(name, leaf, "trace outside of jit, grad and vmap, as a graph shows values")
    _validation.finite(name, leaf)


def _argument_names(f: Callable[..., Any], count: int) -> list[str]:
    try:
        bound = inspect.signature(f).bind(*range(count)).arguments
    except (TypeError, ValueError):
        return [f"args[{k}]" for k in range(count)]
    names = [
        [f"{name}[{k}]" for k in range(len(taken))] if isinstance(taken, tuple) else [name]
        for name, taken in bound.items()
    ]
    return [name for several in names for name in several]


def constant_names(f: Callable[..., Any], constants: list[Any]) -> list[str]:
    """What the arrays that f holds are called where it holds them: in its closure, its globals or its own leaves; else "constant"."""
    held = [
        (name, leaf)
        for name, leaf in _with_paths(_held(f))
        if isinstance(leaf, jax.Array | np.ndarray)
    ]
    return [
        next((name for name, leaf in held if _equal(leaf, constant)), "constant")
        for constant in constants
    ]


def _held(f: Any) -> Iterator[tuple[str, Any]]:
    function = inspect.unwrap(f)
    yield from held_by(function).items() if inspect.isfunction(function) else [("", f)]


def _with_paths(named: Any) -> Iterator[tuple[str, Any]]:
    for name, tree in named:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            yield (name + jax.tree_util.keystr(path)).removeprefix("."), leaf


def _equal(a: Any, b: Any) -> bool:
    return a is b or (
        a.shape == b.shape and a.dtype.kind == b.dtype.kind and bool(np.array_equal(a, b))
    )
