"""Export of a computation graph to the DOT language of Graphviz."""

import html
from collections.abc import Sequence

from diffprog.graph import _format
from diffprog.graph._format import ADJOINT, FRAME, INK, LOCAL, VALUE, WRONG, format_array
from diffprog.graph._types import Edge, Node


def to_dot(nodes: Sequence[Node], edges: Sequence[Edge]) -> str:
    """Return DOT text in which nodes show name, value and adjoint, and edges local derivatives.

    The text depends only on the nodes and edges: equal graphs give equal text.
    """
    ids = {node.name: f"n{index}" for index, node in enumerate(nodes)}
    shapes = {node.name: node.value.shape for node in nodes}
    lines = [
        "digraph {",
        f'  rankdir=LR; bgcolor="white"; node [fontname="sans-serif" fontsize=10 color="{INK}"];',
        f'  edge [fontname="sans-serif" fontsize=8 color="{FRAME}" fontcolor="{LOCAL}"];',
    ]
    lines += [f"  {ids[node.name]} [{_node_attributes(node)}];" for node in nodes]
    for edge in edges:
        attributes = _edge_attributes(edge, shapes[edge.target])
        lines.append(f"  {ids[edge.source]} -> {ids[edge.target]} [{attributes}];")
    return "\n".join([*lines, "}", ""])


def _node_attributes(node: Node) -> str:
    rows = [
        f"<B>{_escape(_format.node_title(node))}</B>",
        f'<FONT COLOR="{VALUE}">{_escape(format_array(node.value))}</FONT>',
    ]
    if node.adjoint is not None:
        rows.append(f'<FONT COLOR="{ADJOINT}">{_escape(format_array(node.adjoint))}</FONT>')
    outlines = {"rule": "shape=box peripheries=2", "operation": "shape=ellipse"}
    outline = outlines.get(node.kind, "shape=box")
    dashes = " style=dashed" if node.adjoint is None else ""
    return f"label=<{'<BR/>'.join(rows)}> {outline}{dashes}"


def _edge_attributes(edge: Edge, target_shape: tuple[int, ...]) -> str:
    label = "cut" if edge.cut else _format.format_local(edge.local, target_shape)
    style = ""
    if edge.wrong:
        style = f' color="{WRONG}" fontcolor="{WRONG}" penwidth=2'
    elif edge.cut or edge.local is None:
        style = " style=dashed"
    return f"label=<{_escape(label)}>{style}" if label else style.strip()


def _escape(text: str) -> str:
    return html.escape(text).replace("\n", "<BR/>")
