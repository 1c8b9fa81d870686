"""Read, replace and perturb intermediate values of a program by name.

A program, any callable f of arrays, computes y = f(x) through intermediate values h, its nodes. A
name for h splits f into two halves, h = g(x) and y = s(x, h):

    read         (f(x), h)           the value of the node
    replace      s(x, v)             f with v in place of h
    perturb      s(x, h + δ)         its gradient at δ = 0 is the adjoint dy/dh of the node
    intervene    s(x, v), h'(x, v)   and the value of another node h'

Name a node in the model by `h = tap(h, "hidden1")`, an identity without cost. A name that is used k
times gives the nodes "hidden1#0", "hidden1#1", ... In a model without taps, convolutions are the
nodes "conv:0", "conv:1", ... and matrix products "matmul:0", ..., in program order. If the
framework records module paths, as flax linen does, the end of a path also works: "Conv_0" for
"CNN/Conv_0". The value is the output of the operation itself, before a bias is added.

Nodes inside other constructs:

    scan, fori_loop of fixed length    the values of all iterations, stacked on a leading axis
    cond                               zero if its branch was not taken
    vmap inside f                      has the batch axis where JAX puts it
    remat that f differentiates        two nodes, because it is computed twice
    custom_jvp, custom_vjp             can be read; changing it raises, as it would bypass the rule
    while of unknown length            not a node: the number of its values is not known
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

from diffprog import _jaxpr, _validation, fast_gradients
from diffprog._jaxpr import ClosedJaxpr, EquationSite, Handler, JaxprEqn, Path
from diffprog.program import Program, program

_TAP = "name"  # the primitive behind `checkpoint_name`
_OPERATIONS = {"conv_general_dilated": "conv", "dot_general": "matmul"}


class Operation(NamedTuple):
    """Convolution or matrix product in a function, as `operations` lists it.

    Attributes:
        shape: shape of its output, as `read` returns it.
        dtype: dtype of its output.
        scope: path of the module that called it, as "CNN/Conv_0"; empty if there is none.
    """

    shape: tuple[int, ...]
    dtype: Any
    scope: str


def tap(value: ArrayLike, name: str) -> Array:
    """Name an intermediate value of a function, for `read` and `replace`; return it unchanged.

    Args:
        value: any array.
        name: a nonempty name without "#" and ":".

    Raises:
        TypeError: `value` is not an array, or `name` is not a string.
        ValueError: `name` is empty or contains "#" or ":", which number the nodes.

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
    """Return shape and dtype, by name, of every value that f names with `tap`; f is not run.

    Values in a loop of unknown length are left out, as they cannot be read.

    Args:
        f: any callable of pytrees.
        args: its arguments, or a `jax.ShapeDtypeStruct` for each array.

    >>> names(lambda x: tap(jnp.sin(x), "sine"), jax.ShapeDtypeStruct((3,), "float32"))
    {'sine': ShapeDtypeStruct(shape=(3,), dtype=float32)}
    """
    return {name: node_shape(site) for name, site in _readable(f, args, [_TAP]).items()}


def operations(f: Callable[..., Any], *args: Any) -> dict[str, Operation]:
    """Return the convolutions and matrix products of f by node name, in order; f is not run.

    Args:
        f: any callable of pytrees; it need not contain taps.
        args: its arguments, or a `jax.ShapeDtypeStruct` for each array.

    >>> operations(lambda x: jnp.tanh(x @ x), jax.ShapeDtypeStruct((3, 3), "float32"))
    {'matmul:0': Operation(shape=(3, 3), dtype=dtype('float32'), scope='')}
    """
    return {
        name: Operation(node_shape(site).shape, node_shape(site).dtype, _module_path(site))
        for name, site in _readable(f, args, _OPERATIONS).items()
    }


