"""Is an attribution about the model at all? The two checks of the field.

randomise_parameters   an attribution that explains what a network learnt changes when the network forgets it (Adebayo et al. 2018)
deletion, insertion    taking the pixels away that are said to matter most must hurt the score fastest (Petsiuk et al. 2018)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog import _validation
from diffprog.program import Program
from diffprog.visualization.attribution._gradients import Examples, Target, _explained


class Randomisation(NamedTuple):
    """How much of an attribution is left while layers are randomised one after another.

    Attributes:
        layers: the layers, in the order in which they were randomised, each with all before it.
        similarity: (layers, batch), the rank correlation of |attribution| with that of the intact model: 1 the same, 0 nothing in common.
    """

    layers: tuple[str, ...]
    similarity: np.ndarray


class Curve(NamedTuple):
    """The score while pixels are taken away, or put in.

    Attributes:
        shares: (points,), the share of pixels changed, from 0 to 1.
        scores: (batch, points).
        area: (batch,), the area under each curve: small is good for deletion, large for insertion.
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
    """Randomise a model from its output downwards, and see what becomes of its attributions.

    Each layer's arrays keep their numbers, in a random order.

    Args:
        attribute: params -> attribution (batch, ...), as `lambda params: saliency(program(model.apply, params), x, y)`.
        params: a dict of layers.
        key: a random key.
        layers: names in the order in which they are randomised, the output's first. The order of a dict says nothing: JAX sorts it.

    Raises:
        TypeError, ValueError: params that is no dict of layers, a layer that it does not have.

    >>> weights = {"a": jnp.arange(8.0), "b": jnp.ones(8)}
    >>> randomise_parameters(lambda p: (p["a"] * p["b"])[None], weights, key=jax.random.key(0), layers=["b"]).similarity[0].item()
    1.0
    """
    _validation.function("attribute", attribute)
    _validation.key("key", key)
    if not isinstance(params, Mapping) or not params:
        raise TypeError(f"params must be a dict of layers, got {type(params).__name__}")
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise TypeError(
            f"layers must be a sequence of names of layers, the output's first, got {layers!r}"
        )
    order = tuple(layers)
    for layer in order:
        _validation.choice("layers", layer, params)
    whole, rows, broken = _ranks(attribute(params)), [], dict(params)
    for layer, layer_key in zip(order, jax.random.split(key, len(order)), strict=True):
        broken[layer] = _shuffled(params[layer], layer_key)
        rows.append(_correlation(whole, _ranks(attribute(broken))))
    return Randomisation(order, np.stack(rows))


def deletion(
    f: Callable[..., Any],
    x: Examples,
    attribution: Examples,
    target: Target,
    *,
    points: int = 21,
    fill: float = 0.0,
) -> Curve:
    """The score while the pixels of the largest attribution are set to `fill`, largest first.

    Args:
        f: a program of a batch of examples.
        x: (batch, ...), finite floats.
        attribution: of x's shape, or without its last axis: then a pixel has one number for all its channels.
        target: the index of an output, one for all or one for each; or an objective. For probabilities let f return them.
        points: of the curve, at least 2.
        fill: a value of x that says nothing.

    Raises:
        TypeError, ValueError: arrays that do not fit, a target that f does not have.

    >>> curve = deletion(lambda x: x.sum(1, keepdims=True), jnp.array([[1.0, 3.0]]), jnp.array([[1.0, 3.0]]), 0, points=3)
    >>> print(curve.scores, curve.area)
    [[4. 1. 0.]] [1.5]
    """
    return _curve(f, x, attribution, target, points, fill, put_in=False)


def insertion(
    f: Callable[..., Any],
    x: Examples,
    attribution: Examples,
    target: Target,
    *,
    points: int = 21,
    fill: float = 0.0,
) -> Curve:
    """The score while the pixels of the largest attribution are put into an image of `fill`, largest first.

    Args, returns and errors are those of `deletion`.

    >>> curve = insertion(lambda x: x.sum(1, keepdims=True), jnp.array([[1.0, 3.0]]), jnp.array([[1.0, 3.0]]), 0, points=3)
    >>> print(curve.scores, curve.area)
    [[0. 3. 4.]] [2.5]
    """
    return _curve(f, x, attribution, target, points, fill, put_in=True)


def _curve(
    f: Callable[..., Any],
    x: Any,
    attribution: Any,
    target: Target,
    points: int,
    fill: float,
    *,
    put_in: bool,
) -> Curve:
    score, x = _explained(f, x, target, None)
    filled = jnp.full_like(x, _validation.number("fill", fill))
    begun, changed = (filled, x) if put_in else (x, filled)
    _validation.floating("attribution", attribution)
    _validation.finite("attribution", attribution)
    if attribution.shape not in (x.shape, x.shape[:-1]):
        raise ValueError(
            f"attribution must have shape {list(x.shape)} or {list(x.shape[:-1])}, got {list(attribution.shape)}"
        )
    shares = np.linspace(0, 1, _validation.integer("points", points, low=2))
    order = _order(jnp.asarray(attribution))
    order = order[..., None] if order.ndim < x.ndim else order
    scores = np.asarray(
        _changed(
            score,
            jnp.asarray(begun),
            changed,
            order,
            jnp.asarray(shares * attribution[0].size, jnp.float32),
        )
    ).T
    return Curve(shares, scores, np.trapezoid(scores, shares, axis=1))


def _order(attribution: Array) -> Array:
    """The place of each pixel in its example's order, 0 for the largest."""
    flat = attribution.reshape(len(attribution), -1)
    return jnp.argsort(jnp.argsort(-flat, axis=1), axis=1).reshape(attribution.shape)


@jax.jit
def _changed(score: Program, begun: Array, changed: Array, order: Array, counts: Array) -> Array:
    return jax.lax.map(lambda count: score(jnp.where(order + 0.5 < count, changed, begun)), counts)


def _ranks(attribution: Array) -> np.ndarray:
    """The ranks of |attribution| within each example, equal values sharing theirs."""
    flat = np.abs(np.asarray(attribution).reshape(len(attribution), -1))
    ranks = []
    for row in flat:
        _, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
        ranks.append((counts.cumsum() - (counts - 1) / 2)[inverse])
    return np.stack(ranks)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (a, b))
    length = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), length, out=np.zeros(len(a)), where=length > 0)


def _shuffled(layer: Any, key: jax.Array) -> Any:
    leaves, structure = jax.tree.flatten(layer)
    keys = jax.random.split(key, max(len(leaves), 1))
    mixed = [
        jax.random.permutation(k, leaf.reshape(-1)).reshape(leaf.shape)
        for k, leaf in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(structure, mixed)
