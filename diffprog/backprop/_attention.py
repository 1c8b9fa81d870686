"""Layers of a transformer: embedding, attention and the residual connection.

Attention consists of matrix products and a softmax. In the backward pass of a product, the gradient
of each factor is the cotangent times the other factor.
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

Weights = dict[str, Array]
Batch = Float[Array, "batch ..."]
Sequences = Float[Array, "batch length width"]


def embedding(count: int, width: int, *, initializer: Initializer | None = None) -> Layer:
    """Embedding layer: replace each integer id by a row of a weight matrix.

        y = W[ids]
        dW_r = Σ dy over all positions with id r

    The ids have no derivative: dx is None.

    Params: `{"weight": (count, width)}`.

    Shapes: ids and the residual ids (batch, ...), y (batch, ..., width).

    Args:
        count: number of ids, 0 .. count - 1.
        width: length of a row.
        initializer: initializer of W, called with its shape; standard normal by default.

    Raises:
        TypeError: a size is not an integer; at `forward`, ids are not integers.
        ValueError: a size is below 1; at `forward`, ids are outside 0 .. count - 1 (not checked for
            traced ids).

    >>> params, ids = {"weight": jnp.ones((3, 2))}, jnp.array([[1, 1]])
    >>> embedding(3, 2).backward(params, ids, jnp.ones((1, 2, 2)))[0]["weight"]
    Array([[0., 0.],
           [2., 2.],
           [0., 0.]], dtype=float32)
    """
    _validation.integer("count", count, low=1)
    _validation.integer("width", width, low=1)
    initialize = _validation.function("initializer", initializer or normal(1.0))

    def forward(params: Weights, ids: Integer[Array, "batch ..."]) -> tuple[Batch, Any]:
        array = _validation.array("ids", ids)
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(f"ids must be integers, got {array.dtype}{list(array.shape)}")
        _validation.within("ids", ids, 0, count - 1)
        return params["weight"][ids], ids

    def backward(params: Weights, ids: Any, dy: Batch) -> tuple[Weights, None]:
        # `add` accumulates over repeated ids; `set` would keep the last one only.
        return {"weight": jnp.zeros_like(params["weight"]).at[ids].add(dy)}, None

    init = lambda key: {"weight": initialize(key, (count, width))}
    return Layer(init, forward, backward, f"embedding({count}, {width})")


def attention(width: int, *, causal: bool = False, initializer: Initializer | None = None) -> Layer:
    """Layer of scaled dot-product self-attention with one head.

        q = x W_qᵀ,    k = x W_kᵀ,    v = x W_vᵀ
        s = q kᵀ,    a = softmax(s / √width),    h = a v,    y = h W_oᵀ

    The backward pass, with gradients of the matrices as in `affine` (dW_q = dqᵀ x, dW_o = dyᵀ h):

        dh = dy W_o,    da = dh vᵀ,    dv = aᵀ dh
        ds = a (da - Σ_j da_j a_j) / √width,    dq = ds k,    dk = dsᵀ q
        dx = dq W_q + dk W_k + dv W_v

    Params: a dict of W_q, W_k, W_v, W_o under "query", "key", "value", "output", each
    (width, width); there are no biases.

    Shapes: x, y (batch, length, width); residuals (x, q, k, v, a, h), of the shape of x but for the
    attention weights a (batch, length, length).

    Args:
        width: length of the vector at each position.
        causal: whether a position attends only to itself and earlier positions.
        initializer: initializer of each matrix, as for `affine`.

    Raises:
        TypeError: width is not an integer; at `forward`, x is not a float array.
        ValueError: width is below 1; at `forward`, x does not have shape (batch, length, width).

    Source: Vaswani et al., Attention is all you need, 2017; lecture 004, special cases 1 and 2.

    >>> layer = attention(4)
    >>> layer.forward(layer.init(jax.random.key(0)), jnp.ones((2, 3, 4)))[0].shape
    (2, 3, 4)
    """
    _validation.integer("width", width, low=1)
    initialize = _validation.function("initializer", initializer or lecun_normal())
    scale, normalize = 1 / math.sqrt(width), softmax()

    def init(key: jax.Array) -> Weights:
        keys = jax.random.split(key, 4)
        matrices = [initialize(matrix_key, (width, width)).T for matrix_key in keys]
        return dict(zip(("query", "key", "value", "output"), matrices, strict=True))

    def forward(params: Weights, x: Sequences) -> tuple[Sequences, Any]:
        _validation.floating("x", x, rank=3)
        if x.shape[2] != width or x.shape[1] == 0:
            raise ValueError(
                f"x must have shape (batch, length, {width}) with a length of at least 1, "
                f"got {list(x.shape)}"
            )
        q, k, v = (x @ params[name].T for name in ("query", "key", "value"))
        scores = scale * q @ k.mT
        if causal:
            # Masked before the softmax, so that the remaining weights sum to 1.
            scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), scores, -jnp.inf)
        a, _ = normalize.forward((), scores)
        h = a @ v
        return h @ params["output"].T, (x, q, k, v, a, h)

    def backward(params: Weights, residuals: Any, dy: Sequences) -> tuple[Weights, Sequences]:
        x, q, k, v, a, h = residuals
        dh = dy @ params["output"]
        da, dv = dh @ v.mT, a.mT @ dh
        # Masked entries have a = 0, where the gradient of softmax vanishes by itself.
        _, dscores = normalize.backward((), a, da)
        dq, dk = scale * dscores @ k, scale * dscores.mT @ q
        dparams = {
            "query": _weight_gradient(dq, x),
            "key": _weight_gradient(dk, x),
            "value": _weight_gradient(dv, x),
            "output": _weight_gradient(dy, h),
        }
        return dparams, dq @ params["query"] + dk @ params["key"] + dv @ params["value"]

    return Layer(init, forward, backward, f"attention({width}{', causal' if causal else ''})")


def _weight_gradient(dz: Sequences, x: Sequences) -> Float[Array, "outputs inputs"]:
    """Return dW = dzᵀ x, the gradient of the matrix in z = x Wᵀ, summed over all positions."""
    return jnp.einsum("bli,blj->ij", dz, x)


def residual(layer: Layer) -> Layer:
    """Return a layer f with a residual connection around it.

        y = x + f(x)
        dx = dy + dy ∂f/∂x

    Params and residuals: those of f.

    Shapes: x, y and f(x) (batch, ...).

    Args:
        layer: the layer f; its output has the shape of its input.

    Raises:
        TypeError: layer is not a `Layer`.
        ValueError: at `forward`, x and f(x) have different shapes.

    >>> from diffprog.backprop import relu
    >>> residual(relu()).forward((), jnp.array([[-1.0, 2.0]]))[0]
    Array([[-1.,  4.]], dtype=float32)
    """
    require_layer("layer", layer)

    def forward(params: Any, x: Batch) -> tuple[Batch, Any]:
        y, residuals = layer.forward(params, x)
        _validation.same_shape(**{"x": x, f"{layer.name} of x": y})
        return x + y, residuals

    def backward(params: Any, residuals: Any, dy: Batch) -> tuple[Any, Batch]:
        dparams, dx = layer.backward(params, residuals, dy)
        return dparams, dy + dx

    return Layer(layer.init, forward, backward, f"residual({layer.name})")
