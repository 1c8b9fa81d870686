"""Which equations belong to one call of a function of jax.nn: found by the code that was running when JAX noted an equation down."""

import functools
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from diffprog.interpreter import Jaxpr, JaxprEqn, Literal, programs

INLINED = frozenset(("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"))
RULED = frozenset(("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"))


class Piece(NamedTuple):
    """Consecutive equations: one, or those of one call of a function of jax.nn, by its name."""

    equations: list[JaxprEqn]
    name: str = ""


def pieces(jaxpr: Jaxpr, opened: frozenset[str]) -> Iterator[Piece]:
    """The equations of a program, those of one call of a jax.nn function together."""
    together: list[JaxprEqn] = []
    current: Any = None
    for equation in jaxpr.eqns:
        call = _nn_call(equation, opened)
        again = (
            bool(together) and call is not None and call == _nn_call(together[0], opened) and equation.primitive is together[0].primitive
        )
        if together and (call is None or call[:2] != current[:2] or again):
            yield Piece(together, current[0])
            together = []
        current = call
        if call is None:
            yield Piece([equation])
        else:
            together.append(equation)
    if together:
        yield Piece(together, current[0])


def _nn_call(equation: JaxprEqn, opened: frozenset[str]) -> tuple[str, Any, Any] | None:
    """The outermost function of jax.nn that was running, where it was called from, and where it was itself."""
    traceback, scope = equation.source_info.traceback, str(equation.source_info.name_stack)
    # In derivatives that f itself takes, equations no longer stand in the order of calls.
    if traceback is None or "jvp(" in scope or equation.primitive.name in RULED:
        return None
    codes, positions = traceback.raw_frames()
    names = _nn_codes()
    for depth in range(len(codes) - 1, -1, -1):
        name = names.get(codes[depth])
        if name is not None and name not in opened:
            frames = tuple(zip(map(id, codes), positions, strict=True))
            return name, frames[depth + 1 :], frames[: depth + 1]
    return None


@functools.cache
def _nn_codes() -> dict[Any, str]:
    functions = {name: inspect.unwrap(getattr(jax.nn, name)) for name in dir(jax.nn) if not name.startswith("_")}
    named = {function.__code__: function.__name__ for function in functions.values() if inspect.isfunction(function)}
    return {code: name for code, name in named.items() if name in functions}


def is_nn(equation: JaxprEqn) -> bool:
    """Whether an equation calls a function of jax.nn: one of its names, written where jax.nn is."""
    return called(equation) in _nn_names() and _debug(equation, "func_filename") == inspect.getsourcefile(inspect.unwrap(jax.nn.softmax))


@functools.cache
def _nn_names() -> frozenset[str]:
    return frozenset(name for name in dir(jax.nn) if callable(getattr(jax.nn, name)))


def called(equation: JaxprEqn) -> str:
    """The name of the function that an equation calls, "" where it is unknown."""
    name = equation.params.get("name") or _debug(equation, "func_name") or ""
    return name if isinstance(name, str) and "<" not in name else ""


def _debug(equation: JaxprEqn, what: str) -> Any:
    inner = programs(equation) if equation.primitive.name in INLINED | RULED else []
    jaxpr = inner[0] if inner else None
    return getattr(getattr(getattr(jaxpr, "jaxpr", jaxpr), "debug_info", None), what, None)


def ends(equations: list[JaxprEqn], jaxpr: Jaxpr) -> tuple[list[Any], list[Any]]:
    """The variables that a stretch of a program takes, and those that are read after it."""
    made = {variable for equation in equations for variable in equation.outvars}
    taken = [atom for equation in equations for atom in equation.invars if not isinstance(atom, Literal) and atom not in made]
    inside = set(map(id, equations))
    later = {atom for equation in jaxpr.eqns if id(equation) not in inside for atom in equation.invars if not isinstance(atom, Literal)}
    later |= {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    return list(dict.fromkeys(taken)), [variable for equation in equations for variable in equation.outvars if variable in later]
