"""Find which axes of a node's value index the images and the units, and transpose the value.

A node is an intermediate value of a model: one named with `tap`, or the result of a convolution or
matrix product. The visualization package reads every node as (images, ..., units). Users name
values with this layout. A convolution or matrix product can have another layout, such as
(units, images) for a product W x under `vmap`, so its axes are found and transposed:

    convolution        both axes are given by the dimension numbers of the operation
    matrix product     images: the axis that grows when the batch has one more image
                       units:  the last axis that comes from the weights (the operand without
                               images); if both operands have images, the last axis of the product
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffprog import _jaxpr, fast_gradients
from diffprog._jaxpr import EquationSite, JaxprEqn
from diffprog.nodes import find_nodes, node_shape, trace_program
from diffprog.program import Program

Axes = tuple[int, int]
"""(axis of the images, axis of the units)."""


def axes_of(f: Program, images: Any, sites: Mapping[str, EquationSite]) -> dict[str, Axes]:
    """Find, for each node, which axis of its value is the batch axis and which the unit axis.

    Args:
        f: the model.
        images: batch of images on which f was traced.
        sites: equation that computes each node in the traced f, by name of the node.

    Returns:
        (axis of the images, axis of the units) by name of the node.

    Raises:
        ValueError: a matrix product does not have exactly one axis of the images.
    """
    return {name: _axes(f, images, name, site) for name, site in sites.items()}


def units_last(value: Array, axes: Axes) -> Array:
    """Transpose a value to (images, ..., units), given its (images axis, units axis)."""
    return value if value.ndim < 2 else jnp.moveaxis(value, axes, (0, -1))


def undo_units_last(value: Array, axes: Axes) -> Array:
    """Transpose (images, ..., units) back to the layout with these axes; undo `units_last`."""
    return value if value.ndim < 2 else jnp.moveaxis(value, (0, -1), axes)


def _axes(f: Program, images: Any, name: str, site: EquationSite) -> Axes:
    primitive = fast_gradients.primitive_name(site.equation)
    if primitive == "conv_general_dilated":
        batch, channel = _convolution_axes(site.equation)
        return batch + len(site.scan_lengths), channel + len(site.scan_lengths)
    if primitive == "dot_general":
        batch = _product_batch_axis(f, images, name, site)
        return batch, _product_unit_axis(site, batch)
    return 0, len(node_shape(site).shape) - 1


def _convolution_axes(equation: JaxprEqn) -> Axes:
    # A convolution with a fast gradient is wrapped in a call, and may be between transposes there.
    is_call = equation.primitive.name != "conv_general_dilated"
    equations = list(_jaxpr.sub_jaxprs(equation)[0].eqns) if is_call else [equation]
    names = [inner.primitive.name for inner in equations]
    position = names.index("conv_general_dilated")
    batch, channel, *_ = _jaxpr.convolution_dimensions(equations[position]).out_spec
    for transpose in equations[position + 1 :]:
        permutation = list(transpose.params["permutation"])
        batch, channel = permutation.index(batch), permutation.index(channel)
    return batch, channel


def _product_batch_axis(f: Program, images: Any, name: str, site: EquationSite) -> int:
    count, shape = images.shape[0], node_shape(site).shape
    grown = _shape_with_one_more_image(f, images, name)
    # A program that takes only one batch size: the axis must be the only one of that size.
    candidates = [
        axis
        for axis, size in enumerate(shape)
        if (size == count if grown is None else size != grown[axis])
    ]
    if len(candidates) != 1 or shape[candidates[0]] != count:
        raise ValueError(
            f"node {name!r} of shape {list(shape)} must have one axis of the {count} images; "
            "tap it as (images, ..., units)"
        )
    return candidates[0]


def _shape_with_one_more_image(f: Program, images: Any, name: str) -> tuple[int, ...] | None:
    """Return the shape of a node for a batch of one more image; None if f raises on that."""
    more = jax.ShapeDtypeStruct((images.shape[0] + 1, *images.shape[1:]), images.dtype)
    try:
        return node_shape(find_nodes([name], trace_program(f, (more,))[0])[name]).shape
    except Exception:  # f may raise anything on a batch size that it was not written for
        return None


def _product_unit_axis(site: EquationSite, batch: int) -> int:
    # Output axes of a `dot_general`: those shared by both operands, then the free axes of the
    # first operand, then those of the second.
    (summed, _), (shared, _) = _jaxpr.dot_dimensions(site.equation)
    operand: Any = site.equation.invars[0].aval
    first, end = len(site.scan_lengths) + len(shared), len(node_shape(site).shape)
    second = first + operand.ndim - len(summed) - len(shared)
    of_first, of_second = range(first, second), range(second, end)
    columns = of_second if batch in of_first else of_first if batch in of_second else ()
    return max(columns or set(range(end)) - {batch}, default=batch)
