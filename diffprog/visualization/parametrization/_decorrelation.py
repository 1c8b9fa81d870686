"""Colours that vary together: a linear map of a pixel's channels, learnt from images.

    mixed pixel = pixel · M,      M = Σ^{1/2} / sqrt(trace Σ / channels)

with Σ the covariance of the channels of all pixels of the data. Channels that are independent with variance 1 before come out with the
data's correlations, and with the same variance on the mean. Of all M with M^T M ~ Σ the symmetric root changes a pixel least, so a channel
before is still that hue after.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffprog.visualization.parametrization._image import require_data

_LEAST_VARIANCE = 1e-4
_BLOCK = 32


class Colors(NamedTuple):
    """A map of the channels and its inverse, each (channels, channels); made by `decorrelated`.

    Attributes:
        mix: from independent channels to those of an image.
        unmix: back.
    """

    mix: Float[Array, "channels channels"]
    unmix: Float[Array, "channels channels"]


def decorrelated(data: Float[Array, "n height width channels"]) -> Colors:
    """The colours of one's own images, as an argument of `fourier`, `spectrum` or `phase_only`: descend on uncorrelated channels.

    Args:
        data: images of any size, range and number of channels; not all of one colour. Their n · height · width pixels are the sample.
            Variances below 1e-4 of the largest (channels that repeat one another) count as that.

    Raises:
        TypeError, ValueError: data that is not finite float images, or does not vary.

    Source: Olah et al., "Feature Visualization", 2017, there with constants of ImageNet.

    >>> grey = jnp.linspace(0, 1, 16).reshape(1, 4, 4, 1) * jnp.ones(3)
    >>> print(jnp.array([1.0, 0.0, 0.0]) @ decorrelated(grey).mix)
    [0.58... 0.57... 0.57...]
    """
    known = require_data(data, -np.inf, np.inf, least=1)
    pixels = known.reshape(-1, known.shape[-1])
    centred = pixels - pixels.mean(0)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(pixels))
    if not variances[-1] > 0:
        raise ValueError(f"data must vary, got {len(pixels)} pixels of one colour")
    deviations = np.sqrt(np.maximum(variances, _LEAST_VARIANCE * variances[-1]))
    deviations /= np.sqrt((deviations**2).mean())
    mix, unmix = (
        jnp.asarray((axes * scale) @ axes.T, jnp.float32) for scale in (deviations, 1 / deviations)
    )
    return Colors(mix, unmix)


def blocks(matrix: Float[Array, "channels channels"], pixels: int) -> Float[Array, "side side"]:
    """The matrix for several pixels at once, block by block; their number divides `pixels`.

    A product with 3 x 3 is too small for XLA:CPU's fast matrix product: eight pixels at a time take a tenth of the time.
    """
    together = max(k for k in range(1, max(1, _BLOCK // len(matrix)) + 1) if pixels % k == 0)
    return jnp.kron(jnp.eye(together, dtype=matrix.dtype), matrix)


def mixed(
    image: Float[Array, "height width channels"], blocks: Float[Array, "side side"]
) -> Float[Array, "height width channels"]:
    """Every pixel times the matrix that `blocks` repeats."""
    return (image.reshape(-1, len(blocks)) @ blocks).reshape(image.shape)


def require_colors(colors: Any, shape: tuple[int, ...]) -> None:
    """None, or `Colors` of as many channels as the shape has."""
    if colors is None:
        return
    if not isinstance(colors, Colors):
        raise TypeError(f"colors must be made by decorrelated(data), got {type(colors).__name__}")
    if colors.mix.shape != (shape[-1], shape[-1]):
        raise ValueError(
            f"colors must have the {shape[-1]} channels of the shape {list(shape)}, got {len(colors.mix)}"
        )
