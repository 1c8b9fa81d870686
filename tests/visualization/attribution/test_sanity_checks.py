"""Sanity checks of attributions where the right answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp

vis = dp.visualization

KEY = jax.random.key(0)
X = jax.random.uniform(jax.random.key(1), (4, 10), minval=0.1)


def total(x):
    return x.reshape(len(x), -1).sum(1, keepdims=True)


def test_deletion_by_the_true_contribution_falls_fastest():
    best, worst = vis.deletion(total, X, X, 0, points=11), vis.deletion(total, X, -X, 0, points=11)
    ordered = np.sort(np.asarray(X), axis=1)
    expected = np.stack([ordered[:, : 10 - k].sum(1) for k in range(11)], axis=1)
    np.testing.assert_allclose(best.scores, expected, rtol=1e-5)
    assert (best.area < worst.area).all()


def test_insertion_is_deletion_in_reverse():
    insertion, deletion = (
        vis.insertion(total, X, X, 0, points=11),
        vis.deletion(total, X, -X, 0, points=11),
    )
    np.testing.assert_allclose(insertion.scores, deletion.scores[:, ::-1], atol=1e-5)


def test_all_channels_of_a_pixel_are_deleted_together():
    images = X[:, :8].reshape(4, 2, 2, 2)
    curve = vis.deletion(total, images, jnp.arange(16.0).reshape(4, 2, 2), 0, points=5)
    np.testing.assert_allclose(
        curve.scores[:, 1],
        np.asarray(images).sum((1, 2, 3)) - np.asarray(images)[:, 1, 1].sum(1),
        rtol=1e-5,
    )


def test_the_area_under_a_straight_line():
    even = vis.deletion(total, jnp.ones((1, 10)), jnp.ones((1, 10)), 0, points=11)
    np.testing.assert_allclose(even.area, 5, rtol=1e-6)
    assert even.shares[0] == 0
    assert even.shares[-1] == 1


def test_an_attribution_independent_of_the_parameters_does_not_change():
    params = {"first": jnp.arange(20.0), "second": jnp.arange(5.0)}
    result = vis.randomise_parameters(lambda params: X, params, key=KEY, layers=["second", "first"])
    assert result.layers == ("second", "first")
    np.testing.assert_allclose(result.similarity, 1)


def test_an_attribution_that_depends_on_the_parameters_changes():
    params = {"first": jnp.arange(400.0).reshape(4, 100), "second": jnp.ones(5)}
    result = vis.randomise_parameters(
        lambda params: params["first"], params, key=KEY, layers=["second", "first"]
    )
    np.testing.assert_allclose(result.similarity[0], 1)
    # The rank correlation of 100 numbers with a random order has standard deviation 0.1.
    assert (np.abs(result.similarity[1]) < 0.45).all()


def test_similarity_is_the_spearman_correlation():
    from scipy.stats import spearmanr

    a = jax.random.normal(KEY, (1, 30)).round(1)
    b = a + jax.random.normal(jax.random.key(5), (1, 30)).round(1)
    attributions = iter([a, b])
    result = vis.randomise_parameters(
        lambda params: next(attributions), {"layer": jnp.ones(2)}, key=KEY, layers=["layer"]
    )
    np.testing.assert_allclose(
        result.similarity[0, 0], spearmanr(np.abs(a[0]), np.abs(b[0])).statistic, rtol=1e-6
    )


@pytest.mark.slow
def test_saliency_depends_on_the_parameters():
    model = dp.models.mlp((10, 16, 3))
    params = model.init(KEY)
    result = vis.randomise_parameters(
        lambda p: vis.saliency(dp.program(model.apply, p), X, 1),
        params,
        key=KEY,
        layers=["logits", "affine1"],
    )
    assert (result.similarity[-1] < 0.9).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: vis.deletion(total, X, X[:, :3], 0), ValueError, "attribution"),
        (lambda: vis.deletion(total, X, jnp.full_like(X, jnp.nan), 0), ValueError, "attribution"),
        (lambda: vis.deletion(total, X, X, 0, points=1), ValueError, "points"),
        (lambda: vis.insertion(total, X, X, 0, fill=jnp.nan), ValueError, "fill"),
        (lambda: vis.insertion(total, X, X, 1), ValueError, "units"),
        (
            lambda: vis.randomise_parameters(3, {"a": X}, key=KEY, layers=["a"]),
            TypeError,
            "attribute",
        ),
        (
            lambda: vis.randomise_parameters(lambda p: X, [X], key=KEY, layers=["a"]),
            TypeError,
            "params",
        ),
        (
            lambda: vis.randomise_parameters(lambda p: X, {}, key=KEY, layers=["a"]),
            TypeError,
            "params",
        ),
        (
            lambda: vis.randomise_parameters(lambda p: X, {"a": X}, key=KEY, layers=["b"]),
            ValueError,
            "layers",
        ),
        (
            lambda: vis.randomise_parameters(lambda p: X, {"a": X}, key=KEY, layers="a"),
            TypeError,
            "layers",
        ),
        (lambda: vis.deletion(total, [[1.0]], X, 0), TypeError, "x must be"),
        (
            lambda: vis.randomise_parameters(lambda p: X, {"a": X}, key=3, layers=["a"]),
            TypeError,
            "key",
        ),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
