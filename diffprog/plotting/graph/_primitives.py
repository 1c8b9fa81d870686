"""Primitives of a graph drawing: boxes, splines, texts, and a grid to avoid overlap.

All lengths are in points (1/72 inch), measured from the upper left corner.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

from diffprog.graph import Graph
from diffprog.graph._format import ADJOINT, FAINT, INK, LOCAL, VALUE, WRONG
from diffprog.plotting.graph._layered_layout import Coordinates

MARGIN = 10.0
SYMBOLS = frozenset("+−×÷")  # drawn in a circle
VALUE_SIZE, LABEL_SIZE, EDGE_SIZE = 8.0, 9.0, 7.0  # font sizes of values, operations, derivatives
_CHARACTER_WIDTH, _LINE_HEIGHT = 0.6, 1.22  # in font sizes
_CELL = 100.0

BoundingBox: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom."""


class Text(NamedTuple):
    """Text in the drawing of a graph, of one or more lines.

    Attributes:
        x, y: position of the anchor, a point of the text.
        text: lines separated by newlines.
        color: color of the font.
        size: size of the font.
        right: where in the text the anchor is, from 0 (left end) to 1 (right end).
        down: where in the text the anchor is, from 0 (upper end) to 1 (lower end).
        background: whether it is drawn on a white rectangle.
    """

    x: float
    y: float
    text: str
    color: str
    size: float
    right: float = 0.5
    down: float = 0.5
    background: bool = False

    @property
    def bounding_box(self) -> BoundingBox:
        """Rectangle covered by the text: left, top, right, bottom."""
        width, height = text_extent(self.text, self.size)
        left, top = self.x - self.right * width, self.y - self.down * height
        return left, top, left + width, top + height


class Box(NamedTuple):
    """Box in the drawing of a graph, for a node or a group of nodes, with its position.

    Attributes:
        name: name of the node, of the last node in a group.
        x, y: upper left corner.
        width, height: size of the box.
        text: text in the box, the operation.
        size: size of the font.
        kind: kind of the node, "group" for several nodes, "integer" for a node without adjoint.
    """

    name: str
    x: float
    y: float
    width: float
    height: float
    text: str
    size: float
    kind: str

    @property
    def bounding_box(self) -> BoundingBox:
        """Rectangle covered by the box: left, top, right, bottom."""
        return self.x, self.y, self.x + self.width, self.y + self.height

    @property
    def corner_radius(self) -> float:
        """Radius of the rounded corners of the box."""
        if self.text in SYMBOLS:
            return self.height / 2
        return {"box": 2.0, "rule": 2.0, "group": 5.0}.get(self.kind, self.height / 2.2)


class Spline(NamedTuple):
    """Line in the drawing of a graph: a cubic Bézier spline.

    Attributes:
        points: the start, then two control points and an end for each segment.
        kind: "wire" (the start that all edges of a box share), "edge", "none" (an edge without
            derivative), "cut" (of `stop_gradient`) or "wrong" (marked by a gradient check).
        name: name of the node that it leaves.
    """

    points: tuple[Coordinates, ...]
    kind: str
    name: str = ""


class Scene(NamedTuple):
    """Drawing of a graph: its splines, boxes and texts, in drawing order, and its size."""

    splines: list[Spline]
    boxes: list[Box]
    texts: list[Text]
    width: float
    height: float


class OccupancyGrid:
    """Occupied rectangles of a drawing, to place labels where they overlap least with others.

    The rectangles are indexed by grid cell, which makes overlap queries fast.
    """

    def __init__(self) -> None:
        self.cells: dict[tuple[int, int], set[BoundingBox]] = defaultdict(set)

    def add(self, rectangle: BoundingBox) -> None:
        """Add a rectangle (left, top, right, bottom) to the occupied ones."""
        for cell in _cells(rectangle):
            self.cells[cell].add(rectangle)

    def overlap(self, rectangle: BoundingBox) -> float:
        """Return the total area that a rectangle shares with the occupied ones.

        The rectangle is (left, top, right, bottom).
        """
        neighbours = set().union(*(self.cells[cell] for cell in _cells(rectangle)))
        return sum(_intersection_area(rectangle, other) for other in neighbours)


def _cells(rectangle: BoundingBox) -> Iterator[tuple[int, int]]:
    left, top, right, bottom = (int(side // _CELL) for side in rectangle)
    return itertools.product(range(left, right + 1), range(top, bottom + 1))


def _intersection_area(a: BoundingBox, b: BoundingBox) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)


def text_extent(text: str, size: float) -> Coordinates:
    """Estimate (width, height) of a text from its number of characters and lines.

    `size` is the font size.
    """
    if not text:
        return 0.0, 0.0
    lines = text.split("\n")
    return max(map(len, lines)) * _CHARACTER_WIDTH * size, len(lines) * _LINE_HEIGHT * size


def legend(splines: list[Spline], boxes: list[Box], labels: list[Text], y: float) -> list[Text]:
    """Return the legend of a drawing: texts in a row at height `y` that explain colors and signs.

    Signs that do not occur in the drawing are left out.
    """
    entries = [
        ("value", VALUE, True),
        ("adjoint dJ/d·", ADJOINT, True),
        ("local derivative", LOCAL, True),
        ("I identity", LOCAL, any(t.text.endswith("I") and t.color == LOCAL for t in labels)),
        ("╌ without derivative", FAINT, any(spline.kind == "none" for spline in splines)),
        ("▣ own derivative rule", INK, any(box.kind == "rule" for box in boxes)),
        ("✗ hand-written derivative differs", WRONG, any(s.kind == "wrong" for s in splines)),
    ]
    texts, x = [], MARGIN
    for words, color, in_use in entries:
        if in_use:
            texts.append(Text(x, y + 6, words, color, VALUE_SIZE, 0.0, 0.5))
            x += text_extent(words, VALUE_SIZE)[0] + 14
    return texts


def require_graph(graph: Any) -> None:
    """Raise a `TypeError` if `graph` is not a `Graph`."""
    if not isinstance(graph, Graph):
        got = type(graph).__name__
        raise TypeError(f"graph must be a Graph, made by diffprog.graph.trace, got {got}")
