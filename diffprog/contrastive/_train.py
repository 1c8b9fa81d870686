"""Contrastive pre-training: descent on both towers, so that images and the sentences that are true of them point the same way.

Every image comes with a list of sentences, of which each step draws one. Which pairs of a batch belong together is read off the lists: text
j is true of image i if it is in the list of image i, whoever it was drawn for. So "a seven", drawn for one seven, counts for every other
seven in the batch, and "a thin seven" for the thin ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from diffprog import _validation, training
from diffprog.contrastive._dual_encoder import Towers, encoded, require_one_length, require_towers
from diffprog.contrastive._info_nce import info_nce, sigmoid_loss
from diffprog.contrastive._tokenizers import require_texts
from diffprog.pretrained._safetensors import dtype_of
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
    """Descend on towers: InfoNCE, or the sigmoid loss for towers that have a bias.

    Args:
        towers: to start from.
        images: finite floats in 0 .. 1.
        captions: for each image, all the sentences that are true of it; one that stands there twice is drawn twice as often.
        key: a random key: for order, sentences and transforms.
        epochs: how often each image is seen.
        batch_size: how many pairs are told apart at a step.
        optimizer: any optax optimizer; Adam with rate 0.001, annealed to 0 by a cosine, by default.
        transforms: what happens to each image before it is seen, as in `visualize`: what the towers are to overlook.
        compute_dtype: such as `jnp.bfloat16`, of both towers; temperature, bias and loss keep theirs, float32 at least.
        progress: a bar; None shows it for long runs on a terminal.

    Returns:
        A `training.Fit` whose `params` are the trained `Towers`.

    Raises:
        TypeError, ValueError: towers, images, captions or a transform that are none; lists of captions that are not one for each image, or
            hold none or what the tokenizer refuses; what `training.fit` refuses.

    >>> from diffprog.contrastive import similarity, text_tower, towers, words
    >>> from diffprog.models import cnn
    >>> known = words(["dark", "light"])
    >>> start = towers(cnn((2, 2, 1), channels=(4,), classes=4), text_tower(3, 1, outputs=4), known, key=jax.random.key(0))
    >>> images = jnp.linspace(0, 1, 8)[:, None, None, None] * jnp.ones((8, 2, 2, 1))
    >>> fit = pretrain(start, images, [["dark"]] * 4 + [["light"]] * 4, key=jax.random.key(1), epochs=60, batch_size=8)
    >>> similarity(fit.params, images[::7], ["dark", "light"]).argmax(1)
    Array([0, 1], dtype=int32)
    """
    require_towers(towers)
    _validation.floating("images", images, rank=4)
    _validation.batch(images=images)
    _validation.within("images", images, 0, 1)
    if not isinstance(transforms, Sequence):
        raise TypeError(
            f"transforms must be a sequence of functions (image, key) -> image, got {type(transforms).__name__}"
        )
    compute_dtype = None if compute_dtype is None else dtype_of(compute_dtype, "compute_dtype")
    own, ids = _own(towers, captions, len(images))
    require_one_length(jax.eval_shape(towers.image, images), jax.eval_shape(towers.text, ids))
    if optimizer is None:
        steps = max(
            1,
            int(
                _validation.number("epochs", epochs, above=0)
                * len(images)
                / _validation.integer("batch_size", batch_size, low=1)
            ),
        )
        optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    return training.fit(
        pairs_loss(ids, transforms, compute_dtype),
        towers,
        (images, own),
        key=key,
        optimizer=optimizer,
        batch_size=batch_size,
        epochs=epochs,
        progress=progress,
    )


def pairs_loss(
    ids: Int[np.ndarray, "texts length"], transforms: Sequence[Any], dtype: Any = None
) -> Callable[..., Float[Array, "batch"]]:
    """(towers, images, own, key) -> the loss of each pair, with one of its own texts drawn for each image."""
    seen_as, table = compose(transforms), jnp.asarray(ids)

    def loss(
        towers: Towers, images: Array, own: Int[Array, "batch most"], *, key: jax.Array
    ) -> Float[Array, "batch"]:
        text_key, image_key = jax.random.split(key)
        drawn = _drawn(own, text_key)
        seen = jax.vmap(seen_as)(images, jax.random.split(image_key, len(images)))
        # The towers alone: a temperature rounded to 8 bits would not move at the rates it is learned at.
        image, text, seen = _rounded((towers.image, towers.text, seen), dtype)
        features = image(seen), text(table[drawn])
        positive = (own[:, None, :] == drawn[None, :, None]).any(-1)
        if towers.bias is None:
            return info_nce(*features, towers.log_scale, positive=positive)
        return sigmoid_loss(*features, towers.log_scale, towers.bias, positive=positive)

    return loss


def _rounded(tree: Any, dtype: Any) -> Any:
    rounds = lambda leaf: dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if rounds(leaf) else leaf, tree)


def _drawn(own: Int[Array, "batch most"], key: jax.Array) -> Int[Array, "batch"]:
    """One of each row's texts; rows are filled up with -1."""
    counts = (own >= 0).sum(1)
    return jnp.take_along_axis(own, jax.random.randint(key, counts.shape, 0, counts)[:, None], 1)[
        :, 0
    ]


def _own(
    towers: Towers, captions: Any, count: int
) -> tuple[Int[np.ndarray, "images most"], Int[np.ndarray, "texts length"]]:
    """Which texts each image has, by number, and the ids of all texts, each there once."""
    if isinstance(captions, str) or not isinstance(captions, Sequence):
        raise TypeError(
            f"captions must be a list of texts for each image, got {type(captions).__name__}"
        )
    if len(captions) != count:
        raise ValueError(
            f"captions must be one list for each of {count} images, got {len(captions)}"
        )
    for k, texts in enumerate(captions):
        require_texts(f"captions[{k}]", texts)
    numbers = {
        text: k for k, text in enumerate(sorted({text for texts in captions for text in texts}))
    }
    own = np.full((count, max(map(len, captions))), -1, np.int32)
    for row, texts in zip(own, captions, strict=True):
        row[: len(texts)] = [numbers[text] for text in texts]
    return own, np.asarray(encoded(towers, list(numbers)))
