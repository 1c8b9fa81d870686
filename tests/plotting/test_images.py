"""`draw_images` and `draw_adversarial`: tiles, colours, titles and notes."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from diffprog.plotting import draw_adversarial, draw_images

GREY = np.linspace(0, 1, 3 * 4 * 5).reshape(3, 4, 5, 1)
PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
LABELS = np.array([0, 1, 0])


def tiles(figure):
    """Return the pixels of each image of a figure."""
    return [np.asarray(image.get_array()) for image in figure.axes[0].images]


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def corners(figure):
    """Return the left and upper edge of each image, in inches."""
    return np.array(
        [[image.get_extent()[0], image.get_extent()[3]] for image in figure.axes[0].images]
    )


def test_bounds_are_drawn_black_and_white():
    figure = draw_images(GREY * 3 - 1, bounds=(-1, 2))
    for pixels, image in zip(tiles(figure), GREY, strict=True):
        np.testing.assert_allclose(pixels, np.repeat(image, 3, -1), atol=1e-12)
    assert texts(figure) == ["black -1, white 2"]


def test_without_bounds_each_image_is_scaled_to_its_own_range():
    figure = draw_images(
        np.concatenate([0.4 + 0.1 * GREY[:1], 100 * GREY[1:], np.full((1, 4, 5, 1), 7.0)]),
        bounds=None,
    )
    assert [(pixels.min(), pixels.max()) for pixels in tiles(figure)] == [
        (0, 1),
        (0, 1),
        (0, 1),
        (0, 0),
    ]
    assert texts(figure) == ["each image scaled to its own range"]


def test_colours_are_kept():
    image = np.random.default_rng(0).random((1, 4, 4, 3))
    np.testing.assert_allclose(tiles(draw_images(image))[0], image[0])


def test_images_are_drawn_row_by_row():
    figure = draw_images(np.zeros((5, 4, 4, 1)), columns=2)
    left, top = corners(figure).T
    assert len(np.unique(left)) == 2
    assert np.all(left[[0, 2, 4]] == left[0])
    assert np.all(np.diff(top[[0, 2, 4]]) > 0)
    assert np.all(top[[0, 2]] == top[[1, 3]])


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 3), (10, 5), (32, 8), (64, 8)])
def test_default_columns_leave_few_tiles_empty(count, columns):
    left, _ = corners(draw_images(np.zeros((count, 2, 2, 1)))).T
    assert len(np.unique(left)) == columns


def test_columns_are_at_most_the_number_of_images():
    assert len(np.unique(corners(draw_images(GREY, columns=9))[:, 0])) == 3


def test_images_keep_their_aspect_ratio():
    image = draw_images(GREY[:1]).axes[0].images[0]
    left, right, bottom, top = image.get_extent()
    assert (bottom - top) / (right - left) == pytest.approx(4 / 5)


def test_titles_are_in_order():
    assert texts(draw_images(GREY, ["a", "b", "c"]))[1:] == ["a", "b", "c"]


def test_jax_arrays_of_any_float_dtype_are_accepted():
    assert isinstance(draw_images(jnp.asarray(GREY, jnp.bfloat16)), Figure)
    # 0.1 in float32 is above 0.1 in float64 and yet within bounds.
    assert isinstance(draw_images(jnp.full((1, 2, 2, 1), 0.1), bounds=(0, 0.1)), Figure)


@pytest.mark.parametrize(
    ("images", "keywords", "error", "message"),
    [
        (GREY[0], {}, ValueError, r"images must have rank 4, got float64\[4, 5, 1\]"),
        (GREY.astype(int), {}, TypeError, "images must be a float array, got int64"),
        (GREY[:0], {}, ValueError, "images must not be empty"),
        (GREY[:, :0], {}, ValueError, r"1 or 3 channels, got \[3, 0, 5, 1\]"),
        (GREY.repeat(2, -1), {}, ValueError, r"1 or 3 channels, got \[3, 4, 5, 2\]"),
        (GREY * np.nan, {}, ValueError, "images must be finite"),
        (GREY * 255, {}, ValueError, "images must lie in 0 .. 1, got values from 0.0 to 255.0"),
        (GREY, {"bounds": (1, 0)}, ValueError, "bounds must be .low, high. with low < high"),
        (GREY, {"bounds": 1.0}, TypeError, "bounds must be a pair"),
        (GREY, {"titles": ["a"]}, ValueError, "titles must be one for each of 3 images, got 1"),
        (GREY, {"columns": 0}, ValueError, "columns must be an integer >= 1, got 0"),
    ],
)
def test_invalid_images_raise(images, keywords, error, message):
    with pytest.raises(error, match=message):
        draw_images(images, **keywords)


def test_rows_are_original_perturbation_adversarial():
    adversarial = GREY.copy()
    adversarial[1, 2, 3] -= 0.1
    pixels = tiles(draw_adversarial(GREY, adversarial, LABELS, PROBABILITIES, PROBABILITIES))
    for column in range(3):
        original, change, attacked = pixels[3 * column : 3 * column + 3]
        np.testing.assert_allclose(original[..., 0], GREY[column, ..., 0])
        np.testing.assert_allclose(attacked[..., 0], adversarial[column, ..., 0])
        red, _, blue = np.moveaxis(change, -1, 0)
        changed = np.argwhere(np.abs(red - blue) > 0.1)
        assert changed.tolist() == ([[2, 3]] if column == 1 else [])
        if column == 1:
            assert blue[2, 3] > red[2, 3]


def test_positive_perturbations_are_red_and_negative_blue():
    change = np.array([0.2, -0.2, 0.0, 0.1]).reshape(1, 2, 2, 1)
    pixels = tiles(
        draw_adversarial(
            0 * change + 0.5, 0.5 + change, LABELS[:1], PROBABILITIES[:1], PROBABILITIES[:1]
        )
    )[1].reshape(4, 3)
    red, blue = pixels[:, 0], pixels[:, 2]
    assert red[0] > blue[0]
    assert red[1] < blue[1]
    assert red[2] == pytest.approx(blue[2], abs=0.01)
    assert red[2] > 0.95
    assert blue[0] < blue[3] < blue[2]


def test_magnification_is_printed_and_shared():
    adversarial = np.array([0.5, 0.45]).reshape(2, 1, 1, 1) * np.ones((2, 2, 2, 3))
    figure = draw_adversarial(
        0 * adversarial + 0.4, adversarial, LABELS[:2], PROBABILITIES[:2], PROBABILITIES[:2]
    )
    assert "perturbation\n× 10" in texts(figure)
    assert {"max |r| 0.1", "max |r| 0.05"} <= set(texts(figure))
    np.testing.assert_allclose([tiles(figure)[1].max(), tiles(figure)[4].max()], [1, 0.75])


def test_zero_perturbations_are_not_magnified():
    figure = draw_adversarial(GREY, GREY, LABELS, PROBABILITIES, PROBABILITIES)
    assert "perturbation" in texts(figure)


def test_predictions_are_written_and_misclassified_ones_marked():
    figure = draw_adversarial(GREY, GREY, LABELS, PROBABILITIES, 1 - PROBABILITIES, ["cat", "dog"])
    predictions = [text for text in texts(figure) if "%" in text]
    assert predictions == [
        "cat (90%)",
        "dog (90%) ✗",
        "dog (80%)",
        "cat (80%) ✗",
        "cat (60%)",
        "dog (60%) ✗",
    ]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"adversarial": GREY[:2]}, ValueError, "shapes must agree, got original"),
        ({"adversarial": GREY + 1}, ValueError, "adversarial must lie in 0 .. 1"),
        ({"original": GREY - 1}, ValueError, "original must lie in 0 .. 1"),
        ({"adversarial": GREY * np.nan}, ValueError, "adversarial must be finite"),
        ({"labels": LABELS + 1}, ValueError, "labels must lie in 0 .. 1"),
        ({"labels": LABELS * 1.0}, TypeError, "labels must be integer labels"),
        ({"labels": LABELS[:2]}, ValueError, "leading axes must agree"),
        ({"before": 5 * PROBABILITIES}, ValueError, "before must lie in 0 .. 1"),
        ({"after": PROBABILITIES[0]}, ValueError, "after must have rank 2"),
        ({"after": PROBABILITIES * np.nan}, ValueError, "after must be finite"),
        ({"after": np.ones((3, 5))}, ValueError, "shapes must agree, got before"),
        ({"names": ["cat"]}, ValueError, "names must be one for each of 2 classes, got 1"),
    ],
)
def test_invalid_adversarial_examples_raise(change, error, message):
    arguments = {
        "original": GREY,
        "adversarial": GREY,
        "labels": LABELS,
        "before": PROBABILITIES,
        "after": PROBABILITIES,
    } | change
    with pytest.raises(error, match=message):
        draw_adversarial(**arguments)
