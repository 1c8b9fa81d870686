"""Affine (fully connected) layers z = W x + b, where each row of a batch is an input x.

The bias b is a parameter of its own (`affine`) or a column of W (`extended_affine`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.backprop._layer import Layer

Weights = dict[str, Array]
Inputs = Float[Array, "batch inputs"]
Outputs = Float[Array, "batch outputs"]


def affine(
    inputs: int, outputs: int, *, bias: bool = True, initializer: Initializer | None = None
) -> Layer:
    """Affine (fully connected) layer.

        z_i = Σ_j W_ij x_j + b_i
        dx = dz W,    dW = dzᵀ x,    db = Σ_batch dz

    Params: `{"weight": (outputs, inputs), "bias": (outputs,)}`. dW has the shape of W; in the
    lectures' numerator layout it is transposed.

    Shapes: x and the residual x (batch, inputs), z (batch, outputs).

    Args:
        inputs: length of x, at least 1.
        outputs: length of z, at least 1.
        bias: whether there is a bias b; it starts at 0.
        initializer: initializer of W, called with shape (inputs, outputs) as `jax.nn.initializers`
            expect; LeCun normal by default.

    Raises:
        TypeError: a size is not an integer; at `forward`, x is not a float array.
        ValueError: a size is below 1; at `forward`, x does not have shape (batch, inputs).

    Source: lectures 000 and 004.

    >>> params = {"weight": jnp.array([[1.0, -1.0]]), "bias": jnp.zeros(1)}
    >>> affine(2, 1).forward(params, jnp.array([[3.0, 2.0]]))[0]
    Array([[1.]], dtype=float32)
    """
    _validation.integer("inputs", inputs, low=1)
    _validation.integer("outputs", outputs, low=1)
    initialize = _validation.function("initializer", initializer or lecun_normal())
    shapes = {"weight": (outputs, inputs)} | ({"bias": (outputs,)} if bias else {})

    def init(key: jax.Array) -> Weights:
        # Initializers of `jax.nn` expect (fan-in, fan-out).
        weight = initialize(key, (inputs, outputs)).T
        return {"weight": weight} | ({"bias": jnp.zeros(outputs, weight.dtype)} if bias else {})

    def forward(params: Weights, x: Inputs) -> tuple[Outputs, Any]:
        _check_input(x, inputs)
        _validation.entries("params", params, shapes)
        z = x @ params["weight"].T
        return (z + params["bias"] if bias else z), x

    def backward(params: Weights, x: Any, dz: Outputs) -> tuple[Weights, Inputs]:
        dparams = {"weight": dz.T @ x} | ({"bias": dz.sum(0)} if bias else {})
        return dparams, dz @ params["weight"]

    return Layer(init, forward, backward, name=f"affine({inputs}, {outputs})")


def extended_affine(inputs: int, outputs: int, *, initializer: Initializer | None = None) -> Layer:
    """Affine layer whose bias is column 0 of the weight, the weight of a constant input 1.

        z_i = Σ_{j >= 0} w_ij y_j,    y = (1, x)
        dw = dzᵀ y,    dx = dz w without column 0

    Params: `{"weight": (outputs, inputs + 1)}`, the bias in column 0.

    Shapes: x (batch, inputs), z (batch, outputs), residual y (batch, inputs + 1).

    Args:
        inputs: length of x, at least 1.
        outputs: length of z, at least 1.
        initializer: initializer of the weights without the bias column, which starts at 0; as for
            `affine`.

    Raises:
        TypeError, ValueError: as for `affine`.

    Source: lecture 004, which calls this extended notation.

    >>> params = {"weight": jnp.array([[5.0, 1.0, -1.0]])}
    >>> extended_affine(2, 1).forward(params, jnp.array([[3.0, 2.0]]))[0]
    Array([[6.]], dtype=float32)
    """
    plain = affine(inputs, outputs, initializer=initializer)

    def init(key: jax.Array) -> Weights:
        params = plain.init(key)
        return {"weight": jnp.concatenate([params["bias"][:, None], params["weight"]], 1)}

    def forward(params: Weights, x: Inputs) -> tuple[Outputs, Any]:
        _check_input(x, inputs)
        _validation.entries("params", params, {"weight": (outputs, inputs + 1)})
        y = jnp.concatenate([jnp.ones_like(x[:, :1]), x], 1)
        return y @ params["weight"].T, y

    def backward(params: Weights, y: Any, dz: Outputs) -> tuple[Weights, Inputs]:
        return {"weight": dz.T @ y}, dz @ params["weight"][:, 1:]

    return Layer(init, forward, backward, name=f"extended_affine({inputs}, {outputs})")


def _check_input(x: Any, inputs: int) -> None:
    _validation.floating("x", x, rank=2)
    if x.shape[1] != inputs:
        raise ValueError(
            f"x must have shape (batch, {inputs}) for this affine layer, got {list(x.shape)}"
        )
