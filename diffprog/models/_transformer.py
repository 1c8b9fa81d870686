"""The transformer: blocks that add to a stream of vectors, one at each place of a sequence.

A block is two residual steps, each on the normalised stream (pre-norm, as GPT-2, ViT and CLIP have it):

    x <- x + attention(norm1(x)),        places read from one another
    x <- x + W2 s(W1 norm2(x) + b1) + b2, each place for itself

Attention of several heads cuts q, k and v, affine in the normalised stream, into as many pieces, lets each head read for itself,
h = softmax(q k^T / sqrt(width of a head)) v, and writes all that was read back with one more affine map.
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
from diffprog.models._model import Model
from diffprog.nodes import tap

Sequences = Float[Array, "batch length width"]
Visible = Bool[Array, "batch length"] | None
Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


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
    """`depth` pre-norm blocks, x <- x + attention(norm(x)), x <- x + mlp(norm(x)); no norm after the last.

    Nodes, for k = 0, 1, ...: "block<k>", the stream after the block; "block<k>.attention", what its attention adds; "block<k>.hidden",
    the pre-activations of its MLP, (batch, length, hidden).

    `apply(params, x, visible=None)`: x float (batch, length, width), `visible` bool (batch, length), the places that may be read from;
    None for all. A place that may read from none reads from all alike. Params: `{"block0": {"norm1", "query", "key", "value", "output",
    "norm2", "hidden", "out"}, ...}`, each as `backprop.layer_norm` and `backprop.affine` have it.

    Args:
        width: of the stream, a multiple of `heads`.
        depth: number of blocks.
        heads: of each attention.
        hidden: units of each MLP; 4 width by default.
        activation: s: "gelu", z Phi(z); "gelu_tanh", its approximation by tanh; "quick_gelu", z / (1 + e^(-1.702 z)).
        causal: whether a place reads only from itself and those before it.
        epsilon: added to the variance in the norms.

    Raises:
        TypeError, ValueError: a size or name that is none of these; at `apply`, params of another depth or width, x or visible of another
            shape or dtype, or with NaN or infinity.

    Source: A. Vaswani et al., "Attention is all you need", 2017; A. Radford et al., "Language models are unsupervised multitask
    learners", 2019, for the norms in front and the scale 1 / sqrt(2 depth) at which what is added is drawn.

    >>> model = transformer(8, depth=2, heads=2)
    >>> model.apply(model.init(jax.random.key(0)), jnp.ones((1, 5, 8))).shape
    (1, 5, 8)
    """
    width, depth, heads = (
        _validation.integer(name, n, low=1)
        for name, n in {"width": width, "depth": depth, "heads": heads}.items()
    )
    hidden = 4 * width if hidden is None else _validation.integer("hidden", hidden, low=1)
    if width % heads:
        raise ValueError(f"width must be a multiple of heads, got {width} and {heads} heads")
    _validation.choice("activation", activation, ACTIVATIONS)
    _validation.choice("causal", causal, (True, False))
    layers = _layers(
        width, hidden, 1 / (2 * depth), _validation.number("epsilon", epsilon, above=0)
    )
    run = functools.partial(_block, layers, heads, ACTIVATIONS[activation], causal)
    names = [f"block{k}" for k in range(depth)]

    def init(key: jax.Array) -> dict[str, Any]:
        return {
            name: _drawn(layers, key)
            for name, key in zip(names, jax.random.split(key, depth), strict=True)
        }

    def apply(params: dict[str, Any], x: Sequences, visible: Visible = None) -> Sequences:
        _check(params, names, x, width, visible)
        for name in names:
            x = tap(run(params[name], x, visible, name), name)
        return x

    return Model(init, apply)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda z: z * jax.nn.sigmoid(1.702 * z),
}


class _Layers(NamedTuple):
    """The layers of a block, in the order in which they run."""

    norm1: Layer
    query: Layer
    key: Layer
    value: Layer
    output: Layer
    norm2: Layer
    hidden: Layer
    out: Layer


def _layers(width: int, hidden: int, variance: float, epsilon: float) -> _Layers:
    added = variance_scaling(variance, "fan_in", "truncated_normal")
    norm, read, write = (
        backprop.layer_norm(width, epsilon=epsilon),
        backprop.affine(width, width),
        backprop.affine(width, width, initializer=added),
    )
    return _Layers(
        norm,
        read,
        read,
        read,
        write,
        norm,
        backprop.affine(width, hidden),
        backprop.affine(hidden, width, initializer=added),
    )


def _drawn(layers: _Layers, key: jax.Array) -> dict[str, Any]:
    keys = jax.random.split(key, len(layers))
    return {
        name: layer.init(key) for name, layer, key in zip(layers._fields, layers, keys, strict=True)
    }


def _block(
    layers: _Layers,
    heads: int,
    s: Callable[[Array], Array],
    causal: bool,
    params: dict[str, Any],
    x: Sequences,
    visible: Visible,
    name: str,
) -> Sequences:
    def run(layer: str, x: Sequences) -> Sequences:
        return at_each_place(getattr(layers, layer), params[layer], x)

    h = run("norm1", x)
    q, k, v = (run(each, h).reshape(*x.shape[:2], heads, -1) for each in ("query", "key", "value"))
    x = x + tap(
        run("output", _attend(q, k, v, causal, visible).reshape(x.shape)), f"{name}.attention"
    )
    return x + run("out", s(tap(run("hidden", run("norm2", x)), f"{name}.hidden")))


def at_each_place(
    layer: Layer, params: Any, x: Float[Array, "batch *places inputs"]
) -> Float[Array, "batch *places outputs"]:
    """A layer of rows (batch, inputs), with its hand-written gradient, at each place of a sequence."""
    y = backprop.differentiable(layer)(params, x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], -1)


Heads = Float[Array, "batch length heads part"]


def _attend(q: Heads, k: Heads, v: Heads, causal: bool, visible: Visible) -> Heads:
    scores = jnp.einsum("bqhd,bkhd->bhqk", q / math.sqrt(q.shape[-1]), k)
    readable = _readable(q.shape[1], causal, visible)
    if readable is not None:
        # The least finite number rather than minus infinity: a place that may read from none gets numbers, not NaN.
        scores = jnp.where(readable, scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("bhqk,bkhd->bqhd", backprop.differentiable(backprop.softmax())((), scores), v)


def _readable(
    length: int, causal: bool, visible: Visible
) -> Bool[Array, "#batch 1 #length length"] | None:
    before = jnp.tri(length, dtype=bool)[None, None] if causal else None
    seen = None if visible is None else visible[:, None, None, :]
    return seen if before is None else before if seen is None else before & seen


def _check(params: Any, names: list[str], x: Any, width: int, visible: Any) -> None:
    if not isinstance(params, dict) or params.keys() != set(names):
        given = sorted(params) if isinstance(params, dict) else type(params).__name__
        raise ValueError(f"params must be a dict with entries {names}, got {given}")
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
            f"visible must have shape {list(x.shape[:2])}, as x has places, got {list(visible.shape)}"
        )
