"""Networks: a chain or a directed acyclic graph of layers, which is again a layer.

The forward pass evaluates the layers in topological order. The backward pass visits them in reverse
order. The adjoint of a value y is the derivative dJ/dy of the loss. Each layer turns the adjoint of
its output into those of its inputs (the recursion of lecture 000). If several layers use a value,
its adjoint is the sum of those they return (the copy gate of lecture 003, the distributed chain
rule of lecture 004). In reverse order they are all visited before the layer that computed the
value, so its adjoint is complete by then: each layer is visited once, whatever the number of paths.
"""

import collections
import graphlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffprog import _validation
from diffprog.backprop._layer import Layer, Params, Part, require_layer

ByName = dict[str, Any]


def chain(layers: Sequence[Layer]) -> Layer:
    """Compose layers one after another into a network, which is again a `Layer`.

        x_l = f_l(x_{l-1}, θ_l),    l = 1, 2, ...

    Params: a tuple with one entry per layer. In the network the layers are named by their kind and
    a number: "affine1", "relu1", "affine2".

    Args:
        layers: the layers, at least one; a network is a layer too.

    Raises:
        TypeError: an entry is not a `Layer`.
        ValueError: there is no layer; at `forward`, params does not have one entry per layer, or
            two layers do not fit together (the message gives names and shapes).

    >>> from diffprog.backprop import affine, relu
    >>> [part.name for part in chain([affine(4, 3), relu(), affine(3, 2)]).parts]
    ['affine1', 'relu1', 'affine2']
    """
    if not isinstance(layers, Sequence) or not layers:
        raise ValueError(f"layers must be a sequence of at least one Layer, got {layers!r}")
    counts: collections.Counter[str] = collections.Counter()
    names = []
    for k, layer in enumerate(layers):
        require_layer(f"layers[{k}]", layer)
        kind = layer.name.partition("(")[0]
        counts[kind] += 1
        names.append(f"{kind}{counts[kind]}")
    parts = tuple(map(Part, names, layers, [(source,) for source in ["x", *names]]))

    def init(key: jax.Array) -> tuple[Params, ...]:
        keys = jax.random.split(key, len(layers))
        return tuple(layer.init(key) for layer, key in zip(layers, keys, strict=True))

    return _make_network(init, f"chain({len(layers)} layers)", parts, ("x",))


def dag(
    nodes: Mapping[str, tuple[Layer, str | Sequence[str]]],
    *,
    output: str,
    inputs: Sequence[str] = ("x",),
) -> Layer:
    """Compose layers into a network, a `Layer` whose connections form a directed acyclic graph.

    A value may be the input of several layers; its gradient is the sum of theirs.

    Params: a dict with one entry per node.

    Args:
        nodes: `{name: (layer, sources)}` in any order. Sources are names of nodes or inputs. A
            layer with one source gets its value as x, a layer with several gets the tuple of
            values.
        output: name of the node whose value is the output.
        inputs: the name of x in the graph, or the names of the entries of x, which is then a tuple.

    Raises:
        TypeError: a node is not a pair of a `Layer` and sources.
        ValueError: an unknown source or output, a cycle, or a node or input that the output does
            not depend on; at `forward`, params does not have one entry per node, or two layers do
            not fit together.

    Source: lecture 003's (x + y) z below; lecture 000, computation graphs.

    >>> from diffprog.backprop import add, multiply
    >>> nodes = {"f": (multiply(), ("q", "z")), "q": (add(), ("x", "y"))}
    >>> net = dag(nodes, output="f", inputs=("x", "y", "z"))
    >>> x, y, z = (jnp.array([value]) for value in (-2.0, 5.0, -4.0))
    >>> net.forward({"f": (), "q": ()}, (x, y, z))[0]
    Array([-12.], dtype=float32)
    """
    if not isinstance(nodes, Mapping) or not nodes:
        raise ValueError(f"nodes must be a dict of at least one node, got {nodes!r}")
    inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    parts = {name: _make_part(name, node) for name, node in nodes.items()}
    _check_graph(parts, output, inputs)
    # Sorted, so that the order of the dict changes neither the initial parameters nor any sum.
    names = sorted(parts)
    sorter = graphlib.TopologicalSorter({name: parts[name].sources for name in names})
    try:
        order = [name for name in sorter.static_order() if name in parts]
    except graphlib.CycleError as error:
        raise ValueError(f"nodes must not form a cycle, got {' -> '.join(error.args[1])}") from None

    def init(key: jax.Array) -> ByName:
        keys = jax.random.split(key, len(names))
        return {name: parts[name].layer.init(key) for name, key in zip(names, keys, strict=True)}

    ordered_parts = tuple(parts[name] for name in order)
    return _make_network(init, f"dag({len(parts)} nodes)", ordered_parts, inputs)


def _make_part(name: str, node: Any) -> Part:
    if not isinstance(node, tuple) or len(node) != 2:
        raise TypeError(f"nodes[{name!r}] must be a pair (layer, sources), got {node!r}")
    layer, sources = node
    require_layer(f"nodes[{name!r}][0]", layer)
    sources = (sources,) if isinstance(sources, str) else tuple(sources)
    if not sources:
        raise ValueError(f"nodes[{name!r}] must have at least one source")
    return Part(name, layer, sources)


