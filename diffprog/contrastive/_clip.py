"""Load CLIP saved by `transformers` as a dual encoder.

Image and text encoder are pre-norm transformers. The image features are read at the class token,
the text features at the end token. Attention in the text encoder is causal, so the end token is the
first position that depends on the whole text:

    f(x) = W norm(vit(x))[class],    g(t) = V norm(transformer(embedding[t] + positions))[end]

x is an image, t the token ids of a text; W and V are learned projections to one feature space.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffprog import backprop, models
from diffprog.contrastive._bpe import byte_pairs
from diffprog.contrastive._dual_encoder import Towers, encode_ids
from diffprog.contrastive._tokenizers import check_ids
from diffprog.pretrained._preprocessing import read_normalization
from diffprog.pretrained._safetensors import TensorSpec, load_params, open_checkpoint
from diffprog.pretrained._weight_names import (
    VIT_BASE,
    PatchConfig,
    TransformerConfig,
    affine_specs,
    norm_specs,
    patch_specs,
    read_patch_config,
    read_size,
    read_transformer_config,
    transformer_specs,
)
from diffprog.program import program

_COMMON: dict[str, Any] = {
    "num_hidden_layers": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_VISION = VIT_BASE | _COMMON | {"patch_size": 32}
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
# Configs written before transformers 4.31 state this wrong id; the end is then the largest id.
_LEGACY_END = 2


def load_clip(folder: str | os.PathLike[str], *, dtype: Any = "float32") -> Towers:
    """Load a CLIP dual encoder saved by CLIPModel of `transformers`.

    Its image encoder must be a vision transformer, of any size.

    The encoders are `towers.image` and `towers.text` of the returned `Towers`. The nodes (named
    intermediate values) of the image encoder are those of `models.vit`, where "logits" are the
    image features. The nodes of the text encoder are "tokens", the input of the first block; those
    of `models.transformer`; "pooled", the normalized end token; and "features".

    Args:
        folder: folder with config.json; preprocessor_config.json (pixel normalization);
            tokenizer.json, or vocab.json and merges.txt; and model.safetensors, or
            model.safetensors.index.json with the files it names.
        dtype: float dtype of weights and computation, whatever the checkpoint's; `log_scale` is at
            least float32.

    Raises:
        ImportError: safetensors or tokenizers are not installed
            (pip install 'diffprog[pretrained]').
        FileNotFoundError: the folder or one of the files does not exist.
        TypeError, ValueError: a file is corrupt, of another architecture, or a pickle; tensors are
            missing, unexpected or of another shape (all are listed). The image encoder raises if
            images are not finite floats of its input shape; the text encoder raises if ids are
            outside the vocabulary or rows longer than the position embeddings.

    Source: A. Radford et al., "Learning transferable visual models from natural language
    supervision", 2021.

    >>> load_clip("no/such/folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: folder must be an existing folder, got no/such/folder
    """
    folder, dtype, config = open_checkpoint(folder, dtype, "clip")
    vision = _read_encoder_config(folder, config, "vision", _VISION)
    text = _read_encoder_config(folder, config, "text", _TEXT)
    outputs = read_size(folder, {"projection_dim": 512} | config, "projection_dim")
    patches = read_patch_config(folder, vision)
    image_blocks = read_transformer_config(folder, vision)
    text_blocks = read_transformer_config(folder, text)
    length = read_size(folder, text, "max_position_embeddings", least=2)
    count, end = read_size(folder, text, "vocab_size"), text["eos_token_id"]
    normalization = read_normalization(folder, patches.channels)
    tokenizer = byte_pairs(folder, length=length)
    if tokenizer.count > count or end not in (_LEGACY_END, tokenizer.end):
        raise ValueError(
            f"{folder}: expected a tokenizer with ids below the vocab_size {count} of config.json "
            f"and its eos_token_id {end!r} as end token, found ids up to {tokenizer.count - 1} and "
            f"end token {tokenizer.end}"
        )
    specs = {
        "image": _image_specs(patches, image_blocks, outputs),
        "text": _text_specs(text_blocks, length, count, outputs),
        "log_scale": TensorSpec("logit_scale", (), min_dtype=np.float32),
    }
    params = load_params(folder, specs, dtype, unused=("embeddings.position_ids",))
    options = image_blocks._asdict() | {"outputs": outputs, "norm_first": True}
    vit = models.vit(patches.shape, patch=patches.patch, **options)
    return Towers(
        normalization.prepend_to(vit.apply, params["image"], patches.shape, dtype),
        program(_text_encoder(text_blocks, length, count, outputs, end), params["text"]),
        tokenizer,
        jnp.asarray(params["log_scale"]),
    )


def _read_encoder_config(
    folder: Path, config: Mapping[str, Any], encoder: str, defaults: dict[str, Any]
) -> dict[str, Any]:
    # Old files state the config of an encoder twice; the second entry takes precedence.
    merged = defaults
    for name in (f"{encoder}_config", f"{encoder}_config_dict"):
        entry = config.get(name)
        if entry is not None and not isinstance(entry, dict):
            raise ValueError(
                f"{folder / 'config.json'}: expected {name} to be an object, "
                f"found {type(entry).__name__}"
            )
        merged = merged | (entry or {})
    return merged


def _image_specs(patches: PatchConfig, config: TransformerConfig, outputs: int) -> dict[str, Any]:
    embeddings, width = "vision_model.embeddings", config.width
    positions = (1 + patches.num_patches, width)
    return {
        "patches": patch_specs(f"{embeddings}.patch_embedding", patches, width, bias=False),
        "class": TensorSpec(f"{embeddings}.class_embedding", (width,)),
        "positions": TensorSpec(f"{embeddings}.position_embedding.weight", positions),
        "norm_first": norm_specs("vision_model.pre_layrnorm", width),
        "blocks": transformer_specs("vision_model.encoder.layers", _BLOCK, config),
        "norm": norm_specs("vision_model.post_layernorm", width),
        "logits": affine_specs("visual_projection", width, outputs, bias=False),
    }


def _text_specs(config: TransformerConfig, length: int, count: int, outputs: int) -> dict[str, Any]:
    embeddings, width = "text_model.embeddings", config.width
    return {
        "embedding": {"weight": TensorSpec(f"{embeddings}.token_embedding.weight", (count, width))},
        "positions": TensorSpec(f"{embeddings}.position_embedding.weight", (length, width)),
        "blocks": transformer_specs("text_model.encoder.layers", _BLOCK, config),
        "norm": norm_specs("text_model.final_layer_norm", width),
        "features": affine_specs("text_projection", width, outputs, bias=False),
    }


def _text_encoder(
    config: TransformerConfig, length: int, count: int, outputs: int, end: int
) -> Callable[[Any, Any], Array]:
    blocks = models.transformer(**config._asdict(), causal=True)
    layers = {
        "embedding": backprop.embedding(count, config.width),
        "norm": backprop.layer_norm(config.width, epsilon=config.epsilon),
        "features": backprop.affine(config.width, outputs),
    }

    def apply(
        params: dict[str, Any], ids: Int[Array, "batch length"]
    ) -> Float[Array, "batch outputs"]:
        check_ids(ids, count, range(1, length + 1))
        # The first end token: rows may be padded with more of them.
        ends = jnp.argmax(ids if end == _LEGACY_END else ids == end, 1)
        at_end = lambda stream: stream[jnp.arange(len(ids)), ends]
        return encode_ids(layers, blocks, params, ids, at_end)

    return apply
