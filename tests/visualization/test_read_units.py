"""Reading whole nodes and single units: values and gradients, for any layout of a framework."""

import functools

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from diffprog import backprop, models, nodes, tap
from diffprog.program import program
from diffprog.visualization import Request, guided, read_units, with_rectifier

IMAGES = np.cos(np.arange(3 * 6 * 6 * 4) ** 1.3).reshape(3, 6, 6, 4)
UNITS = jnp.asarray([31, 0, 17])
KERNEL = np.sin(np.arange(3 * 3 * 4 * 32) * 1.7).reshape(3, 3, 4, 32) / 3
BIAS = np.sin(np.arange(32) * 0.9) / 2


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def convolution(x, layout=("NHWC", "HWIO", "NHWC")):
    return lax.conv_general_dilated(
        x, jnp.asarray(KERNEL), (1, 1), "SAME", dimension_numbers=layout
    )


def biased(x):
    return convolution(x) + jnp.asarray(BIAS)


def hand_written(x):
    params = {"weight": jnp.asarray(KERNEL), "bias": jnp.asarray(BIAS)}
    z = backprop.differentiable(backprop.convolution(4, 32))(params, x)
    return backprop.differentiable(backprop.max_pool())((), z)


@jax.custom_vjp
def quantize(z):
    return jnp.round(4 * z) / 4


quantize.defvjp(lambda z: (quantize(z), z), lambda z, dy: (dy * (jnp.abs(z) < 1),))

CONV, LINEAR = jax.tree.map(
    lambda leaf: np.asarray(leaf, np.float64) if equinox.is_array(leaf) else leaf,
    (
        equinox.nn.Conv2d(4, 32, 3, key=jax.random.key(0)),
        equinox.nn.Linear(144, 32, key=jax.random.key(1)),
    ),
)

PROGRAMS = {
    "convolution": biased,
    "channels first": lambda x: convolution(
        x.transpose(0, 3, 1, 2), ("NCHW", "HWIO", "NCHW")
    ).transpose(0, 2, 3, 1),
    "custom rule": lambda x: quantize(biased(x)),
    "guided relu": with_rectifier(lambda x: jax.nn.relu(biased(x)), guided),
    "jit": jax.jit(lambda x: jax.jit(jax.nn.relu)(jax.jit(biased)(x))),
    "hand-written layers": hand_written,
    "scan": lambda x: lax.scan(lambda z, _: (jnp.sin(z), None), biased(x), None, length=2)[0],
    "cond": lambda x: lax.cond(x.sum() > -1e9, biased, lambda x: 2 * biased(x), x),
    "remat": jax.checkpoint(lambda x: jax.nn.relu(biased(x))),
    "one unit": lambda x: x[..., :1],
    "vector": lambda x: jax.vmap(LINEAR)(x.reshape(3, -1)),
}


def value_and_gradient(read, units):
    """Return what `read(x, units)` reads, and the gradient of a function of it."""

    def cost(x):
        value = read(x, units)
        return jnp.vdot(jnp.sin(1 + jnp.arange(value.size)), value.ravel()), value

    (_, value), gradient = jax.jit(jax.value_and_grad(cost, has_aux=True))(jnp.asarray(IMAGES))
    return value, gradient


