"""Layered layout of a directed acyclic graph (Sugiyama, Tagawa and Toda, 1981).

1. Layers: every edge leads to a later layer; each node is as close to its targets as that allows.
2. Bends: an edge that spans several layers has a point, a bend, in each layer that it crosses. All
   edges of one source share these points, which form its trunk.
3. Order: nodes and bends of a layer are sorted by the mean position of their neighbours in the
   layer before, then after, in alternating sweeps. The order with the fewest crossings is kept.
4. Positions: each node and bend moves towards the mean of its neighbours as far as the order and
   the sizes allow, by isotonic regression in each layer.
"""

import itertools
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

_SWEEPS = 12

Coordinates: TypeAlias = tuple[float, float]
Key: TypeAlias = Hashable


class Layout(NamedTuple):
    """Positions of the nodes and edges of a graph that is drawn in layers.

    Coordinates are pairs (along, across): along the direction of the edges, and across it.

    Attributes:
        places: for each node, where its box begins (along), and its middle (across).
        trunks: for each source node, the points of the line (trunk) that its edges share: two per
            layer that the longest of them crosses, at its entry and exit.
        trunk_counts: for each edge, the number of points of its source's trunk that it follows
            before it turns to its target.
        extent: size of the whole layout.
    """

    places: dict[Key, Coordinates]
    trunks: dict[Key, list[Coordinates]]
    trunk_counts: list[int]
    extent: Coordinates


def layered_layout(
    sizes: Mapping[Key, Coordinates],
    edges: Sequence[tuple[Key, Key]],
    gaps: Sequence[float],
    *,
    between: float,
) -> Layout:
    """Return a layout of a directed acyclic graph in layers.

    Args:
        sizes: size of each node (along, across the direction of the edges) by key, in an order in
            which sources come before their targets.
        edges: pairs of keys (source, target).
        gaps: for each edge, the space that it needs before the layer of its target.
        between: space between neighbouring nodes of one layer.

    >>> layered_layout({"a": (1, 1), "b": (1, 1)}, [("a", "b")], [2.0], between=1).places
    {'a': (0.0, 0.5), 'b': (3.0, 0.5)}
    """
    layer = _assign_layers(sizes, edges)
    bends = _bends(layer, edges)
    neighbours = _neighbours(bends, layer, edges)
    rows: list[list[Key]] = [[] for _ in range(max(layer.values()) + 1)]
    for key, index in layer.items():
        rows[index].append(key)
    for bend in itertools.chain(*bends.values()):
        rows[bend[1]].append(bend)
    breadth = {key: sizes[key][1] if key in sizes else 0.0 for row in rows for key in row}
    across = _positions(_order(rows, neighbours), neighbours, breadth, between)
    starts, ends = _layer_intervals(layer, sizes, edges, gaps)
    places = {key: (starts[layer[key]], across[key]) for key in sizes}
    trunks = {
        source: [(end, across[b]) for b in trunk for end in (starts[b[1]], ends[b[1]])]
        for source, trunk in bends.items()
    }
    trunk_counts = [2 * (layer[target] - layer[source] - 1) for source, target in edges]
    extent = (max(ends), max(across[key] + breadth[key] / 2 for key in across))
    return Layout(places, trunks, trunk_counts, extent)


def length(
    sizes: Mapping[Key, Coordinates], edges: Sequence[tuple[Key, Key]], gaps: Sequence[float]
) -> float:
    """Return the length of a `layered_layout` along its edges, without computing the rest."""
    return max(_layer_intervals(_assign_layers(sizes, edges), sizes, edges, gaps)[1])


def _assign_layers(nodes: Mapping[Key, Any], edges: Sequence[tuple[Key, Key]]) -> dict[Key, int]:
    sources, targets = defaultdict(list), defaultdict(list)
    for source, target in edges:
        sources[target].append(source)
        targets[source].append(target)
    layer: dict[Key, int] = {}
    for node in nodes:
        layer[node] = max((layer[source] + 1 for source in sources[node]), default=0)
    for node in reversed(list(nodes)):
        layer[node] = min((layer[target] - 1 for target in targets[node]), default=layer[node])
    first = min(layer.values())
    return {node: index - first for node, index in layer.items()}


def _bends(
    layer: Mapping[Key, int], edges: Sequence[tuple[Key, Key]]
) -> dict[Key, list[tuple[Key, int]]]:
    """Return a dict from each source node to the layers between it and its farthest target.

    The edges of a node bend there, all at one point per layer, whose key is (source, layer).
    `layer` is the layer of each node.
    """
    last = dict[Key, int]()
    for source, target in edges:
        last[source] = max(last.get(source, 0), layer[target])
    return {
        source: [(source, index) for index in range(layer[source] + 1, end)]
        for source, end in last.items()
    }


def _neighbours(
    bends: dict[Key, list[tuple[Key, int]]],
    layer: Mapping[Key, int],
    edges: Sequence[tuple[Key, Key]],
) -> dict[Key, list[Key]]:
    """Return for each node and bend the list of its neighbours in the layers before and after.

    `bends` are the points where the edges of each source cross a layer, `layer` is the layer of
    each node.
    """
    trunks = ([source, *trunk] for source, trunk in bends.items())
    pairs = [pair for trunk in trunks for pair in itertools.pairwise(trunk)]
    pairs += [
        (source if layer[target] == layer[source] + 1 else (source, layer[target] - 1), target)
        for source, target in edges
    ]
    neighbours: dict[Key, dict[Key, None]] = defaultdict(dict)  # an ordered set for each
    for a, b in pairs:
        neighbours[a][b] = neighbours[b][a] = None
    return {key: list(others) for key, others in neighbours.items()}


