"""Evaluate a jaxpr and record every operation in order, including those of nested jaxprs.

A box is a function that is recorded as a single operation. Nested jaxprs are recorded as follows:

    jit, remat              inlined
    cond                    only the branch taken
    scan, fori_loop         unrolled if short, else a single operation
    while                   unrolled for as many steps as its condition holds
    custom derivatives      a box whose derivative is the custom rule, unless expanded
    functions of jax.nn     a box, unless expanded; inlined where the function takes derivatives

Values that depend on no argument are computed but not recorded.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffprog import _jaxpr
from diffprog._jaxpr import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, as_function, sub_jaxprs
from diffprog.graph import _jax_nn_calls
from diffprog.graph._format import operation_label

_MAX_WHILE_STEPS = 10_000


class RecordedOperation(NamedTuple):
    """Operation of a traced function that was evaluated, with its inputs and outputs.

    Attributes:
        op, label, scope, kind: as in `Node`, for the nodes that are its outputs.
        run: differentiable function from inputs to outputs.
        inputs: values of its inputs.
        sources: index of each input in `Recorder.values`; None for a constant without a node.
        outputs: index of each output in `Recorder.values`.
        builtin: name of the primitive or `jax.nn` function; "" for a user's function, whose
            derivative has no known structure.
    """

    op: str
    label: str
    scope: str
    kind: str
    run: Callable[..., Sequence[Any]]
    inputs: tuple[Any, ...]
    sources: tuple[int | None, ...]
    outputs: tuple[int, ...]
    builtin: str


class TracedValue(NamedTuple):
    """Value of a traced function, and its index in `Recorder.values` (None if not recorded)."""

    value: Any
    id: int | None = None


class Recorder:
    """Values and operations of a traced function, recorded while it is evaluated.

    Attributes:
        values: all recorded values, constants and arguments first.
        taps: dict from the index of a value that was named with `tap` to (name, number of earlier
            values with the same name).
        tap_counts: for each name given with `tap`, the number of values with that name so far.
        operations: recorded operations, in the order they were run.
        computed: indices of the values that are outputs of operations.
        boxes: names of the functions that are recorded as one operation (a box), or would be if
            they were not in `expanded`.
        expanded: names of functions whose bodies are recorded instead of a box.
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
        """Append a value to `self.values`, and return it with its index."""
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
        builtin: str | None = None,
    ) -> list[TracedValue]:
        """Return `function(*operands)`; record the operation if an operand is a recorded value.

        `op`, `scope`, `label` and `kind` are those of the nodes of its outputs (see `Node`);
        `builtin` is as in `RecordedOperation`, default `op`.
        """
        inputs = tuple(operand.value for operand in operands)
        sources = tuple(operand.id for operand in operands)
        results = function(*inputs)
        if all(source is None for source in sources):
            return [TracedValue(result) for result in results]
        outputs = [self.add_value(result) for result in results]
        indices = tuple(output.id for output in outputs if output.id is not None)
        texts, ends = (op, label or op, scope, kind), (inputs, sources, indices)
        builtin = op if builtin is None else builtin
        self.operations.append(RecordedOperation(*texts, function, *ends, builtin))
        self.computed.update(indices)
        return outputs


