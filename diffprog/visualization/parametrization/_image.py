"""Image parametrizations: optimize a variable z from which the image x = paint(z) is computed.

    x = paint(z),      dJ/dz = (dx/dz)ᵀ dJ/dx

Gradient ascent of an objective J on raw pixels mostly produces high-frequency noise. Ascent on
another variable takes other steps in the space of images, toward smooth or likely images:

    pixels        x = z                              z projected onto the pixel bounds
    fourier       x = σ(F⁻¹ (z / frequency))         low frequencies change faster than high ones
    spectrum      x = σ(F⁻¹ (z · amplitude))         each frequency scaled as in given images
    phase_only    x = σ(F⁻¹ (amplitude · e^{iz}))    magnitudes fixed, only phases optimized (MACO)
    covariance    x = μ + L z,  L Lᵀ = Σ             z is standard normal for given images

F is the Fourier transform, σ a sigmoid onto the pixel range; μ and Σ are the mean and covariance of
given images. An `Image` is the parametrization of one image; use `jax.vmap` on its functions for
a batch. This file has `pixels` and `covariance`; `_fourier` has the other three.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffprog import _validation

Pixels = Float[Array, "height width channels"]

# `covariance` keeps every component of images of up to _FULL_SIZE numbers, _COMPONENTS of larger.
_FULL_SIZE, _COMPONENTS = 2048, 256


class Image(NamedTuple):
    """Parametrization of an image: functions between an optimized variable and the pixels.

    The functions are for one image; use `jax.vmap` for a batch.

    Attributes:
        shape: (height, width, channels) of the image.
        range: (low, high), bounds of the pixels that `paint` returns.
        init: `init(key)` returns a starting variable, a pytree of float arrays.
        paint: `paint(variable)` returns the image (height, width, channels), within the range.
        project: `project(variable)` returns the nearest allowed variable; the identity if all are.
        invert: `invert(image)` returns the variable whose painted image is closest to `image`.

    >>> image = pixels((1, 2, 1))
    >>> print(image.paint(image.project(jnp.array([[[0.5], [1.5]]]))).ravel())
    [0.5 1. ]
    """

    shape: tuple[int, int, int]
    range: tuple[float, float]
    init: Callable[[jax.Array], Any]
    paint: Callable[[Any], Pixels]
    project: Callable[[Any], Any]
    invert: Callable[[Pixels], Any]


def pixels(
    shape: Sequence[int],
    *,
    range: tuple[float, float] = (0.0, 1.0),
    spread: float = 0.01,
    project: Callable[[Pixels], Pixels] | None = None,
) -> Image:
    """Parametrize an image by its pixels: the optimized variable is the image.

    The pixels start as the middle of the range plus noise N(0, spread²) and are clipped to the
    range after each update.

    Args:
        shape: (height, width, channels).
        range: (low, high) of the pixels; (-inf, inf) for no bounds, with middle 0.
        spread: standard deviation of the initial noise, at least 0.
        project: projection `image -> image` used instead of clipping, for example onto a ball or a
            sphere inside the range.

    Returns:
        `Image`: the functions between the variable and the pixels.

    Raises:
        TypeError, ValueError: an argument is invalid. `invert` raises if its image is not a float
            array of this shape.

    >>> box = pixels((8, 8, 1), range=(-1, 1))
    >>> print(box.project(2 * jnp.ones((8, 8, 1))).max())
    1.0
    """
    shape = require_shape(shape)
    if range == (-math.inf, math.inf):
        low, high, middle = -math.inf, math.inf, 0.0
    else:
        low, high = _validation.bounds("range", range)
        middle = (low + high) / 2
    spread = _validation.number("spread", spread, low=0)
    projection = _clip(low, high) if project is None else _validation.function("project", project)

    return Image(
        shape,
        (low, high),
        init=lambda key: projection(middle + spread * jax.random.normal(key, shape)),
        paint=lambda variable: variable,
        project=projection,
        invert=lambda image: projection(require_image(image, shape)),
    )


def covariance(
    data: Float[Array, "n height width channels"],
    *,
    range: tuple[float, float] = (0.0, 1.0),
    spread: float = 0.1,
    components: int | None = None,
) -> Image:
    """Parametrize an image by whitened principal components of given images, x = clip(μ + L z).

    μ is the mean of the data and L Lᵀ their covariance: the columns of L are the principal
    components times their standard deviations, from a thin singular value decomposition of the
    centred data. The variable z has one number per component. |z|² is the squared Mahalanobis
    distance from the mean; penalize it with `of_variable(l2)`, weight about 0.01, to keep images
    likely. A clipped pixel has derivative 0, but can leave the bound again when the other pixels or
    the penalty change z.

    Args:
        data: at least two different images within the range. A thousand images of 32 x 32 x 3 take
            a second or two.
        range: (low, high) of the pixels.
        spread: standard deviation of the initial z; 0 starts from the mean image, 1 from a sample
            of the normal distribution fitted to the data.
        components: number of principal components to keep, the largest ones. Default: all, or 256
            if an image has more than 2048 numbers.

    Returns:
        `Image`: the functions between z and the pixels.

    Raises:
        TypeError, ValueError: an argument is invalid, or the data are traced.

    Source: Olah et al., "Feature Visualization", 2017, decorrelate colours with the covariance of
    ImageNet; this function does so for whole images of any data set.

    >>> likely = covariance(jax.random.uniform(jax.random.key(0), (20, 4, 4, 1)))
    >>> likely.init(jax.random.key(1)).shape
    (16,)
    """
    low, high = _validation.bounds("range", range)
    images = require_data(data, low, high, minimum=2)
    shape, spread = images.shape[1:], _validation.number("spread", spread, low=0)
    if components is not None:
        components = _validation.integer("components", components, low=1)
    elif math.prod(shape) > _FULL_SIZE:
        components = _COMPONENTS
    mean, deviations, axes = _principal_components(images.reshape(len(images), -1), components)
    clip = _clip(low, high)

    return Image(
        shape,
        (low, high),
        init=lambda key: spread * jax.random.normal(key, deviations.shape),
        paint=lambda variable: clip(mean + (deviations * variable) @ axes).reshape(shape),
        project=lambda variable: variable,
        invert=lambda image: axes @ (require_image(image, shape).ravel() - mean) / deviations,
    )


def _principal_components(
    rows: np.ndarray, components: int | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the principal components of the rows of a matrix.

    Returns (mean, standard deviations, axes) of the `components` largest ones, or of all that are
    not 0, in descending order; the axes are unit vectors, one per row.
    """
    mean = rows.mean(0)
    _, singular, axes = np.linalg.svd(rows - mean, full_matrices=False)
    rank = int((singular > singular[0] * max(rows.shape) * np.finfo(np.float32).eps).sum())
    if rank == 0:
        raise ValueError(f"data must vary, got {len(rows)} identical images")
    count = rank if components is None else min(components, rank)
    deviations = singular[:count] / math.sqrt(len(rows) - 1)
    return (
        jnp.asarray(mean, jnp.float32),
        jnp.asarray(deviations, jnp.float32),
        jnp.asarray(axes[:count], jnp.float32),
    )


