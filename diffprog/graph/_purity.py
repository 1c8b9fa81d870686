"""Side effects, as far as they can be seen: a function is run twice, and both runs must do the same and leave nothing behind.

    effects that JAX knows of                       debug prints, input and output callbacks
    a traced value that outlives its run            appended to a list, set as an attribute
    another program the second time                 a count or a random number that is computed with
    a variable that the second run leaves changed   a count that is not: globals, closures, lists, dicts, sets, attributes, small arrays

The first run may fill a cache; it is the second that must change nothing. What a run writes elsewhere, by `print` or to a file, or changes
deep within an object, cannot be seen; nor can what is done by a function under `jit`, which JAX does not run again.
"""

import contextlib
import inspect
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffprog._jaxpr import ClosedJaxpr

_SMALL = 2**16  # bytes of an array whose numbers are remembered
_PLAIN = (bool, int, float, complex, str, bytes)


def without_side_effects(
    f: Callable[..., Any], run: Callable[[], tuple[ClosedJaxpr, Any]]
) -> tuple[ClosedJaxpr, Any]:
    """What `run` gives, which traces f; run twice.

    Raises:
        TypeError: a side effect.
    """
    program, returned = run()
    if program.effects:
        raise _error(f"has {', '.join(sorted(map(str, program.effects)))}", "take it out of f")
    before = _state(f)
    again = _run_again(f, run)
    changed = [
        name
        for name, after in _state(f).items()
        if name in before and not _same_contents(before[name], after)
    ]
    if str(program) != str(again) or not all(map(_same, program.consts, again.consts)):
        raise _error(
            "does something else in a second run",
            "pass what changes as an argument, and random numbers through a key",
        )
    if changed:
        raise _error(
            f"changes {', '.join(map(repr, changed))}",
            "return what it computes, and keep count outside",
        )
    return program, returned


# Functions that kept no traced value when they were checked for it: that takes a garbage collection, a tenth of a second.
_TIGHT: weakref.WeakSet[Any] = weakref.WeakSet()


def _run_again(f: Callable[..., Any], run: Callable[[], tuple[ClosedJaxpr, Any]]) -> ClosedJaxpr:
    known = False
    with contextlib.suppress(TypeError):
        known = f in _TIGHT
    try:
        with contextlib.nullcontext() if known else jax.checking_leaks():
            again, _ = run()
    except jax.errors.UnexpectedTracerError as error:
        raise _error(
            "uses a traced value of its last run", "return the value, or name it with dp.tap"
        ) from error
    except Exception as error:
        if not str(error).startswith("Leaked"):
            raise
        kept = "keeps a traced value beyond its run (in a list, an attribute or a global)"
        raise _error(kept, "return the value, or name it with dp.tap") from error
    with contextlib.suppress(TypeError):
        _TIGHT.add(f)
    return again


def _error(does: str, instead: str) -> TypeError:
    return TypeError(f"f must have no side effects, got one that {does}: {instead}")


def _same(a: Any, b: Any) -> bool:
    if a is b or jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return True
    return np.array_equal(a, b, equal_nan=bool(jnp.issubdtype(a.dtype, jnp.inexact)))


def _state(f: Callable[..., Any]) -> dict[str, list[Any]]:
    """The variables that f and the functions it calls can reach, each with what it holds."""
    state: dict[str, list[Any]] = {}
    waiting, seen = [("f", f)], set[int]()
    while waiting:
        name, value = waiting.pop()
        state.setdefault(name, [value, *_contents(value)])
        for function in _functions(value):
            if id(function) not in seen:
                seen.add(id(function))
                waiting += held_by(function).items()
    return state


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """The Python functions that run when a value is called."""
    value = getattr(value, "func", value)
    value = inspect.unwrap(value) if callable(value) else value
    if inspect.ismethod(value):
        value = value.__func__
    elif not isinstance(value, type) and inspect.isfunction(getattr(type(value), "__call__", None)):
        value = type(value).__call__
    if inspect.isfunction(value):
        yield value


def held_by(function: types.FunctionType) -> dict[str, Any]:
    """What a function holds in its closure, and what it may read of its module's globals but for functions of others."""
    held = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            held[name] = cell.cell_contents
    known = function.__globals__
    found = {
        name: known[name]
        for name in _names(function.__code__)
        if name in known and name not in held
    }
    return held | {
        name: value
        for name, value in found.items()
        if getattr(value, "__globals__", known) is known
    }


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _contents(value: Any) -> list[Any]:
    """What a variable's value holds, one level deep."""
    match value:
        case list() | tuple():
            return list(value)
        case dict():
            return [*value, *value.values()]
        case set():
            return sorted(value, key=id)
        case np.ndarray():
            return [value.tobytes()] if value.nbytes <= _SMALL else []
        case types.ModuleType() | type() | types.FunctionType():
            return []
        case types.MethodType():
            return _contents(value.__self__)
        case _:
            held = getattr(value, "__dict__", {})
            return [*held, *held.values()] if isinstance(held, dict) else []


def _same_contents(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(map(_unchanged, before, after))


def _unchanged(before: Any, after: Any) -> bool:
    return before is after or (
        isinstance(before, _PLAIN) and type(before) is type(after) and before == after
    )
