"""What images score, unit by unit."""

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
    np.testing.assert_allclose(vis.scores(f, vis.direction("h", vectors), X), means * np.array([[1], [-1]]), rtol=1e-4, atol=1e-6)


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