def _check_graph(parts: dict[str, Part], output: str, inputs: tuple[str, ...]) -> None:
    """Raise ValueError if the nodes and inputs of a graph do not fit together.

    All sources and the output must exist, names be unique, and the output depend on every node and
    input.
    """
    _validation.choice("output", output, parts)
    if not inputs or len({*inputs, *parts}) < len(inputs) + len(parts):
        raise ValueError(
            "inputs must be at least one name, without duplicates and names of nodes, "
            f"got {inputs!r}"
        )
    for part in parts.values():
        for source in part.sources:
            _validation.choice(f"a source of {part.name!r}", source, (*inputs, *parts))
    ancestors, pending = set[str](), [output]
    while pending:
        name = pending.pop()
        if name not in ancestors:
            ancestors.add(name)
            pending += parts[name].sources if name in parts else ()
    if unused := {*inputs, *parts} - ancestors:
        raise ValueError(
            f"the output {output!r} must depend on every node and input, "
            f"got unused {', '.join(map(repr, sorted(unused)))}"
        )


def _make_network(
    init: Callable[[jax.Array], Params], name: str, parts: tuple[Part, ...], inputs: tuple[str, ...]
) -> Layer:
    """Build a network, which is a `Layer`, from its parts in topological order.

    The output of the network is that of the last part; `inputs` are the names of the inputs.
    """

    def forward(params: Params, x: Any) -> tuple[Any, ByName]:
        values, residuals = run_forward(net, params_by_name(net, params), x)
        return values[parts[-1].name], residuals

    def backward(params: Params, residuals: ByName, dy: Any) -> tuple[Params, Any]:
        dparams, adjoints = run_backward(net, params_by_name(net, params), residuals, dy)
        return restore_structure(net, dparams, params), select(adjoints, inputs)

    # `forward` and `backward` refer to `net`, for its parts and the messages of errors.
    net = Layer(init, forward, backward, name, parts, inputs)
    return net


def run_forward(net: Layer, params: ByName, x: Any) -> tuple[ByName, ByName]:
    """Run the forward pass of a network and return all intermediate results.

    Returns a dict of the values of all network inputs and layer outputs, and a dict of the
    residuals of all layers, both by name. `params` is a dict by layer name.
    """
    values, residuals = _inputs_by_name(net, x), {}
    for part in net.parts:
        try:
            with jax.named_scope(part.name):
                values[part.name], residuals[part.name] = part.layer.forward(
                    params[part.name], select(values, part.sources)
                )
        except (TypeError, ValueError) as error:
            # Raise again with the names of the part and its sources; keep the kind of error.
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(_misfit_message(net, part, values, error)) from error
    return values, residuals


def run_backward(net: Layer, params: ByName, residuals: ByName, dy: Any) -> tuple[ByName, ByName]:
    """Run the backward pass of a network, with cotangent `dy` of its output.

    Returns a dict of the parameter gradients of all layers, and a dict of the adjoints (derivatives
    of the loss) of all network inputs and layer outputs, both by name. `params` and `residuals` are
    dicts by layer name.
    """
    dparams: ByName = {}
    adjoints: ByName = dict.fromkeys((*net.inputs, *(part.name for part in net.parts)))
    adjoints[net.parts[-1].name] = dy
    for part in reversed(net.parts):
        if adjoints[part.name] is None:
            # All consumers are without derivative, such as an embedding of integers.
            dparams[part.name] = jax.tree.map(jnp.zeros_like, params[part.name])
            continue
        dparams[part.name], dx = part.layer.backward(
            params[part.name], residuals[part.name], adjoints[part.name]
        )
        cotangents = dx if len(part.sources) > 1 else (dx,)
        for source, cotangent in zip(part.sources, cotangents, strict=True):
            adjoints[source] = _add_adjoints(adjoints[source], cotangent)
    return dparams, adjoints


def _add_adjoints(a: Any, b: Any) -> Any:
    """Add two adjoints, entry by entry for tuples; None (no derivative) counts as zero."""
    if a is None or b is None:
        return b if a is None else a
    return tuple(map(_add_adjoints, a, b)) if isinstance(a, tuple) else a + b


def _inputs_by_name(net: Layer, x: Any) -> ByName:
    if len(net.inputs) == 1:
        return {net.inputs[0]: x}
    if not isinstance(x, tuple) or len(x) != len(net.inputs):
        came = f"{len(x)} entries" if isinstance(x, tuple) else type(x).__name__
        raise ValueError(
            f"x must be a tuple of {len(net.inputs)} entries, {', '.join(net.inputs)}, got {came}"
        )
    return dict(zip(net.inputs, x, strict=True))


def select(values: ByName, names: tuple[str, ...]) -> Any:
    """Return the value under a single name, or the tuple of values under several names."""
    return values[names[0]] if len(names) == 1 else tuple(values[name] for name in names)


def params_by_name(net: Layer, params: Any) -> ByName:
    """Convert the parameters of a network, a tuple or a dict, to a dict by layer name."""
    names = [part.name for part in net.parts]
    if isinstance(params, Mapping) and set(params) == set(names):
        return dict(params)
    if isinstance(params, Sequence) and len(params) == len(names):
        return dict(zip(names, params, strict=True))
    sized = isinstance(params, Mapping | Sequence)
    raise ValueError(
        f"params must be what {net.name}.init returns, with entries for {', '.join(names)}, "
        f"got {f'{len(params)} entries' if sized else type(params).__name__}"
    )


def restore_structure(net: Layer, dparams: ByName, params: Any) -> Any:
    """Return a dict of gradients by layer name as a tuple if `params` is one, else unchanged."""
    if isinstance(params, Mapping):
        return dparams
    return tuple(dparams[part.name] for part in net.parts)


def _misfit_message(net: Layer, part: Part, values: ByName, error: Exception) -> str:
    layers = {other.name: f" ({other.layer.name})" for other in net.parts}
    sources = []
    for source in part.sources:
        leaves = map(jnp.asarray, jax.tree.leaves(values[source]))
        shapes = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves)
        sources.append(f"{source!r}{layers.get(source, '')} = {shapes}")
    return f"{part.name!r} ({part.layer.name}) does not fit its input {', '.join(sources)}: {error}"
