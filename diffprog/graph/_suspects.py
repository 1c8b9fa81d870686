"""A check drawn into a graph: edges along which a hand-written derivative is not the automatic one."""

import dataclasses
import re
from typing import Any

from diffprog.graph._graph import Graph
from diffprog.graph._parts import Edge


def marked(graph: Graph, report: Any) -> Graph:
    """The graph, with `Edge.wrong` where a finding of the report is not ok.

    A finding of a leaf "params['weight']" concerns the edges that leave the argument of this path. One of a layer as well, "affine1",
    concerns the edges that enter its scope: those from parameters that the path ends with or, for the path of an input, all others.

    Raises:
        TypeError: not a report.
        ValueError: no edge is meant by a finding.
    """
    findings = getattr(report, "findings", None)
    if findings is None:
        raise TypeError(f"against must be a report of diffprog.checks, got {type(report).__name__}")
    wrong: dict[int, str] = {}
    for finding in findings:
        if finding.ok:
            continue
        meant = [index for index, edge in enumerate(graph.edges) if edge.local is not None and _means(finding, edge, graph)]
        if not meant:
            arguments = ", ".join(repr(node.name) for node in graph.nodes if node.kind == "argument")
            where = f" of layer {finding.layer!r}" if finding.layer else ""
            raise ValueError(
                f"against finds {finding.path!r}{where} {finding.verdict}, but no edge is called so; the arguments are {arguments}"
            )
        said = f"{finding.verdict}: {finding.got:.4g} by hand, {finding.want:.4g} true" + (f"; {finding.hint}" if finding.hint else "")
        wrong |= dict.fromkeys(meant, said)
    edges = tuple(_replaced(edge, wrong[index]) if index in wrong else edge for index, edge in enumerate(graph.edges))
    return Graph(graph.nodes, edges, graph.output)


def _means(finding: Any, edge: Edge, graph: Graph) -> bool:
    source, target = graph[edge.source], graph[edge.target]
    if not finding.layer:
        return source.kind == "argument" and source.name == finding.path
    layers = finding.layer.split("/")
    if _holds(source.scope, layers) or not _holds(target.scope, layers):
        return False
    leaf = re.sub(r"^params", "", finding.path)
    return (
        source.kind == "argument" and source.name.endswith(leaf)
        if leaf != finding.path
        else source.kind != "argument" or source.name == finding.path
    )


def _holds(scope: str, layers: list[str]) -> bool:
    """Whether a scope is within the layers, which stand in it in this order."""
    parts = iter(scope.split("/"))
    return all(layer in parts for layer in layers)


def _replaced(edge: Edge, wrong: str) -> Edge:
    return dataclasses.replace(edge, wrong=wrong)
