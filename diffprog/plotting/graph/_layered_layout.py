"""Where to draw the nodes of a directed acyclic graph: in layers, every edge going forward (Sugiyama, Tagawa and Toda, 1981).

layer       as late as the targets of a node allow, and those as early as their sources do
bends       an edge that passes a layer goes straight through it; the edges of one source share the place
order       within a layer by the mean place of neighbours, swept back and forth, which leaves few crossings
across      as near to the neighbours' middle as the order and the sizes allow: an isotonic regression for each layer
"""

import itertools
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

_SWEEPS = 12

Point: TypeAlias = tuple[float, float]
Key: TypeAlias = Hashable


class Layout(NamedTuple):
    """Positions, `along` the direction of the edges and `across` it.

    Attributes:
        places: (along, across) of each node: where its block starts, and its middle.
        trunks: for each source, the points that its longest edge passes between its ends: where it enters and leaves a layer.
        passed: for each edge, how many points of its source's trunk it passes.
        extent: the whole, (along, across).
    """

    places: dict[Key, Point]
    trunks: dict[Key, list[Point]]
    passed: list[int]
    extent: Point


def layered(
    sizes: Mapping[Key, Point],
    edges: Sequence[tuple[Key, Key]],
    gaps: Sequence[float],
    *,
    between: float,
) -> Layout:
    """Lay out a graph.

    Args:
        sizes: (along, across) of each node, in an order in which sources come before targets.
        edges: pairs (source, target).
        gaps: the room for an edge, before the layer of its target.
        between: the room between neighbours of one layer.

    >>> layered({"a": (1, 1), "b": (1, 1)}, [("a", "b")], [2.0], between=1).places
    {'a': (0.0, 0.5), 'b': (3.0, 0.5)}
    """
    layer = _layers(sizes, edges)
    passes = _passes(layer, edges)
    neighbours = _neighbours(passes, layer, edges)
    rows = _rows(layer, passes)
    breadth = {key: sizes[key][1] if key in sizes else 0.0 for row in rows for key in row}
    across = _across(_ordered(rows, neighbours), neighbours, breadth, between)
    starts, ends = _stretches(layer, sizes, edges, gaps)
    places = {key: (starts[layer[key]], across[key]) for key in sizes}
    trunks = {
        key: [(end, across[at]) for at in several for end in (starts[at[1]], ends[at[1]])]
        for key, several in passes.items()
    }
    passed = [2 * (layer[target] - layer[source] - 1) for source, target in edges]
    return Layout(
        places, trunks, passed, (max(ends), max(across[key] + breadth[key] / 2 for key in across))
    )


def length(
    sizes: Mapping[Key, Point], edges: Sequence[tuple[Key, Key]], gaps: Sequence[float]
) -> float:
    """How far a layout extends along its edges."""
    return max(_stretches(_layers(sizes, edges), sizes, edges, gaps)[1])


def _layers(nodes: Mapping[Key, Any], edges: Sequence[tuple[Key, Key]]) -> dict[Key, int]:
    """The layer of each node."""
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


def _passes(
    layer: Mapping[Key, int], edges: Sequence[tuple[Key, Key]]
) -> dict[Key, list[tuple[Key, int]]]:
    """For each source the layers that its edges pass, as keys (source, layer)."""
    last = dict[Key, int]()
    for source, target in edges:
        last[source] = max(last.get(source, 0), layer[target])
    return {
        source: [(source, between) for between in range(layer[source] + 1, end)]
        for source, end in last.items()
    }


def _neighbours(
    passes: dict[Key, list[tuple[Key, int]]],
    layer: Mapping[Key, int],
    edges: Sequence[tuple[Key, Key]],
) -> dict[Key, list[Key]]:
    steps = [
        step for source, trunk in passes.items() for step in itertools.pairwise([source, *trunk])
    ]
    steps += [
        (source if layer[target] == layer[source] + 1 else (source, layer[target] - 1), target)
        for source, target in edges
    ]
    found: dict[Key, dict[Key, None]] = defaultdict(dict)
    for a, b in steps:
        found[a][b] = found[b][a] = None
    return {key: list(others) for key, others in found.items()}


def _rows(layer: Mapping[Key, int], passes: dict[Key, list[tuple[Key, int]]]) -> list[list[Key]]:
    rows: list[list[Key]] = [[] for _ in range(max(layer.values()) + 1)]
    for key, index in layer.items():
        rows[index].append(key)
    for trunk in passes.values():
        for key in trunk:
            rows[key[1]].append(key)
    return rows


