"""DeepDream: gradient ascent on a photograph, from coarse to fine (Mordvintsev et al., 2015).

    octave o:   x = resize(photograph, size_o) + resize(detail of octave o - 1, size_o)
                x <- x + rate g / mean|g|,   g = d/dx Σ_tiles objective(f(tile))     (repeated)
                detail of octave o = x - resize(photograph, size_o)

An octave is one image size. Its detail is what the ascent changed in the photograph; it is the
start of the next larger octave. The image is cut into tiles of the input size of the model f, along
a grid that is shifted at random in every step, so that no seams form. Tiles are differentiated in
groups, without storing their intermediate values (`jax.checkpoint`), so that memory, apart from the
image itself, does not grow with the image size.
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
    """Result of `dream`: the final image, the image of each octave, and the objective.

    Attributes:
        image: final image (height, width, channels), of the size of the photograph.
        octaves: image after each octave (image size), smallest first.
        history: (octaves, steps), objective at each step, averaged over the tiles.
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
    """Run DeepDream: change a photograph by gradient ascent of an objective, from coarse to fine.

    Args:
        f: model of a batch of tiles, (batch, *tile, channels).
        objective: objective of one image, applied to every tile: `deep_dream(node)`, a channel, ...
        photograph: (height, width, channels), finite, in `range`.
        key: PRNG key for the shifts of the tile grid.
        tile: (height, width) of f's input.
        octaves: number of image sizes, at least 1. The smallest must not be smaller than a tile.
        scale: ratio of consecutive sizes, > 1.
        steps: updates per octave.
        rate: mean change of a pixel per step.
        range: (low, high) of the pixels.
        tiles_at_once: number of tiles differentiated together.
        progress: whether to show a progress bar per octave; None shows it for long runs on a
            terminal.

    Returns:
        `Dream`: the final image, the image of each octave, and the objective at each step.

    Raises:
        TypeError, ValueError: the photograph is out of range or its smallest octave holds no tile,
            f lacks a node of the objective, or an argument is out of range.

    >>> from diffprog.visualization import logit
    >>> grey, key = jnp.full((4, 4, 1), 0.5), jax.random.key(0)
    >>> result = dream(lambda x: x, logit(0), grey, key=key, tile=(2, 2), octaves=1, steps=1)
    >>> round(float(result.image.mean()), 3)
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
    octaves = _validation.integer("octaves", octaves, low=1)
    scale = _validation.number("scale", scale, above=1)
    steps = _validation.integer("steps", steps, low=1)
    rate = _validation.number("rate", rate, above=0)
    tiles_at_once = _validation.integer("tiles_at_once", tiles_at_once, low=1)
    photograph = jnp.asarray(photograph)
    sizes = _octave_sizes(photograph.shape[:2], octaves, scale)
    if sizes[0][0] < height or sizes[0][1] < width:
        raise ValueError(
            f"octaves must leave room for a tile of {list(tile)}, "
            f"got a smallest octave of {list(sizes[0])} pixels"
        )
    objective = as_objective(objective)
    inputs = jax.ShapeDtypeStruct((1, *tile, photograph.shape[2]), photograph.dtype)
    require_readable(f, objective, inputs)
    if len(objective) != 1:
        raise ValueError(
            f"objective must be of one image, applied to every tile, got {len(objective)}"
        )

    optimizer = optax.chain(_normalize_by_mean_size(), optax.sgd(rate))
    clip = lambda x: jnp.clip(x, low, high)
    detail, images, histories = jnp.zeros_like(photograph), [], []
    for octave, size in enumerate(sizes):
        base = _resize(photograph, size)
        cost = _cost(f, objective, tile, tiles_at_once, jax.random.fold_in(key, octave))
        method = descent.descent(cost, optimizer, clip)
        result = descent.run(method, clip(base + _resize(detail, size)), steps, progress=progress)
        detail = result.variable - base
        images.append(result.variable)
        missing = steps - len(result.costs)
        histories.append(-np.pad(result.costs, (0, missing), constant_values=np.nan))
    return Dream(images[-1], tuple(images), np.stack(histories))


def _octave_sizes(size: tuple[int, ...], octaves: int, scale: float) -> list[tuple[int, int]]:
    return [
        (round(size[0] / scale**k), round(size[1] / scale**k)) for k in reversed(range(octaves))
    ]


def _normalize_by_mean_size() -> optax.GradientTransformation:
    """Return an optax transformation that divides a gradient by its mean absolute value."""
    normalize = lambda g: g / jnp.maximum(jnp.abs(g).mean(), 1e-12)
    return optax.stateless(lambda gradient, _: jax.tree.map(normalize, gradient))


def _resize(image: Array, size: tuple[int, int]) -> Array:
    return jax.image.resize(image, (*size, image.shape[2]), "linear")


def _cost(
    f: Program, objective: Objective, tile: tuple[int, ...], batch_size: int, key: jax.Array
) -> Callable[[Array, Array], Array]:
    """Return the cost function (image, step) -> minus the mean objective over tiles of the image.

    `tile` is the size of a tile; `batch_size` tiles are differentiated together. `key` is for the
    random shift of the tile grid in each step.
    """
    batch = objective.take([0] * batch_size)
    read, score, data = read_units(f, batch.requests), batch.score, batch.data

    @jax.checkpoint
    def weighted_score(tiles: Array, weights: Array) -> Array:
        return (score(read(tiles)[1], data) * weights).sum()

    def cost(image: Array, step: Array) -> Array:
        tiles = _tiles(image, tile, jax.random.fold_in(key, step))
        # Fill up the last batch with black tiles of weight 0.
        missing = -len(tiles) % batch_size
        weights = jnp.pad(jnp.ones(len(tiles), image.dtype), (0, missing)).reshape(-1, batch_size)
        tiles = jnp.pad(tiles, ((0, missing), *((0, 0),) * 3))
        tiles = tiles.reshape(-1, batch_size, *tiles.shape[1:])
        total = jax.lax.map(lambda batch: weighted_score(*batch), (tiles, weights)).sum()
        return -total / weights.sum()

    return cost


def _tiles(
    image: Array, tile: tuple[int, ...], key: jax.Array
) -> Float[Array, "tiles rows columns channels"]:
    """Cut an image into tiles of size `tile` on a randomly shifted grid; edges wrap around."""
    height, width, channels = image.shape
    shifted = jnp.roll(image, jax.random.randint(key, (2,), 0, jnp.asarray(tile)), (0, 1))
    padded = jnp.pad(shifted, ((0, -height % tile[0]), (0, -width % tile[1]), (0, 0)), mode="wrap")
    rows, columns = padded.shape[0] // tile[0], padded.shape[1] // tile[1]
    blocks = padded.reshape(rows, tile[0], columns, tile[1], channels)
    return blocks.swapaxes(1, 2).reshape(-1, *tile, channels)
