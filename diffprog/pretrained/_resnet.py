"""Residual networks from the folders of `transformers`: ResNetForImageClassification and ResNetModel, for images of any size.

A layer is a convolution and the norm behind it. With its statistics m and v fixed, a batch norm is affine in each channel,

    g (W * x - m) / sqrt(v + epsilon) + b  =  (W s) * x + (b - m s),    s = g / sqrt(v + epsilon),

so the two are read as one convolution with a bias. A block adds two or three of them to its input,

    x <- relu(x + layer(relu(layer(x)))),

the first of a stage with a stride, and with one more layer on its input where the shape changes.
"""

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from diffprog import backprop
from diffprog.nodes import tap
from diffprog.pretrained._preprocessing import Pretrained, classes_of, on_pixels, pixels_of
from diffprog.pretrained._safetensors import Stored, config_of, dtype_of, folder_of, read
from diffprog.pretrained._weight_names import size_of, stored_affine

Images = Float[Array, "batch height width channels"]

_DEFAULTS = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
_EPSILON = 1e-5  # of torch's batch norm
_REDUCTION = 4  # of the channels within a bottleneck


class Convolution(NamedTuple):
    """A convolution with its norm: what the file calls it, channels, and geometry."""

    stored: str
    inputs: int
    outputs: int
    window: int
    stride: int = 1


class Block(NamedTuple):
    """A residual block: its node, its layers, and the layer on its input where the shape changes."""

    node: str
    layers: tuple[Convolution, ...]
    shortcut: Convolution | None


def load_resnet(folder: str | os.PathLike[str], *, dtype: Any = "float32") -> Pretrained:
    """A residual network that ResNetForImageClassification or ResNetModel saved, as a program of images in 0 .. 1 of any size.

    Nodes, for stages s = 0, 1, ... and blocks k = 0, 1, ... of each: "stem", after its convolution and relu; "stage<s>.block<k>", after the
    block; "stage<s>.block<k>.conv<i>", the pre-activation of layer i; "pooled", the mean over the image, (batch, channels); "logits". The
    output is the logits; that of a ResNetModel, or without classes, is "pooled".

    Args:
        folder: holds config.json; preprocessor_config.json, for the scale of the pixels; and model.safetensors, or
            model.safetensors.index.json and the files that it names. Layers may be basic or bottlenecks.
        dtype: of the weights and of all that is computed, whatever the file has.

    Raises:
        ImportError: safetensors is not installed (the extra "pretrained").
        FileNotFoundError: no such folder, or one of the files is missing.
        TypeError, ValueError: files that are corrupt or of another architecture; tensors that are missing, unexpected or of another shape,
            with their names and shapes; only a pickle; at the program, images that are not finite floats (batch, height, width, channels).

    Source: K. He et al., "Deep residual learning for image recognition", 2016.

    >>> load_resnet("no/such/folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: folder must be an existing folder, got no/such/folder
    """
    place, dtype = folder_of(folder), dtype_of(dtype)
    config = _DEFAULTS | config_of(place, "resnet")
    bare = config.get("architectures") == ["ResNetModel"]
    classes = () if bare else classes_of(place, config)
    prefix, channels = "" if bare else "resnet.", size_of(place, config, "num_channels")
    stem = Convolution(
        f"{prefix}embedder.embedder", channels, size_of(place, config, "embedding_size"), 7, 2
    )
    blocks, pixels = (
        tuple(_blocks(place, config, f"{prefix}encoder.stages", stem.outputs)),
        pixels_of(place, channels),
    )
    # In double precision, so that folding the norms in costs no rounding of its own.
    layout = _layout(stem, blocks, len(classes))
    stored = read(place, layout, np.float64, unused=("num_batches_tracked",))
    _check_variances(place, layout, stored)
    params = jax.tree.map(lambda array: jnp.asarray(array.astype(dtype)), _folded(stored))
    program = on_pixels(
        functools.partial(_run, stem, blocks), params, pixels, (None, None, channels), dtype
    )
    return Pretrained(program, classes, (pixels.side, pixels.side, channels))


def _blocks(folder: Path, config: Mapping[str, Any], prefix: str, inputs: int) -> Iterator[Block]:
    sizes, depths = config["hidden_sizes"], config["depths"]
    if (
        config["layer_type"] not in ("basic", "bottleneck")
        or config["hidden_act"] != "relu"
        or not _is_stages(sizes, depths)
    ):
        stated = ", ".join(
            f"{name} {config[name]!r}"
            for name in ("layer_type", "hidden_act", "hidden_sizes", "depths")
        )
        raise ValueError(
            f"{folder / 'config.json'}: expected a layer_type 'basic' or 'bottleneck', hidden_act 'relu', and as many hidden_sizes as "
            f"depths, found {stated}"
        )
    for s, (outputs, depth) in enumerate(zip(sizes, depths, strict=True)):
        for k in range(depth):
            stride = 2 if k == 0 and (s > 0 or config["downsample_in_first_stage"]) else 1
            name = f"{prefix}.{s}.layers.{k}"
            layers = _layers(config, f"{name}.layer", inputs, outputs, stride)
            changed = inputs != outputs or stride != 1
            yield Block(
                f"stage{s}.block{k}",
                layers,
                Convolution(f"{name}.shortcut", inputs, outputs, 1, stride) if changed else None,
            )
            inputs = outputs


