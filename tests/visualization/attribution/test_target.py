"""Targets of attributions, outputs and objectives, and the nodes they are attributed to."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp

vis = dp.visualization

X = jax.random.uniform(jax.random.key(1), (3, 6, 6, 2))
OUT = jax.random.normal(jax.random.key(3), (4, 5))
CONVOLUTION = equinox.nn.Conv2d(2, 4, 3, padding=1, key=jax.random.key(6))
WEIGHTS = jax.random.normal(jax.random.key(4), (3, 5, 5))
ROWS = jax.random.normal(jax.random.key(5), (2, 5))


def network(x):
    """Channels-first convolution of equinox, relu, mean over positions, affine."""
    h = jax.nn.relu(jax.vmap(CONVOLUTION)(x.transpose(0, 3, 1, 2)))
    return dp.tap(dp.tap(h.transpose(0, 2, 3, 1), "h").mean((1, 2)), "mean") @ OUT


def chain(x):
    """Nodes "matmul:0" .. "matmul:2", and their taps "h#0" .. "h#2"."""
    for weights in WEIGHTS:
        x = jnp.tanh(dp.tap(x @ weights, "h"))
    return x


def test_any_node_is_attributed_to_any_node_before_it():
    h = np.asarray(dp.nodes.read(network)(X)[1]["h"])
    saliency = vis.saliency(network, X, vis.unit("mean", 2), at="h")
    np.testing.assert_allclose(saliency, np.broadcast_to(np.eye(4)[2] / 36, h.shape), rtol=1e-6)
    np.testing.assert_allclose(
        vis.input_x_gradient(network, X, 3, at="mean"),
        h.mean((1, 2)) * np.asarray(OUT)[:, 3],
        rtol=1e-5,
    )


def test_a_function_of_the_output_is_a_target():
    np.testing.assert_allclose(
        vis.saliency(network, X, lambda y: y[:, 1] - y[:, 3]),
        vis.saliency(network, X, vis.logit(1) - vis.logit(3)),
        rtol=1e-5,
        atol=1e-7,
    )


def test_a_node_has_its_batch_first_and_its_units_last():
    bias = CONVOLUTION.bias[:, 0, 0]
    h = dp.nodes.read(network, ["conv:0"])(X)[1]["conv:0"].transpose(0, 2, 3, 1)
    gradient = np.where(h + bias > 0, np.asarray(OUT)[:, 3] / 36, 0)
    np.testing.assert_allclose(vis.saliency(network, X, 3, at="conv:0"), gradient, rtol=1e-5)
    cam = np.maximum((gradient.mean((1, 2), keepdims=True) * h).sum(-1), 0)
    np.testing.assert_allclose(vis.grad_cam(network, X, 3, "conv:0"), cam, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["matmul:{}", "h#{}"])
def test_node_names_are_those_of_the_whole_program(name):
    """Not those of what is left of the program after `at` is replaced."""
    first, second, last = map(name.format, range(3))
    h = ROWS @ WEIGHTS[0]
    to_second = jax.vmap(jax.grad(lambda h: (jnp.tanh(h) @ WEIGHTS[1])[3]))(h)
    np.testing.assert_allclose(
        vis.saliency(chain, ROWS, vis.unit(second, 3), at=first), to_second, rtol=1e-5, atol=1e-6
    )
    to_last = jax.vmap(jax.grad(lambda h: (jnp.tanh(jnp.tanh(h) @ WEIGHTS[1]) @ WEIGHTS[2])[3]))(h)
    np.testing.assert_allclose(
        vis.saliency(chain, ROWS, vis.unit(last, 3), at=first), to_last, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(
        vis.saliency(chain, ROWS, vis.unit(second, 3), at=second), jax.nn.one_hot([3, 3], 5)
    )


@pytest.mark.parametrize("f", [chain, jax.jit(chain)])
def test_a_target_that_does_not_depend_on_the_node_is_refused(f):
    with pytest.raises(
        ValueError,
        match="at must lie before the target, but 'matmul:0' does not depend on 'matmul:2'",
    ):
        vis.saliency(f, ROWS, vis.unit("matmul:0", 3), at="matmul:2")
    parallel = lambda x: dp.tap(x * 2, "parallel") * (x > 0) * 0 + x @ WEIGHTS[0]
    with pytest.raises(ValueError, match="'matmul:0'"):
        vis.grad_cam(
            lambda x: parallel(x).mean((1, 2)),
            X[..., :1] * jnp.ones(5),
            vis.unit("matmul:0", 3),
            "parallel",
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vis.saliency(network, X, 0, at="nowhere"), "nowhere"),
        (lambda: vis.saliency(network, X, vis.unit("nowhere", 0)), "nowhere"),
        (lambda: vis.saliency(lambda x: (x, x), X, 0), "f must return an array, got a tuple of 2$"),
    ],
)
def test_unknown_nodes_and_outputs_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
