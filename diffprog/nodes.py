"""Nodes: intermediate values of a program, read, replaced and perturbed by name.

A program computes y = f(x) through intermediate values h. With a name for h, f falls into two halves, h = g(x) and y = s(x, h):

    read        (f(x), h)          the value of the node
    replace     s(x, v)            the program with v in place of h
    perturb     s(x, h + δ)        its gradient at δ = 0 is the adjoint dy/dh of the node
    intervene   s(x, v), h'(x, v)  and what another node h' becomes

A node is named in the model, `h = tap(h, "hidden1")`, which is the identity and costs nothing; a name used k times means k nodes,
"hidden1#0", "hidden1#1", ... In a model without taps every convolution is a node "conv:0", "conv:1", ... and every matrix product a node
"matmul:0", ..., in program order. Where the framework records module paths (flax linen does) the end of one will do as well: "Conv_0" for
"CNN/Conv_0". The value is the raw output of the operation, before a bias is added.

What a node inside another construct is:

    scan, fori_loop of fixed length    all its values, stacked on a leading axis
    cond                               zero where its branch was not taken
    vmap within f                      a value with the batch axis where JAX put it
    remat that f differentiates        two nodes, as it is computed twice
    custom_jvp, custom_vjp             can be read; changing it would bypass the custom rule, and is refused
    while of unknown length            not a node: it has no fixed number of values; `read` of all and `names` pass over it
"""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, ArrayLike

from diffprog import _validation, fast_gradients
from diffprog._jaxpr import (
    ClosedJaxpr,
    EquationSite,
    Handler,
    JaxprEqn,
    evaluate_equation,
    find_equations,
    interpret,
    tap_name,
)
from diffprog.program import Program, program

_TAP = "name"  # the primitive behind `checkpoint_name`
_OPERATIONS = {"conv_general_dilated": "conv", "dot_general": "matmul"}


class Operation(NamedTuple):
    """A convolution or matrix product of a program.

    Attributes:
        shape: of its output, as `read` returns it.
        dtype: of its output.
        scope: the module path it was called in, "CNN/Conv_0"; empty where the framework records none.
    """

    shape: tuple[int, ...]
    dtype: Any
    scope: str


def tap(value: ArrayLike, name: str) -> Array:
    """The identity, h = `value`, with `name` for it.

    Args:
        value: any array.
        name: a name without "#" or ":".

    Raises:
        TypeError: the value is not an array, the name not a string.
        ValueError: the name is empty or has a "#" or ":", which number nodes.

    >>> f = lambda x: 2 * tap(jnp.sin(x), "sine")
    >>> read(f)(0.0)
    (Array(0., dtype=float32, weak_type=True), {'sine': Array(0., dtype=float32, weak_type=True)})
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}")
    _validation.array("value", value)
    if not name or "#" in name or ":" in name:
        raise ValueError(f"name must be a string without '#' or ':' and not empty, got {name!r}")
    return checkpoint_name(value, name)


def names(f: Callable[..., Any], *args: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The taps of f that can be read, with shape and dtype; nothing is run.

    Args:
        f: any callable of pytrees.
        args: its arguments, or a `jax.ShapeDtypeStruct` for each array.

    >>> names(lambda x: tap(jnp.sin(x), "sine"), jax.ShapeDtypeStruct((3,), "float32"))
    {'sine': ShapeDtypeStruct(shape=(3,), dtype=float32)}
    """
    return {name: node_shape(node) for name, node in _listed(f, args, [_TAP]).items()}


def operations(f: Callable[..., Any], *args: Any) -> dict[str, Operation]:
    """The convolutions and matrix products of f that can be read, in program order; nothing is run.

    Args:
        f: any callable of pytrees, as it is.
        args: its arguments, or a `jax.ShapeDtypeStruct` for each array.

    >>> operations(lambda x: jnp.tanh(x @ x), jax.ShapeDtypeStruct((3, 3), "float32"))
    {'matmul:0': Operation(shape=(3, 3), dtype=dtype('float32'), scope='')}
    """
    found = _listed(f, args, _OPERATIONS)
    return {
        name: Operation(node_shape(node).shape, node_shape(node).dtype, _module_path(node))
        for name, node in found.items()
    }


