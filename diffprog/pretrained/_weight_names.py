"""Read model sizes from a `transformers` config, and map our parameters to its tensor names.

Checkpoints store matrices as (outputs, inputs), like `backprop.affine`. They store the kernel of
the patch embedding as (width, channels, rows, columns), which is reshaped for `models.vit` to
(width, rows * columns * channels).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffprog.models._transformer import Activation
from diffprog.pretrained._safetensors import TensorSpec, read_number

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Default sizes of both ViTConfig and CLIPVisionConfig, those of ViT-Base.
VIT_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "num_channels": 3,
}


class TransformerConfig(NamedTuple):
    """Sizes, activation and epsilon of a transformer: the arguments of `models.transformer`."""

    width: int
    depth: int
    heads: int
    hidden: int
    activation: Activation
    epsilon: float


class PatchConfig(NamedTuple):
    """Sizes of square images and of the square patches that they are divided into."""

    image_size: int
    patch: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (height, width, channels) of an image."""
        return self.image_size, self.image_size, self.channels

    @property
    def num_patches(self) -> int:
        """Number of patches of an image."""
        return (self.image_size // self.patch) ** 2


def read_transformer_config(folder: Path, config: Mapping[str, Any]) -> TransformerConfig:
    """Read the sizes, activation and epsilon of a transformer from a checkpoint's config."""
    file, activation = folder / "config.json", config["hidden_act"]
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ValueError(
            f"{file}: expected hidden_act to be one of {', '.join(map(repr, _ACTIVATIONS))}, "
            f"found {activation!r}"
        )
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    width, depth, heads, hidden = (read_size(folder, config, name) for name in names)
    if width % heads:
        raise ValueError(
            f"{file}: expected a hidden_size that is a multiple of num_attention_heads, "
            f"found {width} and {heads}"
        )
    epsilon = read_number(file, config, "layer_norm_eps")
    return TransformerConfig(width, depth, heads, hidden, _ACTIVATIONS[activation], epsilon)


def read_patch_config(folder: Path, config: Mapping[str, Any]) -> PatchConfig:
    """Read the sizes of images and patches from the config of a vision transformer."""
    names = ("image_size", "patch_size", "num_channels")
    patches = PatchConfig(*(read_size(folder, config, name) for name in names))
    if patches.image_size % patches.patch:
        raise ValueError(
            f"{folder / 'config.json'}: expected an image_size that is a multiple of patch_size, "
            f"found {patches.image_size} and {patches.patch}"
        )
    return patches


def read_size(folder: Path, config: Mapping[str, Any], name: str, *, least: int = 1) -> int:
    """Return the entry `name` of a checkpoint's config, an integer of at least `least`.

    The entry may also be a list of two equal integers, the sides of a square.
    """
    size = config[name]
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if isinstance(size, bool) or not isinstance(size, int) or size < least:
        expected = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ValueError(
            f"{folder / 'config.json'}: expected {name} to be {expected} (images and patches are "
            f"square), found {config[name]!r}"
        )
    return size


def transformer_specs(
    prefix: str, names: Mapping[str, str], config: TransformerConfig, *, qkv_bias: bool = True
) -> dict[str, Any]:
    """Return the params of `models.transformer` with a `TensorSpec` in place of each array.

    Args:
        prefix: name of the list of blocks in the checkpoint.
        names: dict from the names of a block's layers in `models.transformer` to those in the
            checkpoint.
        config: sizes of the transformer.
        qkv_bias: whether query, key and value have biases in the checkpoint; otherwise they are 0.
    """

    def specs(layer: str, stored: str) -> dict[str, Any]:
        if layer in ("norm1", "norm2"):
            return norm_specs(stored, config.width)
        inputs = config.hidden if layer == "out" else config.width
        outputs = config.hidden if layer == "hidden" else config.width
        bias = qkv_bias or layer not in ("query", "key", "value")
        return affine_specs(stored, inputs, outputs, bias=bias)

    return {
        f"block{k}": {layer: specs(layer, f"{prefix}.{k}.{name}") for layer, name in names.items()}
        for k in range(config.depth)
    }


def norm_specs(name: str, width: int) -> dict[str, Any]:
    """Return the params of `backprop.layer_norm` with a `TensorSpec` in place of each array.

    `name` is the name of the layer in the checkpoint.
    """
    names = {"scale": f"{name}.weight", "shift": f"{name}.bias"}
    return {param: TensorSpec(stored, (width,)) for param, stored in names.items()}


def affine_specs(name: str, inputs: int, outputs: int, *, bias: bool = True) -> dict[str, Any]:
    """Return the params of `backprop.affine` with a `TensorSpec` in place of each array.

    `name` is the name of the layer in the checkpoint. Without `bias` it has none, and the bias of
    the params is an array of zeros.
    """
    return {
        "weight": TensorSpec(f"{name}.weight", (outputs, inputs)),
        "bias": TensorSpec(f"{name}.bias", (outputs,)) if bias else np.zeros(outputs),
    }


def patch_specs(
    name: str, patches: PatchConfig, width: int, *, bias: bool = True
) -> dict[str, Any]:
    """Return the params of a patch embedding with a `TensorSpec` in place of each array.

    `name` is the name of the layer in the checkpoint. Without `bias` it has none, and the bias of
    the params is an array of zeros.
    """
    shape = (width, patches.channels, patches.patch, patches.patch)
    flatten = lambda kernel: np.moveaxis(kernel, 1, -1).reshape(len(kernel), -1)
    specs = affine_specs(name, patches.channels * patches.patch**2, width, bias=bias)
    return specs | {"weight": TensorSpec(f"{name}.weight", shape, flatten)}
