"""Partition the nodes of a large graph into groups, each of which is drawn as one box.

A group consists of nodes that were computed one after another, so that groups never depend on each
other in a cycle. These partitions are tried until the number of groups is small enough:

    by name scope        the full scope, then only its outer levels
    by named values      each group ends at a value that is named with `tap`
    by number            groups of equally many nodes

An argument that only one group uses belongs to that group.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from diffprog.graph import Graph, Node


class NodeGroup(NamedTuple):
    """Nodes of a graph that are drawn as one box.

    Attributes:
        name: label of the box. For a single node its name; for several, the name scope or the
            function argument that they share, or the name that `tap` gave the last of them; "" if
            there is none of these.
        nodes: at least one node, in order of computation.
    """

    name: str
    nodes: tuple[Node, ...]


def collapse(graph: Graph, most: int) -> list[NodeGroup]:
    """Partition the nodes of a graph into at most `most` groups, in order of computation.

    An array of the arguments, or a constant, that several groups use gets a group of its own. If
    that makes too many groups, such arrays are merged per function argument, or else all of them.
    """
    if len(graph.nodes) <= most:
        return _singletons(graph.nodes)
    for grouping in _groupings(graph, most):
        shared, groups = _assign_leaves(graph, grouping)
        by_root, together = _group_by(shared, _root_argument), [NodeGroup("", tuple(shared))]
        for leaves in (_singletons(shared), by_root, together):
            if len(leaves) + len(groups) <= most:
                return [_named(group) for group in (*leaves, *groups) if group.nodes]
    raise AssertionError("the coarsest grouping has at most two groups")


def _named(group: NodeGroup) -> NodeGroup:
    return group._replace(name=group.nodes[0].name) if len(group.nodes) == 1 else group


def _singletons(nodes: Iterable[Node]) -> list[NodeGroup]:
    return [NodeGroup(node.name, (node,)) for node in nodes]


def _group_by(nodes: Sequence[Node], key: Callable[[Node], str]) -> list[NodeGroup]:
    return [NodeGroup(name, tuple(run)) for name, run in itertools.groupby(nodes, key)]


def _root_argument(node: Node) -> str:
    """Return the argument of the traced function that a node belongs to, or "" if it is none.

    This is "params" for the node "params['weight']".
    """
    return re.split(r"[\[.]", node.name)[0] if node.kind == "argument" else ""


def _groupings(graph: Graph, most: int) -> Iterator[list[NodeGroup]]:
    """Yield partitions of the operations of a graph into lists of groups, from fine to coarse.

    `most` is the maximum number of boxes in the drawing; the first partitions may exceed it.
    """
    computed = [node for node in graph.nodes if node.kind not in ("argument", "constant")]
    if not computed:
        yield []
        return
    if any(node.scope for node in computed):
        depth = max(node.scope.count("/") + 1 for node in computed)
        for level in range(depth, 0, -1):
            yield _group_by(computed, functools.partial(_outer_scope, level))
    by_tap = list(_split_at_taps(computed))
    if len(by_tap) > 1:
        yield by_tap
    for count in (most, most // 2, most // 4, most // 8, 1):
        size = math.ceil(len(computed) / max(count, 1))
        runs = [tuple(computed[k : k + size]) for k in range(0, len(computed), size)]
        yield [NodeGroup(_common_scope(nodes), nodes) for nodes in runs]


def _outer_scope(level: int, node: Node) -> str:
    return "/".join(node.scope.split("/")[:level])


def _common_scope(nodes: Sequence[Node]) -> str:
    levels = zip(*(node.scope.split("/") for node in nodes), strict=False)
    common = itertools.takewhile(lambda names: len(set(names)) == 1, levels)
    return "/".join(names[0] for names in common)


def _split_at_taps(nodes: Iterable[Node]) -> Iterator[NodeGroup]:
    """Yield groups of consecutive nodes, each ending at, and named after, a `tap` in the model.

    Nodes after the last named one form a group called "".
    """
    group: list[Node] = []
    for node in nodes:
        group.append(node)
        if node.tap:
            yield NodeGroup(node.name, tuple(group))
            group = []
    if group:
        yield NodeGroup("", tuple(group))


def _assign_leaves(graph: Graph, groups: list[NodeGroup]) -> tuple[list[Node], list[NodeGroup]]:
    """Add each argument and constant that only one group uses to that group.

    Returns (leaves, groups): the arguments and constants that are left, and the extended groups.
    """
    index_of = {node.name: index for index, group in enumerate(groups) for node in group.nodes}
    shared: list[Node] = []
    private: dict[int, list[Node]] = {}
    for node in graph.nodes:
        if node.kind in ("argument", "constant"):
            users = {index_of[edge.target] for edge in graph.out_edges(node.name)}
            if len(users) == 1 and len(groups[min(users)].nodes) > 1:
                private.setdefault(min(users), []).append(node)
            else:
                shared.append(node)
    return shared, [
        group._replace(nodes=(*private.get(index, ()), *group.nodes))
        for index, group in enumerate(groups)
    ]
