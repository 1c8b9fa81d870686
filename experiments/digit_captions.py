"""Captions for handwritten digits: sentences of a small grammar that are true of an image, as measured on the image.

What is written is known from its label. How it is written is measured: with ink m = Σ x and central moments per unit of ink,

    boldness    m / pixels                     "thin", "bold"
    size        sqrt(σ_rr + σ_cc)              "small", "large"              r: row, downwards; c: column
    slant       -σ_rc / σ_rr                   "leaning left", "leaning right"

Each is compared with the other images of the same digit (a thin eight has more ink than a bold one has): the least third has the first of
the two words, the greatest third the second, and of the third between nothing is said. A caption names the digit as a word, a numeral, a
sum or a product, and mentions all, some or none of the words that are true, in one of several orders.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from diffprog import _validation
from diffprog.contrastive._tokenizers import require_texts

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LOOKS = {
    "boldness": ("thin", "bold"),
    "size": ("small", "large"),
    "slant": ("leaning left", "leaning right"),
}

ORDERS = (
    "a {boldness} {size} {name} {slant}",
    "a {size} {boldness} {name} {slant}",
    "{slant} {boldness} {size} {name}",
    "the {name} {size} {boldness} {slant}",
    "a picture of a {boldness} {size} {slant} {name}",
)
_CALCULATIONS = ("{name}", "a picture of {name}")


class Measures(NamedTuple):
    """How digits are written, a number for each image; see the module.

    Attributes:
        boldness: mean ink, in 0 .. 1.
        size: root mean square distance of the ink from its middle, in pixels.
        slant: columns to the right for each row up, of the line that fits the ink best.
    """

    boldness: Float[np.ndarray, "images"]
    size: Float[np.ndarray, "images"]
    slant: Float[np.ndarray, "images"]


def measures(images: Float[Any, "images height width channels"]) -> Measures:
    """Boldness, size and slant from the moments of the ink.

    Args:
        images: finite floats in 0 .. 1, ink bright; ink of several channels is added up. One without ink has size and slant 0.

    Raises:
        TypeError, ValueError: images that are not such, or are traced.

    >>> diagonal = np.eye(4, dtype=np.float32)[None, :, ::-1, None]
    >>> print([round(float(value[0]), 3) for value in measures(diagonal)])
    [0.25, 1.581, 1.0]
    """
    _validation.floating("images", images, rank=4)
    _validation.concrete("images", images, "measure before the transformation")
    _validation.batch(images=images)
    _validation.finite("images", images)
    _validation.within("images", images, 0, 1)
    ink = np.asarray(images, np.float64).mean(-1)
    total = ink.sum((1, 2))
    share = ink / np.where(total > 0, total, 1)[:, None, None]
    rows, columns = (np.arange(side) for side in ink.shape[1:])
    down = rows - (share.sum(2) @ rows)[:, None]
    right = columns - (share.sum(1) @ columns)[:, None]
    rr, cc = (share.sum(2) * down**2).sum(1), (share.sum(1) * right**2).sum(1)
    rc = np.einsum("nrc,nr,nc->n", share, down, right)
    return Measures(ink.mean((1, 2)), np.sqrt(rr + cc), -rc / np.where(rr > 0, rr, 1))


def looks(
    images: Float[Any, "images height width channels"], labels: Integer[Any, "images"]
) -> Integer[np.ndarray, "images 3"]:
    """For boldness, size and slant: -1 for the least third of the images of a digit, 1 for the greatest, 0 for those between.

    Args:
        images: as `measures`.
        labels: what they show, in 0 .. 9.

    Raises:
        TypeError, ValueError: arguments that are not such, or of two lengths.

    >>> looks(np.linspace(0, 1, 3, dtype=np.float32)[:, None, None, None] * np.ones((3, 4, 4, 1)), np.array([1, 1, 1]))[:, 0]
    array([-1,  0,  1])
    """
    measured = np.stack(measures(images), 1)
    _validation.labels("labels", labels, len(NAMES))
    _validation.concrete("labels", labels, "measure before the transformation")
    _validation.batch(images=images, labels=labels)
    found = np.zeros(measured.shape, int)
    for digit in np.unique(np.asarray(labels)):
        those = np.asarray(labels) == digit
        low, high = np.quantile(measured[those], (1 / 3, 2 / 3), axis=0)
        found[those] = (measured[those] > high).astype(int) - (measured[those] < low)
    return found


def captions(
    digit: int, look: Sequence[int] = (0, 0, 0), *, orders: Sequence[str] = ORDERS
) -> tuple[str, ...]:
    """Every caption that is true of a digit written so, in alphabetical order.

    Args:
        digit: 0 .. 9.
        look: -1, 0 or 1 for boldness, size and slant, as a row of `looks`.
        orders: sentences with places for {name}, {boldness}, {size} and {slant}; a place may stay empty.

    Raises:
        TypeError, ValueError: another digit, another look, orders that are no sequence of sentences or have other places.

    >>> captions(1, (-1, 0, 0), orders=["a {boldness} {name}"])[:4]
    ('a 1', 'a one', 'a picture of one plus zero', 'a picture of one times one')
    """
    _check_digit(digit)
    _check_orders(orders)
    said = itertools.product(*({0, part} for part in _look(look)))
    written = itertools.product(orders, (NAMES[digit], str(digit)), said)
    calculated = itertools.product(_CALCULATIONS, calculations(digit), [(0, 0, 0)])
    return tuple(
        sorted({caption(order, name, look) for order, name, look in (*written, *calculated)})
    )


def caption(order: str, name: str, look: Sequence[int] = (0, 0, 0)) -> str:
    """One sentence: an order with its places filled, "an" before an eight.

    Args:
        order: with a place for {name}, and perhaps for {boldness}, {size} and {slant}.
        name: what the digit is called.
        look: -1, 0 or 1 for boldness, size and slant; 0 says nothing.

    Raises:
        TypeError, ValueError: an order, a name or a look that is none.

    >>> caption("a {boldness} {name} {slant}", "eight", (0, 0, -1))
    'an eight leaning left'
    """
    _check_orders([order])
    if not isinstance(name, str):
        raise TypeError(f"name must be a text, got {type(name).__name__}")
    if not name.strip():
        raise ValueError(f"name must say something, got {name!r}")
    words = {
        part: ("", after, before)[way]
        for (part, (before, after)), way in zip(LOOKS.items(), _look(look), strict=True)
    }
    return re.sub(r"\ba (?=eight|8)", "an ", " ".join(order.format(name=name, **words).split()))


def calculations(digit: int) -> tuple[str, ...]:
    """The sums and products of numbers from 0 (1 in products) to 9 that make a digit, in words.

    Args:
        digit: 0 .. 9.

    Raises:
        TypeError, ValueError: another digit.

    >>> calculations(2)
    ('zero plus two', 'one plus one', 'two plus zero', 'one times two', 'two times one')
    """
    _check_digit(digit)
    sums = [f"{NAMES[a]} plus {NAMES[digit - a]}" for a in range(digit + 1)]
    return (
        *sums,
        *(f"{NAMES[a]} times {NAMES[digit // a]}" for a in range(1, digit + 1) if digit % a == 0),
    )


def _look(look: Any) -> tuple[int, ...]:
    listed = isinstance(look, Sequence) or (isinstance(look, np.ndarray) and look.ndim == 1)
    if (
        not listed
        or len(look) != len(LOOKS)
        or not all(isinstance(part, int | np.integer) and part in (-1, 0, 1) for part in look)
    ):
        raise ValueError(f"look must be -1, 0 or 1 for each of {', '.join(LOOKS)}, got {look!r}")
    return tuple(look)


def _check_digit(digit: Any) -> None:
    if _validation.integer("digit", digit, low=0) >= len(NAMES):
        raise ValueError(f"digit must lie in 0 .. {len(NAMES) - 1}, got {digit}")


def _check_orders(orders: Any) -> None:
    for order in require_texts("orders", orders):
        places, rest = re.findall(r"\{(.*?)\}", order), re.sub(r"\{.*?\}", "", order)
        if (
            "name" not in places
            or not {"name", *LOOKS}.issuperset(places)
            or "{" in rest
            or "}" in rest
        ):
            raise ValueError(
                f"orders must have places for {{name}} and perhaps for {', '.join(LOOKS)}, got {order!r}"
            )
