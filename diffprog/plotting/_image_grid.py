"""A sheet: rows and columns of small images with a line of text above each and one below them all.

The sheet is one plot measured in inches from its upper left corner, which is much faster to draw than a plot for every image:

    margin | tile gap tile gap tile         a row is a title line, the tile, a gap
           | tile gap tile gap tile
    note
"""

import textwrap
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

INK, FAINT, FRAME = "#22262b", "#5d6670", "#c9ced4"

_WIDTH, _SMALLEST, _LARGEST = (
    8.0,
    0.7,
    2.2,
)  # of the whole sheet, which tiles fill as far as they may
_EDGE, _GAP, _TITLE, _LINE = 0.08, 0.09, 0.2, 0.16
_CHARACTER = 0.062  # the width of one, at the note's size


class Sheet(NamedTuple):
    """Lengths in inches: the left margin, a tile's width and height, and the space for its title."""

    figure: Figure
    axes: Axes
    margin: float
    width: float
    height: float
    title_height: float

    def corner(self, row: int, column: int) -> tuple[float, float]:
        """The upper left corner of a tile."""
        return self.margin + column * (self.width + _GAP), _EDGE + self.title_height + row * (
            self.height + self.title_height + _GAP
        )

    def draw(self, row: int, column: int, pixels: np.ndarray) -> None:
        """RGB values in [0, 1], (height, width, 3)."""
        x, y = self.corner(row, column)
        self.axes.imshow(pixels, extent=(x, x + self.width, y + self.height, y))
        self.axes.add_patch(
            Rectangle((x, y), self.width, self.height, fill=False, edgecolor=FRAME, linewidth=0.6)
        )

    def title(self, row: int, column: int, text: str, color: str = INK) -> None:
        """One line above a tile."""
        x, y = self.corner(row, column)
        self.axes.text(
            x + self.width / 2, y - 0.04, text, ha="center", va="bottom", fontsize=8, color=color
        )

    def name_row(self, row: int, text: str) -> None:
        """In the margin, beside a row of tiles."""
        _, y = self.corner(row, 0)
        self.axes.text(
            self.margin - _GAP,
            y + self.height / 2,
            text,
            ha="right",
            va="center",
            fontsize=8.5,
            color=INK,
        )


def sheet(
    rows: int, columns: int, aspect: float, *, note: str, titled: bool, margin: float = _EDGE
) -> Sheet:
    """An empty sheet for tiles of the given height over width, with a note below them."""
    tile = min(max(_WIDTH / columns - _GAP, _SMALLEST), _LARGEST)
    title_height = _TITLE if titled else 0.0
    width = margin + columns * (tile + _GAP)
    lines = textwrap.wrap(note, max(20, int((width - margin) / _CHARACTER)))
    bottom = _EDGE + rows * (aspect * tile + title_height + _GAP)
    height = bottom + _LINE * len(lines) + _EDGE
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(margin, bottom, "\n".join(lines), ha="left", va="top", fontsize=7.5, color=FAINT)
    # A drawn image resets limits and aspect unless they are held.
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    return Sheet(figure, axes, margin, tile, aspect * tile, title_height)
