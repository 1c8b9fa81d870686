"""A graph for other programs: Graphviz' language, and a page for a browser."""

import html
import json
import math
import string
from importlib import resources
from typing import Any

import numpy as np

from diffprog.graph._format import number, said, said_local, shape
from diffprog.graph._graph import Graph
from diffprog.graph._types import Edge, Node
from diffprog.plotting.graph._primitives import (
    ADJOINT,
    FRAME,
    INK,
    LOCAL,
    SYMBOLS,
    VALUE,
    WRONG,
    Box,
    Curve,
    Text,
)
from diffprog.plotting.graph._scene import picture

_LISTED = 64  # entries of an array that the page lists
_DASHES = {"none": "2 2", "cut": "5 3"}


def to_dot(graph: Graph) -> str:
    """A `digraph` with a record of name, value and adjoint for each node, and the local derivative on each edge."""
    keys = {node.name: f"n{index}" for index, node in enumerate(graph.nodes)}
    lines = [
        "digraph {",
        f'  rankdir=LR; bgcolor="white"; node [fontname="sans-serif" fontsize=10 color="{INK}"];',
    ]
    lines += [f'  edge [fontname="sans-serif" fontsize=8 color="{FRAME}" fontcolor="{LOCAL}"];']
    lines += [f"  {keys[node.name]} [{_dot_node(node)}];" for node in graph.nodes]
    lines += [
        f"  {keys[edge.source]} -> {keys[edge.target]} [{_dot_edge(graph, edge)}];"
        for edge in graph.edges
    ]
    return "\n".join([*lines, "}", ""])


def _dot_node(node: Node) -> str:
    title = (
        node.name
        if node.kind in ("argument", "constant")
        else f"{node.tap} = {node.label}"
        if node.tap
        else node.label
    )
    rows = [
        f"<B>{_escaped(title)}</B>",
        f'<FONT COLOR="{VALUE}">{_escaped(said(node.value))}</FONT>',
    ]
    rows += (
        []
        if node.adjoint is None
        else [f'<FONT COLOR="{ADJOINT}">{_escaped(said(node.adjoint))}</FONT>']
    )
    form = {"rule": "shape=box peripheries=2", "operation": "shape=ellipse"}.get(
        node.kind, "shape=box"
    )
    return f"label=<{'<BR/>'.join(rows)}> {form}" + (
        " style=dashed" if node.adjoint is None else ""
    )


def _dot_edge(graph: Graph, edge: Edge) -> str:
    label = "cut" if edge.cut else said_local(edge.local, graph[edge.target].value.shape)
    style = (
        f' color="{WRONG}" fontcolor="{WRONG}" penwidth=2'
        if edge.wrong
        else " style=dashed"
        if edge.cut or edge.local is None
        else ""
    )
    return f"label=<{_escaped(label)}>{style}" if label else style.strip()


def _escaped(text: str) -> str:
    return html.escape(text).replace("\n", "<BR/>")


def to_html(graph: Graph) -> str:
    """One file with the drawing as SVG, a panel for the node that is clicked, and the script for both."""
    drawn = picture(graph, len(graph.nodes))
    marks = [
        *map(_svg_curve, drawn.curves),
        *map(_svg_box, drawn.boxes),
        *map(_svg_text, drawn.texts),
    ]
    page = string.Template((resources.files(__package__) / "page.html").read_text(encoding="utf-8"))
    # A "</script>" inside the data would end it.
    data = json.dumps(
        {node.name: _panel(graph, node) for node in graph.nodes}, ensure_ascii=False
    ).replace("</", "<\\/")
    title = (
        f"Computation graph of {graph.output}: {len(graph.nodes)} nodes, {len(graph.edges)} edges"
    )
    return page.substitute(
        title=html.escape(title),
        output=_attribute(graph.output),
        width=f"{drawn.width:.1f}",
        height=f"{drawn.height:.1f}",
        marks="\n".join(marks),
        data=data,
    )


def _svg_curve(curve: Curve) -> str:
    (x, y), rest = curve.points[0], curve.points[1:]
    path = f"M{x:.1f} {y:.1f}C" + " ".join(f"{x:.1f} {y:.1f}" for x, y in rest)
    dashes = f' stroke-dasharray="{_DASHES[curve.kind]}"' if curve.kind in _DASHES else ""
    return f'<path class="{curve.kind}" d="{path}"{dashes}/>'


