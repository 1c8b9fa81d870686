"""Attribution: how much each input value contributes to an output."""

from diffprog.visualization.attribution._gradients import (
    Integrated,
    grad_cam,
    guided_backprop,
    input_x_gradient,
    integrated_gradients,
    occlusion,
    saliency,
    smooth_grad,
)
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

__all__ = [
    "Curve",
    "Integrated",
    "Randomisation",
    "deconvolution",
    "deletion",
    "grad_cam",
    "guided",
    "guided_backprop",
    "input_x_gradient",
    "insertion",
    "integrated_gradients",
    "occlusion",
    "randomise_parameters",
    "saliency",
    "smooth_grad",
    "straight_through",
    "with_rectifier",
]
