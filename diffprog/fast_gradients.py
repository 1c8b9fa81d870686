"""Fast CPU gradients of the convolutions and max-poolings in any JAX function.

`faster(f)` computes the values of f. Only its derivatives are computed differently, in the two
places where JAX's own are slow on XLA's CPU backend:

    convolution    z = x * W, bilinear. dJ/dx and dJ/dW are the ordinary convolutions of the layer
                   in `backprop`, in a layout that stays fast inside a loop, where JAX's are 10 to
                   100 times slower.
    max-pooling    y_p = max_k x_{s p + k} over the positions k of window p, with stride s.
                   dJ/dx = Σ_k scatter_k([k_p = k] dJ/dy), where k_p is the first position in window
                   p that holds the maximum, and scatter_k writes to x_{s p + k}. JAX sends the
                   gradient to the same position, but searches every window again.

In the jaxpr of f, each of these operations is replaced by a `custom_jvp` call that contains it. The
hand-written rule is the pullback dJ/dy -> dJ/dx, a linear map. The tangent map dx -> dy that
`custom_jvp` needs is the pullback's `jax.linear_transpose`, and reverse mode transposes it back.
One rule therefore serves every order and mode of differentiation, under jit, vmap and scan.
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

from diffprog import _jaxpr, _validation
from diffprog._jaxpr import ClosedJaxpr, JaxprEqn
from diffprog.backprop._convolution import Geometry, convolve, input_gradient, kernel_gradient

_LARGEST_WINDOW = 25  # the positions of a pooling window are unrolled


def faster(f: Callable[..., Any]) -> Callable[..., Any]:
    """Return f with gradients that run faster on the CPU when compiled.

    It rewrites convolutions without groups, in any layout and with any strides, padding and
    dilation, and max-pooling with windows of up to 25 positions, also inside jit, remat, scan and
    cond. It leaves unchanged: functions with a custom derivative, loops of unknown length, f
    outside of `jax.jit`, and f on a GPU. Values are those of f, and gradients agree up to rounding.

    Args:
        f: any callable of pytrees, without side effects. Under a transformation it is traced once.

    Raises:
        TypeError: f is not callable.

    Source: jax issue 12868 for the loops; A. Baydin et al., "Automatic differentiation in machine
    learning: a survey", 2018, for the modes.

    >>> pool = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID")
    >>> jax.jit(jax.grad(lambda x: faster(pool)(x).sum()))(jnp.array([1.0, 2.0, 4.0, 4.0]))
    Array([0., 1., 1., 0.], dtype=float32)
    """
    _validation.function("f", f)

    @functools.wraps(f, updated=())
    def rewritten(*args: Any, **keywords: Any) -> Any:
        # Outside of a trace every operation is compiled alone, where none is slow.
        under_trace = _is_traced(jnp.zeros(()))
        if jax.default_backend() != "cpu" or not under_trace:
            return f(*args, **keywords)
        leaves, structure = jax.tree.flatten((args, keywords))
        call = _ArrayCall(f, structure, leaves)
        program = jax.make_jaxpr(call)(*call.arrays)
        return call.unflatten_results(_run_rewritten(program, call.arrays))

    return rewritten


def _is_traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


class _ArrayCall:
    """A call of f as a function from traced arrays to traced arrays, for `jax.make_jaxpr`.

    Arguments and results of f are pytrees that can mix traced arrays with numbers, concrete arrays
    and other objects. `call(*call.arrays)` runs f and returns the list of its traced results. The
    other leaves are kept in lists, with None (which is never a leaf) in place of a traced array: a
    tracer must not outlive its trace.
    """

    def __init__(self, f: Callable[..., Any], structure: Any, leaves: list[Any]) -> None:
        self._f, self._structure = f, structure
        self._untraced = [None if _is_traced(leaf) else leaf for leaf in leaves]
        self.arrays = [leaf for leaf in leaves if _is_traced(leaf)]

    def __call__(self, *arrays: Any) -> list[Any]:
        args, keywords = self._merge(self._structure, self._untraced, arrays)
        results, self._result_structure = jax.tree.flatten(self._f(*args, **keywords))
        self._untraced_results = [None if _is_traced(leaf) else leaf for leaf in results]
        return [leaf for leaf in results if _is_traced(leaf)]

    def unflatten_results(self, arrays: Sequence[Any]) -> Any:
        """Return the result of f in the last call, with `arrays` in place of its traced arrays."""
        return self._merge(self._result_structure, self._untraced_results, arrays)

    @staticmethod
    def _merge(structure: Any, untraced: list[Any], arrays: Sequence[Any]) -> Any:
        remaining = iter(arrays)
        leaves = [next(remaining) if leaf is None else leaf for leaf in untraced]
        return jax.tree.unflatten(structure, leaves)


def _run_rewritten(program: ClosedJaxpr, arguments: list[Any]) -> Sequence[Any]:
    handlers = {
        site.path: _with_fast_rule
        for site in _jaxpr.find_equations(program, lambda eqn: _fast_function(eqn) is not None)
        if site.opaque_primitive is None and site.custom_rule_primitive is None
    }
    if not handlers:
        return _jaxpr.jaxpr_as_fun(program)(*arguments)
    return _jaxpr.interpret(program, handlers, arguments)[0]


def _with_fast_rule(
    equation: JaxprEqn, inputs: list[Any], side_input: None
) -> tuple[list[Any], None]:
    """Evaluate a convolution or max-pooling equation with its fast derivative.

    This is a handler for `_jaxpr.interpret`: it returns (outputs, None).
    """
    function = _fast_function(equation)
    assert function is not None
    (wrapper,) = jax.make_jaxpr(function)(*(atom.aval for atom in equation.invars)).eqns
    # The rest of the equation, with its name scope and source line, stays.
    wrapped = equation.replace(primitive=wrapper.primitive, params=wrapper.params)
    return _jaxpr.evaluate_equation(wrapped, inputs), None


def primitive_name(equation: JaxprEqn) -> str:
    """Return the name of an equation's primitive.

    For a call of one of this module's derivative rules, it is the primitive that the rule replaces.
    """
    if equation.primitive.name == "custom_jvp_call":
        inner = [inner.primitive.name for inner in _jaxpr.sub_jaxprs(equation)[0].eqns]
        wrapped = [name for name in inner if name != "transpose"]
        if len(wrapped) == 1 and wrapped[0] in _FAST_FUNCTIONS:
            return wrapped[0]
    return equation.primitive.name


def _fast_function(equation: JaxprEqn) -> Callable[..., Array] | None:
    """Return a replacement with a fast derivative for a convolution or max-pooling, or None.

    None means that the equation is of another primitive, or that its options or dtypes are not
    supported.
    """
    make = _FAST_FUNCTIONS.get(equation.primitive.name)
    if make is None:
        return None
    avals: list[Any] = [atom.aval for atom in (*equation.invars, *equation.outvars)]
    dtypes = {aval.dtype for aval in avals}
    if len(dtypes) > 1 or not jnp.issubdtype(avals[0].dtype, jnp.floating):
        return None
    return make(equation) if all(0 not in aval.shape for aval in avals) else None


class _Convolution(NamedTuple):
    """Axis permutations that bring a convolution into the fast layout and back, and its geometry.

    In the fast layout images are (batch, ..., channels) and kernels (..., inputs, outputs). The
    geometry has the strides, padding and dilation.
    """

    to_images: tuple[int, ...]
    to_kernel: tuple[int, ...]
    from_output: tuple[int, ...]
    geometry: Geometry


def _fast_convolution(equation: JaxprEqn) -> Callable[..., Array] | None:
    params = equation.params
    groups = params["feature_group_count"], params["batch_group_count"]
    if groups != (1, 1) or params["out_sharding"] is not None:
        return None
    # lhs_spec is (batch, channels, *spatial), rhs_spec (out channels, in channels, *spatial).
    lhs_spec, rhs_spec, (first, last, *out) = _jaxpr.convolution_dimensions(equation)
    (batch, channels, *sides), (outputs, inputs, *window) = lhs_spec, rhs_spec
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "precision")
    form = _Convolution(
        to_images=(batch, *sides, channels),
        to_kernel=(*window, inputs, outputs),
        from_output=tuple(int(axis) for axis in np.argsort((first, *out, last))),
        geometry=Geometry(*(params[name] for name in names)),
    )
    return functools.partial(conv_general_dilated, form)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def conv_general_dilated(form: _Convolution, x: Array, kernel: Array) -> Array:
    """Convolve x with a kernel in the fast layout, to and from which `form` permutes the axes."""
    z = convolve(
        lax.transpose(x, form.to_images), lax.transpose(kernel, form.to_kernel), form.geometry
    )
    return lax.transpose(z, form.from_output)


@functools.partial(conv_general_dilated.defjvp, symbolic_zeros=True)
def _convolution_jvp(
    form: _Convolution, primals: tuple[Array, Array], tangents: tuple[Any, Any]
) -> tuple[Array, Array]:
    x, kernel = lax.transpose(primals[0], form.to_images), lax.transpose(primals[1], form.to_kernel)
    to_output, from_images, from_kernel = map(
        np.argsort, (form.from_output, form.to_images, form.to_kernel)
    )

    def pull_to_input(dz: Array) -> Array:
        dz = lax.transpose(dz, to_output)
        dx = input_gradient(kernel, x.shape[1:-1], dz, form.geometry)
        return lax.transpose(dx, from_images)

    def pull_to_kernel(dz: Array) -> Array:
        dz = lax.transpose(dz, to_output)
        return lax.transpose(kernel_gradient(kernel.shape[:-2], x, dz, form.geometry), from_kernel)

    z = conv_general_dilated(form, *primals)
    return z, _tangent((pull_to_input, pull_to_kernel), z, tangents)


def _tangent(
    pullbacks: Sequence[Callable[[Array], Array]], y: Array, tangents: Sequence[Any]
) -> Array:
    """Compute the tangent dy = Σ_i (dy/da_i) da_i of y from the tangents da_i of its arguments.

    Pullback i is the linear map dJ/dy -> dJ/da_i; its transpose is the summand da_i -> dy.
    """
    summands = [
        jax.linear_transpose(pullback, y)(tangent)[0]
        for pullback, tangent in zip(pullbacks, tangents, strict=True)
        if not isinstance(tangent, SymbolicZero)
    ]
    return functools.reduce(jnp.add, summands)


class _Windows(NamedTuple):
    """Windows of a max-pooling: their length, stride and padding along each axis."""

    lengths: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def positions(self) -> list[tuple[int, ...]]:
        """Index offsets of all entries of a window, in order; of equal maxima the first counts."""
        return list(itertools.product(*map(range, self.lengths)))


def _fast_max_pooling(equation: JaxprEqn) -> Callable[..., Array] | None:
    params = equation.params
    names = ("window_dimensions", "window_strides", "padding")
    windows = _Windows(*(tuple(params[name]) for name in names))
    is_dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
    if is_dilated or np.prod(windows.lengths) > _LARGEST_WINDOW:
        return None
    return functools.partial(reduce_window_max, windows)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def reduce_window_max(windows: _Windows, x: Array) -> Array:
    """Return the maximum of x in each window, with a fast derivative."""
    return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, *windows)


@functools.partial(reduce_window_max.defjvp, symbolic_zeros=True)
def _max_pooling_jvp(
    windows: _Windows, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,) = primals
    y = reduce_window_max(windows, x)
    argmax = _window_argmax(windows, x, y)
    disjoint = windows.strides == windows.lengths
    scatter = _scatter_disjoint if disjoint else _scatter_overlapping
    return y, _tangent([lambda dy: scatter(windows, argmax, dy, x.shape)], y, tangents)


def _window_argmax(
    windows: _Windows, x: Float[Array, "..."], y: Float[Array, "..."]
) -> UInt8[Array, "..."]:
    """Return the index in `windows.positions` of the maximum of each window.

    y holds the maxima of x. Of equal maxima the first counts.
    """
    padded = lax.pad(x, np.array(-np.inf, x.dtype), [(*pads, 0) for pads in windows.padding])
    argmax = jnp.full(y.shape, len(windows.positions), jnp.uint8)
    # In reverse order, so that the first of equal maxima overwrites the others.
    for k, position in reversed(list(enumerate(windows.positions))):
        limits = [
            start + (count - 1) * stride + 1
            for start, count, stride in zip(position, y.shape, windows.strides, strict=True)
        ]
        candidates = lax.slice(padded, position, limits, windows.strides)
        argmax = jnp.where(candidates == y, jnp.uint8(k), argmax)
    return argmax


def _scatter_disjoint(
    windows: _Windows, argmax: UInt8[Array, "..."], dy: Array, shape: tuple[int, ...]
) -> Array:
    """Return dJ/dx, of the given shape, of a max-pooling whose windows do not overlap.

    `argmax` is from `_window_argmax`, and dy is dJ/dy.
    """
    lengths, zero = windows.lengths, np.array(0, dy.dtype)
    # x as (windows_1, positions_1, windows_2, positions_2, ...)
    tiled = [side for pair in zip(dy.shape, lengths, strict=True) for side in pair]
    own_position = jnp.arange(len(windows.positions), dtype=argmax.dtype).reshape(
        [side for length in lengths for side in (1, length)]
    )
    over_window = functools.partial(
        lax.broadcast_in_dim, shape=tiled, broadcast_dimensions=range(0, len(tiled), 2)
    )
    dx = lax.select(
        over_window(argmax) == own_position, over_window(dy), jnp.zeros(tiled, dy.dtype)
    )
    covered = [count * length for count, length in zip(dy.shape, lengths, strict=True)]
    crop = [
        (-low, side + low - length, 0)
        for (low, _), side, length in zip(windows.padding, shape, covered, strict=True)
    ]
    return lax.pad(dx.reshape(covered), zero, crop)


def _scatter_overlapping(
    windows: _Windows, argmax: UInt8[Array, "..."], dy: Array, shape: tuple[int, ...]
) -> Array:
    """Return dJ/dx, of the given shape, of a max-pooling whose windows overlap.

    It is a sum over the positions in a window. `argmax` is from `_window_argmax`, and dy is dJ/dy.
    """
    zeros = jnp.zeros_like(dy)
    summands = [
        _scatter(windows, position, lax.select(argmax == k, dy, zeros), shape)
        for k, position in enumerate(windows.positions)
    ]
    return functools.reduce(jnp.add, summands)


def _scatter(
    windows: _Windows, position: tuple[int, ...], dy: Array, shape: tuple[int, ...]
) -> Array:
    """Return zeros of the given shape with dy[p] at entry `position` of window p, for all p."""
    # Negative padding crops what lies in the padding of the pooling.
    axes = zip(position, windows.padding, shape, dy.shape, windows.strides, strict=True)
    padding = [
        (start - low, side + low - start - (count - 1) * stride - 1, stride - 1)
        for start, (low, _), side, count, stride in axes
    ]
    return lax.pad(dy, np.array(0, dy.dtype), padding)


_FAST_FUNCTIONS = {
    "conv_general_dilated": _fast_convolution,
    "reduce_window_max": _fast_max_pooling,
}
