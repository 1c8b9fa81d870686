"""Byte-pair encoding, the tokens of pretrained text models: frequent parts of words, down to single bytes, so that no text is unknown.

    "A seven"  ->  <|startoftext|> a</w> seven</w> <|endoftext|> <|endoftext|> ...        "</w>" ends a word, the last token fills up

A text is written in lower case and cut into words; each word starts as its bytes, and the pairs that a list of merges names are joined, the
first of the list first (Sennrich, Haddow and Birch 2016). The `tokenizers` library does this; here is what CLIP's folders do not say
themselves, and a value of it all that can be compared.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, Integer

from diffprog import _validation
from diffprog.contrastive._tokenizers import require_texts
from diffprog.pretrained._safetensors import extra, folder_of, json_of

_START, _END, _END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"
# English contractions, words of letters, single digits, and runs of whatever else is no space (Radford et al. 2021).
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class BytePairs:
    """A byte-pair tokenizer; made by `byte_pairs`.

    Attributes:
        definition: all that the `tokenizers` library needs to know, in its JSON.
        length: of every row.
        end: the id after which a text has nothing more to say.
    """

    definition: str = dataclasses.field(repr=False)
    length: int
    end: int

    @property
    def count(self) -> int:
        """How many ids there are: one more than the largest."""
        return 1 + max(_opened(self.definition).get_vocab(with_added_tokens=True).values())

    def encode(self, texts: Sequence[str]) -> Int[np.ndarray, "texts length"]:
        """Ids of each text between those of start and end, cut to fit (the end stays) or filled up.

        Raises:
            TypeError, ValueError: not a sequence of texts.
        """
        encoded = _opened(self.definition).encode_batch(list(require_texts("texts", texts)))
        return np.asarray([each.ids for each in encoded], np.int32)

    def decode(self, ids: Integer[Any, "texts length"]) -> tuple[str, ...]:
        """The texts of rows of ids, up to the first end, in lower case and with a space after each word.

        Raises:
            TypeError, ValueError: ids that are not integers (texts, length) in 0 .. count - 1.
        """
        rows = _validation.array("ids", ids)
        if not np.issubdtype(rows.dtype, np.integer) or rows.ndim != 2:
            raise TypeError(
                f"ids must be integers (texts, length), got {rows.dtype}{list(rows.shape)}"
            )
        _validation.within("ids", rows, 0, self.count - 1)
        said = [
            row[: row.index(self.end)] if self.end in row else row
            for row in np.asarray(rows).tolist()
        ]
        decoded = _opened(self.definition).decode_batch(said, skip_special_tokens=True)
        return tuple(text.replace(_END_OF_WORD, " ").strip() for text in decoded)


@functools.lru_cache(maxsize=4)
def _opened(definition: str) -> Any:
    return extra("tokenizers").Tokenizer.from_str(definition)


def byte_pairs(folder: str | os.PathLike[str], *, length: int = 77) -> BytePairs:
    """The tokenizer of a CLIP folder: tokenizer.json, or vocab.json and merges.txt.

    Args:
        folder: where these are; what fills up rows is the pad_token of tokenizer_config.json or special_tokens_map.json there, and the end
            of a text where neither states it.
        length: of every row, at least 2; a longer text is cut.

    Raises:
        ImportError: tokenizers is not installed (the extra "pretrained").
        FileNotFoundError: no such folder, or none of these files.
        TypeError, ValueError: a length out of its range, corrupt files, a vocabulary without start, end or filling token.

    Source: A. Radford et al., "Learning transferable visual models from natural language supervision", 2021.

    >>> byte_pairs("no/such/folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: folder must be an existing folder, got no/such/folder
    """
    place, length = folder_of(folder), _validation.integer("length", length, low=2)
    tokenizer = _read(place)
    start, end, fill = (
        _stated(place, *token)
        for token in (("bos_token", _START), ("eos_token", _END), ("pad_token", _END))
    )
    ids = {token: tokenizer.token_to_id(token) for token in (start, end, fill)}
    if unknown := [token for token, number in ids.items() if number is None]:
        raise ValueError(
            f"{place}: expected a vocabulary with {', '.join(ids)}, found none of {', '.join(unknown)} in it"
        )
    tokenizer.add_special_tokens(list(ids))
    if tokenizer.post_processor is None:
        tokenizer.post_processor = extra("tokenizers").processors.RobertaProcessing(
            (end, ids[end]), (start, ids[start]), False, False
        )
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=ids[fill], pad_token=fill)
    return BytePairs(tokenizer.to_str(), length, ids[end])


def _read(folder: Path) -> Any:
    tokenizers = extra("tokenizers")
    whole, vocabulary, merges = (
        folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt")
    )
    if not whole.is_file() and not (vocabulary.is_file() and merges.is_file()):
        raise FileNotFoundError(
            f"{folder}: expected tokenizer.json, or vocab.json and merges.txt, found neither"
        )
    try:
        return (
            tokenizers.Tokenizer.from_file(str(whole))
            if whole.is_file()
            else _built(tokenizers, str(vocabulary), str(merges))
        )
    # The library has no exception of its own.
    except Exception as error:
        found = whole.name if whole.is_file() else f"{vocabulary.name} and {merges.name}"
        raise ValueError(
            f"{folder}: expected a byte-pair tokenizer in {found}, found something else: {error}"
        ) from error


def _built(tokenizers: Any, vocabulary: str, merges: str) -> Any:
    """The tokenizer of CLIP with these parts of words."""
    cut, clean = tokenizers.pre_tokenizers, tokenizers.normalizers
    pieces = tokenizers.models.BPE.from_file(
        vocabulary, merges, unk_token=_END, end_of_word_suffix=_END_OF_WORD, fuse_unk=False
    )
    tokenizer = tokenizers.Tokenizer(pieces)
    tokenizer.normalizer = clean.Sequence(
        [clean.NFC(), clean.Replace(tokenizers.Regex(r"\s+"), " "), clean.Lowercase()]
    )
    words = cut.Split(tokenizers.Regex(_WORDS), "removed", invert=True)
    tokenizer.pre_tokenizer = cut.Sequence([words, cut.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def _stated(folder: Path, name: str, usual: str) -> str:
    """A special token as the folder states it."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        stated = json_of(folder / file).get(name) if (folder / file).is_file() else None
        token = stated.get("content") if isinstance(stated, dict) else stated
        if stated is None:
            continue
        if not isinstance(token, str) or not token:
            raise ValueError(
                f"{folder / file}: expected {name} to be a token, or an object with its content, found {stated!r}"
            )
        return token
    return usual
