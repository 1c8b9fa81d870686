"""Target slicing: what is read, and its gradient, are those of the whole node, for a fraction of its operations."""

import functools

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax

from diffprog import backprop, models, nodes, tap
from diffprog.program import program
from diffprog.visualization._read_units import Request, read_units
from diffprog.visualization.attribution._relu_rules import guided, with_rectifier

UNITS = 32
IMAGES = np.cos(np.arange(3 * 6 * 6 * 4) ** 1.3).reshape(3, 6, 6, 4)
WANTED = jnp.asarray([31, 0, 17])
KERNEL = np.sin(np.arange(3 * 3 * 4 * UNITS) * 1.7).reshape(3, 3, 4, UNITS) / 3
BIAS = np.sin(np.arange(UNITS) * 0.9) / 2
SQUARE = np.cos(np.arange(UNITS**2) * 1.1).reshape(UNITS, UNITS) / 6


@pytest.fixture(autouse=True)
def _in_double_precision():
    with jax.enable_x64(True):
        yield


def conv(x, kernel=KERNEL, strides=(1, 1), padding="SAME", layout=("NHWC", "HWIO", "NHWC"), **more):
    return lax.conv_general_dilated(
        x, jnp.asarray(kernel), strides, padding, dimension_numbers=layout, **more
    )


def biased(x):
    return conv(x) + jnp.asarray(BIAS)


def normalised(x):
    return (biased(x) - 0.1 * BIAS) * lax.rsqrt(jnp.asarray(BIAS**2 + 1e-3)) * 2 + BIAS[::-1]


