"""Attributions against closed forms, against one another, and example by example."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp

vis = dp.visualization

KEY = jax.random.key(0)
X = jax.random.uniform(jax.random.key(1), (3, 6, 6, 2))
KERNEL = jax.random.normal(jax.random.key(2), (3, 3, 2, 4))
OUT = jax.random.normal(jax.random.key(3), (4, 5))


def network(x):
    """Convolution, relu, mean over positions, affine: the network that CAM was made for."""
    h = jax.lax.conv_general_dilated(
        x, KERNEL, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    h = dp.tap(jax.nn.relu(dp.tap(h, "pre")), "h")
    return dp.tap(h.mean((1, 2)), "mean") @ OUT


def linear(x):
    return x.reshape(len(x), -1) @ jnp.arange(72.0 * 2).reshape(72, 2)


METHODS = {
    "saliency": vis.saliency,
    "input_x_gradient": vis.input_x_gradient,
    "smooth_grad": lambda f, x, j, **at: vis.smooth_grad(f, x, j, key=KEY, samples=3, **at),
    "integrated_gradients": lambda f, x, j, **at: (
        vis.integrated_gradients(f, x, j, points=4, **at).attribution
    ),
    "guided_backprop": vis.guided_backprop,
    "grad_cam": lambda f, x, j: vis.grad_cam(f, x, j, "h"),
    "occlusion": lambda f, x, j: vis.occlusion(f, x, j, window=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_each_example_has_its_own_target_and_does_not_know_of_the_others(name):
    together = METHODS[name](network, X, jnp.array([4, 0, 2]))
    # The first alone: draws depend on the place in the batch.
    np.testing.assert_allclose(METHODS[name](network, X[:1], 4), together[:1], atol=1e-5)
    if name != "smooth_grad":
        np.testing.assert_allclose(METHODS[name](network, X[2:], 2), together[2:], atol=1e-5)


@pytest.mark.parametrize(
    "name", ["saliency", "input_x_gradient", "integrated_gradients", "smooth_grad"]
)
def test_of_a_linear_function_every_gradient_is_the_weight(name):
    weight = np.arange(144.0).reshape(72, 2)[:, 1].reshape(6, 6, 2)
    expected = (
        weight * np.asarray(X)
        if name in ("input_x_gradient", "integrated_gradients")
        else np.broadcast_to(weight, X.shape)
    )
    np.testing.assert_allclose(METHODS[name](linear, X, 1), expected, rtol=2e-5)


def test_saliency_is_jax_grad():
    expected = jax.grad(lambda x: network(x)[jnp.arange(3), jnp.array([1, 2, 3])].sum())(X)
    np.testing.assert_allclose(
        vis.saliency(network, X, jnp.array([1, 2, 3])), expected, rtol=1e-5, atol=1e-7
    )


def test_any_node_to_any_node():
    h = np.asarray(dp.nodes.read(network)(X)[1]["h"])
    found = vis.saliency(network, X, vis.unit("mean", 2), at="h")
    np.testing.assert_allclose(found, np.broadcast_to(np.eye(4)[2] / 36, h.shape), rtol=1e-6)
    np.testing.assert_allclose(
        vis.input_x_gradient(network, X, 3, at="mean"),
        h.mean((1, 2)) * np.asarray(OUT)[:, 3],
        rtol=1e-5,
    )


WEIGHTS = jax.random.normal(jax.random.key(4), (3, 5, 5))
ROWS = jax.random.normal(jax.random.key(5), (2, 5))


def chain(x):
    """Nodes "matmul:0" .. "matmul:2", and their taps of one name."""
    for weights in WEIGHTS:
        x = jnp.tanh(dp.tap(x @ weights, "h"))
    return x


@pytest.mark.slow
@pytest.mark.parametrize("name", ["matmul:{}", "h#{}"])
def test_names_are_those_of_the_program_as_it_is(name):
    """Not those of what is left of it once the node is given."""
    first, second, last = map(name.format, range(3))
    h = ROWS @ WEIGHTS[0]
    own = jax.vmap(jax.grad(lambda h: (jnp.tanh(h) @ WEIGHTS[1])[3]))(h)
    np.testing.assert_allclose(
        vis.saliency(chain, ROWS, vis.unit(second, 3), at=first), own, rtol=1e-5, atol=1e-6
    )
    through = jax.vmap(jax.grad(lambda h: (jnp.tanh(jnp.tanh(h) @ WEIGHTS[1]) @ WEIGHTS[2])[3]))(h)
    np.testing.assert_allclose(
        vis.saliency(chain, ROWS, vis.unit(last, 3), at=first), through, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(
        vis.saliency(chain, ROWS, vis.unit(second, 3), at=second), jax.nn.one_hot([3, 3], 5)
    )


@pytest.mark.parametrize("f", [chain, jax.jit(chain)])
def test_a_target_that_does_not_come_of_the_node_is_refused(f):
    with pytest.raises(
        ValueError,
        match="at must lie before the target, got 'matmul:2', on which 'matmul:0' does not depend",
    ):
        vis.saliency(f, ROWS, vis.unit("matmul:0", 3), at="matmul:2")
    beside = lambda x: dp.tap(x * 2, "beside") * (x > 0) * 0 + x @ WEIGHTS[0]
    with pytest.raises(ValueError, match="'matmul:0'"):
        vis.grad_cam(
            lambda x: beside(x).mean((1, 2)),
            X[..., :1] * jnp.ones(5),
            vis.unit("matmul:0", 3),
            "beside",
        )


def test_a_function_of_the_output_is_a_target():
    found = vis.saliency(network, X, lambda y: y[:, 1] - y[:, 3])
    np.testing.assert_allclose(
        found, vis.saliency(network, X, vis.logit(1) - vis.logit(3)), rtol=1e-5, atol=1e-7
    )


CHANNELS_FIRST = equinox.nn.Conv2d(2, 4, 3, padding=1, key=jax.random.key(6))


def of_equinox(x):
    return (
        jax.nn.relu(jax.vmap(CHANNELS_FIRST)(x.transpose(0, 3, 1, 2)))
        .transpose(0, 2, 3, 1)
        .mean((1, 2))
        @ OUT
    )


def test_a_node_has_its_images_first_and_its_units_last():
    h = (
        dp.nodes.read(of_equinox, ["conv:0"])(X)[1]["conv:0"].transpose(0, 2, 3, 1)
        + CHANNELS_FIRST.bias[:, 0, 0]
    )
    own = np.where(h > 0, np.asarray(OUT)[:, 3] / 36, 0)
    np.testing.assert_allclose(vis.saliency(of_equinox, X, 3, at="conv:0"), own, rtol=1e-5)
    cam = np.maximum(
        (own.mean((1, 2), keepdims=True) * (h - CHANNELS_FIRST.bias[:, 0, 0])).sum(-1), 0
    )
    np.testing.assert_allclose(vis.grad_cam(of_equinox, X, 3, "conv:0"), cam, rtol=1e-4, atol=1e-6)


def test_completeness_of_integrated_gradients():
    with jax.enable_x64(True):
        cubic = lambda x: (x.astype(float) ** 3).sum((1, 2))
        found = vis.integrated_gradients(cubic, X.astype(float), 0, baseline=0.5, points=2)
        np.testing.assert_allclose(found.gap, 0, atol=1e-12)
        np.testing.assert_allclose(
            found.attribution.sum((1, 2, 3)),
            (np.asarray(X, float)[..., 0] ** 3 - 0.125).sum((1, 2)),
            rtol=1e-10,
        )


def test_the_gap_says_what_is_missing():
    found = vis.integrated_gradients(lambda x: (x**6).sum((1, 2)), X, 0, points=1)
    whole = (np.asarray(X)[..., 0] ** 6).sum((1, 2))
    np.testing.assert_allclose(found.attribution.sum((1, 2, 3)) - found.gap, whole, rtol=1e-4)
    assert (np.abs(found.gap) > 0.1 * whole).all()


def test_grad_cam_is_cam():
    h = np.asarray(dp.nodes.read(network)(X)[1]["h"])
    cam = np.maximum(np.einsum("bpqc,c->bpq", h, np.asarray(OUT)[:, 3]), 0) / 36
    np.testing.assert_allclose(vis.grad_cam(network, X, 3, "h"), cam, rtol=1e-4, atol=1e-6)


def test_grad_cam_is_resized_to_the_image():
    pooled = lambda x: dp.tap(x.reshape(3, 2, 3, 2, 3, 2).mean((2, 4)), "small").mean((1, 2))
    assert vis.grad_cam(pooled, X, 0, "small").shape == (3, 6, 6)


def test_grad_cam_has_the_dtype_of_the_image():
    in_single = lambda x: dp.tap(x.astype(jnp.float32), "h").mean((1, 2))
    assert vis.grad_cam(in_single, X.astype(jnp.bfloat16), 0, "h").dtype == jnp.bfloat16


def test_guided_backprop_lets_only_positive_gradients_through():
    relu = lambda x: jax.nn.relu(x) @ jnp.array([[1.0], [-1.0]])
    np.testing.assert_array_equal(
        vis.guided_backprop(relu, jnp.array([[1.0, 1.0], [-1.0, 1.0]]), 0), [[1, 0], [0, 0]]
    )


def test_occlusion_of_a_sum_is_the_mean_over_windows_of_what_they_cover():
    x = X[:, :, :, :1]
    found = np.asarray(vis.occlusion(lambda x: x.sum((1, 2)), x, 0, window=(2, 2), stride=2))
    blocks = np.asarray(x)[..., 0].reshape(3, 3, 2, 3, 2).sum((2, 4))
    np.testing.assert_allclose(found, blocks.repeat(2, 1).repeat(2, 2), rtol=1e-4)


def test_a_window_is_an_integer_of_numpy_too():
    mean = lambda x: x.mean((1, 2))
    np.testing.assert_array_equal(
        vis.occlusion(mean, X, 0, window=np.int64(3)), vis.occlusion(mean, X, 0, window=3)
    )


@pytest.mark.slow
def test_smooth_grad_averages_over_its_own_noise():
    quadratic = lambda x: 0.5 * (x**2).sum((1, 2))[:, :1]
    exact = vis.smooth_grad(quadratic, X, 0, key=KEY, noise=0.0)[..., 0]
    np.testing.assert_allclose(exact, X[..., 0], rtol=1e-5)
    few, many = (
        vis.smooth_grad(quadratic, X, 0, key=KEY, noise=0.2, samples=n)[..., 0] - X[..., 0]
        for n in (4, 400)
    )
    # The mean of n draws is off by σ / sqrt(n).
    assert 5 < float(few.std() / many.std()) < 20


@pytest.mark.slow
@pytest.mark.parametrize("at", [None, "matmul:0"])
def test_other_weights_and_targets_compile_nothing(at):
    traces = []

    def of(weights):
        def f(x):
            traces.append(None)
            return x.reshape(len(x), -1) @ weights

        return f

    for seed in range(3):
        vis.saliency(
            of(jax.random.normal(jax.random.key(seed), (72, 5))), X, jnp.array([seed, 1, 2]), at=at
        )
        if seed == 0:
            first = len(traces)
    # One look at the shapes for each call; the gradient is traced once.
    assert len(traces) - first <= 2


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("x", "target", "error", "message"),
    [
        (X, 5, ValueError, "units 0 .. 4, got 5"),
        (X, jnp.array([0, 1]), ValueError, "target"),
        (X, -1, ValueError, "unit"),
        (X, 1.5, TypeError, "unit"),
        (X, vis.unit("nowhere", 0), ValueError, "nowhere"),
        (X.at[0].set(jnp.nan), 0, ValueError, "x"),
        (X[:0], 0, ValueError, "x"),
        (jnp.ones((3, 6, 6, 2), int), 0, TypeError, "x"),
    ],
)
def test_refuses(name, x, target, error, message):
    with pytest.raises(error, match=message):
        METHODS[name](network, x, target)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vis.saliency(network, X, 0, at="nowhere"), "nowhere"),
        (lambda: vis.smooth_grad(network, X, 0, key=KEY, samples=0), "samples"),
        (lambda: vis.smooth_grad(network, X, 0, key=KEY, noise=-1.0), "noise"),
        (lambda: vis.integrated_gradients(network, X, 0, points=0), "points"),
        (lambda: vis.integrated_gradients(network, X, 0, baseline=jnp.ones((7,))), "baseline"),
        (lambda: vis.integrated_gradients(network, X, 0, baseline=jnp.nan), "baseline"),
        (lambda: vis.grad_cam(network, X, 0, "mean"), "node"),
        (lambda: vis.grad_cam(network, X[0], 0, "h"), "x"),
        (lambda: vis.occlusion(network, X, 0, window=7), "window"),
        (lambda: vis.occlusion(network, X, 0, stride=0), "stride"),
        (lambda: vis.guided_backprop(linear, X, 0), "relu"),
        (lambda: vis.saliency(lambda x: (x, x), X, 0), "f must return an array, got a tuple of 2$"),
    ],
)
def test_refuses_options(call, message):
    with pytest.raises(ValueError, match=message):
        call()
