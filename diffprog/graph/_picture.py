"""A drawing of a graph as boxes, curves and lines of text, in points from the upper left corner: what a figure and a page both show.

The value of a node stands on one side of the wire that leaves it and the adjoint on the other, as in lecture 003, and each branch of the
wire carries the local derivative of the operation it enters, as in lecture 004's influence diagrams. Long graphs run down, others right.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from diffprog.graph._graph import Graph
from diffprog.graph._groups import Block, blocks
from diffprog.graph._labels import said, said_local
from diffprog.graph._layout import Layout, Point, layered
from diffprog.graph._marks import (
    ADJOINT,
    FAINT,
    LABEL,
    LOCAL,
    MARGIN,
    SIZE,
    SMALL,
    SYMBOLS,
    VALUE,
    WRONG,
    Box,
    Curve,
    Picture,
    Text,
    extent,
    legend,
)
from diffprog.graph._parts import Edge, Node

_WIDEST = 740.0

Link: TypeAlias = tuple[str, str, Edge | None]
"""Keys of two blocks, and the edge between them if both are single nodes."""


class _Shown(NamedTuple):
    """A block's texts and measures."""

    name: str
    kind: str
    label: str
    size: float
    value: str
    adjoint: str
    box: Point
    wire: float


class _Plan(NamedTuple):
    """Blocks by key, the text, color and kind of each link, where they go, and whether edges run down."""

    shown: dict[str, _Shown]
    labels: list[tuple[str, str, str]]
    layout: Layout
    down: bool


def picture(graph: Graph, most: int, *, widest: float = _WIDEST) -> Picture:
    """Draw a graph, in blocks if it has more than `most` nodes; to the right if that takes no more than the given width, else down."""
    found = blocks(graph, most)
    links = _links(graph, found)
    plan = _planned(graph, found, links, down=False)
    if plan.layout.extent[0] + 2 * MARGIN > widest:
        plan = _planned(graph, found, links, down=True)
    marks = _Marks(plan)
    for key, block in plan.shown.items():
        marks.block(block, plan.layout.places[key])
    marks.edges(links)
    return marks.finished()


def _links(graph: Graph, found: Sequence[Block]) -> list[Link]:
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


def _planned(graph: Graph, found: list[Block], links: list[Link], *, down: bool) -> _Plan:
    shown = {str(index): _shown(graph, block, down) for index, block in enumerate(found)}
    sizes: dict[Hashable, Point] = {key: _footprint(block, down) for key, block in shown.items()}
    labels = [_said(graph, edge) for _, _, edge in links]
    gaps = [26.0 + extent(text, SMALL)[1 if down else 0] for text, _, _ in labels]
    return _Plan(shown, labels, layered(sizes, [(a, b) for a, b, _ in links], gaps, between=16.0 if down else 12.0), down)


def _shown(graph: Graph, block: Block, down: bool) -> _Shown:
    inside = {node.name for node in block.nodes}
    read = [n for n in block.nodes if n.name == graph.output or any(edge.target not in inside for edge in graph.out_edges(n.name))]
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
    kind = "group" if not single else "integer" if block.nodes[0].adjoint is None else block.nodes[0].kind
    return _Shown(block.nodes[-1].name, kind, label, size, value, adjoint, box, wire)


def _label(node: Node) -> str:
    if node.kind in ("argument", "constant"):
        return node.name
    return f"{node.tap} = {node.label}" if node.tap else node.label


def _group_label(block: Block) -> str:
    count = Counter(node.kind in ("argument", "constant") for node in block.nodes)
    said = [f"{count[False]} operation{'s' * (count[False] > 1)}"] + (
        [f"{count[True]} argument{'s' * (count[True] > 1)}"] if count[True] else []
    )
    return "\n".join(filter(None, (block.name, ", ".join(said))))


def _footprint(block: _Shown, down: bool) -> Point:
    (_, above), (_, below) = (value, adjoint) = extent(block.value, SIZE), extent(block.adjoint, SIZE)
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


