"""Load labelled images from a folder that has one subfolder for each class."""

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
    """Labelled images as arrays, as `image_folder` returns them.

    Attributes:
        x: images, float32 in [0, 1], (batch, height, width, channels), with 1 channel (grey) or 3
            (colour).
        y: class of each image, int32, (batch,).
        names: class names; `names[y[i]]` is the class of image i.
    """

    x: Float[Array, "batch height width channels"]
    y: Int[Array, "batch"]
    names: tuple[str, ...]


def image_folder(folder: str | os.PathLike[str], size: tuple[int, int] | None = None) -> Images:
    """Load labelled images from a folder with one subfolder per class.

    The images are folder/<class name>/*.png, .jpg and .jpeg; classes and files are sorted by name.
    Grey images have one channel and colour images three; transparency is dropped (grey with
    transparency is read as colour). Hidden files and folders, and other files, are ignored.

    Args:
        folder: path of a folder that contains one folder per class.
        size: (height, width) to which images are resized, linearly and with antialiasing. Default:
            all images must have the same size.

    Returns:
        The `Images`, with classes numbered in the order of their names.

    Raises:
        FileNotFoundError: the folder does not exist.
        TypeError: size is not a pair of integers.
        ValueError: size is below 1, there are no classes, a class has no images, a file cannot be
            read, or images differ in size (without `size`) or in the number of channels. The
            message names the folder or the file.

    >>> image_folder("no/such/folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: folder must be an existing folder, got no/such/folder
    """
    if size is not None:
        if not isinstance(size, tuple | list) or len(size) != 2:
            raise TypeError(f"size must be a pair (height, width), got {size!r}")
        height, width = (_validation.integer(f"size[{k}]", size[k], low=1) for k in (0, 1))
        size = height, width
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder must be an existing folder, got {folder}")
    visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    names = sorted(entry.name for entry in visible if entry.is_dir())
    if not names:
        raise ValueError(f"{folder}: expected one folder for each class, found none")
    files_by_class = [_image_files(folder / name) for name in names]
    x = _read_all([file for files in files_by_class for file in files], size)
    y = np.repeat(np.arange(len(names), dtype=np.int32), list(map(len, files_by_class)))
    return Images(jnp.asarray(x), jnp.asarray(y), tuple(names))


def _image_files(folder: Path) -> list[Path]:
    """Return the paths of the image files in a folder, sorted by name; raise if there are none."""
    visible = [file for file in folder.iterdir() if not file.name.startswith(".")]
    files = sorted(file for file in visible if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise ValueError(
            f"{folder}: expected at least one file *{', *'.join(_SUFFIXES)}, found none"
        )
    return files


def _read_all(files: list[Path], size: tuple[int, int] | None) -> np.ndarray:
    """Read image files, resize them if `size` is given, and stack them along a batch axis."""
    images: list[np.ndarray] = []
    for file in files:
        image = _read(file)
        if size is not None and image.shape[:2] != size:
            resized = jax.image.resize(image, (*size, image.shape[2]), "linear", antialias=True)
            image = np.clip(resized, 0, 1)
        if images and image.shape[2] != images[0].shape[2]:
            raise ValueError(
                f"{file}: expected {images[0].shape[2]} channels as in {files[0]}, "
                f"found {image.shape[2]}"
            )
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"{file}: expected the size {images[0].shape[:2]} of {files[0]}, "
                f"found {image.shape[:2]}; size=(height, width) resizes"
            )
        images.append(image)
    return np.stack(images)


def _read(file: Path) -> np.ndarray:
    # Imported here, so that importing diffprog does not import matplotlib.
    from matplotlib.image import imread

    try:
        image = imread(file)
    except Exception as error:  # decoders raise many types on damaged files
        raise ValueError(
            f"{file}: expected an image, found a file that cannot be read as one: {error}"
        ) from error
    image = image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1)
    return image[..., None] if image.ndim == 2 else image[..., :3]
