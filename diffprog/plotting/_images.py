"""Figures of images, and of adversarial examples beside their originals.

A note below each figure says which pixel values are black and white. These are not chosen from the
data by default, because the same value would then look different in different images.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.figure import Figure

from diffprog import _validation
from diffprog.plotting._axes import FAINT, INK, validate_floats
from diffprog.plotting._image_grid import make_image_grid, signed_to_rgb, to_rgb, validate_titles

_MISCLASSIFIED = "#b3261e"


def draw_images(
    images: Float[Any, "batch height width channels"],
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    *,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Figure:
    """Draw images in a grid, row by row.

    Args:
        images: float images (batch, height, width, channels), 1 or 3 channels.
        titles: a short title for each image; default none.
        columns: images per row, >= 1; default so many that the figure is about twice as wide as
            high.
        bounds: pixel values (low, high), drawn black and white; all values must lie within them.
            None scales each image to its own range, which shows its structure but not its scale.

    Raises:
        TypeError: images are not floats, or bounds are not a pair of numbers.
        ValueError: images are empty, not finite, out of bounds or of another rank or number of
            channels; titles are not one for each.

    >>> images = np.linspace(0, 1, 2 * 8 * 8).reshape(2, 8, 8, 1)
    >>> draw_images(images, titles=["dark", "light"])
    <Figure size ... with 1 Axes>
    """
    pixels = to_rgb("images", images, bounds)
    count = len(pixels)
    validate_titles(titles, count)
    columns = _choose_columns(count) if columns is None else columns
    columns = min(_validation.integer("columns", columns, low=1), count)
    note = "each image scaled to its own range"
    if bounds is not None:
        note = f"black {bounds[0]:g}, white {bounds[1]:g}"
    aspect = pixels.shape[1] / pixels.shape[2]
    rows = -(-count // columns)
    grid = make_image_grid(rows, columns, aspect, note=note, has_titles=titles is not None)
    for k, image in enumerate(pixels):
        grid.draw_image(*divmod(k, columns), image)
        if titles is not None:
            grid.write_title(*divmod(k, columns), titles[k])
    return grid.figure


def draw_adversarial(
    original: Float[Any, "batch height width channels"],
    adversarial: Float[Any, "batch height width channels"],
    labels: Integer[Any, "batch"],
    before: Float[Any, "batch classes"],
    after: Float[Any, "batch classes"],
    names: Sequence[str] | None = None,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Draw originals, perturbations and adversarial images in three rows, one column per example.

    The perturbation r = adversarial - original is magnified by (high - low) / max |r|, the same for
    all examples and printed beside the row. One channel is drawn from blue (negative) over white
    (zero) to red (positive), three channels around mid-grey. Above each image are the predicted
    class and its probability, in red with ✗ if misclassified.

    Args:
        original, adversarial: float images (batch, height, width, channels), 1 or 3 channels,
            within bounds.
        labels: true classes (batch,), in 0 .. classes - 1.
        before, after: predicted probabilities (batch, classes) of the original and the adversarial
            images, in [0, 1].
        names: names of the classes; default their numbers.
        bounds: pixel values (low, high), drawn black and white; default (0, 1).

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes disagree; images are out of bounds; probabilities lie outside [0, 1];
            labels or names do not fit the classes.

    >>> image, probabilities = np.full((1, 8, 8, 1), 0.5), np.array([[0.1, 0.9]])
    >>> draw_adversarial(image, image + 0.1, np.array([1]), probabilities, 1 - probabilities)
    <Figure size ... with 1 Axes>
    """
    _validation.same_shape(original=original, adversarial=adversarial)
    original_pixels = to_rgb("original", original, bounds)
    adversarial_pixels = to_rgb("adversarial", adversarial, bounds)
    for name, probabilities in (("before", before), ("after", after)):
        validate_floats(name, probabilities, rank=2)
        _validation.within(name, probabilities, 0, 1)
    _validation.same_shape(before=before, after=after)
    classes = before.shape[1]
    if names is None:
        names = [str(j) for j in range(classes)]
    elif len(names) != classes:
        raise ValueError(f"names must be one for each of {classes} classes, got {len(names)}")
    _validation.labels("labels", labels, classes)
    _validation.batch(original=original, labels=labels, before=before, after=after)

    r = np.asarray(adversarial, np.float64) - np.asarray(original, np.float64)
    largest = np.abs(r).max()
    scale = "mid-grey zero" if r.shape[-1] == 3 else "blue negative, white zero, red positive"
    note = (
        f"Images: black {bounds[0]:g}, white {bounds[1]:g}. Perturbation: {scale}. ✗ misclassified."
    )
    aspect = original_pixels.shape[1] / original_pixels.shape[2]
    grid = make_image_grid(3, len(r), aspect, note=note, has_titles=True, margin=1.1)
    magnification = f"\n× {(bounds[1] - bounds[0]) / largest:.3g}" if largest > 0 else ""
    for row, name in enumerate(("original", f"perturbation{magnification}", "adversarial")):
        grid.write_row_name(row, name)
    for column, r_pixels in enumerate(signed_to_rgb(r / (largest or 1))):
        grid.draw_image(0, column, original_pixels[column])
        grid.draw_image(1, column, r_pixels)
        grid.write_title(1, column, f"max |r| {np.abs(r[column]).max():.2g}", color=FAINT)
        grid.draw_image(2, column, adversarial_pixels[column])
        for row, probabilities in ((0, before), (2, after)):
            predicted = int(np.argmax(probabilities[column]))
            title = f"{names[predicted]} ({float(probabilities[column][predicted]):.0%})"
            correct = predicted == int(labels[column])
            text, color = (title, INK) if correct else (f"{title} ✗", _MISCLASSIFIED)
            grid.write_title(row, column, text, color)
    return grid.figure


def _choose_columns(count: int) -> int:
    """Return how many columns make a grid of `count` images about twice as wide as high.

    Among these numbers, one that leaves few places in the last row empty is preferred.
    """
    ideal = (2 * count) ** 0.5
    return min(
        range(math.ceil(ideal / 1.5), math.floor(ideal * 1.5) + 1),
        key=lambda columns: (-count % columns, abs(columns - ideal)),
    )
