"""Zero-shot classification and image-text retrieval with a dual encoder."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffprog import _validation
from diffprog.contrastive._dual_encoder import Towers, similarity, unit_features
from diffprog.contrastive._info_nce import inverse_temperature, normalize
from diffprog.contrastive._tokenizers import check_texts

Images = Float[Array, "images height width channels"]


class Classified(NamedTuple):
    """Result of zero-shot classification.

    Attributes:
        labels: predicted class of each image, an index into `names`.
        probabilities: of the classes for each image, softmax of the scaled similarities.
        names: names of the classes.
    """

    labels: Int[Array, "images"]
    probabilities: Float[Array, "images classes"]
    names: tuple[str, ...]


def zero_shot(
    towers: Towers, images: Images, classes: Mapping[str, Sequence[str]] | Sequence[str]
) -> Classified:
    """Classify images zero-shot, by their similarity to prompts for each class.

        p(class k) = softmax_k s <u, m_k>

    u are the unit features of the image, m_k is the normalized mean of the unit features of the
    prompts for class k, and s is the inverse temperature, at most 100 as in training (CLIPModel of
    `transformers` does not bound it).

    Args:
        towers: dual encoder.
        images: finite floats (images, height, width, channels) in 0 .. 1.
        classes: one prompt for each class, or a dict from the name of a class to its prompts
            (a prompt ensemble).

    Raises:
        TypeError, ValueError: towers or images are invalid, classes is empty or has a class without
            prompts, or the tokenizer refuses a prompt.

    Source: A. Radford et al., "Learning transferable visual models from natural language
    supervision", 2021.

    >>> from diffprog.contrastive import text_tower, towers, words
    >>> from diffprog.models import cnn
    >>> tokenizer = words(["a seven", "a one"])
    >>> text = text_tower(tokenizer.count, 2, outputs=8)
    >>> pair = towers(cnn((8, 8, 1), classes=8), text, tokenizer, key=jax.random.key(0))
    >>> prompts = {"7": ["seven", "a seven"], "1": ["one"]}
    >>> zero_shot(pair, jnp.zeros((5, 8, 8, 1)), prompts).probabilities.shape
    (5, 2)
    """
    if isinstance(classes, Mapping):
        if not classes:
            raise ValueError("classes must hold at least one class, got none")
        prompts = {k: check_texts(f"classes[{k!r}]", texts) for k, texts in classes.items()}
    else:
        prompts = {text: (text,) for text in check_texts("classes", classes)}
        if len(prompts) < len(classes):
            repeated = next(text for text in classes if classes.count(text) > 1)
            raise ValueError(f"classes must differ, got {repeated!r} twice")
    u, v = unit_features(towers, images, [text for texts in prompts.values() for text in texts])
    ends = np.cumsum([len(texts) for texts in prompts.values()])
    means = normalize(jnp.stack([part.mean(0) for part in jnp.split(v, ends[:-1])]))
    probabilities = jax.nn.softmax(inverse_temperature(towers.log_scale) * (u @ means.T))
    return Classified(probabilities.argmax(1), probabilities, tuple(prompts))


class Retrieval(NamedTuple):
    """Result of `retrieval`: recall at k, in both directions.

    Attributes:
        texts: dict from k to the image-to-text recall: fraction of images with a matching text
            among the k most similar texts.
        images: dict from k to the text-to-image recall: fraction of texts with a matching image
            among the k most similar images.
    """

    texts: dict[int, float]
    images: dict[int, float]


def retrieval(
    towers: Towers,
    images: Images,
    texts: Sequence[str],
    true: Bool[Any, "images texts"] | None = None,
    *,
    among: Sequence[int] = (1, 5, 10),
) -> Retrieval:
    """Evaluate recall at k of image-to-text and text-to-image retrieval.

    Args:
        towers: dual encoder.
        images: finite floats (images, height, width, channels) in 0 .. 1.
        texts: sequence of texts.
        true: True at (i, j) if text j matches image i; None if text i matches image i alone. Images
            without a matching text, and texts without a matching image, do not count.
        among: values of k; a k above the number of candidates stands for all of them.

    Raises:
        TypeError, ValueError: towers, images or texts are invalid, `true` has another shape or no
            match, or a k is below 1.

    >>> from diffprog.contrastive import words
    >>> from diffprog.program import program
    >>> image = program(lambda images: images[:, 0, 0])
    >>> text = program(lambda ids: jnp.eye(3)[ids[:, 0], 1:])
    >>> pair = Towers(image, text, words(["green red"]), jnp.float32(0))
    >>> images = jnp.array([[[[0.9, 0.1]]], [[[0.8, 0.4]]]])
    >>> retrieval(pair, images, ["green", "red"], among=(1, 2))
    Retrieval(texts={1: 0.5, 2: 1.0}, images={1: 1.0, 2: 1.0})
    """
    among = _validation.integers("among", among, least=1)
    _validation.concrete("images", images, "call retrieval outside the transformation")
    cosines = np.asarray(similarity(towers, images, texts))
    matches = _check_matches(true, cosines.shape)
    return Retrieval(
        _recall_at_k(cosines, matches, among), _recall_at_k(cosines.T, matches.T, among)
    )


def _recall_at_k(cosines: np.ndarray, matches: np.ndarray, ks: tuple[int, ...]) -> dict[int, float]:
    queries = matches.any(1)
    ranking = np.argsort(-cosines[queries], axis=1, kind="stable")
    ranked_matches = np.take_along_axis(matches[queries], ranking, 1)
    return {k: float(ranked_matches[:, :k].any(1).mean()) for k in ks}


def _check_matches(true: Any, shape: tuple[int, ...]) -> np.ndarray:
    if true is None:
        if shape[0] != shape[1]:
            raise ValueError(
                "true must be given if images and texts differ in number, "
                f"got {shape[0]} images and {shape[1]} texts"
            )
        return np.eye(shape[0], dtype=bool)
    matches = _validation.array("true", true)
    _validation.concrete("true", matches, "call retrieval outside the transformation")
    if matches.dtype != bool or tuple(matches.shape) != shape:
        raise TypeError(
            f"true must be bool {list(shape)}, got {matches.dtype}{list(matches.shape)}"
        )
    if not np.asarray(matches).any():
        raise ValueError("true must be True for at least one image and text, got none")
    return np.asarray(matches)
