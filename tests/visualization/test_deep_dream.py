"""DeepDream: it ascends on photographs of any size, for any number of tiles at once."""

import jax
import numpy as np
import pytest

import diffprog as dp

vis = dp.visualization

KEY = jax.random.key(0)
PHOTOGRAPH = jax.random.uniform(jax.random.key(1), (13, 22, 3))
KERNEL = jax.random.normal(jax.random.key(2), (3, 3, 3, 4))


def f(x):
    if x.shape[1:] != (6, 8, 3):
        raise ValueError(f"x must be tiles of 6 x 8, got {list(x.shape)}")
    h = jax.lax.conv_general_dilated(
        x, KERNEL, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return dp.tap(h, "h").mean((1, 2))


def dream(**options):
    arguments = {"key": KEY, "tile": (6, 8), "octaves": 2, "steps": 6, "rate": 0.02} | options
    return vis.dream(f, vis.deep_dream("h"), PHOTOGRAPH, **arguments)


def test_the_objective_rises_in_every_octave():
    result = dream()
    assert result.image.shape == PHOTOGRAPH.shape
    assert [octave.shape for octave in result.octaves] == [(9, 16, 3), (13, 22, 3)]
    assert (result.history[:, -1] > result.history[:, 0]).all()
    assert float(result.image.min()) >= 0
    assert float(result.image.max()) <= 1


@pytest.mark.slow
def test_tiles_at_once_changes_only_rounding():
    np.testing.assert_allclose(
        dream(tiles_at_once=1, steps=2).image, dream(tiles_at_once=5, steps=2).image, atol=1e-5
    )


def test_same_key_gives_the_same_bits():
    np.testing.assert_array_equal(dream(steps=2).image, dream(steps=2).image)
    assert (dream(steps=2).image != dream(steps=2, key=jax.random.key(7)).image).any()


def test_a_step_changes_pixels_by_the_rate_on_average():
    result = dream(octaves=1, steps=1, rate=1e-3)
    # Pixels near the bounds are clipped.
    inside = np.abs(np.asarray(PHOTOGRAPH) - 0.5) < 0.48
    assert 0.8e-3 < np.abs(np.asarray(result.image - PHOTOGRAPH))[inside].mean() < 1.2e-3


def test_the_history_is_the_mean_over_tiles():
    # Four tiles, in batches of three.
    whole = jax.random.uniform(jax.random.key(3), (12, 16, 3))
    mean, options = lambda x: x.mean((1, 2)), {"tile": (6, 8), "octaves": 1, "steps": 1}
    result = vis.dream(mean, vis.logit(1), whole, key=KEY, tiles_at_once=3, **options)
    np.testing.assert_allclose(result.history[0, 0], whole[..., 1].mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"octaves": 9}, "octaves"),
        ({"tile": (6, 7)}, "6 x 8"),
        ({"tile": (6,)}, "tile"),
        ({"scale": 1.0}, "scale"),
        ({"steps": 0}, "steps"),
        ({"rate": 0.0}, "rate"),
        ({"range": (1.0, 0.0)}, "range"),
        ({"range": (0.4, 0.6)}, "photograph"),
        ({"tiles_at_once": 0}, "tiles_at_once"),
    ],
)
def test_rejects_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        dream(**options)


def test_rejects_several_images_and_unknown_nodes():
    with pytest.raises(ValueError, match="one image"):
        vis.dream(f, vis.channel("h", [0, 1]), PHOTOGRAPH, key=KEY, tile=(6, 8), octaves=1)
    with pytest.raises(ValueError, match="nowhere"):
        vis.dream(f, vis.deep_dream("nowhere"), PHOTOGRAPH, key=KEY, tile=(6, 8), octaves=1)
    with pytest.raises(ValueError, match="photograph"):
        vis.dream(f, vis.deep_dream("h"), PHOTOGRAPH[0], key=KEY, tile=(6, 8))
