"""Interactive HTML page of a computation graph: an SVG drawing and a panel with details."""

import html
import json
import math
import string
from importlib import resources
from typing import Any

import numpy as np

from diffprog.graph import Edge, Graph, Node
from diffprog.graph._format import INK, format_array, format_local, format_number, format_shape
from diffprog.plotting.graph._primitives import Box, Spline, Text, require_graph
from diffprog.plotting.graph._scene import build_scene

_LISTED = 64  # arrays of up to this many entries are listed in full
_DASHES = {"none": "2 2", "cut": "5 3"}


def graph_html(graph: Graph) -> str:
    """Return a self-contained HTML page of a computation graph.

    Clicking a node shows its value, its adjoint and its incoming derivatives; dragging pans and
    scrolling zooms. The page loads nothing from the network.

    Args:
        graph: made by `diffprog.graph.trace`. Every node is drawn.

    Raises:
        TypeError: `graph` is not a `Graph`.

    >>> from diffprog.graph import trace
    >>> graph_html(trace(lambda x: x * x, 3.0)).splitlines()[0]
    '<!doctype html>'
    """
    require_graph(graph)
    scene = build_scene(graph, len(graph.nodes))
    elements = [
        *map(_svg_spline, scene.splines),
        *map(_svg_box, scene.boxes),
        *map(_svg_text, scene.texts),
    ]
    page = string.Template((resources.files(__package__) / "page.html").read_text(encoding="utf-8"))
    panels = {node.name: _panel(graph, node) for node in graph.nodes}
    # A "</script>" in a name would otherwise end the script element that holds the data.
    data = json.dumps(panels, ensure_ascii=False).replace("</", "<\\/")
    size = f"{len(graph.nodes)} nodes, {len(graph.edges)} edges"
    title = f"Computation graph of {graph.output}: {size}"
    return page.substitute(
        title=html.escape(title),
        output=html.escape(graph.output),
        width=f"{scene.width:.1f}",
        height=f"{scene.height:.1f}",
        elements="\n".join(elements),
        data=data,
    )


def _svg_spline(spline: Spline) -> str:
    (x, y), rest = spline.points[0], spline.points[1:]
    path = f"M{x:.1f} {y:.1f}C" + " ".join(f"{x:.1f} {y:.1f}" for x, y in rest)
    dashes = f' stroke-dasharray="{_DASHES[spline.kind]}"' if spline.kind in _DASHES else ""
    return f'<path class="{spline.kind}" d="{path}"{dashes}/>'


def _svg_box(box: Box) -> str:
    frame = _svg_rectangle(box.x, box.y, box.width, box.height, box.corner_radius)
    if box.kind == "rule":
        frame += _svg_rectangle(box.x + 2, box.y + 2, box.width - 4, box.height - 4, 1)
    x, y = box.x + box.width / 2, box.y + box.height / 2
    label = _svg_lines(x, y, box.text, box.size, "middle", INK)
    name = html.escape(box.name)
    group = f'<g class="node {box.kind}" tabindex="0" role="button" data-name="{name}">'
    return f"{group}{frame}{label}</g>"


def _svg_rectangle(x: float, y: float, width: float, height: float, radius: float) -> str:
    size = f'width="{width:.1f}" height="{height:.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} rx="{radius:.1f}"/>'


def _svg_text(text: Text) -> str:
    if not text.text:
        return ""
    left, top, right, bottom = text.bounding_box
    background = ""
    if text.background:
        size = f'width="{right - left:.1f}" height="{bottom - top:.1f}"'
        background = f'<rect class="back" x="{left:.1f}" y="{top:.1f}" {size}/>'
    anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[text.right]
    middle = (top + bottom) / 2
    return background + _svg_lines(text.x, middle, text.text, text.size, anchor, text.color)


def _svg_lines(x: float, y: float, text: str, size: float, anchor: str, color: str) -> str:
    lines = text.split("\n")
    first = y - (len(lines) - 1) / 2 * 1.22 * size + 0.35 * size
    spans = "".join(
        f'<tspan x="{x:.1f}" y="{first + k * 1.22 * size:.1f}">{html.escape(line)}</tspan>'
        for k, line in enumerate(lines)
    )
    return f'<text font-size="{size:g}" text-anchor="{anchor}" fill="{color}">{spans}</text>'


def _panel(graph: Graph, node: Node) -> dict[str, Any]:
    """Return what the page shows of a selected node (value, adjoint, edges), as a JSON dict."""
    suffix = {"rule": ", with its own derivative rule", "box": ", not expanded"}.get(node.kind, "")
    return {
        "op": node.op + suffix,
        "scope": node.scope,
        "value": _array_data(node.value),
        "adjoint": None if node.adjoint is None else _array_data(node.adjoint),
        "incoming": [_edge_data(graph, edge) for edge in graph.in_edges(node.name)],
        "outgoing": [
            {"target": edge.target, "flow": None if edge.flow is None else _array_data(edge.flow)}
            for edge in graph.out_edges(node.name)
        ],
    }


def _edge_data(graph: Graph, edge: Edge) -> dict[str, Any]:
    data = {name: getattr(edge, name) for name in ("source", "slot", "wrong", "cut")}
    data |= {"local": None, "flow": None}
    if edge.local is None:
        return data
    target = graph[edge.target].value.shape
    if isinstance(edge.local, np.ndarray):
        rows = math.prod(target)
        data["local"] = _array_data(edge.local.reshape(rows, edge.local.size // max(rows, 1)))
    else:
        sizes = edge.local.shape
        shapes = f"{format_shape(sizes[: len(target)])} by {format_shape(sizes[len(target) :])}"
        data["local"] = {"summary": f"{shapes}, {format_local(edge.local, target)}"}
    data["flow"] = _array_data(edge.flow)
    return data


def _array_data(array: Any) -> dict[str, Any]:
    """Return an array as a JSON dict: dtype and shape, with all entries or a summary of them."""
    if not isinstance(array, np.ndarray):
        count = "random key" if np.ndim(array) == 0 else f"{format_shape(array.shape)} random keys"
        return {"summary": count}
    kind = f"{array.dtype}, {format_shape(array.shape)}"
    if 0 < array.size <= _LISTED and array.ndim <= 2:
        rows = [[format_number(entry, 6) for entry in row] for row in np.atleast_2d(array).tolist()]
        return {"kind": kind, "rows": rows}
    if array.size == 0 or array.dtype.kind not in "fV":
        return {"kind": kind, "summary": format_array(array)}
    numbers = array.astype(np.float64)
    statistics = {"norm": np.linalg.norm(numbers), "min": numbers.min(), "max": numbers.max()}
    statistics["mean"] = numbers.mean()
    summary = ", ".join(f"{key} {format_number(float(n), 5)}" for key, n in statistics.items())
    return {"kind": kind, "summary": summary}
