"""Loading CLIP, against NumPy and (slow) against transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp
from diffprog.contrastive import Towers, generate, load_clip, similarity, zero_shot
from tests.pretrained import folders

IMAGES = np.random.default_rng(1).uniform(size=(3, 6, 6, 3)).astype(np.float32)
NAMES = [
    "layer_norm1",
    "layer_norm2",
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
    "mlp.fc1",
    "mlp.fc2",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folders.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def towers(folder):
    return load_clip(folder)


@pytest.fixture
def tensors(towers):
    return folders.random(folders.clip_shapes(towers.tokenizer.count))


def run(encoder, x):
    return jax.jit(lambda encoder, x: encoder(x))(encoder, x)


def quick_gelu(z):
    return z / (1 + np.exp(-1.702 * z))


def test_image_features_agree_with_numpy(towers, tensors):
    embeddings = "vision_model.embeddings"
    patches = folders.embed_patches(
        tensors[f"{embeddings}.patch_embedding.weight"], folders.normalize(IMAGES)
    )
    first = np.broadcast_to(tensors[f"{embeddings}.class_embedding"], (3, 1, 8))
    x = np.concatenate([first, patches], 1) + tensors[f"{embeddings}.position_embedding.weight"]
    x = folders.layer_norm(tensors, "vision_model.pre_layrnorm", x)
    x = folders.encoder(tensors, "vision_model.encoder.layers", NAMES, x, quick_gelu)
    features = folders.dense(
        tensors,
        "visual_projection",
        folders.layer_norm(tensors, "vision_model.post_layernorm", x[:, 0]),
    )
    np.testing.assert_allclose(run(towers.image, IMAGES), features, rtol=1e-4, atol=1e-5)


def test_text_features_agree_with_numpy(towers, tensors):
    ids = towers.tokenizer.encode(folders.SENTENCES)
    ends = [row.tolist().index(towers.tokenizer.end) for row in ids]
    x = (
        tensors["text_model.embeddings.token_embedding.weight"][ids]
        + tensors["text_model.embeddings.position_embedding.weight"]
    )
    x = folders.encoder(tensors, "text_model.encoder.layers", NAMES, x, quick_gelu, causal=True)
    x = folders.layer_norm(tensors, "text_model.final_layer_norm", x[np.arange(3), ends])
    np.testing.assert_allclose(
        run(towers.text, ids), folders.dense(tensors, "text_projection", x), rtol=1e-4, atol=1e-5
    )


def test_the_result_is_a_dual_encoder(towers, tensors):
    assert isinstance(towers, Towers)
    assert towers.bias is None
    assert towers.log_scale == tensors["logit_scale"]


@pytest.mark.slow
def test_images_can_be_classified_and_generated(towers):
    assert similarity(towers, IMAGES, folders.SENTENCES).shape == (3, 3)
    assert len(zero_shot(towers, IMAGES, ["a seven", "a nine"]).labels) == 3
    result = generate(
        towers,
        "a thin seven",
        dp.visualization.pixels((6, 6, 3)),
        key=jax.random.key(0),
        steps=20,
        transforms=[],
    )
    assert result.images.shape == (1, 6, 6, 3)
    assert result.similarities[0]["a thin seven"] > result.seen.history[0, 0]


@pytest.mark.slow
def test_ids_after_the_end_token_are_ignored(towers):
    ids = towers.tokenizer.encode(folders.SENTENCES)
    ends = [row.tolist().index(towers.tokenizer.end) for row in ids]
    other = np.where(np.arange(16) > np.array(ends)[:, None], 7, ids)
    np.testing.assert_array_equal(run(towers.text, ids), run(towers.text, other))
    np.testing.assert_allclose(
        run(towers.text, ids), run(towers.text, ids[:, : max(ends) + 1]), rtol=1e-4, atol=1e-6
    )


def copy_with_config(folder, tmp_path, part, **values):
    """Copy the folder, with other values in a part of its config."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config.setdefault(part, {})).update(values)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_the_end_token_of_old_configs_is_the_largest_id(folder, towers, tmp_path):
    old = load_clip(copy_with_config(folder, tmp_path, "text_config", eos_token_id=2))
    ids = towers.tokenizer.encode(folders.SENTENCES)
    np.testing.assert_array_equal(run(old.text, ids), run(towers.text, ids))


def test_the_second_config_of_old_files_takes_precedence(folder, towers, tmp_path):
    other = load_clip(copy_with_config(folder, tmp_path, "vision_config_dict", hidden_act="gelu"))
    assert not np.allclose(run(other.image, IMAGES), run(towers.image, IMAGES), atol=1e-4)


