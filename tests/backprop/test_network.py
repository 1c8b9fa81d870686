"""Networks: gradients equal autodiff for any graph and nesting; invalid graphs are rejected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprog import backprop as bp
from diffprog import gradients, losses

LOSS = bp.sum_over_examples(bp.half_squared_error())
WIDTH = 3


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def sample_params(net, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape), jax.eval_shape(net.init, jax.random.key(0))
    )


def assert_close(got, want, tolerance=1e-12):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want
    )


def jit_unoptimized(f, *args):
    """Evaluate f(*args) jitted without optimizations."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})(*args)


def hand_written_and_autodiff(net, params, x, y):
    def both(params, x, y):
        cost = lambda params, x: losses.half_squared_error(net.forward(params, x)[0], y).sum()
        return bp.value_and_grads(net, LOSS, params, x, y)[:3], (
            cost(params, x),
            *jax.grad(cost, (0, 1))(params, x),
        )

    return jit_unoptimized(both, params, x, y)


LAYERS = {
    "affine": (lambda: bp.affine(WIDTH, WIDTH), 1),
    "tanh": (bp.tanh, 1),
    "softmax": (bp.softmax, 1),
    "layer_norm": (lambda: bp.layer_norm(WIDTH), 1),
    "add": (bp.add, 2),
    "multiply": (bp.multiply, 3),
}


@st.composite
def graphs(draw):
    """Sample a graph over two inputs; values without consumers are summed; nodes are shuffled."""
    nodes, names = {}, ["a", "b"]
    for k in range(draw(st.integers(1, 6))):
        make, arity = LAYERS[draw(st.sampled_from(sorted(LAYERS)))]
        nodes[f"n{k}"] = (make(), tuple(draw(st.sampled_from(names)) for _ in range(arity)))
        names.append(f"n{k}")
    consumed = {source for _, sources in nodes.values() for source in sources}
    nodes["sum"] = (bp.add(), tuple(name for name in names if name not in consumed))
    shuffled = draw(st.permutations(sorted(nodes)))
    return {name: nodes[name] for name in shuffled}


@given(graphs())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_gradient_of_any_graph_equals_autodiff(nodes):
    nodes = {
        name: node if len(node[1]) > 1 else (bp.tanh(), node[1]) if name == "sum" else node
        for name, node in nodes.items()
    }
    net = bp.dag(nodes, output="sum", inputs=("a", "b"))
    with jax.enable_x64(True):
        assert_close(
            *hand_written_and_autodiff(
                net,
                sample_params(net),
                (normal(4, WIDTH), normal(4, WIDTH, seed=5)),
                normal(4, WIDTH, seed=9),
            )
        )


@given(st.permutations(["h", "left", "right", "y"]))
@settings(max_examples=5, deadline=None, derandomize=True)
def test_the_order_of_the_dict_does_not_matter(order):
    nodes = {
        "h": (bp.affine(2, 2), "x"),
        "left": (bp.affine(2, 2), "h"),
        "right": (bp.affine(2, 2), ["h"]),
        "y": (bp.add(), ("left", "right")),
    }
    net, reordered = (
        bp.dag({name: nodes[name] for name in names}, output="y") for names in (nodes, order)
    )
    assert [part.name for part in net.parts] == [part.name for part in reordered.parts]
    assert_close(net.init(jax.random.key(0)), reordered.init(jax.random.key(0)), 0)


def diamond():
    """A layer in which h has several consumers."""
    nodes = {
        "h": (bp.tanh(), "x"),
        "left": (bp.affine(WIDTH, WIDTH), "h"),
        "product": (bp.multiply(), ("h", "left", "h")),
        "y": (bp.add(), ("product", "h")),
    }
    return bp.dag(nodes, output="y")


