"""Layout: where a node has its images, and where its units.

This package takes every node as (images, ..., units). The output of a program and a tap are, as their author says; an operation has the axes
that the framework gave it, (units, images) for the product W x of a `vmap`:

    convolution        its dimension numbers name both
    matrix product     images: the axis that grows by one when the batch does
                       units: the columns of the other operand, or the last axis if both operands are of one image each
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffprog import adjoints
from diffprog.interpreter import JaxprEqn, Site, programs
from diffprog.nodes import _find, _trace, _value
from diffprog.program import Program
from diffprog.visualization._filters import Axes


def axes_of(f: Program, images: Any, found: Mapping[str, Site]) -> dict[str, Axes]:
    """The axes of the images and of the units of some nodes of f, as it was traced on `images`."""
    return {name: _axes(f, images, name, site) for name, site in found.items()}


def first_and_last(value: Array, axes: Axes) -> Array:
    """(images, ..., units) from a value with these axes."""
    return value if value.ndim < 2 else jnp.moveaxis(value, axes, (0, -1))


def moved_back(value: Array, axes: Axes) -> Array:
    """The inverse of `first_and_last`."""
    return value if value.ndim < 2 else jnp.moveaxis(value, (0, -1), axes)


def _axes(f: Program, images: Any, name: str, site: Site) -> Axes:
    kind, rank = adjoints.operation(site.equation), len(_value(site).shape)
    if kind == "conv_general_dilated":
        batch, channel = _axes_of_convolution(site.equation)
        return batch + len(site.steps), channel + len(site.steps)
    if kind == "dot_general":
        batch = _axis_of_images(f, images, name, site)
        return batch, _axis_of_columns(site, batch)
    return 0, rank - 1


def _axes_of_convolution(equation: JaxprEqn) -> Axes:
    """A convolution that has its fast gradient is held between transposes."""
    inner: list[JaxprEqn] = [equation] if equation.primitive.name == "conv_general_dilated" else list(programs(equation)[0].eqns)
    number = next(k for k, step in enumerate(inner) if step.primitive.name == "conv_general_dilated")
    batch, channel, *_ = inner[number].params["dimension_numbers"].out_spec
    for transpose in inner[number + 1 :]:
        order = list(transpose.params["permutation"])
        batch, channel = order.index(batch), order.index(channel)
    return batch, channel


def _axis_of_images(f: Program, images: Any, name: str, site: Site) -> int:
    count, shape = images.shape[0], _value(site).shape
    longer = _shape_with_one_more(f, images, name)
    # A program that takes batches of one size only: an axis of that size, if there is but one.
    grown = [axis for axis, size in enumerate(shape) if (size == count if longer is None else size != longer[axis])]
    if len(grown) != 1 or shape[grown[0]] != count:
        raise ValueError(f"node {name!r} of {list(shape)} must have one axis of the {count} images; tap it as (images, ..., units)")
    return grown[0]


def _shape_with_one_more(f: Program, images: Any, name: str) -> tuple[int, ...] | None:
    more = jax.ShapeDtypeStruct((images.shape[0] + 1, *images.shape[1:]), images.dtype)
    try:
        shape = _value(_find([name], _trace(f, (more,))[0])[name]).shape
    except Exception:  # whatever a program may raise for a batch that it was not written for
        return None
    return shape if len(shape) == images.ndim else shape


def _axis_of_columns(site: Site, images: int) -> int:
    """Axes of the output are those of both operands that go together, those of the first alone, and those of the second alone."""
    steps, (summed, together) = len(site.steps), site.equation.params["dimension_numbers"]
    avals: list[Any] = [atom.aval for atom in site.equation.invars]
    first = steps + len(together[0])
    second = first + avals[0].ndim - len(summed[0]) - len(together[0])
    end = len(_value(site).shape)
    if first <= images < second < end:
        return end - 1
    if images >= second > first:
        return second - 1
    return max(axis for axis in range(end) if axis != images)
