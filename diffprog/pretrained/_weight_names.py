"""How `transformers` stores a transformer: what its config says about the blocks, and which tensors they are made of.

Matrices are stored as (outputs, inputs), as `backprop.affine` has them. The kernel that embeds patches is stored as (width, channels, rows,
columns) and becomes the matrix of a patch's pixels row by row, channels last.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffprog.models._transformer import Activation
from diffprog.pretrained._safetensors import Stored, number_of

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


class Blocks(NamedTuple):
    """What `models.transformer` is told."""

    width: int
    depth: int
    heads: int
    hidden: int
    activation: Activation
    epsilon: float


class Patches(NamedTuple):
    """Square images and the square patches they are cut into."""

    side: int
    patch: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of an image."""
        return self.side, self.side, self.channels

    @property
    def places(self) -> int:
        """How many patches an image has."""
        return (self.side // self.patch) ** 2


def blocks_of(folder: Path, config: Mapping[str, Any]) -> Blocks:
    """The blocks that a config describes."""
    if not isinstance(config["hidden_act"], str) or config["hidden_act"] not in _ACTIVATIONS:
        known = ", ".join(map(repr, _ACTIVATIONS))
        raise ValueError(
            f"{folder / 'config.json'}: expected hidden_act to be one of {known}, found {config['hidden_act']!r}"
        )
    width, depth, heads, hidden = (size_of(folder, config, name) for name in _SIZES)
    if width % heads:
        raise ValueError(
            f"{folder / 'config.json'}: expected a hidden_size that is a multiple of num_attention_heads, found {width} and {heads}"
        )
    epsilon = number_of(folder / "config.json", config, "layer_norm_eps")
    return Blocks(width, depth, heads, hidden, _ACTIVATIONS[config["hidden_act"]], epsilon)


_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def patches_of(folder: Path, config: Mapping[str, Any]) -> Patches:
    """The images that a config describes."""
    patches = Patches(
        *(size_of(folder, config, name) for name in ("image_size", "patch_size", "num_channels"))
    )
    if patches.side % patches.patch:
        raise ValueError(
            f"{folder / 'config.json'}: expected an image_size that is a multiple of patch_size, found {patches.side} and {patches.patch}"
        )
    return patches


def size_of(folder: Path, config: Mapping[str, Any], name: str, *, least: int = 1) -> int:
    """A positive integer of a config, or twice the same one, as the sides of a square."""
    size = config[name]
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    expected = "a positive integer" if least == 1 else f"an integer of at least {least}"
    if isinstance(size, bool) or not isinstance(size, int) or size < least:
        raise ValueError(
            f"{folder / 'config.json'}: expected {name} to be {expected} (images and patches are square), found {config[name]!r}"
        )
    return size


def stored_blocks(
    prefix: str, names: Mapping[str, str], blocks: Blocks, biases: bool = True
) -> dict[str, Any]:
    """The layout of the params of `models.transformer`; `names` says what its layers are called within a stored block.

    `biases` says whether query, key and value have any stored; where not, they are zero.
    """
    width, hidden = blocks.width, blocks.hidden

    def block(k: int) -> dict[str, Any]:
        name = {ours: f"{prefix}.{k}.{theirs}" for ours, theirs in names.items()}
        norms = {each: stored_norm(name[each], width) for each in ("norm1", "norm2")}
        reads = {
            each: stored_affine(name[each], width, width, bias=biases)
            for each in ("query", "key", "value")
        }
        writes = {
            "output": stored_affine(name["output"], width, width),
            "out": stored_affine(name["out"], hidden, width),
        }
        return norms | reads | writes | {"hidden": stored_affine(name["hidden"], width, hidden)}

    return {f"block{k}": block(k) for k in range(blocks.depth)}


def stored_norm(name: str, width: int) -> dict[str, Any]:
    """The layout of the params of a norm."""
    return {"scale": Stored(f"{name}.weight", (width,)), "shift": Stored(f"{name}.bias", (width,))}


def stored_affine(name: str, inputs: int, outputs: int, *, bias: bool = True) -> dict[str, Any]:
    """The layout of the params of an affine layer; a bias that is not stored is zero."""
    return {
        "weight": Stored(f"{name}.weight", (outputs, inputs)),
        "bias": Stored(f"{name}.bias", (outputs,)) if bias else np.zeros(outputs),
    }


def stored_patches(name: str, patches: Patches, width: int, *, bias: bool = True) -> dict[str, Any]:
    """The layout of the params that embed a patch."""
    kernel = Stored(
        f"{name}.weight",
        (width, patches.channels, patches.patch, patches.patch),
        _as_rows_of_pixels,
    )
    return {"weight": kernel, "bias": Stored(f"{name}.bias", (width,)) if bias else np.zeros(width)}


def _as_rows_of_pixels(kernel: np.ndarray) -> np.ndarray:
    return np.moveaxis(kernel, 1, -1).reshape(len(kernel), -1)
