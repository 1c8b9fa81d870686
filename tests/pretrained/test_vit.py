"""Vision transformers from a folder: the formulas in NumPy, nodes, labels, refusals, and (slow) what transformers makes of the folder."""

import json

import jax
import numpy as np
import pytest
from scipy.special import erf

import diffprog as dp
from diffprog.pretrained import load_vit
from tests.pretrained import folders

IMAGES = np.random.default_rng(1).uniform(size=(3, 6, 6, 3)).astype(np.float32)
TENSORS = folders.random(folders.vit_shapes())
READ = [f"attention.attention.{name}" for name in ("query", "key", "value")]
NAMES = [
    "layernorm_before",
    "layernorm_after",
    *READ,
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]


def run(program, x):
    return jax.jit(lambda program, x: program(x))(program, x)


def logits(tensors, images):
    embeddings = "vit.embeddings"
    patches = folders.embedded(
        tensors[f"{embeddings}.patch_embeddings.projection.weight"], folders.shown(images)
    )
    first = np.broadcast_to(tensors[f"{embeddings}.cls_token"], (len(images), 1, 8))
    x = np.concatenate(
        [first, patches + tensors[f"{embeddings}.patch_embeddings.projection.bias"]], 1
    )
    x = x + tensors[f"{embeddings}.position_embeddings"]
    x = folders.encoder(
        tensors,
        "vit.encoder.layer",
        NAMES,
        x,
        lambda z: z * (1 + erf(z / np.sqrt(2))) / 2,
        epsilon=1e-12,
    )
    return folders.dense(
        tensors, "classifier", folders.normed(tensors, "vit.layernorm", x[:, 0], 1e-12)
    )


def test_logits_are_the_formula_on_the_stored_tensors(tmp_path):
    seen = load_vit(folders.write(tmp_path, folders.VIT, TENSORS))
    np.testing.assert_allclose(
        run(seen.program, IMAGES), logits(TENSORS, IMAGES), rtol=1e-4, atol=1e-5
    )
    assert seen.classes == ("cat", "dog", "newt")
    assert seen.shape == (6, 6, 3)


def test_biases_that_a_config_does_without_are_zero(tmp_path):
    tensors = {
        name: array
        for name, array in TENSORS.items()
        if not name.endswith(tuple(f"{each}.bias" for each in READ))
    }
    seen = load_vit(folders.write(tmp_path, folders.VIT | {"qkv_bias": False}, tensors))
    np.testing.assert_allclose(
        run(seen.program, IMAGES), logits(tensors, IMAGES), rtol=1e-4, atol=1e-5
    )


def test_a_model_without_classes_ends_in_the_normalised_place_of_the_class(tmp_path):
    bare = {
        name.removeprefix("vit."): array
        for name, array in TENSORS.items()
        if not name.startswith("classifier")
    }
    pooler = {
        "pooler.dense.weight": np.zeros((8, 8), np.float32),
        "pooler.dense.bias": np.zeros(8, np.float32),
    }
    headless = load_vit(
        folders.write(
            tmp_path / "bare", folders.VIT | {"architectures": ["ViTModel"]}, bare | pooler
        )
    )
    whole = load_vit(folders.write(tmp_path / "whole", folders.VIT, TENSORS))
    assert headless.classes == ()
    np.testing.assert_array_equal(
        run(headless.program, IMAGES), dp.nodes.read(whole.program, ["pooled"])(IMAGES)[1]["pooled"]
    )


@pytest.mark.slow
def test_units_of_blocks_can_be_seen(tmp_path):
    seen = load_vit(folders.write(tmp_path, folders.VIT, TENSORS))
    channel, image = (
        dp.visualization.channel("block1.hidden", [3, 7]),
        dp.visualization.pixels(seen.shape),
    )
    made = dp.visualization.visualize(seen.program, channel, image, key=jax.random.key(0), steps=30)
    assert made.images.shape == (2, 6, 6, 3)
    assert (made.scores > made.history[0]).all()


@pytest.mark.slow
def test_images_can_be_attacked(tmp_path):
    seen = load_vit(folders.write(tmp_path, folders.VIT, TENSORS))
    y = np.argmax(logits(TENSORS, IMAGES), 1)
    found = dp.adversarial.pgd(epsilon=0.1, steps=10)(
        seen.program, IMAGES, y, key=jax.random.key(0)
    )
    before, after = (
        np.asarray(dp.losses.softmax_cross_entropy(run(seen.program, x), y))
        for x in (IMAGES, found.adversarial)
    )
    assert (after > before).all()


