"""Mark the edges of a graph whose hand-written derivative a gradient check found wrong.

A report of `diffprog.checks` holds one result, a `Finding`, for each array in the arguments of the
checked function or layer. The traced function may call these arguments otherwise, so the path in a
finding, "params['weight']", is matched with an array of the graph by the first rule that applies:

    same path                        "params['weight']"
    only argument with such arrays   "p['weight']", if p alone consists of ['weight'] and ['bias']
    only path with the same end      "p['hidden']['weight']"

A finding about a layer of a network marks the edges that enter the name scope of the layer: if it
is about a parameter, those from arguments whose path ends like it; if about an input, the others.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from diffprog.graph._graph import Graph
from diffprog.graph._types import Edge


def mark_wrong_edges(graph: Graph, report: Any) -> Graph:
    """Return a copy of the graph with `Edge.wrong` set where a gradient check found an error.

    Args:
        graph: the computation graph.
        report: a report of `diffprog.checks`. Each failed result in it, a `Finding`, marks the
            edges that carry the argument which it is about.

    Raises:
        TypeError: `report` is not a report of `diffprog.checks`.
        ValueError: a failed result matches no edge, or several arguments.
    """
    findings = getattr(report, "findings", None)
    if findings is None:
        raise TypeError(f"against must be a report of diffprog.checks, got {type(report).__name__}")
    edges = list(graph.edges)
    for finding in findings:
        if finding.ok:
            continue
        match = _layer_matcher if _layers(finding) else _argument_matcher
        is_match = match(finding, findings, graph)
        wrong = f"{finding.verdict}: {finding.got:.4g} by hand, {finding.want:.4g} true"
        if finding.hint:
            wrong += f"; {finding.hint}"
        matches = [k for k, edge in enumerate(edges) if edge.local is not None and is_match(edge)]
        if not matches:
            raise ValueError(_no_match(finding, findings, graph))
        for k in matches:
            edges[k] = dataclasses.replace(edges[k], wrong=wrong)
    return Graph(graph.nodes, tuple(edges), graph.output)


def _layers(finding: Any) -> list[str]:
    """Return the names of the nested layers that a check's finding is about, outermost first.

    The list is empty if the finding is about a function or the whole network.
    """
    return [layer for layer in finding.layer.split("/") if layer not in ("", "the whole net")]


def _argument_matcher(
    finding: Any, findings: Iterable[Any], graph: Graph
) -> Callable[[Edge], bool]:
    """Return a predicate on edges: does the edge leave the argument that a finding is about?

    `findings` are all results of the gradient check, `finding` is the failed one.
    """
    arguments = [node for node in graph.nodes if node.kind == "argument"]
    names = [node.name for node in arguments if node.adjoint is not None]
    paths = [other.path for other in findings if other.layer == finding.layer]
    argument = _match_argument(finding.path, paths, names)
    return lambda edge: edge.source == argument


def _match_argument(path: str, paths: list[str], names: list[str]) -> str | None:
    if path in names:
        return path
    root, suffix = _split(path)
    structure = _structures(paths)[root]
    same = [name for name, other in _structures(names).items() if other == structure]
    if len(same) == 1:
        return same[0] + suffix
    ending = [name for name in names if suffix and name.endswith(suffix)]
    return ending[0] if len(ending) == 1 else None


def _split(path: str) -> tuple[str, str]:
    """Split a path "params['weight']" into its argument and the rest, "params" and "['weight']"."""
    root = re.split(r"[\[.]", path)[0]
    return root, path[len(root) :]


def _structures(paths: Iterable[str]) -> dict[str, set[str]]:
    """Group paths by argument: "params['weight']" gives {"params": {"['weight']"}}."""
    structures: dict[str, set[str]] = defaultdict(set)
    for root, suffix in map(_split, paths):
        structures[root].add(suffix)
    return structures


def _layer_matcher(finding: Any, findings: Iterable[Any], graph: Graph) -> Callable[[Edge], bool]:
    """Return a predicate on edges: does the edge carry a finding's array into the layer?

    `finding` is a failed result of a gradient check, about a parameter or an input of a layer.
    `findings` are all results of the check; they tell the parameters of the layer from its input.
    """
    layers, (root, suffix) = _layers(finding), _split(finding.path)
    of_layer = [_split(other.path) for other in findings if other.layer == finding.layer]
    params = [inner for name, inner in of_layer if name == "params"] or [""]

    def is_match(edge: Edge) -> bool:
        source, target = graph[edge.source], graph[edge.target]
        if _in_scope(source.scope, layers) or not _in_scope(target.scope, layers):
            return False
        if root == "params":
            return source.kind == "argument" and _is_parameter(source.name, suffix)
        if source.kind != "argument" or source.name == finding.path:
            return True
        return not any(_is_parameter(source.name, inner) for inner in params)

    return is_match


def _is_parameter(name: str, suffix: str) -> bool:
    """Check whether the argument `name` can be the layer parameter whose path is `suffix`.

    It can if its name ends with that path. A layer whose parameters are a single array has the
    empty path, which matches any array inside an argument.
    """
    return name.endswith(suffix) if suffix else name != _split(name)[0]


def _in_scope(scope: str, layers: list[str]) -> bool:
    """Check whether a scope, "Net/Block/Dense", contains the names `layers` in this order."""
    parts = iter(scope.split("/"))
    return all(layer in parts for layer in layers)


def _no_match(finding: Any, findings: Iterable[Any], graph: Graph) -> str:
    arguments = [node.name for node in graph.nodes if node.kind == "argument"]
    in_check = _join(_split(other.path)[0] for other in findings)
    in_graph = _join(_split(name)[0] for name in arguments)
    where = f" of layer {finding.layer!r}" if finding.layer else ""
    remedy = "; give them the same names"
    if _layers(finding):
        scopes = _join(node.scope for node in graph.nodes if node.scope) or "none"
        remedy = f" and has the scopes {scopes}; expand opens a box"
    return (
        f"against must match the edges of f, got a finding that is {finding.verdict} for "
        f"{finding.path!r}{where} and matches none or several: the check calls the arguments "
        f"{in_check}, f calls them {in_graph}{remedy}"
    )


def _join(names: Iterable[str]) -> str:
    return ", ".join(list(dict.fromkeys(names))[:12])
