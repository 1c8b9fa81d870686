"""The multilayer perceptron, f(x) = W_L s(... s(W_2 s(W_1 x + b_1) + b_2) ...) + b_L."""

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
    """Affine layers with an activation between them (lectures 000, 001 and 004).

    Nodes, for k = 1, 2, ...: "affine<k>", the pre-activation z_k; "hidden<k>", s(z_k); the last affine is "logits". With maxout, layer k is
    "hidden<k>" alone.

    Args:
        sizes: lengths of the input, of each hidden layer and of the output: at least two positive integers.
        activation: "sigmoid", "tanh", "relu", "leaky_relu" (slope 0.1), "elu", "softmax", "maxout" (two pieces), or a `Layer`.
        initializer: of the weights, called with shape (inputs, outputs); LeCun normal by default.

    Raises:
        TypeError, ValueError: a size or name that is none of these; at `apply`, x that is not float (batch, sizes[0]).

    >>> import jax
    >>> model = mlp((64, 128, 10), activation="tanh")
    >>> model.apply(model.init(jax.random.key(0)), jax.numpy.zeros((3, 64))).shape
    (3, 10)
    """
    sizes = _validation.integers("sizes", sizes, least=2)
    hidden = list(itertools.pairwise(sizes[:-1]))
    if activation == "maxout":
        stages = [
            (f"hidden{k}", backprop.maxout(i, o, initializer=initializer))
            for k, (i, o) in enumerate(hidden, 1)
        ]
    else:
        layer = activation_layer(activation)
        stages = [
            stage
            for k, (i, o) in enumerate(hidden, 1)
            for stage in (
                (f"affine{k}", backprop.affine(i, o, initializer=initializer)),
                (f"hidden{k}", layer),
            )
        ]
    logits: Stage = ("logits", backprop.affine(sizes[-2], sizes[-1], initializer=initializer))
    return sequential([*stages, logits], shape=sizes[:1])
