"""See what a unit sees: the input of a program is free, and moves to what excites it; and what an output owes to its input."""

from diffprog.visualization._alpha import alpha_map
from diffprog.visualization._attribution import (
    Integrated,
    grad_cam,
    guided_backprop,
    input_x_gradient,
    integrated_gradients,
    occlusion,
    saliency,
    smooth_grad,
)
from diffprog.visualization._colors import Colors, decorrelated
from diffprog.visualization._dream import Dream, dream
from diffprog.visualization._images import Image, covariance, pixels
from diffprog.visualization._objectives import (
    Objective,
    alignment,
    caricature,
    channel,
    custom,
    deep_dream,
    direction,
    diversity,
    interpolate,
    inversion,
    logit,
    unit,
)
from diffprog.visualization._penalties import blur, l1, l2, of_variable, to_reference, total_variation
from diffprog.visualization._rectifiers import deconvolution, guided, straight_through, with_rectifier
from diffprog.visualization._sanity import Curve, Randomisation, deletion, insertion, randomise_parameters
from diffprog.visualization._scores import scores
from diffprog.visualization._slicing import Request, read_units
from diffprog.visualization._spectra import fourier, phase_only, spectrum
from diffprog.visualization._transforms import compose, crop, default_transforms, flip, jitter, noise, pad, rotate, scale
from diffprog.visualization._visualize import Visualization, visualize

__all__ = [
    "Colors",
    "Curve",
    "Dream",
    "Image",
    "Integrated",
    "Objective",
    "Randomisation",
    "Request",
    "Visualization",
    "alignment",
    "alpha_map",
    "blur",
    "caricature",
    "channel",
    "compose",
    "covariance",
    "crop",
    "custom",
    "deconvolution",
    "decorrelated",
    "deep_dream",
    "default_transforms",
    "deletion",
    "direction",
    "diversity",
    "dream",
    "flip",
    "fourier",
    "grad_cam",
    "guided",
    "guided_backprop",
    "input_x_gradient",
    "insertion",
    "integrated_gradients",
    "interpolate",
    "inversion",
    "jitter",
    "l1",
    "l2",
    "logit",
    "noise",
    "occlusion",
    "of_variable",
    "pad",
    "phase_only",
    "pixels",
    "randomise_parameters",
    "read_units",
    "rotate",
    "saliency",
    "scale",
    "scores",
    "smooth_grad",
    "spectrum",
    "straight_through",
    "to_reference",
    "total_variation",
    "unit",
    "visualize",
    "with_rectifier",
]