def test_weights_are_leaves(folder, towers):
    doubled = jax.tree.map(lambda leaf: 2 * leaf, load_clip(folder))
    assert jax.tree.structure(doubled) == jax.tree.structure(towers)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (None, {"model_type": "siglip"}, "expected a model_type 'clip', found 'siglip'"),
        (None, {"vision_config": 3}, "expected vision_config to be an object, found int"),
        (
            None,
            {"text_config_dict": 3},
            "config.json: expected text_config_dict to be an object, found int",
        ),
        (
            None,
            {"vision_config": 0},
            "config.json: expected vision_config to be an object, found int",
        ),
        (
            "text_config",
            {"max_position_embeddings": 1},
            "config.json: expected max_position_embeddings to be an integer of at least 2",
        ),
        (
            "text_config",
            {"num_attention_heads": 3},
            "expected a hidden_size that is a multiple of num_attention_heads, found 8 and 3",
        ),
        (
            "vision_config",
            {"layer_norm_eps": "small"},
            "config.json: expected layer_norm_eps to be a finite number above 0, found 'small'",
        ),
        (
            "vision_config",
            {"hidden_act": ["gelu"]},
            "config.json: expected hidden_act to be one of",
        ),
        (
            "text_config",
            {"hidden_act": "relu"},
            "expected hidden_act to be one of 'gelu', .*, found 'relu'",
        ),
        (
            "text_config",
            {"eos_token_id": 5},
            "its eos_token_id 5 as end token, found ids up to .* and end token",
        ),
        ("text_config", {"vocab_size": 9}, "ids below the vocab_size 9 of config.json"),
        (
            "vision_config",
            {"hidden_size": "8"},
            "expected hidden_size to be a positive integer .*, found '8'",
        ),
        (
            "vision_config",
            {"image_size": [6, 9]},
            r"expected image_size to be a positive integer .*, found \[6, 9\]",
        ),
        (
            "vision_config",
            {"image_size": 7},
            "an image_size that is a multiple of patch_size, found 7 and 3",
        ),
        (
            "vision_config",
            {"image_size": 9},
            r"position_embedding.weight \[5, 8\] instead of \[10, 8\]",
        ),
        (
            "text_config",
            {"num_hidden_layers": 3},
            r"16 missing: text_model.encoder.layers.2.layer_norm1.bias \[8\], .* and 4 more",
        ),
        (
            "text_config",
            {"num_hidden_layers": 1},
            r"16 unexpected: text_model.encoder.layers.1.layer_norm1.bias \[8\]",
        ),
    ],
)
def test_refuses_an_invalid_config(folder, tmp_path, part, values, message):
    with pytest.raises(ValueError, match=message):
        load_clip(copy_with_config(folder, tmp_path, part, **values))


def test_refuses_nonfinite_tensors(folder, tensors, tmp_path):
    tensors["text_model.final_layer_norm.bias"][3] = np.inf
    copy_with_config(folder, tmp_path, None)
    folders.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError,
        match=rf"{tmp_path}: expected a tensor text_model.final_layer_norm.bias of finite numbers",
    ):
        load_clip(tmp_path)


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "merges.txt", "model.safetensors"]
)
def test_refuses_a_folder_with_a_missing_file(folder, tmp_path, name):
    (copy_with_config(folder, tmp_path, None) / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: expected .*{name}"):
        load_clip(tmp_path)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (
            np.zeros((1, 7, 6, 3), np.float32),
            ValueError,
            r"images must have shape \(batch, 6, 6, 3\) for this network, got \[1, 7, 6, 3\]",
        ),
        (
            np.zeros((1, 6, 6, 1), np.float32),
            ValueError,
            r"images must have shape \(batch, 6, 6, 3\) for this network, got \[1, 6, 6, 1\]",
        ),
        (np.zeros((1, 6, 6, 3), np.uint8), TypeError, "images must be a float array, got uint8"),
        (np.full((1, 6, 6, 3), np.nan, np.float32), ValueError, "images must be finite"),
        (np.zeros((0, 6, 6, 3), np.float32), ValueError, "images must not be empty"),
    ],
)
def test_the_image_encoder_refuses_invalid_images(towers, images, error, message):
    with pytest.raises(error, match=message):
        towers.image(images)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (np.zeros((1, 17), np.int32), ValueError, r"with length 1 to 16, got int32\[1, 17\]"),
        (np.zeros(3, np.int32), ValueError, r"ids must have shape \(batch, length\)"),
        (
            np.zeros((1, 3), np.float32),
            TypeError,
            r"ids must be integers \(batch, length\), got float32\[1, 3\]",
        ),
        (np.full((1, 3), 9999), ValueError, "ids must lie in 0 .. "),
    ],
)
def test_the_text_encoder_refuses_invalid_ids(towers, ids, error, message):
    with pytest.raises(error, match=message):
        towers.text(ids)


