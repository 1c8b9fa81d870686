"""Layout: where a node has its images, and where its units.

This package takes every node as (images, ..., units). The output of a program and its taps are so, as their author says. An operation has
the axes that the framework gave it, such as (units, images) for the product W x under `vmap`, and is turned:

    convolution        its dimension numbers name both axes
    matrix product     images: the axis that is one longer when the batch is
                       units:  the last axis of the operand without images, the weights; of the product, where both operands have images
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffprog import fast_gradients
from diffprog._jaxpr import (
    EquationSite,
    JaxprEqn,
    convolution_dimensions,
    dot_dimensions,
    sub_jaxprs,
)
from diffprog.nodes import find_nodes, node_shape, trace_program
from diffprog.program import Program
from diffprog.visualization._filters import Axes


def axes_of(f: Program, images: Any, found: Mapping[str, EquationSite]) -> dict[str, Axes]:
    """The axes of the images and of the units of some nodes of f, as they were found in its trace on `images`.

    Raises:
        ValueError: a matrix product does not have one axis of the images.
    """
    return {name: _axes(f, images, name, site) for name, site in found.items()}


def first_and_last(value: Array, axes: Axes) -> Array:
    """(images, ..., units) from a value with these axes."""
    return value if value.ndim < 2 else jnp.moveaxis(value, axes, (0, -1))


def moved_back(value: Array, axes: Axes) -> Array:
    """The inverse of `first_and_last`."""
    return value if value.ndim < 2 else jnp.moveaxis(value, (0, -1), axes)


def _axes(f: Program, images: Any, name: str, site: EquationSite) -> Axes:
    kind, rank = fast_gradients.primitive_name(site.equation), len(node_shape(site).shape)
    if kind == "conv_general_dilated":
        batch, channel = _axes_of_convolution(site.equation)
        return batch + len(site.scan_lengths), channel + len(site.scan_lengths)
    if kind == "dot_general":
        batch = _axis_of_images(f, images, name, site)
        return batch, _axis_of_columns(site, batch)
    return 0, rank - 1


def _axes_of_convolution(equation: JaxprEqn) -> Axes:
    """A convolution that has its fast gradient is held between transposes."""
    inner: list[JaxprEqn] = (
        [equation]
        if equation.primitive.name == "conv_general_dilated"
        else list(sub_jaxprs(equation)[0].eqns)
    )
    number = next(
        k for k, step in enumerate(inner) if step.primitive.name == "conv_general_dilated"
    )
    batch, channel, *_ = convolution_dimensions(inner[number]).out_spec
    for transpose in inner[number + 1 :]:
        order = list(transpose.params["permutation"])
        batch, channel = order.index(batch), order.index(channel)
    return batch, channel


def _axis_of_images(f: Program, images: Any, name: str, site: EquationSite) -> int:
    count, shape, longer = images.shape[0], node_shape(site).shape, _with_one_more(f, images, name)
    # For a program of one batch size only: the axis of that size, if there is but one.
    grown = [
        axis
        for axis, size in enumerate(shape)
        if (size == count if longer is None else size != longer[axis])
    ]
    if len(grown) != 1 or shape[grown[0]] != count:
        raise ValueError(
            f"node {name!r} of {list(shape)} must have one axis of the {count} images; tap it as (images, ..., units)"
        )
    return grown[0]


def _with_one_more(f: Program, images: Any, name: str) -> tuple[int, ...] | None:
    """The shape of a node for a batch of one more image; None if f takes no such batch."""
    more = jax.ShapeDtypeStruct((images.shape[0] + 1, *images.shape[1:]), images.dtype)
    try:
        return node_shape(find_nodes([name], trace_program(f, (more,))[0])[name]).shape
    except Exception:  # whatever a program raises that was not written for this batch
        return None


def _axis_of_columns(site: EquationSite, images: int) -> int:
    """The output has the axes that both operands share, those of the first alone, and those of the second alone."""
    (summed, _), (shared, _) = dot_dimensions(site.equation)
    operand: Any = site.equation.invars[0].aval
    first, end = len(site.scan_lengths) + len(shared), len(node_shape(site).shape)
    second = first + operand.ndim - len(summed) - len(shared)
    own, other = range(first, second), range(second, end)
    columns = other if images in own else own if images in other else ()
    return max(columns or set(range(end)) - {images}, default=images)
