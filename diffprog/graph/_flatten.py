"""A program run on values, flat: every operation that was done, in order, with what it read.

The walk enters what a reader would want to see inside, on the values at hand:

    jit, remat                  inlined
    cond                        the branch that was taken
    scan, fori_loop             unrolled if it is short
    while                       unrolled, as often as its condition holds
    custom derivatives          a box that keeps its rule, unless it is opened
    functions of jax.nn         a box, unless it is opened: a stretch of equations made by one call

What depends on no argument is computed on the way and is no operation.
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
    tap_name,
)
from diffprog.graph._format import operation_label
from diffprog.graph._jax_nn_calls import (
    INLINED,
    RULED,
    called,
    compiled,
    derived,
    ends,
    is_nn,
    pieces,
    readers,
)

_LONGEST_WHILE = 10_000


class Operation(NamedTuple):
    """Something done.

    Attributes:
        op, label, scope, kind: as of the nodes it makes.
        run: from the inputs to the outputs, a differentiable function.
        inputs: values.
        sources: where each input comes from, None for a constant that is no node.
        outputs: places of what it made.
        params: of the primitive; empty for a box.
        known: the primitive or the function of jax.nn that it is; "" for a function of the user's, whatever its name.
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
    known: str


class Wire(NamedTuple):
    """A value, and the place in `Tape.values` that makes it a node."""

    value: Any
    place: int | None = None


class Tape:
    """What was done so far.

    Attributes:
        values: by place.
        taps: for places that a tap has named, the name and how often it had been given before.
        tapped: how often each name was given.
        operations: in order.
        made: the places that they made.
        opened: boxes to open, by name.
        boxes: the names of all that were met, opened or not.
        longest: the longest scan to unroll.
    """

    def __init__(self, opened: frozenset[str], longest: int) -> None:
        self.values: list[Any] = []
        self.taps: dict[int, tuple[str, int]] = {}
        self.tapped = Counter[str]()
        self.operations: list[Operation] = []
        self.made: set[int | None] = set()
        self.boxes: set[str] = set()
        self.opened, self.longest = opened, longest

    def leaf(self, value: Any) -> Wire:
        """A value that comes from outside."""
        self.values.append(value)
        return Wire(value, len(self.values) - 1)

    def do(
        self,
        op: str,
        run: Callable[..., Sequence[Any]],
        wires: Sequence[Wire],
        scope: str,
        label: str = "",
        kind: str = "operation",
        params: dict[str, Any] | None = None,
        known: str | None = None,
    ) -> list[Wire]:
        """Run an operation and note it down."""
        outputs = run(*(wire.value for wire in wires))
        if all(wire.place is None for wire in wires):
            return [Wire(output) for output in outputs]
        made = [self.leaf(output) for output in outputs]
        places = tuple(wire.place for wire in made if wire.place is not None)
        inputs, sources = tuple(wire.value for wire in wires), tuple(wire.place for wire in wires)
        known = op if known is None else known
        self.operations.append(
            Operation(
                op, label or op, scope, kind, run, inputs, sources, places, params or {}, known
            )
        )
        self.made.update(places)
        return made


def unroll(
    program: ClosedJaxpr | Jaxpr,
    constants: Sequence[Wire],
    arguments: Sequence[Wire],
    tape: Tape,
    scope: str = "",
) -> list[Wire]:
    """Run a program, with what it does on the tape; returns its outputs."""
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    wires = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def read(atom: Any) -> Wire:
        return _literal(atom) if isinstance(atom, Literal) else wires[atom]

    read_by = readers(jaxpr)
    for piece in pieces(jaxpr, tape.opened, tape.boxes):
        here = _joined(scope, str(piece.equations[0].source_info.name_stack))
        if piece.name:
            operands, results = ends(piece.equations, read_by)
            run = compiled(piece.equations, operands, results)
            wires.update(
                zip(
                    results,
                    tape.do(piece.name, run, [wires[v] for v in operands], here, kind="box"),
                    strict=True,
                )
            )
        else:
            (equation,) = piece.equations
            wires.update(
                zip(
                    equation.outvars,
                    _do(equation, [read(atom) for atom in equation.invars], tape, here),
                    strict=True,
                )
            )
    return [read(atom) for atom in jaxpr.outvars]


