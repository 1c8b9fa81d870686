"""`value_and_grads`: loss and gradients of a network, with the results of every layer."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.backprop import _network
from diffprog.backprop._layer import Layer, Params, require_layer
from diffprog.backprop._network import ByName


class Gradients(NamedTuple):
    """Result of `value_and_grads`: loss, gradients, and value and adjoint of every layer.

    Attributes:
        value: the loss J.
        dparams: gradient dJ/dparams, of the structure of params.
        dx: gradient dJ/dx, of the structure of x.
        values: value of every network input and layer output, by name.
        adjoints: derivative of J with respect to each of `values`, by name, of the same shape.
    """

    value: Float[Array, ""]
    dparams: Params
    dx: Any
    values: ByName
    adjoints: ByName


def value_and_grads(net: Layer, loss: Layer, params: Params, x: Any, y: Any) -> Gradients:
    """Compute J = loss(net(params, x), y), its gradients, and values and adjoints of all layers.

    The adjoint of a value is the derivative of J with respect to it. Layers are evaluated one after
    another, for inspection; under `jax.jit`, with net and loss closed over, this is as fast as
    `jax.value_and_grad`.

    Args:
        net: network made by `chain` or `dag`.
        loss: layer without parameters that maps (prediction, target) to a scalar, such as
            `mean_over_examples(softmax_cross_entropy())`.
        params: parameters of the network, finite.
        x: input of the network, finite.
        y: target of the loss, finite.

    Returns:
        `Gradients` with the loss J, dJ/dparams, dJ/dx, and the values and adjoints by name.

    Raises:
        TypeError: net is not a network, or loss is not a `Layer`.
        ValueError: the loss is not a scalar, an argument is not finite, or the layers do not fit.

    >>> from diffprog.backprop import affine, chain, half_squared_error, sum_over_examples
    >>> params = ({"weight": jnp.array([[2.0]]), "bias": jnp.zeros(1)},)
    >>> loss = sum_over_examples(half_squared_error())
    >>> net = chain([affine(1, 1)])
    >>> value_and_grads(net, loss, params, jnp.array([[3.0]]), jnp.array([[5.0]])).dx
    Array([[2.]], dtype=float32)
    """
    require_layer("net", net)
    require_layer("loss", loss)
    if not net.parts:
        raise TypeError(f"net must be made by chain or dag, got the plain layer {net.name}")
    for name, argument in {"params": params, "x": x, "y": y}.items():
        _validation.finite(name, argument)
    by_name = _network.params_by_name(net, params)
    values, residuals = _network.run_forward(net, by_name, x)
    value, loss_residuals = loss.forward((), (values[net.parts[-1].name], y))
    _validation.scalar("loss", value)
    _, (dy, _) = loss.backward((), loss_residuals, jnp.ones_like(value))
    dparams, adjoints = _network.run_backward(net, by_name, residuals, dy)
    dx = _network.select(adjoints, net.inputs)
    dparams = _network.restore_structure(net, dparams, params)
    return Gradients(value, dparams, dx, values, adjoints)