def test_layers_of_equal_shape_start_with_different_weights():
    first, second = bp.chain([bp.affine(3, 3), bp.affine(3, 3)]).init(jax.random.key(0))
    assert (first["weight"] != second["weight"]).all()
    nodes = {"a": (bp.affine(3, 3), "x"), "b": (bp.affine(3, 3), "a")}
    params = bp.dag(nodes, output="b").init(jax.random.key(0))
    assert (params["a"]["weight"] != params["b"]["weight"]).all()


def test_networks_nest():
    inner = diamond()
    net = bp.dag(
        {
            "first": (bp.chain([bp.affine(2, WIDTH), inner]), "x"),
            "again": (inner, "first"),
            "y": (bp.add(), ("first", "again")),
        },
        output="y",
    )
    with jax.enable_x64(True):
        params = sample_params(net)
        assert_close(*hand_written_and_autodiff(net, params, normal(4, 2), normal(4, WIDTH)))
    assert [part.name for part in net.parts] == ["first", "again", "y"]
    assert [part.name for part in net.parts[0].layer.parts] == ["affine1", "dag1"]
    assert set(params) == {"first", "again", "y"}
    assert isinstance(params["first"], tuple)


def test_fan_out_equals_the_copy_gate():
    weights = sample_params(bp.affine(WIDTH, WIDTH))
    fan_out = bp.dag(
        {"h": (bp.affine(WIDTH, WIDTH), "x"), "y": (bp.multiply(), ("h", "h"))}, output="y"
    )
    copied = bp.chain([bp.affine(WIDTH, WIDTH), bp.copy(2), bp.multiply()])
    x, y = normal(2, WIDTH), normal(2, WIDTH, seed=3)
    result = bp.value_and_grads(fan_out, LOSS, {"h": weights, "y": ()}, x, y)
    other = bp.value_and_grads(copied, LOSS, (weights, (), ()), x, y)
    assert_close(result.dparams["h"], other.dparams[0], 1e-5)
    assert_close(result.dx, other.dx, 1e-5)
    assert_close(
        other.adjoints["affine1"], other.adjoints["copy1"][0] + other.adjoints["copy1"][1], 1e-6
    )


def test_value_and_grads_returns_every_value_and_adjoint():
    net = bp.chain([bp.affine(2, WIDTH), bp.tanh(), bp.affine(WIDTH, 2)])
    with jax.enable_x64(True):
        params, x, y = sample_params(net), normal(4, 2), normal(4, 2, seed=2)
        result = bp.value_and_grads(net, LOSS, params, x, y)
        assert_close(result.value, losses.half_squared_error(result.values["affine2"], y).sum())
        assert_close(result.adjoints["affine2"], result.values["affine2"] - y)
        assert_close(result.adjoints["tanh1"], result.adjoints["affine2"] @ params[2]["weight"])
        assert_close(
            result.adjoints["affine1"], result.adjoints["tanh1"] * (1 - result.values["tanh1"] ** 2)
        )
        assert_close(result.adjoints["x"], result.dx)
        numerical = gradients.numerical(
            lambda params: losses.half_squared_error(net.forward(params, x)[0], y).sum()
        )(params)
        assert_close(result.dparams, numerical, 1e-8)
    assert list(result.values) == list(result.adjoints) == ["x", "affine1", "tanh1", "affine2"]


@pytest.mark.slow
def test_inputs_without_a_derivative_have_gradient_none():
    nodes = {
        "rows": (bp.embedding(5, WIDTH), "ids"),
        "dropped": (bp.dropout(0.5), ("rows", "key")),
        "again": (bp.dropout(0.5), ("dropped", "key")),
        "y": (bp.add(), ("again", "rows")),
    }
    net = bp.dag(nodes, output="y", inputs=("ids", "key"))
    x = (jnp.array([[1, 1], [0, 4]]), jax.random.key(3))
    params, y = net.init(jax.random.key(0)), jnp.ones((2, 2, WIDTH))
    result = bp.value_and_grads(net, LOSS, params, x, y)
    assert result.dx == (None, None)
    cost = lambda params: losses.half_squared_error(bp.differentiable(net)(params, x), y).sum()
    assert_close(result.dparams, jax.grad(cost)(params), 1e-6)
    plain = lambda params: losses.half_squared_error(net.forward(params, x)[0], y).sum()
    assert_close(result.dparams, jax.grad(plain)(params), 1e-5)


