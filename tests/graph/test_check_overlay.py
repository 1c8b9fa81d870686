"""A report of a check, drawn: the edges whose hand-written derivative is wrong, and no others."""

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


def grad_of(name):
    return lambda x, y, z: {"right": (z, z, x + y), "wrong": (z, -z, x + y)}[name]


def test_a_wrong_hand_written_derivative_marks_its_edges():
    args, f = (jnp.float64(-2.0), jnp.float64(5.0), jnp.float64(-4.0)), product
    report = checked(f, grad_of("wrong"), args)
    graph = trace(f, *args, against=report)
    assert [(edge.source, edge.target) for edge in graph.edges if edge.wrong] == [("y", "add")]
    assert "wrong" in graph.out_edges("y")[0].wrong
    assert not any(
        edge.wrong for edge in trace(f, *args, against=checked(f, grad_of("right"), args)).edges
    )


def checked(f, grad_f, args):
    return check_grad(f, grad_f, *args, key=jax.random.key(0), argnums=(0, 1, 2))


def test_a_finding_of_a_layer_marks_what_enters_its_scope():
    def f(params, x):
        with jax.named_scope("affine1"):
            x = params["affine1"]["weight"] @ x + params["affine1"]["bias"]
        with jax.named_scope("tanh1"):
            return jnp.tanh(x).sum()

    def marked(layer, path):
        report = Report(
            (
                Finding(path, "wrong", (0,), 1.0, 2.0, 1.0, 1e-9, layer=layer),
                Finding("x", "ok", (), 1.0, 1.0, 0.0, 1e-9),
            )
        )
        graph = trace(f, {"affine1": {"weight": W, "bias": np.ones(2)}}, X, against=report)
        return [(edge.source, edge.target) for edge in graph.edges if edge.wrong]

    assert marked("affine1", "params['weight']") == [("params['affine1']['weight']", "matmul")]
    assert marked("affine1", "x") == [("x", "matmul")]
    assert marked("tanh1", "x") == [("add", "tanh")]
    with pytest.raises(ValueError, match="conv7"):
        marked("conv7", "x")
    with pytest.raises(TypeError, match="against must be a report"):
        trace(f, {"affine1": {"weight": W, "bias": np.ones(2)}}, X, against=3)


def red(f, *args, against):
    return [
        (edge.source, edge.target) for edge in trace(f, *args, against=against).edges if edge.wrong
    ]


def doubled(layer, leaf):
    """The layer with twice the derivative of one leaf of its parameters, or of its input."""

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
    """By the leaf that is wrong."""
    with jax.enable_x64(True):
        return {
            leaf: check_layer(doubled(LAYER, leaf), theta, INPUTS, key=jax.random.key(0))
            for leaf in ("weight", "x")
        }


@pytest.mark.slow
def test_arguments_may_have_other_names_and_another_order(reports, theta):
    assert red(loss, theta, INPUTS, against=reports["weight"]) == [("theta['weight']", "transpose")]
    assert red(loss, theta, INPUTS, against=reports["x"]) == [("inputs", "matmul")]
    assert red(lambda u, v: loss(v, u), INPUTS, theta, against=reports["x"]) == [("u", "matmul")]


def test_parameters_may_lie_deeper(reports, theta):
    assert red(
        lambda p, x: loss(p["first"], x), {"first": theta}, INPUTS, against=reports["weight"]
    ) == [("p['first']['weight']", "transpose")]


@pytest.mark.parametrize("leaf", ["weight", "x"])
def test_what_could_be_two_arguments_is_refused_with_the_names(reports, theta, leaf):
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
def test_a_net_is_marked_where_its_layers_are_wrong(leaf, expected):
    first = bp.affine(3, 3) if leaf == "weight" else doubled(bp.affine(3, 3), leaf)
    net = bp.chain([first, bp.tanh(), doubled(LAYER, leaf)])
    params = net.init(jax.random.key(0))
    report = check_net(net, params, INPUTS, key=jax.random.key(0))
    assert (
        red(lambda t, i: (net.forward(t, i)[0] ** 2).sum(), params, INPUTS, against=report)
        == expected
    )
    with pytest.raises(ValueError, match="has the scopes chain\\(3 layers\\); expand opens a box"):
        trace(
            lambda t, i: (bp.differentiable(net)(t, i) ** 2).sum(), params, INPUTS, against=report
        )


def test_arguments_called_like_operations_are_found():
    def f(add, max):
        return (add + max) * add

    report = check_grad(f, lambda add, max: 1.0, 2.0, 3.0, key=jax.random.key(0))
    assert red(f, 2.0, 3.0, against=report) == [("add", "add:0"), ("add", "mul")]
