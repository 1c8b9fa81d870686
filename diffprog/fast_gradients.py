"""Adjoints: the exact gradient of convolutions and max-pooling, in the forms that are fast on the CPU, for programs that nobody rewrote.

`faster(f)` is f. Only its derivatives are computed otherwise, in the two places where XLA's CPU backend is slow with JAX's own:

    convolution    z = x * W, bilinear; dJ/dx and dJ/dW are the ordinary convolutions of `backprop`'s layer, in the layout of the fast
                   kernel also in the body of a loop, where JAX's run 10 to 100 times slower
    max-pooling    y_p = max_k x_{s p + k}; dJ/dx = sum_k spread_k [k_p = k] dJ/dy, with k_p the first place of window p that holds its
                   maximum, as JAX has it, which searches every window again instead

Each such equation becomes one box that holds it, as a function with a derivative rule of its own. The hand-written rule is the pullback
dJ/dy -> dJ/dx, a linear map. The box has it as the transpose of a transpose: the tangent dx -> dy that JAX asks for is the pullback's
`jax.linear_transpose`, and reverse mode transposes it back. So the one rule serves every order and every mode, under jit, vmap and scan.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, UInt8

from diffprog import _validation
from diffprog._jaxpr import (
    ClosedJaxpr,
    JaxprEqn,
    evaluate_equation,
    find_equations,
    interpret,
    jaxpr_as_fun,
    sub_jaxprs,
)
from diffprog.backprop._convolution import Geometry, convolve, input_gradient, kernel_gradient

_LARGEST_WINDOW = 25  # the places of a pooling window are written out one by one


def faster(f: Callable[..., Any]) -> Callable[..., Any]:
    """f, whose gradient runs faster on the CPU wherever it is compiled.

    Rewritten are convolutions without groups, in any layout and with any strides, pads and dilations, and max-pooling with windows of up to
    25 places, also within jit, remat, scan and cond. Everything else stays as it is: functions that have their own derivative rule, loops
    of unknown length, f outside of `jax.jit`, and f on a GPU. The values are those of f, the gradients too but for rounding.

    Args:
        f: any callable of pytrees, without side effects. Under a transformation it is traced, and runs as what was traced.

    Raises:
        TypeError: f is not callable.

    Source: jax issue 12868 for the loops; A. Baydin et al., "Automatic differentiation in machine learning: a survey", 2018, for the modes.

    >>> pool = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID")
    >>> jax.jit(jax.grad(lambda x: faster(pool)(x).sum()))(jnp.array([1.0, 2.0, 4.0, 4.0]))
    Array([0., 1., 1., 0.], dtype=float32)
    """
    _validation.function("f", f)

    @functools.wraps(f, updated=())
    def evaluated(*args: Any, **keywords: Any) -> Any:
        if jax.default_backend() != "cpu" or not _is_staged():
            return f(*args, **keywords)
        leaves, structure = jax.tree.flatten((args, keywords))
        call = _Call(f, structure, leaves)
        program = jax.make_jaxpr(call)(*call.traced)
        return call.returned(_run(program, call.traced))

    return evaluated


def _is_staged() -> bool:
    """Whether what is computed now is noted down for a compiler. Outside, each operation is compiled by itself, where none is slow."""
    return _is_traced(jnp.zeros(()))


def _is_traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


class _Call:
    """A call as a function of the traced arrays among its arguments, which returns the traced arrays among its results."""

    def __init__(self, f: Callable[..., Any], structure: Any, leaves: list[Any]) -> None:
        self._f, self._structure, self._rest = f, structure, _untraced(leaves)
        self.traced = [leaf for leaf in leaves if _is_traced(leaf)]

    def __call__(self, *arrays: Any) -> list[Any]:
        args, keywords = jax.tree.unflatten(self._structure, _filled(self._rest, arrays))
        results, self._returned = jax.tree.flatten(self._f(*args, **keywords))
        self._results = _untraced(results)
        return [leaf for leaf in results if _is_traced(leaf)]

    def returned(self, arrays: Sequence[Any]) -> Any:
        """What the call returned, with these for the traced arrays."""
        return jax.tree.unflatten(self._returned, _filled(self._results, arrays))


def _untraced(leaves: list[Any]) -> list[Any]:
    """`leaves` with None, which is never a leaf, for those that are traced: nothing may hold these beyond their trace."""
    return [None if _is_traced(leaf) else leaf for leaf in leaves]


def _filled(leaves: list[Any], arrays: Sequence[Any]) -> list[Any]:
    """`leaves` with the given arrays, in order, in place of each None."""
    remaining = iter(arrays)
    return [next(remaining) if leaf is None else leaf for leaf in leaves]


def _run(program: ClosedJaxpr, arguments: list[Any]) -> Sequence[Any]:
    found = find_equations(program, lambda equation: _rule(equation) is not None)
    actions = {
        site.path: _boxed
        for site in found
        if site.opaque_primitive is None and site.custom_rule_primitive is None
    }
    return (
        interpret(program, actions, arguments)[0] if actions else jaxpr_as_fun(program)(*arguments)
    )


def _boxed(equation: JaxprEqn, inputs: list[Any], given: None) -> tuple[list[Any], None]:
    """What the equation gives, from an equation that holds it together with its rule."""
    rule = _rule(equation)
    assert rule is not None
    (box,) = jax.make_jaxpr(rule)(*(atom.aval for atom in equation.invars)).eqns
    return evaluate_equation(
        equation.replace(primitive=box.primitive, params=box.params), inputs
    ), None


def operation(equation: JaxprEqn) -> str:
    """The primitive that an equation runs: its own, or the one that it holds together with its rule."""
    if equation.primitive.name == "custom_jvp_call":
        held = [
            inner.primitive.name
            for inner in sub_jaxprs(equation)[0].eqns
            if inner.primitive.name != "transpose"
        ]
        if len(held) == 1 and held[0] in _RULES:
            return held[0]
    return equation.primitive.name


def _rule(equation: JaxprEqn) -> Callable[..., Array] | None:
    """The equation as a function with its fast derivative, if it has one."""
    make = _RULES.get(equation.primitive.name)
    if make is None:
        return None
    avals: list[Any] = [atom.aval for atom in (*equation.invars, *equation.outvars)]
    plain = {aval.dtype for aval in avals} == {avals[0].dtype} and jnp.issubdtype(
        avals[0].dtype, jnp.floating
    )
    return make(equation.params) if plain and all(0 not in aval.shape for aval in avals) else None


class _Convolution(NamedTuple):
    """What a convolution does to its operands' axes: the permutations into the fast layout and back, and the windows."""

    images: tuple[int, ...]
    kernel: tuple[int, ...]
    back: tuple[int, ...]
    geometry: Geometry


