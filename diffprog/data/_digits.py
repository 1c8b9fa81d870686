"""Handwritten digits of scikit-learn: 1797 scans of 8 x 8 pixels in ten classes."""

import jax
import jax.numpy as jnp
import numpy as np

from diffprog import _validation
from diffprog.data._dataset import Dataset


def digits(size: int = 8, flatten: bool = False) -> Dataset:
    """Load handwritten digits as a `Dataset` of 1437 training and 360 test images.

    The split is stratified by class and always the same.

    Args:
        size: side of an image: 8 for the original scans, or 16 for their cubic interpolation,
            clipped to [0, 1] (256 pixels, as in lecture 001).
        flatten: if True, images have shape (size²,) instead of (size, size, 1).

    Raises:
        TypeError: size is not an integer.
        ValueError: size is neither 8 nor 16.
        ImportError: scikit-learn is not installed.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998 (its
    test set); lecture 001 for 16 x 16.

    >>> digits().x_train.shape, digits(size=16, flatten=True).x_test.shape
    ((1437, 8, 8, 1), (360, 256))
    """
    _validation.choice("size", _validation.integer("size", size, low=1), (8, 16))
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "digits needs scikit-learn: pip install 'diffprog[experiments]'"
        ) from error
    scans = load_digits()
    x = scans.images.astype(np.float32)[..., None] / 16
    if size != 8:
        # Cubic interpolation overshoots at edges.
        x = np.clip(jax.image.resize(x, (len(x), size, size, 1), "cubic"), 0, 1)
    x_train, x_test, y_train, y_test = train_test_split(
        x.reshape(len(x), -1) if flatten else x,
        scans.target,
        test_size=0.2,
        stratify=scans.target,
        random_state=0,
    )
    y_train, y_test = y_train.astype(np.int32), y_test.astype(np.int32)
    return Dataset(*map(jnp.asarray, (x_train, y_train, x_test, y_test)))
