"""A folder of pictures, one folder for each class, as two arrays."""

import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffprog import _validation

_SUFFIXES = (".png", ".jpg", ".jpeg")


class Images(NamedTuple):
    """Pictures and their classes.

    Attributes:
        x: pictures, float32 in [0, 1], (batch, height, width, channels), channels 1 (grey) or 3 (colour).
        y: the class of each, int32, (batch,).
        names: the classes' names; `names[y[i]]` is what picture i shows.
    """

    x: Float[Array, "batch height width channels"]
    y: Int[Array, "batch"]
    names: tuple[str, ...]


def image_folder(folder: str | os.PathLike[str], size: tuple[int, int] | None = None) -> Images:
    """Pictures from folder/<class name>/*.png, .jpg or .jpeg; classes and files in the order of their names.

    Grey pictures have one channel and colour pictures three; transparency is dropped (grey with transparency is read as colour). Hidden
    files and folders and files of other kinds are passed over.

    Args:
        folder: holds one folder for each class.
        size: (height, width) to which pictures are resized, linearly and with antialiasing. Without it all must have one size.

    Raises:
        FileNotFoundError: no such folder.
        TypeError: size is no pair of integers.
        ValueError: size below 1, no classes, a class without pictures, a file that cannot be read as a picture, pictures of different
            sizes (without `size`) or numbers of channels; the message names the folder or the file.

    >>> image_folder("no/such/folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: folder must be an existing folder, got no/such/folder
    """
    place, shape = Path(folder), _checked_size(size)
    if not place.is_dir():
        raise FileNotFoundError(f"folder must be an existing folder, got {place}")
    names = sorted(
        entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not names:
        raise ValueError(f"{place}: expected one folder for each class, found none")
    files = [_pictures(place / name) for name in names]
    x = _stacked([file for of_class in files for file in of_class], shape)
    y = np.repeat(np.arange(len(names), dtype=np.int32), [len(of_class) for of_class in files])
    return Images(jnp.asarray(x), jnp.asarray(y), tuple(names))


def _checked_size(size: tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise TypeError(f"size must be a pair (height, width), got {size!r}")
    return _validation.integer("size[0]", size[0], low=1), _validation.integer(
        "size[1]", size[1], low=1
    )


def _pictures(folder: Path) -> list[Path]:
    files = sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise ValueError(
            f"{folder}: expected at least one file *{', *'.join(_SUFFIXES)}, found none"
        )
    return files


def _stacked(files: list[Path], size: tuple[int, int] | None) -> np.ndarray:
    pictures: list[np.ndarray] = []
    for file in files:
        picture = _read(file) if size is None else _resized(_read(file), size)
        if pictures and picture.shape[2] != pictures[0].shape[2]:
            raise ValueError(
                f"{file}: expected {pictures[0].shape[2]} channels as in {files[0]}, found {picture.shape[2]}"
            )
        if pictures and picture.shape != pictures[0].shape:
            raise ValueError(
                f"{file}: expected the size {pictures[0].shape[:2]} of {files[0]}, found {picture.shape[:2]}; size=(height, width) resizes"
            )
        pictures.append(picture)
    return np.stack(pictures)


def _read(file: Path) -> np.ndarray:
    from matplotlib.image import (
        imread,  # here, so that importing diffprog does not import matplotlib
    )

    try:
        picture = imread(file)
    except Exception as error:  # decoders raise whatever the damage leads them to
        raise ValueError(
            f"{file}: expected a picture, found a file that cannot be read as one: {error}"
        ) from error
    floats = picture.astype(np.float32) / (255 if picture.dtype == np.uint8 else 1)
    return floats[..., None] if floats.ndim == 2 else floats[..., :3]


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if picture.shape[:2] == size:
        return picture
    return np.clip(
        jax.image.resize(picture, (*size, picture.shape[2]), "linear", antialias=True), 0, 1
    )
