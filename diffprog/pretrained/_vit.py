"""Vision transformers from the folders of `transformers`: ViTForImageClassification and ViTModel as `models.vit`."""

import operator
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffprog import models
from diffprog.pretrained._preprocessing import Pretrained, classes_of, on_pixels, pixels_of
from diffprog.pretrained._safetensors import Stored, config_of, dtype_of, folder_of, read
from diffprog.pretrained._weight_names import (
    Blocks,
    Patches,
    blocks_of,
    patches_of,
    stored_affine,
    stored_blocks,
    stored_norm,
    stored_patches,
)

_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
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
# What a ViTModel has beside the path from the image to the place of the class.
_UNUSED = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.mask_token")


def load_vit(folder: str | os.PathLike[str], *, dtype: Any = "float32") -> Pretrained:
    """A vision transformer that ViTForImageClassification or ViTModel saved, as a program of images in 0 .. 1.

    Its nodes are those of `models.vit`: for k = 0, 1, ... "block<k>", "block<k>.attention" and "block<k>.hidden"; "patches", "tokens",
    "pooled" and "logits". The output is the logits; that of a ViTModel, or without classes, is "pooled", the normalised place of the
    class.

    Args:
        folder: holds config.json; preprocessor_config.json, for the scale of the pixels; and model.safetensors, or
            model.safetensors.index.json and the files that it names.
        dtype: of the weights and of all that is computed, whatever the file has.

    Raises:
        ImportError: safetensors is not installed (the extra "pretrained").
        FileNotFoundError: no such folder, or one of the files is missing.
        TypeError, ValueError: files that are corrupt or of another architecture; tensors that are missing, unexpected or of another shape,
            with their names and shapes; only a pickle; at the program, images that are not finite floats (batch, *shape).

    Source: A. Dosovitskiy et al., "An image is worth 16 x 16 words: transformers for image recognition at scale", 2021.

    >>> load_vit("no/such/folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: folder must be an existing folder, got no/such/folder
    """
    place, dtype = folder_of(folder), dtype_of(dtype)
    config = _DEFAULTS | config_of(place, "vit")
    blocks, patches = blocks_of(place, config), patches_of(place, config)
    bare = config.get("architectures") == ["ViTModel"]
    classes = () if bare else classes_of(place, config)
    model = models.vit(
        patches.shape, patch=patches.patch, outputs=len(classes) or None, **blocks._asdict()
    )
    pixels = pixels_of(place, patches.channels)
    params = read(
        place,
        _layout(config, blocks, patches, "" if bare else "vit.", len(classes)),
        dtype,
        unused=_UNUSED,
    )
    return Pretrained(
        on_pixels(model.apply, params, pixels, patches.shape, dtype), classes, patches.shape
    )


def _layout(
    config: Mapping[str, Any], blocks: Blocks, patches: Patches, prefix: str, classes: int
) -> dict[str, Any]:
    width = blocks.width
    embeddings = f"{prefix}embeddings"
    layout = {
        "patches": stored_patches(f"{embeddings}.patch_embeddings.projection", patches, width),
        "class": Stored(f"{embeddings}.cls_token", (1, 1, width), np.ravel),
        "positions": Stored(
            f"{embeddings}.position_embeddings",
            (1, 1 + patches.places, width),
            operator.itemgetter(0),
        ),
        "blocks": stored_blocks(
            f"{prefix}encoder.layer", _BLOCK, blocks, biases=config["qkv_bias"]
        ),
        "norm": stored_norm(f"{prefix}layernorm", width),
    }
    return layout | ({"logits": stored_affine("classifier", width, classes)} if classes else {})
