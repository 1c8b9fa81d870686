"""Byte-pair encoding, the subword tokenizer of CLIP.

    "A seven"  ->  <|startoftext|> a</w> seven</w> <|endoftext|> <|endoftext|> ...

A text is lower-cased and split into words, a word into its bytes; "</w>" marks the end of a word.
Then pairs of tokens are merged, in the order of a list of merges that was learned from frequencies
(Sennrich, Haddow and Birch, 2016). No text is outside the vocabulary, since it has all bytes.

The `tokenizers` library does the encoding. This module adds special tokens and padding, and the
lower-casing and splitting into words if the files of CLIP do not state them. A tokenizer can be
hashed and compared, so it can be a static argument of a jitted function.
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
from diffprog.contrastive._tokenizers import check_ids, check_texts
from diffprog.pretrained._safetensors import check_folder, import_optional, read_json

_START, _END, _END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"
# Contractions, words of letters, single digits, runs of other characters (Radford et al., 2021).
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class BytePairs:
    """Byte-pair tokenizer, loaded by `byte_pairs`: encodes texts as rows of token ids.

    Attributes:
        definition: the tokenizer as JSON, in the format of the `tokenizers` library.
        length: number of ids in a row.
        end: id of the end-of-text token.
    """

    definition: str = dataclasses.field(repr=False)
    length: int
    end: int

    @property
    def count(self) -> int:
        """Vocabulary size: one more than the largest id."""
        return 1 + max(_load_tokenizer(self.definition).get_vocab(with_added_tokens=True).values())

    def encode(self, texts: Sequence[str]) -> Int[np.ndarray, "texts length"]:
        """Encode each text as a row of `length` ids: start token, text, end token, padding.

        A text that is too long is truncated before its end token.

        Raises:
            TypeError, ValueError: texts is not a sequence of texts.
        """
        tokenizer = _load_tokenizer(self.definition)
        encodings = tokenizer.encode_batch(list(check_texts("texts", texts)))
        return np.asarray([encoding.ids for encoding in encodings], np.int32)

    def decode(self, ids: Integer[Any, "texts length"]) -> tuple[str, ...]:
        """Decode each row of ids to a text: lower-case words separated by spaces.

        Ids after the first end token are ignored.

        Raises:
            TypeError, ValueError: ids are not integers (texts, length) in 0 .. count - 1.
        """
        rows = np.asarray(check_ids(ids, self.count)).tolist()
        rows = [row[: row.index(self.end)] if self.end in row else row for row in rows]
        texts = _load_tokenizer(self.definition).decode_batch(rows, skip_special_tokens=True)
        return tuple(text.replace(_END_OF_WORD, " ").strip() for text in texts)


@functools.lru_cache(maxsize=4)
def _load_tokenizer(definition: str) -> Any:
    return import_optional("tokenizers").Tokenizer.from_str(definition)


def byte_pairs(folder: str | os.PathLike[str], *, length: int = 77) -> BytePairs:
    """Load the byte-pair tokenizer of a CLIP model from a folder.

    Args:
        folder: folder with tokenizer.json, or vocab.json and merges.txt. The padding token is the
            pad_token of tokenizer_config.json or special_tokens_map.json; default: the end token.
        length: number of ids in a row, at least 2; longer texts are truncated.

    Raises:
        ImportError: tokenizers is not installed (pip install 'diffprog[pretrained]').
        FileNotFoundError: the folder does not exist or has none of these files.
        TypeError, ValueError: length is out of range, a file is corrupt, or the vocabulary lacks
            the start, end or padding token.

    Source: A. Radford et al., "Learning transferable visual models from natural language
    supervision", 2021.

    >>> byte_pairs("no/such/folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: folder must be an existing folder, got no/such/folder
    """
    folder, length = check_folder(folder), _validation.integer("length", length, low=2)
    tokenizer = _read_tokenizer(folder)
    start = _read_special_token(folder, "bos_token", _START)
    end = _read_special_token(folder, "eos_token", _END)
    padding = _read_special_token(folder, "pad_token", _END)
    ids = {token: tokenizer.token_to_id(token) for token in (start, end, padding)}
    if missing := [token for token, id in ids.items() if id is None]:
        raise ValueError(
            f"{folder}: expected a vocabulary with {', '.join(ids)}, "
            f"found none of {', '.join(missing)} in it"
        )
    tokenizer.add_special_tokens(list(ids))
    if tokenizer.post_processor is None:
        tokenizer.post_processor = import_optional("tokenizers").processors.RobertaProcessing(
            (end, ids[end]), (start, ids[start]), False, False
        )
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=ids[padding], pad_token=padding)
    return BytePairs(tokenizer.to_str(), length, ids[end])


def _read_tokenizer(folder: Path) -> Any:
    tokenizers = import_optional("tokenizers")
    files = [folder / "tokenizer.json"]
    if not files[0].is_file():
        files = [folder / "vocab.json", folder / "merges.txt"]
    if not all(file.is_file() for file in files):
        raise FileNotFoundError(
            f"{folder}: expected tokenizer.json, or vocab.json and merges.txt, found neither"
        )
    try:
        if len(files) == 1:
            return tokenizers.Tokenizer.from_file(str(files[0]))
        model = tokenizers.models.BPE.from_file(
            *map(str, files), unk_token=_END, end_of_word_suffix=_END_OF_WORD, fuse_unk=False
        )
    except Exception as error:  # the library raises plain Exception
        raise ValueError(
            f"{folder}: expected a byte-pair tokenizer in {' and '.join(f.name for f in files)}: "
            f"{error}"
        ) from error
    tokenizer = tokenizers.Tokenizer(model)
    pre_tokenizers, normalizers = tokenizers.pre_tokenizers, tokenizers.normalizers
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), spaces, normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(tokenizers.Regex(_WORDS), "removed", invert=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def _read_special_token(folder: Path, name: str, default: str) -> str:
    for file in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        entry = read_json(file).get(name) if file.is_file() else None
        if entry is None:
            continue
        token = entry.get("content") if isinstance(entry, dict) else entry
        if not isinstance(token, str) or not token:
            raise ValueError(
                f"{file}: expected {name} to be a token, or an object with its content, "
                f"found {entry!r}"
            )
        return token
    return default
