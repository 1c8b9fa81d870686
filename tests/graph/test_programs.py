"""Every kind of JAX program: adjoints are those of `jax.grad`, and edges add up to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from diffprog import tap
from diffprog.graph import Summary, trace

pytestmark = pytest.mark.slow  # `make test` stays under four minutes

X = np.array([0.3, -0.7, 1.1])
W = np.array([[0.1, 0.5, 0.2], [-0.3, 0.8, 0.4]])


@jax.custom_vjp
def hundredfold(x):
    return jnp.sin(x)


hundredfold.defvjp(lambda x: (jnp.sin(x), None), lambda _, g: (100.0 * g,))


def product(x, y, z):
    return (x + y) * z


def squared(W, x):
    return jnp.sum((W @ x) ** 2)


def activations(x):
    y = jax.nn.softmax(jax.nn.gelu(x)) + jax.nn.silu(x) * jax.nn.sigmoid(x) + jax.nn.relu(x)
    return jax.nn.logsumexp(y) + jax.nn.log_softmax(y)[0] + jnp.linalg.norm(y) + jnp.var(y)


def recurrent(params, xs):
    def step(h, x):
        h = tap(jnp.tanh(params["W"] @ h + params["u"] * x), "h")
        return h, h[0]

    h, ys = lax.scan(step, jnp.zeros(2), xs)
    return (h**2).sum() + ys.sum()


def backwards(xs):
    end, ys = lax.scan(lambda c, x: (jnp.sin(c) * x, c + x), jnp.float64(0.5), xs, reverse=True)
    return end + (ys * jnp.arange(3)).sum()


def long_scan(x):
    return lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=100)[0].sum()


def branched(x):
    return lax.cond(x[0] > 0, lambda x: jnp.sin(x).sum(), lambda x: jnp.cos(x).prod(), x)


def stopped(x):
    return (lax.stop_gradient(jnp.exp(x)) * x).sum() + lax.stop_gradient(jnp.sin(x)).sum()


def wrapped(x):
    return jax.jit(lambda x: jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)))(x))(x).sum()


def ruled(x):
    return (hundredfold(x) * jax.nn.relu(x - x)).sum() + hundredfold(x).sum()


def many_outputs(x):
    a, b = jnp.split(jnp.sort(jnp.concatenate([x, x * x])), 2)
    top, index = lax.top_k(a, 2)
    return a @ b + top.sum() + x[index[0]] + jnp.where(x > 0, x, 2 * x).max()


def drawn(x, key, weight):
    return (x * jax.random.normal(key, x.shape)).sum() * weight


def derived(x):
    return jnp.sum(jax.grad(lambda x: jax.nn.softmax(x)[0])(x) ** 2)


def images(kernel, x):
    y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = lax.reduce_window(jax.vmap(jax.nn.relu)(y), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jax.nn.log_softmax(y.reshape(2, -1)).mean() + y.max()


def empty(x, y):
    return lax.associative_scan(jnp.multiply, x).sum() + y.sum() * x[0]


_RNG = np.random.default_rng(0)
PROGRAMS = {
    f.__name__: (f, args)
    for f, *args in [
        (product, -2.0, 5.0, -4.0),
        (squared, W, X),
        (activations, X),
        (recurrent, {"W": W[:, :2], "u": W[:, 2]}, X),
        (backwards, X),
        (long_scan, X),
        (branched, X),
        (branched, -X),
        (stopped, X),
        (wrapped, X),
        (ruled, X),
        (many_outputs, X),
        (drawn, X, jax.random.key(3), 2),
        (derived, X),
        (empty, X, np.zeros((2, 0))),
        (images, _RNG.normal(size=(3, 3, 1, 4)), _RNG.normal(size=(2, 8, 8, 1))),
    ]
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def sent_back(graph, edge):
    adjoint = graph[edge.target].adjoint
    return edge.pull(adjoint) if isinstance(edge.local, Summary) else np.tensordot(adjoint, edge.local, adjoint.ndim)


@pytest.mark.parametrize("name", PROGRAMS)
def test_adjoints_of_arguments_are_the_gradient(name):
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


@pytest.mark.parametrize("name", PROGRAMS)
def test_node_and_edge_multiply_and_edges_add(name):
    f, args = PROGRAMS[name]
    graph = trace(f, *args)
    for node in graph.nodes:
        if node.adjoint is None or node.name == graph.output:
            continue
        edges = [edge for edge in graph.out_edges(node.name) if edge.local is not None]
        total = sum((sent_back(graph, edge) for edge in edges), np.zeros(node.value.shape))
        np.testing.assert_allclose(total, node.adjoint, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(sum((edge.flow for edge in edges), np.zeros(node.value.shape)), node.adjoint, rtol=1e-12, atol=1e-12)
        assert all(edge.local.shape == graph[edge.target].value.shape + node.value.shape for edge in edges)


@pytest.mark.parametrize("name", ["squared", "images", "activations"])
def test_norms_of_large_derivatives_are_those_of_the_jacobian(name, monkeypatch):
    f, args = PROGRAMS[name]
    whole = trace(f, *args)
    monkeypatch.setattr("diffprog.graph._derivatives._FULL", 0)
    for edge, full in zip(trace(f, *args).edges, whole.edges, strict=True):
        assert isinstance(edge.local, Summary)
        assert edge.local.shape == full.local.shape
        if isinstance(full.local, Summary):
            continue
        np.testing.assert_allclose(edge.local.norm, np.linalg.norm(full.local.ravel()), rtol=1e-12 if edge.local.exact else 0.3)


def test_estimated_norms_are_near(monkeypatch):
    x = np.linspace(-1, 1, 24).reshape(2, 12)
    exact = np.linalg.norm(trace(lambda x: jax.nn.softmax(x).sum(), x).edges[0].local.ravel())
    monkeypatch.setattr("diffprog.graph._derivatives._FULL", 0)
    monkeypatch.setattr("diffprog.graph._derivatives._COUNTED", 0)
    edge = trace(lambda x: jax.nn.softmax(x).sum(), x).edges[0]
    assert not edge.local.exact
    assert edge.local.norm == pytest.approx(exact, rel=0.3)
