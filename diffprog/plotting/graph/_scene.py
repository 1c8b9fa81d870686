"""Build the drawing of a computation graph that the figure and the HTML page share.

A line, the wire, leaves the box of each node, with the value of the node on one side and its
adjoint on the other. It branches into the edges of the node; each shows the local derivative of the
operation that it enters. Short graphs run to the right, long ones down. Source: lectures 003, 004.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from diffprog.graph import Graph
from diffprog.graph._format import ADJOINT, VALUE
from diffprog.plotting.graph import _primitives
from diffprog.plotting.graph._boxes import Arrangement, LabeledBox, Link, arrange, link_groups
from diffprog.plotting.graph._collapse import collapse
from diffprog.plotting.graph._layered_layout import Coordinates
from diffprog.plotting.graph._primitives import MARGIN, VALUE_SIZE, Box, OccupancyGrid, Spline, Text

_MAX_WIDTH = 740.0


def build_scene(graph: Graph, most: int, *, max_width: float = _MAX_WIDTH) -> _primitives.Scene:
    """Return the drawing of a graph as boxes, splines and texts with positions.

    Args:
        graph: made by `diffprog.graph.trace`.
        most: maximum number of boxes; larger graphs are drawn in groups of nodes.
        max_width: in points; a graph that would be wider runs down instead of to the right.
    """
    groups = collapse(graph, most)
    links = link_groups(graph, groups)
    arrangement = arrange(graph, groups, links, max_width)
    builder = _SceneBuilder(arrangement)
    for key, box in arrangement.boxes.items():
        builder.add_box(box, arrangement.layout.places[key])
    builder.add_edges(links)
    return builder.build()


class _SceneBuilder:
    """Collects the boxes, splines and texts of a drawing.

    Positions (along, across the edges) in the layout are converted to (x, y) in the drawing.
    """

    def __init__(self, arrangement: Arrangement) -> None:
        self.arrangement, self.downward = arrangement, arrangement.downward
        self.splines: list[Spline] = []
        self.boxes: list[Box] = []
        self.texts: list[Text] = []

    def _xy(self, along: float, across: float) -> Coordinates:
        x, y = (across, along) if self.downward else (along, across)
        return MARGIN + x, MARGIN + y

    def add_box(self, box: LabeledBox, place: Coordinates) -> None:
        """Add a box, the line that leaves it, and its value and adjoint beside the line.

        `place` is the position of the box (along, across the edges) in the layout.
        """
        along, across = place
        width, height = box.size
        x, y = self._xy(along, across)
        left, top = (x - width / 2, y) if self.downward else (x, y - height / 2)
        corner_and_size = left, top, width, height
        self.boxes.append(Box(box.name, *corner_and_size, box.label, box.label_size, box.kind))
        leave = along + (height if self.downward else width)
        start, end = self._xy(leave, across), self._xy(leave + box.wire, across)
        kind = "none" if box.kind == "integer" else "wire"
        self.splines.append(Spline((start, start, end, end), kind, box.name))
        x, y = self._xy(leave + box.wire / 2, across)
        if self.downward:
            value = Text(x - 4, y, box.value, VALUE, VALUE_SIZE, right=1.0)
            adjoint = Text(x + 4, y, box.adjoint, ADJOINT, VALUE_SIZE, right=0.0)
        else:
            value = Text(x, y - 2, box.value, VALUE, VALUE_SIZE, down=1.0)
            adjoint = Text(x, y + 2, box.adjoint, ADJOINT, VALUE_SIZE, down=0.0)
        self.texts += [value, adjoint]

    def add_edges(self, links: Sequence[Link]) -> None:
        """Draw the links, lines between boxes, each with a label where it overlaps least."""
        boxes, labels, layout, downward = self.arrangement
        entries = _entry_points(self.arrangement, links)
        occupied = OccupancyGrid()
        for text in self.texts:
            occupied.add(text.bounding_box)
        for box in self.boxes:
            occupied.add(box.bounding_box)
        # Edges of one source and kind share a trunk, drawn once as far as any of them follows it.
        trunk_ends: dict[tuple[str, str], int] = defaultdict(int)
        for k, ((a, b, _), (label, color, kind)) in enumerate(zip(links, labels, strict=True)):
            along, across = layout.places[a]
            leave = along + boxes[a].size[1 if downward else 0] + boxes[a].wire
            end = layout.trunk_counts[k]
            begin = min(trunk_ends[a, kind], end)
            trunk_ends[a, kind] = max(trunk_ends[a, kind], end)
            bends = layout.trunks[a][max(begin - 1, 0) : end]
            start = [] if begin else [(leave, across)]
            stops = [*start, *bends, (layout.places[b][0], entries[k])]
            segments = [_bezier(*ends) for ends in itertools.pairwise(stops)]
            points = (stops[0], *(point for segment in segments for point in segment[1:]))
            points = tuple(itertools.starmap(self._xy, points))
            self.splines.append(Spline(points, kind, boxes[a].name))
            if label:
                last = [self._xy(*point) for point in segments[-1]]
                self._add_label(last, label, color, occupied)

    def _add_label(
        self, segment: list[Coordinates], text: str, color: str, occupied: OccupancyGrid
    ) -> None:
        candidates = [
            Text(*_evaluate_bezier(segment, t), text, color, _primitives.EDGE_SIZE, background=True)
            for t in (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)
        ]
        label = min(candidates, key=lambda candidate: occupied.overlap(candidate.bounding_box))
        self.texts.append(label)
        occupied.add(label.bounding_box)

    def build(self) -> _primitives.Scene:
        """Return the finished drawing, with a legend below the graph."""
        width, height = self._xy(*self.arrangement.layout.extent)
        texts = self.texts + _primitives.legend(self.splines, self.boxes, self.texts, height + 16)
        right = max([width, *(text.bounding_box[2] for text in texts)]) + MARGIN
        return _primitives.Scene(self.splines, self.boxes, texts, right, height + 30 + MARGIN)


def _entry_points(arrangement: Arrangement, links: Sequence[Link]) -> list[float]:
    """Return the position across the edges where each link enters the box of its target.

    A link is a line between two boxes. The links of a target enter side by side, in the order
    of the positions that they come from.
    """
    boxes, _, layout, downward = arrangement
    arriving = defaultdict(list)
    for k, (a, b, _) in enumerate(links):
        count = layout.trunk_counts[k]
        origin = layout.trunks[a][count - 1] if count else layout.places[a]
        arriving[b].append((origin[1], k))
    entries = [0.0] * len(links)
    for b, ends in arriving.items():
        side = boxes[b].size[0 if downward else 1]
        step = min(0.6 * side / max(len(ends) - 1, 1), 12.0)
        for rank, (_, k) in enumerate(sorted(ends)):
            entries[k] = layout.places[b][1] + (rank - (len(ends) - 1) / 2) * step
    return entries


def _bezier(start: Coordinates, end: Coordinates) -> list[Coordinates]:
    middle = (start[0] + end[0]) / 2
    return [start, (middle, start[1]), (middle, end[1]), end]


def _evaluate_bezier(points: list[Coordinates], t: float) -> Coordinates:
    weights = np.array([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    x, y = weights @ np.array(points)
    return float(x), float(y)