def flatten_program(
    program: ClosedJaxpr | Jaxpr,
    constants: Sequence[TracedValue],
    arguments: Sequence[TracedValue],
    recorder: Recorder,
    scope: str = "",
) -> list[TracedValue]:
    """Evaluate a jaxpr on traced values, record its operations, and return its outputs.

    Args:
        program: the jaxpr, which may contain others.
        constants: values of the arrays that the jaxpr closes over.
        arguments: values of its arguments.
        recorder: the `Recorder` to which values and operations are added.
        scope: name scope in which the jaxpr is called.
    """
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def read(atom: Any) -> TracedValue:
        if isinstance(atom, Literal):
            aval: Any = atom.aval
            return TracedValue(jnp.asarray(atom.val, aval.dtype))
        return values[atom]

    reads = _jax_nn_calls.count_reads(jaxpr)
    groups = _jax_nn_calls.group_nn_calls(jaxpr, scope, recorder.expanded, recorder.boxes)
    for equations, name in groups:
        inner_scope = _join_scopes(scope, str(equations[0].source_info.name_stack))
        if name:
            operands, results = _jax_nn_calls.group_boundary(equations, reads)
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
    if primitive in _jax_nn_calls.CALL_PRIMITIVES | _jax_nn_calls.CUSTOM_RULE_PRIMITIVES:
        return _run_call(equation, operands, recorder, scope)
    if primitive == "cond":
        branches = sub_jaxprs(equation)
        index = int(np.clip(int(operands[0].value), 0, len(branches) - 1))
        return _enter(branches[index], operands[1:], recorder, scope)
    if primitive == "scan" and _jaxpr.scan_parameters(equation).length <= recorder.max_scan:
        return _unroll_scan(equation, operands, recorder, scope)
    # A loop over integers only has no derivative to show.
    outputs: list[Any] = [variable.aval for variable in equation.outvars]
    if primitive == "while" and any(jnp.issubdtype(o.dtype, jnp.inexact) for o in outputs):
        return _unroll_while(equation, operands, recorder, scope)
    if primitive == "name":
        return _tap(equation, operands, recorder, scope)
    if primitive == "convert_element_type":
        operand: Any = equation.invars[0].aval
        if operand.dtype == outputs[0].dtype:  # only the weak type changes
            return operands
    if primitive == "scan":
        label = f"scan, {_jaxpr.scan_parameters(equation).length} steps"
    else:
        constants = {k: value for k, (value, index) in enumerate(operands) if index is None}
        label = operation_label(primitive, equation.params, constants)
    return recorder.run(primitive, as_function([equation]), operands, scope, label)


def _run_call(
    equation: JaxprEqn, operands: list[TracedValue], recorder: Recorder, scope: str
) -> list[TracedValue]:
    """Evaluate an equation that calls a function, record it, and return its outputs.

    A function with a custom derivative or of `jax.nn` is recorded as a single operation, a box,
    unless it is in `recorder.expanded`. Of other functions, the operations in the body are
    recorded.
    """
    primitive = equation.primitive.name
    name, is_nn = _jax_nn_calls.called_function(equation)
    is_nn = is_nn and not _jax_nn_calls.is_derivative(scope)
    has_rule = primitive in _jax_nn_calls.CUSTOM_RULE_PRIMITIVES
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
    num_consts, num_carry, length, reverse, _ = _jaxpr.scan_parameters(equation)
    split = num_consts + num_carry
    constants, carry, xs = operands[:num_consts], operands[num_consts:split], operands[split:]
    (body,), steps = sub_jaxprs(equation), range(length)
    ys: dict[int, list[TracedValue]] = {}
    for step in reversed(steps) if reverse else steps:
        step_scope = _join_scopes(scope, f"step {step}")
        index = functools.partial(_index, step)
        rows = [recorder.run("index", index, [x], step_scope, f"[{step}]")[0] for x in xs]
        outputs = _enter(body, [*constants, *carry, *rows], recorder, step_scope)
        carry, ys[step] = outputs[:num_carry], outputs[num_carry:]
    if not steps:
        avals: list[Any] = [variable.aval for variable in equation.outvars[num_carry:]]
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
    condition, body = _jaxpr.jaxpr_as_fun(params["cond_jaxpr"]), params["body_jaxpr"]
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
    """Record the name that an equation of `tap` gives to its operand, and return the named value.

    An argument, or a value that already has a name, is copied first, so that a node has one name.
    """
    name, index = _jaxpr.tap_name(equation), operands[0].id
    if index not in recorder.computed or index in recorder.taps:
        operands = recorder.run("name", as_function([equation]), operands, scope, "copy")
    if operands[0].id is not None:
        recorder.taps[operands[0].id] = name, recorder.tap_counts[name]
    recorder.tap_counts[name] += 1
    return operands


def _join_scopes(*scopes: str) -> str:
    return "/".join(filter(None, scopes))
