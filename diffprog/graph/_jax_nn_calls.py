"""Which equations belong to one call of a function of jax.nn: found by the code that was running when JAX noted an equation down."""

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax

from diffprog._jaxpr import Jaxpr, JaxprEqn, Literal, as_function, sub_jaxprs

INLINED = frozenset(("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"))
RULED = frozenset(("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"))


class Piece(NamedTuple):
    """Consecutive equations: one, or those of one call of a function of jax.nn, by its name."""

    equations: list[JaxprEqn]
    name: str = ""


class _Call(NamedTuple):
    """Where a function of jax.nn was called from, and where it was itself when it made an equation."""

    name: str
    outside: Any
    inside: Any


def pieces(jaxpr: Jaxpr, opened: frozenset[str], met: set[str]) -> Iterator[Piece]:
    """The equations of a program, those of one call of a jax.nn function together. The functions are added to `met`, opened or not."""
    together: list[JaxprEqn] = []
    first: _Call | None = None
    for equation in jaxpr.eqns:
        call = _nn_call(equation, opened, met)
        if first and (
            call is None
            or call[:2] != first[:2]
            or _starts_again(equation, call, together[0], first)
        ):
            yield Piece(together, first.name)
            together, first = [], None
        if call is None:
            yield Piece([equation])
        else:
            together, first = [*together, equation], first or call
    if first:
        yield Piece(together, first.name)


def derived(name: str, equation: JaxprEqn) -> str:
    """What a function is called where the program takes a derivative: "jvp(softmax)" is the function with what its derivative needs of it,
    "transpose(softmax)" that derivative."""
    scope = str(equation.source_info.name_stack)
    return (
        f"transpose({name})"
        if "transpose(" in scope
        else f"jvp({name})"
        if "jvp(" in scope
        else name
    )


def _starts_again(equation: JaxprEqn, call: _Call, opening: JaxprEqn, first: _Call) -> bool:
    """Whether it is the first equation of another call from the same place, in a loop. A derivative is not in the order of calls."""
    return (
        call == first
        and equation.primitive is opening.primitive
        and not call.name.startswith("transpose(")
    )


def _nn_call(equation: JaxprEqn, opened: frozenset[str], met: set[str]) -> _Call | None:
    """The outermost function of jax.nn that was running."""
    traceback = equation.source_info.traceback
    if traceback is None or equation.primitive.name in RULED:
        return None
    codes, positions = traceback.raw_frames()
    names = _nn_codes()
    for depth in range(len(codes) - 1, -1, -1):
        name = names.get(codes[depth])
        if name is None:
            continue
        met.add(name)
        if name not in opened:
            frames = tuple(zip(map(id, codes), positions, strict=True))
            return _Call(derived(name, equation), frames[depth + 1 :], frames[: depth + 1])
    return None


@functools.cache
def _nn_codes() -> dict[Any, str]:
    functions = {
        name: inspect.unwrap(getattr(jax.nn, name))
        for name in dir(jax.nn)
        if not name.startswith("_")
    }
    named = {
        function.__code__: function.__name__
        for function in functions.values()
        if inspect.isfunction(function)
    }
    return {code: name for code, name in named.items() if name in functions}


def is_nn(equation: JaxprEqn) -> bool:
    """Whether an equation calls a function of jax.nn: one of its names, written where jax.nn is."""
    return called(equation) in _nn_names() and _debug(
        equation, "func_filename"
    ) == inspect.getsourcefile(inspect.unwrap(jax.nn.softmax))


@functools.cache
def _nn_names() -> frozenset[str]:
    return frozenset(name for name in dir(jax.nn) if callable(getattr(jax.nn, name)))


def called(equation: JaxprEqn) -> str:
    """The name of the function that an equation calls, "" where it is unknown."""
    name = equation.params.get("name") or _debug(equation, "func_name") or ""
    return name if isinstance(name, str) and "<" not in name else ""


def _debug(equation: JaxprEqn, what: str) -> Any:
    inner = sub_jaxprs(equation) if equation.primitive.name in INLINED | RULED else []
    jaxpr = inner[0] if inner else None
    return getattr(getattr(getattr(jaxpr, "jaxpr", jaxpr), "debug_info", None), what, None)


def readers(jaxpr: Jaxpr) -> Counter[Any]:
    """How often each variable of a program is read, its outputs included."""
    return Counter(
        atom
        for atoms in (*(equation.invars for equation in jaxpr.eqns), jaxpr.outvars)
        for atom in _variables(atoms)
    )


def ends(equations: list[JaxprEqn], read: Counter[Any]) -> tuple[list[Any], list[Any]]:
    """The variables that a stretch of a program takes, and those that are read outside of it."""
    made = dict.fromkeys(variable for equation in equations for variable in equation.outvars)
    inside = Counter(atom for equation in equations for atom in _variables(equation.invars))
    return [atom for atom in inside if atom not in made], [
        variable for variable in made if read[variable] > inside[variable]
    ]


def _variables(atoms: Iterable[Any]) -> Iterator[Any]:
    return (atom for atom in atoms if not isinstance(atom, Literal))


def compiled(
    equations: list[JaxprEqn], operands: list[Any], results: list[Any]
) -> Callable[..., list[Any]]:
    """A stretch of a program made by jax.nn as a function that is compiled whole: equation by equation, XLA would compile each alone.

    Once for all traces, as the text of such equations says all of what they do: no rules and no arrays of the user's are among them.
    """
    run = as_function(equations, operands, results)
    if any(
        getattr(inner, "consts", ()) for equation in equations for inner in sub_jaxprs(equation)
    ):
        return run
    text = jax.make_jaxpr(run)(
        *(
            jax.ShapeDtypeStruct(
                atom.aval.shape, atom.aval.dtype, weak_type=getattr(atom.aval, "weak_type", False)
            )
            for atom in operands
        )
    )
    return _compiled(_Stretch(str(text), run))


class _Stretch:
    """A function that is told from others by its text."""

    def __init__(self, text: str, run: Callable[..., list[Any]]) -> None:
        self.text, self.run = text, run

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stretch) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


@functools.lru_cache(maxsize=512)
def _compiled(stretch: _Stretch) -> Callable[..., list[Any]]:
    return jax.jit(stretch.run)
