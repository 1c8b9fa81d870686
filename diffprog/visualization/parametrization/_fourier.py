"""Image parametrizations by Fourier coefficients, with a sigmoid that keeps pixels in a range.

    s = z · scale   or   s = a · e^{i z},      y = F⁻¹ s,      x = low + (high - low) σ(y · M)

The variable z gives the Fourier coefficients s, either scaled for each frequency or as phases with
fixed magnitudes a. F is the orthonormal real FFT over height and width, M a matrix that mixes
decorrelated colour channels, σ the sigmoid, and x the image.

A real FFT stores half of the spectrum: each coefficient stands for a frequency and its opposite.
Only the first column, and the last if the width is even, store both. So |y|² counts those columns
once and the others twice; and in those columns F⁻¹ uses only the Hermitian part of s, which keeps
the magnitudes only if opposite frequencies have opposite phases.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.visualization.parametrization import _decorrelation, _image
from diffprog.visualization.parametrization._decorrelation import Colors
from diffprog.visualization.parametrization._image import Image

# Half a grey level of 8 bits: `invert` clips to it, as the logit is infinite at 0 and 1.
_MARGIN = 1 / 512
_MIN_RELATIVE_AMPLITUDE = 1e-3

Shape = tuple[int, int, int]
Pixels = Float[Array, "height width channels"]
Phases = Float[Array, "height half channels"]


def fourier(
    shape: Sequence[int],
    *,
    range: tuple[float, float] = (0.0, 1.0),
    decay: float = 1.0,
    spread: float = 0.01,
    colors: Colors | None = None,
) -> Image:
    """Parametrize an image by its Fourier coefficients, scaled by 1 / frequency^decay.

        s = (z₀ + i z₁) / max(f, 1 / max(height, width))^decay

    s are the coefficients and f their frequencies, in cycles per pixel. The variable z, real and
    imaginary parts, has shape (2, height, width // 2 + 1, channels) and starts as the spectrum of
    white noise. The image is a sigmoid of the inverse FFT of s.

    Args:
        shape: (height, width, channels), each at least 1.
        range: (low, high) of the pixels, enforced by the sigmoid; z = 0 gives the middle.
        decay: exponent of the frequency; 0 scales all frequencies alike, 1 as in natural images.
        spread: standard deviation of the initial white noise.
        colors: colour map from `decorrelated`; None keeps the channels independent.

    Returns:
        `Image`: the functions between z and the pixels.

    Raises:
        TypeError, ValueError: an argument is invalid. `invert` raises if its image is not a float
            array of this shape.

    Source: Olah et al., "Feature Visualization", 2017.

    >>> image = fourier((5, 7, 3))
    >>> image.init(jax.random.key(0)).shape, image.paint(jnp.zeros((2, 5, 4, 3))).shape
    ((2, 5, 4, 3), (5, 7, 3))
    """
    shape = _image.require_shape(shape)
    scale = _inverse_frequency(shape, _validation.number("decay", decay))
    return _scaled_spectrum(shape, scale, _validation.bounds("range", range), spread, colors)


def spectrum(
    data: Float[Array, "n height width channels"],
    *,
    range: tuple[float, float] = (0.0, 1.0),
    spread: float = 0.1,
    colors: Colors | None = None,
) -> Image:
    """Parametrize an image by its Fourier coefficients, scaled by those of given images.

        s = (z₀ + i z₁) · mean |F y|,      y = 4 (x - middle) / (high - low)

    s are the coefficients of the new image, whose pixels are a sigmoid of the inverse FFT of s. The
    mean is over the images x of the data; F is the FFT, and y the inverse of the sigmoid to first
    order. So a variable z of size 1 gives contrasts like those of the data. z, real and imaginary
    parts, has shape (2, height, width // 2 + 1, channels).

    Args:
        data: at least one image within the range. Amplitudes below 1e-3 of the largest are raised
            to that value, so that the image can have every frequency.
        range: (low, high) of the pixels.
        spread: standard deviation of the white noise whose spectrum is the initial z.
        colors: colour map from `decorrelated`; the amplitudes are then those of the uncorrelated
            channels.

    Returns:
        `Image`: the functions between z and the pixels.

    Raises:
        TypeError, ValueError: an argument is invalid, or the data are traced or constant at the
            middle of the range.

    >>> spectrum(jax.random.uniform(jax.random.key(0), (9, 8, 8, 1))).shape
    (8, 8, 1)
    """
    bounds = _validation.bounds("range", range)
    images = _image.require_data(data, *bounds)
    amplitude = np.abs(_linearized_spectra(images, bounds, colors)).mean(0)
    if not amplitude.max() > 0:
        raise ValueError(
            f"data must not be constant at the middle of the range {bounds}: the spectrum is zero"
        )
    scale = np.maximum(amplitude, _MIN_RELATIVE_AMPLITUDE * amplitude.max())
    return _scaled_spectrum(images.shape[1:], scale, bounds, spread, colors)


def phase_only(
    shape: Sequence[int],
    *,
    data: Float[Array, "n height width channels"] | None = None,
    range: tuple[float, float] = (0.0, 1.0),
    decay: float = 1.0,
    colors: Colors | None = None,
) -> Image:
    """Parametrize an image by its Fourier phases, with fixed magnitudes (MACO).

        s = a · e^{i z}

    The phases z are the variable, of shape (height, width // 2 + 1, channels), and start as those
    of white noise. The image is a sigmoid of the inverse FFT of the coefficients s; the magnitudes
    a are fixed before the sigmoid. Phases of opposite frequencies are made opposite, which keeps
    every magnitude. Frequencies that equal their opposite (the mean and the Nyquist frequencies)
    have a fixed sign instead of a phase: that of the mean image of the data.

    Args:
        shape: (height, width, channels).
        data: images of this shape within the range; a is their mean amplitude, as in `spectrum`.
            Default: a ∝ 1 / frequency^decay, such that the inverse FFT of s has mean 0 and standard
            deviation 1.
        range: (low, high) of the pixels.
        decay: exponent of the frequency; used only without data.
        colors: colour map from `decorrelated`; the magnitudes are then those of the uncorrelated
            channels.

    Returns:
        `Image`: the functions between z and the pixels.

    Raises:
        TypeError, ValueError: an argument is invalid, the data have another shape or are traced.

    Source: Fel et al., "Unlocking Feature Visualization for Deeper Networks with MAgnitude
    Constrained Optimization", 2023.

    >>> image = phase_only((8, 8, 1))
    >>> image.paint(image.init(jax.random.key(0))).shape
    (8, 8, 1)
    """
    shape, bounds = _image.require_shape(shape), _validation.bounds("range", range)
    decay = _validation.number("decay", decay)
    if data is None:
        amplitude = jnp.asarray(_unit_variance_amplitude(shape, decay), jnp.float32)
    else:
        amplitude = jnp.asarray(_mean_amplitude(data, shape, bounds, colors), jnp.float32)
    to_pixels, from_pixels = _pixel_maps(shape, bounds, colors)

    def paint(phases: Phases) -> Pixels:
        odd = _odd_phases(phases, shape[1])
        coefficients = jax.lax.complex(amplitude * jnp.cos(odd), amplitude * jnp.sin(odd))
        return to_pixels(_irfft2(coefficients, shape))

    def phases_of(image: Pixels) -> Phases:
        return jnp.angle(_rfft2(image))

    return Image(
        shape,
        bounds,
        init=lambda key: phases_of(jax.random.normal(key, shape)),
        paint=paint,
        project=lambda variable: variable,
        invert=lambda image: phases_of(from_pixels(image)),
    )


def _scaled_spectrum(
    shape: Shape,
    scale: np.ndarray | Array,
    bounds: tuple[float, float],
    spread: float,
    colors: Colors | None,
) -> Image:
    """Return the parametrization x = sigmoid(inverse FFT(scale · variable)) of an image.

    `bounds` are those of the pixels; `spread` and `colors` are as for `fourier`.
    """
    spread = _validation.number("spread", spread, low=0)
    scale = jnp.asarray(scale, jnp.float32)
    to_pixels, from_pixels = _pixel_maps(shape, bounds, colors)

    def paint(variable: Float[Array, "2 height half channels"]) -> Array:
        coefficients = jax.lax.complex(variable[0] * scale, variable[1] * scale)
        return to_pixels(_irfft2(coefficients, shape))

    def real_and_imaginary(image: Array) -> Float[Array, "2 height half channels"]:
        coefficients = _rfft2(image)
        return jnp.stack([coefficients.real, coefficients.imag])

    return Image(
        shape,
        bounds,
        init=lambda key: real_and_imaginary(spread * jax.random.normal(key, shape)),
        paint=paint,
        project=lambda variable: variable,
        invert=lambda image: real_and_imaginary(from_pixels(image)) / scale,
    )


def _pixel_maps(
    shape: Shape, bounds: tuple[float, float], colors: Colors | None
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Return the map from an unbounded image y to pixels x within the bounds, and its inverse.

    x = low + (high - low) σ(y · M), with the sigmoid σ and the colour matrix M of `colors`.
    """
    _decorrelation.require_colors(colors, shape)
    low, high = bounds
    mix = unmix = lambda image: image
    if colors is not None:
        mix, unmix = (
            _decorrelation.multiply_pixels(matrix, shape[0] * shape[1]) for matrix in colors
        )

    def to_pixels(y: Array) -> Array:
        # The sum can round to just outside the range.
        return jnp.clip(low + (high - low) * jax.nn.sigmoid(mix(y)), low, high)

    def from_pixels(image: Array) -> Array:
        fraction = (_image.require_image(image, shape) - low) / (high - low)
        return unmix(jax.scipy.special.logit(jnp.clip(fraction, _MARGIN, 1 - _MARGIN)))

    return to_pixels, from_pixels


def _rfft2(image: Array) -> Array:
    return jnp.fft.rfft2(image, axes=(0, 1), norm="ortho")


def _irfft2(coefficients: Array, shape: Shape) -> Array:
    return jnp.fft.irfft2(coefficients, s=shape[:2], axes=(0, 1), norm="ortho")


def _holds_opposites(width: int) -> Any:
    """Return a mask of the columns of a real FFT that store both a frequency and its opposite.

    It has shape (width // 2 + 1, 1) for images of this width.
    """
    column = np.arange(width // 2 + 1)[:, None]
    return (column == 0) | (2 * column == width)


def _odd_phases(phases: Array, width: int) -> Array:
    """Make Fourier phases opposite for opposite frequencies, as they are for a real image."""
    opposite = jnp.roll(phases[::-1], 1, axis=0)
    return jnp.where(_holds_opposites(width), (phases - opposite) / 2, phases)


def _inverse_frequency(shape: Shape, decay: float) -> np.ndarray:
    """Compute 1 / f^decay for the frequency f of each real FFT coefficient, (height, half, 1).

    f is in cycles per pixel and clipped to at least 1 / max(height, width), so that the value at
    f = 0 is finite. `shape` is that of the image.
    """
    height, width, _ = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    return (1 / np.maximum(frequency, 1 / max(height, width)) ** decay)[..., None]


def _unit_variance_amplitude(shape: Shape, decay: float) -> np.ndarray:
    """Compute magnitudes ∝ 1 / frequency^decay whose inverse FFT has mean 0 and variance 1."""
    height, width, channels = shape
    amplitude = np.repeat(_inverse_frequency(shape, decay), channels, axis=-1)
    amplitude[0, 0] = 0
    multiplicity = np.where(_holds_opposites(width), 1, 2)
    energy = (multiplicity * amplitude**2).sum((0, 1)) / (height * width)
    return amplitude / np.sqrt(np.where(energy > 0, energy, 1))


def _mean_amplitude(
    data: Any, shape: Shape, bounds: tuple[float, float], colors: Colors | None
) -> np.ndarray:
    """Compute the mean magnitude of each Fourier coefficient over the images of `data`.

    Coefficients of the zero and Nyquist frequencies are real: their magnitude is multiplied by the
    sign of their mean over the images.
    """
    images = _image.require_data(data, *bounds)
    if images.shape[1:] != shape:
        raise ValueError(
            f"data must be images of shape {list(shape)}, got shape {list(images.shape)}"
        )
    spectra = _linearized_spectra(images, bounds, colors)
    sign = np.where(spectra.mean(0).real < 0, -1, 1)
    rows = np.arange(shape[0])
    self_conjugate = (-rows % shape[0] == rows)[:, None, None] & _holds_opposites(shape[1])
    return np.abs(spectra).mean(0) * np.where(self_conjugate, sign, 1)


def _linearized_spectra(
    images: np.ndarray, bounds: tuple[float, float], colors: Colors | None
) -> np.ndarray:
    """Compute the Fourier coefficients of y = 4 (x - middle) / (high - low) for images x.

    y is the inverse of the sigmoid to first order, which is finite at the bounds too. With
    `colors`, the channels of y are decorrelated first.
    """
    _decorrelation.require_colors(colors, images.shape[1:])
    low, high = bounds
    y = 4 * (images - (low + high) / 2) / (high - low)
    y = y if colors is None else y @ np.asarray(colors.unmix)
    return np.fft.rfft2(y, axes=(1, 2), norm="ortho")
