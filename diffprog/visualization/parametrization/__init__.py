"""Image parametrizations: optimize Fourier coefficients or other variables instead of pixels."""

from diffprog.visualization.parametrization._decorrelation import Colors, decorrelated
from diffprog.visualization.parametrization._fourier import fourier, phase_only, spectrum
from diffprog.visualization.parametrization._image import Image, covariance, pixels

__all__ = [
    "Colors",
    "Image",
    "covariance",
    "decorrelated",
    "fourier",
    "phase_only",
    "pixels",
    "spectrum",
]
