"""Axes of nodes: units and images are found in the layout of any framework."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp

vis = dp.visualization

X = jax.random.normal(jax.random.key(0), (300, 2, 3, 2))
CONVOLUTION = equinox.nn.Conv2d(2, 4, 2, key=jax.random.key(1))
LINEAR = equinox.nn.Linear(4, 10, key=jax.random.key(2))
WEIGHTS = jax.random.normal(jax.random.key(3), (2, 3))


@jax.vmap
def equinox_network(x):
    """Has nodes of layout (images, units, p, q) and (units, images)."""
    return LINEAR(CONVOLUTION(x.transpose(2, 0, 1)).mean((1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4, 10])
def test_finds_the_units_of_equinox_layers(count):
    values = dp.nodes.read(equinox_network, ["conv:0", "matmul:0"])(X[:count])[1]
    got = vis.scores(equinox_network, vis.channel("conv:0", [3, 1]), X[:count])
    np.testing.assert_allclose(
        got, values["conv:0"].mean((2, 3)).T[np.array([3, 1])], rtol=1e-5, atol=1e-6
    )
    got = vis.scores(equinox_network, vis.unit("matmul:0", range(10)), X[:count])
    np.testing.assert_allclose(got, values["matmul:0"], rtol=1e-5, atol=1e-6)


def test_finds_the_units_next_to_rows_of_equal_number():
    """A product W x under two `vmap`s is (units, images, rows)."""
    layer = equinox.nn.Linear(2, 3, use_bias=False, key=jax.random.key(4))
    got = vis.scores(
        lambda x: jax.vmap(jax.vmap(layer))(x[:, 0]), vis.channel("matmul:0", range(3)), X[:3]
    )
    np.testing.assert_allclose(
        got, jnp.einsum("nri,ui->nru", X[:3, 0], layer.weight).mean(1).T, rtol=1e-5, atol=1e-6
    )


def test_finds_the_images_when_both_operands_have_them():
    rows = lambda x: x.reshape(len(x), 6, 2)
    gram = lambda x: jnp.einsum("npi,npj->nij", rows(x), rows(x) @ WEIGHTS).mean(1)
    got = vis.scores(gram, vis.channel("matmul:1", range(3)), X[:2])
    np.testing.assert_allclose(got, gram(X[:2]).T, rtol=1e-5, atol=1e-6)


def test_accepts_programs_of_one_batch_size():
    def three_images(units):
        return lambda x: x.reshape(3, 12) @ jnp.tile(WEIGHTS, (6, units // 3))

    got = vis.scores(three_images(6), vis.unit("matmul:0", 4), X[:3])[0]
    np.testing.assert_allclose(got, three_images(6)(X[:3])[:, 4], rtol=1e-6)
    # With three units no axis is the only one of length 3.
    with pytest.raises(
        ValueError, match=r"'matmul:0' of shape \[3, 3\] must have one axis of the 3 images"
    ):
        vis.scores(three_images(3), vis.unit("matmul:0", 2), X[:3])


@pytest.mark.parametrize(
    ("f", "objective", "message"),
    [
        (equinox_network, vis.channel("conv:0", 4), "'conv:0' has units 0 .. 3, got 4"),
        (equinox_network, vis.unit("matmul:0", 10), "'matmul:0' has units 0 .. 9, got 10"),
        (lambda x: x.reshape(-1, 2) @ WEIGHTS, vis.unit("matmul:0", 0), "one axis of the 4 images"),
        (lambda x: x[:, 0, 0] @ x[:, 0, 0].T, vis.unit("matmul:0", 0), "one axis of the 4 images"),
        (lambda x: (x, x), vis.logit(0), "f must return an array, got a tuple of 2$"),
    ],
)
def test_rejects_ambiguous_axes_and_missing_units(f, objective, message):
    with pytest.raises(ValueError, match=message):
        vis.scores(f, objective, X[:4])