@pytest.mark.parametrize(
    ("stated", "mean", "deviation"),
    [
        ({"do_normalize": False}, 0, 1),
        ({"do_rescale": False, "image_mean": [51, 51, 51], "image_std": [51, 51, 51]}, 0.2, 0.2),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}, 0.5, 0.5),
        ({"image_processor": {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}}, 0.5, 0.25),
    ],
)
def test_pixels_are_on_the_scale_that_the_folder_states(tmp_path, stated, mean, deviation):
    arrays = load_vit(folders.write(tmp_path, folders.VIT, TENSORS, stated)).program.arrays
    assert any(
        a.shape == b.shape == (3,) and np.allclose(a, mean) and np.allclose(b, deviation)
        for a in arrays
        for b in arrays
        if a is not b
    )


def test_newer_folders_have_another_name_for_the_preprocessing(tmp_path):
    folders.write(tmp_path, folders.VIT, TENSORS)
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "processor_config.json")
    assert load_vit(tmp_path).shape == (6, 6, 3)


@pytest.mark.parametrize(
    "stated",
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
def test_refuses_pixels_of_another_number_of_channels(tmp_path, stated):
    with pytest.raises(
        ValueError, match=r"preprocessor_config.json: expected (image_mean|an image_std|image_std)"
    ):
        load_vit(folders.write(tmp_path, folders.VIT, TENSORS, stated))


def test_refuses_tensors_of_another_size_by_name_and_shape(tmp_path):
    other = folders.random(folders.vit_shapes(hidden=16, classes=5))
    with pytest.raises(
        ValueError, match=r"8 of another shape: .*classifier.weight \[5, 8\] instead of \[3, 8\]"
    ):
        load_vit(folders.write(tmp_path, folders.VIT, other))


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "deit"},
        {"patch_size": 4},
        {"num_attention_heads": 3},
        {"layer_norm_eps": None},
    ],
)
def test_refuses_other_configs(tmp_path, config):
    with pytest.raises(
        ValueError,
        match=r"config.json: expected .*(model_type|patch_size|num_attention_heads|layer_norm_eps)",
    ):
        load_vit(folders.write(tmp_path, folders.VIT | config, TENSORS))


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
def test_refuses_names_that_do_not_belong_to_logits(tmp_path, config):
    with pytest.raises(
        ValueError,
        match=r"config.json: expected id2label to name '0', '1', ..., or num_labels, found",
    ):
        load_vit(folders.write(tmp_path, folders.VIT | config, TENSORS))


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        *(
            ({"rescale_factor": bad}, "rescale_factor to be a finite number above 0, found")
            for bad in (0, "1/255", None, float("nan"), -1)
        ),
        ({"image_processor": None}, "image_processor to be an object, found NoneType"),
        ({"size": {"height": 0}}, "a size of at least 1"),
    ],
)
def test_refuses_pixels_of_no_scale(tmp_path, stated, message):
    with pytest.raises(ValueError, match=f"preprocessor_config.json: expected {message}"):
        load_vit(folders.write(tmp_path, folders.VIT, TENSORS, folders.PREPROCESSING | stated))


def test_a_classifier_of_no_classes_is_read_as_features(tmp_path):
    tensors = {name: array for name, array in TENSORS.items() if not name.startswith("classifier")}
    headless = load_vit(folders.write(tmp_path / "none", folders.VIT | {"id2label": {}}, tensors))
    whole = load_vit(folders.write(tmp_path / "whole", folders.VIT, TENSORS))
    assert headless.classes == ()
    np.testing.assert_array_equal(
        run(headless.program, IMAGES), dp.nodes.read(whole.program, ["pooled"])(IMAGES)[1]["pooled"]
    )
    stated = {name: value for name, value in folders.VIT.items() if name != "id2label"} | {
        "num_labels": 0
    }
    assert load_vit(folders.write(tmp_path / "stated", stated, tensors)).classes == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [{}, {"qkv_bias": False, "hidden_act": "gelu_new", "patch_size": 2, "num_hidden_layers": 3}],
)
@pytest.mark.parametrize("kind", ["ViTForImageClassification", "ViTModel"])
def test_agrees_with_transformers(tmp_path, kind, sizes):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = {
        name: value
        for name, value in (folders.VIT | sizes).items()
        if name not in ("model_type", "architectures")
    }
    model = getattr(transformers, kind)(
        transformers.ViTConfig(**config, initializer_range=0.5)
    ).eval()
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [kind]
    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-11)):
        with torch.no_grad(), jax.enable_x64(dtype == "float64"):
            pixels = torch.tensor((IMAGES.astype(dtype) - 0.5) / 0.5).permute(0, 3, 1, 2)
            expected = model.to(getattr(torch, dtype))(pixels)
            want = (
                expected.logits if hasattr(expected, "logits") else expected.last_hidden_state[:, 0]
            )
            got = run(load_vit(tmp_path, dtype=dtype).program, IMAGES.astype(dtype))
            np.testing.assert_allclose(
                got, want.numpy(), rtol=tolerance, atol=tolerance * np.abs(want.numpy()).max()
            )
