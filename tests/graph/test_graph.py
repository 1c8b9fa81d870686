"""Paths of a graph add up to total derivatives; gates carry their numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprog import tap
from diffprog.graph import trace

pytestmark = pytest.mark.usefixtures("float64")

X = np.array([0.3, -0.7, 1.1])


def sum_of_powers(x):
    u, v = tap(3 * x**3, "u"), tap(x**2, "v")
    return u + v


def test_two_paths_of_the_lecture_add_up():
    """Lecture 004: r(t) = u + v with u = 3 t^3 and v = t^2; dr/dt = 9 t^2 + 2 t."""
    paths = trace(sum_of_powers, 0.7).paths("x")
    assert [path.nodes[-2] for path in paths] == ["u", "v"]
    np.testing.assert_allclose([path.derivative for path in paths], [9 * 0.49, 1.4])
    np.testing.assert_allclose(sum(path.derivative for path in paths), 5.81)


def test_paths_between_arrays_add_up_to_the_jacobian():
    def f(x):
        h = tap(jnp.tanh(x), "h")
        y = tap(jax.nn.softmax(h * x) + h * h, "y")
        return (y**2).sum()

    graph = trace(f, X)
    y = lambda x: jax.nn.softmax(jnp.tanh(x) * x) + jnp.tanh(x) ** 2
    np.testing.assert_allclose(
        sum(path.derivative for path in graph.paths("x", "y")),
        jax.jacobian(y)(jnp.asarray(X)),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        sum(path.derivative for path in graph.paths("h")), graph["h"].adjoint, rtol=1e-12
    )


def test_the_derivative_of_a_path_has_the_axes_of_its_end_first():
    W = np.arange(6.0).reshape(2, 3)
    (path,) = trace(lambda x: tap(jnp.sin(W @ x), "y").sum(), X).paths("x", "y")
    np.testing.assert_allclose(path.derivative, np.cos(W @ X)[:, None] * W, rtol=1e-12)


def test_paths_pass_large_derivatives():
    graph = trace(lambda W, x: jnp.tanh(W @ x).sum(), np.ones((40, 50)) / 50, np.ones(50))
    (path,) = graph.paths("W")
    np.testing.assert_allclose(path.derivative, graph["W"].adjoint, rtol=1e-12)
    with pytest.raises(ValueError, match="b must be a scalar"):
        trace(lambda x: (2 * x).sum(), np.ones(2000)).paths("x", "mul")


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=8
    )
)
@settings(max_examples=15, deadline=None)
def test_paths_of_any_graph_add_up_to_the_adjoint(program):
    def f(x, y):
        values = [x, y]
        for operation, a, b in program:
            a, b = values[a % len(values)], values[b % len(values)]
            values.append([a + b, a * b, jnp.sin(a) - b][operation])
        return values[-1]

    with jax.enable_x64(True):
        graph = trace(f, 0.3, -1.2)
        for node in graph.nodes:
            np.testing.assert_allclose(
                sum(path.derivative for path in graph.paths(node.name)),
                node.adjoint,
                rtol=1e-10,
                atol=1e-12,
            )


def test_a_path_from_a_node_to_itself_is_empty():
    (path,) = trace(sum_of_powers, 0.7).paths("u", "u")
    assert (path.nodes, path.edges, path.derivative.item()) == (("u",), (), 1.0)


def test_unconnected_nodes_have_no_path():
    assert trace(sum_of_powers, 0.7).paths("u", "v") == []


def test_long_paths_are_found_and_too_many_paths_refused():
    def f(x):
        for _ in range(600):
            x = jnp.sin(x)
        return x

    (path,) = trace(f, 0.5).paths("x")
    assert len(path.edges) == 600

    def doubling(x):
        for _ in range(40):
            x = x + x
        return x

    with pytest.raises(ValueError, match="got 1,099,511,627,776 paths"):
        trace(doubling, 0.5).paths("x")


def test_paths_of_unknown_nodes_and_of_integers_are_refused():
    graph = trace(lambda x, n: x * n, 2.0, 3)
    with pytest.raises(KeyError, match="no node is called 'y'"):
        graph.paths("y")
    with pytest.raises(ValueError, match="'n' of int"):
        graph.paths("n")


def test_gates_of_the_lecture():
    """Lecture 003: a sum distributes, a maximum routes, a product switches."""
    graph = trace(lambda x, y, z: jnp.maximum(x + y, z) * z, -2.0, 5.0, 1.0)
    add, router, switcher = graph.gates()
    assert (add.kind, add.upstream, add.sources, add.flows) == (
        "distributor",
        1,
        ("x", "y"),
        (1, 1),
    )
    assert (router.kind, router.upstream, router.sources, router.values, router.flows) == (
        "router",
        1,
        ("add", "z"),
        (3, 1),
        (1, 0),
    )
    assert (switcher.kind, switcher.values, switcher.locals, switcher.flows) == (
        "switcher",
        (3, 1),
        (1, 3),
        (1, 3),
    )


def test_a_difference_distributes_with_a_sign_and_a_reduction_routes():
    graph = trace(lambda x, y: x.max() - y, X, 2.0)
    router, distributor = graph.gates()
    np.testing.assert_array_equal(router.flows[0], [0, 0, 1])
    assert (distributor.kind, distributor.flows) == ("distributor", (1, -1))


def test_edges_and_nodes_are_found_by_name():
    graph = trace(sum_of_powers, 0.7)
    assert [edge.target for edge in graph.out_edges("x")] == ["integer_pow", "v"]
    assert [edge.source for edge in graph.in_edges(graph.output)] == ["u", "v"]
    assert repr(graph) == f"<Graph of 'add': {len(graph.nodes)} nodes, {len(graph.edges)} edges>"


def test_a_graph_is_no_pytree():
    graph = trace(sum_of_powers, 0.7)
    assert jax.tree.leaves(graph) == [graph]
    assert jax.tree.leaves(graph.nodes[0]) == [graph.nodes[0]]