def assert_same(read, reference, units):
    for got, expected in zip(
        value_and_gradient(read, units), value_and_gradient(reference, units), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


select = jax.vmap(lambda h, unit: h[..., unit])


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_taps_have_the_value_and_gradient_of_nodes_read(name):
    f = lambda x: tap(PROGRAMS[name](x), "h")
    units = UNITS % jax.eval_shape(f, jnp.asarray(IMAGES)).shape[-1]
    assert_same(
        lambda x, units: read_units(f, [Request("h", units)])(x)[1][0],
        lambda x, units: select(nodes.read(f, ["h"])(x)[1]["h"], units),
        units,
    )


@pytest.mark.parametrize(("node", "axis"), [("conv:0", 1), ("matmul:0", 0)])
def test_operations_are_transposed_to_units_last(node, axis):
    def f(x):
        z = jax.vmap(CONV)(x.transpose(0, 3, 1, 2))
        return jax.vmap(LINEAR)(z[:, :9].reshape(3, -1))

    transposed = lambda x: jnp.moveaxis(nodes.read(f, [node])(x)[1][node], axis, -1)
    assert_same(
        lambda x, units: read_units(f, [Request(node, units)])(x)[1][0],
        lambda x, units: select(transposed(x), units),
        UNITS,
    )
    whole = read_units(f, [Request(node)])(jnp.asarray(IMAGES))[1][0]
    np.testing.assert_allclose(whole, transposed(jnp.asarray(IMAGES)), rtol=1e-12)


def test_infinite_values_of_other_units_do_not_matter():
    f = lambda x: tap(jnp.log(jnp.abs(x) * jnp.asarray([1.0, 0, 0, 0])), "h")
    x = 1 + jnp.arange(12.0).reshape(3, 4)
    (value,) = read_units(f, [Request("h", jnp.zeros(3, int))])(x)[1]
    np.testing.assert_allclose(value, jnp.log(x[:, 0]))


@functools.cache
def network():
    model = models.cnn((8, 8, 3), channels=(8, 16), hidden=(12,))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return program(
        model.apply,
        jax.tree.map(
            lambda leaf: np.sin(np.arange(leaf.size) ** 1.1).reshape(leaf.shape) / 3, shapes
        ),
    )


PHOTOS = np.cos(np.arange(4 * 8 * 8 * 3.0)).reshape(4, 8, 8, 3)


def test_reads_several_units_and_whole_nodes():
    f, units, others = network(), jnp.asarray([0, 5, 2, 7]), jnp.asarray([7, 7, 0, 1])
    whole, values = nodes.read(f, ["conv2", "conv:1", "hidden3"])(PHOTOS)
    expected = [
        (Request("conv2", units), select(values["conv2"], units)),
        (Request("conv2", others), select(values["conv2"], others)),
        (Request("conv:1", units), select(values["conv:1"], units)),
        (Request("hidden3"), values["hidden3"]),
        (Request(None, units), select(whole, units)),
        (Request(None), whole),
    ]
    output, got = read_units(f, [request for request, _ in expected])(PHOTOS)
    np.testing.assert_allclose(output, whole, rtol=1e-5, atol=1e-6)
    for value, (_, reference) in zip(got, expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-6)


def test_works_in_a_loop_and_under_vmap_and_compiles_once():
    f, traces = network(), []

    def ascend(x, units):
        traces.append(1)
        cost = lambda x: read_units(f, [Request("hidden2", units)])(x)[1][0].mean((1, 2)).sum()
        return lax.scan(lambda x, _: (x + jax.grad(cost)(x), cost(x)), x, None, length=3)[1]

    run, units = jax.jit(ascend), jnp.asarray([0, 5, 2, 7])
    costs = run(PHOTOS, units)
    assert jnp.all(jnp.diff(costs) > 0)
    batch = jax.vmap(ascend, (None, 0))(PHOTOS, jnp.stack([units, 15 - units]))
    np.testing.assert_allclose(batch, [costs, run(PHOTOS, 15 - units)], rtol=1e-5)
    assert len(traces) == 2


def test_a_node_in_a_loop_is_stacked():
    f = lambda x: lax.scan(lambda z, _: (tap(jnp.sin(z), "h"), None), x, None, length=2)[0]
    np.testing.assert_allclose(
        read_units(f, [Request("h")])(PHOTOS)[1][0],
        [np.sin(PHOTOS), np.sin(np.sin(PHOTOS))],
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("requests", "error", "message"),
    [
        (None, TypeError, "requests"),
        (["conv2"], TypeError, "sequence of Request"),
        ([Request(3, None)], TypeError, "node must be a string"),
        ([Request("conv2", 3)], TypeError, "shape \\(batch,\\)"),
        ([Request("conv2", jnp.ones(4))], TypeError, "integers"),
        ([Request("conv2", jnp.zeros(3, int))], ValueError, "one for each of the images"),
        ([Request("conv2", jnp.asarray([0, 1, 2, 16]))], ValueError, "0 .. 15"),
        ([Request("conv2", jnp.asarray([0, 1, -1, 2]))], ValueError, "0 .. 15"),
        ([Request(None, jnp.asarray([0, 1, 2, 10]))], ValueError, "0 .. 9"),
        ([Request("conv9", jnp.zeros(4, int))], ValueError, "'conv1'"),
        ([Request("conv9")], ValueError, "'conv1'"),
    ],
)
def test_rejects_bad_requests(requests, error, message):
    with pytest.raises(error, match=message):
        read_units(network(), requests)(PHOTOS)


def test_rejects_bad_programs():
    units = jnp.zeros(4, int)
    with pytest.raises(TypeError, match="callable"):
        read_units(3, [Request(None)])
    for f, message in {
        lambda x: {"a": x}: "dict",
        lambda x: x.sum((1, 2, 3)): "\\[4\\]",
        lambda x: x.sum(0): "\\[8, 8, 3\\]",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_units(f, [Request(None, units)])(PHOTOS)
        with pytest.raises(ValueError, match=message):
            jax.jit(lambda units, f=f: read_units(f, [Request(None, units)])(PHOTOS))(units)
