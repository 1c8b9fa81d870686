"""Captions: moments against drawings whose answer is known, thirds within a digit, and sentences that are true."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffprog as dp
from diffprog.contrastive._captions import LOOKS

con = dp.contrastive

DIGITS = dp.data.digits()


MALFORMED = ("a {name} {", "a {name", "a {name} }", "{name!x}", "{name:5d}", "{{name}}", "{name} {}")
NO_LOOKS = ((1.0, 0.0, 0.0), "001", (0, "a", 0), [[0], [0], [0]], np.zeros(()), np.zeros((3, 3), int), np.zeros(3), None)


def line(slant, side=9, ink=1.0):
    """Ink along a line of so many columns to the right for each row up, through the middle."""
    image = np.zeros((1, side, side, 1), np.float32)
    rows = np.arange(side // 2 - 2, side // 2 + 3)
    image[0, rows, side // 2 - slant * (rows - side // 2), 0] = ink
    return image


@pytest.mark.parametrize("slant", [-1, 0, 1])
def test_slant_of_a_line(slant):
    np.testing.assert_allclose(con.measures(line(slant)).slant, slant)


def test_size_of_a_frame_and_of_its_double():
    small, large = np.zeros((2, 1, 9, 9, 1))
    small[0, [3, 3, 5, 5], [3, 5, 3, 5]] = 1
    large[0, [2, 2, 6, 6], [2, 6, 2, 6]] = 1
    np.testing.assert_allclose(con.measures(small).size, np.sqrt(2))
    np.testing.assert_allclose(con.measures(large).size, 2 * np.sqrt(2))


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(-1, 1), st.integers(-1, 1), st.floats(0.1, 1))
def test_where_it_is_and_how_much_ink_change_neither_size_nor_slant(index, down, right, ink):
    image = np.pad(np.asarray(DIGITS.x_test[index : index + 1]), ((0, 0), (1, 1), (1, 1), (0, 0)))
    here, there = con.measures(image), con.measures((ink * np.roll(image, (down, right), (1, 2))).astype(np.float32))
    np.testing.assert_allclose(there.size, here.size, rtol=1e-5)
    np.testing.assert_allclose(there.slant, here.slant, atol=1e-5)
    np.testing.assert_allclose(there.boldness, ink * here.boldness, rtol=1e-5)


def test_mirrored_it_leans_the_other_way():
    images = np.asarray(DIGITS.x_test)
    np.testing.assert_allclose(con.measures(images[:, :, ::-1]).slant, -con.measures(images).slant, atol=1e-6)


def test_no_ink_has_no_size():
    assert [float(value[0]) for value in con.measures(np.zeros((1, 4, 4, 1), np.float32))] == [0, 0, 0]


def test_a_third_of_each_digit_has_each_word():
    found, measured = con.looks(DIGITS.x_train, DIGITS.y_train), np.stack(con.measures(DIGITS.x_train), 1)
    for digit in range(10):
        those = np.asarray(DIGITS.y_train) == digit
        for part in (-1, 1):
            np.testing.assert_allclose((found[those] == part).mean(0), 1 / 3, atol=0.05)
        for k in range(3):
            assert measured[those][found[those, k] == -1, k].max() < measured[those][found[those, k] == 1, k].min()


def test_every_caption_is_true_and_says_no_more_than_that():
    sentences = con.captions(7, (-1, 0, 1))
    assert "a thin seven" in sentences
    assert "a 7 leaning right" in sentences
    assert "seven" in sentences
    assert not [text for text in sentences if re.search("bold|small|large|left", text)]
    assert len(set(sentences)) == len(sentences)
    assert set(con.captions(7)) < set(sentences)


@pytest.mark.parametrize("digit", range(10))
def test_calculations_come_to_the_digit(digit):
    number = dict(zip(con.NAMES, range(10), strict=True))
    for text in con.calculations(digit):
        a, sign, b = text.split()
        assert {"plus": number[a] + number[b], "times": number[a] * number[b]}[sign] == digit
        assert text in con.captions(digit)


def test_no_caption_is_true_of_two_digits():
    every = [set(con.captions(digit, (1, -1, 1))) for digit in range(10)]
    assert len(set.union(*every)) == sum(map(len, every))


def test_an_eight():
    sentences = con.captions(8, (-1, 0, 0))
    assert {"an eight", "an 8", "a thin eight"} <= set(sentences)
    assert not [text for text in sentences if re.search(r"\ba (eight|8)", text)]


def test_an_order_fills_its_places_and_leaves_none():
    assert con.caption("{slant} the {name} {boldness} {size}", "3", (1, -1, 0)) == "the 3 bold small"
    assert con.caption("{name}", "three", (1, -1, 1)) == "three"
    assert all(set(re.findall(r"\{(.*?)\}", order)) == {"name", *LOOKS} for order in con.ORDERS)
    full = {con.caption(order, "three", (1, 1, 1)) for order in con.ORDERS}
    assert len(full) == len(con.ORDERS)
    assert full <= set(con.captions(3, (1, 1, 1)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: con.measures([[1.0]]), TypeError, "images must be an array"),
        (lambda: con.measures(np.ones((1, 4, 4, 1), int)), TypeError, "images must be a float array"),
        (lambda: con.measures(np.ones((4, 4))), ValueError, "rank 4"),
        (lambda: con.measures(np.full((1, 4, 4, 1), 2.0)), ValueError, "images must lie in 0 .. 1"),
        (lambda: con.measures(np.full((1, 4, 4, 1), np.nan)), ValueError, "finite"),
        (lambda: con.measures(np.ones((0, 4, 4, 1))), ValueError, "empty"),
        (lambda: jax.jit(lambda x: jnp.asarray(con.measures(x)[0]))(jnp.ones((1, 4, 4, 1))), TypeError, "traced"),
        (lambda: con.looks(np.ones((2, 4, 4, 1)), np.array([1])), ValueError, "leading axes must agree"),
        (lambda: con.looks(np.ones((1, 4, 4, 1)), np.array([10])), ValueError, "labels must lie in 0 .. 9"),
        (lambda: con.looks(np.ones((1, 4, 4, 1)), np.array([1.0])), TypeError, "labels must be integer"),
        (lambda: con.captions(10), ValueError, "digit must lie in 0 .. 9"),
        (lambda: con.captions(-1), ValueError, "digit"),
        (lambda: con.captions("seven"), TypeError, "digit"),
        (lambda: con.captions(7, (0, 0)), ValueError, "look must be -1, 0 or 1 for each of boldness, size, slant"),
        (lambda: con.captions(7, (0, 0, 2)), ValueError, "look"),
        (lambda: con.captions(7, 0), ValueError, "look"),
        (lambda: con.captions(7, orders="a {name}"), TypeError, "orders must be a sequence"),
        (lambda: con.captions(7, orders=[]), ValueError, "orders must hold at least one"),
        (lambda: con.captions(7, orders=["a digit"]), ValueError, "orders must have places"),
        (lambda: con.captions(7, orders=["a {color} {name}"]), ValueError, "orders must have places"),
        (lambda: con.captions(7, orders=[7]), TypeError, "orders"),
        (lambda: con.calculations(10), ValueError, "digit"),
        (lambda: con.caption("a digit", "7"), ValueError, "orders must have places"),
        (lambda: con.caption(7, "7"), TypeError, "orders"),
        *((lambda order=order: con.caption(order, "7"), ValueError, "orders must have places") for order in MALFORMED),
        (lambda: con.caption("a {name}", " "), ValueError, "name must say something, got ' '"),
        (lambda: con.caption("a {name}", 7), TypeError, "name must be a text, got int"),
        *((lambda look=look: con.caption("a {name}", "7", look), ValueError, "look must be -1, 0 or 1") for look in NO_LOOKS),
        (lambda: con.caption("a {name}", "7", (0, 0, 2)), ValueError, "look"),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
