"""What a transformer is made of: embedding, attention and the residual connection.

Attention is a chain of three multiplicative gates with a vector activation between them (lecture 004's special cases 1 and 2): with
q = x Wq^T, k = x Wk^T and v = x Wv^T for the places of a sequence x,

    a = softmax(q k^T / sqrt(width)),    h = a v,    y = h Wo^T,

and every product has the backward pass of a product: each factor gets the gradient times the other factor.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal, normal
from jaxtyping import Array, Float, Integer

from diffprog import _validation
from diffprog.backprop._activations import softmax
from diffprog.backprop._layer import Layer, require_layer

Sequences = Float[Array, "batch length width"]


def embedding(count: int, width: int, *, initializer: Initializer | None = None) -> Layer:
    """y = W[ids], a row of W for each id; row r of dW is the sum of dy over all places with id r. The ids have no derivative.

    Params: `{"weight": (count, width)}`.

    Args:
        count: how many ids there are, 0 .. count - 1.
        width: length of a row.
        initializer: of W, called with its shape; normal with deviation 1 by default.

    Raises:
        TypeError, ValueError: sizes that are not positive integers; at `forward`, ids that are not integers (batch, ...) in
            0 .. count - 1 (the range where values are known, not under `jit`).

    >>> embedding(3, 2).backward({"weight": jnp.ones((3, 2))}, jnp.array([[1, 1]]), jnp.ones((1, 2, 2)))[0]["weight"]
    Array([[0., 0.],
           [2., 2.],
           [0., 0.]], dtype=float32)
    """
    _validation.integer("count", count, low=1)
    _validation.integer("width", width, low=1)
    draw = normal(1.0) if initializer is None else _validation.function("initializer", initializer)

    def forward(
        params: dict[str, Array], ids: Integer[Array, "batch ..."]
    ) -> tuple[Float[Array, "batch ... width"], Any]:
        _check_ids(ids, count)
        return params["weight"][ids], ids

    def backward(
        params: dict[str, Array], ids: Any, dy: Float[Array, "batch ... width"]
    ) -> tuple[dict[str, Array], None]:
        return {"weight": jnp.zeros_like(params["weight"]).at[ids].add(dy)}, None

    return Layer(
        lambda key: {"weight": draw(key, (count, width))},
        forward,
        backward,
        f"embedding({count}, {width})",
    )


def _check_ids(ids: Any, count: int) -> None:
    given = _validation.array("ids", ids)
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise TypeError(f"ids must be integers, got {given.dtype}{list(given.shape)}")
    _validation.within("ids", ids, 0, count - 1)


def attention(width: int, *, causal: bool = False, initializer: Initializer | None = None) -> Layer:
    """y = softmax(q k^T / sqrt(width)) v Wo^T: each place of a sequence reads from all, weighted by how well its query meets their keys.

    Params: `{"query", "key", "value", "output"}`, each (width, width), W as in `affine`; there are no biases.

    Args:
        width: of a place.
        causal: whether a place reads only from itself and those before it.
        initializer: of each matrix, as for `affine`.

    Raises:
        TypeError, ValueError: bad settings; at `forward`, x that is not float (batch, length, width).

    Source: Vaswani et al. 2017, one head.

    >>> layer = attention(4)
    >>> layer.forward(layer.init(jax.random.key(0)), jnp.ones((2, 3, 4)))[0].shape
    (2, 3, 4)
    """
    _validation.integer("width", width, low=1)
    draw = (
        lecun_normal() if initializer is None else _validation.function("initializer", initializer)
    )
    scale, gate = 1 / math.sqrt(width), softmax()

    def init(key: jax.Array) -> dict[str, Array]:
        return {
            name: draw(each, (width, width)).T
            for name, each in zip(_MATRICES, jax.random.split(key, 4), strict=True)
        }

    def forward(params: dict[str, Array], x: Sequences) -> tuple[Sequences, Any]:
        _check_sequences(x, width)
        q, k, v = (x @ params[name].T for name in _MATRICES[:3])
        scores = scale * q @ k.mT
        if causal:
            scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), scores, -jnp.inf)
        a, _ = gate.forward((), scores)
        h = a @ v
        return h @ params["output"].T, (x, q, k, v, a, h)

    def backward(
        params: dict[str, Array], residuals: Any, dy: Sequences
    ) -> tuple[dict[str, Array], Sequences]:
        x, q, k, v, a, h = residuals
        dh = dy @ params["output"]
        da, dv = dh @ v.mT, a.mT @ dh
        # Where the mask is, a = 0, and the gradient of softmax is 0 by itself.
        _, dscores = gate.backward((), a, da)
        dq, dk = scale * dscores @ k, scale * dscores.mT @ q
        dparams = {name: _outer(d, x) for name, d in zip(_MATRICES, (dq, dk, dv), strict=False)} | {
            "output": _outer(dy, h)
        }
        return dparams, dq @ params["query"] + dk @ params["key"] + dv @ params["value"]

    return Layer(
        init, forward, backward, f"attention({width}, causal)" if causal else f"attention({width})"
    )


_MATRICES = ("query", "key", "value", "output")


def _outer(dz: Sequences, x: Sequences) -> Float[Array, "outputs inputs"]:
    """dW = dz^T x, summed over the places of all sequences."""
    return jnp.einsum("bli,blj->ij", dz, x)


def _check_sequences(x: Any, width: int) -> None:
    _validation.floating("x", x, rank=3)
    if x.shape[2] != width or x.shape[1] == 0:
        raise ValueError(
            f"x must have shape (batch, length, {width}) with a length of at least 1, got {list(x.shape)}"
        )


def residual(layer: Layer) -> Layer:
    """y = x + f(x), with dx = dy + what f's backward gives: a copy, f on one branch, and an add. Its params are those of f.

    Args:
        layer: f, whose output has the shape of its input.

    Raises:
        TypeError, ValueError: no layer; at `forward`, x and f(x) of different shapes.

    >>> from diffprog.backprop import relu
    >>> residual(relu()).forward((), jnp.array([[-1.0, 2.0]]))[0]
    Array([[-1.,  4.]], dtype=float32)
    """
    require_layer("layer", layer)

    def forward(params: Any, x: Float[Array, "batch ..."]) -> tuple[Float[Array, "batch ..."], Any]:
        y, kept = layer.forward(params, x)
        _validation.same_shape(**{"x": x, f"{layer.name} of x": y})
        return x + y, kept

    def backward(
        params: Any, kept: Any, dy: Float[Array, "batch ..."]
    ) -> tuple[Any, Float[Array, "batch ..."]]:
        dparams, dx = layer.backward(params, kept, dy)
        return dparams, dy + dx

    return Layer(layer.init, forward, backward, f"residual({layer.name})")