def _ordered(rows: list[list[Key]], neighbours: dict[Key, list[Key]]) -> list[list[Key]]:
    """The rows, each sorted by the mean place of its neighbours in the row before, then after, and so on; the best of all sweeps."""
    best, fewest = rows, _crossings(rows, neighbours)
    for sweep in range(_SWEEPS):
        step = 1 if sweep % 2 == 0 else -1
        rows = list(rows)
        for index in range(len(rows))[::step][1:]:
            place = {key: float(k) for k, key in enumerate(rows[index - step])}
            rows[index] = _sorted(rows[index], place, neighbours)
        crossings = _crossings(rows, neighbours)
        if crossings < fewest:
            best, fewest = rows, crossings
    return best


def _sorted(row: list[Key], place: dict[Key, float], neighbours: dict[Key, list[Key]]) -> list[Key]:
    means = {}
    for k, key in enumerate(row):
        near = [place[other] for other in neighbours.get(key, ()) if other in place]
        # A node without neighbours there keeps its own place.
        means[key] = (
            sum(near) / len(near) if near else k * max(len(place) - 1, 1) / max(len(row) - 1, 1)
        )
    return sorted(row, key=means.__getitem__)


def _crossings(rows: list[list[Key]], neighbours: dict[Key, list[Key]]) -> int:
    total = 0
    for row, after in itertools.pairwise(rows):
        place = {key: k for k, key in enumerate(after)}
        ends = [
            sorted(place[other] for other in neighbours.get(key, ()) if other in place)
            for key in row
        ]
        flat = np.array([end for several in ends for end in several])
        total += int(np.triu(flat[:, None] > flat[None, :], 1).sum()) if len(flat) else 0
    return total


def _across(
    rows: list[list[Key]],
    neighbours: dict[Key, list[Key]],
    breadth: dict[Key, float],
    between: float,
) -> dict[Key, float]:
    across: dict[Key, float] = {}
    apart = [
        [0.0, *((breadth[a] + breadth[b]) / 2 + between for a, b in itertools.pairwise(row))]
        for row in rows
    ]
    for row, distances in zip(rows, apart, strict=True):
        across.update(zip(row, np.cumsum(distances) - np.sum(distances) / 2, strict=True))
    for sweep in range(2 * _SWEEPS):
        for index in range(len(rows))[:: 1 if sweep % 2 == 0 else -1]:
            row = rows[index]
            # Bends weigh more, so that long edges are straight.
            weights = np.array([1.0 + 3.0 * (breadth[key] == 0) for key in row])
            near = [neighbours.get(key, [key]) for key in row]
            wanted = np.array(
                [sum(across[other] for other in others) / len(others) for others in near]
            )
            across.update(zip(row, _apart(wanted, np.cumsum(apart[index]), weights), strict=True))
    lowest = min(across[key] - breadth[key] / 2 for key in across)
    return {key: float(value - lowest) for key, value in across.items()}


def _apart(wanted: np.ndarray, offsets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The nearest places to the wanted ones, in this order and as far apart as the offsets: pool adjacent violators."""
    pools: list[list[float]] = []
    for value, weight in zip(wanted - offsets, weights, strict=True):
        pools.append([value, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            value, weight, count = pools.pop()
            low = pools[-1]
            pools[-1] = [
                (low[0] * low[1] + value * weight) / (low[1] + weight),
                low[1] + weight,
                low[2] + count,
            ]
    return np.repeat([pool[0] for pool in pools], [int(pool[2]) for pool in pools]) + offsets


def _stretches(
    layer: Mapping[Key, int],
    sizes: Mapping[Key, Point],
    edges: Sequence[tuple[Key, Key]],
    gaps: Sequence[float],
) -> tuple[list[float], list[float]]:
    """Where each layer starts and ends."""
    count = max(layer.values()) + 1
    room, longest = [0.0] * count, [0.0] * count
    for (_, target), gap in zip(edges, gaps, strict=True):
        room[layer[target]] = max(room[layer[target]], gap)
    for key, (along, _) in sizes.items():
        longest[layer[key]] = max(longest[layer[key]], along)
    ends = list(itertools.accumulate(gap + along for gap, along in zip(room, longest, strict=True)))
    return [end - along for end, along in zip(ends, longest, strict=True)], ends
