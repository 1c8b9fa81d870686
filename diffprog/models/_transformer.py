"""Transformer: pre-norm blocks of self-attention and an MLP on a residual stream.

A block adds two terms to the stream x, each computed from the normalized stream (layer norm before
attention and MLP, as in GPT-2, ViT and CLIP):

    x <- x + attention(norm1(x))               mixes positions
    x <- x + W2 s(W1 norm2(x) + b1) + b2       acts on each position; s is the activation

Multi-head attention splits the affine maps q, k and v of the normalized stream among the heads. A
head computes softmax(q kᵀ / sqrt(head width)) v, and an affine map combines the heads.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling
from jaxtyping import Array, Bool, Float

from diffprog import _validation, backprop
from diffprog.backprop import Layer
from diffprog.models._model import Model, check_entries
from diffprog.nodes import tap

ResidualStream = Float[Array, "batch length width"]
Heads = Float[Array, "batch length heads head_width"]
PositionMask = Bool[Array, "batch length"] | None
Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]

_MLP_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda z: z * jax.nn.sigmoid(1.702 * z),
}


def transformer(
    width: int,
    depth: int,
    heads: int,
    *,
    hidden: int | None = None,
    activation: Activation = "gelu",
    causal: bool = False,
    epsilon: float = 1e-5,
) -> Model:
    """Transformer of `depth` pre-norm blocks, without a layer norm after the last.

    Nodes (named values, see `diffprog.nodes`), for k = 0, 1, ...: "block<k>", the residual stream
    after the block; "block<k>.attention", the output of its attention; "block<k>.hidden", the
    pre-activations of its MLP, (batch, length, hidden).

    Returns a `Model`. Its `apply(params, x, visible=None)` takes the residual stream x, (batch,
    length, width), and returns it after the last block. The mask `visible`, bool (batch, length),
    is True at the positions that may be attended to; None means all. Where a position may attend to
    none, it attends to all equally.

    Params: `{"block0": {"norm1", "query", "key", "value", "output", "norm2", "hidden", "out"},
    ...}`, each entry as of `backprop.layer_norm` or `backprop.affine`.

    Args:
        width: width of the residual stream, a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
        hidden: hidden units of each MLP. Default: 4 width.
        activation: activation s of the MLPs: "gelu", z Φ(z); "gelu_tanh", its approximation by
            tanh; "quick_gelu", z / (1 + e^(-1.702 z)).
        causal: if True, a position attends only to itself and to earlier positions.
        epsilon: number > 0 added to the variance in the layer norms.

    Raises:
        TypeError, ValueError: a size or name is invalid. `apply` raises if params are of another
            depth or width, or if x or visible has another shape or dtype or is not finite.

    Source: A. Vaswani et al., "Attention is all you need", 2017. Layer norms before each term, and
    initial weights of "output" and "out" scaled by 1 / sqrt(2 depth): A. Radford et al., "Language
    models are unsupervised multitask learners", 2019.

    >>> model = transformer(8, depth=2, heads=2)
    >>> model.apply(model.init(jax.random.key(0)), jnp.ones((1, 5, 8))).shape
    (1, 5, 8)
    """
    width = _validation.integer("width", width, low=1)
    depth = _validation.integer("depth", depth, low=1)
    heads = _validation.integer("heads", heads, low=1)
    hidden = 4 * width if hidden is None else _validation.integer("hidden", hidden, low=1)
    if width % heads:
        raise ValueError(f"width must be a multiple of heads, got {width} and {heads} heads")
    _validation.choice("activation", activation, _MLP_ACTIVATIONS)
    _validation.choice("causal", causal, (True, False))
    epsilon = _validation.number("epsilon", epsilon, above=0)

    norm, projection = backprop.layer_norm(width, epsilon=epsilon), backprop.affine(width, width)
    residual = variance_scaling(1 / (2 * depth), "fan_in", "truncated_normal")
    layers = _Block(
        norm1=norm,
        query=projection,
        key=projection,
        value=projection,
        output=backprop.affine(width, width, initializer=residual),
        norm2=norm,
        hidden=backprop.affine(width, hidden),
        out=backprop.affine(hidden, width, initializer=residual),
    )
    run = functools.partial(_run_block, layers, heads, _MLP_ACTIVATIONS[activation], causal)
    names = [f"block{k}" for k in range(depth)]

    def init_block(key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, len(layers))
        return {
            name: layer.init(key)
            for name, layer, key in zip(layers._fields, layers, keys, strict=True)
        }

    def init(key: jax.Array) -> dict[str, Any]:
        return dict(zip(names, map(init_block, jax.random.split(key, depth)), strict=True))

    def apply(
        params: dict[str, Any], x: ResidualStream, visible: PositionMask = None
    ) -> ResidualStream:
        check_entries(params, names)
        _check_stream(x, width, visible)
        for name in names:
            x = tap(run(params[name], x, visible, name), name)
        return x

    return Model(init, apply)


class _Block(NamedTuple):
    """The layers of one transformer block, in the order in which they are applied."""

    norm1: Layer
    query: Layer
    key: Layer
    value: Layer
    output: Layer
    norm2: Layer
    hidden: Layer
    out: Layer


def _run_block(
    layers: _Block,
    heads: int,
    activation: Callable[[Array], Array],
    causal: bool,
    params: dict[str, Any],
    x: ResidualStream,
    visible: PositionMask,
    name: str,
) -> ResidualStream:
    def run(layer: str, x: ResidualStream) -> ResidualStream:
        return apply_to_last_axis(getattr(layers, layer), params[layer], x)

    h = run("norm1", x)
    q, k, v = (run(each, h).reshape(*x.shape[:2], heads, -1) for each in ("query", "key", "value"))
    attention = run("output", _attention(q, k, v, causal, visible).reshape(x.shape))
    x = x + tap(attention, f"{name}.attention")
    return x + run("out", activation(tap(run("hidden", run("norm2", x)), f"{name}.hidden")))


def apply_to_last_axis(
    layer: Layer, params: Any, x: Float[Array, "batch *positions inputs"]
) -> Float[Array, "batch *positions outputs"]:
    """Apply a layer (batch, inputs) -> (batch, outputs) to the last axis, at all positions."""
    y = backprop.differentiable(layer)(params, x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], -1)


def _attention(q: Heads, k: Heads, v: Heads, causal: bool, visible: PositionMask) -> Heads:
    """Compute softmax(q kᵀ / sqrt(head width)) v for each head, with masked positions left out.

    The arrays are (batch, length, heads, head width). `causal` masks later positions, and `visible`
    is True at the positions (batch, length) that may be attended to.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", q / math.sqrt(q.shape[-1]), k)
    mask = jnp.tri(q.shape[1], dtype=bool)[None, None] if causal else None
    if visible is not None:
        visible = visible[:, None, None, :]
        mask = visible if mask is None else mask & visible
    if mask is not None:
        # Not minus infinity: the softmax over positions that are all masked would be NaN.
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("bhqk,bkhd->bqhd", backprop.differentiable(backprop.softmax())((), scores), v)


def _check_stream(x: Any, width: int, visible: Any) -> None:
    _validation.floating("x", x, rank=3)
    if x.shape[2] != width or 0 in x.shape:
        raise ValueError(
            f"x must have shape (batch, length, {width}), none of them 0, got {list(x.shape)}"
        )
    _validation.finite("x", x)
    if visible is None:
        return
    if _validation.array("visible", visible).dtype != bool:
        raise TypeError(
            f"visible must be bool (batch, length), got {visible.dtype}{list(visible.shape)}"
        )
    if tuple(visible.shape) != x.shape[:2]:
        raise ValueError(
            f"visible must have shape {list(x.shape[:2])}, (batch, length) of x, "
            f"got {list(visible.shape)}"
        )
