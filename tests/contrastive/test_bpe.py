"""Byte-pair encoding with a small vocabulary, and (slow) against transformers."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from diffprog.contrastive import byte_pairs
from tests.pretrained import folders

TEXTS = [
    *folders.SENTENCES,
    "",
    "  A  Photo\nof\ta SEVEN!!! ",
    "it's they've I'll 's don't",
    "seven7times 12,345",
    "Ünïcödé naïve ñ, e\u0301 日本語 🙂",
    "a<b <|endoftext|> after <|startoftext|>",
    "seven " * 30,
]


@pytest.fixture
def folder(tmp_path):
    folders.write_vocabulary(tmp_path)
    return tmp_path


def encode_as_tokens(folder, text, length=16):
    names = {
        number: token for token, number in json.loads((folder / "vocab.json").read_text()).items()
    }
    return [
        names[number] for number in byte_pairs(folder, length=length).encode([text])[0].tolist()
    ]


def test_words_are_lower_cased_and_end_with_a_marker(folder):
    padding = [folders.END] * 5
    assert encode_as_tokens(folder, "A  Photo of a\nSEVEN") == [
        folders.START,
        "a</w>",
        "photo</w>",
        "of</w>",
        "a</w>",
        "seven</w>",
        *[folders.END] * 10,
    ]
    assert encode_as_tokens(folder, "a77", 8) == [
        folders.START,
        "a</w>",
        "7</w>",
        "7</w>",
        *padding[:4],
    ]
    assert encode_as_tokens(folder, "zz", 8) == [folders.START, "z", "z</w>", *padding]


def test_rows_are_padded_or_truncated_and_keep_the_end_token(folder):
    tokenizer = byte_pairs(folder, length=6)
    ids = tokenizer.encode(["seven " * 30, "a", ""])
    assert ids.dtype == np.int32
    assert ids.shape == (3, 6)
    assert (ids[:, -1] == tokenizer.end).all()
    assert np.argmax(ids == tokenizer.end, 1).tolist() == [5, 2, 1]
    assert byte_pairs(folder).length == 77


def test_decode_inverts_encode_up_to_spaces(folder):
    tokenizer = byte_pairs(folder, length=24)
    assert tokenizer.decode(tokenizer.encode(["A photo of a seven!", "", "Ünï 7"])) == (
        "a photo of a seven !",
        "",
        "ünï 7",
    )


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("token", ["!", {"content": "!"}])
def test_the_folder_can_state_the_padding_token(folder, file, token):
    (folder / file).write_text(json.dumps({"pad_token": token}))
    assert encode_as_tokens(folder, "a", 5) == [folders.START, "a</w>", folders.END, "!", "!"]
    # A special token is not the end of a word.
    assert encode_as_tokens(folder, "a!", 5) == [folders.START, "a</w>", "!", folders.END, "!"]
    tokenizer = byte_pairs(folder, length=5)
    assert tokenizer.decode(tokenizer.encode(["a"])) == ("a",)


def test_tokenizer_json_takes_precedence(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("whole")
    (other / "tokenizer.json").write_text(byte_pairs(folder, length=9).definition)
    np.testing.assert_array_equal(
        byte_pairs(other, length=16).encode(TEXTS), byte_pairs(folder, length=16).encode(TEXTS)
    )


def test_tokenizers_are_compared_by_value_and_have_no_leaves(folder):
    one, two, other = byte_pairs(folder), byte_pairs(folder), byte_pairs(folder, length=9)
    assert one == two != other
    assert hash(one) == hash(two)
    assert jax.tree.leaves(one) == []
    assert len(str(one)) < 100
    assert one.count == len(json.loads((folder / "vocab.json").read_text()))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda folder: byte_pairs(folder / "none"),
            FileNotFoundError,
            "folder must be an existing folder",
        ),
        (
            lambda folder: byte_pairs(folder, length=1),
            ValueError,
            "length must be an integer >= 2, got 1",
        ),
        (
            lambda folder: byte_pairs(folder).encode("a seven"),
            TypeError,
            "texts must be a sequence of texts, got str",
        ),
        (
            lambda folder: byte_pairs(folder).encode([]),
            ValueError,
            "texts must hold at least one text",
        ),
        (
            lambda folder: byte_pairs(folder).encode([7]),
            TypeError,
            r"texts\[0\] must be a text, got int",
        ),
        (
            lambda folder: byte_pairs(folder).decode(np.ones((1, 2))),
            TypeError,
            r"ids must be integers \(batch, length\)",
        ),
        (
            lambda folder: byte_pairs(folder).decode(np.full((1, 2), 9999)),
            ValueError,
            "ids must lie in 0 .. ",
        ),
    ],
)
def test_refuses_bad_input(folder, call, error, message):
    with pytest.raises(error, match=message):
        call(folder)


def test_refuses_missing_or_corrupt_files(folder):
    (folder / "merges.txt").write_text("#version: 0.2\nq q\n")
    with pytest.raises(
        ValueError,
        match=r"expected a byte-pair tokenizer in vocab.json and merges.txt: ",
    ):
        byte_pairs(folder)
    (folder / "merges.txt").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"expected tokenizer.json, or vocab.json and merges.txt, found neither",
    ):
        byte_pairs(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(
        ValueError,
        match=r"expected a byte-pair tokenizer in tokenizer.json: ",
    ):
        byte_pairs(folder)


@pytest.mark.parametrize("token", [{"lstrip": False}, {"content": None}, 3, ""])
def test_refuses_an_invalid_special_token(folder, token):
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": token}))
    with pytest.raises(
        ValueError,
        match=r"config.json: expected pad_token to be a token, or an object with .*, found",
    ):
        byte_pairs(folder)


def test_refuses_a_vocabulary_without_a_special_token(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))
    with pytest.raises(
        ValueError, match=r"expected a vocabulary with .*<pad>, found none of <pad> in it"
    ):
        byte_pairs(folder)


def test_importing_diffprog_does_not_import_optional_packages():
    optional = "{'safetensors', 'tokenizers'}"
    code = f"import sys, diffprog.contrastive; print(sorted({optional} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()
        == "[]"
    )


@pytest.mark.slow
@pytest.mark.parametrize("pad", [folders.END, "!"])
def test_ids_agree_with_transformers(folder, tmp_path_factory, pad):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad
    )
    saved = tmp_path_factory.mktemp("saved")
    theirs.save_pretrained(saved)
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}))
    for length in (5, 77):
        expected = theirs(TEXTS, padding="max_length", truncation=True, max_length=length)[
            "input_ids"
        ]
        for path in (folder, saved):
            np.testing.assert_array_equal(byte_pairs(path, length=length).encode(TEXTS), expected)
    plain = [text for text in TEXTS if "<|" not in text]
    ids = byte_pairs(folder).encode(plain)
    assert list(byte_pairs(folder).decode(ids)) == [
        theirs.decode(row[: row.tolist().index(theirs.eos_token_id)], skip_special_tokens=True)
        for row in ids
    ]
