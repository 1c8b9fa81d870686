"""Boxes and links in the drawing of a graph: their labels, sizes and layout in layers.

A link is a line between two boxes; it stands for one edge of the graph or for several.
"""

import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeAlias

from diffprog.graph import Edge, Graph, _format
from diffprog.plotting.graph import _primitives
from diffprog.plotting.graph._collapse import NodeGroup
from diffprog.plotting.graph._layered_layout import Coordinates, Layout, layered_layout, length
from diffprog.plotting.graph._primitives import VALUE_SIZE, text_extent

_MAX_LABEL = 24  # characters of the list of operations in a group

Link: TypeAlias = tuple[str, str, Edge | None]
"""Keys of two groups and the edge between them; None if it stands for several edges."""


class LabeledBox(NamedTuple):
    """Box in the drawing of a graph, for a node or a group of nodes, without its position.

    Attributes:
        name: name of the node; of the last node in a group.
        kind: kind of the box, as in `Box`.
        label: text in the box, the operation.
        label_size: font size of the label.
        value, adjoint: the node's value and adjoint as text, written beside the wire.
        size: (width, height) of the box.
        wire: length of the wire, the line from the box to where its edges begin.
    """

    name: str
    kind: str
    label: str
    label_size: float
    value: str
    adjoint: str
    size: Coordinates
    wire: float


class Arrangement(NamedTuple):
    """Drawing of a graph before it is rendered: boxes, labels of the links, and their layout.

    Attributes:
        boxes: boxes by key, the index of their group as a string.
        labels: (text, color, `kind` of the `Spline`) of each link.
        layout: positions of the boxes and links.
        downward: True if edges run down, False if they run to the right.
    """

    boxes: dict[str, LabeledBox]
    labels: list[tuple[str, str, str]]
    layout: Layout
    downward: bool


def link_groups(graph: Graph, groups: Sequence[NodeGroup]) -> list[Link]:
    """Return the links, lines between boxes, that stand for the edges between groups of nodes.

    A link is (key of the source group, key of the target group, edge), where a key is the index of
    a group as a string. Two groups of a single node each have one link for every edge between
    them. Other pairs of groups have one link for all their edges; its edge is None or, if one is
    marked as wrong, that edge.
    """
    home = {node.name: key for key, group in enumerate(groups) for node in group.nodes}
    links: dict[tuple[int, int, int], Edge | None] = {}
    for edge in graph.edges:
        a, b = home[edge.source], home[edge.target]
        if a == b:
            continue
        single = len(groups[a].nodes) == len(groups[b].nodes) == 1
        link = (a, b, edge.slot if single else -1)
        if single or edge.wrong or link not in links:
            links[link] = edge if single or edge.wrong else None
    return [(str(a), str(b), edge) for (a, b, _), edge in links.items()]


def arrange(
    graph: Graph, groups: Sequence[NodeGroup], links: Sequence[Link], max_width: float
) -> Arrangement:
    """Lay out groups and links from left to right, or downward if that is wider than `max_width`.

    Returns the boxes, the labels of the links, and their positions. Lengths are in points (1/72
    inch).
    """
    labels = [_edge_label(graph, edge) for _, _, edge in links]
    ends = [(a, b) for a, b, _ in links]
    for downward in (False, True):
        boxes = {str(key): _labeled_box(graph, group, downward) for key, group in enumerate(groups)}
        sizes: dict[Hashable, Coordinates] = {k: _footprint(boxes[k], downward) for k in boxes}
        axis = 1 if downward else 0
        gaps = [26.0 + text_extent(text, _primitives.EDGE_SIZE)[axis] for text, _, _ in labels]
        if length(sizes, ends, gaps) + 2 * _primitives.MARGIN <= max_width:
            break
    layout = layered_layout(sizes, ends, gaps, between=16.0 if downward else 12.0)
    return Arrangement(boxes, labels, layout, downward)


def _labeled_box(graph: Graph, group: NodeGroup, downward: bool) -> LabeledBox:
    first, single = group.nodes[0], len(group.nodes) == 1
    inside = {node.name for node in group.nodes}
    results = [
        node
        for node in group.nodes
        if single
        or node.name == graph.output
        or any(edge.target not in inside for edge in graph.out_edges(node.name))
    ]
    value, adjoint = f"{len(results)} values", ""
    if len(results) == 1:
        value, gradient = _format.format_array(results[0].value), results[0].adjoint
        adjoint = "" if gradient is None else _format.format_array(gradient)
    label = _format.node_title(first) if single else _group_label(group)
    label_size = 10.0 if len(label) <= 2 else _primitives.LABEL_SIZE
    label_size = 12.0 if label in _primitives.SYMBOLS else label_size
    width, height = text_extent(label, label_size)
    texts = [text_extent(text, VALUE_SIZE) for text in (value, adjoint)]
    wire = max(h for _, h in texts) + 6 if downward else max(w for w, _ in texts) + 10
    kind = "group" if not single else "integer" if first.adjoint is None else first.kind
    size = (max(width + 12, 20.0), max(height + 8, 20.0))
    return LabeledBox(group.nodes[-1].name, kind, label, label_size, value, adjoint, size, wire)


def _group_label(group: NodeGroup) -> str:
    """Return the text in the box of a group: its scope or operations, and its number of nodes."""
    computed = [node for node in group.nodes if node.kind not in ("argument", "constant")]
    counts = {"operation": len(computed), "argument": len(group.nodes) - len(computed)}
    numbers = [f"{n} {word}{'s' * (n > 1)}" for word, n in counts.items() if n]
    # A scope of transformations only, such as "vmap(jvp())", says nothing.
    title = group.name if re.sub(r"\w+\(|[)/]", "", group.name) else ""
    if not title and computed:
        symbols = [_format.symbol(node.op) for node in computed]
        title = ", ".join(dict.fromkeys(symbols))
        if len(title) > _MAX_LABEL:
            title = f"{symbols[0]} … {symbols[-1]}"
    return "\n".join(filter(None, (title, ", ".join(numbers))))


def _footprint(box: LabeledBox, downward: bool) -> Coordinates:
    """Return the space for a box with wire and texts: (size along the edges, size across them).

    `downward` is True if the edges run down, False if they run to the right.
    """
    width, height = box.size
    texts = [text_extent(text, VALUE_SIZE) for text in (box.value, box.adjoint)]
    if downward:
        return height + box.wire, max(width, 2 * max(w for w, _ in texts) + 10)
    return width + box.wire, max(height, 2 * max(h for _, h in texts) + 6)


def _edge_label(graph: Graph, edge: Edge | None) -> tuple[str, str, str]:
    """Return (text, color, `kind` of the `Spline`) of a link, given the edge that it stands for.

    The edge is None if the link stands for several.
    """
    if edge is None:
        return "", _format.FAINT, "edge"
    local = _format.format_local(edge.local, graph[edge.target].value.shape)
    if edge.wrong:
        return f"✗ {local}", _format.WRONG, "wrong"
    if edge.cut:
        return "// cut", _format.FAINT, "cut"
    if edge.local is None:
        return "", _format.FAINT, "none"
    return local, _format.LOCAL, "edge"
