"""Vision transformer: the patches of an image as a sequence of tokens, led by a class token.

    tokens = [class, W patch_1 + b, W patch_2 + b, ...] + positions
    logits = W' norm(transformer(tokens)[0]) + b'

where the class token, the positions, the matrices and biases are parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import normal
from jaxtyping import Array, Float

from diffprog import _validation, backprop
from diffprog.models._model import Model, check_entries, check_input
from diffprog.models._transformer import Activation, apply_to_last_axis, transformer
from diffprog.nodes import tap

ImageBatch = Float[Array, "batch height width channels"]


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
    """Vision transformer (Dosovitskiy et al., 2021), with an affine head on the class token.

    Nodes (named values, see `diffprog.nodes`): "patches", (batch, rows, columns, width); "tokens",
    the input of the first block, (batch, 1 + rows * columns, width), class token first; "block<k>",
    "block<k>.attention" and "block<k>.hidden", as of `transformer`; "pooled", (batch, width), the
    normalized class token; and "logits".

    Params: "patches" and "logits" as of `backprop.affine`, where a patch is its pixels row by row,
    channels last; "class" (width,); "positions" (1 + rows * columns, width); "norm" and, with
    `norm_first`, "norm_first" as of `backprop.layer_norm`; "blocks" as of `transformer`.

    Args:
        shape: (height, width, channels) of an image, the sides multiples of `patch`.
        patch: side of a patch.
        width: width of the residual stream, a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
        hidden: hidden units of each MLP. Default: 4 width.
        outputs: number of logits, or length of the embedding of a CLIP tower; None to return
            "pooled".
        activation: activation of the MLPs, as of `transformer`.
        norm_first: whether to normalize the tokens before the first block, as CLIP does.
        epsilon: number > 0 added to the variance in the layer norms.

    Returns:
        A `Model`, the functions `init(key) -> params` and `apply(params, x) -> logits`.

    Raises:
        TypeError, ValueError: a size or name is invalid. `apply` raises if params has other
            entries, or x is not a nonempty batch of finite floats, (batch, *shape).

    Source: A. Dosovitskiy et al., "An image is worth 16 x 16 words: transformers for image
    recognition at scale", 2021.

    >>> model = vit((8, 8, 1), patch=4, width=8, depth=1, heads=2, outputs=3)
    >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 8, 8, 1))).shape
    (2, 3)
    """
    sides = _validation.integers("shape", shape, least=3, most=3)
    patch = _validation.integer("patch", patch, low=1)
    if sides[0] % patch or sides[1] % patch:
        raise ValueError(
            f"shape must have sides that are multiples of the patch, {patch}, got {shape}"
        )
    rows, columns = sides[0] // patch, sides[1] // patch
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
    embedding_shapes = {"class": (width,), "positions": (1 + rows * columns, width)}

    def init(key: jax.Array) -> dict[str, Any]:
        *keys, class_key, positions_key, blocks_key = jax.random.split(key, len(layers) + 3)
        initializer = normal(0.02)
        return {
            **{name: layer.init(k) for (name, layer), k in zip(layers.items(), keys, strict=True)},
            "class": initializer(class_key, embedding_shapes["class"]),
            "positions": initializer(positions_key, embedding_shapes["positions"]),
            "blocks": blocks.init(blocks_key),
        }

    def apply(params: dict[str, Any], x: ImageBatch) -> Float[Array, "batch outputs"]:
        check_entries(params, [*layers, *embedding_shapes, "blocks"])
        check_input(x, sides)
        embeddings = {name: params[name] for name in embedding_shapes}
        _validation.entries("params", embeddings, embedding_shapes)

        def run(name: str, x: Array) -> Array:
            return apply_to_last_axis(layers[name], params[name], x)

        patches = tap(run("patches", _split_into_patches(x, patch)), "patches")
        first = jnp.broadcast_to(params["class"], (len(x), 1, width))
        tokens = jnp.concatenate([first, patches.reshape(len(x), -1, width)], 1)
        tokens = tokens + params["positions"]
        tokens = tap(run("norm_first", tokens) if norm_first else tokens, "tokens")
        pooled = tap(run("norm", blocks.apply(params["blocks"], tokens)[:, 0]), "pooled")
        return pooled if outputs is None else tap(run("logits", pooled), "logits")

    return Model(init, apply)


def _split_into_patches(x: ImageBatch, patch: int) -> Float[Array, "batch rows columns pixels"]:
    """Split images into patches, each flattened row by row with channels last.

    An affine layer of these vectors is then the strided convolution of the paper.
    """
    batch, height, width, channels = x.shape
    rows, columns = height // patch, width // patch
    return (
        x.reshape(batch, rows, patch, columns, patch, channels)
        .swapaxes(2, 3)
        .reshape(batch, rows, columns, -1)
    )
