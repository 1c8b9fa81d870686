"""Alpha maps: opacities that hide the parts of an optimized image that its objective ignores."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.program import Program, program
from diffprog.visualization._evaluate_objective import require_images, require_readable
from diffprog.visualization._objectives import Objective, as_objective
from diffprog.visualization._read_units import read_units
from diffprog.visualization._transforms import Transform, compose


def alpha_map(
    f: Callable[..., Any],
    objective: Objective | Callable[[Array], Array],
    images: Float[Array, "n height width channels"],
    *,
    key: jax.Array,
    transforms: Sequence[Transform] = (),
    draws: int = 16,
) -> Float[Array, "n height width"]:
    """Compute the opacity of each pixel of optimized images, from the gradient of the objective.

        opacity = mean over draws of Σ_channels |ds_i/dx_i|, divided by its maximum over image i

    s_i is the objective of image x_i. Pixels that do not affect the objective kept their random
    initial values in the optimization; their opacity is 0.

    Args:
        f: model of a batch of images.
        objective: objective of n images.
        images: the n images that `visualize` returned for this objective.
        key: PRNG key. Image i uses `fold_in(key, i)` for its transforms.
        transforms: random transforms that were passed to `visualize`; the gradient is averaged over
            draws of them.
        draws: number of draws, at least 1.

    Returns:
        Opacities (n, height, width) in 0 .. 1.

    Raises:
        TypeError, ValueError: the images are not a finite float array of n images, and everything
            that `visualize` raises.

    >>> from diffprog.visualization import logit
    >>> f = lambda x: x.reshape(len(x), -1) @ jnp.array([[4.0], [-2.0], [0.0]])
    >>> print(alpha_map(f, logit(0), jnp.ones((1, 1, 3, 1)), key=jax.random.key(0)))
    [[[1.  0.5 0. ]]]
    """
    f, objective, transform = program(f), as_objective(objective), jax.vmap(compose(transforms))
    _validation.key("key", key)
    require_images("images", images)
    images = jnp.asarray(images)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
    inputs = jax.eval_shape(transform, images, keys)
    require_readable(f, objective, jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype))
    if len(objective) != len(images):
        raise ValueError(
            f"images must be one for each of the objective's {len(objective)}, got {len(images)}"
        )
    read, score, data = read_units(f, objective.requests), objective.score, objective.data

    def total_score(images: Array, keys: jax.Array) -> Array:
        return score(read(transform(images, keys))[1], data).sum()

    draws = _validation.integer("draws", draws, low=1)
    return _opacity(program(total_score), images, keys, jnp.arange(draws))


@jax.jit
def _opacity(total_score: Program, images: Array, keys: jax.Array, draws: Array) -> Array:
    def add_draw(total: Array, draw: Array) -> tuple[Array, None]:
        draw_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, draw)
        gradient = jax.grad(total_score)(images, draw_keys)
        return total + jnp.abs(gradient).sum(-1), None

    total, _ = jax.lax.scan(add_draw, jnp.zeros(images.shape[:3], images.dtype), draws)
    return total / jnp.maximum(total.max((1, 2), keepdims=True), jnp.finfo(total.dtype).tiny)
