"""Text-to-image generation by gradient ascent on the similarity of an image to texts.

    x* = argmax_x  Σ_k w_k similarity(x, t_k) - Σ_R λ R(x)

The t_k are texts with weights w_k; a negative weight makes the image dissimilar to a text. Each
penalty R has a coefficient λ. This is `visualize` with a cosine objective: with unit features u of
the image and v_k of the texts, Σ_k w_k <u, v_k> = <u, Σ_k w_k v_k>.

High similarity does not mean that an image shows what the prompt says: without constraints, ascent
finds adversarial images. Parametrization, transforms and penalties decide how recognizable images
are; see `experiments/text_to_image.py`.

Source: lecture 000, last example.
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
    check_towers,
    unit_image_features,
    unit_text_features,
)
from diffprog.contrastive._info_nce import normalize
from diffprog.visualization import Image, Objective, Request, Visualization

Prompt = str | Mapping[str, float]

_WEIGHTED_TEXT = re.compile(r"(.*\S)\s*:\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", re.DOTALL)
# What follows a colon and was probably meant as a weight: nothing, a sign, a digit, nan or inf.
_LIKELY_WEIGHT = re.compile(r"[-+]*(?:$|\.?\d|nan\b|inf(?:inity)?\b)", re.IGNORECASE)
# Relative length below which a weighted sum of unit vectors is rounding error of float32.
_CANCELLATION = 1e-5
# Sizes at which squared gradients neither overflow nor vanish beside the epsilon of Adam.
_MIN_WEIGHT, _MAX_WEIGHT = 1e-6, 1e6


class Generated(NamedTuple):
    """Result of `generate`: an image for each prompt, and its similarity to the prompt's texts.

    Attributes:
        images: (n, height, width, channels), with the pixel range of the parametrization.
        names: the n prompts.
        similarities: for each image a dict from the texts of its prompt to cosine similarities.
        seen: result of `visualize`: scores (weighted sums of similarities), history, ...
    """

    images: Float[Array, "n height width channels"]
    names: tuple[str, ...]
    similarities: tuple[dict[str, float], ...]
    seen: Visualization

    def __str__(self) -> str:
        """Return one line for each image: its prompt, and its similarity to each text of it."""
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
    """Generate images by gradient ascent on their similarity to text prompts.

    Args:
        towers: dual encoder.
        text: one prompt, or a sequence of prompts for one image each. A prompt is a text, weighted
            texts as "a seven:1 | a one:-0.5", or a dict {"a seven": 1, "a one": -0.5}. The default
            weight is 1; use a dict for a text that ends in a colon and a number. Weights are
            relative to those of penalties; the largest must be 1e-6 to 1e6 in size.
        image: parametrization of the image to optimize, such as `visualization.covariance(...)`,
            `fourier(...)` or `pixels(...)`.
        key: PRNG key, for initial images and transforms.
        transforms: functions (image, key) -> image applied before the encoder, as of `visualize`.
        options: other arguments of `visualization.visualize`: `steps`, `penalties`, `optimizer`,
            `start`, ...

    Raises:
        TypeError, ValueError: a prompt is invalid, a weight is not a finite number, weighted texts
            cancel, the tokenizer refuses a text, towers are traced (under `jax.jit`), or
            `visualize` refuses an argument.

    >>> from diffprog.contrastive import text_tower, towers, words
    >>> from diffprog.models import cnn
    >>> tokenizer = words(["a seven", "a one"])
    >>> encoder = text_tower(tokenizer.count, 2, outputs=8)
    >>> pair = towers(cnn((8, 8, 1), classes=8), encoder, tokenizer, key=jax.random.key(0))
    >>> prompts, image = ["a seven", "a seven:1 | a one:-0.5"], visualization.fourier((8, 8, 1))
    >>> result = generate(pair, prompts, image, key=jax.random.key(1), steps=2)
    >>> result.images.shape, result.names
    ((2, 8, 8, 1), ('a seven', 'a seven:1 | a one:-0.5'))
    """
    check_towers(towers)
    _validation.concrete("towers", towers, "call generate outside the transformation")
    prompts = _parse_prompts(text)
    objective = _similarity_objective(towers, prompts)
    result = visualization.visualize(
        towers.image, objective, image, key=key, transforms=transforms, **options
    )
    # Transforms may change the size of an image to that of the encoder's input.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(result.images)))
    transformed = jax.vmap(visualization.compose(transforms))(result.images, keys)
    same_size = transformed.shape == result.images.shape
    features = unit_image_features(towers, result.images if same_size else transformed)
    texts = _distinct_texts(prompts)
    similarities = tuple(
        {text: float(row[texts.index(text)]) for text in prompt}
        for prompt, row in zip(prompts, features @ unit_text_features(towers, texts).T, strict=True)
    )
    return Generated(result.images, result.names, similarities, result)


def similar_to(towers: Towers, text: Prompt | Sequence[Prompt]) -> Objective:
    """Visualization objective: weighted cosine similarity to texts, Σ_k w_k cos(image, text_k).

    Pass it to `visualize` with the image encoder `towers.image`; it can be added to other
    objectives.

    Args:
        towers: dual encoder.
        text: one prompt or a sequence of prompts, as of `generate`.

    Raises:
        TypeError, ValueError: as `generate`. Evaluating the objective raises if the outputs of the
            visualized network and the text features differ in length.

    >>> from diffprog.contrastive import text_tower, towers, words
    >>> from diffprog.models import cnn
    >>> tokenizer = words(["a seven"])
    >>> encoder = text_tower(tokenizer.count, 2, outputs=8)
    >>> pair = towers(cnn((8, 8, 1), classes=8), encoder, tokenizer, key=jax.random.key(0))
    >>> (similar_to(pair, "a seven") + 0.1 * visualization.diversity("conv2")).names
    ('a seven + diversity of conv2 * 0.1',)
    """
    check_towers(towers)
    return _similarity_objective(towers, _parse_prompts(text))


def _distinct_texts(prompts: tuple[dict[str, float], ...]) -> list[str]:
    return sorted({text for prompt in prompts for text in prompt})


def _similarity_objective(towers: Towers, prompts: tuple[dict[str, float], ...]) -> Objective:
    texts = _distinct_texts(prompts)
    features = unit_text_features(towers, texts)
    weights = [[prompt.get(text, 0.0) for text in texts] for prompt in prompts]
    directions = jnp.asarray(weights, features.dtype) @ features
    if (known := _validation.values(directions)) is not None:
        lengths = np.linalg.norm(known.astype(float), axis=1)
        for prompt, length, row in zip(prompts, lengths, weights, strict=True):
            if not length > _CANCELLATION * sum(map(abs, row)):
                raise ValueError(
                    f"text must not cancel, got {_format_prompt(prompt)!r}, whose weighted "
                    "features add up to 0"
                )
    names = tuple(map(_format_prompt, prompts))
    return Objective((Request(None, None),), directions, _cosine_to_direction, names)


def _cosine_to_direction(
    values: Sequence[Array], directions: Float[Array, "batch width"]
) -> Float[Array, "batch"]:
    features = values[0]
    if features.ndim != 2 or features.shape[1] != directions.shape[1]:
        raise ValueError(
            f"the program must have outputs (batch, {directions.shape[1]}), like the text "
            f"features, got {list(features.shape)}"
        )
    return (normalize(features) * directions).sum(1)


def _parse_prompts(text: Any) -> tuple[dict[str, float], ...]:
    if isinstance(text, str | Mapping):
        return (_parse_prompt("text", text),)
    if not isinstance(text, Sequence):
        raise TypeError(
            f"text must be a prompt or a sequence of prompts, got {type(text).__name__}"
        )
    if not text:
        raise ValueError("text must hold at least one prompt, got none")
    return tuple(_parse_prompt(f"text[{k}]", prompt) for k, prompt in enumerate(text))


def _parse_prompt(name: str, prompt: Any) -> dict[str, float]:
    """Return a dict from the texts of a prompt to weights, added up for repeated texts."""
    if isinstance(prompt, str):
        weighted_texts = [_parse_weighted_text(name, part.strip()) for part in prompt.split("|")]
    elif isinstance(prompt, Mapping):
        weighted_texts = list(prompt.items())
    else:
        raise TypeError(
            f"{name} must be a text or a dict from texts to weights, got {type(prompt).__name__}"
        )
    weights: dict[str, float] = {}
    for text, weight in weighted_texts:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} must hold nonempty texts, got {text!r}")
        weight = _validation.number(f"the weight of {text!r}", weight)
        weights[text.strip()] = weights.get(text.strip(), 0.0) + weight
    if not any(weights.values()):
        raise ValueError(f"{name} must have a nonzero weight, got {prompt!r}")
    if not _MIN_WEIGHT <= max(map(abs, weights.values())) <= _MAX_WEIGHT:
        raise ValueError(
            f"{name} must have a largest weight of size {_MIN_WEIGHT:g} .. {_MAX_WEIGHT:g}, "
            f"got {prompt!r}"
        )
    return weights


def _parse_weighted_text(name: str, part: str) -> tuple[str, float]:
    if (match := _WEIGHTED_TEXT.fullmatch(part)) and math.isfinite(float(match[2])):
        return match[1], float(match[2])
    _, colon, end = part.rpartition(":")
    if match or (colon and _LIKELY_WEIGHT.match(end.strip())):
        raise ValueError(
            f"{name} must have a finite number as weight after the colon of a text, got {part!r}"
        )
    return part, 1.0


def _format_prompt(prompt: dict[str, float]) -> str:
    if list(prompt.values()) == [1.0]:
        return next(iter(prompt))
    return " | ".join(f"{text}:{weight:g}" for text, weight in prompt.items())
