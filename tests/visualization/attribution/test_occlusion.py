"""Occlusion against closed forms."""

import jax
import numpy as np
import pytest

import diffprog as dp

vis = dp.visualization

X = jax.random.uniform(jax.random.key(1), (3, 6, 6, 1))


def pixel_sum(x):
    return x.sum((1, 2))


def test_occlusion_of_a_sum_is_the_sum_over_the_window():
    attribution = np.asarray(vis.occlusion(pixel_sum, X, 0, window=(2, 2), stride=2))
    blocks = np.asarray(X)[..., 0].reshape(3, 3, 2, 3, 2).sum((2, 4))
    np.testing.assert_allclose(attribution, blocks.repeat(2, 1).repeat(2, 2), rtol=1e-4)


def test_window_may_be_an_integer_of_numpy():
    np.testing.assert_array_equal(
        vis.occlusion(pixel_sum, X, 0, window=np.int64(3)),
        vis.occlusion(pixel_sum, X, 0, window=3),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 7}, r"window must fit into the image, \[6, 6\], got \[7, 7\]"),
        ({"stride": 0}, "stride must be an integer >= 1"),
        ({"fill": np.nan}, "fill must be a finite number"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        vis.occlusion(pixel_sum, X, 0, **options)
