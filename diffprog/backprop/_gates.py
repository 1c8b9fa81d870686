"""Gates: the small functions that a computation graph is drawn with, and what each does to the gradient (lectures 003 and 004).

    gate                                     forward             backward
    add, the distributor                     y = sum_i x_i       dx_i = dy
    multiply, the switcher                   y = prod_i x_i      dx_i = dy prod_{j != i} x_j
    max, the router                          y = max_i x_i       dx_i = dy where x_i won
    copy, the fan-out                        y_i = x             dx = sum_i dy_i

Copy and add are each other's backward pass: that is why adjoints of a value used twice are summed.
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
from diffprog.backprop._layer import Layer

Values = Float[Array, "batch ..."]


def add() -> Layer:
    """y = x_1 + ... + x_n; dx_i = dy, the gradient is distributed. x: a tuple of arrays of one shape.

    >>> add().forward((), (jnp.array([1.0]), jnp.array([2.0])))[0]
    Array([3.], dtype=float32)
    """

    def forward(params: tuple[()], x: tuple[Values, ...]) -> tuple[Values, Any]:
        _check(x)
        return functools.reduce(operator.add, x), (None,) * len(x)

    return Layer(
        lambda key: (), forward, lambda params, inputs, dy: ((), (dy,) * len(inputs)), "add"
    )


def multiply() -> Layer:
    """y = x_1 ... x_n; dx_i = dy times all the others: of two inputs, each gets the other's value. x: a tuple of arrays of one shape.

    >>> multiply().backward((), (jnp.array([3.0]), jnp.array([4.0])), jnp.array([1.0]))[1]
    (Array([4.], dtype=float32), Array([3.], dtype=float32))
    """

    def forward(params: tuple[()], x: tuple[Values, ...]) -> tuple[Values, Any]:
        _check(x)
        return functools.reduce(operator.mul, x), x

    def backward(params: tuple[()], x: Any, dy: Values) -> tuple[tuple[()], tuple[Values, ...]]:
        return (), tuple(
            functools.reduce(operator.mul, (*x[:i], *x[i + 1 :]), dy) for i in range(len(x))
        )

    return Layer(lambda key: (), forward, backward, "multiply")


def copy(count: int) -> Layer:
    """y_1 = ... = y_count = x, a tuple; dx = dy_1 + ... + dy_count.

    Args:
        count: of copies, at least 1.

    >>> copy(2).backward((), (), (jnp.array([1.0]), jnp.array([2.0])))[1]
    Array([3.], dtype=float32)
    """
    _validation.integer("count", count, low=1)

    def forward(params: tuple[()], x: Values) -> tuple[tuple[Values, ...], Any]:
        _validation.floating("x", x)
        return (x,) * count, ()

    return Layer(
        lambda key: (),
        forward,
        lambda params, kept, dy: ((), functools.reduce(operator.add, dy)),
        f"copy({count})",
    )


def max_over(subsets: Sequence[Sequence[int]]) -> Layer:
    """y_j = max_{l in S_j} z_l, one output for each subset; the gradient goes to the largest, shared equally on a tie (as `jnp.max` does).

    Args:
        subsets: S_1, S_2, ...: positions in z, from 0, each subset with at least one and none twice. They may overlap.

    Raises:
        TypeError, ValueError: a subset that is none of this; at `forward`, z that is not float (batch, n), or too short.

    Source: lecture 004, "Subgradients and the Max", which gives all of a tie to one of the largest.

    >>> max_over([[0, 1], [1, 2]]).forward((), jnp.array([[1.0, 5.0, 7.0]]))[0]
    Array([[5., 7.]], dtype=float32)
    """
    chosen = _checked_subsets(subsets)
    least = max(map(max, chosen)) + 1

    def members(z: Values) -> np.ndarray:
        return np.stack([np.isin(np.arange(z.shape[1]), subset) for subset in chosen])

    def forward(
        params: tuple[()], z: Float[Array, "batch n"]
    ) -> tuple[Float[Array, "batch subsets"], Any]:
        _validation.floating("z", z, rank=2)
        if z.shape[1] < least:
            raise ValueError(
                f"z must have shape (batch, {least}) or longer for these subsets, got {list(z.shape)}"
            )
        y = jnp.where(members(z), z[:, None, :], -jnp.inf).max(-1)
        return y, (z, y)

    def backward(params: tuple[()], residuals: Any, dy: Values) -> tuple[tuple[()], Values]:
        z, y = residuals
        won = members(z) & (z[:, None, :] == y[:, :, None])
        share = dy / won.sum(-1, dtype=dy.dtype)
        return (), jnp.where(won, share[:, :, None], 0).sum(1)

    return Layer(lambda key: (), forward, backward, f"max_over({len(chosen)} subsets)")


def _checked_subsets(subsets: Any) -> list[list[int]]:
    if not isinstance(subsets, Sequence) or isinstance(subsets, str) or not subsets:
        raise ValueError(f"subsets must be a sequence of at least one subset, got {subsets!r}")
    for j, subset in enumerate(subsets):
        if not isinstance(subset, Sequence) or not subset or len(set(subset)) < len(subset):
            raise ValueError(
                f"subsets[{j}] must be at least one position, none twice, got {subset!r}"
            )
    return [
        [_validation.integer(f"subsets[{j}]", position, low=0) for position in subset]
        for j, subset in enumerate(subsets)
    ]


def pairwise_product() -> Layer:
    """y_i = z_{2i-1} z_{2i}, the multiplicative layer of lecture 004; dz_{2i-1} = dy_i z_{2i} and dz_{2i} = dy_i z_{2i-1}.

    >>> pairwise_product().forward((), jnp.array([[2.0, -3.0, 0.5, 4.0]]))[0]
    Array([[-6.,  2.]], dtype=float32)
    """

    def forward(
        params: tuple[()], z: Float[Array, "batch 2n"]
    ) -> tuple[Float[Array, "batch n"], Any]:
        _validation.floating("z", z, rank=2)
        if z.shape[1] % 2:
            raise ValueError(
                f"z must have shape (batch, 2 n) to be multiplied in pairs, got {list(z.shape)}"
            )
        return z[:, ::2] * z[:, 1::2], z

    def backward(
        params: tuple[()], z: Any, dy: Float[Array, "batch n"]
    ) -> tuple[tuple[()], Float[Array, "batch 2n"]]:
        return (), jnp.stack([dy * z[:, 1::2], dy * z[:, ::2]], -1).reshape(z.shape)

    return Layer(lambda key: (), forward, backward, "pairwise_product")


def power_product(inputs: int, outputs: int, *, initializer: Initializer | None = None) -> Layer:
    """y_i = prod_l z_l^alpha_li, with both derivatives in a form that does not divide by z:

        dy_i/dz_j = alpha_ji z_j^(alpha_ji - 1) prod_{l != j} z_l^alpha_li,    dy_i/dalpha_li = y_i ln z_l.

    z may be 0 or negative wherever z^alpha is a finite real number (0 to a power >= 0, negative z to a whole power). There an exponent
    cannot be moved on both sides, or the slope has no meaning, and its derivative is taken as 0; the derivative by z is as above.

    Params: `{"alpha": (inputs, outputs)}`, indexed as the lecture does.

    Args:
        inputs: length of z.
        outputs: length of y.
        initializer: of alpha, called with its shape; LeCun normal by default.

    Raises:
        TypeError, ValueError: sizes that are not positive integers; at `forward`, z that is not float (batch, inputs), and values (where
            they are known, not under `jit`) whose power is not a finite real number.

    Source: lecture 004, "Special case 2. Multiplicative networks"; dy/dalpha is not printed there.

    >>> power_product(2, 1).forward({"alpha": jnp.array([[2.0], [-1.0]])}, jnp.array([[3.0, 2.0]]))[0]
    Array([[4.5]], dtype=float32)
    """
    _validation.integer("inputs", inputs, low=1)
    _validation.integer("outputs", outputs, low=1)
    draw = (
        lecun_normal() if initializer is None else _validation.function("initializer", initializer)
    )

    def forward(
        params: dict[str, Array], z: Float[Array, "batch inputs"]
    ) -> tuple[Float[Array, "batch outputs"], Any]:
        _check_powers(z, params["alpha"], inputs)
        return (z[:, :, None] ** params["alpha"]).prod(1), z

    def backward(
        params: dict[str, Array], z: Any, dy: Float[Array, "batch outputs"]
    ) -> tuple[dict[str, Array], Any]:
        alpha, base = params["alpha"], z[:, :, None]
        powers = base**alpha
        slope = alpha * base ** jnp.where((base == 0) & (alpha == 0), 1, alpha - 1)
        dz = (dy[:, None, :] * slope * _product_of_others(powers)).sum(2)
        logarithm = jnp.log(jnp.where(z > 0, z, 1))
        return {"alpha": logarithm.T @ (dy * powers.prod(1))}, dz

    return Layer(
        lambda key: {"alpha": draw(key, (inputs, outputs))},
        forward,
        backward,
        f"power_product({inputs}, {outputs})",
    )


def _product_of_others(
    factors: Float[Array, "batch inputs outputs"],
) -> Float[Array, "batch inputs outputs"]:
    """For each factor the product of all others along axis 1: of those before it times those after it, so that zeros do no harm."""
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
    unreal = ((base[:, :, None] < 0) & (power != np.round(power))) | (
        (base[:, :, None] == 0) & (power < 0)
    )
    if unreal.any():
        n, j, i = np.argwhere(unreal)[0]
        raise ValueError(
            f"z ** alpha must be a finite real number, got z[{n}, {j}] = {base[n, j]} to the power {power[j, i]}"
        )


def _check(x: Any) -> None:
    if not isinstance(x, tuple) or not x:
        raise TypeError(f"x must be a tuple of arrays, got {type(x).__name__}")
    for i, each in enumerate(x):
        _validation.floating(f"x[{i}]", each)
    _validation.same_shape(**{f"x[{i}]": each for i, each in enumerate(x)})
