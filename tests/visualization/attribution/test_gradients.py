"""Gradient attributions against closed forms."""

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
    """Convolution, relu, mean over positions, affine: the network for which CAM was defined."""
    h = jax.lax.conv_general_dilated(
        x, KERNEL, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    h = dp.tap(jax.nn.relu(dp.tap(h, "pre")), "h")
    return dp.tap(h.mean((1, 2)), "mean") @ OUT


def linear(x):
    return x.reshape(len(x), -1) @ jnp.arange(72.0 * 2).reshape(72, 2)


@pytest.mark.parametrize(
    ("method", "times_input"),
    [
        (vis.saliency, False),
        (vis.input_x_gradient, True),
        (lambda f, x, j: vis.smooth_grad(f, x, j, key=KEY, samples=3), False),
        (lambda f, x, j: vis.integrated_gradients(f, x, j, points=4).attribution, True),
    ],
    ids=["saliency", "input_x_gradient", "smooth_grad", "integrated_gradients"],
)
def test_attribution_of_a_linear_function_is_its_weight(method, times_input):
    weight = np.arange(144.0).reshape(72, 2)[:, 1].reshape(6, 6, 2)
    expected = weight * (np.asarray(X) if times_input else np.ones_like(X))
    np.testing.assert_allclose(method(linear, X, 1), expected, rtol=2e-5)


def test_saliency_is_jax_grad():
    expected = jax.grad(lambda x: network(x)[jnp.arange(3), jnp.array([1, 2, 3])].sum())(X)
    np.testing.assert_allclose(
        vis.saliency(network, X, jnp.array([1, 2, 3])), expected, rtol=1e-5, atol=1e-7
    )


def test_integrated_gradients_are_complete():
    with jax.enable_x64(True):
        cubic = lambda x: (x.astype(float) ** 3).sum((1, 2))
        result = vis.integrated_gradients(cubic, X.astype(float), 0, baseline=0.5, points=2)
        assert result.attribution.dtype == "float64"
        np.testing.assert_allclose(result.gap, 0, atol=1e-12)
        np.testing.assert_allclose(
            result.attribution.sum((1, 2, 3)),
            (np.asarray(X, float)[..., 0] ** 3 - 0.125).sum((1, 2)),
            rtol=1e-10,
        )


def test_the_completeness_gap_is_the_error_of_the_quadrature():
    result = vis.integrated_gradients(lambda x: (x**6).sum((1, 2)), X, 0, points=1)
    score = (np.asarray(X)[..., 0] ** 6).sum((1, 2))
    np.testing.assert_allclose(result.attribution.sum((1, 2, 3)) - result.gap, score, rtol=1e-4)
    assert (np.abs(result.gap) > 0.1 * score).all()


def test_grad_cam_is_cam():
    h = np.asarray(dp.nodes.read(network)(X)[1]["h"])
    cam = np.maximum(np.einsum("bpqc,c->bpq", h, np.asarray(OUT)[:, 3]), 0) / 36
    np.testing.assert_allclose(vis.grad_cam(network, X, 3, "h"), cam, rtol=1e-4, atol=1e-6)


def test_grad_cam_is_resized_to_the_image():
    pooled = lambda x: dp.tap(x.reshape(3, 2, 3, 2, 3, 2).mean((2, 4)), "small").mean((1, 2))
    assert vis.grad_cam(pooled, X, 0, "small").shape == (3, 6, 6)


def test_grad_cam_has_the_dtype_of_the_image():
    in_float32 = lambda x: dp.tap(x.astype(jnp.float32), "h").mean((1, 2))
    assert vis.grad_cam(in_float32, X.astype(jnp.bfloat16), 0, "h").dtype == jnp.bfloat16


def test_guided_backprop_passes_on_positive_gradients_only():
    relu = lambda x: jax.nn.relu(x) @ jnp.array([[1.0], [-1.0]])
    np.testing.assert_array_equal(
        vis.guided_backprop(relu, jnp.array([[1.0, 1.0], [-1.0, 1.0]]), 0), [[1, 0], [0, 0]]
    )


@pytest.mark.slow
def test_smooth_grad_averages_over_its_noise():
    quadratic = lambda x: 0.5 * (x**2).sum((1, 2))[:, :1]
    noiseless = vis.smooth_grad(quadratic, X, 0, key=KEY, noise=0.0)[..., 0]
    np.testing.assert_allclose(noiseless, X[..., 0], rtol=1e-5)
    few, many = (
        vis.smooth_grad(quadratic, X, 0, key=KEY, noise=0.2, samples=n)[..., 0] - X[..., 0]
        for n in (4, 400)
    )
    # The standard error of the mean of n samples is σ / sqrt(n).
    assert 5 < float(few.std() / many.std()) < 20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vis.smooth_grad(network, X, 0, key=KEY, samples=0), "samples"),
        (lambda: vis.smooth_grad(network, X, 0, key=KEY, noise=-1.0), "noise"),
        (lambda: vis.integrated_gradients(network, X, 0, points=0), "points"),
        (lambda: vis.integrated_gradients(network, X, 0, baseline=jnp.ones((7,))), "baseline"),
        (lambda: vis.integrated_gradients(network, X, 0, baseline=jnp.nan), "baseline"),
        (lambda: vis.grad_cam(network, X, 0, "mean"), "node must have shape"),
        (lambda: vis.grad_cam(network, X[0], 0, "h"), "x must have rank 4"),
        (lambda: vis.guided_backprop(linear, X, 0), "f has no relu"),
    ],
)
def test_bad_options_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
