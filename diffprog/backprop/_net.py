"""A net is a layer made of layers: the two walks, forward and backward, over its parts.

Forward, each part reads the values of its sources. Backward, in the opposite order, each part turns the adjoint dJ/dy of its value into
those of its sources (lecture 000's recursion), and where a value is read in several places its adjoints are added (the copy gate of
lecture 003, the distributed chain rule of lecture 004). When the turn of a part comes, all that read it have had theirs, and its adjoint is
whole: every part is visited once, whatever the number of paths.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffprog.backprop._layer import Layer, Params, Part

Named = dict[str, Any]


def net_of(
    init: Callable[[jax.Array], Params], name: str, parts: tuple[Part, ...], inputs: tuple[str, ...]
) -> Layer:
    """The layer that runs `parts`, of which the last is the output."""

    def forward(params: Params, x: Any) -> tuple[Any, Named]:
        values, residuals = run_forward(net, by_name(net, params), x)
        return values[parts[-1].name], residuals

    def backward(params: Params, residuals: Named, dy: Any) -> tuple[Params, Any]:
        dparams, adjoints = run_backward(net, by_name(net, params), residuals, dy)
        return like(params, dparams, parts), gathered(adjoints, inputs)

    net = Layer(init, forward, backward, name, parts, inputs)
    return net


def run_forward(net: Layer, params: Named, x: Any) -> tuple[Named, Named]:
    """The value of every input and part, and what each part keeps for its backward pass."""
    values, residuals = _inputs(net, x), {}
    for part in net.parts:
        try:
            with jax.named_scope(part.name):
                values[part.name], residuals[part.name] = part.layer.forward(
                    params[part.name], gathered(values, part.sources)
                )
        except (TypeError, ValueError) as error:
            raise (TypeError if isinstance(error, TypeError) else ValueError)(
                _misfit(net, part, values, error)
            ) from error
    return values, residuals


def run_backward(net: Layer, params: Named, residuals: Named, dy: Any) -> tuple[Named, Named]:
    """The gradient of every part's params, and the adjoint of every input and part."""
    dparams, adjoints = (
        {},
        dict.fromkeys((*net.inputs, *(part.name for part in net.parts))) | {net.parts[-1].name: dy},
    )
    for part in reversed(net.parts):
        if adjoints[part.name] is None:
            dparams[part.name] = jax.tree.map(jnp.zeros_like, params[part.name])
            continue
        dparams[part.name], dx = part.layer.backward(
            params[part.name], residuals[part.name], adjoints[part.name]
        )
        for source, adjoint in zip(
            part.sources, dx if len(part.sources) > 1 else (dx,), strict=True
        ):
            adjoints[source] = _sum(adjoints[source], adjoint)
    return dparams, adjoints


def _sum(a: Any, b: Any) -> Any:
    """a + b of two adjoints, entry by entry where a value is a tuple; None stands for no derivative."""
    if a is None or b is None:
        return b if a is None else a
    return tuple(map(_sum, a, b)) if isinstance(a, tuple) else a + b


def _inputs(net: Layer, x: Any) -> Named:
    if len(net.inputs) == 1:
        return {net.inputs[0]: x}
    if not isinstance(x, tuple) or len(x) != len(net.inputs):
        came = f"{len(x)} entries" if isinstance(x, tuple) else type(x).__name__
        raise ValueError(
            f"x must be a tuple of {len(net.inputs)} entries, {', '.join(net.inputs)}, got {came}"
        )
    return dict(zip(net.inputs, x, strict=True))


def gathered(values: Named, names: tuple[str, ...]) -> Any:
    """The value of that name, or the tuple of the values of several names."""
    return values[names[0]] if len(names) == 1 else tuple(values[name] for name in names)


def by_name(net: Layer, params: Any) -> Named:
    """The params of each part, from the tuple of a chain or the dict of a graph."""
    names = [part.name for part in net.parts]
    if isinstance(params, Mapping) and set(params) == set(names):
        return dict(params)
    if isinstance(params, Sequence) and len(params) == len(names):
        return dict(zip(names, params, strict=True))
    came = (
        f"one with {len(params)} entries"
        if isinstance(params, Mapping | Sequence)
        else type(params).__name__
    )
    raise ValueError(
        f"params must be what {net.name}.init gives, with entries for {', '.join(names)}, got {came}"
    )


def like(params: Any, named: Named, parts: tuple[Part, ...]) -> Any:
    """What `by_name` took apart, together again: a tuple or a dict, as params is."""
    return named if isinstance(params, Mapping) else tuple(named[part.name] for part in parts)


def _misfit(net: Layer, part: Part, values: Named, error: Exception) -> str:
    layers = {other.name: f" ({other.layer.name})" for other in net.parts}
    read = [
        f"{source!r}{layers.get(source, '')} = {_shapes(values[source])}" for source in part.sources
    ]
    return (
        f"{part.name!r} ({part.layer.name}) does not fit what it reads, {', '.join(read)}: {error}"
    )


def _shapes(value: Any) -> str:
    return ", ".join(
        f"{leaf.dtype}{list(leaf.shape)}" for leaf in map(jnp.asarray, jax.tree.leaves(value))
    )
