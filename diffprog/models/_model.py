"""`Model`, a pair of pure functions (init, apply), and `sequential`, which builds one."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from diffprog import _validation, backprop
from diffprog.backprop import Layer
from diffprog.nodes import tap

Stage = tuple[str, Layer]
_LAYER_ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky_relu", "elu", "softmax", "maxout")


class Model(NamedTuple):
    """A pair of pure functions: initialization of the parameters, and the forward pass.

    Attributes:
        init: `init(key) -> params`, a dict from layer names to their parameters.
        apply: `apply(params, x) -> logits`, x: (batch, ...), logits: (batch, classes). The output
            of each layer is a node, named with `nodes.tap` after the layer.
    """

    init: Callable[[jax.Array], dict[str, Any]]
    apply: Callable[[dict[str, Any], Float[Array, "batch ..."]], Float[Array, "batch classes"]]


def sequential(stages: Sequence[Stage], shape: Sequence[int | None]) -> Model:
    """Build a model that applies named layers in order, with their hand-written gradients.

    Args:
        stages: pairs (name, layer), applied in order; at least one.
        shape: shape of one example; None for an axis of any length.

    Returns:
        A `Model`, the functions `init(key) -> params` and `apply(params, x) -> logits`.

    Raises:
        TypeError, ValueError: there are no layers, one is not a `Layer`, or a name is repeated.
            `apply` raises if params has other entries, or x is not a nonempty batch of finite
            floats of shape (batch, *shape).

    >>> model = sequential([("hidden", backprop.affine(2, 3)), ("logits", backprop.tanh())], (2,))
    >>> sorted(model.init(jax.random.key(0)))
    ['hidden']
    """
    names, layers = tuple(name for name, _ in stages), tuple(layer for _, layer in stages)
    if not names:
        raise ValueError("stages must hold at least one layer, got none")
    for name, layer in stages:
        if not isinstance(layer, Layer):
            raise TypeError(f"the layer {name!r} must be a Layer, got {type(layer).__name__}")
        if names.count(name) > 1:
            raise ValueError(f"stages must have different names, got {name!r} twice")

    def init(key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, len(layers))
        params = {name: layer.init(k) for name, layer, k in zip(names, layers, keys, strict=True)}
        return {name: value for name, value in params.items() if value != ()}

    with_params = {
        name
        for name, layer in stages
        if jax.tree.leaves(jax.eval_shape(layer.init, jax.random.key(0)))
    }

    def apply(params: dict[str, Any], x: Float[Array, "batch ..."]) -> Array:
        check_entries(params, with_params)
        check_input(x, tuple(shape))
        for name, layer in zip(names, layers, strict=True):
            x = tap(backprop.differentiable(layer)(params.get(name, ()), x), name)
        return x

    return Model(init, apply)


def check_entries(params: Any, names: Iterable[str]) -> None:
    """Check that `params` is a dict whose keys are exactly `names`."""
    if not isinstance(params, dict) or params.keys() != set(names):
        given = sorted(params) if isinstance(params, dict) else type(params).__name__
        raise ValueError(f"params must be a dict with entries {sorted(names)}, got {given}")


def check_input(x: Any, shape: Sequence[int | None]) -> None:
    """Check that `x` is a nonempty batch of finite floats of shape (batch, *shape).

    None in `shape` allows any length of that axis.
    """
    _validation.floating("x", x)
    if len(x.shape) != 1 + len(shape) or any(
        expected not in (None, side) for expected, side in zip(shape, x.shape[1:], strict=True)
    ):
        sides = ", ".join("any" if side is None else str(side) for side in shape)
        raise ValueError(f"x must have shape (batch, {sides}), got {list(x.shape)}")
    _validation.batch(x=x)
    _validation.finite("x", x)


def activation_layer(activation: str | Layer) -> Layer:
    """Return the activation layer of a name such as "relu"; a `Layer` is returned unchanged."""
    if isinstance(activation, Layer):
        return activation
    _validation.choice("activation", activation, _LAYER_ACTIVATIONS)
    return getattr(backprop, activation)()