def test_refuses_a_tokenizer_with_more_ids_than_the_text_encoder(towers):
    other = towers._replace(
        tokenizer=dp.contrastive.characters(
            alphabet="".join(map(chr, range(0x4E00, 0x5100))), length=16
        )
    )
    with pytest.raises(
        ValueError,
        match=r"towers.text must accept the tokenizer's rows of 16 ids up to 768: ids must lie in",
    ):
        similarity(other, IMAGES, ["\u50ff"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_computes_in_the_requested_dtype(folder, dtype):
    with jax.enable_x64(dtype == "float64"):
        towers = load_clip(folder, dtype=dtype)
        assert {leaf.dtype for leaf in jax.tree.leaves(towers[:2])} == {jnp.dtype(dtype)}
        assert towers.log_scale.dtype == jnp.promote_types(dtype, "float32")
        assert (
            towers.log_scale
            == folders.random(folders.clip_shapes(towers.tokenizer.count))["logit_scale"]
        )
        assert jax.eval_shape(towers.image, IMAGES).dtype == dtype
        gradient = jax.eval_shape(jax.grad(lambda x: towers.image(x).sum()), IMAGES)
        assert gradient.dtype == "float32"


@pytest.mark.parametrize(
    ("dtype", "error"),
    [("int32", TypeError), ("float64", ValueError), ("foo", TypeError), (None, TypeError)],
)
def test_refuses_an_unsupported_dtype(folder, dtype, error):
    with pytest.raises(error, match="dtype must be"):
        load_clip(folder, dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "vision", "text"),
    [
        (0, {}, {}),
        (
            1,
            {"hidden_act": "gelu", "layer_norm_eps": 1e-3},
            {"hidden_act": "gelu_new", "eos_token_id": 2},
        ),
        (
            2,
            {"patch_size": 4, "image_size": 12, "num_hidden_layers": 3, "num_attention_heads": 4},
            {"num_hidden_layers": 1},
        ),
    ],
)
def test_agrees_with_transformers(tmp_path, seed, vision, text):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(seed)
    ids = folders.write_vocabulary(tmp_path)
    config = folders.clip_config(ids[folders.END], len(ids))
    sizes = {
        "text_config": config["text_config"] | text,
        "vision_config": config["vision_config"] | vision,
    }
    # With the default initial weights, features hardly depend on the input.
    model = transformers.CLIPModel(
        transformers.CLIPConfig(**sizes, projection_dim=4, initializer_factor=20.0)
    ).eval()
    model.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor().save_pretrained(tmp_path)
    tokenizer = transformers.CLIPTokenizer(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    )
    side = sizes["vision_config"]["image_size"]
    images = np.random.default_rng(seed).uniform(size=(3, side, side, 3)).astype(np.float32)
    texts = [*folders.SENTENCES, "", "so many words " * 9]
    padded = tokenizer(
        texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
    )
    processor = transformers.CLIPImageProcessor()
    pixels = torch.tensor(
        (images.astype(float) - processor.image_mean) / processor.image_std
    ).permute(0, 3, 1, 2)

    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-11)):
        with torch.no_grad(), jax.enable_x64(dtype == "float64"):
            model, towers = model.to(getattr(torch, dtype)), load_clip(tmp_path, dtype=dtype)
            expected = model(pixel_values=pixels.to(getattr(torch, dtype)), **padded)
            features = [
                model.get_image_features(pixel_values=pixels.to(getattr(torch, dtype))),
                model.get_text_features(**padded),
            ]
            encoded = towers.tokenizer.encode(texts)
            np.testing.assert_array_equal(encoded, padded["input_ids"].numpy())
            ours = [run(towers.image, images.astype(dtype)), run(towers.text, encoded)]
            for got, want in zip(ours, features, strict=True):
                want = getattr(want, "pooler_output", want).numpy()
                np.testing.assert_allclose(
                    got, want, rtol=tolerance, atol=tolerance * np.abs(want).max()
                )
            logits = np.exp(towers.log_scale) * similarity(towers, images.astype(dtype), texts)
            np.testing.assert_allclose(
                logits,
                expected.logits_per_image.numpy(),
                rtol=tolerance,
                atol=tolerance * np.exp(towers.log_scale),
            )
