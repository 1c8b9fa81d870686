"""`Layer`, a function with a hand-written backward pass, and its use with `jax.grad`.

Lecture 000 draws layer l of a network as a box with three inputs, the value x_{l-1} of the layer
before, the parameters θ_l and the cotangent dJ/dx_l of a loss J, and with three outputs,

    x_l = f_l(x_{l-1}, θ_l),    dJ/dx_{l-1} = dJ/dx_l ∂f_l/∂x_{l-1},    dJ/dθ_l = dJ/dx_l ∂f_l/∂θ_l.

Here the box is a `Layer`, a named tuple of the pure functions `init`, `forward` and `backward`.
`forward` passes intermediate values to `backward` as residuals. dx, dy and dparams are short for
dJ/dx, dJ/dy and dJ/dparams.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = Any  # a pytree of float arrays


class Part(NamedTuple):
    """A layer within a network: its name, and where its inputs come from.

    Attributes:
        name: name of the layer in the network.
        layer: the layer.
        sources: names of the layers or network inputs whose values the layer takes as input.
    """

    name: str
    layer: "Layer"
    sources: tuple[str, ...]


class Layer(NamedTuple):
    """A function of params and x with its hand-written backward pass; inputs are batched.

    Attributes:
        init: `init(key) -> params`; `()` for a layer without parameters.
        forward: `forward(params, x) -> (y, residuals)`.
        backward: `backward(params, residuals, dy) -> (dparams, dx)`. Gradients have the shapes of
            their variables, the transpose of the lectures' numerator layout.
        name: name in reports and error messages, such as "affine(64, 10)".
        parts: the layers of a network in topological order, the output last; empty otherwise.
        inputs: names of x, or of the entries of x, in a network; empty otherwise.

    A layer of several inputs takes x as a tuple and returns dx as a tuple. An input without a
    derivative, such as integers or a PRNG key, has dx None.

    Your own layer works wherever the built-in ones do: in `chain`, `dag`, `differentiable`,
    `value_and_grads` and the checks.

    >>> import jax.numpy as jnp
    >>> from diffprog import backprop as bp, checks
    >>> def forward(params, x):
    ...     return params["scale"] * x**2, x
    >>> def backward(params, x, dy):
    ...     return {"scale": (dy * x**2).sum()}, dy * 2 * params["scale"] * x
    >>> square = bp.Layer(lambda key: {"scale": jnp.ones(())}, forward, backward, name="square")
    >>> bp.chain([bp.affine(3, 2), square]).parts[1].name
    'square1'
    >>> x, params = jnp.array([[1.0, 3.0]]), {"scale": jnp.array(0.5)}
    >>> jax.grad(lambda x: bp.differentiable(square)(params, x).sum())(x)
    Array([[1., 3.]], dtype=float32)
    >>> checks.check_layer(square, params, x, key=jax.random.key(0)).ok
    True
    """

    init: Callable[[jax.Array], Any]
    forward: Callable[[Any, Any], tuple[Any, Any]]
    backward: Callable[[Any, Any, Any], tuple[Any, Any]]
    name: str = "layer"
    parts: tuple[Part, ...] = ()
    inputs: tuple[str, ...] = ()


def layer_without_params(
    name: str, forward: Callable[[Any], tuple[Any, Any]], backward: Callable[[Any, Any], Any]
) -> Layer:
    """Build a layer without parameters from its forward and its backward pass.

    Args:
        name: name of the layer in reports and error messages.
        forward: `forward(x) -> (y, residuals)`.
        backward: `backward(residuals, dy) -> dx`.
    """
    return Layer(
        lambda key: (),
        lambda params, x: forward(x),
        lambda params, residuals, dy: ((), backward(residuals, dy)),
        name,
    )


def require_layer(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a `Layer`; `name` is its name in the message."""
    if not isinstance(value, Layer):
        raise TypeError(f"{name} must be a Layer, got {type(value).__name__}")


def differentiable(layer: Layer) -> Callable[[Params, Any], Any]:
    """Convert a layer to `f(params, x) -> y` whose gradient under `jax.grad` is its own `backward`.

    A second derivative of f differentiates the layer's `backward`; it is exact, because residuals
    are functions of params and x. Forward-mode differentiation (`jax.jvp`) works for the gradient
    of f, but not for f itself.

    Raises:
        TypeError: layer is not a `Layer`.

    >>> from diffprog.backprop import tanh
    >>> jax.grad(lambda x: differentiable(tanh())((), x).sum())(jax.numpy.zeros((1, 2)))
    Array([[1., 1.]], dtype=float32)
    """
    require_layer("layer", layer)
    return functools.partial(_apply_in_scope, layer)


def _apply_in_scope(layer: Layer, params: Params, x: Any) -> Any:
    with jax.named_scope(layer.name):
        return _apply(layer, params, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(layer: Layer, params: Params, x: Any) -> Any:
    return layer.forward(params, x)[0]


def _forward(layer: Layer, params: Params, x: Any) -> tuple[Any, tuple[Params, Any]]:
    y, residuals = layer.forward(params, x)
    return y, (params, residuals)


def _backward(layer: Layer, residuals: tuple[Params, Any], dy: Any) -> tuple[Any, Any]:
    return layer.backward(*residuals, dy)


_apply.defvjp(_forward, _backward)
