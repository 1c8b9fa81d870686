"""The affine layer, z = W x + b of lectures 000 and 004, for a batch of rows x."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.backprop._layer import Layer


def affine(
    inputs: int, outputs: int, *, bias: bool = True, initializer: Initializer | None = None
) -> Layer:
    """z_i = sum_j W_ij x_j + b_i, with dx = dz W, dW = dz^T x, db = sum of dz over the batch.

    Params: `{"weight": (outputs, inputs), "bias": (outputs,)}`, W as the lectures write it. Their numerator layout has the
    transpose of dW, x dz.

    Args:
        inputs: length of x, at least 1.
        outputs: length of z, at least 1.
        bias: whether there is a b.
        initializer: of W, called with shape (inputs, outputs) as `jax.nn.initializers` expects; LeCun normal by default. b starts at 0.

    Raises:
        TypeError, ValueError: a size that is not a positive integer; at `forward`, x that is not float (batch, inputs).

    >>> layer = affine(2, 1)
    >>> layer.forward({"weight": jnp.array([[1.0, -1.0]]), "bias": jnp.zeros(1)}, jnp.array([[3.0, 2.0]]))[0]
    Array([[1.]], dtype=float32)
    """
    _validation.integer("inputs", inputs, low=1)
    _validation.integer("outputs", outputs, low=1)
    draw = (
        lecun_normal() if initializer is None else _validation.function("initializer", initializer)
    )

    def init(key: jax.Array) -> dict[str, Array]:
        weight = draw(key, (inputs, outputs)).T
        return (
            {"weight": weight, "bias": jnp.zeros(outputs, weight.dtype)}
            if bias
            else {"weight": weight}
        )

    def forward(
        params: dict[str, Array], x: Float[Array, "batch inputs"]
    ) -> tuple[Float[Array, "batch outputs"], Any]:
        _check(x, inputs)
        _validation.entries(
            "params",
            params,
            {"weight": (outputs, inputs), **({"bias": (outputs,)} if bias else {})},
        )
        z = x @ params["weight"].T
        return (z + params["bias"] if bias else z), x

    def backward(
        params: dict[str, Array], x: Any, dz: Float[Array, "batch outputs"]
    ) -> tuple[dict[str, Array], Any]:
        dparams = {"weight": dz.T @ x}
        if bias:
            dparams["bias"] = dz.sum(0)
        return dparams, dz @ params["weight"]

    return Layer(init, forward, backward, name=f"affine({inputs}, {outputs})")


def extended_affine(inputs: int, outputs: int, *, initializer: Initializer | None = None) -> Layer:
    """z_i = sum_{j >= 0} w_ij y_j with y_0 = 1: lecture 004's extended notation, in which the bias is the weight w_i0.

    With y = (1, x) there is one rule for all weights, dw = dz^T y, and dx = dz w without the column of y_0.

    Params: `{"weight": (outputs, inputs + 1)}`, the bias in column 0.

    Args:
        inputs: length of x, at least 1.
        outputs: length of z, at least 1.
        initializer: of all but column 0, which starts at 0; as for `affine`.

    Raises:
        TypeError, ValueError: as for `affine`.

    >>> layer = extended_affine(2, 1)
    >>> layer.forward({"weight": jnp.array([[5.0, 1.0, -1.0]])}, jnp.array([[3.0, 2.0]]))[0]
    Array([[6.]], dtype=float32)
    """
    plain = affine(inputs, outputs, initializer=initializer)

    def init(key: jax.Array) -> dict[str, Array]:
        drawn = plain.init(key)
        return {"weight": jnp.concatenate([drawn["bias"][:, None], drawn["weight"]], 1)}

    def forward(
        params: dict[str, Array], x: Float[Array, "batch inputs"]
    ) -> tuple[Float[Array, "batch outputs"], Any]:
        _check(x, inputs)
        _validation.entries("params", params, {"weight": (outputs, inputs + 1)})
        y = jnp.concatenate([jnp.ones_like(x[:, :1]), x], 1)
        return y @ params["weight"].T, y

    def backward(
        params: dict[str, Array], y: Any, dz: Float[Array, "batch outputs"]
    ) -> tuple[dict[str, Array], Any]:
        return {"weight": dz.T @ y}, dz @ params["weight"][:, 1:]

    return Layer(init, forward, backward, name=f"extended_affine({inputs}, {outputs})")


def _check(x: Any, inputs: int) -> None:
    _validation.floating("x", x, rank=2)
    if x.shape[1] != inputs:
        raise ValueError(
            f"x must have shape (batch, {inputs}) for this affine layer, got {list(x.shape)}"
        )
