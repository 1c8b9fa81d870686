"""Three ways to differentiate a net, called alike and with results alike.

Each is called as `diffprog.backprop.value_and_grads` is and returns what that returns, so that an example is written once and the three
are told apart by nothing but how they differentiate.
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

Route = Callable[[Layer, Layer, Any, Any, Any], Gradients]
Named = dict[str, Array]


def by_hand(net: Layer, loss: Layer, params: Any, x: Any, y: Any) -> Gradients:
    """The backward passes written in `diffprog.backprop`."""
    return bp.value_and_grads(net, loss, params, x, y)


def by_autodiff(net: Layer, loss: Layer, params: Any, x: Any, y: Any) -> Gradients:
    """`jax.grad` of the forward passes alone; an adjoint is the gradient with respect to something added to a value."""
    cost, zeros = functools.partial(_cost, net, loss, y), _zeros(net, params, x)
    (value, values), found = jax.value_and_grad(cost, has_aux=True)((params, x, zeros))
    return _gradients(net, value, values, found)


def by_differences(net: Layer, loss: Layer, params: Any, x: Any, y: Any) -> Gradients:
    """Central differences of the forward passes."""
    cost, zeros = functools.partial(_cost, net, loss, y), _zeros(net, params, x)
    value, values = cost((params, x, zeros))
    return _gradients(
        net, value, values, gradients.numerical(lambda at: cost(at)[0])((params, x, zeros))
    )


@functools.cache
def compiled(route: Route, net: Layer, loss: Layer) -> Callable[[Any, Any, Any], Gradients]:
    """One route on one net as one program, compiled fast rather than well: it runs a few times on a few numbers."""
    return jax.jit(
        functools.partial(route, net, loss), compiler_options={"xla_backend_optimization_level": 0}
    )


def _cost(net: Layer, loss: Layer, y: Any, at: tuple[Any, Any, Named]) -> tuple[Array, Named]:
    values = _values(net, *at)
    return loss.forward((), (values[net.parts[-1].name], y))[0], values


def _values(net: Layer, params: Any, x: Any, added: Named) -> Named:
    values = _named(net, x)
    for k, part in enumerate(net.parts):
        read = tuple(values[source] for source in part.sources)
        own = params[part.name] if isinstance(params, dict) else params[k]
        values[part.name] = (
            part.layer.forward(own, read if len(read) > 1 else read[0])[0] + added[part.name]
        )
    return values


def _zeros(net: Layer, params: Any, x: Any) -> Named:
    values = jax.eval_shape(
        functools.partial(_values, net), params, x, {part.name: 0.0 for part in net.parts}
    )
    return {
        part.name: jnp.zeros(values[part.name].shape, values[part.name].dtype) for part in net.parts
    }


def _named(net: Layer, x: Any) -> Named:
    return dict(zip(net.inputs, x if len(net.inputs) > 1 else (x,), strict=True))


def _gradients(net: Layer, value: Array, values: Named, found: tuple[Any, Any, Named]) -> Gradients:
    dparams, dx, adjoints = found
    return Gradients(value, dparams, dx, values, _named(net, dx) | adjoints)
