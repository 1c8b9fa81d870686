"""Sanity checks of attribution methods: parameter randomization, deletion and insertion.

randomise_parameters   an attribution that explains what a network has learned must change when its
                       parameters are randomized (Adebayo et al., 2018)
deletion, insertion    removing the pixels of largest attribution must lower the score quickly, and
                       inserting them must raise it quickly (Petsiuk et al., 2018)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog import _validation
from diffprog.program import Program
from diffprog.visualization.attribution._target import Examples, Target, score_program


class Randomisation(NamedTuple):
    """Result of `randomise_parameters`: similarity of attributions as layers are randomized.

    Attributes:
        layers: names of the layers in the order of randomization; each step keeps the earlier ones
            randomized.
        similarity: (layers, batch), Spearman's rank correlation between |attribution| of the
            randomized model and of the original model: 1 if identical, about 0 if unrelated.
    """

    layers: tuple[str, ...]
    similarity: np.ndarray


class Curve(NamedTuple):
    """Deletion or insertion curve: the score against the fraction of pixels changed.

    Attributes:
        shares: (points,), fraction of pixels changed, from 0 to 1.
        scores: (batch, points), score at each fraction.
        area: (batch,), area under each curve; small is good for deletion, large for insertion.
    """

    shares: np.ndarray
    scores: np.ndarray
    area: np.ndarray


def randomise_parameters(
    attribute: Callable[[Any], Examples],
    params: Mapping[str, Any],
    *,
    key: jax.Array,
    layers: Sequence[str],
) -> Randomisation:
    """Cascading parameter randomization test of an attribution method (Adebayo et al., 2018).

    The attribution should change as layers are randomized, one after the other from the output
    down, by permuting the entries of each of their arrays.

    Args:
        attribute: function params -> attribution (batch, ...), such as
            `lambda params: saliency(program(model.apply, params), x, y)`.
        params: parameters, a dict with one entry per layer.
        key: PRNG key.
        layers: names of layers in the order of randomization, the output layer first. They must be
            given, because JAX sorts dicts, which loses the order of the layers.

    Returns:
        `Randomisation`: rank correlation with the original attribution after each layer.

    Raises:
        TypeError, ValueError: params is not a dict of layers, or does not have a layer.

    >>> weights = {"a": jnp.arange(8.0), "b": jnp.ones(8)}
    >>> attribute = lambda params: (params["a"] * params["b"])[None]
    >>> result = randomise_parameters(attribute, weights, key=jax.random.key(0), layers=["b"])
    >>> result.similarity[0].item()
    1.0
    """
    _validation.function("attribute", attribute)
    _validation.key("key", key)
    if not isinstance(params, Mapping) or not params:
        raise TypeError(f"params must be a nonempty dict of layers, got {type(params).__name__}")
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise TypeError(
            f"layers must be a nonempty sequence of names, the output's first, got {layers!r}"
        )
    for layer in layers:
        _validation.choice("layers", layer, params)
    original, randomized, similarity = _absolute_ranks(attribute(params)), dict(params), []
    for layer, layer_key in zip(layers, jax.random.split(key, len(layers)), strict=True):
        randomized[layer] = _permute_entries(params[layer], layer_key)
        similarity.append(_correlation(original, _absolute_ranks(attribute(randomized))))
    return Randomisation(tuple(layers), np.stack(similarity))


def deletion(
    f: Callable[..., Any],
    x: Examples,
    attribution: Examples,
    target: Target,
    *,
    points: int = 21,
    fill: float = 0.0,
) -> Curve:
    """Deletion curve: score as pixels of largest attribution are removed (Petsiuk et al., 2018).

    Args:
        f: model of a batch of examples. If it returns probabilities, the curve is of a probability.
        x: input, (batch, ...), finite floats.
        attribution: attribution of x, of the same shape, or without the last axis: one number for
            all channels of a pixel.
        target: the score, such as the index of an output; as for `saliency`.
        points: number of points of the curve, at least 2.
        fill: value of removed pixels, finite.

    Returns:
        `Curve`: score of each example against the fraction of removed pixels, and the area under
        it. A small area is good.

    Raises:
        TypeError, ValueError: shapes do not agree, values are not finite, or f does not have the
            target.

    >>> f, x = lambda x: x.sum(1, keepdims=True), jnp.array([[1.0, 3.0]])
    >>> curve = deletion(f, x, x, 0, points=3)
    >>> print(curve.scores, curve.area)
    [[4. 1. 0.]] [1.5]
    """
    return _curve(f, x, attribution, target, points, fill, insert=False)


def insertion(
    f: Callable[..., Any],
    x: Examples,
    attribution: Examples,
    target: Target,
    *,
    points: int = 21,
    fill: float = 0.0,
) -> Curve:
    """Insertion curve: score as pixels of largest attribution are added (Petsiuk et al., 2018).

    At the first point every pixel has the value `fill`; at the last the input is x. Returns a
    `Curve`; a large area under it is good. Arguments and errors are those of `deletion`.

    >>> f, x = lambda x: x.sum(1, keepdims=True), jnp.array([[1.0, 3.0]])
    >>> curve = insertion(f, x, x, 0, points=3)
    >>> print(curve.scores, curve.area)
    [[0. 3. 4.]] [2.5]
    """
    return _curve(f, x, attribution, target, points, fill, insert=True)


def _curve(
    f: Callable[..., Any],
    x: Any,
    attribution: Any,
    target: Target,
    points: int,
    fill: float,
    *,
    insert: bool,
) -> Curve:
    score, x = score_program(f, x, target)
    filled = jnp.full_like(x, _validation.number("fill", fill))
    _validation.floating("attribution", attribution)
    _validation.finite("attribution", attribution)
    if attribution.shape not in (x.shape, x.shape[:-1]):
        raise ValueError(
            f"attribution must have shape {list(x.shape)} or {list(x.shape[:-1])}, "
            f"got {list(attribution.shape)}"
        )
    shares = np.linspace(0, 1, _validation.integer("points", points, low=2))
    # The position of each pixel in its example's order, 0 for the largest attribution.
    flat = jnp.asarray(attribution).reshape(len(x), -1)
    order = jnp.argsort(jnp.argsort(-flat, axis=1), axis=1).reshape(attribution.shape)
    if order.ndim < x.ndim:
        order = order[..., None]
    counts = jnp.asarray(shares * flat.shape[1], jnp.float32)
    before, after = (filled, x) if insert else (x, filled)
    scores = np.asarray(_scores_after_changes(score, before, after, order, counts)).T
    return Curve(shares, scores, np.trapezoid(scores, shares, axis=1))


@jax.jit
def _scores_after_changes(
    score: Program, before: Array, after: Array, order: Array, counts: Array
) -> Array:
    """Evaluate the score with the first `count` pixels of `before` replaced by those of `after`.

    `order` is the rank of each pixel, 0 for the first. Returns (counts, batch), for all `counts`.
    """
    return jax.lax.map(lambda count: score(jnp.where(order + 0.5 < count, after, before)), counts)


def _absolute_ranks(attribution: Array) -> np.ndarray:
    """Rank |attribution| within each example, (batch, values); ties share their mean rank."""
    ranks = []
    for row in np.abs(np.asarray(attribution).reshape(len(attribution), -1)):
        _, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
        ranks.append((counts.cumsum() - (counts - 1) / 2)[inverse])
    return np.stack(ranks)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the Pearson correlation of rows a[i] and b[i] for each i; 0 if one is constant."""
    a, b = (rows - rows.mean(1, keepdims=True) for rows in (a, b))
    norms = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), norms, out=np.zeros(len(a)), where=norms > 0)


def _permute_entries(layer: Any, key: jax.Array) -> Any:
    leaves, structure = jax.tree.flatten(layer)
    keys = jax.random.split(key, max(len(leaves), 1))
    permuted = [
        jax.random.permutation(key, leaf.reshape(-1)).reshape(leaf.shape)
        for key, leaf in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(structure, permuted)
