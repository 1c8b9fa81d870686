"""Occlusion: how much the score drops when a window of the image is covered."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.program import Program
from diffprog.visualization.attribution._target import Target, score_program


def occlusion(
    f: Callable[..., Any],
    x: Float[Array, "batch height width channels"],
    target: Target,
    *,
    window: int | tuple[int, int] = 3,
    stride: int = 1,
    fill: float = 0.0,
) -> Float[Array, "batch height width"]:
    """Occlusion: drop of the score when windows are covered (Zeiler and Fergus, 2014).

    The attribution of a pixel is s(x) - s(x with a window covered), averaged over the windows that
    contain the pixel; s is the score.

    Args:
        f, target: model and score s, as for `saliency`.
        x: images, finite floats.
        window: height and width of the window, or one number for both; at most those of the image.
        stride: distance from one window to the next, at least 1.
        fill: value of covered pixels, finite.

    Returns:
        (batch, height, width); 0 where no window covers a pixel.

    Raises:
        TypeError, ValueError: as for `saliency`; a window that does not fit into the image.

    >>> image = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> print(occlusion(lambda x: x.sum((1, 2)), image, 0, window=1)[0])
    [[0. 1.]
     [2. 3.]]
    """
    _validation.floating("x", x, rank=4)
    score, x = score_program(f, x, target)
    height, width = x.shape[1:3]
    sides = (window, window) if isinstance(window, int | np.integer) else window
    rows, columns = _validation.integers("window", sides, least=2, most=2)
    stride, fill = _validation.integer("stride", stride, low=1), _validation.number("fill", fill)
    if rows > height or columns > width:
        raise ValueError(
            f"window must fit into the image, {[height, width]}, got {[rows, columns]}"
        )
    windows = []
    for top in range(0, height - rows + 1, stride):
        for left in range(0, width - columns + 1, stride):
            covered = np.zeros((height, width), bool)
            covered[top : top + rows, left : left + columns] = True
            windows.append(covered)
    return _mean_effect(score, x, jnp.asarray(np.stack(windows)), jnp.asarray(fill, x.dtype))


@jax.jit
def _mean_effect(score: Program, x: Array, windows: Array, fill: Array) -> Array:
    effect = lambda covered: score(x) - score(jnp.where(covered[..., None], fill, x))
    effects = jax.lax.map(effect, windows)
    counts = jnp.maximum(windows.sum(0), 1)
    return jnp.einsum("wb,whv->bhv", effects, windows.astype(x.dtype)) / counts
