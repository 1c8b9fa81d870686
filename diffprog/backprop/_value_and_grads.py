"""Loss, gradients, and all values and adjoints of one forward and backward pass."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.backprop._layer import Layer, Params, require_layer
from diffprog.backprop._network import (
    ByName,
    params_by_name,
    restore_structure,
    run_backward,
    run_forward,
    select,
)


class Gradients(NamedTuple):
    """Result of `value_and_grads`.

    Attributes:
        value: the loss J.
        dparams: dJ/dparams, of the structure of params.
        dx: dJ/dx, of the structure of x.
        values: value of every input and part, by name.
        adjoints: dJ/dvalue of every input and part, by name, of the shapes of the values.
    """

    value: Float[Array, ""]
    dparams: Params
    dx: Any
    values: ByName
    adjoints: ByName


def value_and_grads(net: Layer, loss: Layer, params: Params, x: Any, y: Any) -> Gradients:
    """Compute J = loss(net(params, x), y), its gradients, and the value and adjoint of every part.

    It runs part by part, for inspection; under `jax.jit`, with net and loss closed over, it is as
    fast as `jax.value_and_grad`.

    Args:
        net: network made by `chain` or `dag`.
        loss: layer without parameters that maps (prediction, target) to a scalar, such as
            `mean_over_examples(softmax_cross_entropy())`.
        params: parameters of the network, finite.
        x: its input, finite.
        y: the target, finite.

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
    by_name = params_by_name(net, params)
    values, residuals = run_forward(net, by_name, x)
    value, loss_residuals = loss.forward((), (values[net.parts[-1].name], y))
    _validation.scalar("loss", value)
    _, (dy, _) = loss.backward((), loss_residuals, jnp.ones_like(value))
    dparams, adjoints = run_backward(net, by_name, residuals, dy)
    dx = select(adjoints, net.inputs)
    dparams = restore_structure(net, params, dparams)
    return Gradients(value, dparams, dx, values, adjoints)
