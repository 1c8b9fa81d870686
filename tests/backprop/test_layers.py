"""Every layer: its hand-written backward equals autodiff of its forward, in value, under a second derivative, jit and vmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import backprop as bp

IMAGE = (3, 7, 6, 2)
LAYERS = {
    "affine": (bp.affine(4, 3), (5, 4)),
    "affine without bias": (bp.affine(4, 3, bias=False), (5, 4)),
    "sigmoid": (bp.sigmoid(), (5, 4)),
    "tanh": (bp.tanh(), (5, 4)),
    "relu": (bp.relu(), (5, 4)),
    "leaky_relu": (bp.leaky_relu(), (5, 4)),
    "elu": (bp.elu(0.7), (5, 4)),
    "softmax": (bp.softmax(), (5, 4)),
    "maxout": (bp.maxout(4, 3, pieces=3), (5, 4)),
    "flatten": (bp.flatten(), IMAGE),
    "max_pool": (bp.max_pool(2), IMAGE),
    "max_pool of 3": (bp.max_pool(3), IMAGE),
    "average_pool": (bp.average_pool(2), IMAGE),
    "convolution 1 stride 2": (bp.convolution(2, 3, 1, stride=2), IMAGE),
    "convolution 2": (bp.convolution(2, 3, 2), IMAGE),
    "convolution 3": (bp.convolution(2, 3, 3), IMAGE),
    "convolution 3 stride 2": (bp.convolution(2, 3, 3, stride=2), IMAGE),
    "convolution 2 stride 3 valid": (bp.convolution(2, 3, 2, stride=3, padding="VALID"), IMAGE),
    "convolution 3 stride 3 valid": (bp.convolution(2, 3, 3, stride=3, padding="VALID"), IMAGE),
}
every_layer = pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)


def problem(layer, shape):
    """Params, input and cotangent of one layer, in float64."""
    keys = jax.random.split(jax.random.key(3), 3)
    params = jax.tree.map(lambda leaf: leaf.astype(float), layer.init(keys[0]))
    x = jax.random.normal(keys[1], shape, float)
    return params, x, jax.random.normal(keys[2], layer.forward(params, x)[0].shape, float)


def automatic(layer, params, x, dy):
    return jax.vjp(lambda params, x: layer.forward(params, x)[0], params, x)[1](dy)


def close(got, want, tolerance=1e-12):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), got, want)


@every_layer
def test_backward_equals_autodiff_of_forward(layer, shape):
    with jax.enable_x64(True):
        params, x, dy = problem(layer, shape)
        by_hand = layer.backward(params, layer.forward(params, x)[1], dy)
        close(by_hand, automatic(layer, params, x, dy))


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_convolution_gradients_have_the_shapes_of_their_variables(window, stride, padding):
    layer, x = bp.convolution(2, 3, window, stride=stride, padding=padding), jnp.ones((2, 9, 8, 2))
    params = layer.init(jax.random.key(0))
    dparams, dx = jax.eval_shape(lambda: layer.backward(params, x, layer.forward(params, x)[0]))
    assert jax.tree.map(jnp.shape, (dparams, dx)) == jax.tree.map(jnp.shape, (params, x))


@every_layer
def test_differentiable_is_exact_to_second_order(layer, shape):
    with jax.enable_x64(True):
        params, x, dy = problem(layer, shape)

        def bend(f):
            squared = lambda params, x: (dy * f(params, x) ** 2).sum()  # noqa: E731
            gradient = jax.grad(squared, (0, 1))
            inner = lambda params, x: sum(jax.tree.leaves(jax.tree.map(lambda leaf: (leaf**3).sum(), gradient(params, x))))  # noqa: E731
            return jax.jit(jax.grad(inner, (0, 1)))(params, x)

        close(bend(bp.differentiable(layer)), bend(lambda params, x: layer.forward(params, x)[0]), 1e-9)


@every_layer
def test_batched_by_vmap_equals_looped(layer, shape):
    params = layer.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (2, *shape))
    gradient = jax.grad(lambda params, x: (bp.differentiable(layer)(params, x) ** 2).sum(), (0, 1))
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[gradient(params, x) for x in xs])
    close(jax.vmap(gradient, (None, 0))(params, xs), looped, 1e-4)


@every_layer
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_keeps_the_dtype(layer, shape, dtype):
    with jax.enable_x64(False):
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), layer.init(jax.random.key(0)))
        x = jnp.ones(shape, dtype)
        y, residuals = jax.eval_shape(layer.forward, params, x)
        gradients = jax.eval_shape(layer.backward, params, residuals, y)
    assert {leaf.dtype for leaf in jax.tree.leaves((y, gradients))} == {jnp.dtype(dtype)}


def test_max_pool_shares_the_gradient_on_a_tie():
    dx = jax.grad(lambda x: bp.differentiable(bp.max_pool())((), x).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(dx, 0.25)


@pytest.mark.parametrize("at_zero", [0.0, 0.5, 1.0])
def test_relu_at_zero_is_the_asked_subgradient(at_zero):
    dx = jax.grad(lambda x: bp.differentiable(bp.relu(at_zero=at_zero))((), x).sum())(jnp.array([[-1.0, 0.0, 1.0]]))
    np.testing.assert_array_equal(dx, [[0, at_zero, 1]])


def test_kinks_follow_jax_nn():
    for layer, function in ((bp.relu(), jax.nn.relu), (bp.leaky_relu(), jax.nn.leaky_relu), (bp.elu(), jax.nn.elu)):
        ours = jax.grad(lambda x, layer=layer: bp.differentiable(layer)((), x)[0])(jnp.zeros(1))
        np.testing.assert_array_equal(ours, jax.grad(lambda x, function=function: function(x)[0])(jnp.zeros(1)))


def test_elu_far_below_zero_has_a_finite_gradient():
    dx = jax.grad(lambda x: bp.differentiable(bp.elu())((), x).sum())(jnp.array([[-1e4, 1e4]]))
    np.testing.assert_array_equal(dx, [[0, 1]])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bp.affine(0, 3), ValueError, "inputs must be an integer >= 1, got 0"),
        (lambda: bp.affine(3, 1.5), TypeError, "outputs must be an integer, got float"),
        (lambda: bp.affine(3, 1, initializer="he"), TypeError, "initializer must be callable, got str"),
        (lambda: bp.relu(at_zero=2), ValueError, "at_zero must be a finite number >= 0 and <= 1, got 2"),
        (lambda: bp.leaky_relu(-1), ValueError, "slope must be"),
        (lambda: bp.elu(float("nan")), ValueError, "alpha must be"),
        (lambda: bp.maxout(3, 2, pieces=1), ValueError, "pieces must be an integer >= 2, got 1"),
        (lambda: bp.convolution(1, 2, stride=0), ValueError, "stride must be"),
        (lambda: bp.convolution(1, 2, padding="FULL"), ValueError, "padding must be one of 'SAME', 'VALID', got 'FULL'"),
        (lambda: bp.max_pool(0), ValueError, "window must be"),
        (lambda: bp.average_pool(-1), ValueError, "window must be"),
        (lambda: bp.differentiable(jnp.tanh), TypeError, "layer must be a Layer"),
    ],
)
def test_refuses_bad_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "x", "error", "message"),
    [
        (bp.affine(4, 3), jnp.ones((5, 3)), ValueError, r"x must have shape \(batch, 4\) for this affine layer, got \[5, 3\]"),
        (bp.affine(4, 3), jnp.ones(4), ValueError, r"x must have rank 2, got float32\[4\]"),
        (bp.affine(4, 3), jnp.ones((5, 4), int), TypeError, "x must be a float array, got int32"),
        (bp.maxout(4, 3), jnp.ones((5, 3)), ValueError, "x must have shape"),
        (bp.convolution(2, 3), jnp.ones((1, 5, 5, 1)), ValueError, "x must have shape"),
        (bp.convolution(2, 3, padding="VALID"), jnp.ones((1, 2, 5, 2)), ValueError, "sides of at least 3"),
        (bp.max_pool(3), jnp.ones((1, 2, 2, 1)), ValueError, "sides of at least 3"),
        (bp.average_pool(3), jnp.ones((1, 2, 1)), ValueError, "x must have rank 4"),
        (bp.tanh(), jnp.ones((1, 2), int), TypeError, "z must be a float array"),
        (bp.flatten(), jnp.ones((1, 2), int), TypeError, "x must be a float array"),
    ],
)
def test_forward_refuses_bad_input(layer, x, error, message):
    with pytest.raises(error, match=message):
        layer.forward(layer.init(jax.random.key(0)), x)