def _do(equation: JaxprEqn, wires: list[Wire], tape: Tape, scope: str) -> list[Wire]:
    primitive = equation.primitive.name
    name, of_nn = called(equation), is_nn(equation)
    if primitive in RULED:
        name = _unless_private(name, scope)
    if primitive in RULED or of_nn:
        tape.boxes.add(name)
    if primitive in INLINED | RULED and (
        name in tape.opened or (primitive in INLINED and not of_nn)
    ):
        return _enter(sub_jaxprs(equation)[0], wires, tape, scope)
    if primitive == "cond":
        branches = sub_jaxprs(equation)
        taken = int(np.clip(int(wires[0].value), 0, len(branches) - 1))
        return _enter(branches[taken], wires[1:], tape, scope)
    if primitive == "scan" and scan_parameters(equation).length <= tape.longest:
        return _scan(equation, wires, tape, scope)
    if primitive == "while" and any(_inexact(variable) for variable in equation.outvars):
        return _while(equation, wires, tape, scope)
    if primitive == "convert_element_type" and _same_dtype(
        equation.invars[0].aval, equation.outvars[0].aval
    ):
        return wires
    if primitive == "name":
        return _tap(equation, wires, tape, scope)
    if primitive in INLINED | RULED:
        op, kind = (
            (name or primitive, "rule") if primitive in RULED else (derived(name, equation), "box")
        )
        return tape.do(
            op, as_function([equation]), wires, scope, kind=kind, known=op if of_nn else ""
        )
    constants = {slot: wire.value for slot, wire in enumerate(wires) if wire.place is None}
    label = (
        f"scan, {scan_parameters(equation).length} steps"
        if primitive == "scan"
        else operation_label(primitive, equation.params, constants)
    )
    return tape.do(
        primitive, as_function([equation]), wires, scope, label, params=dict(equation.params)
    )


def _enter(
    program: ClosedJaxpr | Jaxpr, wires: Sequence[Wire], tape: Tape, scope: str
) -> list[Wire]:
    constants = [
        tape.leaf(value) if np.size(value) > 1 else Wire(value)
        for value in getattr(program, "consts", ())
    ]
    return unroll(program, constants, wires, tape, scope)


def _scan(equation: JaxprEqn, wires: list[Wire], tape: Tape, scope: str) -> list[Wire]:
    constants, carries, length, reverse, _ = scan_parameters(equation)
    (body,) = sub_jaxprs(equation)
    carry, xs = wires[constants : constants + carries], wires[constants + carries :]
    order = reversed(range(length)) if reverse else range(length)
    ys: dict[int, list[Wire]] = {}
    for step in order:
        here = _joined(scope, f"step {step}")
        now = [
            tape.do("index", functools.partial(_index, step), [x], here, f"[{step}]")[0] for x in xs
        ]
        outputs = _enter(body, [*wires[:constants], *carry, *now], tape, here)
        carry, ys[step] = outputs[:carries], outputs[carries:]
    stacked = [
        tape.do("stack", _stack, list(rows), scope)[0]
        for rows in zip(*(ys[step] for step in range(length)), strict=True)
    ]
    if length == 0:
        stacked = [_nothing(variable) for variable in equation.outvars[carries:]]
    return [*carry, *stacked]


def _nothing(variable: Any) -> Wire:
    return Wire(jnp.zeros(variable.aval.shape, variable.aval.dtype))


def _index(step: int, xs: Any) -> list[Any]:
    return [jax.lax.dynamic_index_in_dim(xs, np.int32(step), keepdims=False)]


def _stack(*rows: Any) -> list[Any]:
    return [jnp.stack(rows)]


def _while(equation: JaxprEqn, wires: list[Wire], tape: Tape, scope: str) -> list[Wire]:
    condition, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    first, second = (
        equation.params["cond_nconsts"],
        equation.params["cond_nconsts"] + equation.params["body_nconsts"],
    )
    holds = jaxpr_as_fun(condition)
    carry = wires[second:]
    for step in range(_LONGEST_WHILE + 1):
        if not bool(holds(*(wire.value for wire in (*wires[:first], *carry)))[0]):
            return carry
        carry = _enter(body, [*wires[first:second], *carry], tape, _joined(scope, f"step {step}"))
    raise ValueError(
        f"f must stop: its while loop has taken {_LONGEST_WHILE:,} steps, the most that are unrolled"
    )


def _same_dtype(before: Any, after: Any) -> bool:
    """Whether a conversion does no more than forget that a number was weakly typed."""
    return before.dtype == after.dtype


def _unless_private(name: str, scope: str) -> str:
    """The name of a function, or of the scope it was called in: a layer's, where the function is the one that runs any layer."""
    return scope.rpartition("/")[2] or name if name.startswith("_") else name


def _tap(equation: JaxprEqn, wires: list[Wire], tape: Tape, scope: str) -> list[Wire]:
    """Give a tap's name to what it names; an argument, and what has a name already, is copied for it."""
    name = tap_name(equation)
    free = wires[0].place in tape.made and wires[0].place not in tape.taps
    tapped = wires if free else tape.do("name", as_function([equation]), wires, scope, "copy")
    if tapped[0].place is not None:
        tape.taps[tapped[0].place] = name, tape.tapped[name]
    tape.tapped[name] += 1
    return tapped


def _inexact(variable: Any) -> bool:
    return jnp.issubdtype(variable.aval.dtype, jnp.inexact)


def _literal(atom: Any) -> Wire:
    return Wire(jnp.asarray(atom.val, atom.aval.dtype))


def _joined(*scopes: str) -> str:
    return "/".join(filter(None, scopes))
