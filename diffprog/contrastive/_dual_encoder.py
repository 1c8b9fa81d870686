"""Dual encoders: an image encoder and a text encoder that map to one feature space.

    similarity(x, t) = <f(x), g(t)> / (||f(x)|| ||g(t)||)

f is the image encoder and g the text encoder, each a program (a callable whose arrays are pytree
leaves). `Towers` holds both, so it is a pytree of all weights: a loss can be minimized with respect
to it, and a jitted function of it compiles once for all weights.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import normal
from jaxtyping import Array, Bool, Float, Int

from diffprog import _validation, backprop
from diffprog.backprop import Layer
from diffprog.contrastive._info_nce import normalize
from diffprog.contrastive._tokenizers import PADDING, Tokenizer, check_ids, check_texts
from diffprog.models import Model, transformer
from diffprog.nodes import tap
from diffprog.program import Program, program

_BATCH_SIZE = 512


class Towers(NamedTuple):
    """Dual encoder: an image encoder and a text encoder whose features can be compared.

    Attributes:
        image: image encoder, (batch, height, width, channels) in 0 .. 1 -> features (batch, width).
        text: text encoder, ids (batch, length) -> features (batch, width).
        tokenizer: tokenizer that turns texts into these ids.
        log_scale: logarithm of the inverse temperature by which the loss multiplies similarities.
        bias: bias of the sigmoid loss; None to train with InfoNCE.
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
    """Initialize a dual encoder from an image model and a text model.

    Args:
        image: `models.Model` of images, such as `models.cnn(shape, classes=width)` or
            `models.vit(shape, outputs=width)`.
        text: `models.Model` of token ids, such as `text_tower(..., outputs=width)`.
        tokenizer: tokenizer of the texts, such as that of `words` or `characters`.
        key: PRNG key, to initialize the weights.
        temperature: initial temperature of the loss, at least 0.01. The default is that of CLIP;
            SigLIP starts at 0.1.
        bias: initial bias of the sigmoid loss; None to train with InfoNCE.

    Raises:
        TypeError, ValueError: an argument is of another type or out of range, or the text model
            refuses rows of the tokenizer's length or its largest id.

    >>> from diffprog.contrastive import characters
    >>> from diffprog.models import cnn
    >>> tokenizer = characters(length=16)
    >>> text = text_tower(tokenizer.count, 16, outputs=32)
    >>> pair = towers(cnn((8, 8, 1), classes=32), text, tokenizer, key=jax.random.key(0))
    >>> similarity(pair, jnp.zeros((3, 8, 8, 1)), ["a seven", "a one"]).shape
    (3, 2)
    """
    for name, model in (("image", image), ("text", text)):
        if not isinstance(model, Model):
            raise TypeError(f"{name} must be a Model, got {type(model).__name__}")
    _check_tokenizer(tokenizer)
    _validation.key("key", key)
    image_key, text_key = jax.random.split(key)
    text_program = program(text.apply, text.init(text_key))
    count, length = getattr(tokenizer, "count", None), getattr(tokenizer, "length", None)
    if isinstance(count, int) and isinstance(length, int):
        _check_text_encoder("text", text_program, count - 1, length)
    temperature = _validation.number("temperature", temperature, low=0.01)
    return Towers(
        program(image.apply, image.init(image_key)),
        text_program,
        tokenizer,
        jnp.asarray(-math.log(temperature), jnp.float32),
        None if bias is None else jnp.asarray(_validation.number("bias", bias), jnp.float32),
    )


