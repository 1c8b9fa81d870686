"""Pixel normalization and class names of a checkpoint, and models that normalize their input.

A checkpoint expects pixels normalized as its preprocessor_config.json states. There mean and
deviation are for pixels 255 f x, with x in 0 .. 1 and the rescale_factor f, usually 1 / 255:

    (255 f x - mean) / deviation

The loaded program (a callable whose arrays are pytree leaves) includes the normalization, so that
gradients are with respect to images in 0 .. 1.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.pretrained._safetensors import read_json, read_number
from diffprog.program import Program, program

Images = Float[Array, "batch height width channels"]


class Pretrained(NamedTuple):
    """Image classifier loaded from a checkpoint.

    Attributes:
        program: callable, images (batch, *shape) in 0 .. 1 -> logits (batch, classes), or features
            if the checkpoint has no classifier.
        classes: names of the classes, in the order of the logits; empty without a classifier.
        shape: (height, width, channels) of the images that the network was trained on.
    """

    program: Program
    classes: tuple[str, ...]
    shape: tuple[int, int, int]


class Normalization(NamedTuple):
    """Pixel normalization of a checkpoint: (x - mean) / deviation of images x in 0 .. 1.

    Attributes:
        mean: mean of each channel, (channels,).
        deviation: standard deviation of each channel, (channels,), positive.
        image_size: side of the images the network was trained on; 224 if it is not stated.
    """

    mean: np.ndarray
    deviation: np.ndarray
    image_size: int

    def prepend_to(
        self,
        apply: Callable[[Any, Images], Array],
        params: Any,
        shape: tuple[int | None, ...],
        dtype: Any,
    ) -> Program:
        """Return a program that normalizes images in 0 .. 1 and then applies a network.

        Args:
            apply: `apply(params, x)`, the output of the network for normalized images x.
            params: parameters of the network.
            shape: (height, width, channels) that images must have; None for a side of any length.
            dtype: dtype to which images are cast.
        """

        def normalize_and_apply(params: dict[str, Any], images: Images) -> Array:
            _check_image_shape(images, shape)
            mean, deviation = params["pixels"]
            return apply(params["network"], (jnp.asarray(images, mean.dtype) - mean) / deviation)

        pixels = [jnp.asarray(array.astype(dtype)) for array in (self.mean, self.deviation)]
        return program(normalize_and_apply, {"network": params, "pixels": pixels})


def read_normalization(folder: Path, channels: int) -> Normalization:
    """Read the pixel normalization from the preprocessor_config.json of a checkpoint.

    Newer versions of `transformers` call the file processor_config.json. `channels` is the number
    of channels of the images.
    """
    files = [folder / f"{name}_config.json" for name in ("preprocessor", "processor")]
    file = next((file for file in files if file.is_file()), files[0])
    config = read_json(file)
    config = config.get("image_processor", config)
    if not isinstance(config, dict):
        raise ValueError(
            f"{file}: expected image_processor to be an object, found {type(config).__name__}"
        )
    factor = 1.0
    if config.get("do_rescale", True):
        factor = read_number(file, {"rescale_factor": 1 / 255} | config, "rescale_factor")
    scale = 255 * factor  # from images in 0 .. 1 to bytes, and then as the config states
    mean, deviation = np.zeros(channels), np.ones(channels)
    if config.get("do_normalize", True):
        mean = _read_channels(file, config, "image_mean", channels)
        deviation = _read_channels(file, config, "image_std", channels)
    if not (deviation > 0).all():
        raise ValueError(f"{file}: expected image_std to be positive, found {deviation.tolist()}")
    return Normalization(mean / scale, deviation / scale, _read_image_size(file, config))


def _read_channels(file: Path, config: Mapping[str, Any], name: str, channels: int) -> np.ndarray:
    values = config.get(name)
    if (
        not isinstance(values, list)
        or len(values) != channels
        or not all(type(value) in (int, float) and math.isfinite(value) for value in values)
    ):
        raise ValueError(
            f"{file}: expected {name} to be {channels} finite numbers, one per channel, "
            f"found {values!r}"
        )
    return np.asarray(values, float)


def _read_image_size(file: Path, config: Mapping[str, Any]) -> int:
    for size in (config.get("crop_size"), config.get("size")):
        # A number, {"height": ..., "width": ...} or {"shortest_edge": ...}.
        sides = [*size.values()] if isinstance(size, dict) else [size]
        if sides and isinstance(sides[0], int):
            if sides[0] < 1:
                raise ValueError(f"{file}: expected a size of at least 1, found {size!r}")
            return sides[0]
    return 224


def read_class_names(folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the class names from the content of config.json, in the order of the logits."""
    # With neither entry `transformers` assumes two classes, LABEL_0 and LABEL_1.
    count, names = config.get("num_labels", 2), config.get("id2label")
    if names is None and isinstance(count, int) and count >= 0:
        return tuple(f"LABEL_{k}" for k in range(count))
    if not isinstance(names, dict) or set(names) != {str(k) for k in range(len(names))}:
        found = {name: config[name] for name in ("id2label", "num_labels") if name in config}
        raise ValueError(
            f"{folder / 'config.json'}: expected id2label with keys '0', '1', ..., or num_labels, "
            f"found {found!r:.100}"
        )
    return tuple(str(names[str(k)]) for k in range(len(names)))


def _check_image_shape(images: Any, shape: tuple[int | None, ...]) -> None:
    _validation.floating("images", images)
    sizes = tuple(images.shape)[1:]
    if (
        len(sizes) != len(shape)
        or 0 in sizes
        or any(side not in (None, size) for side, size in zip(shape, sizes, strict=True))
    ):
        expected = ", ".join("any" if side is None else str(side) for side in shape)
        raise ValueError(
            f"images must have shape (batch, {expected}) for this network, "
            f"got {list(images.shape)}; resize them first"
        )
    _validation.batch(images=images)
    _validation.finite("images", images)
