"""Evaluate an objective on given images, such as real data or images optimized for another model.

This module also has the checks of objectives and images that `visualize`, `dream` and the
attributions share.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.program import Program, program
from diffprog.visualization._objectives import Objective, as_objective
from diffprog.visualization._read_units import Request, read_units, require_channels

_BATCH_SIZE = 256

Images = Float[Array, "images height width channels"]


def scores(f: Any, objective: Objective | Callable[[Array], Array], images: Images) -> np.ndarray:
    """Evaluate each of the n scores of an objective on each of m given images.

    Args:
        f: model of a batch of images.
        objective: objective of a batch of n images; or a function of f's output,
            (batch, outputs) -> (batch,), for which n = 1.
        images: (m, height, width, channels), finite floats.

    Returns:
        Scores (n, m); entry (i, k) is the i-th score of the objective, evaluated on `images[k]`.

    Raises:
        TypeError, ValueError: the images are not such an array, f lacks a node of the objective, or
            a unit is out of range.

    >>> from diffprog.visualization import logit
    >>> images = jnp.arange(6.0).reshape(2, 1, 3, 1)
    >>> print(scores(lambda x: x.reshape(len(x), -1), logit([2, 0]), images))
    [[2. 5.]
     [0. 3.]]
    """
    f, objective = program(f), as_objective(objective)
    require_images("images", images)
    require_readable(f, objective, jax.eval_shape(jnp.asarray, images))
    names = tuple(request.node for request in objective.requests)
    units = tuple(request.units for request in objective.requests)
    score = program(objective.score)
    rows = []
    for k in range(0, len(images), _BATCH_SIZE):
        batch = jnp.asarray(images[k : k + _BATCH_SIZE])
        rows.append(np.asarray(_scores(f, score, names, units, objective.data, batch)))
    return np.concatenate(rows, axis=1)


@jax.jit(static_argnums=2)
def _scores(
    f: Program, score: Program, names: tuple[str | None, ...], units: Any, data: Any, images: Images
) -> Float[Array, "n images"]:
    values = read_node_values(f, names, images)

    # An objective scores image i with the i-th units and data; here these score all images.
    def score_all_images(units: Any, data: Any) -> Array:
        selected = [
            value if unit is None else jnp.take(value, unit, axis=-1)
            for value, unit in zip(values, units, strict=True)
        ]
        repeat = lambda leaf: jnp.broadcast_to(leaf, (len(images), *leaf.shape))
        return score(selected, jax.tree.map(repeat, data))

    if not jax.tree.leaves((units, data)):
        return score_all_images(units, data)[None]
    return jax.vmap(score_all_images)(units, data)


def read_node_values(f: Any, names: Sequence[str | None], images: Any) -> list[Array]:
    """Return the values of nodes by name, each (images, ..., units); None: the output of f."""
    return read_units(f, [Request(name) for name in names])(images)[1]


def require_images(name: str, images: Any) -> None:
    """Raise an error unless `images` is a nonempty batch of finite float images, of rank 4.

    `name` is the name of the argument for the message.
    """
    _validation.floating(name, images, rank=4)
    _validation.batch(**{name: images})
    _validation.finite(name, images)


def require_readable(f: Any, objective: Objective, images: jax.ShapeDtypeStruct) -> None:
    """Raise an error unless the objective can be evaluated on the model f.

    Args:
        f: model; it must have the intermediate values and units that the objective reads.
        objective: the objective; it must return one score per image.
        images: shape and dtype of a batch of f's input, with any number of images.
    """
    if not isinstance(objective, Objective):
        raise TypeError(
            f"objective must be an Objective, such as logit(3), got {type(objective).__name__}"
        )
    names = [request.node for request in objective.requests]
    node_values = jax.eval_shape(lambda images: read_node_values(f, names, images), images)
    values = []
    for request, value in zip(objective.requests, node_values, strict=True):
        require_channels(request.node, value, images.shape[0])
        if request.units is not None and int(request.units.max()) >= value.shape[-1]:
            name = "the output" if request.node is None else f"node {request.node!r}"
            raise ValueError(
                f"{name} has units 0 .. {value.shape[-1] - 1}, got {int(request.units.max())}"
            )
        end = value.ndim if request.units is None else value.ndim - 1
        values.append(jax.ShapeDtypeStruct((len(objective), *value.shape[1:end]), value.dtype))
    score = jax.eval_shape(objective.score, values, objective.data)
    if getattr(score, "shape", None) != (len(objective),) or not jnp.issubdtype(
        score.dtype, jnp.floating
    ):
        raise ValueError(
            f"an objective's score must be floats of shape [{len(objective)}], one for each image, "
            f"got {score}"
        )
