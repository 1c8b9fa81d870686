"""Alpha maps: opaque where the objective depends on the image."""

import jax
import numpy as np
import pytest

import diffprog as dp

vis = dp.visualization

KEY = jax.random.key(0)


@pytest.mark.slow
def test_alpha_is_proportional_to_the_gradient():
    upper_half = lambda x: (x[:, :2] ** 2).sum((1, 2))
    images = jax.random.uniform(KEY, (1, 4, 4, 1), minval=0.2)
    alpha = vis.alpha_map(upper_half, vis.logit(0), images, key=KEY)
    np.testing.assert_allclose(alpha[0, :2], images[0, :2, :, 0] / images[0, :2].max(), rtol=1e-5)
    np.testing.assert_array_equal(alpha[0, 2:], 0)
    shifted = vis.alpha_map(
        upper_half, vis.logit(0), images, key=KEY, transforms=[vis.jitter(1)], draws=64
    )
    assert (shifted[0, 2] > 0).any()
    with pytest.raises(ValueError, match="images must be one for each"):
        vis.alpha_map(upper_half, vis.logit([0, 0]), images, key=KEY)
    with pytest.raises(ValueError, match="draws"):
        vis.alpha_map(upper_half, vis.logit(0), images, key=KEY, draws=0)
