"""Edges go forward, boxes and texts do not overlap, crossings are few, groups form no cycle."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprog import tap
from diffprog.graph import trace
from diffprog.plotting.graph._boxes import arrange, link_groups
from diffprog.plotting.graph._collapse import collapse
from diffprog.plotting.graph._layered_layout import _separate, layered_layout
from diffprog.plotting.graph._primitives import EDGE_SIZE, text_extent
from diffprog.plotting.graph._scene import build_scene

EDGES = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), min_size=1, max_size=40)


def sizes_of(edges):
    nodes = sorted({node for edge in edges for node in edge})
    return {node: (1.0 + node % 3, 1.0 + node % 2) for node in nodes}


@given(EDGES)
@settings(max_examples=40, deadline=None)
def test_edges_go_forward_and_boxes_do_not_overlap(edges):
    edges = [(min(edge), max(edge)) for edge in edges if edge[0] != edge[1]]
    sizes = sizes_of(edges)
    if not edges:
        return
    layout = layered_layout(sizes, edges, [2.0] * len(edges), between=0.5)
    for k, (source, target) in enumerate(edges):
        stops = [
            layout.places[source][0] + sizes[source][0],
            *(along for along, _ in layout.trunks[source][: layout.trunk_counts[k]]),
            layout.places[target][0],
        ]
        assert all(a <= b + 1e-9 for a, b in itertools.pairwise(stops))
        assert layout.places[target][0] - stops[-2] >= 2.0 - 1e-9
    for a, b in itertools.combinations(sizes, 2):
        (along_a, across_a), (along_b, across_b) = layout.places[a], layout.places[b]
        apart_along = (
            along_a + sizes[a][0] <= along_b + 1e-9 or along_b + sizes[b][0] <= along_a + 1e-9
        )
        assert (
            apart_along or abs(across_a - across_b) >= (sizes[a][1] + sizes[b][1]) / 2 + 0.5 - 1e-9
        )
    assert all(
        across - sizes[node][1] / 2 + 1e-9 >= 0 and across <= layout.extent[1]
        for node, (_, across) in layout.places.items()
    )


def test_a_planar_graph_is_drawn_without_crossings():
    edges = [("a", "d"), ("b", "c"), ("c", "e"), ("d", "f"), ("e", "g"), ("f", "g")]
    layout = layered_layout(
        dict.fromkeys("abcdefg", (1.0, 1.0)), edges, [1.0] * len(edges), between=1.0
    )
    across = {node: place[1] for node, place in layout.places.items()}
    assert (across["a"] < across["b"]) == (across["d"] < across["c"]) == (across["f"] < across["e"])


def test_a_chain_is_straight():
    layout = layered_layout(
        dict.fromkeys("abc", (1.0, 2.0)), [("a", "b"), ("b", "c")], [1.0, 1.0], between=1.0
    )
    assert layout.places == {"a": (0.0, 1.0), "b": (2.0, 1.0), "c": (4.0, 1.0)}


@pytest.mark.parametrize("seed", range(5))
def test_positions_of_a_layer_are_the_weighted_isotonic_regression(seed):
    rng, count = np.random.default_rng(seed), 7
    targets, weights = rng.normal(size=count), rng.choice([1.0, 4.0], count)
    offsets = np.cumsum(rng.uniform(0, 0.5, count))
    # The formula of Robertson, Wright and Dykstra: a maximum over first members of a pool of the
    # minimum over last members of its weighted mean.
    mean = lambda i, j: np.average((targets - offsets)[i : j + 1], weights=weights[i : j + 1])
    expected = [
        max(min(mean(i, j) for j in range(k, count)) for i in range(k + 1)) for k in range(count)
    ]
    np.testing.assert_allclose(_separate(targets, offsets, weights), expected + offsets, atol=1e-12)


def deep_network(scoped, tapped):
    def f(weights, x):
        for k, weight in enumerate(weights):
            with jax.named_scope(f"layer{k}" if scoped else ""):
                x = jnp.tanh(x @ weight + 0.1)
            x = tap(x, f"h{k}") if tapped else x
        return x.sum()

    return trace(f, [np.eye(2)] * 24, np.ones(2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scoped", "tapped", "name"), [(True, False, "layer3"), (False, True, "h3"), (False, False, "")]
)
def test_large_graphs_are_collapsed_by_scope_tap_or_number(scoped, tapped, name):
    graph = deep_network(scoped, tapped)
    groups = collapse(graph, 60)
    assert len(graph.nodes) > 60 >= len(groups)
    assert name in [group.name for group in groups]
    assert sorted(node.name for group in groups for node in group.nodes) == sorted(
        node.name for node in graph.nodes
    )
    order = {node.name: index for index, group in enumerate(groups) for node in group.nodes}
    assert all(order[edge.source] <= order[edge.target] for edge in graph.edges)


def test_small_graphs_are_not_collapsed():
    graph = trace(lambda x: jnp.sin(x) * x, 1.0)
    assert [group.nodes for group in collapse(graph, 60)] == [(node,) for node in graph.nodes]


def test_texts_of_sixty_nodes_do_not_overlap():
    def f(weights, x):
        for weight in weights:
            x = x + jnp.tanh(weight * x)
        return x * x

    graph = trace(f, [np.float32(0.1 * k) for k in range(14)], 0.5)
    assert 50 <= len(graph.nodes) <= 60
    scene = build_scene(graph, 60)
    corners = [text.bounding_box for text in scene.texts if text.text]
    overlaps = [
        (a, b)
        for a, b in itertools.combinations(corners, 2)
        if min(a[2], b[2]) - max(a[0], b[0]) > 1 and min(a[3], b[3]) - max(a[1], b[1]) > 1
    ]
    assert overlaps == []
    assert all(
        left >= 0 and right <= scene.width and upper >= 0 and lower <= scene.height
        for left, upper, right, lower in corners
    )


@pytest.mark.parametrize(("width", "across"), [(740.0, 1), (1.0, 0)], ids=["right", "down"])
def test_edges_into_one_box_do_not_cross(width, across):
    graph = trace(lambda a, b, c: jnp.where(c > 0, b, c) - (b - a) * c, 1.0, 2.0, 3.0)
    scene = build_scene(graph, 60, max_width=width)
    for box in scene.boxes:
        arriving = [
            (spline.points[-4][across], spline.points[-1][across])
            for spline in scene.splines
            if spline.kind != "wire"
            and box.x - 1e-6 <= spline.points[-1][0] <= box.x + box.width
            and box.y - 1e-6 <= spline.points[-1][1] <= box.y + box.height
        ]
        ends = [end for _, end in sorted(arriving)]
        assert ends == sorted(ends)


@pytest.mark.parametrize(("width", "axis"), [(740.0, 0), (1.0, 1)], ids=["right", "down"])
def test_every_edge_label_has_the_same_margin_along_the_edges(width, axis):
    graph = trace(lambda x: jnp.exp(1234.0 * jnp.sin(x)), 0.001)
    groups = collapse(graph, 60)
    links = link_groups(graph, groups)
    boxes, labels, layout, downward = arrange(graph, groups, links, width)
    assert downward == bool(axis)
    margins = []
    for (source, target, _), (label, *_) in zip(links, labels, strict=True):
        begin = layout.places[source][0] + boxes[source].size[axis] + boxes[source].wire
        gap = layout.places[target][0] - begin
        margins.append(gap - text_extent(label, EDGE_SIZE)[axis])
    assert len({label for label, *_ in labels}) == len(margins) == 3
    np.testing.assert_allclose(margins, margins[0], atol=1e-9)
    assert 20 < margins[0] < 40


def argument_used_at_every_depth(depth):
    def f(w, x):
        for _ in range(depth):
            x = jnp.tanh(w * x)
        return x

    return trace(f, 0.5, 0.7)


def test_splines_grow_linearly_with_depth():
    graphs = [argument_used_at_every_depth(depth) for depth in (25, 100)]
    short, long = (build_scene(graph, len(graph.nodes)) for graph in graphs)
    size = lambda scene: sum(len(spline.points) for spline in scene.splines)
    assert 3.5 < size(long) / size(short) < 4.5


def test_edges_that_share_a_trunk_reach_their_targets():
    graph = argument_used_at_every_depth(6)
    scene = build_scene(graph, 60)
    boxes = {box.name: box for box in scene.boxes}
    ends = [
        spline.points[-1]
        for spline in scene.splines
        if spline.kind == "edge" and spline.name == "w"
    ]
    targets = [boxes[edge.target] for edge in graph.out_edges("w")]
    assert len(ends) == len(targets) == 6
    for (x, y), box in zip(ends, targets, strict=True):
        assert box.x - 1e-6 <= x <= box.x + box.width
        assert box.y - 1e-6 <= y <= box.y + box.height
    points = {
        point for spline in scene.splines if spline.name == "w" for point in spline.points[3::3]
    }
    starts = [
        spline.points[0] for spline in scene.splines if spline.kind == "edge" and spline.name == "w"
    ]
    assert all(point in points for point in starts)


@pytest.mark.parametrize("count", [61, 70, 200])
def test_arguments_without_operations_are_one_group(count):
    (group,) = collapse(trace(lambda p: p[0], [1.0] * count), 60)
    assert (group.name, len(group.nodes)) == ("p", count)
    tree, more = [1.0] * 40, [1.0] * 40
    assert [group.name for group in collapse(trace(lambda a, b: a[0], tree, more), 60)] == [
        "a",
        "b",
    ]


def test_many_shared_arguments_are_one_group():
    def f(params, x):
        for step in range(2):
            with jax.named_scope(f"step{step}"):
                for weight in params:
                    x = x * weight
        return x

    assert [group.name for group in collapse(trace(f, [1.0] * 70, 0.5), 60)] == [
        "params",
        "step0",
        "step1",
    ]
