"""Protocol of attribution methods: one table times short tests, and a method of the user's own."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import diffprog as dp
import diffprog.plotting

vis = dp.visualization

KEY = jax.random.key(0)
X = jax.random.uniform(jax.random.key(1), (3, 6, 6, 2))


def network(seed=0):
    """Convolution, relu, mean over positions, affine; in the dtype of its input."""
    kernel_key, out_key = jax.random.split(jax.random.key(seed))
    kernel = jax.random.normal(kernel_key, (3, 3, 2, 4))
    out = jax.random.normal(out_key, (4, 5))

    def f(x):
        h = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return dp.tap(jax.nn.relu(h), "h").mean((1, 2)) @ out.astype(x.dtype)

    return f


# Each is a function of a program, its input and a target; a new method gets a row here.
ATTRIBUTIONS = {
    "saliency": vis.saliency,
    "input_x_gradient": vis.input_x_gradient,
    "smooth_grad": lambda f, x, target: vis.smooth_grad(f, x, target, key=KEY, samples=3),
    "integrated_gradients": lambda f, x, target: (
        vis.integrated_gradients(f, x, target, points=4).attribution
    ),
    "guided_backprop": vis.guided_backprop,
    "grad_cam": lambda f, x, target: vis.grad_cam(f, x, target, "h"),
    "occlusion": lambda f, x, target: vis.occlusion(f, x, target, window=2),
}
every_attribution = pytest.mark.parametrize("method", ATTRIBUTIONS.values(), ids=ATTRIBUTIONS)


@every_attribution
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shape_and_dtype_are_those_of_the_input(method, dtype):
    attribution = method(network(), X.astype(dtype), 3)
    assert attribution.shape in (X.shape, X.shape[:-1])
    assert attribution.dtype == dtype
    assert jnp.isfinite(attribution).all()


def saliency_of_a_node(f, x, target):
    return vis.saliency(f, x, vis.unit("h", target), at="conv:0")


@pytest.mark.parametrize("method", [*ATTRIBUTIONS.values(), saliency_of_a_node])
def test_new_weights_and_targets_compile_nothing(method, caplog):
    method(network(0), X, jnp.array([0, 1, 2]))
    f, x, targets = network(1), 2 * X, jnp.array([1, 0, 3])
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        method(f, x, targets)
    assert not [record for record in caplog.records if "Compiling" in record.message]


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_examples_are_independent(name):
    method, f = ATTRIBUTIONS[name], network()
    batch = method(f, X, jnp.array([3, 0, 2]))
    # SmoothGrad draws its noise by the index in the batch: only the first example can be alone.
    np.testing.assert_allclose(method(f, X[:1], 3), batch[:1], atol=1e-5)
    if name != "smooth_grad":
        np.testing.assert_allclose(method(f, X[2:], 2), batch[2:], atol=1e-5)


@every_attribution
@pytest.mark.parametrize(
    ("x", "target", "error", "message"),
    [
        (X, 5, ValueError, "units 0 .. 4, got 5"),
        (X, jnp.array([0, 1]), ValueError, "target must be one for all"),
        (X, -1, ValueError, "unit"),
        (X, 1.5, TypeError, "unit"),
        (X.at[0].set(jnp.nan), 0, ValueError, "x must be finite"),
        (X[:0], 0, ValueError, "x must not be empty"),
        (jnp.ones((3, 6, 6, 2), int), 0, TypeError, "x must be a float array"),
    ],
)
def test_bad_input_is_refused(method, x, target, error, message):
    with pytest.raises(error, match=message):
        method(network(), x, target)


# -- a method of the user's own, as from outside the package


def gradient_norm(f, x, target):
    gradient = jax.grad(lambda x: f(x)[:, target].sum())(x)
    return jnp.linalg.norm(gradient, axis=-1)


def weighted_sum(params, x):
    """Logits are sums of the pixels, weighted by the layer "weights"."""
    return x.reshape(len(x), -1) @ params["weights"].reshape(-1, 2)


PARAMS = {"weights": jax.random.uniform(jax.random.key(2), (6, 6, 2, 2)), "unused": jnp.ones(3)}
PROGRAM = dp.program(weighted_sum, PARAMS)


def test_deletion_and_insertion_rank_a_user_method():
    x, attribution = jnp.ones_like(X), gradient_norm(PROGRAM, X, 1)
    for curve, sign in ((vis.deletion, 1), (vis.insertion, -1)):
        best = curve(PROGRAM, x, attribution, 1)
        worst = curve(PROGRAM, x, -attribution, 1)
        assert (sign * best.area < sign * worst.area).all()


def test_randomise_parameters_tests_a_user_method():
    result = vis.randomise_parameters(
        lambda params: gradient_norm(dp.program(weighted_sum, params), X, 1),
        PARAMS,
        key=KEY,
        layers=["unused", "weights"],
    )
    np.testing.assert_allclose(result.similarity[0], 1)
    # The rank correlation of 36 pixels with a random order has standard deviation 1 / 6.
    assert (np.abs(result.similarity[1]) < 0.7).all()


def test_draw_attributions_draws_a_user_method():
    maps = {"gradient norm": gradient_norm(PROGRAM, X, 1)}
    assert isinstance(dp.plotting.draw_attributions(X[..., :1], maps), Figure)