def _order(rows: list[list[Key]], neighbours: dict[Key, list[Key]]) -> list[list[Key]]:
    """Reorder the nodes and bends in each layer so that few edges cross, and return the layers.

    In several sweeps they are sorted by the mean position of their neighbours. The order with the
    fewest crossings is returned. A bend is a point where edges cross a layer; `rows` are the keys
    of the nodes and bends in each layer.
    """
    best, fewest = rows, _crossings(rows, neighbours)
    for sweep in range(_SWEEPS):
        step = 1 if sweep % 2 == 0 else -1
        rows = list(rows)
        for index in range(len(rows))[::step][1:]:
            place = {key: float(k) for k, key in enumerate(rows[index - step])}
            rows[index] = _sort_by_barycentre(rows[index], place, neighbours)
        crossings = _crossings(rows, neighbours)
        if crossings < fewest:
            best, fewest = rows, crossings
    return best


def _sort_by_barycentre(
    row: list[Key], place: dict[Key, float], neighbours: dict[Key, list[Key]]
) -> list[Key]:
    barycentres = {}
    for k, key in enumerate(row):
        near = [place[other] for other in neighbours.get(key, ()) if other in place]
        # A node without neighbours in that layer keeps its relative place.
        fallback = k * max(len(place) - 1, 1) / max(len(row) - 1, 1)
        barycentres[key] = sum(near) / len(near) if near else fallback
    return sorted(row, key=barycentres.__getitem__)


def _crossings(rows: list[list[Key]], neighbours: dict[Key, list[Key]]) -> int:
    """Count the pairs of edges between successive layers that cross each other.

    `rows` are the keys of the nodes and bends (points where edges cross a layer) in each layer, in
    order; `neighbours` are the keys of the neighbours of each.
    """
    total = 0
    for row, after in itertools.pairwise(rows):
        place = {key: k for k, key in enumerate(after)}
        near = ([place[n] for n in neighbours.get(key, ()) if n in place] for key in row)
        # Crossings are the inversions in the sequence of edge ends.
        flat = np.array([end for ends in near for end in sorted(ends)])
        total += int(np.triu(flat[:, None] > flat[None, :], 1).sum()) if len(flat) else 0
    return total


def _positions(
    rows: list[list[Key]],
    neighbours: dict[Key, list[Key]],
    breadth: dict[Key, float],
    between: float,
) -> dict[Key, float]:
    """Return the coordinate of each node and bend across the direction of the edges, from 0 on.

    A bend is a point where edges cross a layer.

    Args:
        rows: keys of the nodes and bends in each layer, in order.
        neighbours: for each key, its neighbours in the layers before and after.
        breadth: size of each node across the direction of the edges, 0 for bends.
        between: space between neighbouring nodes of one layer.
    """
    across: dict[Key, float] = {}
    distances = [
        [0.0, *((breadth[a] + breadth[b]) / 2 + between for a, b in itertools.pairwise(row))]
        for row in rows
    ]
    for row, steps in zip(rows, distances, strict=True):
        across.update(zip(row, np.cumsum(steps) - np.sum(steps) / 2, strict=True))
    for sweep in range(2 * _SWEEPS):
        for index in range(len(rows))[:: 1 if sweep % 2 == 0 else -1]:
            row = rows[index]
            # Bends weigh more, so that long edges are straight.
            weights = np.array([1.0 + 3.0 * (breadth[key] == 0) for key in row])
            near = ([across[n] for n in neighbours.get(key, [key])] for key in row)
            means = np.array([sum(positions) / len(positions) for positions in near])
            offsets = np.cumsum(distances[index])
            across.update(zip(row, _separate(means, offsets, weights), strict=True))
    lowest = min(across[key] - breadth[key] / 2 for key in across)
    return {key: float(value - lowest) for key, value in across.items()}


def _separate(targets: np.ndarray, offsets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Move positions as little as possible so that neighbours are as far apart as in `offsets`.

    Minimizes Σ weights (p - targets)² under p[i+1] - p[i] >= offsets[i+1] - offsets[i]. This
    is isotonic regression of targets - offsets, by the pool-adjacent-violators algorithm.
    """
    pools: list[list[float]] = []
    for value, weight in zip(targets - offsets, weights, strict=True):
        pools.append([value, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            value, weight, count = pools.pop()
            low, low_weight, low_count = pools[-1]
            total = low_weight + weight
            mean = (low * low_weight + value * weight) / total
            pools[-1] = [mean, total, low_count + count]
    return np.repeat([pool[0] for pool in pools], [int(pool[2]) for pool in pools]) + offsets


def _layer_intervals(
    layer: Mapping[Key, int],
    sizes: Mapping[Key, Coordinates],
    edges: Sequence[tuple[Key, Key]],
    gaps: Sequence[float],
) -> tuple[list[float], list[float]]:
    """Return two lists: where each layer starts and ends, along the direction of the edges.

    `layer` is the layer of each node, `gaps` the space that each edge needs before its target.
    """
    count = max(layer.values()) + 1
    room, longest = [0.0] * count, [0.0] * count
    for (_, target), gap in zip(edges, gaps, strict=True):
        room[layer[target]] = max(room[layer[target]], gap)
    for key, (along, _) in sizes.items():
        longest[layer[key]] = max(longest[layer[key]], along)
    ends = list(itertools.accumulate(gap + along for gap, along in zip(room, longest, strict=True)))
    return [end - along for end, along in zip(ends, longest, strict=True)], ends
