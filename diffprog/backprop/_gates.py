"""Layers for the elementary operations of a computation graph: sum, product, maximum and copy.

Lectures 003 and 004 call them gates:

    gate                        forward           backward
    add, the distributor        y = Σ_i x_i       dx_i = dy
    multiply, the switcher      y = Π_i x_i       dx_i = dy Π_{j != i} x_j
    max, the router             y = max_i x_i     dx_i = dy where x_i is the maximum, else 0
    copy, the fan-out           y_i = x           dx = Σ_i dy_i

Copy and add are each other's backward pass, so the adjoints dJ/dx of a value x that is used several
times are added.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer, lecun_normal
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.backprop._layer import Layer, layer_without_params

Values = Float[Array, "batch ..."]
Rows = Float[Array, "batch n"]
Weights = dict[str, Array]


def add() -> Layer:
    """Layer that adds its inputs, n arrays of one shape; each of them gets the gradient dy.

        y = x_1 + ... + x_n,    dx_i = dy

    Shapes: x a tuple of n arrays (batch, ...), y (batch, ...); residuals a tuple of n None.

    >>> add().forward((), (jnp.array([1.0]), jnp.array([2.0])))[0]
    Array([3.], dtype=float32)
    """

    def forward(x: tuple[Values, ...]) -> tuple[Values, Any]:
        _check_tuple(x)
        return functools.reduce(operator.add, x), (None,) * len(x)

    return layer_without_params("add", forward, lambda inputs, dy: (dy,) * len(inputs))


def multiply() -> Layer:
    """Layer that multiplies its inputs, n arrays of one shape, element by element.

        y = x_1 ... x_n,    dx_i = dy Π_{j != i} x_j

    Shapes: x and the residual x a tuple of n arrays (batch, ...), y (batch, ...).

    >>> multiply().backward((), (jnp.array([3.0]), jnp.array([4.0])), jnp.array([1.0]))[1]
    (Array([4.], dtype=float32), Array([3.], dtype=float32))
    """

    def forward(x: tuple[Values, ...]) -> tuple[Values, Any]:
        _check_tuple(x)
        return functools.reduce(operator.mul, x), x

    def backward(x: Any, dy: Values) -> tuple[Values, ...]:
        others = [(*x[:i], *x[i + 1 :]) for i in range(len(x))]
        return tuple(functools.reduce(operator.mul, factors, dy) for factors in others)

    return layer_without_params("multiply", forward, backward)


def copy(count: int) -> Layer:
    """Layer that returns several copies of its input; the backward pass adds their cotangents.

        y_1 = ... = y_count = x,    dx = dy_1 + ... + dy_count

    Shapes: x (batch, ...), y and dy tuples of `count` such arrays; there are no residuals.

    Args:
        count: number of copies, at least 1.

    Raises:
        TypeError, ValueError: count is not an integer of at least 1; at `forward`, x is not a float
            array.

    >>> copy(2).backward((), (), (jnp.array([1.0]), jnp.array([2.0])))[1]
    Array([3.], dtype=float32)
    """
    _validation.integer("count", count, low=1)

    def forward(x: Values) -> tuple[tuple[Values, ...], Any]:
        _validation.floating("x", x)
        return (x,) * count, ()

    backward = lambda residuals, dy: functools.reduce(operator.add, dy)
    return layer_without_params(f"copy({count})", forward, backward)


def max_over(subsets: Sequence[Sequence[int]]) -> Layer:
    """Layer that returns the maximum over each of several subsets of the input's entries.

        y_j = max_{l in S_j} z_l
        dz_l = Σ_j dy_j over the subsets of which z_l is the maximum

    If several entries of a subset have the maximum, they share dy_j equally, as in `jnp.max`;
    lecture 004 gives it to one of them.

    Shapes: z (batch, n), y (batch, subsets); residuals (z, y).

    Args:
        subsets: S_1, S_2, ..., each a sequence of positions in z (from 0) without duplicates;
            different subsets may overlap.

    Raises:
        TypeError: a position is not an integer; at `forward`, z is not a float array.
        ValueError: there is no subset, or one is empty or has duplicates; at `forward`, z does not
            have shape (batch, n), or n is too small.

    Source: lecture 004, "Subgradients and the Max".

    >>> max_over([[0, 1], [1, 2]]).forward((), jnp.array([[1.0, 5.0, 7.0]]))[0]
    Array([[5., 7.]], dtype=float32)
    """
    positions = _check_subsets(subsets)
    min_length = max(map(max, positions)) + 1

    def membership(z: Values) -> np.ndarray:
        # In NumPy, so that the mask is a constant of the traced program.
        return np.stack([np.isin(np.arange(z.shape[1]), subset) for subset in positions])

    def forward(z: Rows) -> tuple[Rows, Any]:
        _validation.floating("z", z, rank=2)
        if z.shape[1] < min_length:
            raise ValueError(
                f"z must have shape (batch, {min_length}) or longer for these subsets, "
                f"got {list(z.shape)}"
            )
        y = jnp.where(membership(z), z[:, None, :], -jnp.inf).max(-1)
        return y, (z, y)

    def backward(residuals: Any, dy: Rows) -> Rows:
        z, y = residuals
        is_largest = membership(z) & (z[:, None, :] == y[:, :, None])
        share = dy / is_largest.sum(-1, dtype=dy.dtype)
        return jnp.where(is_largest, share[:, :, None], 0).sum(1)

    return layer_without_params(f"max_over({len(positions)} subsets)", forward, backward)


def _check_subsets(subsets: Any) -> list[list[int]]:
    if not isinstance(subsets, Sequence) or isinstance(subsets, str) or not subsets:
        raise ValueError(f"subsets must be a sequence of at least one subset, got {subsets!r}")
    for j, subset in enumerate(subsets):
        if not isinstance(subset, Sequence) or not subset or len(set(subset)) < len(subset):
            raise ValueError(
                f"subsets[{j}] must be at least one position, without duplicates, got {subset!r}"
            )
    return [
        [_validation.integer(f"subsets[{j}]", position, low=0) for position in subset]
        for j, subset in enumerate(subsets)
    ]


def pairwise_product() -> Layer:
    """Layer that multiplies neighbouring entries of the input in pairs, as in lecture 004.

        y_i = z_{2i-1} z_{2i}
        dz_{2i-1} = dy_i z_{2i},    dz_{2i} = dy_i z_{2i-1}

    Shapes: z and the residual z (batch, 2n), y (batch, n).

    >>> pairwise_product().forward((), jnp.array([[2.0, -3.0, 0.5, 4.0]]))[0]
    Array([[-6.,  2.]], dtype=float32)
    """

    def forward(z: Rows) -> tuple[Rows, Any]:
        _validation.floating("z", z, rank=2)
        if z.shape[1] % 2:
            raise ValueError(f"z must have shape (batch, 2 n), got {list(z.shape)}")
        return z[:, ::2] * z[:, 1::2], z

    def backward(z: Any, dy: Rows) -> Rows:
        return jnp.stack([dy * z[:, 1::2], dy * z[:, ::2]], -1).reshape(z.shape)

    return layer_without_params("pairwise_product", forward, backward)


def power_product(inputs: int, outputs: int, *, initializer: Initializer | None = None) -> Layer:
    """Layer of products of powers of the inputs, with trainable exponents α.

        y_i = Π_l z_l^α_li
        dz_j = Σ_i dy_i α_ji z_j^(α_ji - 1) Π_{l != j} z_l^α_li
        dα_li = Σ_batch dy_i y_i ln z_l

    z may be 0 or negative where z^α is a finite real number: 0 to a power >= 0, a negative z to an
    integer power. There the derivative with respect to α does not exist and is set to 0. The
    backward pass does not divide by z.

    Params: `{"alpha": (inputs, outputs)}`.

    Shapes: z and the residual z (batch, inputs), y (batch, outputs).

    Args:
        inputs: length of z.
        outputs: length of y.
        initializer: initializer of α, called with its shape; LeCun normal by default.

    Raises:
        TypeError: a size is not an integer; at `forward`, z is not a float array.
        ValueError: a size is below 1; at `forward`, z does not have shape (batch, inputs), or a
            power is not a finite real number (not checked for traced values).

    Source: lecture 004, "Special case 2. Multiplicative networks"; dα is not printed there.

    >>> params = {"alpha": jnp.array([[2.0], [-1.0]])}
    >>> power_product(2, 1).forward(params, jnp.array([[3.0, 2.0]]))[0]
    Array([[4.5]], dtype=float32)
    """
    _validation.integer("inputs", inputs, low=1)
    _validation.integer("outputs", outputs, low=1)
    initialize = _validation.function("initializer", initializer or lecun_normal())

    def forward(params: Weights, z: Rows) -> tuple[Rows, Any]:
        _check_powers(z, params["alpha"], inputs)
        return (z[:, :, None] ** params["alpha"]).prod(1), z

    def backward(params: Weights, z: Any, dy: Rows) -> tuple[Weights, Rows]:
        alpha, base = params["alpha"], z[:, :, None]
        powers = base**alpha
        # 0 * 0^-1 is NaN; where base and exponent are 0 the power is constant in z.
        slope = alpha * base ** jnp.where((base == 0) & (alpha == 0), 1, alpha - 1)
        dz = (dy[:, None, :] * slope * _product_of_others(powers)).sum(2)
        # The inner `where` avoids NaN gradients of the logarithm in second derivatives.
        logarithm = jnp.log(jnp.where(z > 0, z, 1))
        return {"alpha": logarithm.T @ (dy * powers.prod(1))}, dz

    init = lambda key: {"alpha": initialize(key, (inputs, outputs))}
    return Layer(init, forward, backward, f"power_product({inputs}, {outputs})")


def _product_of_others(factors: Float[Array, "batch inputs outputs"]) -> Array:
    """For each entry, compute the product of all others along axis 1, without division."""
    one = jnp.ones_like(factors[:, :1])
    before = jnp.cumprod(jnp.concatenate([one, factors[:, :-1]], 1), 1)
    after = jnp.cumprod(jnp.concatenate([one, factors[:, :0:-1]], 1), 1)[:, ::-1]
    return before * after


def _check_powers(z: Any, alpha: Any, inputs: int) -> None:
    _validation.floating("z", z, rank=2)
    if z.shape[1] != inputs:
        raise ValueError(
            f"z must have shape (batch, {inputs}) for this power_product layer, got {list(z.shape)}"
        )
    base, power = _validation.values(z), _validation.values(alpha)
    if base is None or power is None:
        return
    base = base[:, :, None]
    invalid = ((base < 0) & (power != np.round(power))) | ((base == 0) & (power < 0))
    if invalid.any():
        n, j, i = np.argwhere(invalid)[0]
        raise ValueError(
            f"z ** alpha must be a finite real number, "
            f"got z[{n}, {j}] = {base[n, j, 0]} to the power {power[j, i]}"
        )


def _check_tuple(x: Any) -> None:
    if not isinstance(x, tuple) or not x:
        raise TypeError(f"x must be a tuple of arrays, got {type(x).__name__}")
    for i, array in enumerate(x):
        _validation.floating(f"x[{i}]", array)
    _validation.same_shape(**{f"x[{i}]": array for i, array in enumerate(x)})
