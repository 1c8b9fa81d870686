"""Activation layers: sigmoid, tanh, relu, leaky relu, elu, maxout, softmax and log-softmax.

An elementwise y = f(z) has the diagonal Jacobian f'(z), so dz = dy f'(z), where dz = dJ/dz and
dy = dJ/dy. Each layer keeps the residual from which f' is cheapest: y for sigmoid, tanh, softmax
and log-softmax, z for relu, leaky relu and elu.

At a kink the derivative is that of `jax.nn`: 0 for relu at 0, 1 for leaky relu and elu at 0.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.backprop._affine import affine
from diffprog.backprop._layer import Layer, layer_without_params

Values = Float[Array, "batch ..."]


def _activation(
    name: str,
    forward: Callable[[Values], tuple[Values, Values]],
    backward: Callable[[Values, Values], Values],
) -> Layer:
    """Build an activation layer, which has no parameters and checks that z is a float array.

    `forward` is z -> (y, residual) and `backward` is (residual, dy) -> dz.
    """

    def checked_forward(z: Values) -> tuple[Values, Values]:
        _validation.floating("z", z)
        return forward(z)

    return layer_without_params(name, checked_forward, backward)


def _with_output_as_residual(f: Callable[[Values], Values]) -> Callable[..., tuple[Values, Values]]:
    """Convert y = f(z) to a forward pass z -> (y, y): the output is its residual too."""

    def forward(z: Values) -> tuple[Values, Values]:
        y = f(z)
        return y, y

    return forward


def sigmoid() -> Layer:
    """Sigmoid activation layer.

        y = 1 / (1 + e^-z)
        dz = dy y (1 - y)

    Shapes: z, y and the residual y (batch, ...).

    >>> sigmoid().forward((), jnp.zeros((1, 1)))[0]
    Array([[0.5]], dtype=float32)
    """
    forward = _with_output_as_residual(jax.nn.sigmoid)
    return _activation("sigmoid", forward, lambda y, dy: dy * y * (1 - y))


def tanh() -> Layer:
    """Hyperbolic tangent activation layer.

        y = tanh z
        dz = dy (1 - y²)

    Shapes: z, y and the residual y (batch, ...).

    >>> tanh().forward((), jnp.zeros((1, 1)))[0]
    Array([[0.]], dtype=float32)
    """
    return _activation("tanh", _with_output_as_residual(jnp.tanh), lambda y, dy: dy * (1 - y * y))


def relu(*, at_zero: float = 0.0) -> Layer:
    """Rectified linear activation layer (ReLU).

        y = max(z, 0)
        dz = dy where z > 0, at_zero dy where z = 0, else 0

    Shapes: z, y and the residual z (batch, ...).

    Args:
        at_zero: subgradient at 0, in [0, 1]; 0 as in `jax.nn.relu`, 1 in lecture 004.

    Raises:
        TypeError, ValueError: at_zero is not a number in [0, 1].

    >>> relu().forward((), jnp.array([[-1.0, 2.0]]))[0]
    Array([[0., 2.]], dtype=float32)
    """
    at_zero = _validation.number("at_zero", at_zero, low=0, high=1)

    def backward(z: Values, dy: Values) -> Values:
        slope = (z > 0).astype(z.dtype)
        return dy * (slope + at_zero * (z == 0) if at_zero else slope)

    name = f"relu(at_zero={at_zero:g})" if at_zero else "relu"
    return _activation(name, lambda z: (jnp.maximum(z, 0), z), backward)


def leaky_relu(slope: float = 0.1) -> Layer:
    """Leaky rectified linear activation layer.

        y = max(slope z, z)
        dz = dy where z >= 0, else slope dy

    Shapes: z, y and the residual z (batch, ...).

    Args:
        slope: derivative for negative z, in [0, 1]; 0.1 as in lecture 001 (`jax.nn` has 0.01).

    Raises:
        TypeError, ValueError: slope is not a number in [0, 1].

    >>> leaky_relu().forward((), jnp.array([[-1.0, 2.0]]))[0]
    Array([[-0.1,  2. ]], dtype=float32)
    """
    slope = _validation.number("slope", slope, low=0, high=1)
    return _activation(
        f"leaky_relu({slope:g})",
        lambda z: (jnp.where(z >= 0, z, slope * z), z),
        lambda z, dy: jnp.where(z >= 0, dy, slope * dy),
    )


def elu(alpha: float = 1.0) -> Layer:
    """Exponential linear activation layer (ELU).

        y = z where z >= 0, else α (e^z - 1)
        dz = dy where z >= 0, else dy α e^z

    Shapes: z, y and the residual z (batch, ...).

    Args:
        alpha: α >= 0; y tends to -α for z to minus infinity.

    Raises:
        TypeError, ValueError: alpha is not a number >= 0.

    >>> elu().forward((), jnp.array([[0.0, 2.0]]))[0]
    Array([[0., 2.]], dtype=float32)
    """
    alpha = _validation.number("alpha", alpha, low=0)

    # The exponent is clipped because the unselected branch of `where` is evaluated too.
    def forward(z: Values) -> tuple[Values, Values]:
        return jnp.where(z >= 0, z, alpha * jnp.expm1(jnp.minimum(z, 0))), z

    def backward(z: Values, dy: Values) -> Values:
        return dy * jnp.where(z >= 0, 1, alpha * jnp.exp(jnp.minimum(z, 0)))

    return _activation(f"elu({alpha:g})", forward, backward)


def softmax() -> Layer:
    """Layer of the softmax over the last axis.

        y_i = e^{z_i} / Σ_j e^{z_j}
        dz = y (dy - Σ_i dy_i y_i)

    This is dz = dy J with J_ij = y_i (δ_ij - y_j), which is never formed.

    Shapes: z, y and the residual y (..., classes).

    Source: lecture 004, "Special case 1. Vector activations".

    >>> softmax().forward((), jnp.zeros((1, 2)))[0]
    Array([[0.5, 0.5]], dtype=float32)
    """
    return _activation(
        "softmax",
        _with_output_as_residual(jax.nn.softmax),
        lambda y, dy: y * (dy - (dy * y).sum(-1, keepdims=True)),
    )


def log_softmax() -> Layer:
    """Layer of the logarithm of the softmax over the last axis.

        y_i = z_i - log Σ_j e^{z_j}
        dz_j = dy_j - e^{y_j} Σ_i dy_i

    This is dz = dy J with J_ij = δ_ij - e^{y_j}, which is never formed.

    Shapes: z, y and the residual y (..., classes).

    >>> log_softmax().forward((), jnp.zeros((1, 1)))[0]
    Array([[0.]], dtype=float32)
    """
    return _activation(
        "log_softmax",
        _with_output_as_residual(jax.nn.log_softmax),
        lambda y, dy: dy - jnp.exp(y) * dy.sum(-1, keepdims=True),
    )


def softmax_jacobian(y: Float[Array, "*batch n"]) -> Float[Array, "*batch n n"]:
    """Return the Jacobian of softmax, computed from its output; it is symmetric, rows sum to 0.

        J_ij = ∂y_i / ∂z_j = y_i (δ_ij - y_j),    y = softmax(z)

    Args:
        y: probabilities (..., classes), the output of `softmax`.

    Returns:
        J (..., classes, classes), in numerator layout.

    Raises:
        TypeError: y is not a float array.

    Source: lecture 004, "Special case 1. Vector activations".

    >>> softmax_jacobian(jnp.array([0.5, 0.5]))
    Array([[ 0.25, -0.25],
           [-0.25,  0.25]], dtype=float32)
    """
    return y[..., :, None] * log_softmax_jacobian(y)


def log_softmax_jacobian(y: Float[Array, "*batch n"]) -> Float[Array, "*batch n n"]:
    """Return the Jacobian of log-softmax, computed from the probabilities; its rows sum to 0.

        J_ij = ∂ log y_i / ∂z_j = δ_ij - y_j,    y = softmax(z)

    Args:
        y: probabilities (..., classes), the output of `softmax`, or the exponential of that of
            `log_softmax`.

    Returns:
        J (..., classes, classes), in numerator layout.

    Raises:
        TypeError: y is not a float array.

    >>> log_softmax_jacobian(jnp.array([0.5, 0.5]))
    Array([[ 0.5, -0.5],
           [-0.5,  0.5]], dtype=float32)
    """
    _validation.floating("y", y)
    return jnp.eye(y.shape[-1], dtype=y.dtype) - y[..., None, :]


def maxout(
    inputs: int, outputs: int, *, pieces: int = 2, initializer: Initializer | None = None
) -> Layer:
    """Maxout layer: each unit is the maximum of several affine functions, its pieces.

        y_i = max_p (w_pi x + b_pi)

    In the backward pass dy_i goes to the largest piece; ties share it equally. Lecture 001 has two
    pieces, max(w_1 x + b_1, w_2 x + b_2).

    Params: those of `affine(inputs, outputs * pieces)`; row i * pieces + p is piece p of unit i.

    Shapes: x (batch, inputs), y (batch, outputs); residuals x and the mask of the largest pieces
    (batch, outputs, pieces).

    Args:
        inputs: length of x.
        outputs: number of units.
        pieces: number of pieces per unit, at least 2.
        initializer: initializer of the weights, as for `affine`.

    Raises:
        TypeError, ValueError: as for `affine`; pieces is not an integer of at least 2.

    >>> maxout(3, 2).init(jax.random.key(0))["weight"].shape
    (4, 3)
    """
    _validation.integer("pieces", pieces, low=2)
    linear = affine(inputs, outputs * pieces, initializer=initializer)

    def forward(params: Any, x: Values) -> tuple[Values, Any]:
        z, linear_residuals = linear.forward(params, x)
        # Unit-major: z[:, i, p] is piece p of unit i.
        z = z.reshape(len(z), outputs, pieces)
        y = z.max(-1)
        return y, (linear_residuals, z == y[..., None])

    def backward(params: Any, residuals: Any, dy: Values) -> tuple[Any, Values]:
        linear_residuals, is_largest = residuals
        share = dy / is_largest.sum(-1)
        dz = (is_largest * share[..., None]).reshape(len(dy), -1).astype(dy.dtype)
        return linear.backward(params, linear_residuals, dz)

    return Layer(linear.init, forward, backward, name=f"maxout({inputs}, {outputs})")
