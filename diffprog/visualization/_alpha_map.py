"""Alpha maps: how opaque each pixel of a made image should be drawn, by how much the objective hangs on it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.program import Program, program
from diffprog.visualization._evaluate_objective import require_images, require_readable
from diffprog.visualization._objectives import Objective, as_objective
from diffprog.visualization._optimize import Transform, transformed
from diffprog.visualization._read_units import read_units


def alpha_map(
    f: Callable[..., Any],
    objective: Objective | Callable[[Array], Array],
    images: Float[Array, "n height width channels"],
    *,
    key: jax.Array,
    transforms: Sequence[Transform] = (),
    draws: int = 16,
) -> Float[Array, "n height width"]:
    """mean over draws of Σ_channels |ds_i/dx_i|, over its largest value in each image: 1 where the objective hangs on a pixel most.

    What an objective does not ask for is left to chance in an image made for it; drawn with this opacity, chance disappears.

    Args:
        f: a program of a batch of images.
        objective: of n images.
        images: as `visualize` made them for it, one for each of its images.
        key: a random key. Image i draws its transforms from `fold_in(key, i)`.
        transforms: those the images were made with; the map is an average over draws of them.
        draws: how many, at least 1.

    Raises:
        TypeError, ValueError: images that are not such, an objective of another number of images, and what `visualize` raises.

    >>> from diffprog.visualization import logit
    >>> f = lambda x: x.reshape(len(x), -1) @ jnp.array([[4.0], [-2.0], [0.0]])
    >>> print(alpha_map(f, logit(0), jnp.ones((1, 1, 3, 1)), key=jax.random.key(0)))
    [[[1.  0.5 0. ]]]
    """
    f = program(f)
    _validation.key("key", key)
    require_images("images", images)
    functions = tuple(
        _validation.function(f"transforms[{k}]", transform)
        for k, transform in enumerate(transforms)
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
    seen = jax.eval_shape(lambda images: transformed(functions, images, keys), jnp.asarray(images))
    objective = as_objective(objective)
    require_readable(f, objective, jax.ShapeDtypeStruct((1, *seen.shape[1:]), seen.dtype))
    if len(objective) != len(images):
        raise ValueError(
            f"images must be one for each of the objective's {len(objective)}, got {len(images)}"
        )
    read, score, data = read_units(f, objective.requests), objective.score, objective.data

    def total(images: Array, keys: jax.Array) -> Array:
        return score(read(transformed(functions, images, keys))[1], data).sum()

    return _averaged(
        program(total),
        jnp.asarray(images),
        keys,
        jnp.arange(_validation.integer("draws", draws, low=1)),
    )


@jax.jit
def _averaged(total: Program, images: Array, keys: jax.Array, draws: Array) -> Array:
    def add(strength: Array, draw: Array) -> tuple[Array, None]:
        gradient = jax.grad(total)(images, jax.vmap(jax.random.fold_in, (0, None))(keys, draw))
        return strength + jnp.abs(gradient).sum(-1), None

    strength, _ = jax.lax.scan(add, jnp.zeros(images.shape[:3], images.dtype), draws)
    return strength / jnp.maximum(
        strength.max((1, 2), keepdims=True), jnp.finfo(strength.dtype).tiny
    )