def read(
    f: Callable[..., Any], names: Iterable[str] | None = None
) -> Callable[..., tuple[Any, dict[str, Array]]]:
    """The function args -> (f(args), values): what f returns, and the values of its nodes by name.

    What is not read costs nothing. Gradients flow through the values.

    Args:
        f: any callable of pytrees.
        names: taps, operations or module paths; None for every tap that can be read.

    Raises:
        TypeError: f is not callable, or `names` is not a sequence of strings.
        ValueError: on the call: a name is unknown or means several nodes, or the node is in a loop of unknown length.

    >>> f = lambda x: tap(x * x, "square") + 1
    >>> read(f, ["square"])(3.0)[1]
    {'square': Array(9., dtype=float32, weak_type=True)}
    """
    _validation.function("f", f)
    chosen = None if names is None else as_name_tuple(names)
    return lambda *args: _read(_opened(f), args, chosen)


def as_name_tuple(names: str | Iterable[str]) -> tuple[str, ...]:
    """One name or several, as a tuple.

    >>> as_name_tuple("hidden1")
    ('hidden1',)
    """
    chosen = (
        (names,)
        if isinstance(names, str)
        else tuple(names)
        if isinstance(names, Iterable)
        else (names,)
    )
    if not all(isinstance(name, str) for name in chosen):
        raise TypeError(f"names must be a sequence of strings, got {names!r}")
    return chosen


