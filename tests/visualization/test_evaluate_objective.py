"""`scores`: every part of an objective on every image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp

vis = dp.visualization

X = jax.random.normal(jax.random.key(0), (300, 2, 3, 2))


def f(x):
    return dp.tap(3 * x, "h").mean((1, 2))


def test_every_part_is_evaluated_on_every_image():
    got = vis.scores(f, vis.channel("h", [1, 0, 1]) - vis.logit(0), X)
    means = 3 * np.asarray(X).mean((1, 2)).T
    np.testing.assert_allclose(got, means[[1, 0, 1]] - means[0], rtol=1e-4, atol=1e-6)


def test_accepts_objectives_without_units_or_with_data():
    assert vis.scores(f, vis.deep_dream("h"), X).shape == (1, 300)
    vectors = jnp.array([[1.0, 0.0], [0.0, -1.0]])
    means = 3 * np.asarray(X).mean((1, 2)).T
    np.testing.assert_allclose(
        vis.scores(f, vis.direction("h", vectors), X),
        means * np.array([[1], [-1]]),
        rtol=1e-4,
        atol=1e-6,
    )


def test_accepts_a_function_of_the_output():
    np.testing.assert_allclose(vis.scores(f, lambda y: y[:, 1], X), vis.scores(f, vis.logit(1), X))


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
def test_rejects_bad_arguments(objective, images, error, message):
    with pytest.raises(error, match=message):
        vis.scores(f, objective, images)
