"""Exactly the edges with a wrong hand-written derivative are marked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import backprop as bp
from diffprog.checks import Finding, Report, check_grad, check_layer, check_net
from diffprog.graph import trace
from tests.graph.programs import W, X, product

pytestmark = pytest.mark.usefixtures("float64")

LAYER = bp.affine(3, 2)
INPUTS = np.linspace(-1, 1, 12).reshape(4, 3)


def test_a_wrong_hand_written_derivative_marks_its_edges():
    args = (jnp.float64(-2.0), jnp.float64(5.0), jnp.float64(-4.0))
    correct = lambda x, y, z: (z, z, x + y)
    wrong = lambda x, y, z: (z, -z, x + y)
    options = {"key": jax.random.key(0), "argnums": (0, 1, 2)}
    report = check_grad(product, wrong, *args, **options)
    graph = trace(product, *args, against=report)
    assert wrong_edges(product, *args, against=report) == [("y", "add")]
    assert "wrong" in graph.out_edges("y")[0].wrong
    report = check_grad(product, correct, *args, **options)
    assert wrong_edges(product, *args, against=report) == []


def test_a_finding_of_a_layer_marks_edges_into_its_scope():
    def f(params, x):
        with jax.named_scope("affine1"):
            x = params["affine1"]["weight"] @ x + params["affine1"]["bias"]
        with jax.named_scope("tanh1"):
            return jnp.tanh(x).sum()

    params = {"affine1": {"weight": W, "bias": np.ones(2)}}

    def marked(layer, path):
        report = Report(
            (
                Finding(path, "wrong", (0,), 1.0, 2.0, 1.0, 1e-9, layer=layer),
                Finding("x", "ok", (), 1.0, 1.0, 0.0, 1e-9),
            )
        )
        return wrong_edges(f, params, X, against=report)

    assert marked("affine1", "params['weight']") == [("params['affine1']['weight']", "matmul")]
    assert marked("affine1", "x") == [("x", "matmul")]
    assert marked("tanh1", "x") == [("add", "tanh")]
    with pytest.raises(ValueError, match="conv7"):
        marked("conv7", "x")
    with pytest.raises(TypeError, match="against must be a report"):
        trace(f, params, X, against=3)


def wrong_edges(f, *args, against):
    return [
        (edge.source, edge.target) for edge in trace(f, *args, against=against).edges if edge.wrong
    ]


def doubled(layer, leaf):
    """Return the layer with twice the derivative of one parameter or of its input."""

    def backward(params, residuals, dy):
        dparams, dx = layer.backward(params, residuals, dy)
        return (dparams, 2 * dx) if leaf == "x" else ({**dparams, leaf: 2 * dparams[leaf]}, dx)

    return layer._replace(backward=backward)


def loss(theta, inputs):
    return (LAYER.forward(theta, inputs)[0] ** 2).sum()


@pytest.fixture(scope="module")
def theta():
    with jax.enable_x64(True):
        return LAYER.init(jax.random.key(0))


@pytest.fixture(scope="module")
def reports(theta):
    """Reports of a layer, by the leaf with a wrong derivative."""
    with jax.enable_x64(True):
        return {
            leaf: check_layer(doubled(LAYER, leaf), theta, INPUTS, key=jax.random.key(0))
            for leaf in ("weight", "x")
        }


@pytest.mark.slow
def test_arguments_may_have_other_names_and_another_order(reports, theta):
    assert wrong_edges(loss, theta, INPUTS, against=reports["weight"]) == [
        ("theta['weight']", "transpose")
    ]
    assert wrong_edges(loss, theta, INPUTS, against=reports["x"]) == [("inputs", "matmul")]
    assert wrong_edges(lambda u, v: loss(v, u), INPUTS, theta, against=reports["x"]) == [
        ("u", "matmul")
    ]


def test_parameters_may_be_nested_deeper(reports, theta):
    assert wrong_edges(
        lambda p, x: loss(p["first"], x), {"first": theta}, INPUTS, against=reports["weight"]
    ) == [("p['first']['weight']", "transpose")]


@pytest.mark.parametrize("leaf", ["weight", "x"])
def test_ambiguous_arguments_are_refused(reports, theta, leaf):
    f = lambda one, two, a, b: loss(one, a) + loss(two, b)
    with pytest.raises(
        ValueError, match="the check calls the arguments params, x, f calls them one, two, a, b"
    ):
        trace(f, theta, theta, INPUTS, INPUTS, against=reports[leaf])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        ("weight", [("t[2]['weight']", "transpose:1")]),
        ("x", [("i", "matmul:0"), ("tanh", "matmul:1")]),
    ],
)
def test_a_network_is_marked_in_its_wrong_layers(leaf, expected):
    first = bp.affine(3, 3) if leaf == "weight" else doubled(bp.affine(3, 3), leaf)
    net = bp.chain([first, bp.tanh(), doubled(LAYER, leaf)])
    params = net.init(jax.random.key(0))
    report = check_net(net, params, INPUTS, key=jax.random.key(0))
    assert (
        wrong_edges(lambda t, i: (net.forward(t, i)[0] ** 2).sum(), params, INPUTS, against=report)
        == expected
    )
    with pytest.raises(ValueError, match="has the scopes chain\\(3 layers\\); expand opens a box"):
        trace(
            lambda t, i: (bp.differentiable(net)(t, i) ** 2).sum(), params, INPUTS, against=report
        )


def test_arguments_may_be_called_like_operations():
    def f(add, max):
        return (add + max) * add

    report = check_grad(f, lambda add, max: 1.0, 2.0, 3.0, key=jax.random.key(0))
    assert wrong_edges(f, 2.0, 3.0, against=report) == [("add", "add:0"), ("add", "mul")]
