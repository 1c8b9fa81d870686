"""CLIP from a folder of `transformers`: two pretrained towers, of images and of texts, with the tokenizer that belongs to them.

Both are pre-norm transformers. The image is read from the place of its class, the text from the place of its end, which, as every place
reads from those before it, has read it all:

    f(x) = W norm(vit(x))[class],    g(t) = W norm(transformer(embedding[t] + position))[end]
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffprog import _validation, backprop, models
from diffprog.contrastive._bpe import BytePairs, byte_pairs
from diffprog.contrastive._dual_encoder import Towers
from diffprog.nodes import tap
from diffprog.pretrained._preprocessing import on_pixels, pixels_of
from diffprog.pretrained._safetensors import Stored, config_of, dtype_of, folder_of, read
from diffprog.pretrained._weight_names import (
    Blocks,
    Patches,
    blocks_of,
    patches_of,
    size_of,
    stored_affine,
    stored_blocks,
    stored_norm,
    stored_patches,
)
from diffprog.program import program

_COMMON = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_VISION = _COMMON | {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
}
_TEXT = _COMMON | {
    "hidden_size": 512,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "eos_token_id": 49407,
}
_BLOCK = {
    "norm1": "layer_norm1",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "hidden": "mlp.fc1",
    "out": "mlp.fc2",
}
_LEGACY_END = 2  # configs written before transformers 4.31 have this, of no meaning: the end is then the largest id of a row


def load_clip(folder: str | os.PathLike[str], *, dtype: Any = "float32") -> Towers:
    """The towers of a CLIP that CLIPModel saved, with a vision transformer of any size.

    Nodes of `towers.image` are those of `models.vit`; its features are "logits". Nodes of `towers.text` are "tokens", what enters the first
    block; those of `models.transformer`; "pooled", the normalised place of the end; and "features". Ids are refused that are not of the
    vocabulary, and rows that are longer than the positions known.

    Args:
        folder: holds config.json; preprocessor_config.json, for the scale of the pixels; tokenizer.json, or vocab.json and merges.txt; and
            model.safetensors, or model.safetensors.index.json and the files that it names.
        dtype: of the weights and of all that is computed, whatever the file has; `log_scale` is float32 at least.

    Raises:
        ImportError: safetensors or tokenizers are not installed (the extra "pretrained").
        FileNotFoundError: no such folder, or one of the files is missing.
        TypeError, ValueError: files that are corrupt or of another architecture; tensors that are missing, unexpected or of another shape,
            with their names and shapes; only a pickle; at the image tower, images that are not finite floats of the one shape it has.

    Source: A. Radford et al., "Learning transferable visual models from natural language supervision", 2021.

    >>> load_clip("no/such/folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: folder must be an existing folder, got no/such/folder
    """
    place, dtype = folder_of(folder), dtype_of(dtype)
    config = config_of(place, "clip")
    vision, text = _part(place, config, "vision", _VISION), _part(place, config, "text", _TEXT)
    width = size_of(place, {"projection_dim": 512} | config, "projection_dim")
    patches, seen, read_text = (
        patches_of(place, vision),
        blocks_of(place, vision),
        blocks_of(place, text),
    )
    positions, count = (
        size_of(place, text, "max_position_embeddings", least=2),
        size_of(place, text, "vocab_size"),
    )
    pixels, tokenizer = pixels_of(place, patches.channels), byte_pairs(place, length=positions)
    _check_tokenizer(place, tokenizer, count, text["eos_token_id"])
    layout = {
        "image": _image_layout(patches, seen, width),
        "text": _text_layout(read_text, positions, count, width),
        "log_scale": Stored("logit_scale", (), least=np.float32),
    }
    params = read(place, layout, dtype, unused=("embeddings.position_ids",))
    of_images = models.vit(
        patches.shape, patch=patches.patch, outputs=width, norm_first=True, **seen._asdict()
    ).apply
    of_ids = _text_tower(read_text, positions, count, width, text["eos_token_id"])
    image = on_pixels(of_images, params["image"], pixels, patches.shape, dtype)
    return Towers(
        image, program(of_ids, params["text"]), tokenizer, jnp.asarray(params["log_scale"]), None
    )


def _part(
    folder: Path, config: Mapping[str, Any], name: str, defaults: dict[str, Any]
) -> dict[str, Any]:
    """The config of a tower; old files have it twice, and then the second holds."""
    stated = {key: config.get(key) for key in (f"{name}_config", f"{name}_config_dict")}
    for key, part in stated.items():
        if part is not None and not isinstance(part, dict):
            raise ValueError(
                f"{folder / 'config.json'}: expected {key} to be an object, found {type(part).__name__}"
            )
    first, second = (part or {} for part in stated.values())
    return defaults | first | second


def _check_tokenizer(folder: Path, tokenizer: BytePairs, count: int, end: Any) -> None:
    if tokenizer.count > count or end not in (_LEGACY_END, tokenizer.end):
        raise ValueError(
            f"{folder}: expected a tokenizer that has ids below the vocab_size {count} of config.json and ends a text with its "
            f"eos_token_id {end!r}, found ids up to {tokenizer.count - 1} and the end {tokenizer.end}"
        )


def _image_layout(patches: Patches, blocks: Blocks, outputs: int) -> dict[str, Any]:
    embeddings, width = "vision_model.embeddings", blocks.width
    return {
        "patches": stored_patches(f"{embeddings}.patch_embedding", patches, width, bias=False),
        "class": Stored(f"{embeddings}.class_embedding", (width,)),
        "positions": Stored(f"{embeddings}.position_embedding.weight", (1 + patches.places, width)),
        "norm_first": stored_norm("vision_model.pre_layrnorm", width),
        "blocks": stored_blocks("vision_model.encoder.layers", _BLOCK, blocks),
        "norm": stored_norm("vision_model.post_layernorm", width),
        "logits": stored_affine("visual_projection", width, outputs, bias=False),
    }


def _text_layout(blocks: Blocks, positions: int, count: int, outputs: int) -> dict[str, Any]:
    embeddings, width = "text_model.embeddings", blocks.width
    return {
        "embedding": {"weight": Stored(f"{embeddings}.token_embedding.weight", (count, width))},
        "positions": Stored(f"{embeddings}.position_embedding.weight", (positions, width)),
        "blocks": stored_blocks("text_model.encoder.layers", _BLOCK, blocks),
        "norm": stored_norm("text_model.final_layer_norm", width),
        "features": stored_affine("text_projection", width, outputs, bias=False),
    }


def _text_tower(
    blocks: Blocks, positions: int, count: int, outputs: int, end: Any
) -> Callable[[Any, Any], Array]:
    width, stream = blocks.width, models.transformer(**blocks._asdict(), causal=True).apply
    layers = {
        "embedding": backprop.embedding(count, width),
        "norm": backprop.layer_norm(width, epsilon=blocks.epsilon),
        "features": backprop.affine(width, outputs),
    }

    def apply(
        params: dict[str, Any], ids: Int[Array, "batch length"]
    ) -> Float[Array, "batch outputs"]:
        _check(ids, positions, count)

        def run(name: str, x: Array) -> Array:
            return backprop.differentiable(layers[name])(params[name], x)

        tokens = tap(run("embedding", ids) + params["positions"][: ids.shape[1]], "tokens")
        read = stream(params["blocks"], tokens)[jnp.arange(len(ids)), _end_of(ids, end)]
        return tap(run("features", tap(run("norm", read), "pooled")), "features")

    return apply


def _end_of(ids: Int[Array, "batch length"], end: int) -> Int[Array, "batch"]:
    """The first place of the end in each row, which may be filled up with more of it."""
    return jnp.argmax(ids if end == _LEGACY_END else ids == end, 1)


def _check(ids: Any, positions: int, count: int) -> None:
    given = _validation.array("ids", ids)
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise TypeError(
            f"ids must be integers (batch, length), got {given.dtype}{list(given.shape)}"
        )
    if given.ndim != 2 or not 0 < given.shape[1] <= positions:
        raise ValueError(
            f"ids must have shape (batch, length) with a length of 1 to {positions}, got {list(given.shape)}"
        )
    _validation.within("ids", given, 0, count - 1)
