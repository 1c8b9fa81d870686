"""IDX, the file format of MNIST and its kin.

A file is a header and its bytes: two zero bytes, the type (8: unsigned byte), the number of axes, each axis's length as a big-endian
32-bit integer, then the values, the last axis fastest. Images have three axes (magic number 0x00000803), labels one (0x00000801).
"""

import gzip
import math
import os
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from diffprog.data._dataset import Dataset


def idx_images(folder: str | os.PathLike[str]) -> Dataset:
    """Images and labels from a local folder in MNIST's format.

    The folder holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each as it is
    or with .gz, the last hyphen but one also as a dot (train-images.idx3-ubyte). Pixels 0 .. 255 become floats in [0, 1], one channel.

    Args:
        folder: where the four files are.

    Raises:
        FileNotFoundError: no such folder, or one of the files is in none of its spellings there.
        ValueError: a file that is corrupt, truncated, too long or of another kind, images and labels that differ in number, training
            and test images that differ in size; the message names the file, what was expected, and what was found.

    Source: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits", 1998.

    >>> idx_images("no/such/folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: folder must be an existing folder, got no/such/folder
    """
    place = Path(folder)
    if not place.is_dir():
        raise FileNotFoundError(f"folder must be an existing folder, got {place}")
    x_train, y_train = _part(place, "train")
    x_test, y_test = _part(place, "t10k")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"{place}: images must have one size, got {x_train.shape[1:3]} to train and {x_test.shape[1:3]} to test"
        )
    return Dataset(
        jnp.asarray(x_train), jnp.asarray(y_train), jnp.asarray(x_test), jnp.asarray(y_test)
    )


def _part(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    images_file, labels_file = (
        _found(folder, f"{part}-images", "idx3-ubyte"),
        _found(folder, f"{part}-labels", "idx1-ubyte"),
    )
    images, labels = _read(images_file, axes=3), _read(labels_file, axes=1)
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_file}: expected {len(images)} labels, one for each image of {images_file.name}, found {len(labels)}"
        )
    return images[..., None].astype(np.float32) / 255, labels.astype(np.int32)


def _found(folder: Path, stem: str, kind: str) -> Path:
    spellings = [
        folder / f"{stem}{joint}{kind}{packed}" for packed in ("", ".gz") for joint in "-."
    ]
    for file in spellings:
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"{folder}: expected one of {', '.join(file.name for file in spellings)}, found none"
    )


def _read(file: Path, axes: int) -> np.ndarray:
    content = _unpacked(file)
    magic, header = bytes([0, 0, 8, axes]), 4 + 4 * axes
    if content[:4] != magic:
        raise ValueError(
            f"{file}: expected the magic number 0x{magic.hex()} (unsigned bytes, {axes} axes), found 0x{content[:4].hex()}"
        )
    if len(content) < header:
        raise ValueError(
            f"{file}: expected a header of {header} bytes, found a file of {len(content)}: it is truncated"
        )
    shape = tuple(int(length) for length in np.frombuffer(content, ">u4", axes, offset=4))
    expected, found = math.prod(shape), len(content) - header
    if found != expected:
        fault = "is truncated" if found < expected else "has trailing bytes"
        raise ValueError(
            f"{file}: expected {expected} bytes for shape {shape}, found {found}: it {fault}"
        )
    if expected == 0:
        raise ValueError(f"{file}: expected at least one value, found shape {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _unpacked(file: Path) -> bytes:
    if file.suffix != ".gz":
        return file.read_bytes()
    try:
        with gzip.open(file) as packed:
            return packed.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{file}: expected a complete gzip file, found a corrupt one: {error}"
        ) from error
