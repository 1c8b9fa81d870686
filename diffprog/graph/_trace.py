"""From a function and its arguments to its graph."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffprog import _validation
from diffprog.graph._check_overlay import marked
from diffprog.graph._flatten import Operation, Tape, Wire
from diffprog.graph._flatten import unroll as unrolled
from diffprog.graph._graph import Graph
from diffprog.graph._inputs import constant_names, named_leaves, traced
from diffprog.graph._reverse_pass import Derivative, derivatives, differentiable
from diffprog.graph._types import Edge, Node

_NAMES = {"dot_general": "matmul", "conv_general_dilated": "conv", "logistic": "sigmoid"}


def trace(
    f: Callable[..., Any],
    *args: Any,
    expand: str | Iterable[str] = (),
    unroll: int = 32,
    against: Any = None,
) -> Graph:
    """The graph of J = f(*args): every operation with its value, its adjoint dJ/dvalue and the local derivatives of its operands.

    f is run once, operation by operation, on the values given: `jit` and remat are inlined, the branch of a `cond` that is taken is the one
    shown, short scans and all `while` loops are unrolled (so a `while` has a derivative here). A function with a derivative rule of its own
    is one node whose derivative is that rule; so is a function of `jax.nn`. `stop_gradient` is a cut: a local derivative of zero. What does
    not lead to the output is left out, but for the arguments.

    Side effects are refused where two runs of f's Python code show them: a list that grows, a global that is counted up, a traced value
    that is kept, another result the second time. `print` and what is written to files cannot be seen.

    Args:
        f: a JAX function without side effects that returns one float scalar.
        args: pytrees of arrays and numbers; functions among their leaves, as modules have them, are held.
        expand: names of boxes to open, "softmax". An opened custom derivative shows the derivatives of its body in place of the rule.
        unroll: the longest scan to unroll; a longer one is one node.
        against: a report of `diffprog.checks`. Where it finds a hand-written derivative wrong, the edge is marked: it leaves the argument
            that the finding names, by its path or, where f calls it otherwise, the only one of its structure; or it enters the scope that
            is called as the finding's layer.

    Raises:
        TypeError: f is not callable, not written in JAX, has side effects or no derivative; arguments that f does not take, or that are not
            arrays.
        ValueError: an output that is not one float scalar; arguments that are not finite; no box to open of that name; a finding that is of
            no argument or layer, or of several.

    Source: lecture 003, computation graphs; lecture 004, influence diagrams.

    >>> graph = trace(lambda x, y, z: (x + y) * z, -2.0, 5.0, -4.0)
    >>> [(node.name, node.value.item(), node.adjoint.item()) for node in graph.nodes]
    [('x', -2.0, -4.0), ('y', 5.0, -4.0), ('z', -4.0, 3.0), ('add', 3.0, -4.0), ('mul', -12.0, 1.0)]
    """
    _validation.function("f", f)
    _validation.integer("unroll", unroll, low=0)
    opened = _opened(expand)
    named = named_leaves(f, args)
    program = traced(f, args)
    tape = Tape(opened, unroll)
    constants = [tape.leaf(value) for value in program.consts]
    arguments = [tape.leaf(jnp.asarray(leaf)) for leaf in named.values()]
    (output,) = unrolled(program, constants, arguments, tape)
    _require_met(opened, tape.boxes)
    last = tape.leaf(output.value).place if output.place is None else output.place
    names = {**_places(arguments, named), **_places(constants, constant_names(f, program.consts))}
    graph = _graph(tape, len(constants), names, last)
    return graph if against is None else marked(graph, against)


def _opened(expand: Any) -> frozenset[str]:
    names = (
        [expand]
        if isinstance(expand, str)
        else list(expand)
        if isinstance(expand, Iterable)
        else [expand]
    )
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"expand must be the name of a box or several names, got {expand!r}")
    return frozenset(names)


def _require_met(opened: frozenset[str], boxes: set[str]) -> None:
    for name in sorted(opened - boxes):
        raise ValueError(
            f"expand must name boxes of f, got {name!r}; there are {', '.join(map(repr, sorted(boxes))) or 'none'}"
        )


def _places(wires: list[Wire], names: Iterable[str]) -> dict[Any, str]:
    return {wire.place: name for wire, name in zip(wires, names, strict=True)}


def _graph(tape: Tape, constants: int, names: dict[int, str], output: Any) -> Graph:
    """Nodes and edges of what leads to the output, and of all arguments. The first places are the constants."""
    operations, live = _leading_to(output, tape.operations)
    adjoints, found = derivatives(operations, tape.values, output)
    made = {
        place: operation for operation in operations for place in operation.outputs if place in live
    }
    leaves = [place for place in names if place >= constants or place in live]
    # A number that depends on no argument, and arrays inside the programs that f calls.
    leaves += sorted(live - made.keys() - set(leaves))
    called = _called(leaves, made, tape, constants, names)
    nodes = [
        _leaf(
            called[place],
            place in names and place >= constants,
            tape.values[place],
            adjoints.get(place),
        )
        for place in leaves
    ]
    nodes += [
        _made(
            called[place],
            operation,
            tape.values[place],
            adjoints.get(place),
            tape.taps.get(place, ("",))[0],
        )
        for place, operation in made.items()
    ]
    edges = [
        edge
        for operation, of_it in zip(operations, found, strict=True)
        for edge in _edges(operation, of_it, called)
    ]
    return Graph(tuple(nodes), tuple(edges), called[output])


def _leading_to(output: int, operations: list[Operation]) -> tuple[list[Operation], set[int]]:
    """The operations that the output depends on, and the places they read and make."""
    live, kept = {output}, []
    for operation in reversed(operations):
        if not live.isdisjoint(operation.outputs):
            live.update(source for source in operation.sources if source is not None)
            kept.append(operation)
    return kept[::-1], live


def _called(
    leaves: list[int], made: dict[int, Operation], tape: Tape, constants: int, names: dict[int, str]
) -> dict[int, str]:
    """The name of each node. An argument keeps its path, a tap its name or, used several times, "h#0" as `diffprog.nodes` has it; what
    else would share a name gets a number, "mul:0"."""
    fixed = {place: names[place] for place in leaves if place in names and place >= constants}
    taken = set(fixed.values())
    for place in made.keys() & tape.taps.keys():
        name, count = tape.taps[place]
        fixed[place] = name if tape.tapped[name] == 1 and name not in taken else f"{name}#{count}"
    others = {place: names.get(place, "constant") for place in leaves if place not in fixed}
    others |= {
        place: _NAMES.get(operation.op, operation.op)
        for place, operation in made.items()
        if place not in fixed
    }
    return fixed | _numbered(others, set(fixed.values()))


def _numbered(names: dict[int, str], taken: set[str]) -> dict[int, str]:
    """Names, with a number where several are alike or one is taken."""
    count, seen = Counter(names.values()) + Counter(taken), Counter[str]()
    numbered = {}
    for place, name in names.items():
        numbered[place] = name if count[name] == 1 else f"{name}:{seen[name]}"
        seen[name] += 1
    return numbered


def _leaf(name: str, argument: bool, value: Any, adjoint: Any) -> Node:
    kind = "argument" if argument else "constant"
    return Node(name, kind, _array(value), _adjoint(value, adjoint), name, kind=kind)


def _made(name: str, operation: Operation, value: Any, adjoint: Any, tap: str) -> Node:
    return Node(
        name,
        operation.op,
        _array(value),
        _adjoint(value, adjoint),
        operation.label,
        operation.scope,
        tap,
        operation.kind,
    )


def _adjoint(value: Any, adjoint: Any) -> Any:
    if not differentiable(value):
        return None
    return np.zeros(np.shape(value), value.dtype) if adjoint is None else _array(adjoint)


def _edges(operation: Operation, found: list[Derivative], called: dict[int, str]) -> Iterator[Edge]:
    """An edge for each operand that is a node, into each output that is one."""
    known = {(derivative.slot, derivative.output): derivative for derivative in found}
    for k, place in enumerate(operation.outputs):
        for slot, source in enumerate(operation.sources):
            if source is not None and place in called:
                yield _edge(called[source], called[place], slot, operation, known.get((slot, k)))


def _edge(
    source: str, target: str, slot: int, operation: Operation, found: Derivative | None
) -> Edge:
    if found is None:
        return Edge(source, target, slot, None)
    value = operation.inputs[slot]
    flow = np.zeros(value.shape, value.dtype) if found.flow is None else _array(found.flow)
    return Edge(
        source, target, slot, found.local, flow, found.pull, operation.op == "stop_gradient"
    )


def _array(value: Any) -> Any:
    return value if jnp.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value)
