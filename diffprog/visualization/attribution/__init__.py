"""Attribution: how much each input value contributes to an output.

A method of your own is a function of a model, its input and a target. It returns an array of the
input's shape, or of that shape without the last axis (channels). The sanity checks `deletion`,
`insertion` and `randomise_parameters`, and `plotting.draw_attributions`, then work with it too:

>>> import jax, jax.numpy as jnp
>>> import diffprog as dp
>>> from diffprog import plotting
>>> def gradient_norm(f, x, target):
...     gradient = jax.grad(lambda x: f(x)[:, target].sum())(x)
...     return jnp.linalg.norm(gradient, axis=-1)
>>> apply = lambda params, x: x.reshape(len(x), -1) @ params["logits"]
>>> params = {"logits": jax.random.normal(jax.random.key(0), (16, 3))}
>>> x = jax.random.uniform(jax.random.key(1), (2, 4, 4, 1))
>>> attribution = gradient_norm(dp.program(apply, params), x, target=2)
>>> dp.visualization.deletion(dp.program(apply, params), x, attribution, 2).area.shape
(2,)
>>> dp.visualization.insertion(dp.program(apply, params), x, attribution, 2).area.shape
(2,)
>>> dp.visualization.randomise_parameters(
...     lambda params: gradient_norm(dp.program(apply, params), x, 2),
...     params,
...     key=jax.random.key(2),
...     layers=["logits"],
... ).similarity.shape
(1, 2)
>>> plotting.draw_attributions(x, {"gradient norm": attribution})
<Figure size ... with ... Axes>

To add a method to diffprog, write a file here, built on `_target.score_program`, export the method
and add a row to the table ATTRIBUTIONS in the tests.
"""

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
