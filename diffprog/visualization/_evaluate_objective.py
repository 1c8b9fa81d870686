"""What any images score by an objective: the units of one program read on real data, or on what another program was made to see."""

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

_AT_ONCE = 256

Images = Float[Array, "images height width channels"]


def scores(f: Any, objective: Objective | Callable[[Array], Array], images: Images) -> np.ndarray:
    """What each image scores by each part of an objective.

    Args:
        f: a program of a batch of images.
        objective: of n images; or a function of f's output, output -> (batch,).
        images: (m, height, width, channels), finite floats.

    Returns:
        (n, m): entry (i, k) is the score of `images[k]` as image i of the objective.

    Raises:
        TypeError, ValueError: images that are not such, a node that f does not have, a unit that the node does not have.

    >>> from diffprog.visualization import logit
    >>> print(scores(lambda x: x.reshape(len(x), -1), logit([2, 0]), jnp.arange(6.0).reshape(2, 1, 3, 1)))
    [[2. 5.]
     [0. 3.]]
    """
    opened, objective = program(f), as_objective(objective)
    require_images("images", images)
    require_readable(
        opened, objective, jax.ShapeDtypeStruct(jnp.shape(images), jnp.asarray(images).dtype)
    )
    pieces = [
        jnp.asarray(images[first : first + _AT_ONCE]) for first in range(0, len(images), _AT_ONCE)
    ]
    score = program(objective.score)
    return np.concatenate(
        [
            np.asarray(_scores(opened, score, objective.requests, objective.data, piece))
            for piece in pieces
        ],
        axis=1,
    )


def _scores(f: Program, score: Program, requests: Any, data: Any, images: Images) -> Array:
    names = tuple(request.node for request in requests)
    units = tuple(request.units for request in requests)
    return _scores_of_units(f, score, names, units, data, images)


@jax.jit(static_argnums=2)
def _scores_of_units(
    f: Program, score: Program, names: tuple[str | None, ...], units: Any, data: Any, images: Images
) -> Array:
    values = read_whole(f, names, images)

    def one(units: Any, data: Any) -> Array:
        picked = [
            value if unit is None else jnp.take(value, unit, axis=-1)
            for value, unit in zip(values, units, strict=True)
        ]
        return score(
            picked,
            jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(images), *leaf.shape)), data),
        )

    if not jax.tree.leaves((units, data)):
        return one(units, data)[None]
    return jax.vmap(one)(units, data)


def read_whole(f: Any, names: Sequence[str | None], images: Any) -> list[Array]:
    """The values of nodes, (images, ..., units); of the output, for None."""
    return read_units(f, [Request(name) for name in names], slicing=False)(images)[1]


def require_images(name: str, images: Any) -> None:
    """Finite float images, at least one."""
    _validation.floating(name, images, rank=4)
    _validation.batch(**{name: images})
    _validation.finite(name, images)


def require_readable(f: Any, objective: Objective, images: jax.ShapeDtypeStruct) -> None:
    """The program has the nodes that are asked for, the nodes have the units, and the objective scores each image."""
    if not isinstance(objective, Objective):
        raise TypeError(
            f"objective must be an Objective, such as logit(3), got {type(objective).__name__}"
        )
    whole = jax.eval_shape(
        lambda images: read_whole(f, [request.node for request in objective.requests], images),
        images,
    )
    values = []
    for request, value in zip(objective.requests, whole, strict=True):
        require_channels(request.node, value, images.shape[0])
        name = "the output" if request.node is None else f"node {request.node!r}"
        if request.units is not None and int(request.units.max()) >= value.shape[-1]:
            raise ValueError(
                f"{name} has units 0 .. {value.shape[-1] - 1}, got {int(request.units.max())}"
            )
        last = value.ndim if request.units is None else value.ndim - 1
        values.append(jax.ShapeDtypeStruct((len(objective), *value.shape[1:last]), value.dtype))
    came = jax.eval_shape(objective.score, values, objective.data)
    if getattr(came, "shape", None) != (len(objective),) or not jnp.issubdtype(
        came.dtype, jnp.floating
    ):
        raise ValueError(
            f"an objective's score must be floats of shape [{len(objective)}], one for each image, got {came}"
        )
