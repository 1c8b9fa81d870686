"""Towers: a program of images and a program of texts that end in one space, where an angle says how well the two go together.

    similarity(x, t) = <f(x), g(t)> / (|f(x)| |g(t)|)

`Towers` is a pytree: its weights are leaves and everything else is structure. So a loss of towers is descended on as one of any parameters,
and a jitted function of towers is compiled once, whatever they weigh.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import normal
from jaxtyping import Array, Float, Int

from diffprog import _validation, backprop
from diffprog.contrastive._info_nce import unit_length
from diffprog.contrastive._reads import require_reads, require_reads_row
from diffprog.contrastive._tokenizers import PADDING, Tokenizer, require_texts
from diffprog.models import Model, transformer
from diffprog.nodes import tap
from diffprog.program import Program, program

_AT_ONCE = 512


class Towers(NamedTuple):
    """Two programs into one space, and how sharply their similarities are to be read.

    Attributes:
        image: images (batch, height, width, channels) in 0 .. 1 -> features (batch, width) of any length.
        text: ids (batch, length) -> features (batch, width) of any length.
        tokenizer: texts -> ids.
        log_scale: log s, the logarithm of the inverse temperature.
        bias: of the sigmoid loss; None for towers that are trained by InfoNCE.
    """

    image: Program
    text: Program
    tokenizer: Tokenizer
    log_scale: Float[Array, ""]
    bias: Float[Array, ""] | None = None


def towers(
    image: Model,
    text: Model,
    tokenizer: Tokenizer,
    *,
    key: jax.Array,
    temperature: float = 0.07,
    bias: float | None = None,
) -> Towers:
    """Untrained towers of two models with outputs of one length.

    Args:
        image: of images, such as `models.cnn(shape, classes=width)` or `models.vit(shape, outputs=width)`.
        text: of the tokenizer's ids, such as `text_tower`.
        tokenizer: such as `words` and `characters` make.
        key: a random key, for the weights.
        temperature: 1 / s to start from; 0.07 is CLIP's, 0.1 that of the sigmoid loss's authors.
        bias: to start from, for the sigmoid loss; None to train by InfoNCE.

    Raises:
        TypeError, ValueError: something that is no model, no tokenizer or no key, a model of texts that refuses rows of the tokenizer's
            length or its largest id, as `text_tower` does, numbers out of their range.

    >>> from diffprog.contrastive import characters
    >>> from diffprog.models import cnn
    >>> letters = characters(length=16)
    >>> pair = towers(cnn((8, 8, 1), classes=32), text_tower(letters.count, 16, outputs=32), letters, key=jax.random.key(0))
    >>> similarity(pair, jnp.zeros((3, 8, 8, 1)), ["a seven", "a one"]).shape
    (3, 2)
    """
    for name, model in (("image", image), ("text", text)):
        if not isinstance(model, Model):
            raise TypeError(f"{name} must be a Model, got {type(model).__name__}")
    _check_tokenizer(tokenizer)
    _validation.key("key", key)
    image_key, text_key = jax.random.split(key)
    of_texts = program(text.apply, text.init(text_key))
    require_reads("text", of_texts, tokenizer)
    return Towers(
        program(image.apply, image.init(image_key)),
        of_texts,
        tokenizer,
        jnp.asarray(
            -math.log(_validation.number("temperature", temperature, low=0.01)), jnp.float32
        ),
        None if bias is None else jnp.asarray(_validation.number("bias", bias), jnp.float32),
    )


def text_tower(
    count: int, length: int, *, width: int = 64, depth: int = 2, heads: int = 4, outputs: int = 64
) -> Model:
    """Ids to features: embedded, with a learned position each, through a transformer; the mean over places, and an affine map of it.

    Nodes: "tokens", what enters the first block; those of `models.transformer`; "pooled", the normalised mean over all places that are not
    filled up; and "features".

    Args:
        count: of ids, `tokenizer.count`.
        length: of a row of ids, `tokenizer.length`.
        width: of the transformer's stream, a multiple of `heads`.
        depth: number of blocks.
        heads: of each attention.
        outputs: length of the features.

    Raises:
        TypeError, ValueError: sizes that are none; at `apply`, ids that are not integers (batch, length) in 0 .. count - 1.

    >>> model = text_tower(5, 3, width=8, heads=2, outputs=4)
    >>> model.apply(model.init(jax.random.key(0)), jnp.array([[1, 4, 0]])).shape
    (1, 4)
    """
    blocks, length = transformer(width, depth, heads), _validation.integer("length", length, low=1)
    through: Callable[..., Array] = blocks.apply
    layers = {
        "embedding": backprop.embedding(count, width, initializer=normal(0.5)),
        "norm": backprop.layer_norm(width),
        "features": backprop.affine(width, _validation.integer("outputs", outputs, low=1)),
    }

    def init(key: jax.Array) -> dict[str, Any]:
        *keys, of_positions, of_blocks = jax.random.split(key, len(layers) + 2)
        drawn = {
            name: layer.init(key) for (name, layer), key in zip(layers.items(), keys, strict=True)
        }
        return drawn | {
            "positions": normal(0.1)(of_positions, (length, width)),
            "blocks": blocks.init(of_blocks),
        }

    def apply(
        params: dict[str, Any], ids: Int[Array, "batch length"]
    ) -> Float[Array, "batch outputs"]:
        _check_ids(ids, count, length)
        run = lambda name, x: backprop.differentiable(layers[name])(params[name], x)
        visible = ids != PADDING
        stream = through(
            params["blocks"], tap(run("embedding", ids) + params["positions"], "tokens"), visible
        )
        mean = jnp.where(visible[..., None], stream, 0).sum(1) / jnp.maximum(
            visible.sum(1, keepdims=True), 1
        ).astype(stream.dtype)
        return tap(run("features", tap(run("norm", mean), "pooled")), "features")

    return Model(init, apply)


def similarity(
    towers: Towers, images: Float[Array, "images height width channels"], texts: Sequence[str]
) -> Float[Array, "images texts"]:
    """The cosine of the angle between each image's features and each text's, in -1 .. 1; 0 where features are zero.

    Args:
        towers: `Towers`.
        images: finite floats in 0 .. 1.
        texts: sentences.

    Raises:
        TypeError, ValueError: towers that are none or whose features are of two lengths, images that are not such, texts that are no
            sequence of texts or that the tokenizer or the tower of texts refuses.

    >>> from diffprog.contrastive import words
    >>> image, text = program(lambda images: images[:, 0, 0]), program(lambda ids: jnp.eye(3)[ids[:, 0], 1:])
    >>> pair = Towers(image, text, words(["green red"]), jnp.float32(0))
    >>> print(similarity(pair, jnp.array([[[[0.0, 1.0]]], [[[0.3, 0.4]]]]), ["green", "red"]).round(3))
    [[0.  1. ]
     [0.6 0.8]]
    """
    u, v = directions(towers, images, texts)
    return u @ v.T


def directions(
    towers: Towers, images: Any, texts: Sequence[str]
) -> tuple[Float[Array, "images width"], Float[Array, "texts width"]]:
    """The unit features of images in 0 .. 1 and of texts, of one length."""
    x, ids = _images(towers, images), encoded(towers, texts)
    _validation.within("images", images, 0, 1)
    require_one_length(
        *(
            _unit.eval_shape(tower, some[:_AT_ONCE])
            for tower, some in ((towers.image, x), (towers.text, ids))
        )
    )
    return _directions(towers.image, x), _directions(towers.text, ids)


def image_directions(towers: Towers, images: Any) -> Float[Array, "images width"]:
    """The unit features of images, on whatever scale."""
    return _directions(towers.image, _images(towers, images))


def text_directions(towers: Towers, texts: Sequence[str]) -> Float[Array, "texts width"]:
    """The unit features of texts."""
    return _directions(towers.text, encoded(towers, texts))


def encoded(towers: Towers, texts: Sequence[str]) -> Int[Array, "texts length"]:
    """The ids of texts, all of which the tower of texts knows."""
    require_towers(towers)
    ids = np.asarray(towers.tokenizer.encode(require_texts("texts", texts)))
    require_reads_row("towers.text", towers.text, int(ids.max()), ids.shape[1])
    return jnp.asarray(ids)


def _images(towers: Towers, images: Any) -> Float[Array, "images height width channels"]:
    require_towers(towers)
    _validation.floating("images", images, rank=4)
    _validation.batch(images=images)
    _validation.finite("images", images)
    return jnp.asarray(images)


def _directions(tower: Program, x: Array) -> Float[Array, "batch width"]:
    return jnp.concatenate(
        [_unit(tower, x[first : first + _AT_ONCE]) for first in range(0, len(x), _AT_ONCE)]
    )


@jax.jit
def _unit(tower: Program, x: Array) -> Float[Array, "batch width"]:
    return unit_length(tower(x))


def require_towers(value: Any) -> None:
    """`Towers`, of this kind."""
    if not isinstance(value, Towers):
        raise TypeError(f"towers must be Towers, got {type(value).__name__}")
    for name, tower in (("image", value.image), ("text", value.text)):
        if not isinstance(tower, Program):
            raise TypeError(
                f"towers.{name} must be a Program, from diffprog.program, got {type(tower).__name__}"
            )
    _check_tokenizer(value.tokenizer)


def require_one_length(image: Any, text: Any) -> None:
    """Features of images and of texts that can be compared."""
    if image.ndim != 2 or image.shape[1:] != text.shape[1:]:
        raise ValueError(
            f"towers must have features of one length, got {list(image.shape)} of images and {list(text.shape)} of texts"
        )


def _check_tokenizer(tokenizer: Any) -> None:
    if not (
        callable(getattr(tokenizer, "encode", None))
        and callable(getattr(tokenizer, "decode", None))
    ) or jax.tree.leaves(tokenizer):
        raise TypeError(
            f"tokenizer must have encode and decode and no leaves for JAX, got {type(tokenizer).__name__}"
        )


def _check_ids(ids: Any, count: int, length: int) -> None:
    given = _validation.array("ids", ids)
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise TypeError(
            f"ids must be integers (batch, {length}), got {given.dtype}{list(given.shape)}"
        )
    if given.ndim != 2 or given.shape[1] != length:
        raise ValueError(f"ids must have shape (batch, {length}), got {list(given.shape)}")
    _validation.within("ids", given, 0, count - 1)
