"""The graph of a computation, as a plain value: what was computed, what its derivatives are, and what follows from both.

A node h holds its value and its adjoint dJ/dh, J being the scalar output. An edge from a to b carries the local derivative db/da, which
sends the adjoint back as a flow, dJ/db db/da. Two sums make all of backpropagation (lecture 004's influence diagram):

    dJ/da = sum over the edges a -> b of their flows           node and edge multiply, edges add
    db/da = sum over the paths from a to b of the product      paths add
            of their edges
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from diffprog.graph._dot import to_dot
from diffprog.graph._types import Array, Edge, Node, Summary

_MOST_PATHS = 10_000


class Path(NamedTuple):
    """A way from one node to another.

    Attributes:
        nodes: names, both ends included.
        edges: one fewer.
        derivative: the product of the edges' local derivatives, of the last node's shape followed by the first one's.
    """

    nodes: tuple[str, ...]
    edges: tuple[Edge, ...]
    derivative: Array


class Gate(NamedTuple):
    """What an operation does to the adjoint that passes it (lecture 003), with the numbers that show it.

    Attributes:
        node: its name.
        kind: "distributor" (sum), "router" (maximum, minimum) or "switcher" (product).
        upstream: the adjoint of the node.
        sources: names of its operands that are nodes.
        values: their values.
        locals: the local derivatives.
        flows: what each gets of `upstream`.
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
    """Nodes in the order they were computed, arguments first, and edges in the order of their targets. Made by `trace`.

    Attributes:
        nodes: with the names as keys too: `graph["x"]`.
        edges: from operand to operation.
        output: the name of the node J.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    output: str

    def __getitem__(self, name: str) -> Node:
        """The node called `name`."""
        if name not in self._by_name:
            raise KeyError(f"no node is called {name!r}; there are {_listed(self._by_name)}")
        return self._by_name[name]

    def __repr__(self) -> str:
        return f"<Graph of {self.output!r}: {len(self.nodes)} nodes, {len(self.edges)} edges>"

    @functools.cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @functools.cached_property
    def _out(self) -> dict[str, list[Edge]]:
        return _gathered(self.edges, "source")

    @functools.cached_property
    def _in(self) -> dict[str, list[Edge]]:
        return _gathered(self.edges, "target")

    def out_edges(self, name: str) -> tuple[Edge, ...]:
        """The edges that leave a node: where its value is read."""
        return tuple(self._out.get(self[name].name, ()))

    def in_edges(self, name: str) -> tuple[Edge, ...]:
        """The edges that enter a node: its operands, by slot."""
        return tuple(self._in.get(self[name].name, ()))

    def paths(self, a: str, b: str | None = None) -> list[Path]:
        """Every path from a to b with the product of its edges; the sum of the products is the total derivative db/da.

        Paths through integers and keys carry no derivative and are left out; what `stop_gradient` cuts carries zeros.

        Args:
            a, b: names of nodes; b is the output if it is left out.

        Raises:
            KeyError: no such node.
            ValueError: a or b without derivatives; more than ten thousand paths; a derivative that is large, where b is not a scalar.

        Source: lecture 004, the distributed chain rule.

        >>> from diffprog.graph import trace
        >>> [(path.nodes, path.derivative.item()) for path in trace(lambda x: x * x, 3.0).paths("x")]
        [(('x', 'mul'), 3.0), (('x', 'mul'), 3.0)]
        """
        start, end = self[a], self[self.output if b is None else b]
        for node in (start, end):
            if node.adjoint is None:
                raise ValueError(
                    f"a and b must be nodes with derivatives, got {node.name!r} of {node.value.dtype}"
                )
        count = self._count_paths(start.name, end.name)
        if count[start.name] > _MOST_PATHS:
            raise ValueError(
                f"there are {count[start.name]:,} paths from {start.name!r} to {end.name!r}, {_MOST_PATHS:,} are the most listed"
            )
        if end.value.size > 1 and end.value.size * start.value.size > 2**20:
            shape = [*end.value.shape, *start.value.shape]
            raise ValueError(
                f"b must be a scalar, or the derivative small: d {end.name!r} / d {start.name!r} has the shape {shape}"
            )
        one = np.eye(end.value.size, dtype=end.value.dtype).reshape(end.value.shape * 2)
        return [
            _multiplied(edges, one, start, end)
            for edges in self._walks(start.name, end.name, count)
        ]

    def gates(self) -> list[Gate]:
        """The operations that lecture 003 calls gates: sums distribute the adjoint, maxima route it, products switch it.

        >>> from diffprog.graph import trace
        >>> [(gate.kind, gate.flows) for gate in trace(lambda x, y: x * y, 3.0, -4.0).gates()]
        [('switcher', (array(-4., dtype=float32), array(3., dtype=float32)))]
        """
        gates = [
            (node, self.in_edges(node.name))
            for node in self.nodes
            if node.op in _GATES and node.adjoint is not None
        ]
        return [
            self._gate(node, [edge for edge in edges if edge.local is not None])
            for node, edges in gates
        ]

    def to_dot(self) -> str:
        """Return the graph in the DOT language of Graphviz; equal graphs give equal bytes."""
        return to_dot(self.nodes, self.edges)

    def _gate(self, node: Node, edges: list[Edge]) -> Gate:
        sources = tuple(edge.source for edge in edges)
        values = tuple(self[source].value for source in sources)
        return Gate(
            node.name,
            _GATES[node.op],
            node.adjoint,
            sources,
            values,
            tuple(edge.local for edge in edges),
            tuple(edge.flow for edge in edges),
        )

    def _count_paths(self, a: str, b: str) -> dict[str, int]:
        """The number of paths to b from every node. Nodes are in order, so each is counted after all that it reaches."""
        count = dict.fromkeys(self._by_name, 0) | {b: 1}
        for node in reversed(self.nodes):
            if node.name != b:
                count[node.name] = sum(
                    count[edge.target]
                    for edge in self._out.get(node.name, ())
                    if edge.local is not None
                )
        return count

    def _walks(self, a: str, b: str, count: dict[str, int]) -> Iterator[tuple[Edge, ...]]:
        ways: list[tuple[str, tuple[Edge, ...]]] = [(a, ())]
        while ways:
            name, edges = ways.pop()
            if name == b:
                yield edges
                continue
            onward = [
                edge
                for edge in self._out.get(name, ())
                if edge.local is not None and count[edge.target]
            ]
            ways += [(edge.target, (*edges, edge)) for edge in reversed(onward)]


def _gathered(edges: Iterable[Edge], end: str) -> dict[str, list[Edge]]:
    gathered = defaultdict(list)
    for edge in edges:
        gathered[getattr(edge, end)].append(edge)
    return dict(gathered)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")


def _multiplied(edges: tuple[Edge, ...], one: Array, start: Node, end: Node) -> Path:
    """The product of the edges, from the path's end, so that rows of the end's size are all there is to carry."""
    rows = one.reshape(-1, *end.value.shape)
    for edge in reversed(edges):
        rows = _pulled(edge, rows)
    derivative = np.reshape(rows, end.value.shape + start.value.shape)
    return Path((start.name, *(edge.target for edge in edges)), edges, derivative)


def _pulled(edge: Edge, rows: Array) -> Array:
    if isinstance(edge.local, Summary):
        assert edge.pull is not None
        return np.stack([edge.pull(row) for row in rows])
    assert edge.local is not None
    return np.tensordot(rows, edge.local, rows.ndim - 1)
