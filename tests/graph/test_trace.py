"""Traces have the nodes, names, values and adjoints of each kind of program."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import diffprog as dp
from diffprog import tap
from diffprog.graph import trace
from tests.graph.programs import PARAMS, X, hundredfold, product, recurrent

pytestmark = pytest.mark.usefixtures("float64")


def node_names(graph):
    return [node.name for node in graph.nodes]


def ops(graph):
    return [node.op for node in graph.nodes if node.op not in ("argument", "constant")]


def test_sum_times_factor_of_the_lecture():
    graph = trace(product, -2.0, 5.0, -4.0)
    found = {node.name: (node.value.item(), node.adjoint.item()) for node in graph.nodes}
    assert found == {"x": (-2, -4), "y": (5, -4), "z": (-4, 3), "add": (3, -4), "mul": (-12, 1)}
    edges = {(edge.source, edge.target): (edge.slot, edge.local.item()) for edge in graph.edges}
    assert edges == {
        ("x", "add"): (0, 1),
        ("y", "add"): (1, 1),
        ("add", "mul"): (0, -4),
        ("z", "mul"): (1, 3),
    }


def test_squared_norm_of_the_lecture():
    graph = trace(
        lambda W, x: jnp.sum((W @ x) ** 2),
        np.array([[0.1, 0.5], [-0.3, 0.8]]),
        np.array([0.2, 0.4]),
    )
    np.testing.assert_allclose(graph["matmul"].value, [0.22, 0.26])
    np.testing.assert_allclose(graph["matmul"].adjoint, [0.44, 0.52])
    np.testing.assert_allclose(graph["W"].adjoint, [[0.088, 0.176], [0.104, 0.208]])
    np.testing.assert_allclose(graph["x"].adjoint, [-0.112, 0.636])


def test_a_square_has_two_edges():
    graph = trace(lambda x: x * x, 3.0)
    assert [(edge.slot, edge.local.item()) for edge in graph.edges] == [(0, 3.0), (1, 3.0)]


def test_jit_and_remat_are_inlined():
    assert ops(
        trace(lambda x: jax.jit(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))))(x).sum(), X)
    ) == ["sin", "sin", "reduce_sum"]


@pytest.mark.parametrize(("x", "taken", "other"), [(X, "sin", "cos"), (-X, "cos", "sin")])
def test_only_the_branch_taken_is_shown(x, taken, other):
    found = ops(
        trace(
            lambda x: lax.cond(x[0] > 0, lambda x: jnp.sin(x).sum(), lambda x: jnp.cos(x).sum(), x),
            x,
        )
    )
    assert taken in found
    assert other not in found


def test_short_scans_are_unrolled_with_numbered_taps():
    graph = trace(recurrent, PARAMS, X)
    assert [name for name in node_names(graph) if name.startswith("h")] == ["h#0", "h#1", "h#2"]
    assert [graph[f"h#{k}"].scope for k in range(3)] == ["step 0", "step 1", "step 2"]
    assert "scan" not in ops(graph)


def test_long_scans_are_one_node_by_default():
    def f(x):
        return lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=40)[0]

    assert ops(trace(f, 0.5)) == ["scan"]
    assert ops(trace(f, 0.5, unroll=40)) == ["sin"] * 40


def test_while_loops_are_unrolled():
    graph = trace(
        lambda x: lax.while_loop(lambda c: c[0] < 10, lambda c: (c[0] * 2, c[1] + 1), (x, 0))[0],
        0.7,
    )
    assert graph["x"].adjoint == 16
    assert ops(graph) == ["mul"] * 4


def test_endless_while_loops_are_refused(monkeypatch):
    monkeypatch.setattr("diffprog.graph._flatten._MAX_WHILE_STEPS", 20)
    with pytest.raises(ValueError, match="must stop"):
        trace(lambda x: lax.while_loop(lambda c: c > 0, lambda c: c + 1, x), 1.0)


def test_custom_derivatives_are_boxes_with_their_rule():
    graph = trace(lambda x: (hundredfold(x) * jax.nn.relu(x - x)).sum(), X)
    (box,) = [node for node in graph.nodes if node.op == "hundredfold"]
    assert box.kind == "rule"
    (edge,) = graph.in_edges(box.name)
    np.testing.assert_array_equal(edge.local, 100 * np.eye(3))
    (edge,) = graph.in_edges("relu")
    np.testing.assert_array_equal(
        edge.local, np.zeros((3, 3))
    )  # relu'(0) is 0 by its rule and 1/2 without


def test_expanded_custom_derivatives_show_their_body():
    graph = trace(lambda x: hundredfold(x), 0.5, expand="hundredfold")
    assert ops(graph) == ["sin"]
    np.testing.assert_allclose(graph["x"].adjoint, np.cos(0.5))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "softmax",
        "log_softmax",
        "gelu",
        "silu",
        "softplus",
        "logsumexp",
        "relu",
        "elu",
        "sigmoid",
        "leaky_relu",
    ],
)
def test_functions_of_jax_nn_are_boxes(name):
    f = getattr(jax.nn, name)
    graph = trace(lambda x: f(f(x)).sum() if name != "logsumexp" else f(x), X)
    found = [node for node in graph.nodes if node.name.split(":")[0] == name]
    assert len(found) == (1 if name == "logsumexp" else 2)
    assert len(graph.nodes) <= len(found) + 2


def test_repeated_calls_of_jax_nn_are_separate_boxes():
    def f(x):
        for _ in range(3):
            x = jax.nn.softmax(x)
        return jax.jit(jax.vmap(jax.nn.softmax))(jnp.stack([x, x])).sum()

    assert ops(trace(f, X)).count("softmax") == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "gelu", "silu"])
def test_derivatives_taken_by_f_are_shown_as_primitives(name):
    def f(x):
        return jax.grad(lambda x: getattr(jax.nn, name)(x)[0])(x) @ jnp.arange(3.0)

    graph = trace(f, X)
    assert {"exp", "tanh", "logistic"} & set(ops(graph))
    np.testing.assert_allclose(graph["x"].adjoint, jax.grad(f)(X), rtol=1e-12)


def test_expand_shows_the_body_of_boxes():
    graph = trace(lambda x: jax.nn.softmax(x)[0] + jax.nn.silu(x)[1], X, expand=["softmax", "silu"])
    assert {"exp", "div", "stop_gradient"} <= set(ops(graph))
    assert "softmax" not in ops(graph)
    assert "silu" not in ops(graph)
    np.testing.assert_allclose(
        graph["x"].adjoint,
        trace(lambda x: jax.nn.softmax(x)[0] + jax.nn.silu(x)[1], X)["x"].adjoint,
        rtol=1e-12,
    )


def test_stop_gradient_is_a_cut():
    graph = trace(lambda x: lax.stop_gradient(x) * x, 3.0)
    cut, whole = graph.edges[0], graph.edges[2]
    assert (cut.cut, cut.local.item(), graph["stop_gradient"].adjoint.item()) == (True, 0, 3)
    assert (whole.source, whole.cut, graph["x"].adjoint.item()) == ("x", False, 3)


def test_a_cut_stops_infinite_derivatives():
    graph = trace(lambda x: lax.stop_gradient(jnp.sqrt(x)) + x, 0.0)
    assert np.isinf(graph.in_edges("sqrt")[0].local)
    assert graph["x"].adjoint == 1


def test_integers_and_keys_have_no_adjoint():
    graph = trace(
        lambda x, key, weight: (x * jax.random.normal(key, x.shape)).sum() * weight,
        X,
        jax.random.key(3),
        2,
    )
    assert graph["key"].adjoint is None
    assert graph["weight"].adjoint is None
    assert graph["x"].adjoint is not None
    assert all(edge.local is None and edge.flow is None for edge in graph.out_edges("key"))


def test_arguments_keep_their_names_and_operations_are_numbered():
    def f(add, max, sine):
        return tap(jnp.sin(jnp.maximum(add + max, 0.0) * add), "sine") + sine

    graph = trace(f, 0.3, 0.4, 0.5)
    assert node_names(graph) == ["add", "max", "sine", "add:0", "max:0", "mul", "sine#0", "add:1"]
    np.testing.assert_allclose(
        [graph[name].adjoint for name in ("add", "max", "sine")],
        jax.grad(f, (0, 1, 2))(0.3, 0.4, 0.5),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        sum(path.derivative for path in graph.paths("add", "sine#0")),
        graph["add"].adjoint,
        rtol=1e-12,
    )


def test_taps_keep_their_name_and_operations_are_numbered():
    assert node_names(trace(lambda x: tap(jnp.sin(x), "mul") * x, 0.3)) == ["x", "mul", "mul:0"]


def test_taps_are_numbered_as_in_nodes():
    def f(x):
        y = tap(tap(x, "a") * 2, "b")
        tap(jnp.cos(x), "a")  # unused
        return tap(tap(y + 1, "b"), "a") + tap(tap(x, "c"), "d")

    graph = trace(f, 0.3)
    found = {node.name: node.value for node in graph.nodes if node.tap}
    read = dp.nodes.read(f)(0.3)[1]
    assert list(found) == ["a#0", "b#0", "b#1", "a#2", "c", "d"]
    assert found.keys() == read.keys() - {"a#1"}
    for name, value in found.items():
        np.testing.assert_allclose(value, read[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mul", "add", "reduce_sum", "relu", "dot_general"])
def test_user_functions_called_like_primitives_have_their_own_norm(name, monkeypatch):
    monkeypatch.setattr("diffprog.graph._reverse_pass._MAX_STORED", 0)

    def body(x):
        return jnp.sin(x).sum() * x

    body.__name__ = name
    ruled = jax.custom_vjp(body)
    ruled.defvjp(lambda x: jax.vjp(body, x), lambda pull, g: pull(g))
    graph = trace(lambda x: ruled(tap(x, name)) @ jnp.arange(3.0), X)
    (edge,) = [edge for edge in graph.edges if graph[edge.target].kind == "rule"]
    np.testing.assert_allclose(
        edge.local.norm, np.linalg.norm(jax.jacobian(body)(jnp.asarray(X))), rtol=1e-12
    )
    np.testing.assert_allclose(
        graph["x"].adjoint, jax.grad(lambda x: body(x) @ jnp.arange(3.0))(X), rtol=1e-12
    )


def test_norms_and_paths_keep_64_bits():
    graph = trace(
        lambda W, x: jax.nn.softmax(jnp.tanh(W @ x)).max(),
        np.ones((40, 50)) / 50,
        np.linspace(0, 1, 50),
    )
    within = (graph.edges[0].local.norm, sum(path.derivative for path in graph.paths("W")))
    again = trace(
        lambda W, x: jax.nn.softmax(jnp.tanh(W @ x)).max(),
        np.ones((40, 50)) / 50,
        np.linspace(0, 1, 50),
    )
    with jax.enable_x64(False):
        np.testing.assert_array_equal(again.edges[0].local.norm, within[0])
        np.testing.assert_array_equal(sum(path.derivative for path in again.paths("W")), within[1])


def test_names_are_argument_paths_taps_and_closure_variables():
    weight, unnamed = jnp.arange(3.0), np.arange(2.0)

    def f(params, *rest):
        return (tap(params["w"][0] * weight, "h") * rest[0]).sum() + (
            rest[1] * jnp.asarray(unnamed)
        ).sum()

    graph = trace(f, {"w": [X]}, X, 2.0)
    assert {"params['w'][0]", "rest[0]", "rest[1]", "h", "weight", "unnamed"} <= set(
        node_names(graph)
    )
    assert graph["h"].op == "mul"
    assert graph["weight"].op == "constant"
    np.testing.assert_allclose(graph["weight"].adjoint, X * X)


@pytest.mark.slow
def test_programs_modules_and_partials_can_be_traced():
    model = dp.models.mlp((3, 4, 2), activation="tanh")
    program = dp.program(model.apply, model.init(jax.random.key(0)))
    graph = trace(lambda x: program(x).sum(), X[None])
    np.testing.assert_allclose(
        graph["x"].adjoint, jax.grad(lambda x: program(x).sum())(jnp.asarray(X)[None]), rtol=1e-12
    )
    assert len([node for node in graph.nodes if node.op == "constant"]) == 4
    assert trace(jax.tree_util.Partial(lambda w, x: (w * x).sum(), jnp.asarray(X)), jnp.asarray(X))[
        "x"
    ].adjoint.shape == (3,)


def test_unused_operations_are_left_out_and_arguments_kept():
    def f(x, y):
        jnp.exp(x)
        return x * 2

    graph = trace(f, 1.0, np.ones(2))
    assert node_names(graph) == ["x", "y", "mul"]
    np.testing.assert_array_equal(graph["y"].adjoint, np.zeros(2))


def test_output_may_be_an_argument_or_a_constant():
    assert trace(lambda x: x, 2.0)["x"].adjoint == 1
    graph = trace(lambda x: jnp.float64(7.0), 2.0)
    assert (graph.output, graph["x"].adjoint.item()) == ("constant", 0)


def test_bfloat16_and_float32_keep_their_dtype():
    for dtype in (jnp.bfloat16, jnp.float32):
        graph = trace(lambda x: (x * 2).sum(), jnp.ones(3, dtype))
        for node in (graph["x"], graph["mul"], graph[graph.output]):
            assert node.value.dtype == node.adjoint.dtype == np.dtype(dtype)


def mlp(params, x, y):
    for weight, bias in params[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = params[-1]
    return -(jax.nn.log_softmax(x @ weight + bias) * jax.nn.one_hot(y, 10)).sum(-1).mean()


def chain(x):
    for k in range(250):
        x = jnp.sin(x) * (1 + 0.001 * k)
    return x.sum()


# Processor time, because the machine may be shared.
@pytest.mark.slow
def test_tracing_is_fast():
    with jax.enable_x64(False):
        keys = jax.random.split(jax.random.key(0), 3)
        shapes = [(784, 1024), (1024, 1024), (1024, 10)]
        params = [
            (0.03 * jax.random.normal(key, shape), jnp.zeros(shape[1]))
            for key, shape in zip(keys, shapes, strict=True)
        ]
        x, y = jax.random.normal(keys[0], (256, 784)), jnp.arange(256) % 10
        assert process_seconds(mlp, params, x, y) < 4
        assert min(process_seconds(mlp, params, x, y) for _ in range(3)) < 0.4
        assert process_seconds(chain, jnp.ones(8)) < 10


def process_seconds(f, *args):
    start = time.process_time()
    trace(f, *args)
    return time.process_time() - start


@pytest.mark.slow
def test_layers_and_networks_are_boxes_of_their_name():
    net = dp.backprop.chain([dp.backprop.affine(3, 2), dp.backprop.relu()])
    f, params = dp.backprop.differentiable(net), net.init(jax.random.key(0))
    cost = lambda params, x: f(params, x).sum()
    assert "chain(2 layers)" in node_names(trace(cost, params, jnp.ones((2, 3))))
    assert "matmul" in node_names(trace(cost, params, jnp.ones((2, 3)), expand="chain(2 layers)"))


def test_weak_type_conversions_are_no_operation():
    last = lambda w: lax.scan(lambda h, x: (w * h + x, None), 0.0, jnp.ones(2, jnp.float32))[0]
    with jax.enable_x64(False):
        assert "convert_element_type" not in [node.op for node in trace(last, 0.3).nodes]
    assert "convert_element_type" in [
        node.op for node in trace(lambda x: x.astype(jnp.float16), jnp.float32(0.3)).nodes
    ]
