"""Images from sentences: ascent on the similarity of an image to a text (lecture 000's last example).

    x* = argmax_x  Σ_k w_k similarity(x, t_k) - Σ_R λ R(x)

which is `visualize` with one more objective: the cosine to one direction, because Σ_k w_k <u, v_k> = <u, Σ_k w_k v_k>. A weight below zero
says what the image shall not be like.

That an image is similar says little: towers are fooled as any network is, and the highest similarity belongs to the worst images. What an
image is painted from, what it is seen through and what is subtracted decide whether another reader sees in it what was asked for; see
`experiments/text_to_image.py`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffprog import _validation, visualization
from diffprog.contrastive._dual_encoder import (
    Towers,
    image_directions,
    require_towers,
    text_directions,
)
from diffprog.contrastive._info_nce import unit_length
from diffprog.visualization import Image, Objective, Request, Visualization

Prompt = str | Mapping[str, float]

_WEIGHT = re.compile(r"(.*\S)\s*:\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", re.DOTALL)

_LIKE_A_WEIGHT = re.compile(r"[-+]*(?:$|\.?\d|nan\b|inf(?:inity)?\b)", re.IGNORECASE)
# What float32 leaves of a difference of two equal directions, with room to spare.
_CANCELLED = 1e-5
# Where squares of gradients stay far from the ends of float32, and from the epsilon of Adam.
_LEAST, _MOST = 1e-6, 1e6


class Generated(NamedTuple):
    """Images made for prompts.

    Attributes:
        images: (n, height, width, channels), in the range of the parametrization.
        names: the prompts.
        similarities: for each image the cosine to each text of its prompt.
        seen: all that `visualize` tells: scores (the weighted sums), history, endings, variables.
    """

    images: Float[Array, "n height width channels"]
    names: tuple[str, ...]
    similarities: tuple[dict[str, float], ...]
    seen: Visualization

    def __str__(self) -> str:
        """A line for each image."""
        rows = zip(self.names, self.similarities, strict=True)
        return "\n".join(
            f"{name}: " + ", ".join(f"{text} {cosine:.3f}" for text, cosine in row.items())
            for name, row in rows
        )


def generate(
    towers: Towers,
    text: Prompt | Sequence[Prompt],
    image: Image,
    *,
    key: jax.Array,
    transforms: Sequence[Callable[[Array, jax.Array], Array]] = (),
    **options: Any,
) -> Generated:
    """The images that prompts ask for, by ascent on the weighted sum of the similarities.

    Args:
        towers: `Towers`.
        text: a prompt, or several for one image each. A prompt is a sentence, weighted sentences as "a seven:1 | a one:-0.5", or a dict of
            weights {"a seven": 1, "a one": -0.5}. A sentence without a weight has 1; one that ends in a colon and a number is for a dict.
            Weights count as they are against penalties, and the largest has a size of 1e-6 to 1e6, in which float32 can ascend.
        image: what an image is painted from: `visualization.covariance` of real images, `fourier`, `pixels`, ...
        key: a random key.
        transforms: what happens to an image before the tower sees it, as in `visualize`.
        options: the others of `visualization.visualize`: `steps`, `penalties`, `optimizer`, `start`, ...

    Raises:
        TypeError, ValueError: prompts that are none, weights that are no finite numbers or under which the texts cancel, texts that the
            tokenizer refuses, towers that are traced, whatever `visualize` refuses.

    >>> from diffprog.contrastive import text_tower, towers, words
    >>> from diffprog.models import cnn
    >>> known = words(["a seven", "a one"])
    >>> pair = towers(cnn((8, 8, 1), classes=8), text_tower(known.count, 2, outputs=8), known, key=jax.random.key(0))
    >>> made = generate(pair, ["a seven", "a seven:1 | a one:-0.5"], visualization.fourier((8, 8, 1)), key=jax.random.key(1), steps=2)
    >>> made.images.shape, made.names
    ((2, 8, 8, 1), ('a seven', 'a seven:1 | a one:-0.5'))
    """
    require_towers(towers)
    _validation.concrete("towers", towers, "generate outside the transformation")
    prompts = _prompts(text)
    seen = visualization.visualize(
        towers.image, _objective(towers, prompts), image, key=key, transforms=transforms, **options
    )
    return Generated(
        seen.images,
        seen.names,
        _similarities(towers, _shown(seen.images, transforms, key), prompts),
        seen,
    )


def similar_to(towers: Towers, text: Prompt | Sequence[Prompt]) -> Objective:
    """Σ_k w_k cos(image, text_k): an objective of `towers.image`, to be put together with others.

    Args:
        towers, text: as `generate` has them.

    Raises:
        TypeError, ValueError: as `generate`; at the call, a program whose output is not as long as the texts' features.

    >>> from diffprog.contrastive import text_tower, towers, words
    >>> from diffprog.models import cnn
    >>> known = words(["a seven"])
    >>> pair = towers(cnn((8, 8, 1), classes=8), text_tower(known.count, 2, outputs=8), known, key=jax.random.key(0))
    >>> (similar_to(pair, "a seven") + 0.1 * visualization.diversity("conv2")).names
    ('a seven + diversity of conv2 * 0.1',)
    """
    require_towers(towers)
    return _objective(towers, _prompts(text))


def _objective(towers: Towers, prompts: tuple[dict[str, float], ...]) -> Objective:
    texts = sorted({text for prompt in prompts for text in prompt})
    directions = text_directions(towers, texts)
    weights = jnp.asarray(
        [[prompt.get(text, 0.0) for text in texts] for prompt in prompts], directions.dtype
    )
    toward = weights @ directions
    _check_toward(prompts, weights, toward)
    return Objective((Request(None, None),), toward, _cosines, tuple(map(_name, prompts)))


def _check_toward(
    prompts: tuple[dict[str, float], ...],
    weights: Float[Array, "batch texts"],
    toward: Float[Array, "batch width"],
) -> None:
    if (known := _validation.values(toward)) is None:
        return
    lengths, most = (
        np.linalg.norm(known.astype(float), axis=1),
        np.abs(np.asarray(weights, float)).sum(1),
    )
    for prompt, length, sum_of_weights in zip(prompts, lengths, most, strict=True):
        if not length > _CANCELLED * sum_of_weights:
            raise ValueError(
                f"text must ask for something, got {_name(prompt)!r}, of which the texts' directions add up to 0"
            )


def _cosines(values: Sequence[Array], toward: Float[Array, "batch width"]) -> Float[Array, "batch"]:
    features = values[0]
    if features.ndim != 2 or features.shape[1] != toward.shape[1]:
        raise ValueError(
            f"the program must have outputs (batch, {toward.shape[1]}), as the texts' features, got {list(features.shape)}"
        )
    return (unit_length(features) * toward).sum(1)


def _shown(images: Array, transforms: Sequence[Any], key: jax.Array) -> Array:
    """The images; as one draw of transforms shows them where those change the size, which the tower may need."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
    shown = jax.vmap(visualization.compose(transforms))(images, keys)
    return images if shown.shape == images.shape else shown


