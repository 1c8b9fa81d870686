"""Load a residual network saved by `transformers`, for images of any size.

A layer is a convolution with kernel W followed by a batch norm with scale g and shift b. With fixed
mean m and variance v the batch norm is affine in each channel, so the two are loaded as one
convolution with a bias:

    g (W * x - m) / sqrt(v + epsilon) + b  =  (W s) * x + (b - m s),    s = g / sqrt(v + epsilon)

A block adds two layers (basic) or three (bottleneck) to its input,

    x <- relu(x + layer(relu(layer(x))))

The first block of a stage may have a stride. If a block changes the shape, its input x is added
after one more layer, the shortcut.
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
from diffprog.pretrained._preprocessing import Pretrained, read_class_names, read_normalization
from diffprog.pretrained._safetensors import TensorSpec, load_params, open_checkpoint
from diffprog.pretrained._weight_names import affine_specs, read_size

Images = Float[Array, "batch height width channels"]

_DEFAULTS: dict[str, Any] = {
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
    """Description of a convolution with batch norm: its name in the checkpoint, and its sizes."""

    name: str
    inputs: int
    outputs: int
    kernel_size: int
    stride: int = 1


class ResidualBlock(NamedTuple):
    """Description of a residual block: name, layers, and shortcut layer if the shape changes.

    The output of the block is tapped as a node (a named intermediate value) with the name `node`.
    """

    node: str
    layers: tuple[Convolution, ...]
    shortcut: Convolution | None


class ConvBatchNorm(NamedTuple):
    """Parameters of a convolution and its batch norm; or, to load them, a `TensorSpec` for each."""

    kernel: Any
    scale: Any
    shift: Any
    mean: Any
    variance: Any


def load_resnet(folder: str | os.PathLike[str], *, dtype: Any = "float32") -> Pretrained:
    """Load a residual network saved by ResNetForImageClassification or ResNetModel.

    The loaded program returns the logits, or "pooled" if the checkpoint is a ResNetModel or has no
    classes. It takes images of any size.

    Its nodes (named intermediate values), for stages s = 0, 1, ... and their blocks k = 0, 1, ...,
    are "stem", after the first convolution and relu; "stage<s>.block<k>", the output of the block;
    "stage<s>.block<k>.conv<i>", the pre-activation of its layer i; "pooled", the mean over the
    image, (batch, channels); and "logits".

    Args:
        folder: folder with config.json, preprocessor_config.json (pixel normalization), and
            model.safetensors or model.safetensors.index.json with the files it names. Blocks may
            be basic or bottlenecks.
        dtype: float dtype of weights and computation, whatever the checkpoint's.

    Raises:
        ImportError: safetensors is not installed (pip install 'diffprog[pretrained]').
        FileNotFoundError: the folder or one of the files does not exist.
        TypeError, ValueError: a file is corrupt, of another architecture, or a pickle; tensors are
            missing, unexpected or of another shape (all are listed). The program raises if images
            are not finite floats (batch, height, width, channels).

    Source: K. He et al., "Deep residual learning for image recognition", 2016.

    >>> load_resnet("no/such/folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: folder must be an existing folder, got no/such/folder
    """
    folder, dtype, config = open_checkpoint(folder, dtype, "resnet")
    config = _DEFAULTS | config
    headless = config.get("architectures") == ["ResNetModel"]
    classes = () if headless else read_class_names(folder, config)
    prefix, channels = "" if headless else "resnet.", read_size(folder, config, "num_channels")
    width = read_size(folder, config, "embedding_size")
    stem = Convolution(f"{prefix}embedder.embedder", channels, width, 7, 2)
    blocks = tuple(_read_blocks(folder, config, f"{prefix}encoder.stages", width))
    normalization = read_normalization(folder, channels)
    specs: dict[str, Any] = {"stem": _specs(stem)}
    for block in blocks:
        shortcut = [block.shortcut] if block.shortcut else []
        specs[block.node] = [*map(_specs, (*block.layers, *shortcut))]
    if classes:
        specs["logits"] = affine_specs("classifier.1", config["hidden_sizes"][-1], len(classes))
    # In double precision, so that folding the batch norms adds no rounding error.
    params = load_params(folder, specs, np.float64, unused=("num_batches_tracked",))
    for spec, array in zip(jax.tree.leaves(specs), jax.tree.leaves(params), strict=True):
        if spec.name.endswith("running_var") and (array < 0).any():
            raise ValueError(
                f"{folder}: expected a tensor {spec.name} of variances, at least 0, "
                f"found {array.min():g}"
            )
    params = jax.tree.map(lambda array: jnp.asarray(array.astype(dtype)), _fold_batch_norms(params))
    apply = functools.partial(_apply_resnet, stem, blocks)
    network = normalization.prepend_to(apply, params, (None, None, channels), dtype)
    size = normalization.image_size
    return Pretrained(network, classes, (size, size, channels))


def _read_blocks(
    folder: Path, config: Mapping[str, Any], prefix: str, inputs: int
) -> Iterator[ResidualBlock]:
    sizes, depths = config["hidden_sizes"], config["depths"]
    if (
        config["layer_type"] not in ("basic", "bottleneck")
        or config["hidden_act"] != "relu"
        or not (isinstance(sizes, list) and isinstance(depths, list))
        or not len(sizes) == len(depths) > 0
        or not all(isinstance(number, int) and number > 0 for number in sizes + depths)
    ):
        names = ("layer_type", "hidden_act", "hidden_sizes", "depths")
        raise ValueError(
            f"{folder / 'config.json'}: expected a layer_type 'basic' or 'bottleneck', hidden_act "
            "'relu', and as many hidden_sizes as depths, found "
            f"{', '.join(f'{name} {config[name]!r}' for name in names)}"
        )
    for s, (outputs, depth) in enumerate(zip(sizes, depths, strict=True)):
        for k in range(depth):
            stride = 2 if k == 0 and (s > 0 or config["downsample_in_first_stage"]) else 1
            name = f"{prefix}.{s}.layers.{k}"
            shortcut = None
            if inputs != outputs or stride != 1:
                shortcut = Convolution(f"{name}.shortcut", inputs, outputs, 1, stride)
            layers = _read_layers(config, f"{name}.layer", inputs, outputs, stride)
            yield ResidualBlock(f"stage{s}.block{k}", layers, shortcut)
            inputs = outputs


def _read_layers(
    config: Mapping[str, Any], name: str, inputs: int, outputs: int, stride: int
) -> tuple[Convolution, ...]:
    if config["layer_type"] == "basic":
        sizes = [(inputs, outputs, 3, stride), (outputs, outputs, 3, 1)]
    else:
        # The paper has the stride of a bottleneck in its first layer, most implementations in the
        # second.
        first, second = (stride, 1) if config["downsample_in_bottleneck"] else (1, stride)
        width = outputs // _REDUCTION
        sizes = [(inputs, width, 1, first), (width, width, 3, second), (width, outputs, 1, 1)]
    return tuple(Convolution(f"{name}.{k}", *size) for k, size in enumerate(sizes))


def _specs(layer: Convolution) -> ConvBatchNorm:
    shape = (layer.outputs, layer.inputs, layer.kernel_size, layer.kernel_size)
    to_hwio = lambda kernel: kernel.transpose(2, 3, 1, 0)
    kernel = TensorSpec(f"{layer.name}.convolution.weight", shape, to_hwio)
    names = ("weight", "bias", "running_mean", "running_var")
    norm = [TensorSpec(f"{layer.name}.normalization.{name}", (layer.outputs,)) for name in names]
    return ConvBatchNorm(kernel, *norm)


def _fold_batch_norms(params: Any) -> Any:
    """Replace each `ConvBatchNorm` in a pytree by the parameters of one convolution with bias."""

    def fold(node: Any) -> Any:
        if not isinstance(node, ConvBatchNorm):
            return node
        scale = node.scale / np.sqrt(node.variance + _EPSILON)
        return {"weight": node.kernel * scale, "bias": node.shift - node.mean * scale}

    return jax.tree.map(fold, params, is_leaf=lambda node: isinstance(node, ConvBatchNorm))


def _apply_resnet(
    stem: Convolution, blocks: tuple[ResidualBlock, ...], params: dict[str, Any], x: Images
) -> Float[Array, "batch outputs"]:
    x = tap(jax.nn.relu(_convolve(stem, params["stem"], x)), "stem")
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    lowest = np.array(-np.inf, x.dtype)
    x = lax.reduce_window(x, lowest, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)
    for block in blocks:
        h, layer_params = x, params[block.node]
        for k, layer in enumerate(block.layers):
            h = _convolve(layer, layer_params[k], jax.nn.relu(h) if k else h)
            h = tap(h, f"{block.node}.conv{k}")
        shortcut = _convolve(block.shortcut, layer_params[-1], x) if block.shortcut else x
        x = tap(jax.nn.relu(h + shortcut), block.node)
    pooled = tap(x.mean((1, 2)), "pooled")
    if "logits" not in params:
        return pooled
    outputs, inputs = params["logits"]["weight"].shape
    affine = backprop.differentiable(backprop.affine(inputs, outputs))
    return tap(affine(params["logits"], pooled), "logits")


def _convolve(layer: Convolution, params: dict[str, Array], x: Images) -> Images:
    # Not `backprop.convolution`: `Program` gives XLA's convolution the same fast gradient.
    z = lax.conv_general_dilated(
        x,
        params["weight"],
        (layer.stride,) * 2,
        [(layer.kernel_size // 2,) * 2] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return z + params["bias"]
