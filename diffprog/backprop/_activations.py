"""Activations: the elementwise ones of lecture 001, maxout, and the vector activations softmax and log-softmax.

An elementwise y = f(z) has the diagonal Jacobian f'(z), so dz = dy f'(z). Each rule below keeps the residual from which f' is
cheapest: y itself for sigmoid (y (1 - y)) and tanh (1 - y^2), z for the others.

Where f has a kink, the derivative used is the one of `jax.nn`: 0 for relu at 0, 1 for leaky relu and elu at 0.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.backprop._affine import affine
from diffprog.backprop._layer import Layer

Values = Float[Array, "batch ..."]


def _without_params(
    name: str,
    forward: Callable[[Values], tuple[Values, Any]],
    backward: Callable[[Any, Values], Values],
) -> Layer:
    def checked_forward(params: tuple[()], z: Values) -> tuple[Values, Any]:
        _validation.floating("z", z)
        return forward(z)

    return Layer(
        lambda key: (),
        checked_forward,
        lambda params, residuals, dy: ((), backward(residuals, dy)),
        name,
    )


def sigmoid() -> Layer:
    """y = 1 / (1 + e^-z), dz = dy y (1 - y).

    >>> sigmoid().forward((), jnp.zeros((1, 1)))[0]
    Array([[0.5]], dtype=float32)
    """

    def forward(z: Values) -> tuple[Values, Values]:
        y = jax.nn.sigmoid(z)
        return y, y

    return _without_params("sigmoid", forward, lambda y, dy: dy * y * (1 - y))


def tanh() -> Layer:
    """y = tanh z, dz = dy (1 - y^2).

    >>> tanh().forward((), jnp.zeros((1, 1)))[0]
    Array([[0.]], dtype=float32)
    """

    def forward(z: Values) -> tuple[Values, Values]:
        y = jnp.tanh(z)
        return y, y

    return _without_params("tanh", forward, lambda y, dy: dy * (1 - y * y))


def relu(*, at_zero: float = 0.0) -> Layer:
    """y = max(z, 0), dz = dy where z > 0, `at_zero` dy where z = 0, else 0.

    Args:
        at_zero: the subgradient at 0, in [0, 1]; `jax.nn.relu` has 0, lecture 004 says 1.

    >>> relu().forward((), jnp.array([[-1.0, 2.0]]))[0]
    Array([[0., 2.]], dtype=float32)
    """
    at_zero = _validation.number("at_zero", at_zero, low=0, high=1)

    def slope(z: Values) -> Values:
        positive = (z > 0).astype(z.dtype)
        return positive + at_zero * (z == 0) if at_zero else positive

    name = f"relu(at_zero={at_zero:g})" if at_zero else "relu"
    return _without_params(name, lambda z: (jnp.maximum(z, 0), z), lambda z, dy: dy * slope(z))


def leaky_relu(slope: float = 0.1) -> Layer:
    """y = max(slope z, z), dz = dy where z >= 0, slope dy elsewhere. The slope of lecture 001 is 0.1 (`jax.nn` has 0.01).

    Args:
        slope: below zero, in [0, 1].

    >>> leaky_relu().forward((), jnp.array([[-1.0, 2.0]]))[0]
    Array([[-0.1,  2. ]], dtype=float32)
    """
    slope = _validation.number("slope", slope, low=0, high=1)

    def forward(z: Values) -> tuple[Values, Values]:
        return jnp.where(z >= 0, z, slope * z), z

    return _without_params(
        f"leaky_relu({slope:g})", forward, lambda z, dy: jnp.where(z >= 0, dy, slope * dy)
    )


def elu(alpha: float = 1.0) -> Layer:
    """y = z where z >= 0, else alpha (e^z - 1); dz = dy, else dy alpha e^z.

    Args:
        alpha: minus the value at minus infinity, >= 0.

    >>> elu().forward((), jnp.array([[0.0, 2.0]]))[0]
    Array([[0., 2.]], dtype=float32)
    """
    alpha = _validation.number("alpha", alpha, low=0)

    def forward(z: Values) -> tuple[Values, Values]:
        return jnp.where(z >= 0, z, alpha * jnp.expm1(jnp.minimum(z, 0))), z

    return _without_params(
        f"elu({alpha:g})",
        forward,
        lambda z, dy: dy * jnp.where(z >= 0, 1, alpha * jnp.exp(jnp.minimum(z, 0))),
    )


def softmax() -> Layer:
    """y_i = e^{z_i} / sum_j e^{z_j} over the last axis; dz = y (dy - sum_i dy_i y_i).

    This is dz = dy J with the full Jacobian J_ij = y_i (d_ij - y_j) of lecture 004's special case 1, never formed.

    >>> softmax().forward((), jnp.zeros((1, 2)))[0]
    Array([[0.5, 0.5]], dtype=float32)
    """

    def forward(z: Values) -> tuple[Values, Values]:
        y = jax.nn.softmax(z)
        return y, y

    return _without_params(
        "softmax", forward, lambda y, dy: y * (dy - (dy * y).sum(-1, keepdims=True))
    )


def log_softmax() -> Layer:
    """y_i = z_i - log sum_j e^{z_j} over the last axis; dz_j = dy_j - e^{y_j} sum_i dy_i.

    This is dz = dy J with the full Jacobian J_ij = d_ij - e^{y_j}, never formed.

    >>> log_softmax().forward((), jnp.zeros((1, 1)))[0]
    Array([[0.]], dtype=float32)
    """

    def forward(z: Values) -> tuple[Values, Values]:
        y = jax.nn.log_softmax(z)
        return y, y

    return _without_params(
        "log_softmax", forward, lambda y, dy: dy - jnp.exp(y) * dy.sum(-1, keepdims=True)
    )


def softmax_jacobian(y: Float[Array, "*batch n"]) -> Float[Array, "*batch n n"]:
    """J_ij = dy_i / dz_j = y_i (d_ij - y_j) of y = softmax(z), rows outputs and columns inputs. Symmetric; its rows sum to 0.

    Args:
        y: probabilities, the output of `softmax`.

    Source: lecture 004, "Special case 1. Vector activations".

    >>> softmax_jacobian(jnp.array([0.5, 0.5]))
    Array([[ 0.25, -0.25],
           [-0.25,  0.25]], dtype=float32)
    """
    return y[..., :, None] * log_softmax_jacobian(y)


def log_softmax_jacobian(y: Float[Array, "*batch n"]) -> Float[Array, "*batch n n"]:
    """J_ij = d log y_i / dz_j = d_ij - y_j of y = softmax(z), rows outputs and columns inputs. Its rows sum to 0.

    Args:
        y: probabilities, the output of `softmax` (for `log_softmax`, the exponential of its output).

    >>> log_softmax_jacobian(jnp.array([0.5, 0.5]))
    Array([[ 0.5, -0.5],
           [-0.5,  0.5]], dtype=float32)
    """
    _validation.floating("y", y)
    return jnp.eye(y.shape[-1], dtype=y.dtype) - y[..., None, :]


def maxout(
    inputs: int, outputs: int, *, pieces: int = 2, initializer: Initializer | None = None
) -> Layer:
    """y_i = max_p (w_pi x + b_pi), lecture 001's max(w1 x + b1, w2 x + b2); the gradient goes to the piece that won, shared on a tie.

    Params: those of `affine(inputs, outputs * pieces)`, unit by unit: row i * pieces + p is piece p of unit i.

    Args:
        inputs: length of x.
        outputs: number of units.
        pieces: affine pieces of a unit, at least 2.
        initializer: of the weights, as for `affine`.

    >>> maxout(3, 2).init(jax.random.key(0))["weight"].shape
    (4, 3)
    """
    _validation.integer("pieces", pieces, low=2)
    linear = affine(inputs, outputs * pieces, initializer=initializer)

    def forward(params: Any, x: Values) -> tuple[Values, Any]:
        z, kept = linear.forward(params, x)
        z = z.reshape(len(z), outputs, pieces)
        y = z.max(-1)
        return y, (kept, z == y[..., None])

    def backward(params: Any, residuals: Any, dy: Values) -> tuple[Any, Values]:
        kept, won = residuals
        share = dy / won.sum(-1)
        return linear.backward(
            params, kept, (won * share[..., None]).reshape(len(dy), -1).astype(dy.dtype)
        )

    return Layer(linear.init, forward, backward, name=f"maxout({inputs}, {outputs})")
