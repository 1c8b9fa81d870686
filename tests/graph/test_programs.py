"""For each kind of JAX program, adjoints equal `jax.grad` and edges add up to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog.graph import Summary, trace
from tests.graph.programs import PROGRAMS

pytestmark = pytest.mark.usefixtures("float64")
FAST = {"product", "recurrent", "reverse_scan", "conditional", "sorted_by_integers"}


def pulled_back(graph, edge):
    adjoint = graph[edge.target].adjoint
    return (
        edge.pull(adjoint)
        if isinstance(edge.local, Summary)
        else np.tensordot(adjoint, edge.local, adjoint.ndim)
    )


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in PROGRAMS],
)
def test_adjoints_of_arguments_equal_jax_grad(name):
    f, args = PROGRAMS[name]
    graph = trace(f, *args)
    arguments = [node for node in graph.nodes if node.kind == "argument"]
    gradient = jax.tree.leaves(jax.grad(f, tuple(range(len(args))), allow_int=True)(*args))
    np.testing.assert_allclose(graph[graph.output].value, f(*args), rtol=1e-12)
    for node, expected in zip(arguments, gradient, strict=True):
        if node.adjoint is None:
            assert expected.dtype == jax.dtypes.float0
        else:
            np.testing.assert_allclose(node.adjoint, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_flows_add_up_to_adjoints(name):
    f, args = PROGRAMS[name]
    graph = trace(f, *args)
    for node in graph.nodes:
        if node.adjoint is None or node.name == graph.output:
            continue
        edges = [edge for edge in graph.out_edges(node.name) if edge.local is not None]
        total = sum((pulled_back(graph, edge) for edge in edges), np.zeros(node.value.shape))
        np.testing.assert_allclose(total, node.adjoint, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(
            sum((edge.flow for edge in edges), np.zeros(node.value.shape)),
            node.adjoint,
            rtol=1e-12,
            atol=1e-12,
        )
        assert all(
            edge.local.shape == graph[edge.target].value.shape + node.value.shape for edge in edges
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squared_norm", "convolution", "activations"])
def test_norms_equal_those_of_the_jacobian(name, monkeypatch):
    f, args = PROGRAMS[name]
    stored = trace(f, *args)
    monkeypatch.setattr("diffprog.graph._reverse_pass._MAX_STORED", 0)
    for edge, full in zip(trace(f, *args).edges, stored.edges, strict=True):
        assert isinstance(edge.local, Summary)
        assert edge.local.shape == full.local.shape
        if isinstance(full.local, Summary):
            continue
        np.testing.assert_allclose(
            edge.local.norm,
            np.linalg.norm(full.local.ravel()),
            rtol=1e-12 if edge.local.exact else 0.3,
        )


@pytest.mark.slow
def test_estimated_norms_are_close(monkeypatch):
    x = np.linspace(-1, 1, 24).reshape(2, 12)
    exact = np.linalg.norm(trace(lambda x: jax.nn.softmax(x).sum(), x).edges[0].local.ravel())
    monkeypatch.setattr("diffprog.graph._reverse_pass._MAX_STORED", 0)
    monkeypatch.setattr("diffprog.graph._jacobian_norms._MAX_ROWS", 0)
    edge = trace(lambda x: jax.nn.softmax(x).sum(), x).edges[0]
    assert not edge.local.exact
    assert edge.local.norm == pytest.approx(exact, rel=0.3)


def test_norms_of_scalar_operands_need_no_square_matrix():
    x = np.linspace(-1, 1, 100_000)
    graph = trace(lambda x, s: jnp.maximum(x, s).sum() + (x + s).sum(), x, 0.1)
    maximum, total = graph.out_edges("s")
    assert total.local.norm == pytest.approx(np.sqrt(x.size), rel=1e-12)
    assert maximum.local.norm == pytest.approx(np.sqrt(np.sum(x < 0.1)), rel=0.6)
