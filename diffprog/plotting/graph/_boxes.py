"""The plan of a drawing: what each block of a graph says, what connects them, and where they go."""

import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeAlias

from diffprog.graph._format import said, said_local, symbol
from diffprog.graph._graph import Graph
from diffprog.graph._types import Edge, Node
from diffprog.plotting.graph._collapse import Block
from diffprog.plotting.graph._layered_layout import Layout, Point, layered, length
from diffprog.plotting.graph._primitives import (
    FAINT,
    LABEL,
    LOCAL,
    MARGIN,
    SIZE,
    SMALL,
    SYMBOLS,
    WRONG,
    extent,
)

_WORDS = 24  # characters that say what is done in a block

Link: TypeAlias = tuple[str, str, Edge | None]
"""Keys of two blocks, and the edge between them if both are single nodes."""


class Shown(NamedTuple):
    """A block's texts and measures."""

    name: str
    kind: str
    label: str
    size: float
    value: str
    adjoint: str
    box: Point
    wire: float


class Plan(NamedTuple):
    """Blocks by key, the text, color and kind of each link, where they go, and whether edges run down."""

    shown: dict[str, Shown]
    labels: list[tuple[str, str, str]]
    layout: Layout
    down: bool


def links_of(graph: Graph, found: Sequence[Block]) -> list[Link]:
    """What connects blocks: the edges where both are single nodes; between others one link, marked wrong if an edge of it is."""
    home = {node.name: block for block in found for node in block.nodes}
    key = {block.nodes[-1].name: str(index) for index, block in enumerate(found)}
    links: dict[tuple[str, str, int], Edge | None] = {}
    for edge in graph.edges:
        a, b = home[edge.source], home[edge.target]
        if a is b:
            continue
        single = len(a.nodes) == len(b.nodes) == 1
        place = (key[a.nodes[-1].name], key[b.nodes[-1].name], edge.slot if single else -1)
        if single or edge.wrong or place not in links:
            links[place] = edge if single or edge.wrong else None
    return [(a, b, edge) for (a, b, _), edge in links.items()]


def planned(graph: Graph, found: list[Block], links: list[Link], widest: float) -> Plan:
    """The blocks laid out: to the right if that takes no more than the given width, else down."""
    labels = [_said(graph, edge) for _, _, edge in links]
    ends = [(a, b) for a, b, _ in links]
    for down in (False, True):
        shown = {str(index): _shown(graph, block, down) for index, block in enumerate(found)}
        sizes: dict[Hashable, Point] = {
            key: _footprint(block, down) for key, block in shown.items()
        }
        gaps = [26.0 + extent(text, SMALL)[1 if down else 0] for text, _, _ in labels]
        if length(sizes, ends, gaps) + 2 * MARGIN <= widest:
            break
    return Plan(shown, labels, layered(sizes, ends, gaps, between=16.0 if down else 12.0), down)


def _shown(graph: Graph, block: Block, down: bool) -> Shown:
    inside = {node.name for node in block.nodes}
    read = [
        n
        for n in block.nodes
        if n.name == graph.output
        or any(edge.target not in inside for edge in graph.out_edges(n.name))
    ]
    single = len(block.nodes) == 1
    # A block of several nodes shows the one value that leaves it, if it is one.
    way_out = block.nodes[0] if single else read[0] if len(read) == 1 else None
    label = _label(block.nodes[0]) if single else _group_label(block)
    size = 12.0 if label in SYMBOLS else 10.0 if len(label) <= 2 else LABEL
    value = f"{len(read)} values" if way_out is None else said(way_out.value)
    adjoint = "" if way_out is None or way_out.adjoint is None else said(way_out.adjoint)
    width, height = extent(label, size)
    box = (max(width + 12, 20.0), max(height + 8, 20.0))
    texts = [extent(text, SIZE) for text in (value, adjoint)]
    wire = max(height for _, height in texts) + 6 if down else max(width for width, _ in texts) + 10
    kind = (
        "group"
        if not single
        else "integer"
        if block.nodes[0].adjoint is None
        else block.nodes[0].kind
    )
    return Shown(block.nodes[-1].name, kind, label, size, value, adjoint, box, wire)


def _label(node: Node) -> str:
    if node.kind in ("argument", "constant"):
        return node.name
    return f"{node.tap} = {node.label}" if node.tap else node.label


def _group_label(block: Block) -> str:
    """The name of a block or, where it has none, what is done in it; and how much that is."""
    made = [node for node in block.nodes if node.kind not in ("argument", "constant")]
    counts = [_counted("operation", len(made)), _counted("argument", len(block.nodes) - len(made))]
    return "\n".join(
        filter(
            None,
            (
                _scope(block.name) or _short([symbol(node.op) for node in made]),
                ", ".join(filter(None, counts)),
            ),
        )
    )


def _scope(name: str) -> str:
    """A scope, if it says more than transformations do: "vmap(jvp())" names nothing."""
    return name if re.sub(r"\w+\(|[)/]", "", name) else ""


def _counted(word: str, count: int) -> str:
    return f"{count} {word}{'s' * (count > 1)}" if count else ""


def _short(symbols: list[str]) -> str:
    if not symbols:
        return ""
    kinds = ", ".join(dict.fromkeys(symbols))
    return kinds if len(kinds) <= _WORDS else f"{symbols[0]} … {symbols[-1]}"


def _footprint(block: Shown, down: bool) -> Point:
    (_, above), (_, below) = (value, adjoint) = (
        extent(block.value, SIZE),
        extent(block.adjoint, SIZE),
    )
    width, height = block.box
    if down:
        return height + block.wire, max(width, 2 * max(value[0], adjoint[0]) + 10)
    return width + block.wire, max(height, 2 * max(above, below) + 6)


def _said(graph: Graph, edge: Edge | None) -> tuple[str, str, str]:
    """Text, its color and the kind of curve of an edge."""
    if edge is None:
        return "", FAINT, "edge"
    if edge.wrong:
        return f"✗ {said_local(edge.local, graph[edge.target].value.shape)}", WRONG, "wrong"
    if edge.cut:
        return "// cut", FAINT, "cut"
    if edge.local is None:
        return "", FAINT, "none"
    return said_local(edge.local, graph[edge.target].value.shape), LOCAL, "edge"
