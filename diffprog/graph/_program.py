"""What can be traced: a pure JAX function of arrays to one float scalar, and what its arguments and constants are called."""

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffprog import require
from diffprog.interpreter import ClosedJaxpr


def traced(f: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> ClosedJaxpr:
    """The equations of f, which takes the leaves of `args` and returns one float scalar; or an error that says why there are none."""
    for name, leaf in named.items():
        if isinstance(leaf, str) or not (isinstance(leaf, (bool, int, float, complex)) or hasattr(leaf, "dtype")):
            raise TypeError(f"{name} must be an array or a number, got {type(leaf).__name__}")
        require.finite(name, leaf)
    # A new function each time: JAX keeps the equations of one it knows, and would not notice that another run gives others.
    program, returned = _make(lambda *args: f(*args), args)
    _require_scalar(returned)
    with contextlib.nullcontext() if _known_tight(f) else jax.checking_leaks():
        again, _ = _make(lambda *args: f(*args), args)
    _remember_tight(f)
    if program.effects:
        raise TypeError(f"f must have no side effects, got one that has {', '.join(sorted(map(str, program.effects)))}: take it out of f")
    if str(program) != str(again) or not all(map(_same, program.consts, again.consts)):
        raise TypeError(
            "f must have no side effects and give the same each time, got one whose second run differs from its first: "
            "pass what changes as an argument, and random numbers through a key"
        )
    return program


# Functions that kept no traced value when they were checked for it: that takes a garbage collection, a tenth of a second.
_TIGHT: weakref.WeakSet[Any] = weakref.WeakSet()


def _known_tight(f: Any) -> bool:
    with contextlib.suppress(TypeError):
        return f in _TIGHT
    return False


def _remember_tight(f: Any) -> None:
    with contextlib.suppress(TypeError):
        _TIGHT.add(f)


def _make(f: Callable[..., Any], args: tuple[Any, ...]) -> tuple[ClosedJaxpr, Any]:
    try:
        return jax.make_jaxpr(f, return_shape=True)(*args)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        said = str(error).partition("\n")[0]
        raise TypeError(
            "f must be a JAX function, got one that needs the numbers in its arguments while it is traced: use jnp for np and math, "
            f"jnp.where or lax.cond for if, lax.while_loop for while. JAX says: {said}"
        ) from error
    except Exception as error:
        if not str(error).startswith("Leaked"):
            raise
        raise TypeError(
            "f must have no side effects, got one that keeps a traced value beyond its run (in a list, an attribute or a global): "
            "return the value, or name it with dp.tap"
        ) from error


def _require_scalar(returned: Any) -> None:
    leaves = jax.tree.leaves(returned)
    if len(leaves) != 1 or not hasattr(returned, "shape"):
        kinds = ", ".join(_said(leaf) for leaf in leaves[:4]) + (", ..." if len(leaves) > 4 else "")
        raise ValueError(
            f"f must return one float scalar, got {type(returned).__name__} of {len(leaves)} ({kinds}); take one by index, f(...)[0]"
        )
    if returned.shape != ():
        index = ", ".join("0" for _ in returned.shape)
        raise ValueError(
            f"f must return one float scalar, got {_said(returned)}; take its sum, f(...).sum(), or one entry, f(...)[{index}]"
        )
    if not jnp.issubdtype(returned.dtype, jnp.floating):
        raise ValueError(f"f must return one float scalar, got {_said(returned)}, which has no derivative")


def _said(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _same(a: Any, b: Any) -> bool:
    if a is b or jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return True
    return np.array_equal(a, b, equal_nan=bool(jnp.issubdtype(a.dtype, jnp.inexact)))


def named_leaves(f: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    """The leaves of the arguments by their paths, "params['weight']", in the order of `jax.tree.leaves`."""
    return dict(_with_paths(zip(_argument_names(f, len(args)), args, strict=True)))


def _argument_names(f: Callable[..., Any], count: int) -> list[str]:
    try:
        bound = inspect.signature(f).bind(*range(count)).arguments
    except (TypeError, ValueError):
        return [f"args[{k}]" for k in range(count)]
    names = [[f"{name}[{k}]" for k in range(len(taken))] if isinstance(taken, tuple) else [name] for name, taken in bound.items()]
    return [name for several in names for name in several]


def constant_names(f: Callable[..., Any], constants: list[Any]) -> list[str]:
    """What the arrays that f holds are called where it holds them: in its closure, its globals or its own leaves; else "constant"."""
    held = [(name, leaf) for name, leaf in _with_paths(_held(f)) if isinstance(leaf, jax.Array | np.ndarray)]
    return [next((name for name, leaf in held if _equal(leaf, constant)), "constant") for constant in constants]


def _held(f: Any) -> Iterator[tuple[str, Any]]:
    function = inspect.unwrap(f)
    if inspect.isfunction(function):
        variables = inspect.getclosurevars(function)
        yield from {**variables.nonlocals, **variables.globals}.items()
    else:
        yield "", f


def _with_paths(named: Any) -> Iterator[tuple[str, Any]]:
    for name, tree in named:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            yield (name + jax.tree_util.keystr(path)).removeprefix("."), leaf


def _equal(a: Any, b: Any) -> bool:
    return a is b or (a.shape == b.shape and a.dtype.kind == b.dtype.kind and bool(np.array_equal(a, b)))
