"""Tokenizers of words and of characters: encode sentences as rows of integer ids, and decode them.

    "A thin seven"  ->  a, thin, seven  ->  3 17 12 0 0 0       padded with 0 to a fixed length

Text outside the vocabulary is refused: its embedding would be untrained. Pretrained text encoders
use subwords instead, see `byte_pairs`.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Int, Integer

from diffprog import _validation

PADDING = 0


class Tokenizer(Protocol):
    """Interface of tokenizers, which encode texts as rows of integer ids and decode them.

    A tokenizer is hashable, compared by value, and a pytree without leaves, so that it can be part
    of a dual encoder that is an argument of a jitted function.
    """

    def encode(self, texts: Sequence[str]) -> Int[np.ndarray, "texts length"]:
        """Encode each text as a row of integer ids; all rows have the same length."""

    def decode(self, ids: Integer[Any, "texts length"]) -> tuple[str, ...]:
        """Decode each row of ids to a text."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Pieces:
    """Tokenizer with a fixed vocabulary, made by `words` or `characters`.

    Token k of the vocabulary has id k + 1; id 0 is padding.

    Attributes:
        known: tokens of the vocabulary, in the order of their ids.
        length: number of ids in a row.
        between: separator of tokens in a text, " " for words and "" for characters.
    """

    known: tuple[str, ...]
    length: int
    between: str

    @property
    def count(self) -> int:
        """Vocabulary size: number of distinct ids, including padding."""
        return 1 + len(self.known)

    def encode(self, texts: Sequence[str]) -> Int[np.ndarray, "texts length"]:
        """Encode each text as a row of ids; case, punctuation and repeated spaces are ignored.

        Raises:
            TypeError, ValueError: texts is not a sequence of texts, or a text has no token, more
                than `length`, or one outside the vocabulary.

        >>> words(["a thin seven"], length=4).encode(["Seven, thin!"])
        array([[2, 3, 0, 0]], dtype=int32)
        """
        ids = {token: k for k, token in enumerate(self.known, 1)}
        rows = np.full((len(check_texts("texts", texts)), self.length), PADDING, np.int32)
        for k, text in enumerate(texts):
            tokens = _tokenize(text, self.between)
            if unknown := sorted(set(tokens) - ids.keys()):
                raise ValueError(
                    f"texts[{k}] must hold tokens of the vocabulary, got "
                    f"{', '.join(map(repr, unknown))} in {text!r}; the vocabulary is: {self}"
                )
            if not 0 < len(tokens) <= self.length:
                raise ValueError(
                    f"texts[{k}] must have 1 to {self.length} tokens, got {len(tokens)} in {text!r}"
                )
            rows[k, : len(tokens)] = [ids[token] for token in tokens]
        return rows

    def decode(self, ids: Integer[Any, "texts length"]) -> tuple[str, ...]:
        """Decode each row of ids to a text; padding is dropped.

        Raises:
            TypeError, ValueError: ids are not integers (texts, length) in 0 .. count - 1.

        >>> words(["a thin seven"]).decode(np.array([[2, 3, 0]]))
        ('seven thin',)
        """
        rows = np.asarray(check_ids(ids, self.count))
        return tuple(self.between.join(self.known[k - 1] for k in row if k) for row in rows)

    def __str__(self) -> str:
        """Return the tokens of the vocabulary, separated by spaces."""
        return " ".join(self.known)


def words(texts: Sequence[str], *, length: int | None = None) -> Pieces:
    """Build a word tokenizer whose vocabulary is all words of `texts`, in alphabetical order.

    Args:
        texts: texts that contain every word of the vocabulary.
        length: number of ids in a row; default: number of words of the longest text.

    Raises:
        TypeError, ValueError: texts is not a sequence of texts or has no word, or length is below
            1.

    >>> words(["a thin seven", "a one"]).known
    ('a', 'one', 'seven', 'thin')
    """
    tokens = [_tokenize(text, " ") for text in check_texts("texts", texts)]
    longest = max(map(len, tokens))
    if longest == 0:
        raise ValueError("texts must hold at least one word, got none")
    length = longest if length is None else _validation.integer("length", length, low=1)
    return Pieces(tuple(sorted(set().union(*tokens))), length, " ")


def characters(
    *, length: int = 64, alphabet: str = " 0123456789abcdefghijklmnopqrstuvwxyz"
) -> Pieces:
    """Build a tokenizer whose tokens are single characters, so that any word can be encoded.

    Args:
        length: number of ids in a row.
        alphabet: vocabulary: distinct lower-case letters, digits and optionally the space.

    Raises:
        TypeError, ValueError: an argument is invalid.

    >>> characters(length=5).encode(["a 7"])
    array([[12,  1,  9,  0,  0]], dtype=int32)
    """
    if not isinstance(alphabet, str):
        raise TypeError(f"alphabet must be a string, got {type(alphabet).__name__}")
    if not alphabet or len(set(alphabet)) < len(alphabet) or alphabet != alphabet.lower():
        raise ValueError(f"alphabet must be distinct lower-case characters, got {alphabet!r}")
    ignored = [repr(each) for each in alphabet if each != " " and _tokenize(each, "") != [each]]
    if ignored:
        raise ValueError(
            "alphabet must hold characters that occur in words, "
            f"got {', '.join(ignored)}, which encoding ignores"
        )
    return Pieces(tuple(alphabet), _validation.integer("length", length, low=1), "")


def check_texts(name: str, texts: Any) -> Sequence[str]:
    """Check that `texts` is a nonempty sequence of strings, called `name` in errors; return it."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(
            f"{name} must be a sequence of texts, got {type(texts).__name__}; "
            "put a single text in a list"
        )
    if not texts:
        raise ValueError(f"{name} must hold at least one text, got none")
    for k, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{k}] must be a text, got {type(text).__name__}")
    return texts


def check_ids(ids: Any, count: int, lengths: range | None = None) -> Any:
    """Check that `ids` are integers (batch, length) in 0 .. count - 1, and return them.

    `lengths` are the lengths that are allowed; None for any.
    """
    array = _validation.array("ids", ids)
    got = f"got {array.dtype}{list(array.shape)}"
    if not np.issubdtype(array.dtype, np.integer) or (lengths is None and array.ndim != 2):
        raise TypeError(f"ids must be integers (batch, length), {got}")
    if lengths is not None and (array.ndim != 2 or array.shape[1] not in lengths):
        expected = " to ".join(map(str, dict.fromkeys((lengths[0], lengths[-1]))))
        raise ValueError(f"ids must have shape (batch, length) with length {expected}, {got}")
    _validation.within("ids", array, 0, count - 1)
    return array


def _tokenize(text: str, separator: str) -> list[str]:
    # NFC, so that a letter and its combining accent are one character.
    tokens = re.findall(r"\w+", unicodedata.normalize("NFC", text.lower()))
    return tokens if separator else list(" ".join(tokens))
