"""What a drawing is made of, in points from the upper left corner: boxes, curves and lines of text, and the colors they have."""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from diffprog.plotting.graph._layered_layout import Point

INK, FAINT, FRAME, PAPER = "#22262b", "#5d6670", "#aab2ba", "#ffffff"
VALUE, ADJOINT, LOCAL, WRONG = "#2b7d4f", "#b8580c", "#1f6fb2", "#d4142a"
MARGIN = 10.0

SYMBOLS = frozenset("+−×÷")

SIZE, LABEL, SMALL = 8.0, 9.0, 7.0  # of values, operations and local derivatives
_CHARACTER, _LINE = 0.6, 1.22  # width of a character and height of a line, in sizes
_CELL = 100.0

Corners: TypeAlias = tuple[float, float, float, float]
"""Left, upper, right and lower."""


class Text(NamedTuple):
    """Lines of text; `right` and `down` say which part of it stands at (x, y): 0 the left or upper end, 1 the other."""

    x: float
    y: float
    text: str
    color: str
    size: float
    right: float = 0.5
    down: float = 0.5
    backed: bool = False

    @property
    def corners(self) -> Corners:
        """What it covers."""
        width, height = extent(self.text, self.size)
        left, upper = self.x - self.right * width, self.y - self.down * height
        return left, upper, left + width, upper + height


class Box(NamedTuple):
    """A node's operation. `kind` is the node's, "group" for several nodes, and "integer" for what has no adjoint."""

    name: str
    x: float
    y: float
    width: float
    height: float
    text: str
    size: float
    kind: str

    @property
    def corners(self) -> Corners:
        """What it covers."""
        return self.x, self.y, self.x + self.width, self.y + self.height


class Curve(NamedTuple):
    """A line through cubic Bézier pieces: the start, then two control points and an end for each. `kind`: wire, edge, none, cut, wrong."""

    points: tuple[Point, ...]
    kind: str
    name: str = ""


class Taken:
    """Where on the sheet there is something, by cells of it, so that a text is compared with what is near."""

    def __init__(self) -> None:
        self.cells: dict[tuple[int, int], set[Corners]] = defaultdict(set)

    def add(self, corners: Corners) -> None:
        """Note that something is there."""
        for cell in _cells(corners):
            self.cells[cell].add(corners)

    def overlap(self, corners: Corners) -> float:
        """The area shared with what is there."""
        near = set().union(*(self.cells[cell] for cell in _cells(corners)))
        return sum(_shared(corners, other) for other in near)


def _cells(corners: Corners) -> Iterator[tuple[int, int]]:
    left, upper, right, lower = (int(corner // _CELL) for corner in corners)
    return itertools.product(range(left, right + 1), range(upper, lower + 1))


def _shared(a: Corners, b: Corners) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)


class Picture(NamedTuple):
    """What to draw, in this order, on a sheet of this width and height."""

    curves: list[Curve]
    boxes: list[Box]
    texts: list[Text]
    width: float
    height: float


def extent(text: str, size: float) -> Point:
    """Width and height of a text, estimated."""
    lines = text.split("\n")
    return (max(map(len, lines)) * _CHARACTER * size if text else 0.0), (
        len(lines) * _LINE * size if text else 0.0
    )


def legend(curves: list[Curve], boxes: list[Box], labels: list[Text], y: float) -> list[Text]:
    """What the colors and signs mean, in a row; only what there is."""
    words = [("value", VALUE), ("adjoint dJ/d·", ADJOINT), ("local derivative", LOCAL)]
    words += (
        [("I identity", LOCAL)]
        if any(label.text.endswith("I") and label.color == LOCAL for label in labels)
        else []
    )
    words += (
        [("╌ without derivative", FAINT)] if any(curve.kind == "none" for curve in curves) else []
    )
    words += [("▣ own derivative rule", INK)] if any(box.kind == "rule" for box in boxes) else []
    words += (
        [("✗ hand-written derivative differs", WRONG)]
        if any(curve.kind == "wrong" for curve in curves)
        else []
    )
    texts, x = [], MARGIN
    for word, color in words:
        texts.append(Text(x, y + 6, word, color, SIZE, 0.0, 0.5))
        x += extent(word, SIZE)[0] + 14
    return texts
