"""Images as spectra: a variable per frequency, a real Fourier transform, and a sigmoid into the range.

    x = low + (high - low) σ(y · M),      y = F⁻¹ s,      s = z · scale      or      s = amplitude · e^{i z}

F is the orthonormal real transform over height and width, so |y|² is the energy of s, each bin counted as often as it stands for one of the
full spectrum: columns 0 and (of an even width) width / 2 hold both a frequency and its opposite, every other stands for its opposite too.
M are the colours. Because F⁻¹ takes the Hermitian part of those two columns, s keeps its magnitude in all bins only if phases there are
odd: that of a frequency is minus that of its opposite.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.visualization.parametrization._decorrelation import (
    Colors,
    blocks,
    mixed,
    require_colors,
)
from diffprog.visualization.parametrization._image import (
    Image,
    require_data,
    require_image,
    require_shape,
)

# Half a grey level of 8 bits: what `invert` keeps from the ends of the range, where the sigmoid's inverse is infinite.
_MARGIN = 1 / 512
_LEAST_AMPLITUDE = 1e-3

Shape = tuple[int, int, int]
_Spectrum = Float[Array, "parts height half channels"]


def fourier(
    shape: Sequence[int],
    *,
    range: tuple[float, float] = (0.0, 1.0),
    decay: float = 1.0,
    spread: float = 0.01,
    colors: Colors | None = None,
) -> Image:
    """Real and imaginary part of each frequency, divided by the frequency: s = (z₀ + i z₁) / max(f, 1 / max(height, width))^decay.

    The variable has shape (2, height, width // 2 + 1, channels). It starts as the spectrum of white noise.

    Args:
        shape: (height, width, channels), any of at least 1.
        range: (low, high) of the pixels, which a sigmoid keeps; at z = 0 all are in the middle.
        decay: how much slower fine structure moves; 0 for all alike, 1 for the amplitudes of photographs.
        spread: standard deviation of the white noise.
        colors: from `decorrelated`; None leaves the channels as they are.

    Raises:
        TypeError, ValueError: an argument out of these; at `invert`, an image that is not float of that shape.

    Source: Olah et al., "Feature Visualization", 2017.

    >>> image = fourier((5, 7, 3))
    >>> image.init(jax.random.key(0)).shape, image.paint(jnp.zeros((2, 5, 4, 3))).shape
    ((2, 5, 4, 3), (5, 7, 3))
    """
    shape = require_shape(shape)
    scale = jnp.asarray(_falling(shape, _validation.number("decay", decay)), jnp.float32)
    return _scaled(
        shape,
        scale,
        _validation.bounds("range", range),
        _validation.number("spread", spread, low=0),
        colors,
    )


def spectrum(
    data: Float[Array, "n height width channels"],
    *,
    range: tuple[float, float] = (0.0, 1.0),
    spread: float = 0.1,
    colors: Colors | None = None,
) -> Image:
    """Real and imaginary part of each frequency, times its mean amplitude in one's own images: s = (z₀ + i z₁) · mean |F y|.

    y is 4 (x - middle) / (high - low) of the data, the sigmoid's inverse to first order, so that z of size 1 paints contrasts like the
    data's. The variable has shape (2, height, width // 2 + 1, channels).

    Args:
        data: images in the range, at least one. Amplitudes below 1e-3 of the largest count as that, so that every frequency can be painted.
        range: (low, high) of the pixels.
        spread: standard deviation of the white noise whose spectrum z starts as.
        colors: from `decorrelated`; the amplitudes are then those of the uncorrelated channels.

    Raises:
        TypeError, ValueError: an argument out of these, traced data, or data all in the middle of the range.

    >>> spectrum(jax.random.uniform(jax.random.key(0), (9, 8, 8, 1))).shape
    (8, 8, 1)
    """
    bounds = _validation.bounds("range", range)
    known = require_data(data, *bounds, least=1)
    amplitude = np.abs(_spectra(known, bounds, colors)).mean(0)
    if not amplitude.max() > 0:
        raise ValueError(
            f"data must not lie all in the middle of the range {bounds}: it has no spectrum there"
        )
    scale = jnp.asarray(np.maximum(amplitude, _LEAST_AMPLITUDE * amplitude.max()), jnp.float32)
    return _scaled(
        known.shape[1:], scale, bounds, _validation.number("spread", spread, low=0), colors
    )


def phase_only(
    shape: Sequence[int],
    *,
    data: Float[Array, "n height width channels"] | None = None,
    range: tuple[float, float] = (0.0, 1.0),
    decay: float = 1.0,
    colors: Colors | None = None,
) -> Image:
    """A phase for each frequency, at constant magnitude: s = amplitude · e^{i z}, in every bin.

    The variable has shape (height, width // 2 + 1, channels) and starts as the phases of white noise. Phases of opposite frequencies are
    made opposite, so all magnitudes are kept; a frequency that is its own opposite (the mean, the checkerboards) has no phase but a sign,
    which is fixed: that of the data's mean image. A sigmoid then brings the image into the range: the magnitudes are those before it.

    Args:
        shape: (height, width, channels).
        data: images of that shape in the range, whose mean amplitudes are taken (of 4 (x - middle) / (high - low), as in `spectrum`).
            Without: 1 / frequency^decay, mean 0, standard deviation 1 before the sigmoid.
        range: (low, high) of the pixels.
        decay: of the amplitudes; only without data.
        colors: from `decorrelated`; the magnitudes are then those of the uncorrelated channels.

    Raises:
        TypeError, ValueError: an argument out of these, data of another shape, traced data.

    Source: Fel et al., "Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained Optimization", 2023.

    >>> image = phase_only((8, 8, 1))
    >>> image.paint(image.init(jax.random.key(0))).shape
    (8, 8, 1)
    """
    shape, bounds = require_shape(shape), _validation.bounds("range", range)
    exponent = _validation.number("decay", decay)
    signed = (
        _unit_contrast(shape, exponent)
        if data is None
        else _mean_amplitude(data, shape, bounds, colors)
    )
    amplitude = jnp.asarray(signed, jnp.float32)
    into, out_of = _into_range(shape, bounds, colors)

    def paint(
        phases: Float[Array, "height half channels"],
    ) -> Float[Array, "height width channels"]:
        odd = _odd(phases, shape[1])
        return into(
            _inverse(jax.lax.complex(amplitude * jnp.cos(odd), amplitude * jnp.sin(odd)), shape)
        )

    def phases_of(
        image: Float[Array, "height width channels"],
    ) -> Float[Array, "height half channels"]:
        return jnp.angle(_forward(image))

    return Image(
        shape,
        bounds,
        init=lambda key: phases_of(jax.random.normal(key, shape)),
        paint=paint,
        project=lambda variable: variable,
        invert=lambda image: phases_of(out_of(image)),
    )


def _scaled(
    shape: Shape, scale: Array, bounds: tuple[float, float], spread: float, colors: Colors | None
) -> Image:
    """The image whose spectrum is the variable times `scale`."""
    into, out_of = _into_range(shape, bounds, colors)

    def paint(variable: _Spectrum) -> Float[Array, "height width channels"]:
        return into(_inverse(jax.lax.complex(variable[0] * scale, variable[1] * scale), shape))

    return Image(
        shape,
        bounds,
        init=lambda key: _parts(_forward(spread * jax.random.normal(key, shape))),
        paint=paint,
        project=lambda variable: variable,
        invert=lambda image: _parts(_forward(out_of(image)) / scale),
    )


def _into_range(
    shape: Shape, bounds: tuple[float, float], colors: Colors | None
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Colours and sigmoid, and their inverse."""
    require_colors(colors, shape)
    (low, high), pixels = bounds, shape[0] * shape[1]
    mix, unmix = (
        (None, None)
        if colors is None
        else (blocks(colors.mix, pixels), blocks(colors.unmix, pixels))
    )

    def into(linear: Array) -> Array:
        seen = linear if mix is None else mixed(linear, mix)
        return jnp.clip(
            low + (high - low) * jax.nn.sigmoid(seen), low, high
        )  # against the rounding of the sum alone

    def out_of(image: Array) -> Array:
        share = (require_image(image, shape) - low) / (high - low)
        linear = jax.scipy.special.logit(jnp.clip(share, _MARGIN, 1 - _MARGIN))
        return linear if unmix is None else mixed(linear, unmix)

    return into, out_of


def _forward(image: Array) -> Array:
    return jnp.fft.rfft2(image, axes=(0, 1), norm="ortho")


def _inverse(spectrum: Array, shape: Shape) -> Array:
    return jnp.fft.irfft2(spectrum, s=shape[:2], axes=(0, 1), norm="ortho")


def _parts(spectrum: Array) -> _Spectrum:
    return jnp.stack([spectrum.real, spectrum.imag])


def _odd(phases: Array, width: int) -> Array:
    """Phases that are minus those of the opposite frequency, in the columns that hold both."""
    opposite = jnp.roll(phases[::-1], 1, axis=0)
    column = jnp.arange(phases.shape[1])[:, None]
    return jnp.where((column == 0) | (2 * column == width), (phases - opposite) / 2, phases)


def _falling(shape: Shape, decay: float) -> np.ndarray:
    """1 / frequency^decay, the frequency in cycles per pixel and at least one per longer side."""
    height, width, _ = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    return (1 / np.maximum(frequency, 1 / max(height, width)) ** decay)[..., None]


def _unit_contrast(shape: Shape, decay: float) -> np.ndarray:
    """1 / frequency^decay without the mean, such that pixels have mean square 1."""
    amplitude = np.broadcast_to(
        _falling(shape, decay), (shape[0], shape[1] // 2 + 1, shape[2])
    ).copy()
    amplitude[0, 0] = 0
    column = np.arange(amplitude.shape[1])[:, None]
    times = np.where((column == 0) | (2 * column == shape[1]), 1, 2)
    energy = (times * amplitude**2).sum((0, 1)) / (shape[0] * shape[1])
    return amplitude / np.sqrt(np.where(energy > 0, energy, 1))


def _mean_amplitude(
    data: Any, shape: Shape, bounds: tuple[float, float], colors: Colors | None
) -> np.ndarray:
    """Mean amplitudes of the data, with the sign of the mean image where a frequency is its own opposite."""
    known = require_data(data, *bounds, least=1)
    if known.shape[1:] != shape:
        raise ValueError(
            f"data must be images of shape {list(shape)}, got shape {list(known.shape)}"
        )
    spectra = _spectra(known, bounds, colors)
    sign = np.where(spectra.mean(0).real < 0, -1, 1)
    rows, column = (
        -np.arange(shape[0]) % shape[0] == np.arange(shape[0]),
        np.arange(spectra.shape[2]),
    )
    own_opposite = rows[:, None] & ((column == 0) | (2 * column == shape[1]))
    return np.abs(spectra).mean(0) * np.where(own_opposite[..., None], sign, 1)


def _spectra(data: np.ndarray, bounds: tuple[float, float], colors: Colors | None) -> np.ndarray:
    """Spectra of images before the sigmoid, which near the middle of the range is (low + high) / 2 + (high - low) y / 4."""
    require_colors(colors, data.shape[1:])
    low, high = bounds
    linear = 4 * (data - (low + high) / 2) / (high - low)
    return np.fft.rfft2(
        linear if colors is None else linear @ np.asarray(colors.unmix), axes=(1, 2), norm="ortho"
    )
