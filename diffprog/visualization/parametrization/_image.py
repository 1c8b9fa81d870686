"""Images as free variables: what is descended on, and how an image is painted from it.

    x = paint(z),      dJ/dz = (dx/dz)^T dJ/dx

The pixels themselves are a poor free variable: what excites a unit most is then mostly noise. Another variable of the same image is another
metric for the descent, in which smooth or likely images are near:

    pixels        x = z                              z in the box of the range, or wherever `project` says
    fourier       x = σ(F⁻¹ (z / frequency))         coarse structure moves before fine
    spectrum      x = σ(F⁻¹ (z · amplitude))         each frequency as it is in one's own images
    phase_only    x = σ(F⁻¹ (amplitude · e^{iz}))    only where things are, not how strong
    covariance    x = μ + L z,  L L^T = cov          z of length 1 in any direction: as likely as another in one's own images

An `Image` makes one image; whoever uses it maps it over a batch. What is learnt is learnt from arrays given. This module has the first and
the last of them, `_spectra` those between.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffprog import _validation

_ALL_COMPONENTS, _MOST_COMPONENTS = 2048, 256


class Image(NamedTuple):
    """A parametrization of one image; `jax.vmap` makes it one of a batch.

    Attributes:
        shape: (height, width, channels) of the image.
        range: (low, high) of the pixels it paints.
        init: `init(key)`, a variable to start from, a pytree of float arrays.
        paint: `paint(variable)`, the image (height, width, channels), inside the range.
        project: `project(variable)`, the nearest variable that is allowed; the variable itself where all are.
        invert: `invert(image)`, the variable that paints an image, as nearly as there is one: to start from it.

    >>> image = pixels((1, 2, 1))
    >>> print(image.paint(image.project(jnp.array([[[0.5], [1.5]]]))).ravel())
    [0.5 1. ]
    """

    shape: tuple[int, int, int]
    range: tuple[float, float]
    init: Callable[[jax.Array], Any]
    paint: Callable[[Any], Float[Array, "height width channels"]]
    project: Callable[[Any], Any]
    invert: Callable[[Float[Array, "height width channels"]], Any]


def pixels(
    shape: Sequence[int],
    *,
    range: tuple[float, float] = (0.0, 1.0),
    spread: float = 0.01,
    project: Callable[
        [Float[Array, "height width channels"]], Float[Array, "height width channels"]
    ]
    | None = None,
) -> Image:
    """The image is the variable: x = z.

    It starts from the middle of the range plus noise, N(middle, spread²), and is kept in the range by clipping after each update, so that
    the descent of a linear cost ends in a corner of the box.

    Args:
        shape: (height, width, channels).
        range: (low, high) of the pixels; (-inf, inf) for any, with middle 0.
        spread: standard deviation of the start, at least 0.
        project: `project(image) -> image`, instead of clipping: the nearest image of a ball, of a sphere, ... inside the range.

    Raises:
        TypeError, ValueError: an argument out of these; at `invert`, an image that is not float of that shape.

    >>> box = pixels((8, 8, 1), range=(-1, 1))
    >>> print(box.project(2 * jnp.ones((8, 8, 1))).max())
    1.0
    """
    shape = require_shape(shape)
    low, high = (
        (-math.inf, math.inf)
        if range == (-math.inf, math.inf)
        else _validation.bounds("range", range)
    )
    middle, spread = (
        (low + high) / 2 if math.isfinite(low) else 0.0,
        _validation.number("spread", spread, low=0),
    )
    nearest = _clip(low, high) if project is None else _validation.function("project", project)

    return Image(
        shape,
        (low, high),
        init=lambda key: nearest(middle + spread * jax.random.normal(key, shape)),
        paint=lambda variable: variable,
        project=nearest,
        invert=lambda image: nearest(require_image(image, shape)),
    )


def covariance(
    data: Float[Array, "n height width channels"],
    *,
    range: tuple[float, float] = (0.0, 1.0),
    spread: float = 0.1,
    components: int | None = None,
) -> Image:
    """Coordinates in which one's own images are a standard normal: x = clip(μ + L z), with L L^T their covariance.

    The columns of L are the principal components, each times its standard deviation (a thin singular value decomposition of the data less
    their mean, so the covariance itself is never formed). |z|² is the squared Mahalanobis distance from the mean: penalize it, by
    `of_variable(l2)` with a weight near 0.01, and images stay likely. The clip has its true derivative, 0 for a pixel that is cut. No image
    dies of it: z moves all pixels together, those that are inside bring back those that are not, and so does the penalty.

    Args:
        data: images, at least two and not all the same, in the range. A thousand of 32 x 32 x 3 take a second or two.
        range: (low, high) of the pixels.
        spread: standard deviation of z at the start; 0 is the mean image, 1 draws like the data's.
        components: how many principal components to keep, the largest; by default all, and 256 of images of more than 2048 numbers.

    Raises:
        TypeError, ValueError: an argument out of these, or traced data.

    Source: Cholesky of ImageNet's colours is lucid's (Olah et al., "Feature Visualization", 2017); here of whole images, of any data.

    >>> likely = covariance(jax.random.uniform(jax.random.key(0), (20, 4, 4, 1)))
    >>> likely.init(jax.random.key(1)).shape
    (16,)
    """
    low, high = _validation.bounds("range", range)
    known = require_data(data, low, high)
    shape, spread = known.shape[1:], _validation.number("spread", spread, low=0)
    default = None if math.prod(shape) <= _ALL_COMPONENTS else _MOST_COMPONENTS
    most = default if components is None else _validation.integer("components", components, low=1)
    mean, deviations, axes = _principal(known.reshape(len(known), -1), most)
    clip = _clip(low, high)

    return Image(
        shape,
        (low, high),
        init=lambda key: spread * jax.random.normal(key, deviations.shape),
        paint=lambda variable: clip(mean + (deviations * variable) @ axes).reshape(shape),
        project=lambda variable: variable,
        invert=lambda image: axes @ (require_image(image, shape).ravel() - mean) / deviations,
    )


def _principal(rows: np.ndarray, most: int | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean, standard deviations along the principal axes, largest first, and the axes; those without variance left out."""
    mean = rows.mean(0)
    _, singular, axes = np.linalg.svd(rows - mean, full_matrices=False)
    rank = int((singular > singular[0] * max(rows.shape) * np.finfo(np.float32).eps).sum())
    if rank == 0:
        raise ValueError(f"data must vary, got {len(rows)} times the same image")
    kept = slice(rank if most is None else min(most, rank))
    deviations = singular[kept] / math.sqrt(len(rows) - 1)
    return (
        jnp.asarray(mean, jnp.float32),
        jnp.asarray(deviations, jnp.float32),
        jnp.asarray(axes[kept], jnp.float32),
    )


def _clip(low: float, high: float) -> Callable[[Array], Array]:
    return lambda image: jnp.clip(image, low, high)


def require_shape(shape: Any) -> tuple[int, int, int]:
    """(height, width, channels)."""
    height, width, channels = _validation.integers("shape", shape, least=3, most=3)
    return height, width, channels


def require_image(image: Any, shape: tuple[int, ...]) -> Array:
    """One float image of that shape."""
    _validation.floating("image", image)
    if tuple(image.shape) != shape:
        raise ValueError(f"image must have shape {list(shape)}, got {list(image.shape)}")
    return jnp.asarray(image)


def require_data(data: Any, low: float, high: float, *, least: int = 2) -> np.ndarray:
    """At least so many float images with finite values in low .. high, as float64 on the host, where statistics are taken once."""
    _validation.floating("data", data, rank=4)
    _validation.concrete("data", data, "learn from the data before the transformation")
    if len(data) < least or 0 in data.shape:
        raise ValueError(
            f"data must be at least {least} images (n, height, width, channels), got shape {list(data.shape)}"
        )
    _validation.finite("data", data)
    _validation.within("data", data, low, high)
    return np.asarray(data, np.float64)
