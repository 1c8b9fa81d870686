"""The whole of one forward and one backward pass: the loss, its gradients, and every value and adjoint on the way."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.backprop._layer import Layer, Params, require_layer
from diffprog.backprop._net import Named, by_name, gathered, like, run_backward, run_forward


class Gradients(NamedTuple):
    """Everything that one forward and one backward pass know.

    Attributes:
        value: J, the loss.
        dparams: dJ/dparams, of the structure of params.
        dx: dJ/dx, of the structure of x.
        values: the value of every input and part, by name.
        adjoints: dJ/dvalue of every input and part, by name, with the shapes of the values.
    """

    value: Float[Array, ""]
    dparams: Params
    dx: Any
    values: Named
    adjoints: Named


def value_and_grads(net: Layer, loss: Layer, params: Params, x: Any, y: Any) -> Gradients:
    """J = loss(net(params, x), y), its gradients, and the value and the adjoint of every part of the net, in one pass each way.

    It runs part by part, so that one may look inside; under `jax.jit`, with net and loss fixed, it is as fast as `jax.value_and_grad`.

    Args:
        net: made by `chain` or `dag`.
        loss: a layer without params on (prediction, target) that gives one number, such as
            `mean_over_examples(softmax_cross_entropy())`.
        params: those of the net, finite.
        x: its input, finite.
        y: the target, finite.

    Raises:
        TypeError, ValueError: a layer that is no net, a loss that gives no scalar, NaN or infinity, and what the layers refuse.

    >>> from diffprog.backprop import affine, chain, half_squared_error, sum_over_examples
    >>> params = ({"weight": jnp.array([[2.0]]), "bias": jnp.zeros(1)},)
    >>> loss = sum_over_examples(half_squared_error())
    >>> value_and_grads(chain([affine(1, 1)]), loss, params, jnp.array([[3.0]]), jnp.array([[5.0]])).dx
    Array([[2.]], dtype=float32)
    """
    require_layer("net", net)
    require_layer("loss", loss)
    if not net.parts:
        raise TypeError(f"net must be made by chain or dag, got the plain layer {net.name}")
    for name, given in {"params": params, "x": x, "y": y}.items():
        _validation.finite(name, given)
    named = by_name(net, params)
    values, residuals = run_forward(net, named, x)
    value, kept = loss.forward((), (values[net.parts[-1].name], y))
    _validation.scalar("loss", value)
    _, (dy, _) = loss.backward((), kept, jnp.ones_like(value))
    dparams, adjoints = run_backward(net, named, residuals, dy)
    return Gradients(
        value, like(params, dparams, net.parts), gathered(adjoints, net.inputs), values, adjoints
    )