def test_a_node_consumed_as_integers_has_zero_gradient():
    rounded = bp.Layer(
        lambda key: {"scale": jnp.ones(())},
        lambda params, x: ((params["scale"] * x).astype(int), ()),
        lambda params, residuals, dy: ({"scale": dy.sum()}, dy),
    )
    net = bp.chain([rounded, bp.embedding(3, 2)])
    result = bp.value_and_grads(
        net, LOSS, net.init(jax.random.key(0)), jnp.array([0.0, 2.0]), jnp.ones((2, 2))
    )
    assert result.dparams[0] == {"scale": 0}
    assert result.dx is None
    assert result.dparams[1]["weight"].any()


@pytest.mark.slow
def test_the_gradient_compiles_to_no_more_flops_than_autodiff():
    net = bp.chain([bp.affine(16, 32), bp.relu(), bp.affine(32, 32), bp.relu(), bp.affine(32, 4)])
    loss = bp.mean_over_examples(bp.softmax_cross_entropy())
    params, x, y = net.init(jax.random.key(0)), jnp.ones((8, 16)), jnp.zeros(8, int)

    def plain(params, x, y):
        for layer in params:
            x = x @ layer["weight"].T + layer["bias"] if layer else jax.nn.relu(x)
        return losses.softmax_cross_entropy(x, y).mean()

    def flops(f):
        return jax.jit(f).lower(params, x, y).compile().cost_analysis()["flops"]

    ours = flops(lambda params, x, y: bp.value_and_grads(net, loss, params, x, y)[:2])
    assert ours <= 1.01 * flops(jax.value_and_grad(plain))


