"""Find the calls of `jax.nn` functions in a jaxpr, so that each call can be shown as one node.

JAX traces some of these functions into a call equation (`silu`, `relu`) and inlines others
(`softmax`, `gelu`, `logsumexp`). An inlined call is recognized as consecutive equations whose
tracebacks contain the same call of a function of `jax.nn`.
"""

import functools
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax

from diffprog._jaxpr import Jaxpr, JaxprEqn, Literal, sub_jaxprs

CALL_PRIMITIVES = frozenset(
    ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2")
)
CUSTOM_RULE_PRIMITIVES = frozenset(("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"))


class EquationGroup(NamedTuple):
    """Equations of one inlined call of the `jax.nn` function `name`; or one equation, name ""."""

    equations: list[JaxprEqn]
    name: str = ""


class _NNCall(NamedTuple):
    """Call of a `jax.nn` function, found in the traceback of an equation.

    Equations belong to the same call if name and callers agree.

    Attributes:
        name: name of the function.
        callers: stack frames of its callers.
        frames: stack frames of the call itself and of the functions that it calls.
    """

    name: str
    callers: Any
    frames: Any


def group_nn_calls(
    jaxpr: Jaxpr, scope: str, expanded: frozenset[str], boxes: set[str]
) -> Iterator[EquationGroup]:
    """Yield the equations of a jaxpr in order; those of an inlined `jax.nn` call form one group.

    Args:
        jaxpr: the jaxpr.
        scope: name scope in which the jaxpr is called.
        expanded: names of `jax.nn` functions whose equations are not grouped.
        boxes: set to which the names of all `jax.nn` functions found are added.
    """
    group: list[JaxprEqn] = []
    first: _NNCall | None = None
    for equation in jaxpr.eqns:
        # A function and its derivative have the same traceback: derivatives are not grouped.
        derivative = is_derivative(f"{scope}/{equation.source_info.name_stack}")
        call = None if derivative else _active_nn_call(equation, expanded, boxes)
        # A call in a loop has the same callers each time; its first equation marks a new group.
        repeated = bool(group) and call == first and equation.primitive is group[0].primitive
        if first and (call is None or call[:2] != first[:2] or repeated):
            yield EquationGroup(group, first.name)
            group, first = [], None
        if call is None:
            yield EquationGroup([equation])
        else:
            group, first = [*group, equation], first or call
    if first:
        yield EquationGroup(group, first.name)


def is_derivative(scope: str) -> bool:
    """Check whether a name scope is that of a derivative taken by the traced function."""
    return "jvp(" in scope


def _active_nn_call(
    equation: JaxprEqn, expanded: frozenset[str], boxes: set[str]
) -> _NNCall | None:
    """Return the outermost call of a `jax.nn` function in an equation's traceback, or None.

    Functions in `expanded` are skipped. The names of the functions found are added to `boxes`.
    """
    traceback = equation.source_info.traceback
    if traceback is None or equation.primitive.name in CUSTOM_RULE_PRIMITIVES:
        return None
    codes, positions = traceback.raw_frames()
    for depth in reversed(range(len(codes))):
        code = codes[depth]
        if (code.co_filename, code.co_name) in _nn_functions():
            boxes.add(code.co_name)
            if code.co_name not in expanded:
                frames = tuple(zip(map(id, codes), positions, strict=True))
                return _NNCall(code.co_name, frames[depth + 1 :], frames[: depth + 1])
    return None


def called_function(equation: JaxprEqn) -> tuple[str, bool]:
    """Return the name of the function that an equation calls, and whether it is in `jax.nn`.

    The name is "" if the function has none.
    """
    inner = sub_jaxprs(equation)[0]
    debug_info = getattr(inner, "jaxpr", inner).debug_info
    name = equation.params.get("name") or debug_info.func_name or ""
    name = name if isinstance(name, str) and "<" not in name else ""
    return name, (debug_info.func_filename, name) in _nn_functions()


@functools.cache
def _nn_functions() -> frozenset[tuple[str, str]]:
    """Return (file, name) of each function of `jax.nn`, to recognize them in tracebacks."""
    functions = [inspect.unwrap(getattr(jax.nn, name)) for name in dir(jax.nn) if name[0] != "_"]
    codes = [function.__code__ for function in functions if inspect.isfunction(function)]
    return frozenset((c.co_filename, c.co_name) for c in codes if hasattr(jax.nn, c.co_name))


def count_reads(jaxpr: Jaxpr) -> Counter[Any]:
    """Count how often each variable of a jaxpr is read, as an operand or as an output."""
    operands = [atom for equation in jaxpr.eqns for atom in equation.invars]
    return Counter(_variables([*operands, *jaxpr.outvars]))


def group_boundary(equations: list[JaxprEqn], reads: Counter[Any]) -> tuple[list[Any], list[Any]]:
    """Return two lists of variables: the inputs and the outputs of a group of equations.

    The outputs are the variables of the group that are read outside of it; `reads` counts how
    often each variable is read in the whole jaxpr.
    """
    own = dict.fromkeys(variable for equation in equations for variable in equation.outvars)
    inside = Counter(_variables(atom for equation in equations for atom in equation.invars))
    operands = [variable for variable in inside if variable not in own]
    return operands, [variable for variable in own if reads[variable] > inside[variable]]


def _variables(atoms: Iterable[Any]) -> Iterator[Any]:
    return (atom for atom in atoms if not isinstance(atom, Literal))