def differentiable(f: Callable[..., Any], *args: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The taps of f that have an adjoint: floats outside of functions with their own derivative rule; nothing is run.

    >>> differentiable(lambda x: tap(x, "h") * tap(jnp.argmax(x), "i"), jnp.ones(3))
    {'h': ShapeDtypeStruct(shape=(3,), dtype=float32)}
    """
    listed = {
        name: (node_shape(node), node.custom_rule_primitive)
        for name, node in _listed(f, args, [_TAP]).items()
    }
    return {
        name: value
        for name, (value, rule) in listed.items()
        if rule is None and jnp.issubdtype(value.dtype, jnp.inexact)
    }


def replace(f: Callable[..., Any], values: Mapping[str, ArrayLike]) -> Callable[..., Any]:
    """The function args -> s(args, v): f with the values v in place of its nodes.

    Args:
        f: any callable of pytrees.
        values: arrays by name of a tap, an operation or a module path; each with the shape and dtype that `read` returns for it, finite.

    Raises:
        TypeError: f is not callable; on the call: a value has another dtype than its node.
        ValueError: a value is not finite; on the call: it has another shape than its node, a name is unknown or means several nodes, or
            the node is in a loop of unknown length or a function with its own derivative rule.

    >>> f = lambda x: tap(x * x, "square") + 1
    >>> replace(f, {"square": 5.0})(3.0)
    Array(6., dtype=float32, weak_type=True)
    """
    return _changed(f, "values", values, _put)


def perturb(f: Callable[..., Any], deltas: Mapping[str, ArrayLike]) -> Callable[..., Any]:
    """The function args -> s(args, h + δ): f with δ added at its nodes h.

    Its gradient with respect to δ at δ = 0 is the adjoint dy/dh. Args and errors are those of `replace`.

    >>> f = lambda x: tap(x * x, "square") ** 2
    >>> jax.grad(lambda delta: perturb(f, {"square": delta})(3.0))(0.0)
    Array(18., dtype=float32, weak_type=True)
    """
    return _changed(f, "deltas", deltas, _add)


def intervene(
    f: Callable[..., Any], values: Mapping[str, ArrayLike], names: Iterable[str]
) -> Callable[..., tuple[Any, dict[str, Array]]]:
    """The function args -> (s(args, v), nodes): f with the values v in place of its nodes, and what others of its nodes then are, by name.

    Every name is that of the node in f as it is: what is read after "matmul:0" was replaced is still "matmul:1". A node that was replaced
    reads as its v. Args and errors are those of `replace`, and for `names` of `read`.

    >>> f = lambda x: tap(tap(x * x, "square") + 1, "sum")
    >>> intervene(f, {"square": 5.0}, ["sum"])(3.0)[1]
    {'sum': Array(6., dtype=float32, weak_type=True)}
    """
    arrays, chosen = _arrays(f, "values", values), as_name_tuple(names)
    return lambda *args: _change(_opened(f), args, arrays, chosen, "values", _put)


def _listed(
    f: Callable[..., Any], args: tuple[Any, ...], primitives: Iterable[str]
) -> dict[str, EquationSite]:
    _validation.function("f", f)
    return _keyed(_nodes(trace_program(_opened(f), args)[0], primitives))


def _opened(f: Callable[..., Any]) -> Program:
    """A program keeps its fast gradients, and a plain function is traced as it is."""
    return program(f, fast_gradients=False)


def _changed(
    f: Callable[..., Any], argument: str, values: Mapping[str, ArrayLike], action: Handler
) -> Callable[..., Any]:
    arrays = _arrays(f, argument, values)
    return lambda *args: _change(_opened(f), args, arrays, (), argument, action)[0]


def _arrays(
    f: Callable[..., Any], argument: str, values: Mapping[str, ArrayLike]
) -> dict[str, Array]:
    _validation.function("f", f)
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise TypeError(f"{argument} must be a mapping from names to arrays, got {values!r}")
    for name, value in values.items():
        _validation.array(f"{argument}[{name!r}]", value)
    _validation.finite(argument, dict(values))
    return {name: jnp.asarray(value) for name, value in values.items()}


# Names, shapes and dtypes are checked inside these two: that is once for each structure and shape, and before XLA sees the program.
@functools.partial(jax.jit, static_argnums=2)
def _read(
    f: Any, args: tuple[Any, ...], chosen: tuple[str, ...] | None
) -> tuple[Any, dict[str, Array]]:
    traced, structure = trace_program(f, args)
    found = _keyed(_nodes(traced, [_TAP])) if chosen is None else find_nodes(chosen, traced)
    outputs, side = interpret(
        traced, {site.path: _see for site in found.values()}, jax.tree.leaves((f, args))
    )
    return jax.tree.unflatten(structure, outputs), {
        name: side[site.path] for name, site in found.items()
    }


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _change(
    f: Any,
    args: tuple[Any, ...],
    values: dict[str, Array],
    chosen: tuple[str, ...],
    argument: str,
    action: Handler,
) -> tuple[Any, dict[str, Array]]:
    traced, structure = trace_program(f, args)
    found, read = find_nodes(values, traced), find_nodes(chosen, traced)
    for name, site in found.items():
        _require_changeable(f"{argument}[{name!r}]", values[name], site)
    given = {site.path: values[name] for name, site in found.items()}
    if len(given) < len(found):
        raise ValueError(
            f"{argument} must have one array for each node, got two for one node among {', '.join(map(repr, found))}"
        )
    actions = {site.path: _see for site in read.values()} | dict.fromkeys(given, action)
    outputs, side = interpret(traced, actions, jax.tree.leaves((f, args)), given)
    return jax.tree.unflatten(structure, outputs), {
        name: side[site.path] for name, site in read.items()
    }


def _see(equation: JaxprEqn, inputs: Sequence[Any], given: None) -> tuple[list[Any], Any]:
    outputs = evaluate_equation(equation, inputs)
    return outputs, outputs[0]


def _put(equation: JaxprEqn, inputs: Sequence[Any], given: Array) -> tuple[list[Any], Array]:
    return [given], given


def _add(equation: JaxprEqn, inputs: Sequence[Any], given: Array) -> tuple[list[Any], None]:
    return [evaluate_equation(equation, inputs)[0] + given], None


def trace_program(f: Any, args: tuple[Any, ...]) -> tuple[ClosedJaxpr, Any]:
    """The program, taking the leaves of (f, args), and the structure of what it returns."""
    traced, shape = jax.make_jaxpr(lambda f, args: f(*args), return_shape=True)(f, args)
    return traced, jax.tree.structure(shape)


def _nodes(traced: ClosedJaxpr, primitives: Iterable[str]) -> list[EquationSite]:
    """A convolution that has its fast gradient is the node, not the one that it holds."""
    found = find_equations(
        traced, lambda equation: fast_gradients.operation(equation) in primitives
    )
    holding = {
        site.path
        for site in found
        if fast_gradients.operation(site.equation) != site.equation.primitive.name
    }
    return [site for site in found if site.path[:-2] not in holding]


def _keyed(nodes: list[EquationSite]) -> dict[str, EquationSite]:
    """The nodes that can be read: an operation by "kind:k", a tap by its name, or by "name#k" where several share it."""
    groups = defaultdict(list)
    for node in nodes:
        if node.opaque_primitive is None:
            groups[_label(node)].append(node)
    return {
        label[:-1] if label.endswith("#") and len(group) == 1 else f"{label}{k}": node
        for label, group in groups.items()
        for k, node in enumerate(group)
    }


def _label(node: EquationSite) -> str:
    kind = fast_gradients.operation(node.equation)
    return f"{_OPERATIONS[kind]}:" if kind in _OPERATIONS else f"{tap_name(node.equation)}#"


def find_nodes(names: Iterable[str], traced: ClosedJaxpr) -> dict[str, EquationSite]:
    nodes = _nodes(traced, (_TAP, *_OPERATIONS))
    known = _keyed(nodes)
    return {
        name: known[name] if name in known else _find_by_meaning(name, known, nodes)
        for name in names
    }


def _find_by_meaning(
    name: str, known: dict[str, EquationSite], nodes: list[EquationSite]
) -> EquationSite:
    """The only node with a module path that ends in `name`, or an error that says why there is none."""
    meant = [key for key, node in known.items() if _means(name, node)]
    if len(meant) == 1:
        return known[meant[0]]
    if meant:
        raise ValueError(
            f"node {name!r} means {len(meant)} nodes, choose from {', '.join(map(repr, meant))}"
        )
    for node in nodes:
        if _means(name, node):
            reason = (
                "a loop of unknown length has no fixed number of values"
                if node.opaque_primitive == "while"
                else "which cannot be entered"
            )
            raise ValueError(f"node {name!r} is inside a {node.opaque_primitive!r}: {reason}")
    closed = sum(node.opaque_primitive is not None for node in nodes)
    unread = (
        f"; {closed} more lie in loops of unknown length or in what cannot be entered"
        if closed
        else ""
    )
    raise ValueError(
        f"node {name!r} is unknown, expected one of {', '.join(map(repr, known)) or 'none: the program has no nodes'}{unread}"
    )


def _means(name: str, node: EquationSite) -> bool:
    if node.equation.primitive.name == _TAP:
        return tap_name(node.equation) == name
    return node.scope != "" and f"/{_module_path(node)}".endswith(f"/{name}")


def _module_path(node: EquationSite) -> str:
    """The scope without what transformations wrap around it: "jvp(CNN)/Conv_0" is "CNN/Conv_0"."""
    return re.sub(r"\w+\(|\)", "", node.scope)


def node_shape(node: EquationSite) -> jax.ShapeDtypeStruct:
    """What `read` returns for the node, before it has values."""
    output: Any = node.equation.outvars[0].aval
    return jax.ShapeDtypeStruct((*node.scan_lengths, *output.shape), output.dtype)


def _require_changeable(name: str, value: Array, node: EquationSite) -> None:
    if node.custom_rule_primitive:
        raise ValueError(
            f"{name} is of a node inside a {node.custom_rule_primitive!r}: it can be read, but a change would bypass its derivative rule"
        )
    expected = node_shape(node)
    wrong = (
        ValueError
        if value.shape != expected.shape
        else TypeError
        if value.dtype != expected.dtype
        else None
    )
    if wrong:
        raise wrong(
            f"{name} must be {expected.dtype}{list(expected.shape)} like its node, got {value.dtype}{list(value.shape)}"
        )