def text_tower(
    count: int, length: int, *, width: int = 64, depth: int = 2, heads: int = 4, outputs: int = 64
) -> Model:
    """Build a transformer text encoder with mean pooling, as a `models.Model`.

    Embeddings of tokens and positions are added and pass through a transformer. The output is an
    affine map of the normalized mean over positions that are not padding.

    Nodes (named intermediate values): "tokens", the input of the first block; those of
    `models.transformer`; "pooled", the normalized mean, (batch, width); and "features".

    Args:
        count: vocabulary size, `tokenizer.count`.
        length: number of ids in a row, `tokenizer.length`.
        width: width of the residual stream, a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
        outputs: number of features.

    Raises:
        TypeError, ValueError: a size is invalid. `apply` raises if ids are not integers
            (batch, length) in 0 .. count - 1.

    >>> model = text_tower(5, 3, width=8, heads=2, outputs=4)
    >>> model.apply(model.init(jax.random.key(0)), jnp.array([[1, 4, 0]])).shape
    (1, 4)
    """
    blocks, length = transformer(width, depth, heads), _validation.integer("length", length, low=1)
    layers = {
        "embedding": backprop.embedding(count, width, initializer=normal(0.5)),
        "norm": backprop.layer_norm(width),
        "features": backprop.affine(width, _validation.integer("outputs", outputs, low=1)),
    }

    def init(key: jax.Array) -> dict[str, Any]:
        *keys, positions_key, blocks_key = jax.random.split(key, len(layers) + 2)
        return {
            **{name: layer.init(k) for (name, layer), k in zip(layers.items(), keys, strict=True)},
            "positions": normal(0.1)(positions_key, (length, width)),
            "blocks": blocks.init(blocks_key),
        }

    def apply(
        params: dict[str, Any], ids: Int[Array, "batch length"]
    ) -> Float[Array, "batch outputs"]:
        check_ids(ids, count, range(length, length + 1))
        visible = ids != PADDING

        def mean(stream: Float[Array, "batch length width"]) -> Float[Array, "batch width"]:
            tokens = jnp.maximum(visible.sum(1, keepdims=True), 1).astype(stream.dtype)
            return jnp.where(visible[..., None], stream, 0).sum(1) / tokens

        return encode_ids(layers, blocks, params, ids, mean, visible)

    return Model(init, apply)


def encode_ids(
    layers: dict[str, Layer],
    blocks: Model,
    params: dict[str, Any],
    ids: Int[Array, "batch length"],
    pool: Callable[[Float[Array, "batch length width"]], Float[Array, "batch width"]],
    visible: Bool[Array, "batch length"] | None = None,
) -> Float[Array, "batch outputs"]:
    """Apply a text encoder to token ids: embed, apply transformer blocks, pool, norm and project.

    `layers` are "embedding", "norm" and "features" (the projection), with parameters `params`.
    `pool` maps the output of the last block, (batch, length, width), to (batch, width). `visible`
    is True at the positions that attention may use; None for all.
    """
    run = lambda name, x: backprop.differentiable(layers[name])(params[name], x)
    tokens = tap(run("embedding", ids) + params["positions"][: ids.shape[1]], "tokens")
    transform: Callable[..., Array] = blocks.apply  # of more arguments than `Model` declares
    stream = transform(params["blocks"], tokens, visible)
    return tap(run("features", tap(run("norm", pool(stream)), "pooled")), "features")


def similarity(
    towers: Towers, images: Float[Array, "images height width channels"], texts: Sequence[str]
) -> Float[Array, "images texts"]:
    """Cosine similarity of each image to each text, in -1 .. 1.

    It is 0 where the features of the image or of the text are all zero.

    Args:
        towers: dual encoder.
        images: finite floats (images, height, width, channels) in 0 .. 1.
        texts: sequence of texts, which are compared with every image.

    Raises:
        TypeError, ValueError: towers are not `Towers` or have features of different lengths, images
            are invalid, texts is not a sequence of texts, or the tokenizer or the text encoder
            refuses a text.

    >>> from diffprog.contrastive import words
    >>> image = program(lambda images: images[:, 0, 0])
    >>> text = program(lambda ids: jnp.eye(3)[ids[:, 0], 1:])
    >>> pair = Towers(image, text, words(["green red"]), jnp.float32(0))
    >>> images = jnp.array([[[[0.0, 1.0]]], [[[0.3, 0.4]]]])
    >>> print(similarity(pair, images, ["green", "red"]).round(3))
    [[0.  1. ]
     [0.6 0.8]]
    """
    u, v = unit_features(towers, images, texts)
    return u @ v.T


def unit_features(
    towers: Towers, images: Any, texts: Sequence[str]
) -> tuple[Float[Array, "images width"], Float[Array, "texts width"]]:
    """Return a pair: unit-length features of images (pixels in 0 .. 1), and those of texts."""
    x, ids = _check_image_batch(towers, images), encode_texts(towers, texts)
    _validation.within("images", images, 0, 1)
    check_feature_shapes(
        _unit_features.eval_shape(towers.image, x[:_BATCH_SIZE]),
        _unit_features.eval_shape(towers.text, ids[:_BATCH_SIZE]),
    )
    return _apply_in_batches(towers.image, x), _apply_in_batches(towers.text, ids)


