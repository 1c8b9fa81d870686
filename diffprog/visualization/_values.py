"""A program's values that know where they come from: which operation made them, from which values.

    h = Value(array, equation, inputs)

Another route to a value than the program's own, such as one that computes a part of it alone, is found by walking back along `inputs`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from diffprog._jaxpr import JaxprEqn, Path, evaluate_equation, find_equations, interpret, sub_jaxprs

_INLINED = frozenset(("jit", "pjit", "closed_call", "core_call"))
RULED = frozenset(("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"))


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """What an operation made.

    Attributes:
        array: its value; a `jax.ShapeDtypeStruct` where it is known by its slices alone.
        equation: the operation; None for an argument or a constant.
        inputs: its operands.
        index: which of its outputs this is.
    """

    array: Any
    equation: JaxprEqn | None = None
    inputs: tuple["Value", ...] = ()
    index: int = 0


def values_of(
    program: Any, arguments: Sequence[Value], names: Mapping[str, Path]
) -> tuple[list[Value], dict[str, Value]]:
    """The outputs of a program, flat, and its values at the paths of some operations."""
    # `interpret` does not look at what it carries from one action to the next, so with an action at every operation it carries `Value`s.
    outputs, side = interpret(program, dict.fromkeys(_operations(program), _note), arguments)
    return [_value(output) for output in outputs], {
        name: _at(path, side, program, arguments) for name, path in names.items()
    }


def depends(program: Any) -> bool:
    """Whether an output of a program comes of its arguments."""
    # What is carried here in the place of such values is a mark.
    mark = object()

    def spread(equation: JaxprEqn, inputs: Sequence[Any], given: None) -> tuple[list[Any], None]:
        return [mark if any(carried is mark for carried in inputs) else None] * len(
            equation.outvars
        ), None

    outputs, _ = interpret(
        program, dict.fromkeys(_operations(program), spread), [mark] * len(program.in_avals)
    )
    return any(output is mark for output in outputs)


def _operations(program: Any) -> list[Path]:
    return [
        site.path
        for site in find_equations(program, _is_operation)
        if _INLINED.issuperset(site.enclosing)
    ]


def _is_operation(equation: JaxprEqn) -> bool:
    return equation.primitive.name not in _INLINED or not any(
        inner.eqns for inner in sub_jaxprs(equation)
    )


def _note(
    equation: JaxprEqn, inputs: Sequence[Any], given: None
) -> tuple[list[Value], Value | None]:
    operands = tuple(map(_value, inputs))
    if any(isinstance(operand.array, jax.ShapeDtypeStruct) for operand in operands):
        avals: list[Any] = [variable.aval for variable in equation.outvars]
        arrays: list[Any] = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    else:
        arrays = evaluate_equation(equation, [operand.array for operand in operands])
    outputs = [Value(array, equation, operands, index) for index, array in enumerate(arrays)]
    return outputs, outputs[0] if outputs else None


def _value(carried: Any) -> Value:
    """Literals and constants are carried as they are."""
    return carried if isinstance(carried, Value) else Value(carried)


def _at(path: Path, side: Mapping[Path, Value], program: Any, arguments: Sequence[Value]) -> Value:
    if path in side:
        return side[path]
    end = next(end for end in range(len(path)) if path[:end] in side)
    around, number, rest = side[path[:end]], path[end], path[end + 1 :]
    if around.equation is not None and around.equation.primitive.name in RULED:
        return values_of(sub_jaxprs(around.equation)[number], around.inputs, {"node": rest})[1][
            "node"
        ]
    return Value(
        interpret(program, {path: _see}, [argument.array for argument in arguments])[1][path]
    )


def _see(equation: JaxprEqn, inputs: Sequence[Any], given: None) -> tuple[list[Any], Any]:
    outputs = evaluate_equation(equation, inputs)
    return outputs, outputs[0]
