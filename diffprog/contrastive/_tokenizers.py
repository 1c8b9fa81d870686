"""Tokens: a sentence as a row of integers, and back.

    "A thin seven"  ->  words: a, thin, seven  ->  3 17 12 0 0 0        0 fills up to one length, so that sentences make an array

A tokenizer says which pieces it knows, and refuses what it does not: a piece that was never trained on has an embedding that means nothing.
The two here cut a sentence into its words or into its characters; those of pretrained models cut it into frequent parts of words.
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
    """What towers need of a tokenizer: a frozen value, compared by what it holds, without leaves for `jax.jit`."""

    def encode(self, texts: Sequence[str]) -> Int[np.ndarray, "texts length"]:
        """A row of ids for each text, all of one length."""

    def decode(self, ids: Integer[Any, "texts length"]) -> tuple[str, ...]:
        """The texts of such rows."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Pieces:
    """A tokenizer that knows a list of pieces; made by `words` and `characters`.

    Piece k has id k + 1; 0 is what rows are filled up with.

    Attributes:
        known: the pieces.
        length: of every row.
        between: what stands between two pieces of a sentence, " " or "".
    """

    known: tuple[str, ...]
    length: int
    between: str

    @property
    def count(self) -> int:
        """How many ids there are, 0 among them."""
        return 1 + len(self.known)

    def encode(self, texts: Sequence[str]) -> Int[np.ndarray, "texts length"]:
        """Ids of the pieces of each text, as it is read: without regard to case, punctuation or repeated spaces.

        Raises:
            TypeError, ValueError: not a sequence of texts, one with no piece, too many of them, or one that is not known.

        >>> words(["a thin seven"], length=4).encode(["Seven, thin!"])
        array([[2, 3, 0, 0]], dtype=int32)
        """
        ids = {piece: k for k, piece in enumerate(self.known, 1)}
        rows = np.full((len(require_texts("texts", texts)), self.length), PADDING, np.int32)
        for k, text in enumerate(texts):
            pieces = _cut(text, self.between)
            unknown = sorted({piece for piece in pieces if piece not in ids})
            if unknown:
                raise ValueError(
                    f"texts[{k}] must hold known pieces, got {', '.join(map(repr, unknown))} in {text!r}; there are {self}"
                )
            if not 0 < len(pieces) <= self.length:
                raise ValueError(
                    f"texts[{k}] must have 1 to {self.length} pieces, got {len(pieces)} in {text!r}"
                )
            rows[k, : len(pieces)] = [ids[piece] for piece in pieces]
        return rows

    def decode(self, ids: Integer[Any, "texts length"]) -> tuple[str, ...]:
        """The texts that rows of ids stand for, ids of 0 left out.

        Raises:
            TypeError, ValueError: ids that are not integers (texts, length) in 0 .. count - 1.

        >>> words(["a thin seven"]).decode(np.array([[2, 3, 0]]))
        ('seven thin',)
        """
        rows = _validation.array("ids", ids)
        if not np.issubdtype(rows.dtype, np.integer) or rows.ndim != 2:
            raise TypeError(
                f"ids must be integers (texts, length), got {rows.dtype}{list(rows.shape)}"
            )
        _validation.within("ids", rows, 0, len(self.known))
        return tuple(
            self.between.join(self.known[k - 1] for k in row if k != PADDING)
            for row in np.asarray(rows)
        )

    def __str__(self) -> str:
        """The pieces."""
        return " ".join(self.known)


def words(texts: Sequence[str], *, length: int | None = None) -> Pieces:
    """The tokenizer of the words there are in some texts, in alphabetical order.

    Args:
        texts: sentences.
        length: of every row; that of the longest of the texts by default.

    Raises:
        TypeError, ValueError: not a sequence of texts, texts without a word, a length below 1.

    >>> words(["a thin seven", "a one"]).known
    ('a', 'one', 'seven', 'thin')
    """
    cut = [_cut(text, " ") for text in require_texts("texts", texts)]
    longest = max(map(len, cut))
    if longest == 0:
        raise ValueError("texts must hold at least one word, got none")
    return Pieces(
        tuple(sorted(set().union(*cut))),
        longest if length is None else _validation.integer("length", length, low=1),
        " ",
    )


def characters(
    *, length: int = 64, alphabet: str = " 0123456789abcdefghijklmnopqrstuvwxyz"
) -> Pieces:
    """The tokenizer of single characters: there is no word that it does not know.

    Args:
        length: of every row.
        alphabet: the characters, each once and in lower case: those of words, and the space between.

    Raises:
        TypeError, ValueError: an argument out of these.

    >>> characters(length=5).encode(["a 7"])
    array([[12,  1,  9,  0,  0]], dtype=int32)
    """
    if not isinstance(alphabet, str):
        raise TypeError(f"alphabet must be a string, got {type(alphabet).__name__}")
    if not alphabet or len(set(alphabet)) < len(alphabet) or alphabet != alphabet.lower():
        raise ValueError(f"alphabet must be different characters in lower case, got {alphabet!r}")
    if unread := [
        character
        for character in alphabet
        if character != " " and _cut(character, "") != [character]
    ]:
        raise ValueError(
            f"alphabet must hold characters that are read, got {', '.join(map(repr, unread))}, which no word has"
        )
    return Pieces(tuple(alphabet), _validation.integer("length", length, low=1), "")


def require_texts(name: str, texts: Any) -> Sequence[str]:
    """A sequence of one or more strings."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(
            f"{name} must be a sequence of texts, got {type(texts).__name__}; put a single one in a list"
        )
    if not texts:
        raise ValueError(f"{name} must hold at least one text, got none")
    for k, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{k}] must be a text, got {type(text).__name__}")
    return texts


def _cut(text: str, between: str) -> list[str]:
    read = re.findall(r"\w+", unicodedata.normalize("NFC", text.lower()))
    return read if between else list(" ".join(read))