def unit_image_features(towers: Towers, images: Any) -> Float[Array, "images width"]:
    """Return the unit-length features of images, without a check that pixels are in 0 .. 1."""
    return _apply_in_batches(towers.image, _check_image_batch(towers, images))


def unit_text_features(towers: Towers, texts: Sequence[str]) -> Float[Array, "texts width"]:
    """Return the unit-length features of texts."""
    return _apply_in_batches(towers.text, encode_texts(towers, texts))


def encode_texts(towers: Towers, texts: Sequence[str]) -> Int[Array, "texts length"]:
    """Return the token ids (texts, length) of texts, checked to be valid for the text encoder."""
    check_towers(towers)
    ids = np.asarray(towers.tokenizer.encode(check_texts("texts", texts)))
    _check_text_encoder("towers.text", towers.text, int(ids.max()), ids.shape[1])
    return jnp.asarray(ids)


def _check_image_batch(towers: Towers, images: Any) -> Float[Array, "images height width channels"]:
    check_towers(towers)
    _validation.floating("images", images, rank=4)
    _validation.batch(images=images)
    _validation.finite("images", images)
    return jnp.asarray(images)


def _apply_in_batches(encoder: Program, x: Array) -> Float[Array, "batch width"]:
    starts = range(0, len(x), _BATCH_SIZE)
    return jnp.concatenate([_unit_features(encoder, x[k : k + _BATCH_SIZE]) for k in starts])


@jax.jit
def _unit_features(encoder: Program, x: Array) -> Float[Array, "batch width"]:
    return normalize(encoder(x))


def check_towers(value: Any) -> None:
    """Check that `value` is `Towers`: two encoders of type `Program`, and a tokenizer."""
    if not isinstance(value, Towers):
        raise TypeError(f"towers must be Towers, got {type(value).__name__}")
    for name, encoder in (("image", value.image), ("text", value.text)):
        if not isinstance(encoder, Program):
            raise TypeError(
                f"towers.{name} must be a Program, from diffprog.program, "
                f"got {type(encoder).__name__}"
            )
    _check_tokenizer(value.tokenizer)


def check_feature_shapes(image: Any, text: Any) -> None:
    """Check that image features are (batch, width), and that text features have the same width."""
    if image.ndim != 2 or image.shape[1:] != text.shape[1:]:
        raise ValueError(
            f"towers must have features of one length, got {list(image.shape)} for images and "
            f"{list(text.shape)} for texts"
        )


def _check_tokenizer(tokenizer: Any) -> None:
    methods = (getattr(tokenizer, name, None) for name in ("encode", "decode"))
    if not all(map(callable, methods)) or jax.tree.leaves(tokenizer):
        raise TypeError(
            "tokenizer must have methods encode and decode and be a pytree without leaves, "
            f"got {type(tokenizer).__name__}"
        )


def _check_text_encoder(name: str, encoder: Program, largest: int, length: int) -> None:
    """Check that a text encoder accepts rows of `length` ids with values up to `largest`.

    Under `jax.jit` the values of ids are unknown, and an id outside the vocabulary would silently
    be clipped to another. So the encoder is traced, without running it, on a constant row of the
    largest id, whose value the encoder's own check can see. Errors call the encoder `name`.
    """
    leaves, structure = jax.tree.flatten(encoder)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    error = _text_encoder_error(structure, shapes, largest, length)
    if error is not None:
        raise ValueError(
            f"{name} must accept the tokenizer's rows of {length} ids up to {largest}: {error}"
        )


@functools.lru_cache(maxsize=64)
def _text_encoder_error(
    structure: Any, shapes: tuple[Any, ...], largest: int, length: int
) -> str | None:
    with jax.ensure_compile_time_eval():
        row = jnp.full((1, length), largest, jnp.int32)
    encoder = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*shape) for shape in shapes])
    try:
        jax.eval_shape(lambda encoder: encoder(row), encoder)
    except ValueError as error:
        return str(error)
    return None
