"""Attributions below the images they are about: what each method says of each pixel."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from diffprog import _validation
from diffprog.plotting._image_grid import sheet
from diffprog.plotting._images import _aspect, _pixels, _signed_pixels

_LONGEST_LINE = 16


def draw_attributions(
    images: Float[Any, "batch height width channels"],
    attributions: Mapping[str, Float[Any, "batch height width ..."]],
    titles: Sequence[str] | None = None,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """A column for each image, and below it a row for each method: blue speaks against, white is nothing, red speaks for.

    Every map is drawn over its own largest absolute value, as methods differ in scale; channels are added up first.

    Args:
        images: NHWC, 1 or 3 channels, within bounds.
        attributions: maps by the name of their method, (batch, height, width) or (batch, height, width, channels), finite.
        titles: a short line above each image.
        bounds: (low, high), drawn black and white.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes that do not agree, values that are not finite, images out of bounds, no method, or not one title for each image.

    >>> image = np.full((1, 8, 8, 1), 0.5)
    >>> draw_attributions(image, {"saliency": image - 0.4})
    <Figure size ... with 1 Axes>
    """
    pixels = _pixels("images", images, bounds)
    if not isinstance(attributions, Mapping) or not attributions:
        raise ValueError(
            f"attributions must be a dict of maps by name, at least one, got {attributions!r:.60}"
        )
    if titles is not None and len(titles) != len(pixels):
        raise ValueError(f"titles must be one for each of {len(pixels)} images, got {len(titles)}")
    maps = {name: _map(name, values, images) for name, values in attributions.items()}
    note = f"Images: black {bounds[0]:g}, white {bounds[1]:g}. Maps: blue against, white 0, red for, each over its own largest value."
    drawn = sheet(
        1 + len(maps),
        len(pixels),
        _aspect(pixels),
        note=note,
        titled=titles is not None,
        margin=1.25,
    )
    for column, image in enumerate(pixels):
        drawn.draw(0, column, image)
        if titles is not None:
            drawn.title(0, column, titles[column])
    for row, (name, values) in enumerate(maps.items(), 1):
        drawn.name_row(row, _broken(name))
        for column, colors in enumerate(_signed_pixels(values[..., None])):
            drawn.draw(row, column, colors)
    return drawn.figure


def _map(name: str, values: Any, images: Any) -> np.ndarray:
    """In [-1, 1], each over its own largest absolute value."""
    given = f"attributions[{name!r}]"
    _validation.floating(given, values, rank=(3, 4))
    _validation.finite(given, values)
    if values.shape[:3] != images.shape[:3]:
        raise ValueError(
            f"{given} must have the shape {list(images.shape[:3])} of the images, got {list(values.shape)}"
        )
    added = np.asarray(values, np.float64)
    added = added.sum(3) if added.ndim == 4 else added
    largest = np.abs(added).max((1, 2), keepdims=True)
    return added / np.where(largest > 0, largest, 1)


def _broken(name: str) -> str:
    """On two lines where it is long."""
    words = name.split(" ")
    if len(name) <= _LONGEST_LINE or len(words) == 1:
        return name
    middle = min(range(1, len(words)), key=lambda k: abs(len(" ".join(words[:k])) - len(name) / 2))
    return f"{' '.join(words[:middle])}\n{' '.join(words[middle:])}"
