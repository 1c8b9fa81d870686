"""The vision transformer: an image as the sequence of its patches, with one more place that gathers what is said about the whole.

tokens = [class, W patch_1 + b, W patch_2 + b, ...] + position,    logits = W norm(transformer(tokens))[0] + b
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import normal
from jaxtyping import Array, Float

from diffprog import _validation, backprop
from diffprog.models._model import Model, _check_input
from diffprog.models._transformer import Activation, at_each_place, transformer
from diffprog.nodes import tap

Images = Float[Array, "batch height width channels"]


def vit(
    shape: tuple[int, int, int] = (8, 8, 1),
    *,
    patch: int = 2,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    hidden: int | None = None,
    outputs: int | None = 10,
    activation: Activation = "gelu",
    norm_first: bool = False,
    epsilon: float = 1e-5,
) -> Model:
    """Patches to places of a transformer; the output is affine in the normalised place of the class.

    Nodes: "patches", (batch, rows, columns, width); "tokens", what enters the first block, (batch, 1 + rows * columns, width), the place of
    the class first; those of `transformer`, "block<k>", "block<k>.attention" and "block<k>.hidden"; "pooled", (batch, width), the
    normalised place of the class; and "logits".

    Params: "patches" and "logits" as `backprop.affine` has them, a patch being its pixels row by row, channels last; "class" (width,);
    "positions" (1 + rows * columns, width); "norm" and, with `norm_first`, "norm_first" as `backprop.layer_norm`; "blocks" as
    `transformer`.

    Args:
        shape: (height, width, channels) of an image, the sides multiples of `patch`.
        patch: side of a patch.
        width: of the transformer's stream, a multiple of `heads`.
        depth: number of blocks.
        heads: of each attention.
        hidden: units of each MLP; 4 width by default.
        outputs: number of logits, or length of the embedding of a CLIP tower; None for "pooled" itself.
        activation: of the MLPs, as `transformer` has it.
        norm_first: whether the tokens are normalised before the first block, as CLIP's are.
        epsilon: added to the variance in the norms.

    Raises:
        TypeError, ValueError: a size or name that is none of these; at `apply`, params with other entries, x that is not float
            (batch, *shape), empty, or with NaN or infinity.

    Source: A. Dosovitskiy et al., "An image is worth 16 x 16 words: transformers for image recognition at scale", 2021.

    >>> model = vit((8, 8, 1), patch=4, width=8, depth=1, heads=2, outputs=3)
    >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 8, 8, 1))).shape
    (2, 3)
    """
    sides = _validation.integers("shape", shape, least=3, most=3)
    rows, columns = _grid(sides, _validation.integer("patch", patch, low=1))
    _validation.choice("norm_first", norm_first, (True, False))
    blocks = transformer(width, depth, heads, hidden=hidden, activation=activation, epsilon=epsilon)
    layers = {
        "patches": backprop.affine(patch * patch * sides[2], width),
        "norm": backprop.layer_norm(width, epsilon=epsilon),
    }
    if norm_first:
        layers["norm_first"] = layers["norm"]
    if outputs is not None:
        layers["logits"] = backprop.affine(width, _validation.integer("outputs", outputs, low=1))
    learned_shapes = {"class": (width,), "positions": (1 + rows * columns, width)}

    def init(key: jax.Array) -> dict[str, Any]:
        *keys, of_class, of_positions, of_blocks = jax.random.split(key, len(layers) + 3)
        drawn = {
            name: layer.init(key) for (name, layer), key in zip(layers.items(), keys, strict=True)
        }
        draw = normal(0.02)
        learned = {
            name: draw(key, shape)
            for (name, shape), key in zip(
                learned_shapes.items(), (of_class, of_positions), strict=True
            )
        }
        return drawn | learned | {"blocks": blocks.init(of_blocks)}

    entries = {*layers, *learned_shapes, "blocks"}

    def apply(params: dict[str, Any], x: Images) -> Float[Array, "batch outputs"]:
        _check(params, entries, x, sides)
        _validation.entries(
            "params", {name: params[name] for name in learned_shapes}, learned_shapes
        )

        def run(name: str, x: Array) -> Array:
            return at_each_place(layers[name], params[name], x)

        patches = tap(run("patches", _patches(x, patch)), "patches")
        first = jnp.broadcast_to(params["class"], (len(x), 1, width))
        tokens = (
            jnp.concatenate([first, patches.reshape(len(x), -1, width)], 1) + params["positions"]
        )
        tokens = tap(run("norm_first", tokens) if norm_first else tokens, "tokens")
        pooled = tap(run("norm", blocks.apply(params["blocks"], tokens)[:, 0]), "pooled")
        return pooled if outputs is None else tap(run("logits", pooled), "logits")

    return Model(init, apply)


def _grid(shape: tuple[int, ...], patch: int) -> tuple[int, int]:
    height, width, _ = shape
    if height % patch or width % patch:
        raise ValueError(
            f"shape must have sides that are multiples of the patch, {patch}, got {shape}"
        )
    return height // patch, width // patch


def _patches(x: Images, patch: int) -> Float[Array, "batch rows columns pixels"]:
    """Each patch as the row of its pixels, which makes the strided convolution of the papers a matrix product."""
    batch, height, width, channels = x.shape
    rows, columns = height // patch, width // patch
    return (
        x.reshape(batch, rows, patch, columns, patch, channels)
        .swapaxes(2, 3)
        .reshape(batch, rows, columns, -1)
    )


def _check(params: Any, entries: set[str], x: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(params, dict) or params.keys() != entries:
        given = sorted(params) if isinstance(params, dict) else type(params).__name__
        raise ValueError(f"params must be a dict with entries {sorted(entries)}, got {given}")
    _check_input(x, shape)
