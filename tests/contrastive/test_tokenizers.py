"""Tokenizers of words and characters: round trips, normalization, padding, and errors."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprog.contrastive import characters, words

WORDS = words(["a thin seven", "a one leaning left", "two times four"], length=6)
CHARACTERS = characters(length=20)


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(WORDS.known), min_size=1, max_size=6).map(" ".join),
        min_size=1,
        max_size=5,
    )
)
def test_decode_inverts_encode_of_words(texts):
    ids = WORDS.encode(texts)
    assert ids.shape == (len(texts), 6)
    assert ids.dtype == np.int32
    assert WORDS.decode(ids) == tuple(texts)


@settings(deadline=None)
@given(st.text(alphabet=CHARACTERS.known[1:], min_size=1, max_size=20))
def test_decode_inverts_encode_of_characters(text):
    assert CHARACTERS.decode(CHARACTERS.encode([text])) == (text,)


@pytest.mark.parametrize("tokenizer", [WORDS, CHARACTERS])
def test_case_punctuation_and_spaces_are_ignored(tokenizer):
    np.testing.assert_array_equal(*tokenizer.encode(["a thin seven", "  A thin,\tSEVEN! "]))


def test_combining_accents_are_composed():
    composed, decomposed = "caf\u00e9 \u1e69", "cafe\u0301 s\u0323\u0307"
    tokenizer = words([decomposed])
    assert tokenizer == words([composed])
    np.testing.assert_array_equal(tokenizer.encode([decomposed]), tokenizer.encode([composed]))


def test_word_order_is_kept():
    ids = WORDS.encode(["thin seven", "seven thin"])
    assert (ids[0] != ids[1]).any()
    np.testing.assert_array_equal(np.sort(ids[0]), np.sort(ids[1]))


def test_ids_are_consecutive_and_zero_is_padding():
    assert WORDS.count == 1 + len(WORDS.known)
    ids = WORDS.encode(list(WORDS.known))
    np.testing.assert_array_equal(ids[:, 0], np.arange(1, WORDS.count))
    np.testing.assert_array_equal(ids[:, 1:], 0)


def test_the_default_length_is_that_of_the_longest_text():
    assert words(["a", "b c d"]).length == 3


def test_tokenizers_are_compared_by_value_and_have_no_leaves():
    again = words(["a thin seven", "a one leaning left", "two times four"], length=6)
    assert again == WORDS
    assert hash(again) == hash(WORDS)
    assert jax.tree.leaves(WORDS) == []
    assert characters() != WORDS


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: WORDS.encode("a seven"), TypeError, "texts must be a sequence of texts, got str"),
        (lambda: WORDS.encode([]), ValueError, "at least one text"),
        (lambda: WORDS.encode(["a", 7]), TypeError, r"texts\[1\] must be a text, got int"),
        (
            lambda: WORDS.encode(["a", "a cat"]),
            ValueError,
            r"texts\[1\] must hold tokens of the vocabulary, got 'cat'.*seven",
        ),
        (lambda: WORDS.encode(["!"]), ValueError, r"texts\[0\] must have 1 to 6 tokens, got 0"),
        (lambda: WORDS.encode(["a a a a a a a"]), ValueError, "got 7"),
        (lambda: CHARACTERS.encode(["é"]), ValueError, "'é'"),
        (lambda: WORDS.decode([[1]]), TypeError, "ids must be an array"),
        (lambda: WORDS.decode(np.array([1])), TypeError, "ids must be integers"),
        (lambda: WORDS.decode(np.array([[1.0]])), TypeError, "ids must be integers"),
        (lambda: WORDS.decode(np.array([[WORDS.count]])), ValueError, "ids must lie in"),
        (lambda: WORDS.decode(np.array([[-1]])), ValueError, "ids must lie in"),
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
            "must hold characters that occur in words, got '-', '!', which encoding ignores",
        ),
        (
            lambda: characters(alphabet="e\u0301"),
            ValueError,
            "alphabet must hold characters that occur in words",
        ),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
