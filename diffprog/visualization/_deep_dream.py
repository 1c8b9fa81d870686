"""Deep dream: a photograph, and more of what a network sees in it, from coarse to fine (Mordvintsev, Olah and Tyka 2015).

    octave o:   x = resize(photograph, size_o) + resize(detail so far, size_o)
                x <- x + rate · g / mean|g|,   g = d/dx Σ_tiles objective(f(tile)),   some steps
                detail = x - resize(photograph, size_o)

The image is cut into tiles of the size f takes, along lines that move at random from step to step so that no seam stays. A few tiles are
differentiated at a time and their values forgotten before the next, so that memory does not grow with the image beyond the image itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from diffprog import _validation, descent
from diffprog.program import Program, program
from diffprog.visualization._evaluate_objective import require_readable
from diffprog.visualization._objectives import Objective, as_objective
from diffprog.visualization._read_units import read_units

Photograph = Float[Array, "height width channels"]


class Dream(NamedTuple):
    """What became of a photograph.

    Attributes:
        image: (height, width, channels), of the photograph's size.
        octaves: the image after each octave, from the smallest to the whole.
        history: (octaves, steps), the mean of the objective over the tiles.
    """

    image: Photograph
    octaves: tuple[Photograph, ...]
    history: np.ndarray


def dream(
    f: Callable[..., Any],
    objective: Objective | Callable[[Array], Array],
    photograph: Photograph,
    *,
    key: jax.Array,
    tile: tuple[int, int],
    octaves: int = 4,
    scale: float = 1.4,
    steps: int = 10,
    rate: float = 0.01,
    range: tuple[float, float] = (0.0, 1.0),
    tiles_at_once: int = 8,
    progress: bool | None = None,
) -> Dream:
    """Ascend the objective on a photograph of any size, octave by octave.

    Args:
        f: a program of a batch of tiles, (batch, *tile, channels).
        objective: of one image, asked of every tile: `deep_dream(node)`, a channel, ...
        photograph: (height, width, channels), finite, inside the range.
        key: a random key, for where the tiles begin.
        tile: height and width of what f takes.
        octaves: how many sizes, at least 1.
        scale: from one size to the next, > 1. Every size must hold a tile.
        steps: updates at each size.
        rate: mean size of a pixel's change in a step.
        range: of the pixels.
        tiles_at_once: how many tiles are differentiated together.
        progress: a bar for each octave; None shows it for long runs on a terminal.

    Raises:
        TypeError, ValueError: a photograph outside its range or with a smallest octave that holds no tile, an unknown node, numbers out of
            their range.

    >>> from diffprog.visualization import logit
    >>> found = dream(lambda x: x, logit(0), jnp.full((4, 4, 1), 0.5), key=jax.random.key(0), tile=(2, 2), octaves=1, steps=1)
    >>> round(float(found.image.mean()), 3)
    0.51
    """
    f = program(f)
    _validation.key("key", key)
    _validation.floating("photograph", photograph, rank=3)
    _validation.finite("photograph", photograph)
    low, high = _validation.bounds("range", range)
    _validation.within("photograph", photograph, low, high)
    height, width = _validation.integers("tile", tile, least=2, most=2)
    tile = height, width
    sizes = _sizes(
        photograph.shape[:2],
        _validation.integer("octaves", octaves, low=1),
        _validation.number("scale", scale, above=1),
        tile,
    )
    optimizer = optax.chain(
        _of_mean_size_one(), optax.sgd(_validation.number("rate", rate, above=0))
    )
    steps, tiles_at_once = (
        _validation.integer("steps", steps, low=1),
        _validation.integer("tiles_at_once", tiles_at_once, low=1),
    )
    photograph = jnp.asarray(photograph)
    objective = as_objective(objective)
    require_readable(
        f, objective, jax.ShapeDtypeStruct((1, *tile, photograph.shape[2]), photograph.dtype)
    )
    if len(objective) != 1:
        raise ValueError(
            f"objective must be of one image, asked of every tile, got {len(objective)}"
        )

    inside = lambda x: jnp.clip(x, low, high)
    detail, seen, histories = jnp.zeros_like(photograph), [], []
    for number, size in enumerate(sizes):
        base = _resized(photograph, size)
        cost = _cost(f, objective, tile, tiles_at_once, jax.random.fold_in(key, number))
        result = descent.run(
            descent.descent(cost, optimizer, inside),
            inside(base + _resized(detail, size)),
            steps,
            progress=progress,
        )
        detail = result.variable - base
        seen.append(result.variable)
        histories.append(
            -np.pad(result.costs, (0, steps - len(result.costs)), constant_values=np.nan)
        )
    return Dream(seen[-1], tuple(seen), np.stack(histories))


def _sizes(
    whole: tuple[int, ...], octaves: int, scale: float, tile: tuple[int, ...]
) -> list[tuple[int, int]]:
    sizes = [
        (round(whole[0] / scale**k), round(whole[1] / scale**k)) for k in reversed(range(octaves))
    ]
    if sizes[0][0] < tile[0] or sizes[0][1] < tile[1]:
        raise ValueError(
            f"octaves must leave room for a tile of {list(tile)}, got a smallest octave of {list(sizes[0])} pixels"
        )
    return sizes


def _of_mean_size_one() -> optax.GradientTransformation:
    return optax.stateless(
        lambda gradient, _: jax.tree.map(
            lambda g: g / jnp.maximum(jnp.abs(g).mean(), 1e-12), gradient
        )
    )


def _resized(image: Array, size: tuple[int, int]) -> Array:
    return jax.image.resize(image, (*size, image.shape[2]), "linear")


def _cost(
    f: Program, objective: Objective, tile: tuple[int, ...], batch_size: int, key: jax.Array
) -> Callable[[Array, Array], Array]:
    part = objective.take([0] * batch_size)
    read, own_score, data = read_units(f, part.requests), part.score, part.data

    @jax.checkpoint
    def score(tiles: Array, counted: Array) -> Array:
        return (own_score(read(tiles)[1], data) * counted).sum()

    def cost(image: Array, step: Array) -> Array:
        tiles = _tiles(image, tile, jax.random.fold_in(key, step))
        missing = -len(tiles) % batch_size
        counted = jnp.pad(jnp.ones(len(tiles), image.dtype), (0, missing)).reshape(-1, batch_size)
        tiles = jnp.pad(tiles, ((0, missing), *((0, 0),) * 3)).reshape(
            -1, batch_size, *tiles.shape[1:]
        )
        return -jax.lax.map(lambda batch: score(*batch), (tiles, counted)).sum() / counted.sum()

    return cost


def _tiles(
    image: Array, tile: tuple[int, ...], key: jax.Array
) -> Float[Array, "tiles rows columns channels"]:
    """The image cut up from a random corner on; it goes on at the opposite edge, and the last tiles repeat what they have to."""
    height, width, channels = image.shape
    moved = jnp.roll(image, jax.random.randint(key, (2,), 0, jnp.asarray(tile)), (0, 1))
    whole = jnp.pad(moved, ((0, -height % tile[0]), (0, -width % tile[1]), (0, 0)), mode="wrap")
    rows, columns = whole.shape[0] // tile[0], whole.shape[1] // tile[1]
    return (
        whole.reshape(rows, tile[0], columns, tile[1], channels)
        .swapaxes(1, 2)
        .reshape(-1, *tile, channels)
    )
