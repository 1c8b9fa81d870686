"""Normalization of pixels and names of classes, as the files of a folder state them."""

from pathlib import Path

import jax
import numpy as np
import pytest

import diffprog as dp
from diffprog.pretrained import load_resnet, load_vit
from diffprog.pretrained._preprocessing import read_class_names
from tests.pretrained import folders

TENSORS = folders.random(folders.vit_shapes())


@pytest.mark.parametrize(
    ("preprocessing", "mean", "deviation"),
    [
        ({"do_normalize": False}, 0, 1),
        ({"do_rescale": False, "image_mean": [51, 51, 51], "image_std": [51, 51, 51]}, 0.2, 0.2),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}, 0.5, 0.5),
        ({"image_processor": {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}}, 0.5, 0.25),
    ],
)
def test_pixels_are_normalized_as_the_folder_states(tmp_path, preprocessing, mean, deviation):
    arrays = load_vit(folders.write(tmp_path, folders.VIT, TENSORS, preprocessing)).program.arrays
    assert any(
        a.shape == b.shape == (3,) and np.allclose(a, mean) and np.allclose(b, deviation)
        for a in arrays
        for b in arrays
        if a is not b
    )


def test_preprocessing_can_be_in_processor_config_json(tmp_path):
    folders.write(tmp_path, folders.VIT, TENSORS)
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "processor_config.json")
    assert load_vit(tmp_path).shape == (6, 6, 3)


@pytest.mark.parametrize(
    "preprocessing",
    [
        {},
        {"image_mean": [0.5], "image_std": [0.5]},
        {"image_mean": 0.5, "image_std": [1] * 3},
        folders.PREPROCESSING | {"image_std": [0] * 3},
        folders.PREPROCESSING | {"image_mean": [0.5, float("nan"), 0.5]},
        folders.PREPROCESSING | {"image_std": [0.5, float("inf"), 0.5]},
        folders.PREPROCESSING | {"image_mean": [True, 0.5, 0.5]},
    ],
)
def test_refuses_an_invalid_mean_or_deviation(tmp_path, preprocessing):
    with pytest.raises(
        ValueError, match=r"preprocessor_config.json: expected (image_mean|image_std)"
    ):
        load_vit(folders.write(tmp_path, folders.VIT, TENSORS, preprocessing))


@pytest.mark.parametrize(
    "config",
    [
        {"id2label": {"1": "a", "2": "b", "3": "c"}},
        {"id2label": {"a": "a", "1": "b", "2": "c"}},
        {"id2label": ["a", "b", "c"]},
        {"id2label": None, "num_labels": "3"},
        {"id2label": None, "num_labels": -1},
    ],
)
def test_refuses_invalid_class_names(tmp_path, config):
    with pytest.raises(
        ValueError,
        match=r"config.json: expected id2label with keys '0', '1', ..., or num_labels, found",
    ):
        load_vit(folders.write(tmp_path, folders.VIT | config, TENSORS))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        *(
            ({"rescale_factor": bad}, "rescale_factor to be a finite number above 0, found")
            for bad in (0, "1/255", None, float("nan"), -1)
        ),
        ({"image_processor": None}, "image_processor to be an object, found NoneType"),
        ({"size": {"height": 0}}, "a size of at least 1"),
    ],
)
def test_refuses_an_invalid_preprocessing_config(tmp_path, entries, message):
    with pytest.raises(ValueError, match=f"preprocessor_config.json: expected {message}"):
        load_vit(folders.write(tmp_path, folders.VIT, TENSORS, folders.PREPROCESSING | entries))


@pytest.mark.parametrize("classes", [{"id2label": {}}, {"num_labels": 0}])
@pytest.mark.parametrize(
    ("load", "config", "shapes"),
    [
        (load_vit, folders.VIT, folders.vit_shapes()),
        (load_resnet, folders.RESNET, folders.resnet_shapes()),
    ],
)
def test_a_checkpoint_without_classes_returns_features(tmp_path, load, config, shapes, classes):
    tensors = folders.random(shapes)
    classifier = load(folders.write(tmp_path / "classifier", config, tensors))
    tensors = {name: array for name, array in tensors.items() if not name.startswith("classifier")}
    config = {name: value for name, value in config.items() if name != "id2label"} | classes
    headless = load(folders.write(tmp_path / "headless", config, tensors))
    images = np.random.default_rng(1).uniform(size=(2, 6, 6, 3)).astype(np.float32)
    assert headless.classes == ()
    np.testing.assert_allclose(  # two compiled programs may round differently
        jax.jit(headless.program)(images),
        dp.nodes.read(classifier.program, ["pooled"])(images)[1]["pooled"],
        rtol=1e-5,
        atol=1e-6,
    )


def test_class_names_are_in_the_order_of_the_logits():
    names = {str(k): f"class {k}" for k in range(12)}
    alphabetical = dict(sorted(names.items()))  # "0", "1", "10", "11", "2", ...
    assert read_class_names(Path(), {"id2label": alphabetical}) == tuple(names.values())
