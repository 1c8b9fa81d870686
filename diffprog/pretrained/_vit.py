"""Load the weights of vision transformers saved by `transformers` into `models.vit`."""

import operator
import os
from typing import Any

import numpy as np

from diffprog import models
from diffprog.pretrained._preprocessing import Pretrained, read_class_names, read_normalization
from diffprog.pretrained._safetensors import TensorSpec, load_params, open_checkpoint
from diffprog.pretrained._weight_names import (
    VIT_BASE,
    affine_specs,
    norm_specs,
    patch_specs,
    read_patch_config,
    read_transformer_config,
    transformer_specs,
)

_DEFAULTS: dict[str, Any] = VIT_BASE | {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "patch_size": 16,
    "qkv_bias": True,
}
_BLOCK = {
    "norm1": "layernorm_before",
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "output": "attention.output.dense",
    "norm2": "layernorm_after",
    "hidden": "intermediate.dense",
    "out": "output.dense",
}
# Tensors of a ViTModel that the class token's output does not depend on.
_UNUSED = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.mask_token")


def load_vit(folder: str | os.PathLike[str], *, dtype: Any = "float32") -> Pretrained:
    """Load a vision transformer saved by ViTForImageClassification or ViTModel.

    The loaded program returns the logits, or "pooled", the normalized class token, if the
    checkpoint is a ViTModel or has no classes. Its nodes (named intermediate values) are those of
    `models.vit`: "patches", "tokens", "block<k>", "block<k>.attention", "block<k>.hidden", "pooled"
    and "logits".

    Args:
        folder: folder with config.json, preprocessor_config.json (pixel normalization), and
            model.safetensors or model.safetensors.index.json with the files it names.
        dtype: float dtype of weights and computation, whatever the checkpoint's.

    Raises:
        ImportError: safetensors is not installed (pip install 'diffprog[pretrained]').
        FileNotFoundError: the folder or one of the files does not exist.
        TypeError, ValueError: a file is corrupt, of another architecture, or a pickle; tensors are
            missing, unexpected or of another shape (all are listed). The program raises if images
            are not finite floats (batch, *shape).

    Source: A. Dosovitskiy et al., "An image is worth 16 x 16 words: transformers for image
    recognition at scale", 2021.

    >>> load_vit("no/such/folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: folder must be an existing folder, got no/such/folder
    """
    folder, dtype, config = open_checkpoint(folder, dtype, "vit")
    config = _DEFAULTS | config
    blocks, patches = read_transformer_config(folder, config), read_patch_config(folder, config)
    headless = config.get("architectures") == ["ViTModel"]
    classes = () if headless else read_class_names(folder, config)
    prefix, width = "" if headless else "vit.", blocks.width
    specs = {
        "patches": patch_specs(f"{prefix}embeddings.patch_embeddings.projection", patches, width),
        "class": TensorSpec(f"{prefix}embeddings.cls_token", (1, 1, width), np.ravel),
        "positions": TensorSpec(
            f"{prefix}embeddings.position_embeddings",
            (1, 1 + patches.num_patches, width),
            operator.itemgetter(0),
        ),
        "blocks": transformer_specs(
            f"{prefix}encoder.layer", _BLOCK, blocks, qkv_bias=config["qkv_bias"]
        ),
        "norm": norm_specs(f"{prefix}layernorm", width),
    }
    if classes:
        specs["logits"] = affine_specs("classifier", width, len(classes))
    model = models.vit(
        patches.shape, patch=patches.patch, outputs=len(classes) or None, **blocks._asdict()
    )
    normalization = read_normalization(folder, patches.channels)
    params = load_params(folder, specs, dtype, unused=_UNUSED)
    network = normalization.prepend_to(model.apply, params, patches.shape, dtype)
    return Pretrained(network, classes, patches.shape)
