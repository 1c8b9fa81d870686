"""The convolutional network: convolution, activation and pooling, then affine layers."""

from collections.abc import Sequence

from jax.nn.initializers import Initializer

from diffprog import _validation, backprop
from diffprog.backprop import Layer
from diffprog.models._model import Model, Stage, activation_layer, sequential


def cnn(
    shape: tuple[int, int, int] = (8, 8, 1),
    *,
    channels: Sequence[int] = (32, 64),
    hidden: Sequence[int] = (128,),
    classes: int = 10,
    window: int = 3,
    activation: str | Layer = "relu",
    pool: str = "max",
    initializer: Initializer | None = None,
) -> Model:
    """Convolutions ("SAME", stride 1) each with activation and 2 x 2 pooling, then affine layers.

    Nodes, for k = 1, 2, ...: "conv<k>", the pre-activation; "hidden<k>", after the activation; "pool<k>"; then "flat"; and with k going
    on, "affine<k>" and "hidden<k>"; the last affine is "logits".

    Args:
        shape: (height, width, channels) of an image; each side at least 2 ** len(channels).
        channels: channels of each convolution, at least one.
        hidden: lengths of the hidden affine layers, none or more.
        classes: number of logits.
        window: side of the kernels.
        activation: "sigmoid", "tanh", "relu", "leaky_relu" (slope 0.1), "elu", "softmax" (over channels), or a `Layer` that
            keeps the shape.
        pool: "max" or "average".
        initializer: of the weights, called with the shape (inputs, outputs) or (window, window, inputs, outputs); LeCun normal by default.

    Raises:
        TypeError, ValueError: a size or name that is none of these; at `apply`, x that is not float (batch, *shape).

    >>> import jax
    >>> model = cnn((8, 8, 1), channels=(4,), hidden=())
    >>> sorted(model.init(jax.random.key(0)))
    ['conv1', 'logits']
    """
    height, width, depth = _validation.integers("shape", shape, least=3, most=3)
    channels, hidden = (
        _validation.integers("channels", channels, least=1),
        _validation.integers("hidden", hidden),
    )
    _validation.choice("pool", pool, ("max", "average"))
    if min(height, width) < 2 ** len(channels):
        raise ValueError(
            f"shape must have sides of at least {2 ** len(channels)} for {len(channels)} poolings, got {shape}"
        )
    if activation == "maxout":
        raise ValueError(
            "activation must keep the number of channels, got 'maxout'; use models.mlp for maxout units"
        )
    act = activation_layer(activation)
    pooling = backprop.max_pool() if pool == "max" else backprop.average_pool()

    stages: list[Stage] = []
    for k, (inputs, outputs) in enumerate(zip((depth, *channels), channels, strict=False), 1):
        stages += [
            (f"conv{k}", backprop.convolution(inputs, outputs, window, initializer=initializer))
        ]
        stages += [(f"hidden{k}", act), (f"pool{k}", pooling)]
    flat = (height // 2 ** len(channels)) * (width // 2 ** len(channels)) * channels[-1]
    stages += [("flat", backprop.flatten())]
    for k, (inputs, outputs) in enumerate(
        zip((flat, *hidden), hidden, strict=False), len(channels) + 1
    ):
        stages += [
            (f"affine{k}", backprop.affine(inputs, outputs, initializer=initializer)),
            (f"hidden{k}", act),
        ]
    last, classes = (hidden[-1] if hidden else flat), _validation.integer("classes", classes, low=1)
    stages += [("logits", backprop.affine(last, classes, initializer=initializer))]
    return sequential(stages, shape=(height, width, depth))