def _svg_box(box: Box) -> str:
    rounding = {"box": 2.0, "rule": 2.0, "group": 5.0}.get(box.kind, box.height / 2.2)
    rounding = box.height / 2 if box.text in SYMBOLS else rounding
    frame = f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{rounding:.1f}"/>'
    if box.kind == "rule":
        frame += f'<rect x="{box.x + 2:.1f}" y="{box.y + 2:.1f}" width="{box.width - 4:.1f}" height="{box.height - 4:.1f}" rx="1"/>'
    label = _lines(box.x + box.width / 2, box.y + box.height / 2, box.text, box.size, "middle", INK)
    return f'<g class="node {box.kind}" tabindex="0" role="button" data-name="{_attribute(box.name)}">{frame}{label}</g>'


def _svg_text(text: Text) -> str:
    if not text.text:
        return ""
    left, upper, right, lower = text.corners
    anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[text.right]
    back = (
        f'<rect class="back" x="{left:.1f}" y="{upper:.1f}" width="{right - left:.1f}" height="{lower - upper:.1f}"/>'
        if text.backed
        else ""
    )
    return back + _lines(text.x, (upper + lower) / 2, text.text, text.size, anchor, text.color)


def _lines(x: float, y: float, text: str, size: float, anchor: str, color: str) -> str:
    lines = text.split("\n")
    first = y - (len(lines) - 1) / 2 * 1.22 * size + 0.35 * size
    spans = "".join(
        f'<tspan x="{x:.1f}" y="{first + k * 1.22 * size:.1f}">{html.escape(line)}</tspan>'
        for k, line in enumerate(lines)
    )
    return f'<text font-size="{size:g}" text-anchor="{anchor}" fill="{color}">{spans}</text>'


def _panel(graph: Graph, node: Node) -> dict[str, Any]:
    """What a click shows."""
    incoming = [_derivative(graph, edge) for edge in graph.in_edges(node.name)]
    outgoing = [
        {"target": edge.target, "flow": None if edge.flow is None else _table(edge.flow)}
        for edge in graph.out_edges(node.name)
    ]
    return {
        "op": node.op
        + {"rule": ", with its own derivative rule", "box": ", shown whole"}.get(node.kind, ""),
        "scope": node.scope,
        "value": _table(node.value),
        "adjoint": None if node.adjoint is None else _table(node.adjoint),
        "incoming": incoming,
        "outgoing": outgoing,
    }


def _derivative(graph: Graph, edge: Edge) -> dict[str, Any]:
    found: dict[str, Any] = {
        "source": edge.source,
        "slot": edge.slot,
        "wrong": edge.wrong,
        "cut": edge.cut,
        "local": None,
        "flow": None,
    }
    if edge.local is None:
        return found
    target = graph[edge.target].value.shape
    if isinstance(edge.local, np.ndarray):
        rows = math.prod(target)
        found["local"] = _table(edge.local.reshape(rows, edge.local.size // max(rows, 1)))
    else:
        sizes = edge.local.shape
        found["local"] = {
            "said": f"{shape(sizes[: len(target)])} by {shape(sizes[len(target) :])}, {said_local(edge.local, target)}"
        }
    found["flow"] = _table(edge.flow)
    return found


def _table(array: Any) -> dict[str, Any]:
    """The rows of a small array, or what is said of a large one."""
    if not isinstance(array, np.ndarray):
        return {
            "said": "random key" if np.ndim(array) == 0 else f"{shape(array.shape)} random keys"
        }
    kind = f"{array.dtype}, {shape(array.shape)}"
    if 0 < array.size <= _LISTED and array.ndim <= 2:
        return {
            "kind": kind,
            "rows": [[number(entry, 6) for entry in row] for row in np.atleast_2d(array).tolist()],
        }
    if array.size == 0 or array.dtype.kind not in "fV":
        return {"kind": kind, "said": said(array)}
    numbers = array.astype(np.float64)
    facts = {
        "norm": np.linalg.norm(numbers),
        "least": numbers.min(),
        "greatest": numbers.max(),
        "mean": numbers.mean(),
    }
    return {
        "kind": kind,
        "said": ", ".join(f"{name} {number(float(value), 5)}" for name, value in facts.items()),
    }


def _attribute(text: str) -> str:
    return html.escape(text, quote=True)
