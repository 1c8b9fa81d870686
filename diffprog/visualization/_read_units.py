"""Read intermediate values (nodes) of a model: all units, or one unit for each image of a batch.

    h[i, ..., u_i]        unit u_i of node h for image i

Under `jax.jit`, computations that the results in use do not need are removed.
"""

import functools
from collections.abc import Callable, Sequence, Sized
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer

from diffprog import _validation
from diffprog._jaxpr import JaxprEqn, evaluate_equation, interpret
from diffprog.nodes import find_nodes, trace_program
from diffprog.program import Program, program
from diffprog.visualization._axes import axes_of, units_last


class Request(NamedTuple):
    """Request for the values of a node in `read_units`: all its units, or one for each image.

    Attributes:
        node: name of an intermediate value as in `nodes.read` (a name given with `tap`, or an
            operation such as "conv:0"), or None for the output of the model.
        units: unit u_i to read for image i, integers (batch,), or None to read all units,
            (batch, ..., units).
    """

    node: str | None
    units: Integer[Array, " batch"] | None = None


def read_units(
    f: Callable[..., Any], requests: Sequence[Request]
) -> Callable[[Array], tuple[Any, list[Any]]]:
    """Transform a model f to return (f(images), values), with one intermediate value per request.

    Each value has shape (batch, ..., units), or (batch, ...) if the request selects one unit per
    image. The output of f and values named with `tap` must have the images on the first axis and
    the units on the last; convolutions and matrix products may have any layout and are transposed.
    Gradients flow through the values.

    Args:
        f: model of a batch of images, (batch, ...) -> anything. Where units of its output are
            requested, it must return (batch, ..., units).
        requests: values to read, each a `Request`.

    Returns:
        Function images -> (f(images), list of values in the order of the requests).

    Raises:
        TypeError: f is not callable, `requests` is not a sequence of `Request`, or units are not
            integers (batch,).
        ValueError: at the call: the units of a request are not one per image or are out of range,
            a node has no axis of images or of units, the axes of a matrix product are ambiguous,
            and everything that `nodes.read` raises.

    >>> f = lambda x: x @ jnp.asarray([[1.0, 10.0], [2.0, 20.0]])
    >>> read_units(f, [Request(None, jnp.asarray([1, 0]))])(jnp.eye(2))[1]
    [Array([10.,  2.], dtype=float32)]
    """
    f, requests = program(f), _validate_requests(requests)
    names, units = tuple(r.node for r in requests), tuple(r.units for r in requests)

    def read(images: Array) -> tuple[Any, list[Any]]:
        _validate_units(f, names, units, images)
        return _read(f, images, units, names)

    return read


def _validate_requests(requests: Any) -> tuple[Request, ...]:
    if not isinstance(requests, Sequence) or not all(
        isinstance(request, Request) for request in requests
    ):
        raise TypeError(f"requests must be a sequence of Request, got {requests!r}")
    for k, (node, units) in enumerate(requests):
        if not isinstance(node, str | None):
            raise TypeError(
                f"requests[{k}].node must be a string or None, got {type(node).__name__}"
            )
        array = None if units is None else _validation.array(f"requests[{k}].units", units)
        if array is not None and (array.ndim != 1 or not jnp.issubdtype(array.dtype, jnp.integer)):
            raise TypeError(
                f"requests[{k}].units must be integers of shape (batch,), "
                f"got {array.dtype}{list(array.shape)}"
            )
    return tuple(
        Request(node, None if units is None else jnp.asarray(units)) for node, units in requests
    )


def _validate_units(
    f: Program, names: tuple[str | None, ...], units: tuple[Any, ...], images: Any
) -> None:
    shape = _validation.array("images", images).shape
    for k, indices in enumerate(units):
        if indices is not None and indices.shape != shape[:1]:
            raise ValueError(
                f"requests[{k}].units must be one for each of the images {list(shape)}, "
                f"got {list(indices.shape)}"
            )
    # Units that are traced have no values to check; do not trace f for them.
    if any(_validation.values(indices) is not None for indices in units if indices is not None):
        values = jax.eval_shape(_read, f, images, (None,) * len(names), names)[1]
        for k, (name, value, indices) in enumerate(zip(names, values, units, strict=True)):
            if indices is not None:
                require_channels(name, value, len(images))
                _validation.labels(f"requests[{k}].units", indices, value.shape[-1])


def require_channels(name: str | None, value: Any, count: int) -> None:
    """Raise ValueError unless a node's value has shape (count, ..., units).

    Args:
        name: name of the node, for the message; None for the output of the model.
        value: value of the node.
        count: number of images.
    """
    shape = getattr(value, "shape", None)
    if shape is None:
        size = f" of {len(value)}" if isinstance(value, Sized) else ""
        raise ValueError(f"f must return an array, got a {type(value).__name__}{size}")
    if len(shape) < 2 or shape[0] != count:
        raise ValueError(
            f"{'the output' if name is None else f'node {name!r}'} must have shape "
            f"({count} images, ..., units), got {list(shape)}"
        )


@functools.partial(jax.jit, static_argnums=3)
def _read(
    f: Program, images: Array, units: tuple[Any, ...], names: tuple[str | None, ...]
) -> tuple[Any, list[Any]]:
    traced, structure = trace_program(f, (images,))
    sites = find_nodes([name for name in names if name is not None], traced)
    handlers = {site.path: _evaluate_and_keep for site in sites.values()}
    outputs, kept = interpret(traced, handlers, jax.tree.leaves((f, images)))
    output = jax.tree.unflatten(structure, outputs)
    axes = axes_of(f, images, sites)

    def value(name: str | None, indices: Array | None) -> Any:
        whole = output if name is None else units_last(kept[sites[name].path], axes[name])
        if indices is None:
            return whole
        require_channels(name, whole, len(images))
        return select_units(whole, indices)

    return output, [value(name, indices) for name, indices in zip(names, units, strict=True)]


def _evaluate_and_keep(equation: JaxprEqn, inputs: Sequence[Any], _: None) -> tuple[list[Any], Any]:
    outputs = evaluate_equation(equation, inputs)
    return outputs, outputs[0]


def select_units(value: Array, units: Array) -> Array:
    """Select one unit per image: value[i, ..., units[i]] for each i, of shape (images, ...)."""
    # A masked sum and not an index: the gradient of a gather is a scatter, which is slow on CPU.
    mask = units[:, None] == jnp.arange(value.shape[-1])
    mask = jnp.expand_dims(mask, range(1, value.ndim - 1))
    return jnp.where(mask, value, 0).sum(-1)
