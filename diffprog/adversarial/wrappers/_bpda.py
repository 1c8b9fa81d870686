"""Backward pass differentiable approximation: replace the gradient of a function, not its values.

A function that rounds is piecewise constant: its gradient is zero almost everywhere, so
gradient-based attacks fail although the function need not be robust. `bpda` keeps the values and
takes the gradient of the identity for every rounding operation, or that of a smooth approximation
of the whole function.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffprog import _validation
from diffprog._jaxpr import ClosedJaxpr, JaxprEqn, evaluate_equation, find_equations, interpret
from diffprog.program import Program, program

_ROUNDING = ("round", "floor", "ceil", "sign")


def bpda(f: Callable[..., Any], through: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Replace the gradient of f by a straight-through estimate, or by that of `through` (BPDA).

    Without `through`, every round, floor, ceil and sign in f is differentiated as if it were the
    identity. Conversions to integers and comparisons have no such gradient; give `through` for
    functions that use them.

    Args:
        f: any callable of pytrees. With `through`, it must take and return floats.
        through: smooth approximation of f, called with the same arguments, such as `lambda x: x`.

    Returns:
        A function with the arguments and values of f and the replaced gradient.

    Raises:
        TypeError: f or `through` is not callable.
        ValueError: when the returned function is called, if f has none of the four operations, or
            one inside a loop of unknown length or a function with a custom derivative; or if
            `through` returns other shapes or dtypes than f.

    Sources: A. Athalye, N. Carlini and D. Wagner, "Obfuscated gradients give a false sense of
    security", 2018; Y. Bengio, N. Léonard and A. Courville, "Estimating or propagating gradients
    through stochastic neurons", 2013.

    >>> f = bpda(lambda x: jnp.round(4 * x) / 4)
    >>> print(f(0.3), jax.grad(f)(0.3))
    0.25 1.0
    """
    _validation.function("f", f)
    if through is None:
        return lambda *args: _call_straight_through(program(f, fast_gradients=False), args)
    _validation.function("through", through)

    def with_gradient_of_through(*args: Any) -> Any:
        value, approximation = f(*args), through(*args)
        kinds = [
            jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)
            for tree in (value, approximation)
        ]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"through must return the shapes and dtypes of f, {kinds[0]}, got {kinds[1]}"
            )
        return jax.tree.map(_replace_gradient, value, approximation)

    return with_gradient_of_through


@jax.custom_jvp
def _replace_gradient(value: Array, approximation: Array) -> Array:
    """Return `value`, with the gradient of `approximation` instead of its own."""
    return value


_replace_gradient.defjvp(lambda primals, tangents: (primals[0], tangents[1]))


@jax.jit
def _call_straight_through(f: Program, args: tuple[Any, ...]) -> Any:
    traced, shape = jax.make_jaxpr(lambda f, args: f(*args), return_shape=True)(f, args)
    handlers = dict.fromkeys(_rounding_paths(traced), _straight_through)
    outputs, _ = interpret(traced, handlers, jax.tree.leaves((f, args)))
    return jax.tree.unflatten(jax.tree.structure(shape), outputs)


def _rounding_paths(traced: ClosedJaxpr) -> list[tuple[int, ...]]:
    """Return the positions of all rounding operations in a traced function (jaxpr).

    Raises ValueError if there are none or if one cannot be replaced.
    """
    sites = find_equations(traced, lambda equation: equation.primitive.name in _ROUNDING)
    if not sites:
        raise ValueError(
            f"f must have a {', '.join(_ROUNDING)}, got none; give `through` for the whole of f"
        )
    opaque = [site for site in sites if site.opaque_primitive or site.custom_rule_primitive]
    if opaque:
        enclosing = {str(site.opaque_primitive or site.custom_rule_primitive) for site in opaque}
        raise ValueError(
            f"f must not have its {opaque[0].equation.primitive.name} inside "
            f"{', '.join(sorted(enclosing))}; give `through` for the whole of f"
        )
    return [site.path for site in sites]


def _straight_through(
    equation: JaxprEqn, inputs: list[Any], side_input: None
) -> tuple[list[Any], None]:
    return [_replace_gradient(evaluate_equation(equation, inputs)[0], inputs[0])], None
