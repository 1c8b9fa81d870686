"""A layer: three in, three out.

Lecture 000 draws a layer of a differentiable program as a box with three inputs, x_{l-1}, theta_l and dJ/dx_l, and three outputs,

    x_l = f_l(x_{l-1}, theta_l),    dJ/dx_{l-1} = dJ/dx_l df_l/dx_{l-1},    dJ/dtheta_l = dJ/dx_l df_l/dtheta_l.

Here the box is a `Layer` of plain functions; what `forward` keeps for `backward` is its residuals.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = Any  # a pytree of float arrays


class Part(NamedTuple):
    """A layer within a net: its name there, the layer, and the names of the parts (or of the net's inputs) that it reads."""

    name: str
    layer: "Layer"
    sources: tuple[str, ...]


class Layer(NamedTuple):
    """A function with its hand-written backward pass. Batch first; a layer without parameters has `()` for them.

    Attributes:
        init: `init(key) -> params`.
        forward: `forward(params, x) -> (y, residuals)`.
        backward: `backward(params, residuals, dy) -> (dparams, dx)`; gradients have the shape of what they are taken with respect to, the
            transpose of the lectures' numerator layout.
        name: what to call it in reports and errors, such as "affine(64, 10)".
        parts: the layers of a net, in an order in which they can run, the last one its output; none in a plain layer.
        inputs: the names by which the parts of a net know x or, where there are several, each entry of x; none in a plain layer.

    A layer of several inputs takes x as a tuple and gives dx as one. An input that has no derivative, such as integers or a random key,
    has `None` for its dx.
    """

    init: Callable[[jax.Array], Any]
    forward: Callable[[Any, Any], tuple[Any, Any]]
    backward: Callable[[Any, Any, Any], tuple[Any, Any]]
    name: str = "layer"
    parts: tuple[Part, ...] = ()
    inputs: tuple[str, ...] = ()


def require_layer(name: str, value: Any) -> None:
    """A `Layer`."""
    if not isinstance(value, Layer):
        raise TypeError(f"{name} must be a Layer, got {type(value).__name__}")


def differentiable(layer: Layer) -> Callable[[Params, Any], Any]:
    """`f(params, x) -> y` whose gradient under `jax.grad` is the layer's own `backward`.

    The first derivative is the hand-written rule; a second derivative differentiates that rule, and is exact because residuals are
    functions of params and x. Forward mode (`jax.jvp` of f itself) does not exist for it; `jax.jvp` of its gradient does.

    >>> from diffprog.backprop import tanh
    >>> jax.grad(lambda x: differentiable(tanh())((), x).sum())(jax.numpy.zeros((1, 2)))
    Array([[1., 1.]], dtype=float32)
    """
    require_layer("layer", layer)
    return functools.partial(_named, layer)


def _named(layer: Layer, params: Params, x: Any) -> Any:
    with jax.named_scope(layer.name):
        return _apply(layer, params, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(layer: Layer, params: Params, x: Any) -> Any:
    return layer.forward(params, x)[0]


def _forward(layer: Layer, params: Params, x: Any) -> tuple[Any, Any]:
    y, residuals = layer.forward(params, x)
    return y, (params, residuals)


def _backward(layer: Layer, kept: tuple[Any, Any], dy: Any) -> tuple[Any, Any]:
    params, residuals = kept
    return layer.backward(params, residuals, dy)


_apply.defvjp(_forward, _backward)
