"""Convolution and matrix product with one filter for each image: channel u_i of z = x * W for image i, and no other channel.

    z[i, p] = Σ_o Σ_c x[i, s p + d o, c] W[o, c, u_i]             (o: offset in the window, s: stride, d: dilation of the kernel)

The inner sum is taken first, at every pixel: for each image one matrix product x_i W_{u_i}, what a pixel adds at each offset. The outer sum
is then over shifted maps that have no channels. The gradient has the same form backwards, maps shifted back and one matrix product: no
scatter and no convolution, which makes it fast in the body of a loop as well.
"""

import functools
import itertools
import math
import operator
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Integer

from diffprog._jaxpr import JaxprEqn

Axes = tuple[int, int]
"""Where an array has its images, and where its channels."""


def convolves(equation: JaxprEqn, axes: Axes) -> bool:
    """Whether it is a convolution without groups into these axes, and the maps are at most twice as large as all its channels."""
    if equation.primitive.name != "conv_general_dilated":
        return False
    params, (x, kernel, output) = equation.params, _avals(equation)
    images, window, out = params["dimension_numbers"]
    plain = params["feature_group_count"] == params["batch_group_count"] == 1 and set(
        params["lhs_dilation"]
    ) <= {1}
    pixels, offsets = (
        x.size // x.shape[images[1]],
        math.prod(kernel.shape[axis] for axis in window[2:]),
    )
    return plain and out[:2] == axes and pixels * offsets <= 2 * output.size


def convolution(
    equation: JaxprEqn, x: Array, kernel: Array, units: Integer[Array, " batch"]
) -> Array:
    """The output of a convolution that `convolves`, with channel `units[i]` alone for image i: of size 1 along the channel axis."""
    params, (_, _, output) = equation.params, _avals(equation)
    (batch, channels, *sides), (outputs, inputs, *window), out = params["dimension_numbers"]
    x = jnp.transpose(x, (batch, *sides, channels))
    filters = jnp.transpose(kernel, (outputs, *window, inputs))[units]
    maps = _product("bpc,boc->bpo", _flat(x), _flat(filters), equation).reshape(*x.shape[:-1], -1)
    maps = lax.pad(
        maps,
        jnp.zeros((), maps.dtype),
        [(0, 0, 0), *((low, high, 0) for low, high in params["padding"]), (0, 0, 0)],
    )
    around = list(
        zip(
            params["rhs_dilation"],
            params["window_strides"],
            (output.shape[axis] for axis in out[2:]),
            strict=True,
        )
    )
    places = enumerate(itertools.product(*map(range, filters.shape[1:-1])))
    z = functools.reduce(
        operator.add, (_shifted(maps, number, offsets, around) for number, offsets in places)
    )
    return jnp.transpose(
        z[:, None].astype(output.dtype), [out.index(axis) for axis in range(len(out))]
    )


def _shifted(
    maps: Array, number: int, offsets: tuple[int, ...], around: list[tuple[int, int, int]]
) -> Array:
    """Map `number`, as the outputs see it from the offset that it is for."""
    starts = [offset * dilation for offset, (dilation, _, _) in zip(offsets, around, strict=True)]
    ends = [
        start + (count - 1) * stride + 1
        for start, (_, stride, count) in zip(starts, around, strict=True)
    ]
    return lax.slice(
        maps,
        (0, *starts, number),
        (len(maps), *ends, number + 1),
        (1, *(stride for _, stride, _ in around), 1),
    )[..., 0]


def multiplies(equation: JaxprEqn, axes: Axes) -> bool:
    """Whether it is the product of something that has the images among its rows and a matrix that has the channels as its columns."""
    return equation.primitive.name == "dot_general" and _sides(equation, axes) is not None


def matrix_product(
    equation: JaxprEqn, operands: tuple[Array, Array], units: Integer[Array, " batch"], axes: Axes
) -> Array:
    """The output of a product that `multiplies`, with channel `units[i]` alone for image i: of size 1 along the channel axis."""
    images, weights = _sides(equation, axes)
    summed, _ = equation.params["dimension_numbers"]
    place = axes[0] - (axes[1] < axes[0])
    x, w = operands[images], operands[weights]
    x = jnp.moveaxis(
        jnp.moveaxis(x, summed[images], range(x.ndim - len(summed[images]), x.ndim)), place, 0
    )
    w = jnp.moveaxis(w, summed[weights], range(1, w.ndim))[units]
    z = _product("bpk,bk->bp", x.reshape(len(x), -1, w[0].size), w.reshape(len(w), -1), equation)
    z = z.reshape(x.shape[: x.ndim - len(summed[images])]).astype(_avals(equation)[2].dtype)
    return jnp.expand_dims(jnp.moveaxis(z, 0, place), axes[1])


def _sides(equation: JaxprEqn, axes: Axes) -> Any:
    """The numbers of the operand with the images and of the one with the weights; None if there are no two such."""
    summed, batched = equation.params["dimension_numbers"]
    free = [aval.ndim - len(axes) for aval, axes in zip(_avals(equation), summed, strict=False)]
    images, weights = (int(axis >= free[0]) for axis in axes)
    return (
        (images, weights) if images != weights and free[weights] == 1 and not any(batched) else None
    )


def _product(formula: str, a: Array, b: Array, equation: JaxprEqn) -> Array:
    """Summed in float32 at least, as the kernels for 16-bit numbers do."""
    exact = jnp.promote_types(_avals(equation)[2].dtype, jnp.float32)
    return jnp.einsum(
        formula, a, b, precision=equation.params["precision"], preferred_element_type=exact
    )


def _flat(x: Array) -> Array:
    """(batch, ..., channels) with all that is between as one axis."""
    return x.reshape(len(x), -1, x.shape[-1])


def _avals(equation: JaxprEqn) -> tuple[Any, Any, Any]:
    """Shapes and dtypes of the two operands and the output."""
    a, b, output = (atom.aval for atom in (*equation.invars, *equation.outvars))
    return a, b, output