def read(
    f: Callable[..., Any], names: Iterable[str] | None = None
) -> Callable[..., tuple[Any, dict[str, Array]]]:
    """Transform f into args -> (f(args), values), which also returns intermediate values by name.

    Values that are not read cost nothing. Gradients flow through the values.

    Args:
        f: any callable of pytrees.
        names: names given with `tap`, names of operations such as "conv:0", or module paths; None
            for every value named with `tap` that can be read.

    Raises:
        TypeError: f is not callable, or `names` is not a sequence of strings.
        ValueError: on the call: a name is unknown or ambiguous, or the node is in a loop of unknown
            length.

    >>> f = lambda x: tap(x * x, "square") + 1
    >>> read(f, ["square"])(3.0)[1]
    {'square': Array(9., dtype=float32, weak_type=True)}
    """
    _validation.function("f", f)
    selected = None if names is None else as_name_tuple(names)
    return lambda *args: _run(_as_program(f), args, {}, selected, "values", _replace_handler)


def as_name_tuple(names: str | Iterable[str], argument: str = "names") -> tuple[str, ...]:
    """Return one name or several names as a tuple of strings.

    Args:
        names: a string or a sequence of strings.
        argument: name of the argument in the error message.

    >>> as_name_tuple("hidden1")
    ('hidden1',)
    """
    is_one = isinstance(names, str) or not isinstance(names, Iterable)
    as_tuple: tuple[Any, ...] = (names,) if is_one else tuple(names)
    if not all(isinstance(name, str) for name in as_tuple):
        raise TypeError(f"{argument} must be a sequence of strings, got {names!r}")
    return as_tuple


