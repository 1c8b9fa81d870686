"""Trace a function on given arguments to its computation graph."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffprog import _validation, nodes
from diffprog.graph._check_overlay import mark_wrong_edges
from diffprog.graph._flatten import RecordedOperation, Recorder, flatten_program
from diffprog.graph._graph import Graph
from diffprog.graph._inputs import constant_names, named_leaves
from diffprog.graph._purity import trace_pure
from diffprog.graph._reverse_pass import LocalDerivative, is_differentiable, reverse_pass
from diffprog.graph._types import Edge, Node

_SHORT_NAMES = {"dot_general": "matmul", "conv_general_dilated": "conv", "logistic": "sigmoid"}


def trace(
    f: Callable[..., Any],
    *args: Any,
    expand: str | Iterable[str] = (),
    unroll: int = 32,
    against: Any = None,
) -> Graph:
    """Return the computation graph of J = f(*args): values h, adjoints dJ/dh, local derivatives.

    f is run once on the given values, operation by operation. `jit` and remat are inlined, `cond`
    shows the branch taken, short scans and all `while` loops are unrolled (so a `while` has a
    derivative here). A function with a custom derivative is one node whose derivative is its
    rule; a function of `jax.nn` is one node too. `stop_gradient` has local derivative zero.
    Operations that do not lead to the output are left out; arguments never are.

    f must be pure. It is traced twice, and refused if a debug print or callback, a traced value
    that it stores, or a different jaxpr in the second trace shows that it is not.

    Args:
        f: a pure JAX function that returns one float scalar.
        args: pytrees of arrays and numbers. Functions among their leaves, such as the activation
            of a module, are kept as they are.
        expand: names of functions, such as "softmax", whose operations are shown instead of one
            node. A function with a custom derivative then has the derivative of its body instead of
            its rule.
        unroll: length of the longest scan to unroll, default 32; a longer one is one node.
        against: a report of `diffprog.checks`. Edges whose hand-written derivative the check found
            wrong are marked in `Edge.wrong`. The arguments in the report are identified with those
            of f by path or, if f calls them otherwise, by structure; layers by their name scope.

    Raises:
        TypeError: f is not callable, not written in JAX, not pure or not differentiable; or it
            does not take these arguments, or they are not arrays.
        ValueError: f does not return one float scalar; an argument is not finite; `expand` names a
            function that f does not call; or an error in the report matches no argument or layer of
            f, or several.

    Source: lecture 003, computation graphs; lecture 004, influence diagrams.

    >>> graph = trace(lambda x, y, z: (x + y) * z, -2.0, 5.0, -4.0)
    >>> [(node.name, node.value.item(), node.adjoint.item()) for node in graph.nodes[2:]]
    [('z', -4.0, 3.0), ('add', 3.0, -4.0), ('mul', -12.0, 1.0)]
    """
    _validation.function("f", f)
    _validation.integer("unroll", unroll, low=0)
    expanded = frozenset(nodes.as_name_tuple(expand, "expand"))
    leaves = named_leaves(f, args)
    program = trace_pure(f, args)
    recorder = Recorder(expanded, unroll)
    constants = [recorder.add_value(value) for value in program.consts]
    arguments = [recorder.add_value(jnp.asarray(leaf)) for leaf in leaves.values()]
    (output,) = flatten_program(program, constants, arguments, recorder)
    for name in sorted(expanded - recorder.boxes):
        boxes = ", ".join(map(repr, sorted(recorder.boxes))) or "none"
        raise ValueError(f"expand must name boxes of f, got {name!r}; the boxes are {boxes}")
    index = recorder.add_value(output.value).id if output.id is None else output.id
    # Constants have the first indices, arguments the next.
    constant_of = dict(enumerate(constant_names(f, program.consts)))
    argument_of = dict(enumerate(leaves, start=len(constants)))
    graph = _build_graph(recorder, constant_of, argument_of, index)
    return graph if against is None else mark_wrong_edges(graph, against)


def _build_graph(
    recorder: Recorder, constants: dict[int, str], arguments: dict[int, str], output: Any
) -> Graph:
    """Build the graph of the arguments of f and the recorded values that its output J depends on.

    Args:
        recorder: values and operations recorded while f was evaluated.
        constants, arguments: names of constants and arguments by index in `recorder.values`.
        output: index of J in `recorder.values`.
    """
    operations, live = _live_operations(output, recorder.operations)
    adjoints, derivatives = reverse_pass(operations, recorder.values, output)
    producers = {index: op for op in operations for index in op.outputs if index in live}
    leaves = [index for index in (*constants, *arguments) if index in arguments or index in live]
    # Values that depend on no argument, and array constants of inner programs.
    leaves += sorted(live - producers.keys() - set(leaves))
    names = _node_names(recorder, constants, arguments, leaves, producers)
    graph_nodes = []
    for index in (*leaves, *producers):
        value = recorder.values[index]
        adjoint = _dense(adjoints.get(index), value) if is_differentiable(value) else None
        if index in producers:
            tap = recorder.taps.get(index, ("",))[0]
            op, label, scope, kind = producers[index][:4]
        else:
            kind = op = "argument" if index in arguments else "constant"
            label, scope, tap = names[index], "", ""
        graph_nodes.append(
            Node(names[index], op, _to_numpy(value), adjoint, label, scope, tap, kind)
        )
    edges = [
        edge
        for operation, of_operation in zip(operations, derivatives, strict=True)
        for edge in _edges(operation, of_operation, names)
    ]
    return Graph(tuple(graph_nodes), tuple(edges), names[output])


def _live_operations(
    output: int, operations: list[RecordedOperation]
) -> tuple[list[RecordedOperation], set[int]]:
    """Return the operations that a value depends on, and the indices of the values that they read.

    `output` is the index of the value. The operations are a list in order of evaluation, the
    indices a set that includes `output`.
    """
    live, used = {output}, []
    for operation in reversed(operations):
        if not live.isdisjoint(operation.outputs):
            live.update(source for source in operation.sources if source is not None)
            used.append(operation)
    return used[::-1], live


def _node_names(
    recorder: Recorder,
    constants: dict[int, str],
    arguments: dict[int, str],
    leaves: list[int],
    producers: dict[int, RecordedOperation],
) -> dict[int, str]:
    """Return a unique name for each node, by index of its value.

    An argument keeps its path. A value named with `tap` keeps that name or, if it is used several
    times or is the name of an argument, gets a number, "h#0". Other nodes have the name of their
    operation, with a number if it is not unique, "mul:0". `leaves` are the indices of arguments
    and constants, `producers` the operations that compute the other values.
    """
    fixed = dict(arguments)
    reserved = set(arguments.values())
    for index in producers.keys() & recorder.taps.keys():
        name, count = recorder.taps[index]
        unique = recorder.tap_counts[name] == 1 and name not in reserved
        fixed[index] = name if unique else f"{name}#{count}"
    others = {index: constants.get(index, "constant") for index in leaves if index not in fixed}
    for index, operation in producers.items():
        if index not in fixed:
            others[index] = _SHORT_NAMES.get(operation.op, operation.op)
    totals = Counter(others.values()) + Counter(set(fixed.values()))
    counts = Counter[str]()
    for index, name in others.items():
        fixed[index] = name if totals[name] == 1 else f"{name}:{counts[name]}"
        counts[name] += 1
    return fixed


def _edges(
    operation: RecordedOperation, derivatives: list[LocalDerivative], names: dict[int, str]
) -> Iterator[Edge]:
    """Yield the edges from the operands of an operation to its outputs.

    `names` are the names of the nodes by index; values without a name have no edges.
    """
    by_ends = {(derivative.slot, derivative.output): derivative for derivative in derivatives}
    for k, index in enumerate(operation.outputs):
        for slot, source in enumerate(operation.sources):
            if source is None or index not in names:
                continue
            ends = names[source], names[index], slot
            derivative = by_ends.get((slot, k))
            if derivative is None:
                yield Edge(*ends, None)
            else:
                flow = _dense(derivative.flow, operation.inputs[slot])
                cut = operation.op == "stop_gradient"
                yield Edge(*ends, derivative.local, flow, derivative.pull, cut)


def _dense(adjoint: Any, value: Any) -> Any:
    """Return an adjoint as a NumPy array; None, a symbolic zero, gives zeros like `value`."""
    return np.zeros(np.shape(value), value.dtype) if adjoint is None else _to_numpy(adjoint)


def _to_numpy(value: Any) -> Any:
    is_key = jnp.issubdtype(value.dtype, jax.dtypes.extended)
    return value if is_key else np.asarray(value)