def _convolution(params: dict[str, Any]) -> Callable[..., Array] | None:
    if (params["feature_group_count"], params["batch_group_count"], params["out_sharding"]) != (
        1,
        1,
        None,
    ):
        return None
    (batch, channels, *sides), (outputs, inputs, *window), (first, last, *out) = params[
        "dimension_numbers"
    ]
    geometry = Geometry(
        *(
            params[name]
            for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "precision")
        )
    )
    back = tuple(int(axis) for axis in np.argsort((first, *out, last)))
    form = _Convolution((batch, *sides, channels), (*window, inputs, outputs), back, geometry)
    return functools.partial(conv_general_dilated, form)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def conv_general_dilated(form: _Convolution, x: Array, kernel: Array) -> Array:
    """The convolution, in the fast layout."""
    return lax.transpose(
        convolve(lax.transpose(x, form.images), lax.transpose(kernel, form.kernel), form.geometry),
        form.back,
    )


@functools.partial(conv_general_dilated.defjvp, symbolic_zeros=True)
def _push_convolution(
    form: _Convolution, primals: tuple[Array, Array], tangents: tuple[Any, Any]
) -> tuple[Array, Array]:
    x, kernel = lax.transpose(primals[0], form.images), lax.transpose(primals[1], form.kernel)

    def to_input(dz: Array) -> Array:
        dx = input_gradient(
            kernel, x.shape[1:-1], lax.transpose(dz, np.argsort(form.back)), form.geometry
        )
        return lax.transpose(dx, np.argsort(form.images))

    def to_kernel(dz: Array) -> Array:
        dkernel = kernel_gradient(
            kernel.shape[:-2], x, lax.transpose(dz, np.argsort(form.back)), form.geometry
        )
        return lax.transpose(dkernel, np.argsort(form.kernel))

    z = conv_general_dilated(form, *primals)
    return z, _pushed((to_input, to_kernel), z, tangents)


def _pushed(pulls: Sequence[Callable[[Array], Array]], y: Array, tangents: Sequence[Any]) -> Array:
    """dy = sum_i (dy/da_i) da_i: each summand by the transpose of its pullback dJ/dy -> dJ/da_i."""
    known = [
        (pull, tangent)
        for pull, tangent in zip(pulls, tangents, strict=True)
        if not isinstance(tangent, SymbolicZero)
    ]
    return functools.reduce(
        jnp.add, [jax.linear_transpose(pull, y)(tangent)[0] for pull, tangent in known]
    )


