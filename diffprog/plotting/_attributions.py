"""Figure of attribution maps below the images that they explain."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from diffprog.plotting._axes import validate_floats, validate_mapping
from diffprog.plotting._image_grid import make_image_grid, signed_to_rgb, to_rgb, validate_titles

_MAX_NAME = 16  # characters of a method's name on one line


def draw_attributions(
    images: Float[Any, "batch height width channels"],
    attributions: Mapping[str, Float[Any, "batch height width ..."]],
    titles: Sequence[str] | None = None,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Draw images in a row and, below them, the attribution maps of each method in another row.

    Red pixels have positive attribution, blue ones negative, white ones none. Methods differ in
    scale, so each map is divided by its largest absolute value, after summing over channels.

    Args:
        images: float images (batch, height, width, channels), 1 or 3 channels, within bounds.
        attributions: maps by name of the method, (batch, height, width) or (batch, height, width,
            channels), finite.
        titles: a short title for each image; default none.
        bounds: pixel values (low, high), drawn black and white; default (0, 1).

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes disagree; values are not finite; images are out of bounds; there is no
            method; titles are not one for each image.

    >>> image = np.full((1, 8, 8, 1), 0.5)
    >>> draw_attributions(image, {"saliency": image - 0.4})
    <Figure size ... with 1 Axes>
    """
    pixels = to_rgb("images", images, bounds)
    validate_mapping("attributions", attributions, "maps by name")
    validate_titles(titles, len(pixels))
    maps = {name: _normalized_map(name, values, images) for name, values in attributions.items()}
    grid = make_image_grid(
        1 + len(maps),
        len(pixels),
        pixels.shape[1] / pixels.shape[2],
        note=f"Images: black {bounds[0]:g}, white {bounds[1]:g}. Attributions: blue negative, "
        "white zero, red positive; each map scaled by its largest absolute value.",
        has_titles=titles is not None,
        margin=1.25,
    )
    for column, image in enumerate(pixels):
        grid.draw_image(0, column, image)
        if titles is not None:
            grid.write_title(0, column, titles[column])
    for row, (name, values) in enumerate(maps.items(), 1):
        grid.write_row_name(row, _break_line(name))
        for column, rgb in enumerate(signed_to_rgb(values[..., None])):
            grid.draw_image(row, column, rgb)
    return grid.figure


def _normalized_map(name: str, attribution: Any, images: Any) -> np.ndarray:
    """Sum attributions over channels and divide each map by its largest absolute value."""
    argument = f"attributions[{name!r}]"
    validate_floats(argument, attribution, rank=(3, 4))
    if attribution.shape[:3] != images.shape[:3]:
        raise ValueError(
            f"{argument} must have the shape {list(images.shape[:3])} of the images, "
            f"got {list(attribution.shape)}"
        )
    values = np.asarray(attribution, np.float64)
    values = values.sum(3) if values.ndim == 4 else values
    largest = np.abs(values).max((1, 2), keepdims=True)
    return values / np.where(largest > 0, largest, 1)


def _break_line(name: str) -> str:
    """Break a name that is long and has several words into two lines of about equal length."""
    words = name.split(" ")
    if len(name) <= _MAX_NAME or len(words) == 1:
        return name
    middle = min(range(1, len(words)), key=lambda k: abs(len(" ".join(words[:k])) - len(name) / 2))
    return f"{' '.join(words[:middle])}\n{' '.join(words[middle:])}"
