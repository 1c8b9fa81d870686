"""Slices of a program's values: channel u_i of image i, computed without the other channels.

A program is run once over `Value`s, arrays that know which operation made them from which values. From the value that is wanted the walk
goes back for as long as the operations keep images and channels apart:

    elementwise operations              on the slices of their operands
    pooling, reshapes and the like      on the slice, if images and channels are axes before as they are after
    functions with their own rule       on the slice, and the rule on the slice of the adjoint, if both keep channels apart
    convolutions, matrix products       with one filter for each image (see `_filters`): here the walk ends

An operand that does not lead to a filter, such as a bias or one branch of a residual sum, has its channel picked.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Integer

from diffprog import backprop, fast_gradients
from diffprog._jaxpr import (
    ClosedJaxpr,
    JaxprEqn,
    Literal,
    as_function,
    evaluate_equation,
    jaxpr_as_fun,
    sub_jaxprs,
)
from diffprog.visualization._filters import Axes, convolution, convolves, matrix_product, multiplies
from diffprog.visualization._values import RULED, Value, values_of

_ELEMENTWISE = frozenset(
    name
    for names in (
        "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy cos cosh div eq erf erf_inv",
        "erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg nextafter not or pow",
        "reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor",
    )
    for name in names.split()
)
_LINEAR = frozenset(
    ("conv_general_dilated", "dot_general", "add", "broadcast_in_dim", "reshape", "transpose")
)
_EXACT = tuple(
    function.__code__.co_filename for function in (backprop.differentiable, fast_gradients.faster)
)
_SHAPE_IN_PARAMS = {"reshape": "new_sizes", "broadcast_in_dim": "shape", "slice": "limit_indices"}


def picked(array: Any, units: Integer[Array, " batch"], axes: Axes) -> Array:
    """Channel u_i of image i from the whole; of size 1 along the channel axis."""
    batch, channel = axes
    if jnp.ndim(array) == 0 or array.shape[channel] == 1:
        return array
    if array.shape[batch] == 1:
        return jnp.swapaxes(jnp.take(array, units, axis=channel), batch, channel)
    # A selection and a sum: the gradient of a gather would be a scatter, which is slow.
    chosen = lax.expand_dims(
        units[:, None] == jnp.arange(array.shape[channel]),
        [k for k in range(array.ndim) if k not in axes],
    )
    return jnp.where(
        chosen if batch < channel else jnp.swapaxes(chosen, batch, channel), array, 0
    ).sum(channel, keepdims=True)


class _Mixed(Exception):
    """A slice would need channels or images that are not its own."""


class Slices:
    """The slices of values, each computed once.

    Attributes:
        count: of images.
        units: u_i, (batch,); None where no channel may be picked, as values are known by their slices alone.
        known: slices by value and axes; None for a value that does not lead to a filter.
    """

    def __init__(
        self,
        count: int,
        units: Array | None,
        known: Mapping[tuple[Value, Axes], Array] | None = None,
    ) -> None:
        self.count, self.units = count, units
        self.known: dict[tuple[Value, Axes], Array | None] = dict(known or {})

    def part(self, value: Value, axes: Axes) -> Array:
        """The wanted channels of a value: its slice, or picked from the whole."""
        slice = self.of(value, axes)
        if slice is not None:
            return slice
        if isinstance(value.array, jax.ShapeDtypeStruct):
            raise _Mixed
        if (
            value.equation is not None
            and value.equation.primitive.name == "broadcast_in_dim"
            and _axis_before(value.equation, axes[1]) is None
        ):
            return lax.slice_in_dim(value.array, 0, 1, axis=axes[1])
        if self.units is None:
            if jnp.ndim(value.array) and value.array.shape[axes[1]] > 1:
                raise _Mixed
            return value.array
        return picked(value.array, self.units, axes)

    def of(self, value: Value, axes: Axes) -> Array | None:
        """The slice of a value, of size 1 along the channel axis; None if it does not lead to a filter."""
        if (value, axes) not in self.known:
            # Nothing comes before what is made of nothing, such as an iota.
            made = value.equation if value.inputs and self._has(value, axes) else None
            self.known[value, axes] = None if made is None else self._slice(value, made, axes)
        return self.known[value, axes]

    def _has(self, value: Value, axes: Axes) -> bool:
        """Whether a value has images and channels there."""
        shape = jnp.shape(value.array)
        return len(shape) > max(axes) and shape[axes[0]] == self.count and shape[axes[1]] > 1

    def _slice(self, value: Value, equation: JaxprEqn, axes: Axes) -> Array | None:
        kind = equation.primitive.name
        if kind in ("name", "optimization_barrier"):
            return self.of(value.inputs[value.index], axes)
        if kind in ("conv_general_dilated", "dot_general"):
            return self._filtered(value, equation, axes)
        if kind in RULED:
            return (
                self._through_layer(value, equation, axes)
                if _is_linear_layer(equation)
                else self._ruled(value, equation, axes)
            )
        if kind in _ELEMENTWISE:
            return self._elementwise(value, equation, axes)
        batch, channel = (_axis_before(equation, axis) for axis in axes)
        return (
            None
            if batch is None or channel is None
            else self._reshaped(value, equation, axes, (batch, channel))
        )

    def _filtered(self, value: Value, equation: JaxprEqn, axes: Axes) -> Array | None:
        a, b = (operand.array for operand in value.inputs)
        if self.units is None:
            return None
        if convolves(equation, axes):
            return convolution(equation, a, b, self.units)
        return (
            matrix_product(equation, (a, b), self.units, axes)
            if multiplies(equation, axes)
            else None
        )

    def _elementwise(self, value: Value, equation: JaxprEqn, axes: Axes) -> Array | None:
        if all(self.of(operand, axes) is None for operand in value.inputs):
            return None
        parts = [self.part(operand, axes) for operand in value.inputs]
        shape = jnp.broadcast_shapes(*map(jnp.shape, parts))
        return evaluate_equation(
            equation, [jnp.broadcast_to(part, shape) if jnp.ndim(part) else part for part in parts]
        )[0]

    def _reshaped(self, value: Value, equation: JaxprEqn, axes: Axes, before: Axes) -> Array | None:
        """An operation on one operand that leaves images and channels as they are; others that it takes are scalars."""
        slice = self.of(value.inputs[0], before)
        if slice is None:
            return None
        name, kind = _SHAPE_IN_PARAMS.get(equation.primitive.name), dict(equation.params)
        if name:
            kind[name] = tuple(
                1 if axis == axes[1] else size for axis, size in enumerate(kind[name])
            )
        return evaluate_equation(
            equation.replace(params=kind), [slice, *(operand.array for operand in value.inputs[1:])]
        )[0]

    def _through_layer(self, value: Value, equation: JaxprEqn, axes: Axes) -> Array | None:
        return self.of(values_of(sub_jaxprs(equation)[0], value.inputs, {})[0][value.index], axes)

    def _ruled(self, value: Value, equation: JaxprEqn, axes: Axes) -> Array | None:
        """The function on slices, with its rule on slices of the adjoint."""
        variables = {
            atom: operand
            for atom, operand in zip(equation.invars, value.inputs, strict=True)
            if not isinstance(atom, Literal)
        }
        fit = all(
            self._has(operand, axes) and jnp.issubdtype(operand.array.dtype, jnp.floating)
            for operand in variables.values()
        )
        if (
            len(equation.outvars) > 1
            or not fit
            or all(self.of(operand, axes) is None for operand in variables.values())
        ):
            return None
        parts = [self.part(operand, axes) for operand in variables.values()]
        try:
            function = _on_slices(equation, axes, self.count)
            if self.units is not None:
                jax.eval_shape(
                    lambda *parts: jax.vjp(function, *parts)[1](function(*parts)), *parts
                )
            return function(*parts)
        except _Mixed:
            return None


def _on_slices(equation: JaxprEqn, axes: Axes, count: int) -> Callable[..., Array]:
    """A function with a rule of its own, as one of the slices of its variables.

    The rule is traced as a program of the variables and the adjoint, which is run on slices as the function itself is.
    """
    variables = list({atom: None for atom in equation.invars if not isinstance(atom, Literal)})
    avals: list[Any] = [atom.aval for atom in (*variables, equation.outvars[0])]
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]

    def body(*values: Any) -> Any:
        of = dict(zip(variables, values, strict=True))
        return jaxpr_as_fun(sub_jaxprs(equation)[0])(
            *(atom.val if isinstance(atom, Literal) else of[atom] for atom in equation.invars)
        )

    def rule(*values: Any) -> Any:
        return jax.vjp(
            lambda *values: as_function([equation], variables)(*values)[0], *values[:-1]
        )[1](values[-1])

    @jax.custom_vjp
    def function(*parts: Array) -> Array:
        return _run_on_slices(jax.make_jaxpr(body)(*shapes[:-1]), parts, axes, count)[0]

    # Traced only when it is asked for: a rule may itself call the function.
    def backward(parts: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
        return tuple(_run_on_slices(jax.make_jaxpr(rule)(*shapes), (*parts, dy), axes, count))

    function.defvjp(lambda *parts: (function(*parts), parts), backward)
    return function


def _run_on_slices(
    program: ClosedJaxpr, parts: Sequence[Array], axes: Axes, count: int
) -> list[Array]:
    arguments = [Value(jax.ShapeDtypeStruct(aval.shape, aval.dtype)) for aval in program.in_avals]
    slices = Slices(
        count,
        None,
        {(argument, axes): part for argument, part in zip(arguments, parts, strict=True)},
    )
    outputs = [
        (value.array.shape, slices.part(value, axes))
        for value in values_of(program, arguments, {})[0]
    ]
    if any(part.shape != (*shape[: axes[1]], 1, *shape[axes[1] + 1 :]) for shape, part in outputs):
        raise _Mixed
    return [part for _, part in outputs]


def _is_linear_layer(equation: JaxprEqn) -> bool:
    """Whether it is a linear layer of `backprop` or a convolution of `adjoints`: its rule is the derivative of what is inside."""
    body: Any = sub_jaxprs(equation)[0]
    made_by = str(getattr(getattr(body.jaxpr, "debug_info", None), "func_src_info", ""))
    return any(file in made_by for file in _EXACT) and all(
        inner.primitive.name in _LINEAR for inner in body.eqns
    )


def _axis_before(equation: JaxprEqn, axis: int) -> int | None:
    """The axis of the first operand that becomes `axis` of the output, entry by entry; None if there is none."""
    params, (before, after) = equation.params, _shapes(equation.invars[0], equation.outvars[0])
    match equation.primitive.name:
        case "reshape":
            found = [
                k
                for k in range(len(before))
                if math.prod(before[:k]) == math.prod(after[:axis]) and before[k] == after[axis]
            ]
        case "broadcast_in_dim":
            found = [k for k, place in enumerate(params["broadcast_dimensions"]) if place == axis]
        case "transpose":
            found = [params["permutation"][axis]]
        case "squeeze" | "reduce_max" | "reduce_min" | "reduce_sum" | "reduce_prod":
            gone = params["dimensions" if "dimensions" in params else "axes"]
            found = [[k for k in range(len(before)) if k not in gone][axis]]
        case "slice":
            found = [axis]
        case "pad":
            found = [axis] if not any(params["padding_config"][axis]) else []
        case "reduce_window" | "reduce_window_max" | "reduce_window_min" | "reduce_window_sum":
            found = (
                [axis]
                if params["window_dimensions"][axis] == 1 and not any(params["padding"][axis])
                else []
            )
        case _:
            found = []
    return next((k for k in found if before[k] == after[axis]), None)


def _shapes(*atoms: Any) -> list[tuple[int, ...]]:
    return [atom.aval.shape for atom in atoms]
