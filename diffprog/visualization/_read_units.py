"""Target slicing: of a node's channels, compute for each image the one that it is about, and no other.

When image i maximises channel u_i of a convolution h = s(x * W + b), all that its gradient needs of h is

    h[i, ..., u_i] = s(x_i * W_{u_i} + b_{u_i}).

The other channels, most of the work of the layer, are not computed; what came before the convolution, x, is needed whole. Where a node does
not come of a convolution or matrix product in a way that keeps its channels apart (see `_slices`), it is computed whole and the channel is
picked from it. Either way what is not read, and what comes after it, costs nothing in a compiled program.
"""

import functools
from collections.abc import Callable, Sequence, Sized
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer

from diffprog import _validation
from diffprog.nodes import find_nodes, trace_program
from diffprog.program import Program, program
from diffprog.visualization._axes import axes_of, first_and_last
from diffprog.visualization._filters import Axes
from diffprog.visualization._slices import Slices, picked
from diffprog.visualization._values import Value, values_of


class Request(NamedTuple):
    """A value to read.

    Attributes:
        node: a name as `nodes.read` takes it; None for the output of the program.
        units: the channel u_i that image i is about, (batch,); None for the whole node, (batch, ..., channels).
    """

    node: str | None
    units: Integer[Array, " batch"] | None = None


def read_units(
    f: Callable[..., Any], requests: Sequence[Request], *, slicing: bool = True
) -> Callable[[Array], tuple[Any, list[Any]]]:
    """The function images -> (f(images), values): what f returns, and h[i, ..., u_i] for each node h asked for, (batch, ...).

    The output and taps have the images first and the channels last; convolutions and matrix products have them wherever the framework put
    them, and are turned to be so (see `_layout`).

    Gradients flow through the values; slicing changes them by rounding only. Where a function with its own derivative rule was sliced, such
    as `jax.nn.relu`, the values have no forward mode (`jax.jvp`).

    Args:
        f: a program of a batch of images, (batch, ...) -> anything; (batch, ..., channels) where units of its output are asked for.
        requests: what to read.
        slicing: whether to compute the wanted channels alone where the program allows it.

    Raises:
        TypeError: f is not callable, `requests` no sequence of `Request`, units that are not integers (batch,).
        ValueError: on the call: units of another length than the batch or (where values are known) out of range, a node without an axis of
            images and one of channels, a matrix product of which it cannot be told where they are, and what `nodes.read` raises.

    >>> f = lambda x: x @ jnp.asarray([[1.0, 10.0], [2.0, 20.0]])
    >>> read_units(f, [Request(None, jnp.asarray([1, 0]))])(jnp.eye(2))[1]
    [Array([10.,  2.], dtype=float32)]
    """
    run, asked = program(f), _asked(requests)
    if not isinstance(slicing, bool):
        raise TypeError(f"slicing must be True or False, got {slicing!r}")
    names, units = (
        tuple(request.node for request in asked),
        tuple(request.units for request in asked),
    )

    def reading(images: Array) -> tuple[Any, list[Any]]:
        _require_units(run, names, units, images)
        return _read(run, images, units, names, slicing)

    return reading


def _asked(requests: Any) -> tuple[Request, ...]:
    if not isinstance(requests, Sequence) or not all(
        isinstance(request, Request) for request in requests
    ):
        raise TypeError(f"requests must be a sequence of Request, got {requests!r}")
    for k, (node, units) in enumerate(requests):
        if not isinstance(node, str | None):
            raise TypeError(
                f"requests[{k}].node must be a string or None, got {type(node).__name__}"
            )
        given = None if units is None else _validation.array(f"requests[{k}].units", units)
        if given is not None and (given.ndim != 1 or not jnp.issubdtype(given.dtype, jnp.integer)):
            raise TypeError(
                f"requests[{k}].units must be integers of shape (batch,), got {given.dtype}{list(given.shape)}"
            )
    return tuple(
        Request(node, None if units is None else jnp.asarray(units)) for node, units in requests
    )


def _require_units(
    f: Program, names: tuple[str | None, ...], units: tuple[Any, ...], images: Any
) -> None:
    given = _validation.array("images", images)
    for k, wanted in enumerate(units):
        if wanted is not None and wanted.shape != given.shape[:1]:
            raise ValueError(
                f"requests[{k}].units must be one for each of the images {list(given.shape)}, got {list(wanted.shape)}"
            )
    # Where units are traced, as in a loop, this would trace f once more and find nothing.
    if any(_validation.values(wanted) is not None for wanted in units if wanted is not None):
        values = jax.eval_shape(_read, f, images, (None,) * len(names), names, False)[1]
        for k, (name, whole, wanted) in enumerate(zip(names, values, units, strict=True)):
            if wanted is not None:
                require_channels(name, whole, len(images))
                _validation.labels(f"requests[{k}].units", wanted, whole.shape[-1])


def require_channels(name: str | None, value: Any, count: int) -> None:
    """A node, or the output for None, that is (images, ..., channels)."""
    shape = getattr(value, "shape", None)
    if shape is None:
        size = f" of {len(value)}" if isinstance(value, Sized) else ""
        raise ValueError(f"f must return an array, got a {type(value).__name__}{size}")
    if len(shape) < 2 or shape[0] != count:
        raise ValueError(
            f"{'the output' if name is None else f'node {name!r}'} must be ({count} images, ..., channels), got {list(shape)}"
        )


@functools.partial(jax.jit, static_argnums=(3, 4))
def _read(
    f: Program, images: Array, units: tuple[Any, ...], names: tuple[str | None, ...], slicing: bool
) -> tuple[Any, list[Any]]:
    traced, structure = trace_program(f, (images,))
    found = find_nodes([name for name in names if name is not None], traced)
    leaves = [Value(leaf) for leaf in jax.tree.leaves((f, (images,)))]
    outputs, values = values_of(traced, leaves, {name: site.path for name, site in found.items()})
    output, made = (
        jax.tree.unflatten(structure, [value.array for value in outputs]),
        jax.tree.unflatten(structure, outputs),
    )
    axes = axes_of(f, images, found)

    def one(name: str | None, units: Array | None) -> Any:
        whole = output if name is None else first_and_last(values[name].array, axes[name])
        if units is None:
            return whole
        require_channels(name, whole, len(images))
        value, where = (made, (0, whole.ndim - 1)) if name is None else (values[name], axes[name])
        return _units(value, where, units, slicing)

    return output, [one(name, wanted) for name, wanted in zip(names, units, strict=True)]


def _units(value: Value, axes: Axes, units: Array, slicing: bool) -> Array:
    part = (
        Slices(len(units), units).part(value, axes) if slicing else picked(value.array, units, axes)
    )
    return first_and_last(part, axes).squeeze(-1)
