"""Fewer things to draw: the nodes of a large graph in blocks.

A block is a stretch of nodes that were computed one after another, so that blocks depend on each other without a circle. Stretches are
found by scope, the full one and then ever shorter ones; where there are no scopes, by tap: a block ends where a value has been named;
where there are no taps either, they are of equal length. Arguments that one block alone reads belong to it.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from diffprog.graph._graph import Graph
from diffprog.graph._types import Node


class Block(NamedTuple):
    """Nodes drawn as one.

    Attributes:
        name: its scope or tap; of a single node its name.
        nodes: at least one, in order.
    """

    name: str
    nodes: tuple[Node, ...]


def blocks(graph: Graph, most: int) -> list[Block]:
    """The nodes of a graph in at most `most` blocks. Arguments that several blocks read are alone or, if they are many, blocks too."""
    if len(graph.nodes) <= most:
        return _each(graph.nodes)
    for grouped in _groupings(graph, most):
        alone, made = _with_leaves(graph, list(grouped))
        for leaves in (_each(alone), _stretches(alone, _root), [Block("", tuple(alone))]):
            if len(leaves) + len(made) <= most:
                return [_named(block) for block in (*leaves, *made) if block.nodes]
    raise AssertionError("the coarsest grouping is a block or two")


def _each(nodes: Iterable[Node]) -> list[Block]:
    return [Block(node.name, (node,)) for node in nodes]


def _root(node: Node) -> str:
    """The argument that a node is a leaf of: params of "params['weight']"."""
    return re.split(r"[\[.]", node.name)[0] if node.kind == "argument" else ""


def _groupings(graph: Graph, most: int) -> Iterator[list[Block]]:
    """Ever coarser ones."""
    made = [node for node in graph.nodes if node.kind not in ("argument", "constant")]
    if not made:
        yield []
        return
    depth = max(node.scope.count("/") + 1 for node in made)
    if any(node.scope for node in made):
        for level in range(depth, 0, -1):
            yield _stretches(made, functools.partial(_outer_scope, level))
    taps = list(_to_taps(made))
    if len(taps) > 1:
        yield taps
    for count in (most, most // 2, most // 4, most // 8, 1):
        size = math.ceil(len(made) / max(count, 1))
        parts = [tuple(made[k : k + size]) for k in range(0, len(made), size)]
        yield [Block(_shared_scope(nodes), nodes) for nodes in parts]


def _shared_scope(nodes: Sequence[Node]) -> str:
    parts = zip(*(node.scope.split("/") for node in nodes), strict=False)
    return "/".join(
        several[0] for several in itertools.takewhile(lambda several: len(set(several)) == 1, parts)
    )


def _stretches(nodes: Sequence[Node], key: Callable[[Node], str]) -> list[Block]:
    return [Block(name, tuple(several)) for name, several in itertools.groupby(nodes, key)]


def _outer_scope(level: int, node: Node) -> str:
    return "/".join(node.scope.split("/")[:level])


def _to_taps(nodes: Iterable[Node]) -> Iterator[Block]:
    """Blocks that end at a named value, and have its name."""
    block: list[Node] = []
    for node in nodes:
        block.append(node)
        if node.tap:
            yield Block(node.name, tuple(block))
            block = []
    if block:
        yield Block("", tuple(block))


def _with_leaves(graph: Graph, made: list[Block]) -> tuple[list[Node], list[Block]]:
    """The arguments that none or several blocks read, and the blocks, with the arguments that each alone reads."""
    home = {node.name: index for index, block in enumerate(made) for node in block.nodes}
    alone: list[Node] = []
    inside: dict[int, list[Node]] = {}
    for node in graph.nodes:
        if node.kind in ("argument", "constant"):
            readers = {home[edge.target] for edge in graph.out_edges(node.name)}
            if len(readers) == 1 and len(made[min(readers)].nodes) > 1:
                inside.setdefault(min(readers), []).append(node)
            else:
                alone.append(node)
    return alone, [
        Block(block.name, (*inside.get(index, ()), *block.nodes))
        for index, block in enumerate(made)
    ]


def _named(block: Block) -> Block:
    return Block(block.nodes[0].name, block.nodes) if len(block.nodes) == 1 else block
