"""Nets: layers put together, one after another in a chain or in a graph, are again a layer."""

import collections
import graphlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from diffprog import _validation
from diffprog.backprop._layer import Layer, Params, Part, require_layer
from diffprog.backprop._net import Named, net_of


def chain(layers: Sequence[Layer]) -> Layer:
    """x_l = f_l(x_{l-1}, theta_l) for l = 1, 2, ...: every layer reads the one before it, the first reads x.

    Params: a tuple with an entry for each layer, `()` for a layer without. The parts are called after their layers and counted: "affine1",
    "relu1", "affine2".

    Args:
        layers: at least one; a net is a layer too.

    Raises:
        TypeError, ValueError: no layers, something that is none; at `forward`, params that are no such tuple, and two layers that do not
            fit, named with their shapes.

    >>> from diffprog.backprop import affine, relu
    >>> [part.name for part in chain([affine(4, 3), relu(), affine(3, 2)]).parts]
    ['affine1', 'relu1', 'affine2']
    """
    if not isinstance(layers, Sequence) or not layers:
        raise ValueError(f"layers must be a sequence of at least one Layer, got {layers!r}")
    for k, layer in enumerate(layers):
        require_layer(f"layers[{k}]", layer)
    names = _counted([layer.name.partition("(")[0] for layer in layers])
    parts = tuple(map(Part, names, layers, [(source,) for source in ["x", *names]]))

    def init(key: jax.Array) -> tuple[Params, ...]:
        return tuple(
            layer.init(key)
            for layer, key in zip(layers, jax.random.split(key, len(layers)), strict=True)
        )

    return net_of(init, f"chain({len(layers)} layers)", parts, ("x",))


def _counted(words: list[str]) -> list[str]:
    count: collections.Counter[str] = collections.Counter()
    names = []
    for word in words:
        count[word] += 1
        names.append(f"{word}{count[word]}")
    return names


def dag(
    nodes: Mapping[str, tuple[Layer, str | Sequence[str]]],
    *,
    output: str,
    inputs: Sequence[str] = ("x",),
) -> Layer:
    """A directed acyclic graph of layers. A value that is read in several places gets the sum of its adjoints.

    Params: a dict with an entry for each node, `()` for a layer without.

    Args:
        nodes: `{name: (layer, sources)}` in any order. The sources are names of nodes or inputs; a layer with one of them gets its value
            as x, a layer with several gets the tuple of their values.
        output: the node that is the value of the net.
        inputs: what the nodes call x or, where there are several, the entries of x, which is then a tuple.

    Raises:
        TypeError, ValueError: nodes that are none of this, a source or an output that is unknown, a cycle, a node or an input that the
            output does not depend on; at `forward`, params that are no such dict, and two layers that do not fit, named with their shapes.

    Source: lecture 003's (x + y) z below; lecture 000, computation graphs.

    >>> from diffprog.backprop import add, multiply
    >>> net = dag({"f": (multiply(), ("q", "z")), "q": (add(), ("x", "y"))}, output="f", inputs=("x", "y", "z"))
    >>> x, y, z = (jax.numpy.array([each]) for each in (-2.0, 5.0, -4.0))
    >>> net.forward({"f": (), "q": ()}, (x, y, z))[0]
    Array([-12.], dtype=float32)
    """
    inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    parts = {name: _part(name, node) for name, node in _checked_nodes(nodes).items()}
    _check_names(parts, output, inputs)
    # Sorted, so that neither the parameters drawn nor the order of a sum depends on the order in which the nodes were given.
    names = sorted(parts)
    order = [
        name for name in _in_order({name: parts[name].sources for name in names}) if name in parts
    ]

    def init(key: jax.Array) -> Named:
        return {
            name: parts[name].layer.init(key)
            for name, key in zip(names, jax.random.split(key, len(names)), strict=True)
        }

    return net_of(init, f"dag({len(parts)} nodes)", tuple(parts[name] for name in order), inputs)


def _checked_nodes(nodes: Any) -> Mapping[str, Any]:
    if not isinstance(nodes, Mapping) or not nodes:
        raise ValueError(f"nodes must be a dict of at least one node, got {nodes!r}")
    return nodes


def _part(name: str, node: Any) -> Part:
    if not isinstance(node, tuple) or len(node) != 2:
        raise TypeError(f"nodes[{name!r}] must be a pair (layer, sources), got {node!r}")
    layer, sources = node
    require_layer(f"nodes[{name!r}][0]", layer)
    sources = (sources,) if isinstance(sources, str) else tuple(sources)
    if not sources:
        raise ValueError(f"nodes[{name!r}] must have at least one source")
    return Part(name, layer, sources)


def _check_names(parts: dict[str, Part], output: str, inputs: tuple[str, ...]) -> None:
    _validation.choice("output", output, parts)
    if not inputs or len({*inputs, *parts}) < len(inputs) + len(parts):
        raise ValueError(
            f"inputs must be at least one name, none twice and none that of a node, got {inputs!r}"
        )
    for part in parts.values():
        for source in part.sources:
            _validation.choice(f"a source of {part.name!r}", source, (*inputs, *parts))
    used, waiting = set[str](), [output]
    while waiting:
        name = waiting.pop()
        if name not in used:
            used.add(name)
            waiting += parts[name].sources if name in parts else ()
    if unused := {*inputs, *parts} - used:
        raise ValueError(
            f"every node and input must lead to the output {output!r}, got {', '.join(map(repr, sorted(unused)))} that do not"
        )


def _in_order(sources: Mapping[str, Sequence[str]]) -> list[str]:
    try:
        return list(graphlib.TopologicalSorter(sources).static_order())
    except graphlib.CycleError as error:
        raise ValueError(f"nodes must not form a cycle, got {' -> '.join(error.args[1])}") from None
