"""Trace a function to its jaxpr; raise if it is not pure or does not return one float scalar.

The function is traced twice. Side effects show as

    effects that JAX records                    debug prints, callbacks
    a traced value that outlives its trace      stored in a list, an attribute or a global
    a different jaxpr the second time           a counter or a random number in the computation

Other side effects, such as `print` or a counter that no result depends on, do not change the graph
and are not detected; nor are those of a function under `jit`, which JAX does not run again.
"""

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffprog._jaxpr import ClosedJaxpr


def trace_pure(f: Callable[..., Any], args: tuple[Any, ...]) -> ClosedJaxpr:
    """Trace f(*args) to a jaxpr, and check that f is pure and returns one float scalar.

    Args:
        f: the function to trace.
        args: pytrees, whose arrays and numbers become the arguments of the jaxpr.

    Raises:
        TypeError: f is not written in JAX or has a side effect.
        ValueError: f does not return one float scalar.
    """
    leaves, treedef = jax.tree.flatten(args)
    arrays = [leaf for leaf in leaves if not is_code(leaf)]

    def make_jaxpr() -> tuple[ClosedJaxpr, Any]:
        # A new function each time: JAX caches the jaxpr of a function object.
        def run(*arrays: Any) -> Any:
            values = iter(arrays)
            filled = [leaf if is_code(leaf) else next(values) for leaf in leaves]
            returned = f(*jax.tree.unflatten(treedef, filled))
            _require_numbers(returned)
            return returned

        return jax.make_jaxpr(run, return_shape=True)(*arrays)

    program, returned = _trace_once(make_jaxpr)
    if program.effects:
        raise _impure(f"has {', '.join(sorted(map(str, program.effects)))}", "take it out of f")
    # JAX does not copy NumPy arrays that f closes over; a copy shows if f writes into them.
    constants = [c if isinstance(c, jax.Array) else np.array(c) for c in program.consts]
    again = _trace_again(f, make_jaxpr)
    if str(program) != str(again) or not all(map(_same_array, constants, again.consts)):
        raise _impure(
            "does something else in a second run",
            "pass what changes as an argument, and random numbers through a key",
        )
    _require_float_scalar(returned)
    return program


def _trace_once(make_jaxpr: Callable[[], Any]) -> tuple[ClosedJaxpr, Any]:
    try:
        return make_jaxpr()
    except jax.errors.UnexpectedTracerError:
        raise
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(
            "f must be a JAX function, got one that needs the numbers in its arguments while it is "
            "traced: use jnp for np and math, jnp.where or lax.cond for if, lax.while_loop for "
            f"while. JAX says: {reason}"
        ) from error
    except TypeError as error:
        if "immutable" not in str(error):
            raise
        raise _impure(
            "changes an array in place", "write x = x.at[index].set(value) for x[index] = value"
        ) from error


# Functions known to store no traced value; the check takes a garbage collection, about 0.1 s.
_LEAK_FREE: weakref.WeakSet[Any] = weakref.WeakSet()


def _trace_again(f: Callable[..., Any], make_jaxpr: Callable[[], Any]) -> ClosedJaxpr:
    checked = False
    with contextlib.suppress(TypeError):  # f is not hashable
        checked = f in _LEAK_FREE
    # The first trace is not checked, as it may fill caches.
    try:
        with contextlib.nullcontext() if checked else jax.checking_leaks():
            program, _ = make_jaxpr()
    except jax.errors.UnexpectedTracerError as error:
        raise _impure(
            "uses a traced value of its last run", "return the value, or name it with dp.tap"
        ) from error
    except Exception as error:
        if not str(error).startswith("Leaked"):
            raise
        raise _impure(
            "keeps a traced value beyond its run (in a list, an attribute or a global)",
            "return the value, or name it with dp.tap",
        ) from error
    with contextlib.suppress(TypeError):  # f is not hashable or has no weak references
        _LEAK_FREE.add(f)
    return program


def _impure(does: str, remedy: str) -> TypeError:
    return TypeError(f"f must have no side effects, got one that {does}: {remedy}")


def is_code(leaf: Any) -> bool:
    """Check whether a leaf of an argument is a function, such as a module's activation."""
    return callable(leaf) and not hasattr(leaf, "dtype")


def _same_array(a: Any, b: Any) -> bool:
    """Check whether two arrays are equal; NaN equals NaN, and PRNG keys always count as equal."""
    if a is b or jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return True
    return np.array_equal(a, b, equal_nan=bool(jnp.issubdtype(a.dtype, jnp.inexact)))


def _require_numbers(returned: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(returned):
        if not (isinstance(leaf, (bool, int, float, complex)) or hasattr(leaf, "dtype")):
            raise ValueError(
                f"f must return one float scalar, got {type(leaf).__name__} for "
                f"f(...){jax.tree_util.keystr(path)}"
            )


def _require_float_scalar(returned: Any) -> None:
    with_paths = jax.tree_util.tree_leaves_with_path(returned)
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in with_paths}
    if list(leaves) != [""]:
        problem = _describe_outputs(type(returned).__name__, leaves)
    elif returned.shape != ():
        entry = f"f(...)[{', '.join('0' for _ in returned.shape)}]"
        problem = f"{_describe(returned)}; take its sum, f(...).sum(), or one entry, {entry}"
    elif not jnp.issubdtype(returned.dtype, jnp.floating):
        problem = f"{_describe(returned)}, which has no derivative"
    else:
        return
    raise ValueError(f"f must return one float scalar, got {problem}")


def _describe_outputs(container: str, leaves: dict[str, Any]) -> str:
    """Describe the outputs of f in an error message, and how to select one, preferably a float.

    `container` is the name of the type that f returns, `leaves` are the outputs in it by path.
    """
    if not leaves:
        return f"{container} without a number in it; return what is to be differentiated"
    floats = [path for path, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.floating)]
    path = min(floats or leaves, key=lambda path: leaves[path].ndim)
    kinds = [_describe(leaf) for leaf in leaves.values()]
    kinds = kinds[:4] + ["..."] * (len(kinds) > 4)
    selection = f"f(...){path}" + (".sum()" if leaves[path].shape else "")
    return f"{container} of {len(leaves)} ({', '.join(kinds)}); take one, {selection}"


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
