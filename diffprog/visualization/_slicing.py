"""Target slicing: of a node's channels, compute for each image the one that it is about, and no other.

When image i maximises channel u_i of a convolution h = s(x * W + b), all that its gradient needs of h is

    h[i, ..., u_i] = s(x_i * W_{u_i} + b_{u_i}).

The other channels, most of the work of the layer, are not computed; what came before the convolution, x, is needed whole. Where a node does
not come of a convolution or matrix product in a way that keeps its channels apart (see `_slices`), it is computed whole and the channel is
picked from it. Either way what is not read, and what comes after it, costs nothing in a compiled program.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer

from diffprog import nodes, require
from diffprog.nodes import _find, _trace
from diffprog.program import Program, program
from diffprog.visualization._slices import Slices, picked
from diffprog.visualization._values import Value, values_of


class Request(NamedTuple):
    """A value to read.

    Attributes:
        node: a name as `nodes.read` takes it; None for the output of the program.
        units: the channel u_i that image i is about, an index of the node's last axis, (batch,); None for the whole value.
    """

    node: str | None
    units: Integer[Array, " batch"] | None = None


def read_units(f: Callable[..., Any], requests: Sequence[Request], *, slicing: bool = True) -> Callable[[Array], tuple[Any, list[Any]]]:
    """The function images -> (f(images), values): what f returns, and h[i, ..., u_i] for each node h asked for, (batch, ...).

    Gradients flow through the values; slicing changes them by rounding only. Where a function with its own derivative rule was sliced, such
    as `jax.nn.relu`, the values have no forward mode (`jax.jvp`).

    Args:
        f: a program of a batch of images, (batch, ...) -> anything; (batch, ..., channels) where units of its output are asked for.
        requests: what to read.
        slicing: whether to compute the wanted channels alone where the program allows it.

    Raises:
        TypeError: f is not callable, `requests` no sequence of `Request`, units that are not integers (batch,).
        ValueError: on the call: units of another length than the batch or (where values are known) out of range, a node without an axis of
            images and one of channels, and what `nodes.read` raises.

    >>> f = lambda x: x @ jnp.asarray([[1.0, 10.0], [2.0, 20.0]])
    >>> read_units(f, [Request(None, jnp.asarray([1, 0]))])(jnp.eye(2))[1]
    [Array([10.,  2.], dtype=float32)]
    """
    run, asked = program(f), _asked(requests)
    if not isinstance(slicing, bool):
        raise TypeError(f"slicing must be True or False, got {slicing!r}")
    names, units = tuple(request.node for request in asked), tuple(request.units for request in asked)

    def reading(images: Array) -> tuple[Any, list[Any]]:
        _require_units(run, names, units, images)
        return _read(run, images, units, names, slicing)

    return reading


def _asked(requests: Any) -> tuple[Request, ...]:
    if not isinstance(requests, Sequence) or not all(isinstance(request, Request) for request in requests):
        raise TypeError(f"requests must be a sequence of Request, got {requests!r}")
    for k, (node, units) in enumerate(requests):
        if not isinstance(node, str | None):
            raise TypeError(f"requests[{k}].node must be a string or None, got {type(node).__name__}")
        given = None if units is None else require.array(f"requests[{k}].units", units)
        if given is not None and (given.ndim != 1 or not jnp.issubdtype(given.dtype, jnp.integer)):
            raise TypeError(f"requests[{k}].units must be integers of shape (batch,), got {given.dtype}{list(given.shape)}")
    return tuple(Request(node, None if units is None else jnp.asarray(units)) for node, units in requests)


def _require_units(f: Program, names: tuple[str | None, ...], units: tuple[Any, ...], images: Any) -> None:
    given = require.array("images", images)
    for k, wanted in enumerate(units):
        if wanted is not None and wanted.shape != given.shape[:1]:
            raise ValueError(f"requests[{k}].units must be one for each of the images {list(given.shape)}, got {list(wanted.shape)}")
    # Where units are traced, as in a loop, this would trace f once more and find nothing.
    if any(require.values(wanted) is not None for wanted in units if wanted is not None):
        for k, (name, whole, wanted) in enumerate(zip(names, jax.eval_shape(_whole, f, images, names), units, strict=True)):
            if wanted is not None:
                _require_channels(name, whole, len(images))
                require.labels(f"requests[{k}].units", wanted, whole.shape[-1])


def _require_channels(name: str | None, value: Any, count: int) -> None:
    shape = getattr(value, "shape", None)
    if shape is None or len(shape) < 2 or shape[0] != count:
        came = type(value).__name__ if shape is None else list(shape)
        raise ValueError(
            f"{'the output' if name is None else f'node {name!r}'} must be ({count} images, ..., channels) to read units, got {came}"
        )


@functools.partial(jax.jit, static_argnums=2)
def _whole(f: Program, images: Array, names: tuple[str | None, ...]) -> list[Any]:
    output, values = nodes.read(f, [name for name in names if name is not None])(images)
    return [output if name is None else values[name] for name in names]


@functools.partial(jax.jit, static_argnums=(3, 4))
def _read(f: Program, images: Array, units: tuple[Any, ...], names: tuple[str | None, ...], slicing: bool) -> tuple[Any, list[Any]]:
    traced, structure = _trace(f, (images,))
    found = _find([name for name in names if name is not None], traced)
    leaves = [Value(leaf) for leaf in jax.tree.leaves((f, (images,)))]
    outputs, values = values_of(traced, leaves, {name: site.path for name, site in found.items()})
    output = jax.tree.unflatten(structure, [value.array for value in outputs])
    whole = [jax.tree.unflatten(structure, outputs) if name is None else values[name] for name in names]
    return output, [_one(name, value, wanted, len(images), slicing) for name, value, wanted in zip(names, whole, units, strict=True)]


def _one(name: str | None, value: Any, units: Array | None, count: int, slicing: bool) -> Any:
    if units is None:
        return jax.tree.map(lambda value: value.array, value)
    _require_channels(name, getattr(value, "array", value), count)
    axes = (0, value.array.ndim - 1)
    part = Slices(count, units).part(value, axes) if slicing else picked(value.array, units, axes)
    return part.squeeze(-1)