class _Windows(NamedTuple):
    """The windows of a pooling: for each axis their length, the steps between them, and the pads."""

    lengths: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    @property
    def places(self) -> list[tuple[int, ...]]:
        """Where each entry of a window lies from its corner, in the order in which the maximum is sought."""
        return list(itertools.product(*map(range, self.lengths)))


def _max_pooling(params: dict[str, Any]) -> Callable[..., Array] | None:
    windows = _Windows(
        *(tuple(params[name]) for name in ("window_dimensions", "window_strides", "padding"))
    )
    dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
    return (
        None
        if dilated or np.prod(windows.lengths) > _LARGEST_WINDOW
        else functools.partial(reduce_window_max, windows)
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def reduce_window_max(windows: _Windows, x: Array) -> Array:
    """The largest value of each window."""
    return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, *windows)


@functools.partial(reduce_window_max.defjvp, symbolic_zeros=True)
def _push_max_pooling(
    windows: _Windows, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,) = primals
    y = reduce_window_max(windows, x)
    first = _first(windows, x, y)

    def to_input(dy: Array) -> Array:
        return (_to_each if windows.strides == windows.lengths else _to_all)(
            windows, first, dy, x.shape
        )

    return y, _pushed([to_input], y, tangents)


def _first(
    windows: _Windows, x: Float[Array, "..."], y: Float[Array, "..."]
) -> UInt8[Array, "..."]:
    """The number of the first place in each window that holds its maximum y; pads hold -inf, as in JAX."""
    padded = lax.pad(x, np.array(-np.inf, x.dtype), [(*pads, 0) for pads in windows.pads])
    first = jnp.full(y.shape, len(windows.places), jnp.uint8)
    for k, place in reversed(list(enumerate(windows.places))):
        ends = [
            start + (count - 1) * step + 1
            for start, count, step in zip(place, y.shape, windows.strides, strict=True)
        ]
        first = jnp.where(lax.slice(padded, place, ends, windows.strides) == y, jnp.uint8(k), first)
    return first


def _to_each(
    windows: _Windows, first: UInt8[Array, "..."], dy: Array, shape: tuple[int, ...]
) -> Array:
    """dJ/dx where no two windows meet: every entry of x asks whether it is the first of the window it lies in."""
    lengths, whole = (
        windows.lengths,
        [count * length for count, length in zip(dy.shape, windows.lengths, strict=True)],
    )
    split = [side for pair in zip(dy.shape, lengths, strict=True) for side in pair]
    number = jnp.arange(len(windows.places), dtype=first.dtype).reshape(
        [side for length in lengths for side in (1, length)]
    )
    over_windows = functools.partial(
        lax.broadcast_in_dim, shape=split, broadcast_dimensions=range(0, len(split), 2)
    )
    taken = lax.select(
        over_windows(first) == number, over_windows(dy), jnp.zeros(split, dy.dtype)
    ).reshape(whole)
    cut = [
        (-low, side + low - length, 0)
        for (low, _), side, length in zip(windows.pads, shape, whole, strict=True)
    ]
    return lax.pad(taken, np.array(0, dy.dtype), cut)


def _to_all(
    windows: _Windows, first: UInt8[Array, "..."], dy: Array, shape: tuple[int, ...]
) -> Array:
    """dJ/dx = sum_k spread_k [first = k] dJ/dy."""
    zeros = jnp.zeros_like(dy)
    parts = [lax.select(first == k, dy, zeros) for k in range(len(windows.places))]
    return functools.reduce(
        jnp.add,
        [
            _spread(windows, place, part, shape)
            for place, part in zip(windows.places, parts, strict=True)
        ],
    )


def _spread(windows: _Windows, place: tuple[int, ...], dy: Array, shape: tuple[int, ...]) -> Array:
    """dy where the windows have that place in an array of the given shape, and zeros elsewhere."""
    axes = zip(place, windows.pads, shape, dy.shape, windows.strides, strict=True)
    around = [
        (at - low, side + low - at - (count - 1) * step - 1, step - 1)
        for at, (low, _), side, count, step in axes
    ]
    return lax.pad(dy, np.array(0, dy.dtype), around)


_RULES = {"conv_general_dilated": _convolution, "reduce_window_max": _max_pooling}