def differentiable(f: Callable[..., Any], *args: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape and dtype, by name, of every value h named with `tap` that has an adjoint dJ/dh.

    These are the floating-point values outside of functions with a custom derivative. f is not run.

    >>> differentiable(lambda x: tap(x, "h") * tap(jnp.argmax(x), "i"), jnp.ones(3))
    {'h': ShapeDtypeStruct(shape=(3,), dtype=float32)}
    """
    return {
        name: node_shape(site)
        for name, site in _readable(f, args, [_TAP]).items()
        if site.custom_rule_primitive is None
        and jnp.issubdtype(node_shape(site).dtype, jnp.inexact)
    }


def replace(f: Callable[..., Any], values: Mapping[str, ArrayLike]) -> Callable[..., Any]:
    """Transform f so that given arrays replace its intermediate values of the same names.

    Args:
        f: any callable of pytrees.
        values: dict from names of nodes, as in `read`, to finite arrays, each with the shape and
            dtype that `read` returns for its node.

    Raises:
        TypeError: f is not callable; on the call: a value has another dtype than its node.
        ValueError: a value is not finite; on the call: it has another shape than its node, a name
            is unknown or ambiguous, or the node is in a loop of unknown length or in a function
            with a custom derivative.

    >>> f = lambda x: tap(x * x, "square") + 1
    >>> replace(f, {"square": 5.0})(3.0)
    Array(6., dtype=float32, weak_type=True)
    """
    arrays = _validated_arrays(f, "values", values)
    return lambda *args: _run(_as_program(f), args, arrays, (), "values", _replace_handler)[0]


def perturb(f: Callable[..., Any], deltas: Mapping[str, ArrayLike]) -> Callable[..., Any]:
    """Transform f so that given arrays δ are added to its intermediate values h of the same names.

    The gradient of the output y with respect to δ at δ = 0 is the adjoint dy/dh. `deltas` is a dict
    from names to arrays δ; arguments and errors are as of `replace`.

    >>> f = lambda x: tap(x * x, "square") ** 2
    >>> jax.grad(lambda delta: perturb(f, {"square": delta})(3.0))(0.0)
    Array(18., dtype=float32, weak_type=True)
    """
    arrays = _validated_arrays(f, "deltas", deltas)
    return lambda *args: _run(_as_program(f), args, arrays, (), "deltas", _add_handler)[0]


def intervene(
    f: Callable[..., Any], values: Mapping[str, ArrayLike], names: Iterable[str]
) -> Callable[..., tuple[Any, dict[str, Array]]]:
    """Transform f to replace some intermediate values by name, and to return others.

    The transformed function returns (f(*args), values) like `read`, where `values` has the nodes
    `names`, computed from the replaced ones. A replaced node reads as its new value. Names are
    those of the nodes of f itself: after "matmul:0" was replaced, the next matrix product is still
    "matmul:1". The arguments and errors are those of `replace` and `read`.

    >>> f = lambda x: tap(tap(x * x, "square") + 1, "sum")
    >>> intervene(f, {"square": 5.0}, ["sum"])(3.0)[1]
    {'sum': Array(6., dtype=float32, weak_type=True)}
    """
    arrays, selected = _validated_arrays(f, "values", values), as_name_tuple(names)
    return lambda *args: _run(_as_program(f), args, arrays, selected, "values", _replace_handler)


def _as_program(f: Callable[..., Any]) -> Program:
    """Return a callable f as a `Program` without fast gradients; keep a `Program` as it is."""
    return program(f, fast_gradients=False)


def _validated_arrays(
    f: Callable[..., Any], argument: str, values: Mapping[str, ArrayLike]
) -> dict[str, Array]:
    _validation.function("f", f)
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise TypeError(f"{argument} must be a mapping from names to arrays, got {values!r}")
    for name, value in values.items():
        _validation.array(f"{argument}[{name!r}]", value)
    _validation.finite(argument, dict(values))
    return {name: jnp.asarray(value) for name, value in values.items()}


# Names, shapes and dtypes are validated inside the jitted function: that happens once for each
# structure and set of shapes, and before XLA compiles.
@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _run(
    f: Program,
    args: tuple[Any, ...],
    values: dict[str, Array],
    names: tuple[str, ...] | None,
    argument: str,
    handler: Handler,
) -> tuple[Any, dict[str, Array]]:
    """Run f with some nodes changed; return its output and the values of nodes by name.

    Args:
        f: the function.
        args: its arguments.
        values: arrays by name of the node to change, each the side input of its handler.
        names: names of the nodes to return; None for every value named with `tap`.
        argument: name of `values` in error messages.
        handler: how to change a node (see `_jaxpr.interpret`).
    """
    traced, structure = trace_program(f, args)
    changed = find_nodes(values, traced)
    sites = _by_name(_node_sites(traced, [_TAP])) if names is None else find_nodes(names, traced)
    for name, site in changed.items():
        _validate_value(f"{argument}[{name!r}]", values[name], site)
    side_inputs = {site.path: values[name] for name, site in changed.items()}
    if len(side_inputs) < len(changed):  # two names of one node, such as "Conv_0" and "conv:0"
        raise ValueError(
            f"{argument} must have one array for each node, got two for one node among "
            f"{', '.join(map(repr, changed))}"
        )
    handlers: dict[Path, Handler] = {site.path: _read_handler for site in sites.values()}
    handlers |= dict.fromkeys(side_inputs, handler)
    leaves = jax.tree.leaves((f, args))
    outputs, side_outputs = _jaxpr.interpret(traced, handlers, leaves, side_inputs)
    return jax.tree.unflatten(structure, outputs), {
        name: side_outputs[site.path] for name, site in sites.items()
    }


def _validate_value(name: str, value: Array, site: EquationSite) -> None:
    if site.custom_rule_primitive:
        raise ValueError(
            f"{name} is of a node inside a {site.custom_rule_primitive!r}: it can be read, but a "
            "change would bypass its derivative rule"
        )
    expected = node_shape(site)
    if (value.shape, value.dtype) != (expected.shape, expected.dtype):
        error = ValueError if value.shape != expected.shape else TypeError
        raise error(
            f"{name} must be {expected.dtype}{list(expected.shape)} like its node, "
            f"got {value.dtype}{list(value.shape)}"
        )


def _read_handler(
    equation: JaxprEqn, inputs: Sequence[Any], side_input: None
) -> tuple[list[Any], Any]:
    outputs = _jaxpr.evaluate_equation(equation, inputs)
    return outputs, outputs[0]


def _replace_handler(
    equation: JaxprEqn, inputs: Sequence[Any], value: Array
) -> tuple[list[Any], Array]:
    return [value], value


def _add_handler(equation: JaxprEqn, inputs: Sequence[Any], delta: Array) -> tuple[list[Any], None]:
    return [_jaxpr.evaluate_equation(equation, inputs)[0] + delta], None


def trace_program(f: Any, args: tuple[Any, ...]) -> tuple[ClosedJaxpr, Any]:
    """Trace f(*args); return its jaxpr and the pytree structure of its output.

    The arguments of the jaxpr are the leaves of (f, args), so f is a pytree such as a `Program`.
    """
    traced, shape = jax.make_jaxpr(lambda f, args: f(*args), return_shape=True)(f, args)
    return traced, jax.tree.structure(shape)


def find_nodes(names: Iterable[str], traced: ClosedJaxpr) -> dict[str, EquationSite]:
    """Find the equations of a jaxpr that compute the nodes of the given names; a dict by name.

    A name is one given with `tap`, one of an operation such as "conv:0", or the end of a module
    path.

    Raises:
        ValueError: a name is unknown or ambiguous, or the node cannot be read.
    """
    sites = _node_sites(traced, (_TAP, *_OPERATIONS))
    by_name = _by_name(sites)
    return {
        name: by_name[name] if name in by_name else _find_by_path(name, by_name, sites)
        for name in names
    }


def node_shape(site: EquationSite) -> jax.ShapeDtypeStruct:
    """Return shape and dtype of a node as `read` returns it, with an axis per enclosing scan."""
    output: Any = site.equation.outvars[0].aval
    return jax.ShapeDtypeStruct((*site.scan_lengths, *output.shape), output.dtype)


def _readable(
    f: Callable[..., Any], args: tuple[Any, ...], primitives: Iterable[str]
) -> dict[str, EquationSite]:
    _validation.function("f", f)
    return _by_name(_node_sites(trace_program(_as_program(f), args)[0], primitives))


def _node_sites(traced: ClosedJaxpr, primitives: Iterable[str]) -> list[EquationSite]:
    """Return the equations of a jaxpr whose primitive has one of the given names.

    An operation with a fast gradient is returned as the `custom_jvp` call around it, once.
    """
    primitive = fast_gradients.primitive_name
    sites = _jaxpr.find_equations(traced, lambda equation: primitive(equation) in primitives)
    wrappers = {
        site.path for site in sites if primitive(site.equation) != site.equation.primitive.name
    }
    # The path of a wrapped equation is that of its wrapper and two more indices.
    return [site for site in sites if site.path[:-2] not in wrappers]


def _by_name(sites: list[EquationSite]) -> dict[str, EquationSite]:
    """Return a dict of the readable nodes by name: "name", "name#k", "conv:k" or "matmul:k"."""
    groups = defaultdict(list)
    for site in sites:
        if site.opaque_primitive is None:
            primitive = fast_gradients.primitive_name(site.equation)
            name = None if primitive == _TAP else _OPERATIONS[primitive]
            prefix = f"{name}:" if name else f"{_jaxpr.tap_name(site.equation)}#"
            groups[prefix].append(site)
    return {
        prefix[:-1] if prefix.endswith("#") and len(group) == 1 else f"{prefix}{k}": site
        for prefix, group in groups.items()
        for k, site in enumerate(group)
    }


def _find_by_path(
    name: str, by_name: dict[str, EquationSite], sites: list[EquationSite]
) -> EquationSite:
    """Return the only node whose module path ends in `name`; raise if there is not exactly one."""
    matches = [key for key, site in by_name.items() if _matches(name, site)]
    if len(matches) == 1:
        return by_name[matches[0]]
    if matches:
        raise ValueError(
            f"node {name!r} is ambiguous, expected one of {', '.join(map(repr, matches))}"
        )
    for site in sites:
        if _matches(name, site):
            reason = (
                "a loop of unknown length has no fixed number of values"
                if site.opaque_primitive == "while"
                else "it cannot be entered"
            )
            raise ValueError(f"node {name!r} is inside a {site.opaque_primitive!r}: {reason}")
    options = ", ".join(map(repr, by_name)) or "none: the program has no nodes"
    unreadable = len(sites) - len(by_name)
    rest = f"; {unreadable} more are inside primitives that cannot be entered" if unreadable else ""
    raise ValueError(f"node {name!r} is unknown, expected one of {options}{rest}")


def _matches(name: str, site: EquationSite) -> bool:
    if site.equation.primitive.name == _TAP:
        return _jaxpr.tap_name(site.equation) == name
    return site.scope != "" and f"/{_module_path(site)}".endswith(f"/{name}")


def _module_path(site: EquationSite) -> str:
    """Return the scope of a node without JAX transformations: "jvp(CNN)/x" becomes "CNN/x"."""
    return re.sub(r"\w+\(|\)", "", site.scope)
