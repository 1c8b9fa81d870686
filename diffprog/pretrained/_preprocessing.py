"""What comes of a checkpoint that classifies images: a program of images in 0 .. 1, the names of its classes, the shape it wants.

A network reads pixels on the scale it was trained on, (255 f x - mean) / deviation; that belongs to the program, and so to its gradient.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.pretrained._safetensors import json_of, number_of, short
from diffprog.program import Program, program

Images = Float[Array, "batch height width channels"]


class Pretrained(NamedTuple):
    """A network from a checkpoint.

    Attributes:
        program: images (batch, *shape) in 0 .. 1 -> logits (batch, classes), or features where the checkpoint has no classes.
        classes: the names of the logits; none where there are none.
        shape: (height, width, channels) of an image.
    """

    program: Program
    classes: tuple[str, ...]
    shape: tuple[int, int, int]


class Pixels(NamedTuple):
    """What a network is shown: (x - mean) / deviation with x in 0 .. 1.

    Attributes:
        mean: of each channel.
        deviation: of each channel, > 0.
        side: of an image; 224 where none is stated.
    """

    mean: np.ndarray
    deviation: np.ndarray
    side: int


def pixels_of(folder: Path, channels: int) -> Pixels:
    """What preprocessor_config.json states, or processor_config.json, as newer folders have it."""
    newer = folder / "processor_config.json"
    file = (
        newer
        if newer.is_file() and not (folder / "preprocessor_config.json").is_file()
        else folder / "preprocessor_config.json"
    )
    stated = json_of(file)
    stated = stated.get("image_processor", stated)
    if not isinstance(stated, dict):
        raise ValueError(
            f"{file}: expected image_processor to be an object, found {type(stated).__name__}"
        )
    # 1 / 255 of a byte nearly everywhere.
    scale = 255 * (
        number_of(file, {"rescale_factor": 1 / 255} | stated, "rescale_factor")
        if stated.get("do_rescale", True)
        else 1
    )
    normalised = stated.get("do_normalize", True)
    mean, deviation = (
        _of_channels(file, stated, name, channels) if normalised else np.full(channels, none)
        for name, none in _SCALES
    )
    if not (deviation > 0).all():
        raise ValueError(f"{file}: expected an image_std above 0, found {deviation.tolist()}")
    return Pixels(mean / scale, deviation / scale, _side(file, stated))


_SCALES = (("image_mean", 0.0), ("image_std", 1.0))


def _of_channels(file: Path, stated: Mapping[str, Any], name: str, channels: int) -> np.ndarray:
    given = stated.get(name)
    if not isinstance(given, list) or len(given) != channels or not all(map(_is_finite, given)):
        raise ValueError(
            f"{file}: expected {name} to be {channels} finite numbers, one for each channel, found {given!r}"
        )
    return np.asarray(given, float)


def _is_finite(number: Any) -> bool:
    return (
        isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    )


def _side(file: Path, stated: Mapping[str, Any]) -> int:
    for size in (stated.get("crop_size"), stated.get("size")):
        sides = [*size.values()] if isinstance(size, dict) else [size]
        if sides and isinstance(sides[0], int):
            if sides[0] < 1:
                raise ValueError(f"{file}: expected a size of at least 1, found {size!r}")
            return sides[0]
    return 224


def classes_of(folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes, in the order of the logits; two unnamed ones where the config says nothing, as `transformers` has it."""
    count, names = config.get("num_labels", 2), config.get("id2label")
    if names is None and isinstance(count, int) and count >= 0:
        return tuple(f"LABEL_{k}" for k in range(count))
    if not isinstance(names, dict) or set(names) != {str(k) for k in range(len(names))}:
        stated = {name: config[name] for name in ("id2label", "num_labels") if name in config}
        raise ValueError(
            f"{folder / 'config.json'}: expected id2label to name '0', '1', ..., or num_labels, found {short(stated)}"
        )
    return tuple(str(names[str(k)]) for k in range(len(names)))


def on_pixels(
    apply: Callable[[Any, Images], Array],
    params: Any,
    pixels: Pixels,
    shape: tuple[int | None, ...],
    dtype: Any,
) -> Program:
    """The program of images in 0 .. 1 that runs a network of pixels on the network's own scale and in its dtype.

    Args:
        apply: `apply(params, pixels)`.
        params: of the network.
        pixels: what it is shown.
        shape: (height, width, channels) of an image, None for a side that may have any length.
        dtype: of its params.
    """

    def of_images(params: dict[str, Any], images: Images) -> Array:
        _check(images, shape)
        mean, deviation = params["pixels"]
        return apply(params["network"], (jnp.asarray(images, mean.dtype) - mean) / deviation)

    return program(
        of_images,
        {
            "network": params,
            "pixels": tuple(jnp.asarray(array.astype(dtype)) for array in pixels[:2]),
        },
    )


def _check(images: Any, shape: tuple[int | None, ...]) -> None:
    _validation.floating("images", images)
    sides = tuple(images.shape)[1:]
    if (
        len(sides) != len(shape)
        or 0 in sides
        or any(want not in (None, side) for want, side in zip(shape, sides, strict=True))
    ):
        expected = ", ".join("any" if side is None else str(side) for side in shape)
        raise ValueError(
            f"images must have shape (batch, {expected}) for this network, got {list(images.shape)}; resize them first"
        )
    _validation.batch(images=images)
    _validation.finite("images", images)
