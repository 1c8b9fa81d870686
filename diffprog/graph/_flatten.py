"""Run a program on values and record every operation in order, with all sub-programs flattened.

    jit, remat              inlined
    cond                    the branch taken
    scan, fori_loop         unrolled if short
    while                   unrolled for as many steps as its condition holds
    custom derivatives      one box with its rule, unless expanded
    functions of jax.nn     one box, unless expanded; inlined where f takes derivatives itself

Values that depend on no argument are computed but not recorded.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffprog._jaxpr import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    as_function,
    jaxpr_as_fun,
    scan_parameters,
    sub_jaxprs,
)
from diffprog.graph._format import operation_label
from diffprog.graph._jax_nn_calls import (
    CALL_PRIMITIVES,
    CUSTOM_RULE_PRIMITIVES,
    called_function,
    count_reads,
    group_boundary,
    group_nn_calls,
    is_derivative,
)

_MAX_WHILE_STEPS = 10_000


class RecordedOperation(NamedTuple):
    """Operation that was run on values, with its inputs and outputs.

    Attributes:
        op, label, scope, kind: as of the nodes of its outputs.
        run: differentiable function from inputs to outputs.
        inputs: values.
        sources: index of each input in `Recorder.values`, None for a constant that is no node.
        outputs: indices of its outputs.
        params: parameters of the primitive; empty for a box.
        builtin: name of the primitive or `jax.nn` function; "" for a function of the user, whatever
            its name, about which nothing is known.
    """

    op: str
    label: str
    scope: str
    kind: str
    run: Callable[..., Sequence[Any]]
    inputs: tuple[Any, ...]
    sources: tuple[int | None, ...]
    outputs: tuple[int, ...]
    params: dict[str, Any]
    builtin: str


class TracedValue(NamedTuple):
    """A value and its position in `Recorder.values`; None if it depends on no argument."""

    value: Any
    id: int | None = None


class Recorder:
    """Record of all values and operations of a run.

    Attributes:
        values: all recorded values.
        taps: for each tapped index the name and the number of earlier taps of that name.
        tap_counts: number of taps of each name.
        operations: in the order they were run.
        computed: indices of the outputs of operations.
        boxes: names of all boxes met, expanded or not.
        expanded: names of boxes to expand.
        max_scan: length of the longest scan to unroll.
    """

    def __init__(self, expanded: frozenset[str], max_scan: int) -> None:
        self.values: list[Any] = []
        self.taps: dict[int, tuple[str, int]] = {}
        self.tap_counts = Counter[str]()
        self.operations: list[RecordedOperation] = []
        self.computed: set[int | None] = set()
        self.boxes: set[str] = set()
        self.expanded, self.max_scan = expanded, max_scan

    def add_value(self, value: Any) -> TracedValue:
        """Record a value."""
        self.values.append(value)
        return TracedValue(value, len(self.values) - 1)

    def run(
        self,
        op: str,
        function: Callable[..., Sequence[Any]],
        operands: Sequence[TracedValue],
        scope: str,
        label: str = "",
        kind: str = "operation",
        params: dict[str, Any] | None = None,
        builtin: str | None = None,
    ) -> list[TracedValue]:
        """Run an operation and record it if it depends on a recorded value."""
        inputs = tuple(operand.value for operand in operands)
        sources = tuple(operand.id for operand in operands)
        results = function(*inputs)
        if all(source is None for source in sources):
            return [TracedValue(result) for result in results]
        outputs = [self.add_value(result) for result in results]
        indices = tuple(output.id for output in outputs if output.id is not None)
        self.operations.append(
            RecordedOperation(
                op,
                label or op,
                scope,
                kind,
                function,
                inputs,
                sources,
                indices,
                params or {},
                op if builtin is None else builtin,
            )
        )
        self.computed.update(indices)
        return outputs


def flatten_program(
    program: ClosedJaxpr | Jaxpr,
    constants: Sequence[TracedValue],
    arguments: Sequence[TracedValue],
    recorder: Recorder,
    scope: str = "",
) -> list[TracedValue]:
    """Run a program, record its operations and return its outputs."""
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def read(atom: Any) -> TracedValue:
        if isinstance(atom, Literal):
            aval: Any = atom.aval
            return TracedValue(jnp.asarray(atom.val, aval.dtype))
        return values[atom]

    reads = count_reads(jaxpr)
    for equations, name in group_nn_calls(jaxpr, scope, recorder.expanded, recorder.boxes):
        inner_scope = _join_scopes(scope, str(equations[0].source_info.name_stack))
        if name:
            operands, results = group_boundary(equations, reads)
            run = as_function(equations, operands, results)
            inputs = [values[variable] for variable in operands]
            outputs = recorder.run(name, run, inputs, inner_scope, kind="box")
        else:
            results = equations[0].outvars
            inputs = [read(atom) for atom in equations[0].invars]
            outputs = _run_equation(equations[0], inputs, recorder, inner_scope)
        values.update(zip(results, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _run_equation(
    equation: JaxprEqn, operands: list[TracedValue], recorder: Recorder, scope: str
) -> list[TracedValue]:
    primitive = equation.primitive.name
    if primitive in CALL_PRIMITIVES | CUSTOM_RULE_PRIMITIVES:
        return _run_call(equation, operands, recorder, scope)
    if primitive == "cond":
        branches = sub_jaxprs(equation)
        index = int(np.clip(int(operands[0].value), 0, len(branches) - 1))
        return _enter(branches[index], operands[1:], recorder, scope)
    if primitive == "scan" and equation.params["length"] <= recorder.max_scan:
        return _unroll_scan(equation, operands, recorder, scope)
    # A loop over integers only has no derivative to show.
    if primitive == "while" and any(map(_is_inexact, equation.outvars)):
        return _unroll_while(equation, operands, recorder, scope)
    if primitive == "name":
        return _tap(equation, operands, recorder, scope)
    if primitive == "convert_element_type":
        before: Any = equation.invars[0].aval
        after: Any = equation.outvars[0].aval
        if before.dtype == after.dtype:  # only the weak type changes
            return operands
    params = dict(equation.params)
    if primitive == "scan":
        label = f"scan, {params['length']} steps"
    else:
        constants = {k: operand.value for k, operand in enumerate(operands) if operand.id is None}
        label = operation_label(primitive, params, constants)
    run = as_function([equation])
    return recorder.run(primitive, run, operands, scope, label, params=params)


def _is_inexact(variable: Any) -> bool:
    return jnp.issubdtype(variable.aval.dtype, jnp.inexact)


def _run_call(
    equation: JaxprEqn, operands: list[TracedValue], recorder: Recorder, scope: str
) -> list[TracedValue]:
    """Run the call of a function: as one box or, if it is expanded or only jitted, its body."""
    primitive = equation.primitive.name
    name, is_nn = called_function(equation)
    is_nn = is_nn and not is_derivative(scope)
    has_rule = primitive in CUSTOM_RULE_PRIMITIVES
    if has_rule and name.startswith("_"):
        # A private helper that runs any layer: the scope names the layer.
        name = scope.rpartition("/")[2] or name
    if has_rule or is_nn:
        recorder.boxes.add(name)
    if name in recorder.expanded or not (has_rule or is_nn):
        return _enter(sub_jaxprs(equation)[0], operands, recorder, scope)
    op, kind = name or primitive, "rule" if has_rule else "box"
    run = as_function([equation])
    return recorder.run(op, run, operands, scope, kind=kind, builtin=op if is_nn else "")


def _enter(
    program: ClosedJaxpr | Jaxpr, operands: Sequence[TracedValue], recorder: Recorder, scope: str
) -> list[TracedValue]:
    constants = [
        recorder.add_value(value) if np.size(value) > 1 else TracedValue(value)
        for value in getattr(program, "consts", ())
    ]
    return flatten_program(program, constants, operands, recorder, scope)


def _unroll_scan(
    equation: JaxprEqn, operands: list[TracedValue], recorder: Recorder, scope: str
) -> list[TracedValue]:
    first_carry, carries, length, reverse, _ = scan_parameters(equation)
    constants, xs = operands[:first_carry], operands[first_carry + carries :]
    carry = operands[first_carry : first_carry + carries]
    (body,) = sub_jaxprs(equation)
    steps = range(length)
    ys: dict[int, list[TracedValue]] = {}
    for step in reversed(steps) if reverse else steps:
        step_scope = _join_scopes(scope, f"step {step}")
        index = functools.partial(_index, step)
        rows = [recorder.run("index", index, [x], step_scope, f"[{step}]")[0] for x in xs]
        outputs = _enter(body, [*constants, *carry, *rows], recorder, step_scope)
        carry, ys[step] = outputs[:carries], outputs[carries:]
    if not steps:
        avals: list[Any] = [variable.aval for variable in equation.outvars[carries:]]
        return [*carry, *(TracedValue(jnp.zeros(aval.shape, aval.dtype)) for aval in avals)]
    columns = zip(*(ys[step] for step in steps), strict=True)
    return [*carry, *(recorder.run("stack", _stack, column, scope)[0] for column in columns)]


def _index(step: int, xs: Any) -> list[Any]:
    return [jax.lax.dynamic_index_in_dim(xs, np.int32(step), keepdims=False)]


def _stack(*rows: Any) -> list[Any]:
    return [jnp.stack(rows)]


def _unroll_while(
    equation: JaxprEqn, operands: list[TracedValue], recorder: Recorder, scope: str
) -> list[TracedValue]:
    params = equation.params
    condition, body = jaxpr_as_fun(params["cond_jaxpr"]), params["body_jaxpr"]
    first = params["cond_nconsts"]
    second = first + params["body_nconsts"]
    carry = operands[second:]
    for step in range(_MAX_WHILE_STEPS + 1):
        if not bool(condition(*(value.value for value in (*operands[:first], *carry)))[0]):
            return carry
        step_scope = _join_scopes(scope, f"step {step}")
        carry = _enter(body, [*operands[first:second], *carry], recorder, step_scope)
    raise ValueError(
        f"while loops of f must stop within {_MAX_WHILE_STEPS:,} steps, got one that does not"
    )


def _tap(
    equation: JaxprEqn, operands: list[TracedValue], recorder: Recorder, scope: str
) -> list[TracedValue]:
    """Name a value; an argument or a value that has a name already is copied first."""
    name, index = equation.params["name"], operands[0].id
    if index not in recorder.computed or index in recorder.taps:
        operands = recorder.run("name", as_function([equation]), operands, scope, "copy")
    if operands[0].id is not None:
        recorder.taps[operands[0].id] = name, recorder.tap_counts[name]
    recorder.tap_counts[name] += 1
    return operands


def _join_scopes(*scopes: str) -> str:
    return "/".join(filter(None, scopes))
