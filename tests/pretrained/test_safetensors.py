"""Loading params from safetensors files, and the errors that list every difference."""

import json
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffprog.contrastive import load_clip
from diffprog.pretrained import load_resnet, load_vit
from diffprog.pretrained._safetensors import TensorSpec, load_params, open_checkpoint, read_json

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.ones(2, np.float32),
    "b": np.array(3, np.float32),
}
SPECS = {
    "first": {
        "matrix": TensorSpec("a.weight", (2, 3), np.transpose),
        "bias": TensorSpec("a.bias", (2,)),
    },
    "none": np.zeros(4),
    "b": TensorSpec("b", ()),
}


def assert_loaded(params, dtype=np.float32):
    np.testing.assert_array_equal(params["first"]["matrix"], TENSORS["a.weight"].T)
    np.testing.assert_array_equal(params["first"]["bias"], [1, 1])
    np.testing.assert_array_equal(params["none"], np.zeros(4))
    assert params["b"] == 3
    assert {array.dtype for array in (*params["first"].values(), params["none"], params["b"])} == {
        np.dtype(dtype)
    }


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_loads_params_in_the_requested_dtype(tmp_path, stored, dtype):
    save_file(
        {name: tensor.astype(stored) for name, tensor in TENSORS.items()},
        tmp_path / "model.safetensors",
    )
    assert_loaded(load_params(tmp_path, SPECS, dtype), dtype)


def save_two_files(folder):
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


def test_loads_the_files_that_an_index_names(tmp_path):
    save_two_files(tmp_path)
    assert_loaded(load_params(tmp_path, SPECS, np.float32))


def test_refuses_an_index_with_a_missing_file(tmp_path):
    save_two_files(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"the files that model.safetensors.index.json names, found no model-00002-of-00002",
    ):
        load_params(tmp_path, SPECS, np.float32)


@pytest.mark.parametrize("shards", [None, {}, {"b": 3}, {"b": "../model.safetensors"}, [1] * 99])
def test_refuses_an_index_with_an_invalid_weight_map(tmp_path, shards):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(
        ValueError, match="expected a weight_map from tensors to files of this folder, found"
    ):
        load_params(tmp_path, SPECS, np.float32)


def test_lists_all_differences_in_one_error(tmp_path):
    tensors = {
        "a.weight": TENSORS["a.weight"].T.copy(),
        "b": np.ones((), np.int8),
        "c": np.ones(7, np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"expected the tensors that its config.json describes, found"
    ) as error:
        load_params(tmp_path, SPECS, np.float32)
    assert str(error.value).splitlines()[1:] == [
        "  1 missing: a.bias [2]",
        "  1 unexpected: c [7]",
        "  1 of another shape: a.weight [3, 2] instead of [2, 3]",
        "  1 not floats: b I8",
    ]


def test_ignores_unused_tensors(tmp_path):
    save_file(TENSORS | {"x.position_ids": np.arange(3)}, tmp_path / "model.safetensors")
    assert_loaded(load_params(tmp_path, SPECS, np.float32, unused=(".position_ids",)))
    with pytest.raises(ValueError, match=r"1 unexpected: x.position_ids \[3\]"):
        load_params(tmp_path, SPECS, np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_nonfinite_values(tmp_path, bad):
    save_file(TENSORS | {"a.bias": np.array([1, bad], np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError,
        match=rf"{tmp_path}: expected a tensor a.bias of finite numbers, found NaN, infinity or",
    ):
        load_params(tmp_path, SPECS, np.float32)


def test_refuses_values_that_overflow_in_the_dtype(tmp_path):
    save_file(TENSORS | {"b": np.array(1e6, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"expected a tensor b of finite numbers, .* overflow in float16"
    ):
        load_params(tmp_path, SPECS, np.dtype("float16"))


def test_a_tensor_can_have_a_minimal_dtype(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    specs = SPECS | {"b": TensorSpec("b", (), min_dtype=np.float32)}
    for dtype, other in ((ml_dtypes.bfloat16, np.float32), (np.float64, np.float64)):
        params = load_params(tmp_path, specs, dtype)
        assert (params["b"].dtype, params["first"]["bias"].dtype) == (other, dtype)


@pytest.mark.parametrize("load", [load_vit, load_resnet, load_clip])
@pytest.mark.parametrize("folder", [3, None, b"folder"])
def test_folder_must_be_a_path(load, folder):
    with pytest.raises(TypeError, match="folder must be a path, got"):
        load(folder)


@pytest.mark.parametrize("load", [load_vit, load_resnet, load_clip])
@pytest.mark.parametrize("dtype", ["foo", None, int, 3, "int8"])
def test_dtype_must_be_a_float_dtype(load, tmp_path, dtype):
    with pytest.raises(
        TypeError, match="dtype must be a float dtype, such as 'float32' or 'bfloat16', got"
    ):
        load(tmp_path, dtype=dtype)


@pytest.mark.parametrize("size", [0, 4, 60, -1])
def test_refuses_a_truncated_file(tmp_path, size):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(
        (tmp_path / "model.safetensors").read_bytes()[:size]
    )
    with pytest.raises(
        ValueError,
        match=r"model.safetensors: not a complete safetensors file: ",
    ):
        load_params(tmp_path, SPECS, np.float32)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"]
)
def test_refuses_pickles(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(
        ValueError,
        match=rf"found only {name}. A pickle can run any code .* convert it with .*save_pretrained",
    ):
        load_params(tmp_path, SPECS, np.float32)


def test_refuses_a_folder_without_tensors(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"expected model.safetensors or model.safetensors.index.json, found neither",
    ):
        load_params(tmp_path, SPECS, np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "expected valid JSON"), ("[]", "expected a JSON object, found list")],
)
def test_refuses_a_config_that_is_not_an_object(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "config.json")


def test_refuses_the_config_of_another_architecture(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"config.json: expected a model_type 'vit', found 'bert'"):
        open_checkpoint(tmp_path, "float32", "vit")


def test_a_missing_package_is_named_with_the_command_to_install_it(tmp_path, monkeypatch):
    save_file(TENSORS, tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(
        ImportError,
        match=r"pretrained models need safetensors: pip install 'diffprog\[pretrained\]'",
    ):
        load_params(tmp_path, SPECS, np.float32)