INVALID_NET = bp.chain([bp.affine(4, 3), bp.relu(), bp.affine(2, 1)])
VALID_NET = bp.chain([bp.affine(2, 1)])
ONE = ({"weight": jnp.ones((1, 2)), "bias": jnp.zeros(1)},)
X, Y = jnp.ones((5, 2)), jnp.ones((5, 1))
PAIR = bp.dag({"y": (bp.add(), ("a", "b"))}, output="y", inputs=("a", "b"))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bp.chain([]), ValueError, "layers must be a sequence of at least one Layer"),
        (lambda: bp.chain(bp.tanh), ValueError, "layers must be a sequence"),
        (lambda: bp.chain([bp.tanh]), TypeError, r"layers\[0\] must be a Layer, got function"),
        (lambda: bp.dag({}, output="y"), ValueError, "nodes must be a dict of at least one node"),
        (
            lambda: bp.dag({"y": bp.tanh()}, output="y"),
            TypeError,
            r"nodes\['y'\] must be a pair \(layer, sources\)",
        ),
        (
            lambda: bp.dag({"y": (jnp.tanh, "x")}, output="y"),
            TypeError,
            r"nodes\['y'\]\[0\] must be a Layer",
        ),
        (
            lambda: bp.dag({"y": (bp.add(), ())}, output="y"),
            ValueError,
            r"nodes\['y'\] must have at least one source",
        ),
        (
            lambda: bp.dag({"y": (bp.tanh(), "z")}, output="y"),
            ValueError,
            "a source of 'y' must be one of 'x', 'y', got 'z'",
        ),
        (
            lambda: bp.dag({"y": (bp.tanh(), "x")}, output="z"),
            ValueError,
            "output must be one of 'y', got 'z'",
        ),
        (
            lambda: bp.dag({"a": (bp.add(), ("x", "b")), "b": (bp.tanh(), "a")}, output="b"),
            ValueError,
            "nodes must not form a cycle, got (a -> b -> a|b -> a -> b)",
        ),
        (
            lambda: bp.dag({"y": (bp.tanh(), "y")}, output="y", inputs=()),
            ValueError,
            "inputs must be at least one name",
        ),
        (
            lambda: bp.dag({"x": (bp.tanh(), "x")}, output="x"),
            ValueError,
            "without duplicates and names of nodes",
        ),
        (
            lambda: bp.dag({"y": (bp.tanh(), "x"), "z": (bp.tanh(), "y")}, output="y"),
            ValueError,
            "the output 'y' must depend on every node and input, got unused 'z'",
        ),
        (
            lambda: bp.dag({"y": (bp.tanh(), "x")}, output="y", inputs=("x", "t")),
            ValueError,
            "got unused 't'",
        ),
        (
            lambda: INVALID_NET.forward(INVALID_NET.init(jax.random.key(0)), jnp.ones((5, 4))),
            ValueError,
            r"'affine2' \(affine\(2, 1\)\) does not fit its input 'relu1' \(relu\) = "
            r"float32\[5, 3\]: x must have shape \(batch, 2\) for this affine layer, got \[5, 3\]",
        ),
        (
            lambda: INVALID_NET.forward(INVALID_NET.init(jax.random.key(0)), jnp.ones((5, 3))),
            ValueError,
            r"'affine1' .* input 'x' = float32\[5, 3\]",
        ),
        (
            lambda: PAIR.forward({"y": ()}, (X, Y)),
            ValueError,
            r"'y' \(add\) does not fit its input 'a' = float32\[5, 2\], 'b' = ",
        ),
        (
            lambda: PAIR.forward({"y": ()}, X),
            ValueError,
            "x must be a tuple of 2 entries, a, b, got ArrayImpl",
        ),
        (
            lambda: PAIR.forward({"y": ()}, (X,)),
            ValueError,
            "x must be a tuple of 2 entries, a, b, got 1 entries",
        ),
        (
            lambda: PAIR.forward({"z": ()}, (X, X)),
            ValueError,
            "with entries for y, got 1 entries",
        ),
        (
            lambda: VALID_NET.forward((), X),
            ValueError,
            r"what chain\(1 layers\).init returns, with entries for affine1, got 0 entries",
        ),
        (lambda: VALID_NET.forward(3, X), ValueError, "got int"),
        (
            lambda: bp.value_and_grads(bp.tanh(), LOSS, (), X, X),
            TypeError,
            "net must be made by chain or dag, got the plain layer tanh",
        ),
        (lambda: bp.value_and_grads(jnp.tanh, LOSS, (), X, X), TypeError, "net must be a Layer"),
        (
            lambda: bp.value_and_grads(VALID_NET, losses.softmax_kl, ONE, X, Y),
            TypeError,
            "loss must be a Layer, got function",
        ),
        (
            lambda: bp.value_and_grads(VALID_NET, bp.half_squared_error(), ONE, X, Y),
            ValueError,
            r"loss must return one float scalar, got float32\[5\]; sum or average",
        ),
        (
            lambda: bp.value_and_grads(VALID_NET, LOSS, ONE, X.at[1, 1].set(jnp.nan), Y),
            ValueError,
            "x must be finite",
        ),
        (
            lambda: bp.value_and_grads(VALID_NET, LOSS, ONE, X, Y * jnp.inf),
            ValueError,
            "y must be finite",
        ),
        (
            lambda: bp.value_and_grads(
                VALID_NET, LOSS, ({"weight": jnp.full((1, 2), jnp.nan)},), X, Y
            ),
            ValueError,
            "params.*must be finite",
        ),
        (lambda: bp.value_and_grads(VALID_NET, LOSS, ONE, X, X), ValueError, "shapes must agree"),
    ],
)
def test_invalid_arguments_are_rejected(make, error, message):
    with pytest.raises(error, match=message):
        make()
