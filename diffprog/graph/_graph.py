"""Computation graph as a plain value: nodes, edges, the paths between nodes, and gates.

A node h holds its value and its adjoint dJ/dh, where J is the scalar output. An edge from a to b
holds the local derivative db/da and the flow dJ/db db/da, its contribution to the adjoint of a.
Adjoints and total derivatives are sums over edges and over paths:

    dJ/da = Σ over the edges that leave a of their flows
    db/da = Σ over the paths from a to b of the product of the local derivatives along the path

A gate is a node that is a sum, a maximum or a product. Source: lecture 004, influence diagrams.
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from diffprog.graph._dot import to_dot
from diffprog.graph._types import Array, Edge, Node, Summary

_MAX_PATHS = 10_000


class Path(NamedTuple):
    """Directed path between two nodes of a computation graph, with its derivative.

    Attributes:
        nodes: names of the nodes, both ends included.
        edges: edges between them, one fewer than nodes.
        derivative: product of the local derivatives of the edges; its shape is that of the last
            node followed by that of the first.
    """

    nodes: tuple[str, ...]
    edges: tuple[Edge, ...]
    derivative: Array


class Gate(NamedTuple):
    """Node that is a sum, maximum or product, with the adjoint that it passes to each operand.

    Below, y is the value of the node, a that of an operand, and J the output of the graph.

    Attributes:
        node: name of the node.
        kind: "distributor" (sum: each operand receives the adjoint), "router" (maximum, minimum:
            only the largest or smallest operand does) or "switcher" (product of two: each receives
            the adjoint times the value of the other).
        upstream: adjoint dJ/dy of the node.
        sources: names of its operands that are nodes.
        values: values of these operands.
        locals: local derivatives dy/da with respect to these operands.
        flows: dJ/dy dy/da, what each of these operands receives.
    """

    node: str
    kind: str
    upstream: Array
    sources: tuple[str, ...]
    values: tuple[Array, ...]
    locals: tuple[Array | Summary, ...]
    flows: tuple[Array, ...]


_GATES = {
    **dict.fromkeys(("add", "add_any", "sub"), "distributor"),
    **dict.fromkeys(("max", "min", "reduce_max", "reduce_min"), "router"),
    "mul": "switcher",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Computation graph of a scalar function, made by `trace`.

    Attributes:
        nodes: all nodes in order of computation, arguments first. `graph["x"]` is the node "x".
        edges: all edges, from operand to operation, in the order of their targets.
        output: name of the node that is the output J.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    output: str

    def __getitem__(self, name: str) -> Node:
        """Return the node called `name`."""
        if name not in self._by_name:
            names = list(self._by_name)
            known = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
            raise KeyError(f"no node is called {name!r}; the nodes are {known}")
        return self._by_name[name]

    def __repr__(self) -> str:
        return f"<Graph of {self.output!r}: {len(self.nodes)} nodes, {len(self.edges)} edges>"

    @functools.cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @functools.cached_property
    def _out_and_in(self) -> tuple[dict[str, list[Edge]], dict[str, list[Edge]]]:
        """Edges that leave each node and edges that enter it: two dicts by name of the node."""
        leaving, entering = defaultdict(list), defaultdict(list)
        for edge in self.edges:
            leaving[edge.source].append(edge)
            entering[edge.target].append(edge)
        return dict(leaving), dict(entering)

    def out_edges(self, name: str) -> tuple[Edge, ...]:
        """Return the edges that leave a node, one for each use of its value as an operand."""
        return tuple(self._out_and_in[0].get(self[name].name, ()))

    def in_edges(self, name: str) -> tuple[Edge, ...]:
        """Return the edges that enter a node, one for each of its operands, in order."""
        return tuple(self._out_and_in[1].get(self[name].name, ()))

    def paths(self, a: str, b: str | None = None) -> list[Path]:
        """Return every path from node a to node b with its derivative; the sum of these is db/da.

        Edges without a derivative (of integers and random keys) are not followed. A path through
        `stop_gradient` has derivative zero.

        Args:
            a, b: names of nodes; b defaults to the output.

        Raises:
            KeyError: a or b is not a node.
            ValueError: a or b has no adjoint; there are more than 10,000 paths; or b is not a
                scalar and db/da has more than 2**20 entries.

        Source: lecture 004, the distributed chain rule.

        >>> from diffprog.graph import trace
        >>> square = trace(lambda x: x * x, 3.0)
        >>> [(path.nodes, path.derivative.item()) for path in square.paths("x")]
        [(('x', 'mul'), 3.0), (('x', 'mul'), 3.0)]
        """
        start, end = self[a], self[self.output if b is None else b]
        for node in (start, end):
            if node.adjoint is None:
                raise ValueError(
                    f"a and b must be real or complex, got {node.name!r} of {node.value.dtype}"
                )
        counts = self._count_paths(end.name)
        if counts[start.name] > _MAX_PATHS:
            raise ValueError(
                f"a and b must have at most {_MAX_PATHS:,} paths between them, got "
                f"{counts[start.name]:,} paths from {start.name!r} to {end.name!r}"
            )
        if end.value.size > 1 and end.value.size * start.value.size > 2**20:
            shape = [*end.value.shape, *start.value.shape]
            raise ValueError(
                "b must be a scalar, or db/da have at most 2**20 entries, got shape "
                f"{shape} for d {end.name!r} / d {start.name!r}"
            )
        return [_multiply_edges(edges, start, end) for edges in self._walk(a, end.name, counts)]

    def _differentiable_edges(self, name: str) -> list[Edge]:
        return [edge for edge in self.out_edges(name) if edge.local is not None]

    def gates(self) -> list[Gate]:
        """Return a `Gate` for each sum, maximum, minimum and product of two values in the graph.

        A gate shows how a node passes its adjoint to its operands. A sum is a "distributor": every
        operand receives the adjoint. A maximum is a "router": only the largest operand or entry
        does. A product is a "switcher": each operand receives the adjoint times the other operand.
        The `flows` of a gate are what its operands receive.

        Source: lecture 003, gates.

        >>> from diffprog.graph import trace
        >>> [(gate.kind, gate.flows) for gate in trace(lambda x, y: x * y, 3.0, -4.0).gates()]
        [('switcher', (array(-4., dtype=float32), array(3., dtype=float32)))]
        """
        gates = []
        for node in self.nodes:
            if node.op in _GATES and node.adjoint is not None:
                entering = [
                    (edge.source, self[edge.source].value, edge.local, edge.flow)
                    for edge in self.in_edges(node.name)
                    if edge.local is not None
                ]
                of_operands = zip(*entering, strict=True) if entering else ((), (), (), ())
                gates.append(Gate(node.name, _GATES[node.op], node.adjoint, *of_operands))
        return gates

    def to_dot(self) -> str:
        """Return the graph in the DOT language of Graphviz; equal graphs give equal bytes."""
        return to_dot(self.nodes, self.edges)

    def _count_paths(self, b: str) -> dict[str, int]:
        """Return the number of paths from each node to node b, by name of the node.

        Edges without a derivative (of integers and random keys) do not count.
        """
        counts = dict.fromkeys(self._by_name, 0) | {b: 1}
        for node in reversed(self.nodes):
            if node.name != b:
                edges = self._differentiable_edges(node.name)
                counts[node.name] = sum(counts[edge.target] for edge in edges)
        return counts

    def _walk(self, a: str, b: str, counts: dict[str, int]) -> Iterator[tuple[Edge, ...]]:
        """Yield every path from node a to node b as a tuple of edges, depth first.

        `counts` is the number of paths from each node to b; nodes without one are not visited.
        """
        stack: list[tuple[str, tuple[Edge, ...]]] = [(a, ())]
        while stack:
            name, edges = stack.pop()
            if name == b:
                yield edges
                continue
            onward = [edge for edge in self._differentiable_edges(name) if counts[edge.target]]
            stack += [(edge.target, (*edges, edge)) for edge in reversed(onward)]


def _multiply_edges(edges: tuple[Edge, ...], start: Node, end: Node) -> Path:
    """Return the path from node `start` to node `end` along `edges`, with its derivative.

    The local derivatives are multiplied from the end to the start, as in reverse mode.
    """
    rows = np.eye(end.value.size, dtype=end.value.dtype).reshape(-1, *end.value.shape)
    for edge in reversed(edges):
        if isinstance(edge.local, Summary):
            assert edge.pull is not None
            rows = np.stack([edge.pull(row) for row in rows])
        else:
            assert edge.local is not None
            rows = np.tensordot(rows, edge.local, rows.ndim - 1)
    derivative = np.reshape(rows, end.value.shape + start.value.shape)
    return Path((start.name, *(edge.target for edge in edges)), edges, derivative)
