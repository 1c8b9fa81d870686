"""A model: a pure function with named nodes, built from hand-written layers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from diffprog import _validation, backprop
from diffprog.backprop import Layer
from diffprog.nodes import tap


class Model(NamedTuple):
    """A function of parameters and inputs.

    Attributes:
        init: `init(key) -> params`, a dict from the name of a node to the parameters of the layer that computes it.
        apply: `apply(params, x) -> logits`, x: (batch, ...), logits: (batch, classes). Every node is tapped by its name.
    """

    init: Callable[[jax.Array], dict[str, Any]]
    apply: Callable[[dict[str, Any], Float[Array, "batch ..."]], Float[Array, "batch classes"]]


Stage = tuple[str, Layer]


def sequential(stages: Sequence[Stage], shape: Sequence[int | None]) -> Model:
    """The model that runs named layers one after another, each with its hand-written gradient, tapping every output.

    Args:
        stages: pairs (name, layer).
        shape: of one example; None where any length will do.

    Raises:
        TypeError, ValueError: no layers, something that is none, a name given twice; at `apply`, params of other nodes, an x that is not
            float (batch, *shape), empty, or with NaN or infinity.

    >>> model = sequential([("hidden", backprop.affine(2, 3)), ("logits", backprop.tanh())], shape=(2,))
    >>> sorted(model.init(jax.random.key(0)))
    ['hidden']
    """
    names, layers = tuple(name for name, _ in stages), tuple(layer for _, layer in stages)
    _check(names, layers)

    def init(key: jax.Array) -> dict[str, Any]:
        drawn = {
            name: layer.init(key)
            for name, layer, key in zip(
                names, layers, jax.random.split(key, len(layers)), strict=True
            )
        }
        return {name: params for name, params in drawn.items() if params != ()}

    held = {
        name
        for name, layer in stages
        if jax.tree.leaves(jax.eval_shape(layer.init, jax.random.key(0)))
    }

    def apply(
        params: dict[str, Any], x: Float[Array, "batch ..."]
    ) -> Float[Array, "batch classes"]:
        if not isinstance(params, dict) or params.keys() != held:
            given = sorted(params) if isinstance(params, dict) else type(params).__name__
            raise ValueError(f"params must be a dict with entries {sorted(held)}, got {given}")
        _check_input(x, tuple(shape))
        for name, layer in zip(names, layers, strict=True):
            x = tap(backprop.differentiable(layer)(params.get(name, ()), x), name)
        return x

    return Model(init, apply)


def _check(names: tuple[str, ...], layers: tuple[Layer, ...]) -> None:
    if not names:
        raise ValueError("stages must hold at least one layer, got none")
    for name, layer in zip(names, layers, strict=True):
        if not isinstance(layer, Layer):
            raise TypeError(f"the layer {name!r} must be a Layer, got {type(layer).__name__}")
        if names.count(name) > 1:
            raise ValueError(f"names of stages must differ, got {name!r} twice")


def _check_input(x: Any, shape: tuple[int | None, ...]) -> None:
    _validation.floating("x", x)
    if len(x.shape) != 1 + len(shape) or any(
        expected not in (None, side) for expected, side in zip(shape, x.shape[1:], strict=True)
    ):
        expected = ", ".join("any" if side is None else str(side) for side in shape)
        raise ValueError(f"x must have shape (batch, {expected}), got {list(x.shape)}")
    _validation.batch(x=x)
    _validation.finite("x", x)


ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky_relu", "elu", "softmax", "maxout")


def activation_layer(activation: str | Layer) -> Layer:
    """The elementwise or vector activation of that name, or the layer itself."""
    if isinstance(activation, Layer):
        return activation
    _validation.choice("activation", activation, ACTIVATIONS)
    return getattr(backprop, activation)()
