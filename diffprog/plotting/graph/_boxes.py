"""Label the boxes and edges of a drawing and arrange them with the layered layout."""

import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeAlias

from diffprog.graph import Edge, Graph
from diffprog.graph._format import (
    FAINT,
    LOCAL,
    WRONG,
    format_array,
    format_local,
    node_title,
    symbol,
)
from diffprog.plotting.graph._collapse import NodeGroup
from diffprog.plotting.graph._layered_layout import Coordinates, Layout, layered_layout, length
from diffprog.plotting.graph._primitives import (
    EDGE_SIZE,
    LABEL_SIZE,
    MARGIN,
    SYMBOLS,
    VALUE_SIZE,
    text_extent,
)

_MAX_LABEL = 24  # characters of the list of operations in a group

Link: TypeAlias = tuple[str, str, Edge | None]
"""Keys of two groups and the edge between them; None if it stands for several edges."""


class LabeledBox(NamedTuple):
    """Texts and sizes of a box in the drawing of a graph.

    Attributes:
        name: of the node, of its last one for a group.
        kind: as of `Box`.
        label: the operation.
        label_size: its font size.
        value, adjoint: the texts beside the wire.
        size: (width, height) of the box.
        wire: length of the wire that leaves it.
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
    """Boxes and edge labels of a drawing, with their layout.

    Attributes:
        boxes: by the key of their group.
        labels: text, color and spline kind of each link.
        layout: positions of boxes and links.
        downward: True if edges run down, False if they run to the right.
    """

    boxes: dict[str, LabeledBox]
    labels: list[tuple[str, str, str]]
    layout: Layout
    downward: bool


def link_groups(graph: Graph, groups: Sequence[NodeGroup]) -> list[Link]:
    """Return the links between groups.

    Two single nodes have a link for each edge between them. Other pairs have one link in all, which
    carries an edge only if that edge is marked wrong.
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
    """Lay out the groups from left to right if that fits into `max_width`, else downward."""
    labels = [_edge_label(graph, edge) for _, _, edge in links]
    ends = [(a, b) for a, b, _ in links]
    for downward in (False, True):
        boxes = {str(key): _labeled_box(graph, group, downward) for key, group in enumerate(groups)}
        sizes: dict[Hashable, Coordinates] = {
            key: _footprint(box, downward) for key, box in boxes.items()
        }
        axis = 1 if downward else 0
        gaps = [26.0 + text_extent(text, EDGE_SIZE)[axis] for text, _, _ in labels]
        if length(sizes, ends, gaps) + 2 * MARGIN <= max_width:
            break
    layout = layered_layout(sizes, ends, gaps, between=16.0 if downward else 12.0)
    return Arrangement(boxes, labels, layout, downward)


def _labeled_box(graph: Graph, group: NodeGroup, downward: bool) -> LabeledBox:
    first, single = group.nodes[0], len(group.nodes) == 1
    inside = {node.name for node in group.nodes}
    results = [
        node
        for node in group.nodes
        if node.name == graph.output
        or any(edge.target not in inside for edge in graph.out_edges(node.name))
    ]
    if single:
        results = [first]
    if len(results) == 1:
        value = format_array(results[0].value)
        adjoint = "" if results[0].adjoint is None else format_array(results[0].adjoint)
    else:
        value, adjoint = f"{len(results)} values", ""
    label = node_title(first) if single else _group_label(group)
    label_size = 12.0 if label in SYMBOLS else 10.0 if len(label) <= 2 else LABEL_SIZE
    width, height = text_extent(label, label_size)
    texts = [text_extent(text, VALUE_SIZE) for text in (value, adjoint)]
    wire = max(h for _, h in texts) + 6 if downward else max(w for w, _ in texts) + 10
    kind = "group" if not single else "integer" if first.adjoint is None else first.kind
    size = (max(width + 12, 20.0), max(height + 8, 20.0))
    return LabeledBox(group.nodes[-1].name, kind, label, label_size, value, adjoint, size, wire)


def _group_label(group: NodeGroup) -> str:
    """Return the scope of a group or else its operations, and the number of its nodes."""
    computed = [node for node in group.nodes if node.kind not in ("argument", "constant")]
    counts = {"operation": len(computed), "argument": len(group.nodes) - len(computed)}
    numbers = [f"{n} {word}{'s' * (n > 1)}" for word, n in counts.items() if n]
    # A scope of transformations only, such as "vmap(jvp())", says nothing.
    title = group.name if re.sub(r"\w+\(|[)/]", "", group.name) else ""
    if not title and computed:
        symbols = [symbol(node.op) for node in computed]
        title = ", ".join(dict.fromkeys(symbols))
        if len(title) > _MAX_LABEL:
            title = f"{symbols[0]} … {symbols[-1]}"
    return "\n".join(filter(None, (title, ", ".join(numbers))))


def _footprint(box: LabeledBox, downward: bool) -> Coordinates:
    """Return the room for a box, its wire and the texts beside it, as (along, across)."""
    width, height = box.size
    texts = [text_extent(text, VALUE_SIZE) for text in (box.value, box.adjoint)]
    if downward:
        return height + box.wire, max(width, 2 * max(w for w, _ in texts) + 10)
    return width + box.wire, max(height, 2 * max(h for _, h in texts) + 6)


def _edge_label(graph: Graph, edge: Edge | None) -> tuple[str, str, str]:
    """Return the text, its color and the spline kind of a link."""
    if edge is None:
        return "", FAINT, "edge"
    local = format_local(edge.local, graph[edge.target].value.shape)
    if edge.wrong:
        return f"✗ {local}", WRONG, "wrong"
    if edge.cut:
        return "// cut", FAINT, "cut"
    if edge.local is None:
        return "", FAINT, "none"
    return local, LOCAL, "edge"
