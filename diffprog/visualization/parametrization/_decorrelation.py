"""Colour decorrelation: optimize uncorrelated channels, and map them linearly to image colours.

    image pixel = uncorrelated pixel · M,      M = Σ^{1/2} / sqrt(trace Σ / channels)

Σ is the covariance of the channels over all pixels of given images. Applied to independent channels
of variance 1, M gives them the correlations of these images and a mean variance of 1. Of all M with
Mᵀ M ∝ Σ, the symmetric square root changes a pixel least, so each channel keeps its hue.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffprog.visualization.parametrization._image import require_data

_MIN_RELATIVE_VARIANCE = 1e-4
_BLOCK_SIZE = 32


class Colors(NamedTuple):
    """Linear map from uncorrelated to colour channels, and its inverse, made by `decorrelated`.

    Attributes:
        mix: matrix that maps uncorrelated channels to image channels, pixel · mix.
        unmix: inverse of `mix`.
    """

    mix: Float[Array, "channels channels"]
    unmix: Float[Array, "channels channels"]


def decorrelated(data: Float[Array, "n height width channels"]) -> Colors:
    """Compute the map that decorrelates the colour channels of images.

    Pass it to `fourier`, `spectrum` or `phase_only`, to optimize uncorrelated channels.

    Args:
        data: images of any size, range and number of channels, not all of one colour. Each of
            their n · height · width pixels is a sample. Principal variances of the colours below
            1e-4 of the largest (0 if channels are equal) are raised to that value.

    Returns:
        `Colors`, the matrix from uncorrelated to image channels and its inverse.

    Raises:
        TypeError, ValueError: the data are not finite float images, or do not vary.

    Source: Olah et al., "Feature Visualization", 2017, with constants from ImageNet.

    >>> grey = jnp.linspace(0, 1, 16).reshape(1, 4, 4, 1) * jnp.ones(3)
    >>> print(jnp.array([1.0, 0.0, 0.0]) @ decorrelated(grey).mix)
    [0.58... 0.57... 0.57...]
    """
    images = require_data(data, -np.inf, np.inf)
    pixels = images.reshape(-1, images.shape[-1])
    centred = pixels - pixels.mean(0)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(pixels))
    if not variances[-1] > 0:
        raise ValueError(f"data must vary, got {len(pixels)} pixels of one colour")
    deviations = np.sqrt(np.maximum(variances, _MIN_RELATIVE_VARIANCE * variances[-1]))
    deviations /= np.sqrt((deviations**2).mean())
    mix = jnp.asarray((axes * deviations) @ axes.T, jnp.float32)
    unmix = jnp.asarray((axes / deviations) @ axes.T, jnp.float32)
    return Colors(mix, unmix)


def multiply_pixels(
    matrix: Float[Array, "channels channels"], count: int
) -> Callable[[Array], Array]:
    """Return a function that multiplies each pixel of an image by a matrix, pixel · matrix.

    `count` is the number of pixels of the image.
    """
    # A product with 3 x 3 is too small for XLA:CPU's fast matrix product: a block-diagonal matrix
    # for eight pixels at a time takes a tenth of the time.
    largest = max(1, _BLOCK_SIZE // len(matrix))
    repeats = max(k for k in range(1, largest + 1) if count % k == 0)
    blocks = jnp.kron(jnp.eye(repeats, dtype=matrix.dtype), matrix)
    return lambda image: (image.reshape(-1, len(blocks)) @ blocks).reshape(image.shape)


def require_colors(colors: Any, shape: tuple[int, ...]) -> None:
    """Raise an error unless `colors` is None or a `Colors` for images of this shape."""
    if colors is None:
        return
    if not isinstance(colors, Colors):
        raise TypeError(f"colors must be made by decorrelated(data), got {type(colors).__name__}")
    if colors.mix.shape != (shape[-1], shape[-1]):
        raise ValueError(
            f"colors must have {shape[-1]} channels for shape {list(shape)}, got {len(colors.mix)}"
        )