def _clip(low: float, high: float) -> Callable[[Array], Array]:
    return lambda image: jnp.clip(image, low, high)


def require_shape(shape: Any) -> tuple[int, int, int]:
    """Return `shape` as a tuple (height, width, channels); raise unless all are positive."""
    height, width, channels = _validation.integers("shape", shape, least=3, most=3)
    return height, width, channels


def require_image(image: Any, shape: tuple[int, ...]) -> Array:
    """Return `image` as a JAX array; raise unless it is a float array of this shape."""
    _validation.floating("image", image)
    if tuple(image.shape) != shape:
        raise ValueError(f"image must have shape {list(shape)}, got {list(image.shape)}")
    return jnp.asarray(image)


def require_data(data: Any, low: float, high: float, *, minimum: int = 1) -> np.ndarray:
    """Return a batch of images as NumPy float64, after checking it.

    Raises an error unless there are at least `minimum` images of finite floats in [low, high].
    """
    _validation.floating("data", data, rank=4)
    _validation.concrete("data", data, "compute the parametrization outside the transformation")
    if len(data) < minimum or 0 in data.shape:
        raise ValueError(
            f"data must have shape (n, height, width, channels) with n >= {minimum}, "
            f"got shape {list(data.shape)}"
        )
    _validation.finite("data", data)
    _validation.within("data", data, low, high)
    return np.asarray(data, np.float64)