def residual(x):
    wide = jnp.concatenate([x] * (UNITS // 4), -1)
    return jax.nn.relu(biased(x) + wide)


def gated(x):
    return biased(x) * jax.nn.sigmoid(x.mean(-1, keepdims=True))


def channels_first(x):
    z = conv(x.transpose(0, 3, 1, 2), layout=("NCHW", "HWIO", "NCHW")) + BIAS[:, None, None]
    return jax.nn.relu(z).transpose(0, 2, 3, 1)


EQUINOX = jax.tree.map(
    lambda leaf: np.asarray(leaf, np.float64) if equinox.is_array(leaf) else leaf,
    (
        equinox.nn.Conv2d(4, UNITS, 3, key=jax.random.key(0)),
        equinox.nn.Linear(144, UNITS, key=jax.random.key(1)),
    ),
)


def of_equinox(x):
    return jax.vmap(lambda x: jax.nn.gelu(EQUINOX[0](x)))(x.transpose(0, 3, 1, 2)).transpose(
        0, 2, 3, 1
    )


def hand_written(layer, x, **params):
    return backprop.differentiable(layer)(jax.tree.map(jnp.asarray, params) or (), x)


def of_hand_written(layer=None, **params):
    def f(x):
        z = hand_written(backprop.convolution(4, UNITS), x, weight=KERNEL, bias=BIAS)
        return z if layer is None else hand_written(layer, z, **params)

    return f


@jax.custom_vjp
def quantised(z):
    return jnp.round(4 * z) / 4


quantised.defvjp(lambda z: (quantised(z), z), lambda z, dy: (dy * (jnp.abs(z) < 1),))


SLICED = {
    "bias": biased,
    "strides": lambda x: conv(x, strides=(2, 1), padding="VALID"),
    "dilation": lambda x: conv(x, rhs_dilation=(2, 1), padding=[(1, 3), (2, 0)]),
    "cut": lambda x: conv(x, padding=[(-1, 1), (1, -1)]),
    "one pixel": lambda x: conv(x, KERNEL[:1, :1]),
    "one axis": lambda x: conv(x.reshape(3, 36, 4), KERNEL[1], (1,), layout=("NHC", "HIO", "NHC")),
    "relu": lambda x: jax.nn.relu(biased(x)),
    "tanh": lambda x: jnp.tanh(biased(x)),
    "gelu": lambda x: jax.nn.gelu(biased(x)),
    "silu": lambda x: jax.nn.silu(biased(x)),
    "elu": lambda x: jax.nn.elu(biased(x)),
    "leaky relu": lambda x: jax.nn.leaky_relu(biased(x)),
    "softplus": lambda x: jax.nn.softplus(biased(x)),
    "where": lambda x: jnp.where(biased(x) > 0, biased(x), 0),
    "batch norm": normalised,
    "own rule": lambda x: quantised(biased(x)),
    "jit": jax.jit(lambda x: jax.jit(jax.nn.relu)(jax.jit(biased)(x))),
    "residual": residual,
    "gate": gated,
    "max pooling": lambda x: linen.max_pool(jax.nn.relu(biased(x)), (2, 2), (2, 2)),
    "overlapping pooling": lambda x: linen.max_pool(jax.nn.relu(biased(x)), (3, 3), (2, 2), "SAME"),
    "average pooling": lambda x: linen.avg_pool(biased(x), (2, 2), (2, 2)),
    "global pooling": lambda x: jax.nn.relu(biased(x)).mean((1, 2)),
    "channels first": channels_first,
    "equinox": of_equinox,
    "linear of equinox": lambda x: jax.vmap(EQUINOX[1])(x.reshape(3, -1)),
    "convolution layer": of_hand_written(),
    "relu layer": of_hand_written(backprop.relu(at_zero=1)),
    "sigmoid layer": of_hand_written(backprop.sigmoid()),
    "max pooling layer": of_hand_written(backprop.max_pool()),
    "average pooling layer": of_hand_written(backprop.average_pool()),
    "affine layer": lambda x: hand_written(
        backprop.affine(144, UNITS),
        x.reshape(3, -1),
        weight=KERNEL.reshape(UNITS, -1)[:, :36].repeat(4, 1),
        bias=BIAS,
    ),
    "dense": lambda x: x.reshape(3, -1) @ jnp.asarray(KERNEL.reshape(-1, UNITS).repeat(4, 0)),
    "tokens": lambda x: jnp.tanh(x.reshape(3, 36, 4) @ jnp.asarray(KERNEL[0, 0])),
    "rows of weights": lambda x: (
        (jnp.asarray(KERNEL.reshape(UNITS, -1)[:, :4]) @ x.reshape(3, -1)[:, :4].T).T
    ),
}
WHOLE = {
    "groups": lambda x: conv(x, KERNEL[:, :, :2], feature_group_count=2),
    "softmax": lambda x: jax.nn.softmax(biased(x)),
    "layer norm": lambda x: (
        (biased(x) - biased(x).mean(-1, keepdims=True)) / biased(x).std(-1, keepdims=True)
    ),
    "norm of the batch": of_hand_written(backprop.batch_norm(UNITS), scale=1 + BIAS, shift=BIAS),
    "mixed": lambda x: biased(x) @ jnp.asarray(SQUARE) * biased(x)[..., ::-1],
    "flat": lambda x: biased(x)[:, :2, :2].reshape(3, -1),
    "scan": lambda x: lax.scan(lambda z, _: (jnp.sin(z), None), biased(x), None, length=2)[0],
    "branch": lambda x: lax.cond(x.sum() > -1e9, biased, lambda x: 2 * biased(x), x),
    "remat": jax.checkpoint(lambda x: jax.nn.relu(biased(x))),
    "one channel": lambda x: biased(x)[..., :1] * BIAS,
    "few channels": lambda x: conv(x, KERNEL[..., :3]),
    "images themselves": lambda x: jnp.tanh(x),
    "made of nothing": lambda x: (
        lax.broadcasted_iota(x.dtype, (3, UNITS), 1) * x.mean((1, 2, 3))[:, None]
    ),
    "made of nothing, and more": lambda x: (
        lax.broadcasted_iota(x.dtype, (3, 6, 6, UNITS), 3) * biased(x)
    ),
}


OFTEN = (
    "strides",
    "dilation",
    "own rule",
    "batch norm",
    "jit",
    "residual",
    "equinox",
    "sigmoid layer",
    "max pooling layer",
    "tokens",
)
OFTEN += (
    "linear of equinox",
    "max pooling",
    "softmax",
    "norm of the batch",
    "scan",
    "made of nothing, and more",
)


def compiled(f, units, reading):
    """The value of a reading, its gradient with respect to the images, and the number of operations."""

    def cost(x, units):
        value = reading(lambda x: tap(f(x), "h"), x, units)
        return jnp.vdot(jnp.sin(1 + jnp.arange(value.size)), value.ravel()), value

    run = (
        jax.jit(jax.value_and_grad(cost, has_aux=True)).lower(jnp.asarray(IMAGES), units).compile()
    )
    (_, value), gradient = run(jnp.asarray(IMAGES), units)
    return value, gradient, run.cost_analysis()["flops"]


def sliced(f, x, units):
    return read_units(f, [Request("h", units)])(x)[1][0]


def unsliced(f, x, units):
    return read_units(f, [Request("h", units)], slicing=False)(x)[1][0]


def by_hand(f, x, units):
    return jax.vmap(lambda h, unit: h[..., unit])(nodes.read(f, ["h"])(x)[1]["h"], units)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow)
        for name in [*SLICED, *WHOLE]
    ],
)
def test_the_channels_wanted_are_those_of_the_whole(name):
    f = SLICED.get(name) or WHOLE[name]
    units = WANTED % jax.eval_shape(f, jnp.asarray(IMAGES)).shape[-1]
    value, gradient, operations = compiled(f, units, sliced)
    expected, expected_gradient, all_operations = compiled(f, units, by_hand)
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-12)
    assert name in WHOLE or operations < all_operations / 2


