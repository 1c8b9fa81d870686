"""Convolutional network: convolutions with activation and pooling, then affine layers."""

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
    """Convolutional network: blocks of convolution, activation and pooling, then affine layers.

    Convolutions have stride 1 and "SAME" padding, poolings a window of 2 x 2. Nodes (named values,
    see `diffprog.nodes`), for k = 1, 2, ...: "conv<k>", the pre-activation; "hidden<k>", the
    activation; "pool<k>"; then "flat"; then, for the next k, "affine<k>" and "hidden<k>"; the last
    affine layer is "logits".

    Args:
        shape: (height, width, channels) of an image; each side at least 2 ** len(channels).
        channels: channels of each convolution, at least one.
        hidden: lengths of the hidden affine layers, none or more.
        classes: number of logits.
        window: side of the convolution kernels.
        activation: "sigmoid", "tanh", "relu", "leaky_relu" (slope 0.1), "elu", "softmax" (over
            channels), or a `Layer` whose output has the shape of its input.
        pool: "max" or "average".
        initializer: initializer of the weights, called with shape (inputs, outputs) or
            (window, window, inputs, outputs). Default: LeCun normal.

    Returns:
        A `Model`, the functions `init(key) -> params` and `apply(params, x) -> logits`.

    Raises:
        TypeError, ValueError: a size or name is invalid. `apply` raises if x is not a nonempty
            batch of finite floats, (batch, *shape).

    >>> import jax
    >>> model = cnn((8, 8, 1), channels=(4,), hidden=())
    >>> sorted(model.init(jax.random.key(0)))
    ['conv1', 'logits']
    """
    height, width, depth = _validation.integers("shape", shape, least=3, most=3)
    channels = _validation.integers("channels", channels, least=1)
    hidden = _validation.integers("hidden", hidden)
    classes = _validation.integer("classes", classes, low=1)
    _validation.choice("pool", pool, ("max", "average"))
    reduction = 2 ** len(channels)
    if min(height, width) < reduction:
        raise ValueError(
            f"shape must have sides of at least {reduction} for {len(channels)} poolings, "
            f"got {shape}"
        )
    if activation == "maxout":
        raise ValueError(
            "activation must keep the number of channels, got 'maxout'; use models.mlp for maxout"
        )
    layer = activation_layer(activation)
    pooling = backprop.max_pool() if pool == "max" else backprop.average_pool()

    stages: list[Stage] = []
    for k, (inputs, outputs) in enumerate(zip((depth, *channels), channels, strict=False), 1):
        convolution = backprop.convolution(inputs, outputs, window, initializer=initializer)
        stages += [(f"conv{k}", convolution), (f"hidden{k}", layer), (f"pool{k}", pooling)]
    stages += [("flat", backprop.flatten())]
    flat = (height // reduction) * (width // reduction) * channels[-1]
    for k, (inputs, outputs) in enumerate(
        zip((flat, *hidden), hidden, strict=False), len(channels) + 1
    ):
        affine = backprop.affine(inputs, outputs, initializer=initializer)
        stages += [(f"affine{k}", affine), (f"hidden{k}", layer)]
    logits = backprop.affine((flat, *hidden)[-1], classes, initializer=initializer)
    return sequential([*stages, ("logits", logits)], shape=(height, width, depth))
