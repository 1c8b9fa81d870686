"""Small checkpoint folders as `transformers` saves them, and the networks in NumPy."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers.pre_tokenizers import ByteLevel

SENTENCES = ["a photo of a seven", "a thin seven, two times four", "it's the number nine"]
START, END = "<|startoftext|>", "<|endoftext|>"
PREPROCESSING = {
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.25, 0.3],
}
SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
VIT = SIZES | {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "image_size": 6,
    "patch_size": 3,
    "id2label": {"0": "cat", "1": "dog", "2": "newt"},
}
RESNET = {
    "model_type": "resnet",
    "architectures": ["ResNetForImageClassification"],
    "embedding_size": 4,
    "hidden_sizes": [4, 8],
    "depths": [1, 2],
    "layer_type": "basic",
    "id2label": {"1": "dog", "0": "cat", "2": "newt"},
}


def clip_config(end: int, count: int, patch: int = 3) -> dict:
    text = SIZES | {"vocab_size": count, "max_position_embeddings": 16, "eos_token_id": end}
    return {
        "model_type": "clip",
        "projection_dim": 4,
        "vision_config": SIZES | {"image_size": 2 * patch, "patch_size": patch},
        "text_config": text,
    }


def random(shapes: dict) -> dict:
    """Return random float32 tensors of the given shapes; variances are positive."""
    generator = np.random.default_rng(0)
    tensors = {
        name: generator.normal(0.1, 0.4, shape).astype(np.float32) for name, shape in shapes.items()
    }
    return {
        name: 0.5 + np.abs(array) if name.endswith("running_var") else array
        for name, array in tensors.items()
    }


def affine(name: str, inputs: int, outputs: int) -> dict:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> dict:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def vit_shapes(
    width: int = 8, hidden: int = 12, classes: int = 3, patch: int = 3, depth: int = 2
) -> dict:
    embeddings = {
        "cls_token": (1, 1, width),
        "position_embeddings": (1, 5, width),
        "patch_embeddings.projection.weight": (width, 3, patch, patch),
    }
    shapes = {f"vit.embeddings.{name}": shape for name, shape in embeddings.items()} | {
        "vit.embeddings.patch_embeddings.projection.bias": (width,)
    }
    for k in range(depth):
        block = f"vit.encoder.layer.{k}"
        for each in ("query", "key", "value"):
            shapes |= affine(f"{block}.attention.attention.{each}", width, width)
        shapes |= affine(f"{block}.attention.output.dense", width, width) | affine(
            f"{block}.intermediate.dense", width, hidden
        )
        shapes |= affine(f"{block}.output.dense", hidden, width)
        shapes |= norm(f"{block}.layernorm_before", width) | norm(f"{block}.layernorm_after", width)
    return shapes | norm("vit.layernorm", width) | affine("classifier", width, classes)


def clip_shapes(count: int, width: int = 8, hidden: int = 12, patch: int = 3) -> dict:
    vision, text = "vision_model", "text_model"
    shapes = {
        f"{vision}.embeddings.class_embedding": (width,),
        f"{vision}.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{vision}.embeddings.position_embedding.weight": (5, width),
        f"{text}.embeddings.token_embedding.weight": (count, width),
        f"{text}.embeddings.position_embedding.weight": (16, width),
        "visual_projection.weight": (4, width),
        "text_projection.weight": (4, width),
        "logit_scale": (),
    }
    for block in (f"{tower}.encoder.layers.{k}" for tower in (vision, text) for k in range(2)):
        for each in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= affine(f"{block}.self_attn.{each}", width, width)
        shapes |= affine(f"{block}.mlp.fc1", width, hidden) | affine(
            f"{block}.mlp.fc2", hidden, width
        )
        shapes |= norm(f"{block}.layer_norm1", width) | norm(f"{block}.layer_norm2", width)
    return (
        shapes
        | norm(f"{vision}.pre_layrnorm", width)
        | norm(f"{vision}.post_layernorm", width)
        | norm(f"{text}.final_layer_norm", width)
    )


def resnet_shapes(*, bottleneck: bool = False) -> dict:
    """Return the tensor shapes of RESNET: three blocks, the second with a shortcut."""
    shapes = layer("resnet.embedder.embedder", 3, 4, 7)
    for name, inputs, outputs in (("0.layers.0", 4, 4), ("1.layers.0", 4, 8), ("1.layers.1", 8, 8)):
        within = outputs // 4
        basic = [(inputs, outputs, 3), (outputs, outputs, 3)]
        for k, sizes in enumerate(
            [(inputs, within, 1), (within, within, 3), (within, outputs, 1)]
            if bottleneck
            else basic
        ):
            shapes |= layer(f"resnet.encoder.stages.{name}.layer.{k}", *sizes)
    return (
        shapes
        | layer("resnet.encoder.stages.1.layers.0.shortcut", 4, 8, 1)
        | affine("classifier.1", 8, 3)
    )


def layer(name: str, inputs: int, outputs: int, window: int) -> dict:
    normalization = {
        f"{name}.normalization.{each}": (outputs,)
        for each in ("weight", "bias", "running_mean", "running_var")
    }
    return {f"{name}.convolution.weight": (outputs, inputs, window, window)} | normalization


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a small vocabulary and merges, laid out like CLIP's."""
    byte = sorted(ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in " ".join(SENTENCES).replace(",", "").replace("'", " ").split():
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges += [(parts[0], parts[1])] * ((parts[0], parts[1]) not in merges)
            parts = [parts[0] + parts[1], *parts[2:]]
    tokens = [
        *byte,
        *(f"{each}</w>" for each in byte),
        *dict.fromkeys(a + b for a, b in merges),
        START,
        END,
    ]
    return {token: k for k, token in enumerate(tokens)}, merges


def write(
    folder: Path, config: dict, tensors: dict | None, preprocessing: dict | None = None
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(PREPROCESSING if preprocessing is None else preprocessing)
    )
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors")
    return folder


def write_vocabulary(folder: Path) -> dict[str, int]:
    folder.mkdir(exist_ok=True)
    ids, merges = vocabulary()
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    )
    return ids


