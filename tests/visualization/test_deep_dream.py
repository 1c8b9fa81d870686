"""Deep dream: it ascends, on any size, whatever is differentiated at once."""

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
    given = {"key": KEY, "tile": (6, 8), "octaves": 2, "steps": 6, "rate": 0.02} | options
    return vis.dream(f, vis.deep_dream("h"), PHOTOGRAPH, **given)


def test_every_octave_rises():
    found = dream()
    assert found.image.shape == PHOTOGRAPH.shape
    assert [octave.shape for octave in found.octaves] == [(9, 16, 3), (13, 22, 3)]
    assert (found.history[:, -1] > found.history[:, 0]).all()
    assert float(found.image.min()) >= 0
    assert float(found.image.max()) <= 1


@pytest.mark.slow
def test_how_many_tiles_at_once_changes_rounding_only():
    np.testing.assert_allclose(
        dream(tiles_at_once=1, steps=2).image, dream(tiles_at_once=5, steps=2).image, atol=1e-5
    )


def test_same_key_same_bits():
    np.testing.assert_array_equal(dream(steps=2).image, dream(steps=2).image)
    assert (dream(steps=2).image != dream(steps=2, key=jax.random.key(7)).image).any()


def test_a_step_changes_pixels_by_the_rate():
    found = dream(octaves=1, steps=1, rate=1e-3)
    # Pixels next to the range are cut.
    inside = np.abs(np.asarray(PHOTOGRAPH) - 0.5) < 0.48
    assert 0.8e-3 < np.abs(np.asarray(found.image - PHOTOGRAPH))[inside].mean() < 1.2e-3


@pytest.mark.slow
def test_the_objective_of_a_photograph_of_whole_tiles_is_its_mean():
    whole = jax.random.uniform(jax.random.key(3), (12, 16, 3))
    mean = lambda x: x.mean((1, 2))
    found = vis.dream(mean, vis.logit(1), whole, key=KEY, tile=(6, 8), octaves=1, steps=1)
    np.testing.assert_allclose(found.history[0, 0], whole[..., 1].mean(), rtol=1e-5)


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
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        dream(**options)


def test_refuses_objectives_of_several_images_and_unknown_nodes():
    with pytest.raises(ValueError, match="one image"):
        vis.dream(f, vis.channel("h", [0, 1]), PHOTOGRAPH, key=KEY, tile=(6, 8), octaves=1)
    with pytest.raises(ValueError, match="nowhere"):
        vis.dream(f, vis.deep_dream("nowhere"), PHOTOGRAPH, key=KEY, tile=(6, 8), octaves=1)
    with pytest.raises(ValueError, match="photograph"):
        vis.dream(f, vis.deep_dream("h"), PHOTOGRAPH[0], key=KEY, tile=(6, 8))
