"""Tokenizers: what is read back, what is overlooked, one length, values without leaves, and what is refused."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprog.contrastive import characters, words

KNOWN = words(["a thin seven", "a one leaning left", "two times four"], length=6)
LETTERS = characters(length=20)


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(KNOWN.known), min_size=1, max_size=6).map(" ".join),
        min_size=1,
        max_size=5,
    )
)
def test_words_come_back(texts):
    ids = KNOWN.encode(texts)
    assert ids.shape == (len(texts), 6)
    assert ids.dtype == np.int32
    assert KNOWN.decode(ids) == tuple(texts)


@settings(deadline=None)
@given(st.text(alphabet=LETTERS.known[1:], min_size=1, max_size=20))
def test_characters_come_back(text):
    assert LETTERS.decode(LETTERS.encode([text])) == (text,)


@pytest.mark.parametrize("tokenizer", [KNOWN, LETTERS])
def test_case_punctuation_and_spaces_say_nothing(tokenizer):
    np.testing.assert_array_equal(*tokenizer.encode(["a thin seven", "  A thin,\tSEVEN! "]))


def test_a_letter_and_its_accent_may_come_apart():
    whole, apart = "caf\u00e9 \u1e69", "cafe\u0301 s\u0323\u0307"
    tokenizer = words([apart])
    assert tokenizer == words([whole])
    np.testing.assert_array_equal(tokenizer.encode([apart]), tokenizer.encode([whole]))


def test_word_order_says_something():
    ids = KNOWN.encode(["thin seven", "seven thin"])
    assert (ids[0] != ids[1]).any()
    np.testing.assert_array_equal(np.sort(ids[0]), np.sort(ids[1]))


def test_ids_are_dense_and_zero_fills_up():
    assert KNOWN.count == 1 + len(KNOWN.known)
    ids = KNOWN.encode(list(KNOWN.known))
    np.testing.assert_array_equal(ids[:, 0], np.arange(1, KNOWN.count))
    np.testing.assert_array_equal(ids[:, 1:], 0)


def test_the_length_is_that_of_the_longest_text():
    assert words(["a", "b c d"]).length == 3


def test_a_tokenizer_is_a_value_without_leaves():
    again = words(["a thin seven", "a one leaning left", "two times four"], length=6)
    assert again == KNOWN
    assert hash(again) == hash(KNOWN)
    assert jax.tree.leaves(KNOWN) == []
    assert characters() != KNOWN


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: KNOWN.encode("a seven"), TypeError, "texts must be a sequence of texts, got str"),
        (lambda: KNOWN.encode([]), ValueError, "at least one text"),
        (lambda: KNOWN.encode(["a", 7]), TypeError, r"texts\[1\] must be a text, got int"),
        (
            lambda: KNOWN.encode(["a", "a cat"]),
            ValueError,
            r"texts\[1\] must hold known pieces, got 'cat'.*seven",
        ),
        (lambda: KNOWN.encode(["!"]), ValueError, r"texts\[0\] must have 1 to 6 pieces, got 0"),
        (lambda: KNOWN.encode(["a a a a a a a"]), ValueError, "got 7"),
        (lambda: LETTERS.encode(["é"]), ValueError, "'é'"),
        (lambda: KNOWN.decode([[1]]), TypeError, "ids must be an array"),
        (lambda: KNOWN.decode(np.array([1])), TypeError, "ids must be integers"),
        (lambda: KNOWN.decode(np.array([[1.0]])), TypeError, "ids must be integers"),
        (lambda: KNOWN.decode(np.array([[99]])), ValueError, "ids must lie in"),
        (lambda: KNOWN.decode(np.array([[-1]])), ValueError, "ids must lie in"),
        (lambda: words("a seven"), TypeError, "texts"),
        (lambda: words(["..."]), ValueError, "at least one word"),
        (lambda: words(["a"], length=0), ValueError, "length"),
        (lambda: characters(length=1.5), TypeError, "length"),
        (lambda: characters(alphabet=["a"]), TypeError, "alphabet"),
        (lambda: characters(alphabet="aa"), ValueError, "alphabet"),
        (lambda: characters(alphabet="A"), ValueError, "alphabet"),
        (lambda: characters(alphabet=""), ValueError, "alphabet"),
        (
            lambda: characters(alphabet="ab-!"),
            ValueError,
            "alphabet must hold characters that are read, got '-', '!', which no word has",
        ),
        (
            lambda: characters(alphabet="e\u0301"),
            ValueError,
            "alphabet must hold characters that are read",
        ),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