@pytest.mark.parametrize("channels", [1, 4])
def test_without_slicing_the_channel_is_picked(channels):
    f = lambda x: jnp.tanh(x)[..., :channels]
    for got, want in zip(
        compiled(f, WANTED % channels, unsliced)[:2],
        compiled(f, WANTED % channels, by_hand)[:2],
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


def test_a_rule_around_a_convolution_is_kept():
    """Feedback alignment: dJ/dx through another matrix than W."""

    @jax.custom_vjp
    def layer(x):
        return biased(x)

    layer.defvjp(lambda x: (layer(x), x), lambda x, dz: (dz[..., :4] * 3,))
    f = lambda x: jax.nn.relu(layer(x))
    for got, want in zip(
        compiled(f, WANTED, sliced)[:2], compiled(f, WANTED, by_hand)[:2], strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at_zero", [0.0, 1.0])
def test_the_slope_at_a_kink_is_that_of_the_rule(at_zero):
    """Where the derivative of what a hand-written relu computes is a half."""
    f = lambda x: hand_written(backprop.relu(at_zero=at_zero), x @ jnp.eye(4))
    units = jnp.asarray([1, 2])
    slope = jax.grad(lambda x: sliced(lambda x: tap(f(x), "h"), x, units).sum())(jnp.zeros((2, 4)))
    np.testing.assert_array_equal(slope, at_zero * jax.nn.one_hot(units, 4))


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


@pytest.mark.parametrize(("node", "axis"), [("conv:0", 1), ("matmul:0", 0)])
def test_units_of_operations_are_where_the_framework_has_them(node, axis):
    def f(x):
        z = jax.vmap(EQUINOX[0])(x.transpose(0, 3, 1, 2))
        return jax.vmap(EQUINOX[1])(z[:, :9].reshape(3, -1))

    def moved(f, x, units):
        return jnp.moveaxis(nodes.read(f, [node])(x)[1][node], axis, -1)

    def reading(f, x, units):
        return read_units(f, [Request(node, units)])(x)[1][0]

    value, gradient, operations = compiled(f, WANTED, reading)
    whole = lambda f, x, units: jax.vmap(lambda h, unit: h[..., unit])(moved(f, x, units), units)
    expected, expected_gradient, all_operations = compiled(f, WANTED, whole)
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-12)
    assert operations < all_operations
    read = read_units(f, [Request(node)])(jnp.asarray(IMAGES))[1][0]
    np.testing.assert_allclose(read, moved(f, jnp.asarray(IMAGES), None), rtol=1e-12)


PHOTOS = np.cos(np.arange(4 * 8 * 8 * 3.0)).reshape(4, 8, 8, 3)


def test_several_requests_on_several_nodes_of_a_model():
    f, one, other = network(), jnp.asarray([0, 5, 2, 7]), jnp.asarray([7, 7, 0, 1])
    whole, values = nodes.read(f, ["conv2", "conv:1", "hidden3"])(PHOTOS)
    requests = [
        Request("conv2", one),
        Request("conv2", other),
        Request("conv:1", one),
        Request("hidden3"),
        Request(None, one),
        Request(None),
    ]
    out, got = read_units(f, requests)(PHOTOS)
    pick = jax.vmap(lambda h, u: h[..., u])
    want = [
        pick(values["conv2"], one),
        pick(values["conv2"], other),
        pick(values["conv:1"], one),
        values["hidden3"],
        pick(whole, one),
        whole,
    ]
    for a, b in zip([out, *got], [whole, *want], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_it_runs_in_a_loop_under_vmap_and_is_compiled_once():
    f, traces = network(), []

    def ascend(x, units):
        traces.append(1)
        cost = lambda x: read_units(f, [Request("hidden2", units)])(x)[1][0].mean((1, 2)).sum()
        return lax.scan(lambda x, _: (x + jax.grad(cost)(x), cost(x)), x, None, length=3)[1]

    run, units = jax.jit(ascend), jnp.asarray([0, 5, 2, 7])
    costs = run(PHOTOS, units)
    assert jnp.all(jnp.diff(costs) > 0)
    together = jax.vmap(ascend, (None, 0))(PHOTOS, jnp.stack([units, 15 - units]))
    np.testing.assert_allclose(together, [costs, run(PHOTOS, 15 - units)], rtol=1e-5)
    assert len(traces) == 2


def test_second_derivatives_are_those_of_the_whole():
    def products(slicing):
        cost = lambda x: jnp.sin(measured_by(x, slicing)).sum()
        return jax.jit(jax.grad(lambda x: jnp.vdot(jax.grad(cost)(x), jnp.cos(x))))(
            jnp.asarray(IMAGES)
        )

    def measured_by(x, slicing):
        f = lambda x: backprop.differentiable(backprop.tanh())((), jax.nn.softplus(biased(x)))
        return read_units(f, [Request(None, WANTED)], slicing=slicing)(x)[1][0]

    np.testing.assert_allclose(products(True), products(False), rtol=1e-11, atol=1e-12)


def test_infinities_of_other_channels_stay_out():
    f = lambda x: tap(jnp.log(jnp.abs(x @ jnp.eye(4)) * jnp.asarray([1.0, 0, 0, 0])), "h")
    x, units = 1 + jnp.arange(12.0).reshape(3, 4), jnp.zeros(3, int)
    np.testing.assert_allclose(unsliced(f, x, units), jnp.log(x[:, 0]))
    np.testing.assert_allclose(
        jax.grad(lambda x: sliced(f, x, units).sum())(x), jax.nn.one_hot(units, 4) / x[:, :1]
    )


def test_a_changed_rectifier_is_sliced_with_its_rule():
    f = with_rectifier(lambda x: tap(jax.nn.relu(biased(x)), "h"), guided)

    def gradient(slicing):
        return jax.grad(
            lambda x: jnp.sin(
                9 * read_units(f, [Request("h", WANTED)], slicing=slicing)(x)[1][0]
            ).sum()
        )(jnp.asarray(IMAGES))

    np.testing.assert_allclose(gradient(True), gradient(False), rtol=1e-4, atol=1e-4)


def test_a_node_in_a_loop_is_read_whole():
    f = lambda x: lax.scan(lambda z, _: (tap(jnp.sin(z), "h"), None), x, None, length=2)[0]
    np.testing.assert_allclose(
        read_units(f, [Request("h")])(PHOTOS)[1][0],
        [np.sin(PHOTOS), np.sin(np.sin(PHOTOS))],
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("requests", "error", "said"),
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
def test_bad_requests_are_refused(requests, error, said):
    with pytest.raises(error, match=said):
        read_units(network(), requests)(PHOTOS)


def test_bad_programs_are_refused():
    units = jnp.zeros(4, int)
    with pytest.raises(TypeError, match="callable"):
        read_units(3, [Request(None)])
    with pytest.raises(TypeError, match="slicing"):
        read_units(network(), [Request(None)], slicing=1)
    for f, came in {
        lambda x: {"a": x}: "dict",
        lambda x: x.sum((1, 2, 3)): "\\[4\\]",
        lambda x: x.sum(0): "\\[8, 8, 3\\]",
    }.items():
        with pytest.raises(ValueError, match=came):
            read_units(f, [Request(None, units)])(PHOTOS)
        with pytest.raises(ValueError, match=came):
            jax.jit(lambda units, f=f: read_units(f, [Request(None, units)])(PHOTOS))(units)
