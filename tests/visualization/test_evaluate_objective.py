"""What images score, unit by unit."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp

vis = dp.visualization

X = jax.random.normal(jax.random.key(0), (300, 2, 3, 2))


def f(x):
    return dp.tap(3 * x, "h").mean((1, 2))


def test_every_unit_on_every_image():
    found = vis.scores(f, vis.channel("h", [1, 0, 1]) - vis.logit(0), X)
    means = 3 * np.asarray(X).mean((1, 2)).T
    np.testing.assert_allclose(found, means[[1, 0, 1]] - means[0], rtol=1e-4, atol=1e-6)


def test_objectives_without_units_and_with_data():
    assert vis.scores(f, vis.deep_dream("h"), X).shape == (1, 300)
    vectors = jnp.array([[1.0, 0.0], [0.0, -1.0]])
    means = 3 * np.asarray(X).mean((1, 2)).T
    np.testing.assert_allclose(
        vis.scores(f, vis.direction("h", vectors), X),
        means * np.array([[1], [-1]]),
        rtol=1e-4,
        atol=1e-6,
    )


def test_a_function_of_the_output_is_an_objective():
    np.testing.assert_allclose(vis.scores(f, lambda y: y[:, 1], X), vis.scores(f, vis.logit(1), X))


CONVOLUTION = equinox.nn.Conv2d(2, 4, 2, key=jax.random.key(1))
LINEAR = equinox.nn.Linear(4, 10, key=jax.random.key(2))
WEIGHTS = jax.random.normal(jax.random.key(3), (2, 3))


@jax.vmap
def of_equinox(x):
    """Nodes (images, units, p, q) and (units, images)."""
    return LINEAR(CONVOLUTION(x.transpose(2, 0, 1)).mean((1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4, 10])
def test_units_are_found_where_the_framework_has_them(count):
    values = dp.nodes.read(of_equinox, ["conv:0", "matmul:0"])(X[:count])[1]
    found = vis.scores(of_equinox, vis.channel("conv:0", [3, 1]), X[:count])
    np.testing.assert_allclose(
        found, values["conv:0"].mean((2, 3)).T[np.array([3, 1])], rtol=1e-5, atol=1e-6
    )
    found = vis.scores(of_equinox, vis.unit("matmul:0", range(10)), X[:count])
    np.testing.assert_allclose(found, values["matmul:0"], rtol=1e-5, atol=1e-6)


def test_units_between_rows_of_the_same_number():
    """A product W x under two `vmap`s is (units, images, rows)."""
    layer = equinox.nn.Linear(2, 3, use_bias=False, key=jax.random.key(4))
    found = vis.scores(
        lambda x: jax.vmap(jax.vmap(layer))(x[:, 0]), vis.channel("matmul:0", range(3)), X[:3]
    )
    np.testing.assert_allclose(
        found, jnp.einsum("nri,ui->nru", X[:3, 0], layer.weight).mean(1).T, rtol=1e-5, atol=1e-6
    )


def test_images_among_the_axes_that_both_operands_have():
    rows = lambda x: x.reshape(len(x), 6, 2)
    gram = lambda x: jnp.einsum("npi,npj->nij", rows(x), rows(x) @ WEIGHTS).mean(1)
    found = vis.scores(gram, vis.channel("matmul:1", range(3)), X[:2])
    np.testing.assert_allclose(found, gram(X[:2]).T, rtol=1e-5, atol=1e-6)


def test_a_program_of_one_batch_size():
    fixed = lambda x: x.reshape(3, 12) @ jnp.tile(WEIGHTS, (6, k // 3))
    k = 6
    np.testing.assert_allclose(
        vis.scores(fixed, vis.unit("matmul:0", 4), X[:3])[0], fixed(X[:3])[:, 4], rtol=1e-6
    )
    k = 3
    with pytest.raises(
        ValueError, match=r"'matmul:0' of \[3, 3\] must have one axis of the 3 images"
    ):
        vis.scores(fixed, vis.unit("matmul:0", 2), X[:3])


@pytest.mark.parametrize(
    ("f", "objective", "message"),
    [
        (of_equinox, vis.channel("conv:0", 4), "'conv:0' has units 0 .. 3, got 4"),
        (of_equinox, vis.unit("matmul:0", 10), "'matmul:0' has units 0 .. 9, got 10"),
        (lambda x: x.reshape(-1, 2) @ WEIGHTS, vis.unit("matmul:0", 0), "one axis of the 4 images"),
        (lambda x: x[:, 0, 0] @ x[:, 0, 0].T, vis.unit("matmul:0", 0), "one axis of the 4 images"),
        (lambda x: (x, x), vis.logit(0), "f must return an array, got a tuple of 2$"),
    ],
)
def test_refuses_what_it_cannot_read(f, objective, message):
    with pytest.raises(ValueError, match=message):
        vis.scores(f, objective, X[:4])


@pytest.mark.parametrize(
    ("objective", "images", "error", "message"),
    [
        (vis.logit(2), X, ValueError, "units"),
        (3, X, TypeError, "objective"),
        (vis.logit(0), X[0], ValueError, "images"),
        (vis.logit(0), X[:0], ValueError, "images"),
        (vis.logit(0), X.at[0].set(jnp.inf), ValueError, "images"),
    ],
)
def test_refuses(objective, images, error, message):
    with pytest.raises(error, match=message):
        vis.scores(f, objective, images)
