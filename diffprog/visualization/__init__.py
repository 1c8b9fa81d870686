"""Images that maximize units of a model, and attribution of its outputs to its inputs."""

from diffprog.visualization._alpha_map import alpha_map
from diffprog.visualization._deep_dream import Dream, dream
from diffprog.visualization._evaluate_objective import scores
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
from diffprog.visualization._penalties import (
    blur,
    l1,
    l2,
    of_variable,
    to_reference,
    total_variation,
)
from diffprog.visualization._read_units import Request, read_units
from diffprog.visualization._transforms import (
    compose,
    crop,
    default_transforms,
    flip,
    jitter,
    noise,
    pad,
    rotate,
    scale,
)
from diffprog.visualization._visualize import Visualization, visualize
from diffprog.visualization.attribution._gradients import (
    Integrated,
    grad_cam,
    guided_backprop,
    input_x_gradient,
    integrated_gradients,
    saliency,
    smooth_grad,
)
from diffprog.visualization.attribution._occlusion import occlusion
from diffprog.visualization.attribution._relu_rules import (
    deconvolution,
    guided,
    straight_through,
    with_rectifier,
)
from diffprog.visualization.attribution._sanity_checks import (
    Curve,
    Randomisation,
    deletion,
    insertion,
    randomise_parameters,
)
from diffprog.visualization.parametrization._decorrelation import Colors, decorrelated
from diffprog.visualization.parametrization._fourier import fourier, phase_only, spectrum
from diffprog.visualization.parametrization._image import Image, covariance, pixels

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
