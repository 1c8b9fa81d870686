"""Captions: moments against drawings whose answer is known, thirds within a digit, and sentences that are true."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffprog as dp
from experiments import digit_captions
from experiments.digit_captions import LOOKS

DIGITS = dp.data.digits()


MALFORMED = (
    "a {name} {",
    "a {name",
    "a {name} }",
    "{name!x}",
    "{name:5d}",
    "{{name}}",
    "{name} {}",
)
NO_LOOKS = (
    (1.0, 0.0, 0.0),
    "001",
    (0, "a", 0),
    [[0], [0], [0]],
    np.zeros(()),
    np.zeros((3, 3), int),
    np.zeros(3),
    None,
)


def line(slant, side=9, ink=1.0):
    """Ink along a line of so many columns to the right for each row up, through the middle."""
    image = np.zeros((1, side, side, 1), np.float32)
    rows = np.arange(side // 2 - 2, side // 2 + 3)
    image[0, rows, side // 2 - slant * (rows - side // 2), 0] = ink
    return image


@pytest.mark.parametrize("slant", [-1, 0, 1])
def test_slant_of_a_line(slant):
    np.testing.assert_allclose(digit_captions.measures(line(slant)).slant, slant)


def test_size_of_a_frame_and_of_its_double():
    small, large = np.zeros((2, 1, 9, 9, 1))
    small[0, [3, 3, 5, 5], [3, 5, 3, 5]] = 1
    large[0, [2, 2, 6, 6], [2, 6, 2, 6]] = 1
    np.testing.assert_allclose(digit_captions.measures(small).size, np.sqrt(2))
    np.testing.assert_allclose(digit_captions.measures(large).size, 2 * np.sqrt(2))


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(-1, 1), st.integers(-1, 1), st.floats(0.1, 1))
def test_where_it_is_and_how_much_ink_change_neither_size_nor_slant(index, down, right, ink):
    image = np.pad(np.asarray(DIGITS.x_test[index : index + 1]), ((0, 0), (1, 1), (1, 1), (0, 0)))
    here, there = (
        digit_captions.measures(image),
        digit_captions.measures((ink * np.roll(image, (down, right), (1, 2))).astype(np.float32)),
    )
    np.testing.assert_allclose(there.size, here.size, rtol=1e-5)
    np.testing.assert_allclose(there.slant, here.slant, atol=1e-5)
    np.testing.assert_allclose(there.boldness, ink * here.boldness, rtol=1e-5)


def test_mirrored_it_leans_the_other_way():
    images = np.asarray(DIGITS.x_test)
    np.testing.assert_allclose(
        digit_captions.measures(images[:, :, ::-1]).slant,
        -digit_captions.measures(images).slant,
        atol=1e-6,
    )


def test_no_ink_has_no_size():
    assert [
        float(value[0]) for value in digit_captions.measures(np.zeros((1, 4, 4, 1), np.float32))
    ] == [
        0,
        0,
        0,
    ]


def test_a_third_of_each_digit_has_each_word():
    found, measured = (
        digit_captions.looks(DIGITS.x_train, DIGITS.y_train),
        np.stack(digit_captions.measures(DIGITS.x_train), 1),
    )
    for digit in range(10):
        those = np.asarray(DIGITS.y_train) == digit
        for part in (-1, 1):
            np.testing.assert_allclose((found[those] == part).mean(0), 1 / 3, atol=0.05)
        for k in range(3):
            assert (
                measured[those][found[those, k] == -1, k].max()
                < measured[those][found[those, k] == 1, k].min()
            )


def test_every_caption_is_true_and_says_no_more_than_that():
    sentences = digit_captions.captions(7, (-1, 0, 1))
    assert "a thin seven" in sentences
    assert "a 7 leaning right" in sentences
    assert "seven" in sentences
    assert not [text for text in sentences if re.search("bold|small|large|left", text)]
    assert len(set(sentences)) == len(sentences)
    assert set(digit_captions.captions(7)) < set(sentences)


@pytest.mark.parametrize("digit", range(10))
def test_calculations_come_to_the_digit(digit):
    number = dict(zip(digit_captions.NAMES, range(10), strict=True))
    for text in digit_captions.calculations(digit):
        a, sign, b = text.split()
        assert {"plus": number[a] + number[b], "times": number[a] * number[b]}[sign] == digit
        assert text in digit_captions.captions(digit)


def test_no_caption_is_true_of_two_digits():
    every = [set(digit_captions.captions(digit, (1, -1, 1))) for digit in range(10)]
    assert len(set.union(*every)) == sum(map(len, every))


def test_an_eight():
    sentences = digit_captions.captions(8, (-1, 0, 0))
    assert {"an eight", "an 8", "a thin eight"} <= set(sentences)
    assert not [text for text in sentences if re.search(r"\ba (eight|8)", text)]


def test_an_order_fills_its_places_and_leaves_none():
    assert (
        digit_captions.caption("{slant} the {name} {boldness} {size}", "3", (1, -1, 0))
        == "the 3 bold small"
    )
    assert digit_captions.caption("{name}", "three", (1, -1, 1)) == "three"
    assert all(
        set(re.findall(r"\{(.*?)\}", order)) == {"name", *LOOKS} for order in digit_captions.ORDERS
    )
    full = {digit_captions.caption(order, "three", (1, 1, 1)) for order in digit_captions.ORDERS}
    assert len(full) == len(digit_captions.ORDERS)
    assert full <= set(digit_captions.captions(3, (1, 1, 1)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: digit_captions.measures([[1.0]]), TypeError, "images must be an array"),
        (
            lambda: digit_captions.measures(np.ones((1, 4, 4, 1), int)),
            TypeError,
            "images must be a float array",
        ),
        (lambda: digit_captions.measures(np.ones((4, 4))), ValueError, "rank 4"),
        (
            lambda: digit_captions.measures(np.full((1, 4, 4, 1), 2.0)),
            ValueError,
            "images must lie in 0 .. 1",
        ),
        (lambda: digit_captions.measures(np.full((1, 4, 4, 1), np.nan)), ValueError, "finite"),
        (lambda: digit_captions.measures(np.ones((0, 4, 4, 1))), ValueError, "empty"),
        (
            lambda: jax.jit(lambda x: jnp.asarray(digit_captions.measures(x)[0]))(
                jnp.ones((1, 4, 4, 1))
            ),
            TypeError,
            "traced",
        ),
        (
            lambda: digit_captions.looks(np.ones((2, 4, 4, 1)), np.array([1])),
            ValueError,
            "leading axes must agree",
        ),
        (
            lambda: digit_captions.looks(np.ones((1, 4, 4, 1)), np.array([10])),
            ValueError,
            "labels must lie in 0 .. 9",
        ),
        (
            lambda: digit_captions.looks(np.ones((1, 4, 4, 1)), np.array([1.0])),
            TypeError,
            "labels must be integer",
        ),
        (lambda: digit_captions.captions(10), ValueError, "digit must lie in 0 .. 9"),
        (lambda: digit_captions.captions(-1), ValueError, "digit"),
        (lambda: digit_captions.captions("seven"), TypeError, "digit"),
        (
            lambda: digit_captions.captions(7, (0, 0)),
            ValueError,
            "look must be -1, 0 or 1 for each of boldness, size, slant",
        ),
        (lambda: digit_captions.captions(7, (0, 0, 2)), ValueError, "look"),
        (lambda: digit_captions.captions(7, 0), ValueError, "look"),
        (
            lambda: digit_captions.captions(7, orders="a {name}"),
            TypeError,
            "orders must be a sequence",
        ),
        (
            lambda: digit_captions.captions(7, orders=[]),
            ValueError,
            "orders must hold at least one",
        ),
        (
            lambda: digit_captions.captions(7, orders=["a digit"]),
            ValueError,
            "orders must have places",
        ),
        (
            lambda: digit_captions.captions(7, orders=["a {color} {name}"]),
            ValueError,
            "orders must have places",
        ),
        (lambda: digit_captions.captions(7, orders=[7]), TypeError, "orders"),
        (lambda: digit_captions.calculations(10), ValueError, "digit"),
        (lambda: digit_captions.caption("a digit", "7"), ValueError, "orders must have places"),
        (lambda: digit_captions.caption(7, "7"), TypeError, "orders"),
        *(
            (
                lambda order=order: digit_captions.caption(order, "7"),
                ValueError,
                "orders must have places",
            )
            for order in MALFORMED
        ),
        (
            lambda: digit_captions.caption("a {name}", " "),
            ValueError,
            "name must say something, got ' '",
        ),
        (lambda: digit_captions.caption("a {name}", 7), TypeError, "name must be a text, got int"),
        *(
            (
                lambda look=look: digit_captions.caption("a {name}", "7", look),
                ValueError,
                "look must be -1, 0 or 1",
            )
            for look in NO_LOOKS
        ),
        (lambda: digit_captions.caption("a {name}", "7", (0, 0, 2)), ValueError, "look"),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
