"""What towers that agree can tell: which of several sentences is true of an image, and which image is meant by a sentence."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffprog import _validation
from diffprog.contrastive._dual_encoder import Towers, directions, similarity
from diffprog.contrastive._info_nce import inverse_temperature, unit_length
from diffprog.contrastive._tokenizers import require_texts

Images = Float[Array, "images height width channels"]


class Classified(NamedTuple):
    """Images told apart by what their classes are called.

    Attributes:
        labels: the likeliest class of each image, an index of `names`.
        probabilities: softmax of the similarities at the towers' own temperature.
        names: of the classes.
    """

    labels: Int[Array, "images"]
    probabilities: Float[Array, "images classes"]
    names: tuple[str, ...]


def zero_shot(
    towers: Towers, images: Images, classes: Mapping[str, Sequence[str]] | Sequence[str]
) -> Classified:
    """The class whose prompts an image is most similar to: softmax_k s <u, m_k>, m_k the direction of the mean over class k's prompts.

    The inverse temperature s counts as at most 100, as where towers are trained; in `transformers` a CLIPModel does not bound it.

    Args:
        towers: `Towers`.
        images: finite floats (images, height, width, channels) in 0 .. 1.
        classes: a prompt for each class, or several by the name of the class, of whose unit features the mean is taken.

    Raises:
        TypeError, ValueError: towers or images that are none, no class or prompts of none, texts that the tokenizer refuses.

    Source: A. Radford et al., "Learning transferable visual models from natural language supervision", 2021, with its prompt ensembles.

    >>> from diffprog.contrastive import text_tower, towers, words
    >>> from diffprog.models import cnn
    >>> known = words(["a seven", "a one"])
    >>> pair = towers(cnn((8, 8, 1), classes=8), text_tower(known.count, 2, outputs=8), known, key=jax.random.key(0))
    >>> zero_shot(pair, jnp.zeros((5, 8, 8, 1)), {"7": ["seven", "a seven"], "1": ["one"]}).probabilities.shape
    (5, 2)
    """
    prompts = _prompts(classes)
    u, v = directions(towers, images, [text for texts in prompts.values() for text in texts])
    ends = np.cumsum([len(texts) for texts in prompts.values()])
    means = unit_length(jnp.stack([part.mean(0) for part in jnp.split(v, ends[:-1])]))
    probabilities = jax.nn.softmax(inverse_temperature(towers.log_scale) * (u @ means.T))
    return Classified(probabilities.argmax(1), probabilities, tuple(prompts))


class Retrieval(NamedTuple):
    """How often what was looked for is among the k most similar.

    Attributes:
        texts: by k, the share of images with a text that is true of them among the k texts most similar to them.
        images: by k, the share of texts with an image of which they are true among the k images most similar to them.
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
    """Recall at k, from images to texts and from texts to images.

    Args:
        towers: `Towers`.
        images: finite floats in 0 .. 1.
        texts: sentences.
        true: (i, j) says whether text j is true of image i; None where text i belongs to image i and to no other. Images of which no text
            is true are not asked about, nor texts that are true of no image.
        among: each k, at most as many as there are to choose from (more counts as all).

    Raises:
        TypeError, ValueError: towers, images or texts that are none, `true` of another shape or nowhere True, a k below 1.

    >>> from diffprog.contrastive import words
    >>> from diffprog.program import program
    >>> image, text = program(lambda images: images[:, 0, 0]), program(lambda ids: jnp.eye(3)[ids[:, 0], 1:])
    >>> pair = Towers(image, text, words(["green red"]), jnp.float32(0))
    >>> retrieval(pair, jnp.array([[[[0.9, 0.1]]], [[[0.8, 0.4]]]]), ["green", "red"], among=(1, 2))
    Retrieval(texts={1: 0.5, 2: 1.0}, images={1: 1.0, 2: 1.0})
    """
    among = _validation.integers("among", among, least=1)
    _validation.concrete("images", images, "look for images outside the transformation")
    cosines = np.asarray(similarity(towers, images, texts))
    belongs = _belongs(true, cosines.shape)
    return Retrieval(_recalls(cosines, belongs, among), _recalls(cosines.T, belongs.T, among))


def _recalls(cosines: np.ndarray, belongs: np.ndarray, among: tuple[int, ...]) -> dict[int, float]:
    asked = belongs.any(1)
    best = np.argsort(-cosines[asked], axis=1, kind="stable")
    found = np.take_along_axis(belongs[asked], best, 1)
    return {k: float(found[:, :k].any(1).mean()) for k in among}


def _belongs(true: Any, shape: tuple[int, ...]) -> np.ndarray:
    if true is None:
        if shape[0] != shape[1]:
            raise ValueError(
                f"true must say which texts are true of which images where they are not one each, got {shape[0]} and {shape[1]}"
            )
        return np.eye(shape[0], dtype=bool)
    given = _validation.array("true", true)
    _validation.concrete("true", given, "compare outside the transformation")
    if given.dtype != bool or tuple(given.shape) != shape:
        raise TypeError(f"true must be bool {list(shape)}, got {given.dtype}{list(given.shape)}")
    if not np.asarray(given).any():
        raise ValueError("true must be True for at least one image and text, got none")
    return np.asarray(given)


def _prompts(classes: Any) -> dict[str, Sequence[str]]:
    if not isinstance(classes, Mapping):
        names = require_texts("classes", classes)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"classes must differ, got {twice!r} twice")
        return {name: (name,) for name in names}
    if not classes:
        raise ValueError("classes must hold at least one class, got none")
    return {name: require_texts(f"classes[{name!r}]", texts) for name, texts in classes.items()}