def clip(folder: Path, patch: int = 3) -> Path:
    ids = write_vocabulary(folder)
    return write(
        folder, clip_config(ids[END], len(ids), patch), random(clip_shapes(len(ids), patch=patch))
    )


def write_readme_folders(folder: Path) -> None:
    """Write small checkpoints with the names, image sizes and depths that the README uses."""
    clip(folder / "clip-vit-base-patch32", patch=112)
    config = VIT | {
        "image_size": 224,
        "patch_size": 112,
        "num_hidden_layers": 12,
        "intermediate_size": 20,
    }
    write(
        folder / "vit-base-patch16-224", config, random(vit_shapes(hidden=20, patch=112, depth=12))
    )


def encoder(
    tensors: dict,
    prefix: str,
    names: list[str],
    x: np.ndarray,
    s,
    *,
    causal: bool = False,
    epsilon: float = 1e-5,
) -> np.ndarray:
    """Apply two blocks of two heads, in NumPy.

    `names` are those of the two norms, of query, key, value and output, and of the MLP's layers.
    """
    first, second, query, key, value, output, hidden, out = names
    mask = np.tri(x.shape[1], dtype=bool) if causal else True
    for k in range(2):
        block = {
            name: value for name, value in tensors.items() if name.startswith(f"{prefix}.{k}.")
        }
        run = lambda name, x, block=block, k=k: dense(block, f"{prefix}.{k}.{name}", x)
        h = layer_norm(block, f"{prefix}.{k}.{first}", x, epsilon)
        q, keys, v = (np.stack(np.split(run(name, h), 2, -1)) for name in (query, key, value))
        scores = np.where(mask, q @ keys.swapaxes(-1, -2) / np.sqrt(q.shape[-1]), -np.inf)
        a = np.exp(scores - scores.max(-1, keepdims=True))
        x = x + run(output, np.concatenate([*(a / a.sum(-1, keepdims=True) @ v)], -1))
        x = x + run(out, s(run(hidden, layer_norm(block, f"{prefix}.{k}.{second}", x, epsilon))))
    return x


def dense(tensors: dict, name: str, x: np.ndarray) -> np.ndarray:
    return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0)


def layer_norm(tensors: dict, name: str, x: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
    h = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return h * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def embed_patches(kernel: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Embed the patches of images (batch, 6, 6, 3) by a stored kernel (width, 3, 3, 3)."""
    corners = [(row, column) for row in (0, 3) for column in (0, 3)]
    return np.stack(
        [np.einsum("bijc,wcij->bw", x[:, i : i + 3, j : j + 3], kernel) for i, j in corners], 1
    )


def normalize(images: np.ndarray) -> np.ndarray:
    """Normalize images in 0 .. 1 as PREPROCESSING states."""
    return (images - PREPROCESSING["image_mean"]) / PREPROCESSING["image_std"]
