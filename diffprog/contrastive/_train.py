"""Contrastive pre-training of a dual encoder on images with captions.

Each image has a list of captions, of which a step samples one. A pair (image i, text j) of the
batch is positive if text j is in the list of image i, whichever image it was sampled for: "a seven"
is positive for every seven in the batch, "a thin seven" for the thin ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from diffprog import _validation, training
from diffprog.contrastive._dual_encoder import (
    Towers,
    check_feature_shapes,
    check_towers,
    encode_texts,
)
from diffprog.contrastive._info_nce import info_nce, sigmoid_loss
from diffprog.contrastive._tokenizers import check_texts
from diffprog.pretrained._safetensors import check_dtype
from diffprog.visualization import compose


def pretrain(
    towers: Towers,
    images: Float[Array, "images height width channels"],
    captions: Sequence[Sequence[str]],
    *,
    key: jax.Array,
    epochs: float,
    batch_size: int = 128,
    optimizer: optax.GradientTransformation | None = None,
    transforms: Sequence[Callable[[Array, jax.Array], Array]] = (),
    compute_dtype: Any = None,
    progress: bool | None = None,
) -> training.Fit:
    """Train a dual encoder with InfoNCE, or with the sigmoid loss if it has a bias.

    Args:
        towers: initial dual encoder.
        images: finite floats (images, height, width, channels) in 0 .. 1.
        captions: for each image, all captions that describe it; a caption that is listed twice is
            sampled twice as often.
        key: PRNG key, for the order of images, the sampled captions and the transforms.
        epochs: number of passes over the images.
        batch_size: number of pairs in a batch.
        optimizer: optax optimizer; default: Adam with a cosine decay of the learning rate from
            0.001 to 0.
        transforms: data augmentation, functions (image, key) -> image as of `visualize`.
        compute_dtype: dtype of both encoders' computation, such as `jnp.bfloat16`; temperature,
            bias and loss are at least float32.
        progress: whether to show a progress bar; None shows it for long runs on a terminal.

    Returns:
        A `training.Fit` whose `params` are the trained `Towers`.

    Raises:
        TypeError, ValueError: towers, images or a transform are invalid, captions are not one
            nonempty list for each image, the tokenizer refuses a caption, or `training.fit` refuses
            an argument.

    >>> from diffprog.contrastive import similarity, text_tower, towers, words
    >>> from diffprog.models import cnn
    >>> image, text = cnn((2, 2, 1), channels=(4,), classes=4), text_tower(3, 1, outputs=4)
    >>> start = towers(image, text, words(["dark", "light"]), key=jax.random.key(0))
    >>> images = jnp.linspace(0, 1, 8)[:, None, None, None] * jnp.ones((8, 2, 2, 1))
    >>> captions = [["dark"]] * 4 + [["light"]] * 4
    >>> fit = pretrain(start, images, captions, key=jax.random.key(1), epochs=60, batch_size=8)
    >>> similarity(fit.params, images[::7], ["dark", "light"]).argmax(1)
    Array([0, 1], dtype=int32)
    """
    check_towers(towers)
    _validation.floating("images", images, rank=4)
    _validation.batch(images=images)
    _validation.within("images", images, 0, 1)
    if not isinstance(transforms, Sequence):
        raise TypeError(
            "transforms must be a sequence of functions (image, key) -> image, "
            f"got {type(transforms).__name__}"
        )
    compute_dtype = None if compute_dtype is None else check_dtype(compute_dtype, "compute_dtype")
    caption_indices, ids = index_captions(towers, captions, len(images))
    check_feature_shapes(jax.eval_shape(towers.image, images), jax.eval_shape(towers.text, ids))
    if optimizer is None:
        epochs = _validation.number("epochs", epochs, above=0)
        batch_size = _validation.integer("batch_size", batch_size, low=1)
        steps = max(1, int(epochs * len(images) / batch_size))
        optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    return training.fit(
        make_loss(ids, transforms, compute_dtype),
        towers,
        (images, caption_indices),
        key=key,
        optimizer=optimizer,
        batch_size=batch_size,
        epochs=epochs,
        progress=progress,
    )


def make_loss(
    ids: Int[np.ndarray, "texts length"], transforms: Sequence[Any], dtype: Any = None
) -> Callable[..., Float[Array, "batch"]]:
    """Return the contrastive loss (towers, images, caption_indices, key) -> (batch,).

    It is a loss for `training.fit`. It applies `transforms` to each image, and samples one of its
    captions. `ids` are the token ids of all captions; `caption_indices` has for each image the
    rows of its captions in `ids`, padded with -1. Both encoders compute in `dtype`; None keeps
    that of the weights.
    """
    transform, table = compose(transforms), jnp.asarray(ids)

    def cast(leaf: Array) -> Array:
        floating = dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if floating else leaf

    def loss(
        towers: Towers, images: Array, caption_indices: Int[Array, "batch most"], *, key: jax.Array
    ) -> Float[Array, "batch"]:
        text_key, image_key = jax.random.split(key)
        sampled = sample_captions(caption_indices, text_key)
        images = jax.vmap(transform)(images, jax.random.split(image_key, len(images)))
        # Not log_scale and bias: rounded to 8 bits, they would not change at their learning rates.
        image, text, images = jax.tree.map(cast, (towers.image, towers.text, images))
        features = image(images), text(table[sampled])
        positive = (caption_indices[:, None, :] == sampled[None, :, None]).any(-1)
        if towers.bias is None:
            return info_nce(*features, towers.log_scale, positive=positive)
        return sigmoid_loss(*features, towers.log_scale, towers.bias, positive=positive)

    return loss


def sample_captions(
    caption_indices: Int[Array, "batch most"], key: jax.Array
) -> Int[Array, "batch"]:
    """Return one entry of each row of `caption_indices`, sampled uniformly; -1 is padding."""
    counts = (caption_indices >= 0).sum(1)
    columns = jax.random.randint(key, counts.shape, 0, counts)
    return jnp.take_along_axis(caption_indices, columns[:, None], 1)[:, 0]


def index_captions(
    towers: Towers, captions: Any, count: int
) -> tuple[Int[np.ndarray, "images most"], Int[np.ndarray, "texts length"]]:
    """Return the caption indices of each image, and the token ids of all distinct captions.

    `captions` has a list of texts for each of `count` images. Caption indices are rows of the ids,
    (images, largest number of captions), padded with -1.
    """
    if isinstance(captions, str) or not isinstance(captions, Sequence):
        raise TypeError(
            f"captions must be a list of texts for each image, got {type(captions).__name__}"
        )
    if len(captions) != count:
        raise ValueError(f"captions must be {count} lists, one per image, got {len(captions)}")
    for k, texts in enumerate(captions):
        check_texts(f"captions[{k}]", texts)
    distinct = sorted({text for texts in captions for text in texts})
    index = {text: k for k, text in enumerate(distinct)}
    caption_indices = np.full((count, max(map(len, captions))), -1, np.int32)
    for row, texts in zip(caption_indices, captions, strict=True):
        row[: len(texts)] = [index[text] for text in texts]
    return caption_indices, np.asarray(encode_texts(towers, distinct))
