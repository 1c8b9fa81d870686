"""A check drawn into a graph: edges along which a hand-written derivative is not the automatic one.

A finding calls what it concerns by a path, as the check knew it: "params['weight']" and "x" of a layer, the names of its arguments of a
function. The graph knows it as its own function calls it. The argument meant is, in this order,

    the one of the same path
    the only one that has the same paths below its name: ['weight'] and ['bias'], or none of an array
    the only one whose path ends like the finding's, ['affine1']['weight']

A finding of a layer within a net concerns the edges that enter the layer's scope: those from parameters that the path ends with or, for the
path of an input, all others.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from diffprog.graph._graph import Graph
from diffprog.graph._types import Edge


def marked(graph: Graph, report: Any) -> Graph:
    """The graph, with `Edge.wrong` where a finding of the report is not ok.

    Raises:
        TypeError: not a report.
        ValueError: no edge is meant by a finding, or it is unclear which.
    """
    findings = getattr(report, "findings", None)
    if findings is None:
        raise TypeError(f"against must be a report of diffprog.checks, got {type(report).__name__}")
    wrong: dict[int, str] = {}
    for finding in findings:
        if not finding.ok:
            means = (
                _of_layer(finding, findings, graph)
                if _layers(finding)
                else _of_argument(finding, findings, graph)
            )
            meant = [
                index
                for index, edge in enumerate(graph.edges)
                if edge.local is not None and means(edge)
            ]
            if not meant:
                raise ValueError(_unknown(finding, findings, graph))
            said = f"{finding.verdict}: {finding.got:.4g} by hand, {finding.want:.4g} true" + (
                f"; {finding.hint}" if finding.hint else ""
            )
            wrong |= dict.fromkeys(meant, said)
    edges = tuple(
        dataclasses.replace(edge, wrong=wrong[index]) if index in wrong else edge
        for index, edge in enumerate(graph.edges)
    )
    return Graph(graph.nodes, edges, graph.output)


def _layers(finding: Any) -> list[str]:
    """The scopes that a finding is of. The whole net is none: its paths are those of the net."""
    return [layer for layer in finding.layer.split("/") if layer not in ("", "the whole net")]


def _of_argument(finding: Any, findings: Iterable[Any], graph: Graph) -> Callable[[Edge], bool]:
    """Which edges leave the argument that a finding of a whole function or layer is about."""
    names = [
        node.name for node in graph.nodes if node.kind == "argument" and node.adjoint is not None
    ]
    found = _argument(
        finding.path, [other.path for other in findings if other.layer == finding.layer], names
    )
    return lambda edge: edge.source == found


def _argument(path: str, paths: Iterable[str], names: list[str]) -> str | None:
    if path in names:
        return path
    root, below = _split(path)
    shapes, wanted = _below(names), _below(paths)[root]
    alike = [name for name, inner in shapes.items() if inner == wanted]
    ending = [name for name in names if below and name.endswith(below)]
    return alike[0] + below if len(alike) == 1 else ending[0] if len(ending) == 1 else None


def _split(path: str) -> tuple[str, str]:
    """The name of an argument, and where in it: "params", "['weight']"."""
    root = re.split(r"[\[.]", path)[0]
    return root, path[len(root) :]


def _below(paths: Iterable[str]) -> dict[str, set[str]]:
    """For each argument the paths within it."""
    found: dict[str, set[str]] = defaultdict(set)
    for root, inner in map(_split, paths):
        found[root].add(inner)
    return found


def _of_layer(finding: Any, findings: Iterable[Any], graph: Graph) -> Callable[[Edge], bool]:
    """Which edges enter a layer's scope with what a finding is about."""
    layers, (root, leaf) = _layers(finding), _split(finding.path)
    params = [
        _split(other.path)[1]
        for other in findings
        if other.layer == finding.layer and _split(other.path)[0] == "params"
    ]

    def means(edge: Edge) -> bool:
        source, target = graph[edge.source], graph[edge.target]
        if _holds(source.scope, layers) or not _holds(target.scope, layers):
            return False
        if root == "params":
            return source.kind == "argument" and _ends(source.name, leaf)
        return (
            source.kind != "argument"
            or source.name == finding.path
            or not any(_ends(source.name, other) for other in params or [""])
        )

    return means


def _ends(name: str, leaf: str) -> bool:
    """Whether an argument is the parameter of this path in some layer; the only one of a layer has an empty path."""
    return name.endswith(leaf) if leaf else name != _split(name)[0]


def _holds(scope: str, layers: list[str]) -> bool:
    """Whether a scope is within the layers, which stand in it in this order."""
    parts = iter(scope.split("/"))
    return all(layer in parts for layer in layers)


def _unknown(finding: Any, findings: Iterable[Any], graph: Graph) -> str:
    wanted = dict.fromkeys(_split(other.path)[0] for other in findings)
    arguments = dict.fromkeys(
        _split(node.name)[0] for node in graph.nodes if node.kind == "argument"
    )
    where = f" of layer {finding.layer!r}" if finding.layer else ""
    return (
        f"against finds {finding.path!r}{where} {finding.verdict}, but it is not clear which edge that is: the check calls the arguments "
        f"{_listed(wanted)}, f calls them {_listed(arguments)}"
        + (
            f" and has the scopes {_listed(_scopes(graph))}; expand opens a box"
            if _layers(finding)
            else "; give them the same names"
        )
    )


def _scopes(graph: Graph) -> list[str]:
    return list(dict.fromkeys(node.scope for node in graph.nodes if node.scope)) or ["none"]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:12])
