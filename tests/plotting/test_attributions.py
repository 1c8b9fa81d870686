"""`draw_attributions`: tiles, colours and labels."""

import numpy as np
import pytest

from diffprog.plotting import draw_attributions

IMAGES = np.full((2, 4, 4, 1), 0.5)
MAPS = {"saliency": np.linspace(-1, 1, 32).reshape(2, 4, 4, 1), "occlusion": np.ones((2, 4, 4))}


def tiles(figure):
    return [np.asarray(image.get_array()) for image in figure.axes[0].images]


def test_there_is_a_row_of_images_and_one_for_each_method():
    assert len(tiles(draw_attributions(IMAGES, MAPS))) == 6


def test_negative_is_blue_zero_white_and_positive_red():
    colors = tiles(draw_attributions(IMAGES[:1], {"m": np.array([[[-2.0, 0.0, 2.0, 2.0]] * 4])}))[
        1
    ][0]
    blue, white, red = colors[0], colors[1], colors[2]
    assert blue[2] > blue[0]
    assert red[0] > red[2]
    np.testing.assert_allclose(white, white[0], atol=0.01)


def test_channels_are_summed_and_the_scale_does_not_matter():
    three_dimensional = np.stack([np.ones((4, 4)), -np.eye(4)], axis=-1)[None]
    one, other = (
        tiles(draw_attributions(IMAGES[:1], {"m": values}))[1]
        for values in (three_dimensional, 7 * three_dimensional.sum(3))
    )
    np.testing.assert_allclose(one, other)


def test_titles_and_method_names_are_texts():
    figure = draw_attributions(
        IMAGES, {"integrated gradients": IMAGES}, ["predicted 3", "predicted 5"]
    )
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {"predicted 3", "predicted 5", "integrated\ngradients"} <= set(texts)


def test_a_map_of_zeros_is_white():
    white = tiles(draw_attributions(IMAGES, {"m": np.zeros((2, 4, 4))}))[2]
    assert np.isfinite(white).all()
    assert white.min() > 0.95


@pytest.mark.parametrize(
    ("attributions", "titles", "error", "message"),
    [
        ({}, None, ValueError, "at least one"),
        (IMAGES, None, ValueError, "dict"),
        ({"m": IMAGES[:1]}, None, ValueError, r"attributions\['m'\] must have the shape"),
        ({"m": IMAGES[:, :2]}, None, ValueError, r"attributions\['m'\] must have the shape"),
        (
            {"m": np.full((2, 4, 4), np.nan)},
            None,
            ValueError,
            r"attributions\['m'\] must be finite",
        ),
        (
            {"m": np.ones((2, 4, 4), int)},
            None,
            TypeError,
            r"attributions\['m'\] must be a float array",
        ),
        (MAPS, ["one"], ValueError, "titles"),
    ],
)
def test_invalid_arguments_raise(attributions, titles, error, message):
    with pytest.raises(error, match=message):
        draw_attributions(IMAGES, attributions, titles)