class _Marks:
    """Marks as they are made; positions come as (along, across) and are turned here."""

    def __init__(self, plan: _Plan) -> None:
        self.plan, self.down = plan, plan.down
        # Corners of what is there already.
        self.taken = np.empty((0, 4))
        self.curves: list[Curve] = []
        self.boxes: list[Box] = []
        self.texts: list[Text] = []

    def _point(self, along: float, across: float) -> Point:
        return (MARGIN + across, MARGIN + along) if self.down else (MARGIN + along, MARGIN + across)

    def block(self, block: _Shown, place: Point) -> None:
        """A box, the wire that leaves it, the value and the adjoint on its two sides."""
        along, across = place
        width, height = block.box
        depth = height if self.down else width
        x, y = self._point(along, across)
        left, upper = (x - width / 2, y) if self.down else (x, y - height / 2)
        self.boxes.append(Box(block.name, left, upper, width, height, block.label, block.size, block.kind))
        start, end = self._point(along + depth, across), self._point(along + depth + block.wire, across)
        self.curves.append(Curve((start, start, end, end), "wire" if block.kind != "integer" else "none", block.name))
        middle = self._point(along + depth + block.wire / 2, across)
        if self.down:
            self.texts.append(Text(middle[0] - 4, middle[1], block.value, VALUE, SIZE, 1.0, 0.5))
            self.texts.append(Text(middle[0] + 4, middle[1], block.adjoint, ADJOINT, SIZE, 0.0, 0.5))
        else:
            self.texts.append(Text(middle[0], middle[1] - 2, block.value, VALUE, SIZE, 0.5, 1.0))
            self.texts.append(Text(middle[0], middle[1] + 2, block.adjoint, ADJOINT, SIZE, 0.5, 0.0))

    def edges(self, links: list[Link]) -> None:
        """Curves from the wire of a source to the box of a target, and the derivative on each."""
        shown, labels, layout, down = self.plan
        entries = _entries(self.plan, links)
        self.taken = np.array(
            [text.corners for text in self.texts] + [(box.x, box.y, box.x + box.width, box.y + box.height) for box in self.boxes]
        )
        for k, ((a, b, _), (text, color, kind)) in enumerate(zip(links, labels, strict=True)):
            along, across = layout.places[a]
            leave = along + shown[a].box[1 if down else 0] + shown[a].wire
            stops = [(leave, across), *layout.bends[k], (layout.places[b][0], entries[k])]
            pieces = [self._bezier(start, end) for start, end in itertools.pairwise(stops)]
            points = [pieces[0][0], *(point for piece in pieces for point in piece[1:])]
            self.curves.append(Curve(tuple(points), kind, shown[a].name))
            if text:
                self._label(pieces[-1], text, color)

    def _bezier(self, start: Point, end: Point) -> list[Point]:
        middle = (start[0] + end[0]) / 2
        return [self._point(*point) for point in (start, (middle, start[1]), (middle, end[1]), end)]

    def _label(self, piece: list[Point], text: str, color: str) -> None:
        """A text on a curve where it hides least of what is there already."""
        candidates = [Text(*_on(piece, t), text, color, SMALL, backed=True) for t in (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)]
        chosen = min(candidates, key=lambda candidate: _overlap(candidate.corners, self.taken))
        self.texts.append(chosen)
        self.taken = np.vstack([self.taken, chosen.corners])

    def finished(self) -> Picture:
        """The picture with its legend, below."""
        width, height = self._point(*self.plan.layout.extent)
        explained = legend(self.curves, self.boxes, self.texts, height + 16)
        right = max([width, *(text.corners[2] for text in self.texts + explained)]) + MARGIN
        return Picture(self.curves, self.boxes, self.texts + explained, right, height + 30 + MARGIN)


def _entries(plan: _Plan, links: list[Link]) -> list[float]:
    """Where edges enter their targets: side by side, in the order of where they come from."""
    into = defaultdict(list)
    for k, (a, b, _) in enumerate(links):
        bends = plan.layout.bends[k]
        into[b].append((bends[-1][1] if bends else plan.layout.places[a][1], k))
    entries = [0.0] * len(links)
    for b, ends in into.items():
        room = plan.shown[b].box[0 if plan.down else 1] * 0.6
        step = min(room / max(len(ends) - 1, 1), 12.0)
        for rank, (_, k) in enumerate(sorted(ends)):
            entries[k] = plan.layout.places[b][1] + (rank - (len(ends) - 1) / 2) * step
    return entries


def _on(piece: list[Point], t: float) -> Point:
    weights = np.array([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    x, y = weights @ np.array(piece)
    return float(x), float(y)


def _overlap(corners: tuple[float, float, float, float], taken: np.ndarray) -> float:
    """The area that a text shares with what is there."""
    width = np.minimum(corners[2], taken[:, 2]) - np.maximum(corners[0], taken[:, 0])
    height = np.minimum(corners[3], taken[:, 3]) - np.maximum(corners[1], taken[:, 1])
    return float((np.maximum(width, 0) * np.maximum(height, 0)).sum())
