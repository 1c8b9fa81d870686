"""What a drawing is made of, in points from the upper left corner: boxes, curves and lines of text, and the colors they have."""

from typing import NamedTuple

from diffprog.graph._layout import Point

INK, FAINT, FRAME, PAPER = "#22262b", "#5d6670", "#aab2ba", "#ffffff"
VALUE, ADJOINT, LOCAL, WRONG = "#2b7d4f", "#b8580c", "#1f6fb2", "#d4142a"
MARGIN = 10.0

SYMBOLS = frozenset("+−×÷")

SIZE, LABEL, SMALL = 8.0, 9.0, 7.0  # of values, operations and local derivatives
_CHARACTER, _LINE = 0.6, 1.22  # width of a character and height of a line, in sizes


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
    def corners(self) -> tuple[float, float, float, float]:
        """Left, upper, right and lower."""
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


class Curve(NamedTuple):
    """A line through cubic Bézier pieces: the start, then two control points and an end for each. `kind`: wire, edge, none, cut, wrong."""

    points: tuple[Point, ...]
    kind: str
    name: str = ""


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
    return (max(map(len, lines)) * _CHARACTER * size if text else 0.0), (len(lines) * _LINE * size if text else 0.0)


def legend(curves: list[Curve], boxes: list[Box], labels: list[Text], y: float) -> list[Text]:
    """What the colors and signs mean, in a row; only what there is."""
    words = [("value", VALUE), ("adjoint dJ/d·", ADJOINT), ("local derivative", LOCAL)]
    words += [("I identity", LOCAL)] if any(label.text.endswith("I") and label.color == LOCAL for label in labels) else []
    words += [("╌ without derivative", FAINT)] if any(curve.kind == "none" for curve in curves) else []
    words += [("▣ own derivative rule", INK)] if any(box.kind == "rule" for box in boxes) else []
    words += [("✗ hand-written derivative differs", WRONG)] if any(curve.kind == "wrong" for curve in curves) else []
    texts, x = [], MARGIN
    for word, color in words:
        texts.append(Text(x, y + 6, word, color, SIZE, 0.0, 0.5))
        x += extent(word, SIZE)[0] + 14
    return texts
