"""Images as figures: a sheet of them, and adversarial examples beside their originals.

What black, white and colour mean is written below every sheet: the same numbers look like another image when the range is chosen from
the data.
"""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Integer
from matplotlib.figure import Figure

from diffprog import _validation
from diffprog.plotting._image_grid import FAINT, INK, Sheet, sheet

_WRONG = "#b3261e"


def draw_images(
    images: Float[Any, "batch height width channels"],
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    *,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Figure:
    """A sheet of images, row by row.

    Args:
        images: NHWC, 1 or 3 channels, float.
        titles: a short line above each image.
        columns: images in a row, at least 1; without it the sheet is about twice as wide as high.
        bounds: (low, high), drawn black and white, so that images can be compared; every value must lie within. None stretches
            each image over its own range, to see the shape of something whose scale means nothing.

    Raises:
        TypeError: images or bounds are of the wrong kind.
        ValueError: images of another rank or channel count, not finite, none at all, out of bounds, or not one title for each.

    >>> draw_images(np.linspace(0, 1, 2 * 8 * 8).reshape(2, 8, 8, 1), titles=["dark", "light"])
    <Figure size ... with 1 Axes>
    """
    pixels = _pixels("images", images, bounds)
    if titles is not None and len(titles) != len(pixels):
        raise ValueError(f"titles must be one for each of {len(pixels)} images, got {len(titles)}")
    columns = (
        _balanced(len(pixels))
        if columns is None
        else min(_validation.integer("columns", columns, low=1), len(pixels))
    )
    note = (
        "each image over its own range"
        if bounds is None
        else f"black {bounds[0]:g}, white {bounds[1]:g}"
    )
    drawn = sheet(
        -(-len(pixels) // columns), columns, _aspect(pixels), note=note, titled=titles is not None
    )
    for k, image in enumerate(pixels):
        drawn.draw(*divmod(k, columns), image)
        if titles is not None:
            drawn.title(*divmod(k, columns), titles[k])
    return drawn.figure


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
    """Adversarial examples below their originals: rows original, perturbation, adversarial; one column an example.

    The perturbation r = adversarial - original is magnified by m = (high - low) / max |r|, one m for the whole figure, which the row says.
    One channel is drawn from blue (negative) over white (zero) to red (positive), three channels around mid-grey.
    Above each image stands what is predicted and how confidently; a prediction that is not the label is red and marked ✗.

    Args:
        original, adversarial: NHWC, 1 or 3 channels, within bounds.
        labels: the true classes, in 0 .. classes - 1.
        before, after: predicted probabilities for the original and for the adversarial images, in [0, 1].
        names: the classes' names; their numbers if not given.
        bounds: (low, high), drawn black and white.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes that do not agree, images out of bounds, probabilities outside [0, 1], labels or names that do not fit the
            classes.

    >>> image, probabilities = np.full((1, 8, 8, 1), 0.5), np.array([[0.1, 0.9]])
    >>> draw_adversarial(image, image + 0.1, np.array([1]), probabilities, 1 - probabilities)
    <Figure size ... with 1 Axes>
    """
    _validation.same_shape(original=original, adversarial=adversarial)
    clean, attacked = (
        _pixels("original", original, bounds),
        _pixels("adversarial", adversarial, bounds),
    )
    names = _class_names(names, before, after)
    _validation.labels("labels", labels, len(names))
    _validation.batch(original=original, labels=labels, before=before, after=after)

    perturbation = np.asarray(adversarial, np.float64) - np.asarray(original, np.float64)
    largest = np.abs(perturbation).max()
    meaning = (
        "mid-grey zero"
        if perturbation.shape[-1] == 3
        else "blue negative, white zero, red positive"
    )
    note = f"Images: black {bounds[0]:g}, white {bounds[1]:g}. Perturbation: {meaning}. ✗ not the label."
    drawn = sheet(3, len(clean), _aspect(clean), note=note, titled=True, margin=1.1)
    magnification = f"\n× {(bounds[1] - bounds[0]) / largest:.3g}" if largest > 0 else ""
    for row, name in enumerate(("original", f"perturbation{magnification}", "adversarial")):
        drawn.name_row(row, name)
    for column, change in enumerate(_signed_pixels(perturbation / (largest or 1))):
        drawn.draw(0, column, clean[column])
        drawn.draw(1, column, change)
        drawn.title(1, column, f"|r| ≤ {np.abs(perturbation[column]).max():.3g}", color=FAINT)
        drawn.draw(2, column, attacked[column])
        for row, probabilities in ((0, before), (2, after)):
            _write_prediction(
                drawn, row, column, np.asarray(probabilities[column]), int(labels[column]), names
            )
    return drawn.figure


def _write_prediction(
    drawn: Sheet, row: int, column: int, probabilities: np.ndarray, label: int, names: Sequence[str]
) -> None:
    predicted = int(probabilities.argmax())
    wrong = predicted != label
    text = f"{names[predicted]} ({float(probabilities[predicted]):.0%}){' ✗' * wrong}"
    drawn.title(row, column, text, color=_WRONG if wrong else INK)


def _class_names(names: Sequence[str] | None, before: Any, after: Any) -> Sequence[str]:
    for name, probabilities in (("before", before), ("after", after)):
        _validation.floating(name, probabilities, rank=2)
        _validation.finite(name, probabilities)
        _validation.within(name, probabilities, 0, 1)
    _validation.same_shape(before=before, after=after)
    classes = before.shape[1]
    if names is not None and len(names) != classes:
        raise ValueError(f"names must be one for each of {classes} classes, got {len(names)}")
    return [str(j) for j in range(classes)] if names is None else names


def _pixels(name: str, images: Any, bounds: tuple[float, float] | None) -> np.ndarray:
    """RGB in [0, 1]: low is black and high is white, of the bounds or of each image."""
    _validation.floating(name, images, rank=4)
    _validation.batch(**{name: images})
    if images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"{name} must be (batch, height, width, channels) with 1 or 3 channels, got {list(images.shape)}"
        )
    _validation.finite(name, images)
    known = np.asarray(images, np.float64)
    if bounds is None:
        low, high = known.min((1, 2, 3), keepdims=True), known.max((1, 2, 3), keepdims=True)
        scaled = (known - low) / np.where(high > low, high - low, 1)
    else:
        low, high = _validation.bounds("bounds", bounds)
        _validation.within(name, images, low, high)
        scaled = ((known - low) / (high - low)).clip(0, 1)
    return np.broadcast_to(scaled, (*scaled.shape[:3], 3))


def _signed_pixels(values: np.ndarray) -> np.ndarray:
    """RGB of values in [-1, 1]: blue, white, red for one channel, around mid-grey for three."""
    if values.shape[-1] == 3:
        return (1 + values) / 2
    # The outer ends of the colour map are nearly black; without them red and blue stay apart.
    return matplotlib.colormaps["RdBu_r"]((1 + 0.85 * values[..., 0]) / 2)[..., :3]


def _aspect(images: np.ndarray) -> float:
    return images.shape[1] / images.shape[2]


def _balanced(count: int) -> int:
    """Columns of a sheet about twice as wide as high with few places left empty."""
    ideal = (2 * count) ** 0.5
    return min(
        range(math.ceil(ideal / 1.5), math.floor(ideal * 1.5) + 1),
        key=lambda columns: (-count % columns, abs(columns - ideal)),
    )
