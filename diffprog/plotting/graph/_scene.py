"""A drawing of a graph as boxes, curves and lines of text, in points from the upper left corner: what a figure and a page both show.

The value of a node stands on one side of the wire that leaves it and the adjoint on the other, as in lecture 003, and each branch of the
wire carries the local derivative of the operation it enters, as in lecture 004's influence diagrams. Long graphs run down, others right.
"""

import itertools
from collections import defaultdict

import numpy as np

from diffprog.graph._graph import Graph
from diffprog.plotting.graph._boxes import Link, Plan, Shown, links_of, planned
from diffprog.plotting.graph._collapse import blocks
from diffprog.plotting.graph._layered_layout import Point
from diffprog.plotting.graph._primitives import (
    ADJOINT,
    MARGIN,
    SIZE,
    SMALL,
    VALUE,
    Box,
    Curve,
    Picture,
    Taken,
    Text,
    legend,
)

_WIDEST = 740.0


def picture(graph: Graph, most: int, *, widest: float = _WIDEST) -> Picture:
    """Draw a graph, in blocks if it has more than `most` nodes; to the right if that takes no more than the given width, else down."""
    found = blocks(graph, most)
    links = links_of(graph, found)
    plan = planned(graph, found, links, widest)
    marks = _Marks(plan)
    for key, block in plan.shown.items():
        marks.block(block, plan.layout.places[key])
    marks.edges(links)
    return marks.finished()


class _Marks:
    """Marks as they are made; positions come as (along, across) and are turned here."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.down = plan, plan.down
        self.taken = Taken()
        self.curves: list[Curve] = []
        self.boxes: list[Box] = []
        self.texts: list[Text] = []

    def _point(self, along: float, across: float) -> Point:
        return (MARGIN + across, MARGIN + along) if self.down else (MARGIN + along, MARGIN + across)

    def block(self, block: Shown, place: Point) -> None:
        """A box, the wire that leaves it, the value and the adjoint on its two sides."""
        along, across = place
        width, height = block.box
        depth = height if self.down else width
        x, y = self._point(along, across)
        left, upper = (x - width / 2, y) if self.down else (x, y - height / 2)
        self.boxes.append(
            Box(block.name, left, upper, width, height, block.label, block.size, block.kind)
        )
        start, end = (
            self._point(along + depth, across),
            self._point(along + depth + block.wire, across),
        )
        self.curves.append(
            Curve(
                (start, start, end, end), "wire" if block.kind != "integer" else "none", block.name
            )
        )
        middle = self._point(along + depth + block.wire / 2, across)
        if self.down:
            self.texts.append(Text(middle[0] - 4, middle[1], block.value, VALUE, SIZE, 1.0, 0.5))
            self.texts.append(
                Text(middle[0] + 4, middle[1], block.adjoint, ADJOINT, SIZE, 0.0, 0.5)
            )
        else:
            self.texts.append(Text(middle[0], middle[1] - 2, block.value, VALUE, SIZE, 0.5, 1.0))
            self.texts.append(
                Text(middle[0], middle[1] + 2, block.adjoint, ADJOINT, SIZE, 0.5, 0.0)
            )

    def edges(self, links: list[Link]) -> None:
        """Curves from the wire of a source to the box of a target, and the derivative on each."""
        shown, labels, layout, down = self.plan
        entries = _entries(self.plan, links)
        for corners in [text.corners for text in self.texts] + [box.corners for box in self.boxes]:
            self.taken.add(corners)
        # How much of a source's trunk is drawn already, by kind: edges that go the same way are one curve until they part.
        drawn: dict[tuple[str, str], int] = defaultdict(int)
        for k, ((a, b, _), (text, color, kind)) in enumerate(zip(links, labels, strict=True)):
            along, across = layout.places[a]
            leave, passed = along + shown[a].box[1 if down else 0] + shown[a].wire, layout.passed[k]
            done = min(drawn[a, kind], passed)
            drawn[a, kind] = max(drawn[a, kind], passed)
            way = layout.trunks[a][max(done - 1, 0) : passed]
            stops = [*([] if done else [(leave, across)]), *way, (layout.places[b][0], entries[k])]
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
        candidates = [
            Text(*_on(piece, t), text, color, SMALL, backed=True)
            for t in (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)
        ]
        chosen = min(candidates, key=lambda candidate: self.taken.overlap(candidate.corners))
        self.texts.append(chosen)
        self.taken.add(chosen.corners)

    def finished(self) -> Picture:
        """The picture with its legend, below."""
        width, height = self._point(*self.plan.layout.extent)
        explained = legend(self.curves, self.boxes, self.texts, height + 16)
        right = max([width, *(text.corners[2] for text in self.texts + explained)]) + MARGIN
        return Picture(self.curves, self.boxes, self.texts + explained, right, height + 30 + MARGIN)


def _entries(plan: Plan, links: list[Link]) -> list[float]:
    """Where edges enter their targets: side by side, in the order of where they come from."""
    into = defaultdict(list)
    for k, (a, b, _) in enumerate(links):
        passed = plan.layout.passed[k]
        into[b].append(
            (plan.layout.trunks[a][passed - 1][1] if passed else plan.layout.places[a][1], k)
        )
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
