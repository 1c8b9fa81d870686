"""Captions: measured styles of known drawings, thirds within a digit, true sentences."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffprog as dp
from experiments.digit_captions import (
    NAMES,
    STYLE_WORDS,
    TEMPLATES,
    calculations,
    classify_style,
    measure_style,
    true_captions,
    write_caption,
)

DIGITS = dp.data.digits()


@pytest.mark.parametrize("slant", [-1, 0, 1])
def test_slant_of_a_line(slant):
    image = np.zeros((1, 9, 9, 1), np.float32)
    rows = np.arange(2, 7)
    image[0, rows, 4 - slant * (rows - 4), 0] = 1
    np.testing.assert_allclose(measure_style(image).slant, slant)


def test_size_of_a_square_and_of_its_double():
    small, large = np.zeros((2, 1, 9, 9, 1))
    small[0, [3, 3, 5, 5], [3, 5, 3, 5]] = 1
    large[0, [2, 2, 6, 6], [2, 6, 2, 6]] = 1
    np.testing.assert_allclose(measure_style(small).size, np.sqrt(2))
    np.testing.assert_allclose(measure_style(large).size, 2 * np.sqrt(2))


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(-1, 1), st.integers(-1, 1), st.floats(0.1, 1))
def test_position_and_amount_of_ink_change_neither_size_nor_slant(index, down, right, ink):
    image = np.pad(np.asarray(DIGITS.x_test[index : index + 1]), ((0, 0), (1, 1), (1, 1), (0, 0)))
    style = measure_style(image)
    shifted = measure_style((ink * np.roll(image, (down, right), (1, 2))).astype(np.float32))
    np.testing.assert_allclose(shifted.size, style.size, rtol=1e-5)
    np.testing.assert_allclose(shifted.slant, style.slant, atol=1e-5)
    np.testing.assert_allclose(shifted.boldness, ink * style.boldness, rtol=1e-5)


def test_mirrored_digits_lean_the_other_way():
    images = np.asarray(DIGITS.x_test)
    slant, mirrored = measure_style(images).slant, measure_style(images[:, :, ::-1]).slant
    np.testing.assert_allclose(mirrored, -slant, atol=1e-6)


def test_an_image_without_ink_has_style_zero():
    assert [value.item() for value in measure_style(np.zeros((1, 4, 4, 1)))] == [0, 0, 0]


def test_a_third_of_each_digit_gets_each_word():
    levels = classify_style(DIGITS.x_train, DIGITS.y_train)
    measured = np.stack(measure_style(DIGITS.x_train), 1)
    for digit in range(10):
        of_digit = np.asarray(DIGITS.y_train) == digit
        for level in (-1, 1):
            share = (levels[of_digit] == level).mean(0)
            np.testing.assert_allclose(share, 1 / 3, atol=0.05)
        for k in range(3):
            low = measured[of_digit & (levels[:, k] == -1), k]
            high = measured[of_digit & (levels[:, k] == 1), k]
            assert low.max() < high.min()


def test_captions_mention_only_true_words():
    captions = true_captions(7, (-1, 0, 1))
    assert {"a thin seven", "a 7 leaning right", "seven"} <= set(captions)
    assert not [text for text in captions if re.search("bold|small|large|left", text)]
    assert len(set(captions)) == len(captions)
    assert set(true_captions(7)) < set(captions)


@pytest.mark.parametrize("digit", range(10))
def test_calculations_equal_the_digit(digit):
    number = dict(zip(NAMES, range(10), strict=True))
    for text in calculations(digit):
        a, sign, b = text.split()
        assert {"plus": number[a] + number[b], "times": number[a] * number[b]}[sign] == digit
        assert text in true_captions(digit)


def test_no_caption_is_true_of_two_digits():
    captions = [set(true_captions(digit, (1, -1, 1))) for digit in range(10)]
    assert len(set.union(*captions)) == sum(map(len, captions))


def test_eight_takes_an():
    captions = true_captions(8, (-1, 0, 0))
    assert {"an eight", "an 8", "a thin eight"} <= set(captions)
    assert not [text for text in captions if re.search(r"\ba (eight|8)", text)]


def test_templates_are_filled_completely():
    template = "{slant} the {name} {boldness} {size}"
    assert write_caption(template, "3", (1, -1, 0)) == "the 3 bold small"
    assert write_caption("{name}", "three", (1, -1, 1)) == "three"
    fields = {"name", *STYLE_WORDS}
    assert all(set(re.findall(r"\{(.*?)\}", template)) == fields for template in TEMPLATES)
    full = {write_caption(template, "three", (1, 1, 1)) for template in TEMPLATES}
    assert len(full) == len(TEMPLATES)
    assert full <= set(true_captions(3, (1, 1, 1)))


def test_templates_need_a_name():
    with pytest.raises(ValueError, match=r"template must contain \{name\}, got 'a digit'"):
        write_caption("a digit", "7")
