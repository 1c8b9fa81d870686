import numpy as np
import pytest

from diffprog.plotting import draw_attributions

IMAGES = np.full((2, 4, 4, 1), 0.5)
MAPS = {"saliency": np.linspace(-1, 1, 32).reshape(2, 4, 4, 1), "occlusion": np.ones((2, 4, 4))}


def tiles(figure):
    return [np.asarray(image.get_array()) for image in figure.axes[0].images]


def test_a_row_for_the_images_and_one_for_each_method():
    assert len(tiles(draw_attributions(IMAGES, MAPS))) == 6


def test_negative_is_blue_zero_white_and_positive_red():
    colors = tiles(draw_attributions(IMAGES[:1], {"m": np.array([[[-2.0, 0.0, 2.0, 2.0]] * 4])}))[
        1
    ][0]
    blue, white, red = colors[0], colors[1], colors[2]
    assert blue[2] > blue[0]
    assert red[0] > red[2]
    np.testing.assert_allclose(white, white[0], atol=0.01)


def test_scale_does_not_matter_channels_are_added():
    many = np.stack([np.ones((4, 4)), -np.eye(4)], axis=-1)[None]
    one, other = (
        tiles(draw_attributions(IMAGES[:1], {"m": values}))[1] for values in (many, 7 * many.sum(3))
    )
    np.testing.assert_allclose(one, other)


def test_titles_and_method_names_are_written():
    figure = draw_attributions(IMAGES, {"integrated gradients": IMAGES}, ["read 3", "read 5"])
    written = [text.get_text() for text in figure.axes[0].texts]
    assert {"read 3", "read 5", "integrated\ngradients"} <= set(written)


def test_a_map_of_zeros_is_white():
    assert np.isfinite(tiles(draw_attributions(IMAGES, {"m": np.zeros((2, 4, 4))}))[2]).all()


@pytest.mark.parametrize(
    ("attributions", "titles", "error", "message"),
    [
        ({}, None, ValueError, "at least one"),
        (IMAGES, None, ValueError, "dict"),
        ({"m": IMAGES[:1]}, None, ValueError, "m"),
        ({"m": IMAGES[:, :2]}, None, ValueError, "m"),
        ({"m": np.full((2, 4, 4), np.nan)}, None, ValueError, "m"),
        ({"m": np.ones((2, 4, 4), int)}, None, TypeError, "m"),
        (MAPS, ["one"], ValueError, "titles"),
    ],
)
def test_refuses(attributions, titles, error, message):
    with pytest.raises(error, match=message):
        draw_attributions(IMAGES, attributions, titles)
