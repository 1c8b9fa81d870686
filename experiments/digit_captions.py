"""Write captions of handwritten digits that are true of the image.

The label gives the digit; the writing style is measured. With the ink m = Σ x and the central
moments σ of its distribution over rows r, counted downwards, and columns c,

    boldness    m / pixels             "thin", "bold"
    size        sqrt(σ_rr + σ_cc)      "small", "large"
    slant       -σ_rc / σ_rr           "leaning left", "leaning right"

Each is compared with the other images of the same digit, because even a thin eight has more ink
than a bold one: the lowest third gets the first word, the highest third the second, the middle
third none. A caption names the digit as a word, a numeral, a sum or a product, and mentions all,
some or none of the true words, in one of several templates.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STYLE_WORDS = {
    "boldness": ("thin", "bold"),
    "size": ("small", "large"),
    "slant": ("leaning left", "leaning right"),
}
TEMPLATES = (
    "a {boldness} {size} {name} {slant}",
    "a {size} {boldness} {name} {slant}",
    "{slant} {boldness} {size} {name}",
    "the {name} {size} {boldness} {slant}",
    "a picture of a {boldness} {size} {slant} {name}",
)
_CALCULATION_TEMPLATES = ("{name}", "a picture of {name}")


class Style(NamedTuple):
    """Measured writing style of images.

    Attributes:
        boldness: mean ink, in [0, 1].
        size: root mean square distance of the ink from its center, in pixels.
        slant: columns to the right per row up, of the line that fits the ink best.
    """

    boldness: Float[np.ndarray, "images"]
    size: Float[np.ndarray, "images"]
    slant: Float[np.ndarray, "images"]


def measure_style(images: Float[Any, "images height width channels"]) -> Style:
    """Compute boldness, size and slant from the moments of the ink.

    Args:
        images: in [0, 1], ink bright; channels are averaged. Size and slant are 0 without ink.

    >>> diagonal = np.eye(4)[None, :, ::-1, None]
    >>> print([round(float(value[0]), 3) for value in measure_style(diagonal)])
    [0.25, 1.581, 1.0]
    """
    ink = np.asarray(images, np.float64).mean(-1)
    total = ink.sum((1, 2))
    density = ink / np.where(total > 0, total, 1)[:, None, None]
    rows, columns = (np.arange(side) for side in ink.shape[1:])
    r = rows - (density.sum(2) @ rows)[:, None]
    c = columns - (density.sum(1) @ columns)[:, None]
    rr, cc = (density.sum(2) * r**2).sum(1), (density.sum(1) * c**2).sum(1)
    rc = np.einsum("nrc,nr,nc->n", density, r, c)
    return Style(ink.mean((1, 2)), np.sqrt(rr + cc), -rc / np.where(rr > 0, rr, 1))


def classify_style(
    images: Float[Any, "images height width channels"], labels: Integer[Any, "images"]
) -> Integer[np.ndarray, "images 3"]:
    """Classify boldness, size and slant of each image among the images of the same digit.

    Args:
        images: as in `measure_style`.
        labels: (images,), the digits.

    Returns:
        (images, 3): -1 for the lowest third, 1 for the highest, 0 for the middle.

    >>> images = np.linspace(0, 1, 3)[:, None, None, None] * np.ones((3, 4, 4, 1))
    >>> classify_style(images, np.array([1, 1, 1]))[:, 0]
    array([-1,  0,  1])
    """
    measured, labels = np.stack(measure_style(images), 1), np.asarray(labels)
    levels = np.zeros(measured.shape, int)
    for digit in np.unique(labels):
        values = measured[labels == digit]
        low, high = np.quantile(values, (1 / 3, 2 / 3), axis=0)
        levels[labels == digit] = (values > high).astype(int) - (values < low)
    return levels


def true_captions(
    digit: int, style: Sequence[int] = (0, 0, 0), *, templates: Sequence[str] = TEMPLATES
) -> tuple[str, ...]:
    """List all captions that are true of a digit in a style, in alphabetical order.

    Args:
        digit: 0 .. 9.
        style: -1, 0 or 1 for boldness, size and slant, a row of `classify_style`.
        templates: as in `write_caption`.

    >>> true_captions(1, (-1, 0, 0), templates=["a {boldness} {name}"])[:4]
    ('a 1', 'a one', 'a picture of one plus zero', 'a picture of one times one')
    """
    mentioned = itertools.product(*({0, level} for level in style))
    described = itertools.product(templates, (NAMES[digit], str(digit)), mentioned)
    calculated = itertools.product(_CALCULATION_TEMPLATES, calculations(digit), [(0, 0, 0)])
    return tuple(sorted({write_caption(*parts) for parts in (*described, *calculated)}))


def write_caption(template: str, name: str, style: Sequence[int] = (0, 0, 0)) -> str:
    """Fill in a template.

    Args:
        template: a sentence with {name} and, optionally, {boldness}, {size} and {slant}.
        name: name of the digit.
        style: -1, 0 or 1 for boldness, size and slant; 0 leaves the word out.

    Raises:
        ValueError: the template has no {name}.

    >>> write_caption("a {boldness} {name} {slant}", "eight", (0, 0, -1))
    'an eight leaning left'
    """
    if "{name}" not in template:
        raise ValueError(f"template must contain {{name}}, got {template!r}")
    words = {
        quantity: {-1: low, 0: "", 1: high}[level]
        for (quantity, (low, high)), level in zip(STYLE_WORDS.items(), style, strict=True)
    }
    return re.sub(r"\ba (?=eight|8)", "an ", " ".join(template.format(name=name, **words).split()))


def calculations(digit: int) -> tuple[str, ...]:
    """List in words the sums and products of two numbers from 0 to 9 that equal a digit.

    Products have no factor 0.

    >>> calculations(2)
    ('zero plus two', 'one plus one', 'two plus zero', 'one times two', 'two times one')
    """
    sums = [f"{NAMES[a]} plus {NAMES[digit - a]}" for a in range(digit + 1)]
    factors = [a for a in range(1, digit + 1) if digit % a == 0]
    return (*sums, *(f"{NAMES[a]} times {NAMES[digit // a]}" for a in factors))
