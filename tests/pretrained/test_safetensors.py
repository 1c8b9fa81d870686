"""Reading a checkpoint: what the layout says is what comes, from one file or several, and every difference is named."""

import json
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffprog.contrastive import load_clip
from diffprog.pretrained import load_resnet, load_vit
from diffprog.pretrained._safetensors import Stored, config_of, json_of, read

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.ones(2, np.float32),
    "b": np.array(3, np.float32),
}
LAYOUT = {
    "first": {"matrix": Stored("a.weight", (2, 3), np.transpose), "bias": Stored("a.bias", (2,))},
    "none": np.zeros(4),
    "b": Stored("b", ()),
}


def assert_is_read(got, dtype=np.float32):
    np.testing.assert_array_equal(got["first"]["matrix"], TENSORS["a.weight"].T)
    np.testing.assert_array_equal(got["first"]["bias"], [1, 1])
    np.testing.assert_array_equal(got["none"], np.zeros(4))
    assert got["b"] == 3
    assert {array.dtype for array in (*got["first"].values(), got["none"], got["b"])} == {
        np.dtype(dtype)
    }


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_reads_what_the_layout_says_in_the_dtype_asked_for(tmp_path, stored, dtype):
    save_file(
        {name: tensor.astype(stored) for name, tensor in TENSORS.items()},
        tmp_path / "model.safetensors",
    )
    assert_is_read(read(tmp_path, LAYOUT, dtype), dtype)


def in_two(folder):
    save_file({"a.weight": TENSORS["a.weight"]}, folder / "model-00001-of-00002.safetensors")
    save_file(
        {name: TENSORS[name] for name in ("a.bias", "b")},
        folder / "model-00002-of-00002.safetensors",
    )
    files = {
        name: f"model-0000{1 if name == 'a.weight' else 2}-of-00002.safetensors" for name in TENSORS
    }
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": files})
    )


def test_reads_files_that_an_index_names(tmp_path):
    in_two(tmp_path)
    assert_is_read(read(tmp_path, LAYOUT, np.float32))


def test_refuses_an_index_of_files_that_are_not_there(tmp_path):
    in_two(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"expected the files that model.safetensors.index.json names, found no model-00002-of-00002",
    ):
        read(tmp_path, LAYOUT, np.float32)


@pytest.mark.parametrize("shards", [None, {}, {"b": 3}, {"b": "../model.safetensors"}, [1] * 99])
def test_refuses_an_index_that_names_no_files_of_the_folder(tmp_path, shards):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(
        ValueError, match="expected a weight_map from tensors to files of this folder, found"
    ):
        read(tmp_path, LAYOUT, np.float32)


def test_names_every_difference_at_once(tmp_path):
    held = {
        "a.weight": TENSORS["a.weight"].T.copy(),
        "b": np.ones((), np.int8),
        "c": np.ones(7, np.float32),
    }
    save_file(held, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"expected the tensors that its config.json describes, found"
    ) as error:
        read(tmp_path, LAYOUT, np.float32)
    assert str(error.value).splitlines()[1:] == [
        "  1 missing: a.bias [2]",
        "  1 unexpected: c [7]",
        "  1 of another shape: a.weight [3, 2] instead of [2, 3]",
        "  1 not floats: b I8",
    ]


def test_passes_over_what_is_known_to_be_unused(tmp_path):
    save_file(TENSORS | {"x.position_ids": np.arange(3)}, tmp_path / "model.safetensors")
    assert_is_read(read(tmp_path, LAYOUT, np.float32, unused=(".position_ids",)))
    with pytest.raises(ValueError, match=r"1 unexpected: x.position_ids \[3\]"):
        read(tmp_path, LAYOUT, np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_numbers_that_are_not_finite(tmp_path, bad):
    save_file(TENSORS | {"a.bias": np.array([1, bad], np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError,
        match=rf"{tmp_path}: expected a tensor a.bias of finite numbers, found NaN, infinity or more",
    ):
        read(tmp_path, LAYOUT, np.float32)


def test_refuses_numbers_that_the_dtype_does_not_hold(tmp_path):
    save_file(TENSORS | {"b": np.array(1e6, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"expected a tensor b of finite numbers, .* more than float16 holds"
    ):
        read(tmp_path, LAYOUT, np.dtype("float16"))


def test_a_tensor_can_have_a_least_dtype(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    exact = LAYOUT | {"b": Stored("b", (), least=np.float32)}
    for dtype, other in ((ml_dtypes.bfloat16, np.float32), (np.float64, np.float64)):
        got = read(tmp_path, exact, dtype)
        assert (got["b"].dtype, got["first"]["bias"].dtype) == (other, dtype)


@pytest.mark.parametrize("load", [load_vit, load_resnet, load_clip])
@pytest.mark.parametrize("folder", [3, None, b"folder"])
def test_a_folder_is_a_path(load, folder):
    with pytest.raises(TypeError, match="folder must be a path, got"):
        load(folder)


@pytest.mark.parametrize("load", [load_vit, load_resnet, load_clip])
@pytest.mark.parametrize("dtype", ["foo", None, int, 3, "int8"])
def test_a_dtype_is_one_of_floats(load, tmp_path, dtype):
    with pytest.raises(
        TypeError, match="dtype must be of floats, such as 'float32' or 'bfloat16', got"
    ):
        load(tmp_path, dtype=dtype)


@pytest.mark.parametrize("kept", [0, 4, 60, -1])
def test_refuses_a_truncated_file(tmp_path, kept):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(
        (tmp_path / "model.safetensors").read_bytes()[:kept]
    )
    with pytest.raises(
        ValueError,
        match=r"model.safetensors: expected a complete safetensors file, found a corrupt or truncated one: ",
    ):
        read(tmp_path, LAYOUT, np.float32)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"]
)
def test_never_reads_a_pickle(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(
        ValueError,
        match=rf"found only {name}. A pickle can run any program .* convert it with transformers: .*save_pretrained",
    ):
        read(tmp_path, LAYOUT, np.float32)


def test_refuses_a_folder_without_tensors(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"expected model.safetensors or model.safetensors.index.json, found neither",
    ):
        read(tmp_path, LAYOUT, np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "expected JSON, found something else"), ("[]", "expected a JSON object, found list")],
)
def test_refuses_a_config_that_is_no_object(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        json_of(tmp_path / "config.json")


def test_refuses_the_config_of_another_architecture(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"config.json: expected a model_type 'vit', found 'bert'"):
        config_of(tmp_path, "vit")


def test_says_which_extra_is_not_installed(tmp_path, monkeypatch):
    save_file(TENSORS, tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(
        ImportError,
        match=r"pretrained models need safetensors: pip install 'diffprog\[pretrained\]'",
    ):
        read(tmp_path, LAYOUT, np.float32)