def _similarities(
    towers: Towers, images: Array, prompts: tuple[dict[str, float], ...]
) -> tuple[dict[str, float], ...]:
    texts = sorted({text for prompt in prompts for text in prompt})
    cosines = image_directions(towers, images) @ text_directions(towers, texts).T
    return tuple(
        {text: float(row[texts.index(text)]) for text in prompt}
        for prompt, row in zip(prompts, cosines, strict=True)
    )


def _prompts(text: Any) -> tuple[dict[str, float], ...]:
    if isinstance(text, str | Mapping):
        return (_prompt("text", text),)
    if not isinstance(text, Sequence):
        raise TypeError(
            f"text must be a prompt or a sequence of prompts, got {type(text).__name__}"
        )
    if not text:
        raise ValueError("text must hold at least one prompt, got none")
    return tuple(_prompt(f"text[{k}]", prompt) for k, prompt in enumerate(text))


def _prompt(name: str, prompt: Any) -> dict[str, float]:
    """Weights by sentence."""
    if not isinstance(prompt, str | Mapping):
        raise TypeError(
            f"{name} must be a sentence or a dict of weights by sentence, got {type(prompt).__name__}"
        )
    parts = (
        [_weighted(name, part) for part in prompt.split("|")]
        if isinstance(prompt, str)
        else list(prompt.items())
    )
    weights: dict[str, float] = {}
    for sentence, weight in parts:
        if not isinstance(sentence, str) or not sentence.strip():
            raise ValueError(f"{name} must hold sentences, got {sentence!r}")
        weights[sentence.strip()] = weights.get(sentence.strip(), 0.0) + _validation.number(
            f"the weight of {sentence!r}", weight
        )
    if not any(weights.values()):
        raise ValueError(f"{name} must have a weight that is not 0, got {prompt!r}")
    if not _LEAST <= max(map(abs, weights.values())) <= _MOST:
        raise ValueError(
            f"{name} must have a largest weight of size {_LEAST:g} .. {_MOST:g}, got {prompt!r}"
        )
    return weights


def _weighted(name: str, part: str) -> tuple[str, float]:
    found, (_, colon, weight) = _WEIGHT.fullmatch(part.strip()), part.rpartition(":")
    if (found is None and colon and _LIKE_A_WEIGHT.match(weight.strip())) or (
        found and not math.isfinite(float(found[2]))
    ):
        raise ValueError(
            f"{name} must have a finite number for a weight behind the colon of a sentence, got {part.strip()!r}"
        )
    return (part, 1.0) if found is None else (found[1], float(found[2]))


def _name(prompt: dict[str, float]) -> str:
    """As it would be written."""
    if list(prompt.values()) == [1.0]:
        return next(iter(prompt))
    return " | ".join(f"{text}:{weight:g}" for text, weight in prompt.items())