def _is_stages(sizes: Any, depths: Any) -> bool:
    lists = isinstance(sizes, list) and isinstance(depths, list) and len(sizes) == len(depths) > 0
    return lists and all(isinstance(number, int) and number > 0 for number in sizes + depths)


def _layers(
    config: Mapping[str, Any], name: str, inputs: int, outputs: int, stride: int
) -> tuple[Convolution, ...]:
    """Two convolutions, or three in a bottleneck, of which the paper gives the stride to the first, others to the second."""
    if config["layer_type"] == "basic":
        return Convolution(f"{name}.0", inputs, outputs, 3, stride), Convolution(
            f"{name}.1", outputs, outputs, 3
        )
    within, (first, second) = (
        outputs // _REDUCTION,
        (stride, 1) if config["downsample_in_bottleneck"] else (1, stride),
    )
    narrowing, widening = (
        Convolution(f"{name}.0", inputs, within, 1, first),
        Convolution(f"{name}.2", within, outputs, 1),
    )
    return narrowing, Convolution(f"{name}.1", within, within, 3, second), widening


def _layout(stem: Convolution, blocks: tuple[Block, ...], classes: int) -> dict[str, Any]:
    layers = {
        block.node: (*block.layers, *([block.shortcut] if block.shortcut else []))
        for block in blocks
    }
    layout: dict[str, Any] = {"stem": _stored(stem)} | {
        node: [*map(_stored, each)] for node, each in layers.items()
    }
    return layout | (
        {"logits": stored_affine("classifier.1", blocks[-1].layers[-1].outputs, classes)}
        if classes
        else {}
    )


class Normed(NamedTuple):
    """The tensors of a convolution and of the norm behind it."""

    kernel: Any
    scale: Any
    shift: Any
    mean: Any
    variance: Any


def _stored(layer: Convolution) -> Normed:
    shape, name = (
        (layer.outputs, layer.inputs, layer.window, layer.window),
        f"{layer.stored}.normalization",
    )
    kernel = Stored(
        f"{layer.stored}.convolution.weight", shape, lambda stored: stored.transpose(2, 3, 1, 0)
    )
    return Normed(
        kernel,
        *(
            Stored(f"{name}.{each}", (layer.outputs,))
            for each in ("weight", "bias", "running_mean", "running_var")
        ),
    )


def _check_variances(folder: Path, layout: Any, stored: Any) -> None:
    for named, array in zip(jax.tree.leaves(layout), jax.tree.leaves(stored), strict=True):
        if named.name.endswith("running_var") and (array < 0).any():
            raise ValueError(
                f"{folder}: expected a tensor {named.name} of variances, at least 0, found {array.min():g}"
            )


def _folded(params: Any) -> Any:
    """The same tree, with a convolution with a bias in place of each one with a norm behind it."""

    def fold(node: Any) -> Any:
        if not isinstance(node, Normed):
            return node
        scale = node.scale / np.sqrt(node.variance + _EPSILON)
        return {"weight": node.kernel * scale, "bias": node.shift - node.mean * scale}

    return jax.tree.map(fold, params, is_leaf=lambda node: isinstance(node, Normed))


def _run(
    stem: Convolution, blocks: tuple[Block, ...], params: dict[str, Any], x: Images
) -> Float[Array, "batch outputs"]:
    x = tap(jax.nn.relu(_convolved(stem, params["stem"], x)), "stem")
    x = lax.reduce_window(
        x,
        np.array(-np.inf, x.dtype),
        lax.max,
        (1, 3, 3, 1),
        (1, 2, 2, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
    )
    for block in blocks:
        x = tap(_added(block, params[block.node], x), block.node)
    pooled = tap(x.mean((1, 2)), "pooled")
    if "logits" not in params:
        return pooled
    outputs, inputs = params["logits"]["weight"].shape
    return tap(
        backprop.differentiable(backprop.affine(inputs, outputs))(params["logits"], pooled),
        "logits",
    )


def _added(block: Block, params: list[Any], x: Images) -> Images:
    h = x
    for k, layer in enumerate(block.layers):
        h = tap(_convolved(layer, params[k], jax.nn.relu(h) if k else h), f"{block.node}.conv{k}")
    return jax.nn.relu(h + (_convolved(block.shortcut, params[-1], x) if block.shortcut else x))


def _convolved(layer: Convolution, params: dict[str, Array], x: Images) -> Images:
    """In JAX's own form, for which a `Program` has the fast gradient."""
    around = (layer.window // 2,) * 2
    z = lax.conv_general_dilated(
        x,
        params["weight"],
        (layer.stride,) * 2,
        (around, around),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return z + params["bias"]
