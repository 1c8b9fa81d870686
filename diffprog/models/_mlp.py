"""Multilayer perceptron W_L s(... s(W_2 s(W_1 x + b_1) + b_2) ...) + b_L with activation s."""

import itertools
from collections.abc import Sequence

from jax.nn.initializers import Initializer

from diffprog import _validation, backprop
from diffprog.backprop import Layer
from diffprog.models._model import Model, Stage, activation_layer, sequential


def mlp(
    sizes: Sequence[int],
    *,
    activation: str | Layer = "tanh",
    initializer: Initializer | None = None,
) -> Model:
    """Multilayer perceptron: affine layers with an activation s between them.

    Nodes (named values, see `diffprog.nodes`), for k = 1, 2, ...: "affine<k>", the pre-activation
    z_k; "hidden<k>", the activation s(z_k); the last affine layer is "logits". With maxout, layer k
    has the node "hidden<k>" only.

    Args:
        sizes: lengths of the input, of each hidden layer and of the output; at least two.
        activation: "sigmoid", "tanh", "relu", "leaky_relu" (slope 0.1), "elu", "softmax", "maxout"
            (two pieces), or a `Layer`.
        initializer: initializer of the weights, called with shape (inputs, outputs). Default: LeCun
            normal.

    Returns:
        A `Model`, the functions `init(key) -> params` and `apply(params, x) -> logits`.

    Raises:
        TypeError, ValueError: a size or name is invalid. `apply` raises if x is not a nonempty
            batch of finite floats, (batch, sizes[0]).

    Source: lectures 000, 001 and 004.

    >>> import jax
    >>> model = mlp((64, 128, 10), activation="tanh")
    >>> model.apply(model.init(jax.random.key(0)), jax.numpy.zeros((3, 64))).shape
    (3, 10)
    """
    sizes = _validation.integers("sizes", sizes, least=2)
    layer = None if activation == "maxout" else activation_layer(activation)
    stages: list[Stage] = []
    for k, (inputs, outputs) in enumerate(itertools.pairwise(sizes[:-1]), 1):
        if layer is None:
            stages += [(f"hidden{k}", backprop.maxout(inputs, outputs, initializer=initializer))]
        else:
            affine = backprop.affine(inputs, outputs, initializer=initializer)
            stages += [(f"affine{k}", affine), (f"hidden{k}", layer)]
    stages += [("logits", backprop.affine(sizes[-2], sizes[-1], initializer=initializer))]
    return sequential(stages, shape=sizes[:1])
