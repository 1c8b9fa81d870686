"""Loading vision transformers, against NumPy and (slow) against transformers."""

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
QKV = [f"attention.attention.{name}" for name in ("query", "key", "value")]
NAMES = [
    "layernorm_before",
    "layernorm_after",
    *QKV,
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]


def run(program, x):
    return jax.jit(lambda program, x: program(x))(program, x)


def logits(tensors, images):
    embeddings = "vit.embeddings"
    patches = folders.embed_patches(
        tensors[f"{embeddings}.patch_embeddings.projection.weight"], folders.normalize(images)
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
        tensors, "classifier", folders.layer_norm(tensors, "vit.layernorm", x[:, 0], 1e-12)
    )


def test_logits_agree_with_numpy(tmp_path):
    loaded = load_vit(folders.write(tmp_path, folders.VIT, TENSORS))
    np.testing.assert_allclose(
        run(loaded.program, IMAGES), logits(TENSORS, IMAGES), rtol=1e-4, atol=1e-5
    )
    assert loaded.classes == ("cat", "dog", "newt")
    assert loaded.shape == (6, 6, 3)


def test_query_key_and_value_biases_can_be_absent(tmp_path):
    tensors = {
        name: array
        for name, array in TENSORS.items()
        if not name.endswith(tuple(f"{each}.bias" for each in QKV))
    }
    loaded = load_vit(folders.write(tmp_path, folders.VIT | {"qkv_bias": False}, tensors))
    np.testing.assert_allclose(
        run(loaded.program, IMAGES), logits(tensors, IMAGES), rtol=1e-4, atol=1e-5
    )


def test_a_vit_model_returns_the_normalized_class_token(tmp_path):
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
def test_hidden_units_can_be_visualized(tmp_path):
    loaded = load_vit(folders.write(tmp_path, folders.VIT, TENSORS))
    channel, image = (
        dp.visualization.channel("block1.hidden", [3, 7]),
        dp.visualization.pixels(loaded.shape),
    )
    result = dp.visualization.visualize(
        loaded.program, channel, image, key=jax.random.key(0), steps=30
    )
    assert result.images.shape == (2, 6, 6, 3)
    assert (result.scores > result.history[0]).all()


@pytest.mark.slow
def test_pgd_increases_the_loss(tmp_path):
    loaded = load_vit(folders.write(tmp_path, folders.VIT, TENSORS))
    y = np.argmax(logits(TENSORS, IMAGES), 1)
    result = dp.adversarial.pgd(epsilon=0.1, steps=10)(
        loaded.program, IMAGES, y, key=jax.random.key(0)
    )
    before, after = (
        np.asarray(dp.losses.softmax_cross_entropy(run(loaded.program, x), y))
        for x in (IMAGES, result.adversarial)
    )
    assert (after > before).all()


def test_refuses_tensors_of_other_shapes(tmp_path):
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
def test_refuses_an_invalid_config(tmp_path, config):
    with pytest.raises(
        ValueError,
        match=r"config.json: expected .*(model_type|patch_size|num_attention_heads|layer_norm_eps)",
    ):
        load_vit(folders.write(tmp_path, folders.VIT | config, TENSORS))


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
