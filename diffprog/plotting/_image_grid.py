"""Grid of small images with a title above each and a note below all of them.

The grid is one pair of axes measured in inches from its upper left corner, which is much faster to
draw than a pair of axes for each image:

    margin | tile gap tile gap tile         a row is a title, the tile, a gap
           | tile gap tile gap tile
    note
"""

import textwrap
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from diffprog import _validation
from diffprog.plotting._axes import FAINT, FRAME, INK

# In inches. Tiles fill the width of the figure as far as their smallest and largest width allow.
_FIGURE_WIDTH, _MIN_TILE, _MAX_TILE = 8.0, 0.7, 2.2
_EDGE, _GAP, _TITLE_HEIGHT, _LINE_HEIGHT = 0.08, 0.09, 0.2, 0.16
_CHARACTER_WIDTH = 0.062  # at the font size of the note


class ImageGrid(NamedTuple):
    """Figure with a grid of tiles, in each of which an image can be drawn, with a title above it.

    Attributes:
        figure, axes: the figure and its one pair of axes, measured in inches.
        margin: space for row names to the left of the grid, in inches.
        width, height: size of a tile in inches.
        title_height: space for a title above each tile, in inches.
    """

    figure: Figure
    axes: Axes
    margin: float
    width: float
    height: float
    title_height: float

    def draw_image(self, row: int, column: int, pixels: np.ndarray) -> None:
        """Draw an RGB image, (height, width, 3) in [0, 1], in the tile of this row and column."""
        x, y = self._corner(row, column)
        self.axes.imshow(pixels, extent=(x, x + self.width, y + self.height, y))
        self.axes.add_patch(
            Rectangle((x, y), self.width, self.height, fill=False, edgecolor=FRAME, linewidth=0.6)
        )

    def write_title(self, row: int, column: int, text: str, color: str = INK) -> None:
        """Write a line of text above the tile of this row and column."""
        x, y = self._corner(row, column)
        style: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 8, "color": color}
        self.axes.text(x + self.width / 2, y - 0.04, text, **style)

    def write_row_name(self, row: int, text: str) -> None:
        """Write a name in the margin beside a row of tiles."""
        y = self._corner(row, 0)[1] + self.height / 2
        style: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 8.5, "color": INK}
        self.axes.text(self.margin - _GAP, y, text, **style)

    def _corner(self, row: int, column: int) -> tuple[float, float]:
        """Return the upper left corner (x, y) of a tile in inches."""
        x = self.margin + column * (self.width + _GAP)
        y = _EDGE + self.title_height + row * (self.height + self.title_height + _GAP)
        return x, y


def make_image_grid(
    rows: int, columns: int, aspect: float, *, note: str, has_titles: bool, margin: float = _EDGE
) -> ImageGrid:
    """Create an empty grid for images with height / width = `aspect`, with a note below it.

    `margin` is the space for row names to the left of the grid, in inches; `has_titles` says
    whether to leave space for a title above each image.
    """
    tile = min(max(_FIGURE_WIDTH / columns - _GAP, _MIN_TILE), _MAX_TILE)
    title_height = _TITLE_HEIGHT if has_titles else 0.0
    width = margin + columns * (tile + _GAP)
    lines = textwrap.wrap(note, max(20, int((width - margin) / _CHARACTER_WIDTH)))
    bottom = _EDGE + rows * (aspect * tile + title_height + _GAP)
    height = bottom + _LINE_HEIGHT * len(lines) + _EDGE
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(margin, bottom, "\n".join(lines), ha="left", va="top", fontsize=7.5, color=FAINT)
    # imshow changes limits and aspect unless autoscaling is off.
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    return ImageGrid(figure, axes, margin, tile, aspect * tile, title_height)


def to_rgb(name: str, images: Any, bounds: tuple[float, float] | None) -> np.ndarray:
    """Check images (batch, height, width, 1 or 3), and return them as RGB images in [0, 1].

    `bounds` are the values (low, high) that become black and white; if None, these are the
    smallest and the largest value of each image.
    """
    _validation.floating(name, images, rank=4)
    _validation.batch(**{name: images})
    if images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"{name} must be (batch, height, width, channels) with 1 or 3 channels, "
            f"got {list(images.shape)}"
        )
    _validation.finite(name, images)
    values = np.asarray(images, np.float64)
    if bounds is None:
        low, high = values.min((1, 2, 3), keepdims=True), values.max((1, 2, 3), keepdims=True)
        rgb = (values - low) / np.where(high > low, high - low, 1)
    else:
        low, high = _validation.bounds("bounds", bounds)
        _validation.within(name, images, low, high)
        rgb = ((values - low) / (high - low)).clip(0, 1)
    return np.broadcast_to(rgb, (*rgb.shape[:3], 3))


def signed_to_rgb(values: np.ndarray) -> np.ndarray:
    """Convert images with values in [-1, 1] to RGB images.

    One channel is drawn from blue (-1) over white to red (1), three channels around mid-grey.
    """
    if values.shape[-1] == 3:
        return (1 + values) / 2
    # The ends of the colour map are nearly black; without them red and blue stay distinct.
    return matplotlib.colormaps["RdBu_r"]((1 + 0.85 * values[..., 0]) / 2)[..., :3]


def validate_titles(titles: Any, count: int) -> None:
    """Check that `titles` is None or has `count` entries, one for each image."""
    if titles is not None and len(titles) != count:
        raise ValueError(f"titles must be one for each of {count} images, got {len(titles)}")
