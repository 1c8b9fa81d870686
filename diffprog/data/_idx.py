"""Load images and labels from files in IDX, the file format of MNIST.

A file is a header and the values. Header: two zero bytes, the type (8: unsigned byte), the number
of axes, and the length of each axis as a big-endian 32-bit integer. The last axis varies fastest.
Images have three axes (magic number 0x00000803), labels one (0x00000801).
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
    """Load images and labels from a local folder in MNIST's format.

    The folder holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
    t10k-labels-idx1-ubyte, each plain or gzipped (.gz). The hyphen before "idx" may be a dot
    (train-images.idx3-ubyte). Pixels 0 .. 255 become floats in [0, 1] with one channel.

    Args:
        folder: path of the folder with the four files.

    Returns:
        A `Dataset`; the t10k files are its test examples.

    Raises:
        FileNotFoundError: the folder or one of the files does not exist.
        ValueError: a file is corrupt, truncated, too long or not an IDX file; the numbers of images
            and labels differ; or the sizes of training and test images differ. The message names
            the file, what was expected, and what was found.

    Source: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits", 1998.

    >>> idx_images("no/such/folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: folder must be an existing folder, got no/such/folder
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder must be an existing folder, got {folder}")
    x_train, y_train = _read_split(folder, "train")
    x_test, y_test = _read_split(folder, "t10k")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"{folder}: training and test images must have the same size, "
            f"got {x_train.shape[1:3]} and {x_test.shape[1:3]}"
        )
    return Dataset(*map(jnp.asarray, (x_train, y_train, x_test, y_test)))


def _read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    images_file = _find_file(folder, f"{split}-images", "idx3-ubyte")
    labels_file = _find_file(folder, f"{split}-labels", "idx1-ubyte")
    images, labels = _read(images_file, axes=3), _read(labels_file, axes=1)
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_file}: expected {len(images)} labels, one for each image of "
            f"{images_file.name}, found {len(labels)}"
        )
    return images[..., None].astype(np.float32) / 255, labels.astype(np.int32)


def _find_file(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{joint}{kind}{suffix}" for suffix in ("", ".gz") for joint in "-."]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: expected one of {', '.join(names)}, found none")


def _read(file: Path, axes: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes as a uint8 array with the given number of axes."""
    content = _read_bytes(file)
    magic, header = bytes([0, 0, 8, axes]), 4 + 4 * axes
    if content[:4] != magic:
        raise ValueError(
            f"{file}: expected the magic number 0x{magic.hex()} (unsigned bytes, {axes} axes), "
            f"found 0x{content[:4].hex()}"
        )
    if len(content) < header:
        raise ValueError(
            f"{file}: expected a header of {header} bytes, found a file of {len(content)}: "
            "it is truncated"
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


def _read_bytes(file: Path) -> bytes:
    if file.suffix != ".gz":
        return file.read_bytes()
    try:
        with gzip.open(file) as content:
            return content.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{file}: expected a complete gzip file, found a corrupt one: {error}"
        ) from error
