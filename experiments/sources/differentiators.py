"""Three ways to differentiate a network, with the same arguments and results.

Each takes and returns what `diffprog.backprop.value_and_grads` does, so an example is written once
and computed in three ways.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffprog import backprop as bp
from diffprog import gradients
from diffprog.backprop import Gradients, Layer

Differentiator = Callable[[Layer, Layer, Any, Any, Any], Gradients]
NodeValues = dict[str, Array]


def hand_written(net: Layer, loss: Layer, params: Any, x: Any, y: Any) -> Gradients:
    """Differentiate by the hand-written backward passes of `diffprog.backprop`."""
    return bp.value_and_grads(net, loss, params, x, y)


def autodiff(net: Layer, loss: Layer, params: Any, x: Any, y: Any) -> Gradients:
    """Differentiate the forward passes by `jax.grad`."""
    # The adjoint of a node is the gradient with respect to a perturbation added to its value.
    cost, perturbation = functools.partial(_cost, net, loss, y), _zeros(net, params, x)
    (value, values), grads = jax.value_and_grad(cost, has_aux=True)((params, x, perturbation))
    return _gradients(net, value, values, grads)


def finite_differences(net: Layer, loss: Layer, params: Any, x: Any, y: Any) -> Gradients:
    """Differentiate the forward passes by central differences."""
    cost, point = functools.partial(_cost, net, loss, y), (params, x, _zeros(net, params, x))
    value, values = cost(point)
    return _gradients(net, value, values, gradients.numerical(lambda p: cost(p)[0])(point))


@functools.cache
def compile_gradients(
    differentiate: Differentiator, net: Layer, loss: Layer
) -> Callable[[Any, Any, Any], Gradients]:
    """Compile (params, x, y) -> gradients, without optimization: it runs a few times only."""
    return jax.jit(
        functools.partial(differentiate, net, loss),
        compiler_options={"xla_backend_optimization_level": 0},
    )


def _cost(
    net: Layer, loss: Layer, y: Any, point: tuple[Any, Any, NodeValues]
) -> tuple[Array, NodeValues]:
    values = _forward(net, *point)
    return loss.forward((), (values[net.parts[-1].name], y))[0], values


def _forward(net: Layer, params: Any, x: Any, perturbation: NodeValues) -> NodeValues:
    """Compute the values of all nodes, each with its perturbation added."""
    values = _by_input_name(net, x)
    for k, part in enumerate(net.parts):
        sources = tuple(values[source] for source in part.sources)
        own = params[part.name] if isinstance(params, dict) else params[k]
        output, _ = part.layer.forward(own, sources if len(sources) > 1 else sources[0])
        values[part.name] = output + perturbation[part.name]
    return values


def _zeros(net: Layer, params: Any, x: Any) -> NodeValues:
    names = [part.name for part in net.parts]
    shapes = jax.eval_shape(functools.partial(_forward, net), params, x, dict.fromkeys(names, 0.0))
    return {name: jnp.zeros(shapes[name].shape, shapes[name].dtype) for name in names}


def _by_input_name(net: Layer, x: Any) -> NodeValues:
    return dict(zip(net.inputs, x if len(net.inputs) > 1 else (x,), strict=True))


def _gradients(
    net: Layer, value: Array, values: NodeValues, grads: tuple[Any, Any, NodeValues]
) -> Gradients:
    dparams, dx, adjoints = grads
    return Gradients(value, dparams, dx, values, _by_input_name(net, dx) | adjoints)
