"""Convolution and pooling on images (batch, height, width, channels), in the forms that are fast on the CPU and on a GPU.

XLA rewrites the gradient of a convolution to the layout of its fast CPU kernel only at the top level of a program, not in the body of a
loop, where that gradient then runs 10 to 100 times slower. So the two gradients are written as what they are, ordinary convolutions:

    dx = conv(dy spread by the stride, W turned by 180 degrees, channels exchanged)
    dW = conv(x with examples as channels, dy spread by the stride as the kernel)

with the rearranged operands written out to memory on the CPU, so that the rearrangement is not folded back into the convolution.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer, lecun_normal
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.backprop._layer import Layer

Images = Float[Array, "batch height width channels"]
Pair = tuple[int, int]


def convolution(
    inputs: int,
    outputs: int,
    window: int = 3,
    *,
    stride: int = 1,
    padding: Literal["SAME", "VALID"] = "SAME",
    initializer: Initializer | None = None,
) -> Layer:
    """z[p, q, o] = sum_{i, j, c} W[i, j, c, o] x[s p + i, s q + j, c] + b[o], the cross-correlation that the field calls convolution.

    Params: `{"weight": (window, window, inputs, outputs), "bias": (outputs,)}`.

    Args:
        inputs: channels of x.
        outputs: channels of z.
        window: side of the kernel.
        stride: s, the step of the kernel in both directions.
        padding: "SAME" pads with zeros so that z has ceil(side / s) rows and columns, "VALID" not at all.
        initializer: of W, called with its shape; LeCun normal by default. b starts at 0.

    Raises:
        TypeError, ValueError: sizes that are not positive integers, unknown padding; at `forward`, x that is not float
            (batch, height, width, inputs), or smaller than the window under "VALID".

    >>> layer = convolution(1, 8)
    >>> layer.forward(layer.init(jax.random.key(0)), jnp.ones((2, 6, 6, 1)))[0].shape
    (2, 6, 6, 8)
    """
    for name, value in {
        "inputs": inputs,
        "outputs": outputs,
        "window": window,
        "stride": stride,
    }.items():
        _validation.integer(name, value, low=1)
    _validation.choice("padding", padding, ("SAME", "VALID"))
    draw = (
        lecun_normal() if initializer is None else _validation.function("initializer", initializer)
    )

    def init(key: jax.Array) -> dict[str, Array]:
        weight = draw(key, (window, window, inputs, outputs))
        return {"weight": weight, "bias": jnp.zeros(outputs, weight.dtype)}

    def geometry(x: Images) -> Geometry:
        pads = lax.padtype_to_pads(x.shape[1:3], (window, window), (stride, stride), padding)
        return Geometry((stride, stride), tuple(pads), (1, 1), (1, 1))

    def forward(params: dict[str, Array], x: Images) -> tuple[Images, Images]:
        _check(x, window if padding == "VALID" else 1, inputs)
        _validation.entries(
            "params", params, {"weight": (window, window, inputs, outputs), "bias": (outputs,)}
        )
        return convolve(x, params["weight"], geometry(x)) + params["bias"], x

    def backward(
        params: dict[str, Array], x: Images, dz: Images
    ) -> tuple[dict[str, Array], Images]:
        dx = input_gradient(params["weight"], x.shape[1:3], dz, geometry(x))
        return {
            "weight": kernel_gradient((window, window), x, dz, geometry(x)),
            "bias": dz.sum((0, 1, 2)),
        }, dx

    return Layer(init, forward, backward, name=f"convolution({inputs}, {outputs}, {window})")


class Geometry(NamedTuple):
    """How the window of a convolution meets the image: an entry for each spatial axis.

    Attributes:
        strides: the steps of the window.
        pads: zeros before and after the image; negative ones cut it.
        spread: the distance between two pixels of the image, with zeros in between; 1 leaves it as it is.
        kernel_spread: the same for the kernel.
        precision: of the products, as `lax.conv_general_dilated` takes it.
    """

    strides: tuple[int, ...]
    pads: tuple[Pair, ...]
    spread: tuple[int, ...]
    kernel_spread: tuple[int, ...]
    precision: Any = None


def fast_layout(rank: int) -> lax.ConvDimensionNumbers:
    """Where the fast CPU kernel wants the axes: (batch, ..., channels) and (..., inputs, outputs)."""
    images = (0, rank - 1, *range(1, rank - 1))
    return lax.ConvDimensionNumbers(images, (rank - 1, rank - 2, *range(rank - 2)), images)


def convolve(
    x: Float[Array, "batch *sides inputs"],
    kernel: Float[Array, "*window inputs outputs"],
    geometry: Geometry,
) -> Array:
    """The convolution in the layout of the fast CPU kernel, with any number of spatial axes."""
    strides, pads, spread, kernel_spread, precision = geometry
    numbers = fast_layout(x.ndim)
    return lax.conv_general_dilated(
        x, kernel, strides, pads, spread, kernel_spread, numbers, precision=precision
    )


def input_gradient(kernel: Array, sides: tuple[int, ...], dz: Array, geometry: Geometry) -> Array:
    """dJ/dx of z = convolve(x, kernel, geometry), from dJ/dz and the spatial shape of x."""
    turned = _written_out(jnp.flip(kernel, tuple(range(kernel.ndim - 2))).swapaxes(-1, -2))
    spans = _spans(sides, kernel.shape[:-2], dz.shape[1:-1], geometry)
    around = tuple((window - 1 - low, side + low - out) for low, side, window, out in spans)
    return convolve(
        dz, turned, geometry._replace(strides=geometry.spread, pads=around, spread=geometry.strides)
    )


def kernel_gradient(window: tuple[int, ...], x: Array, dz: Array, geometry: Geometry) -> Array:
    """dJ/dW of z = convolve(x, W, geometry), from dJ/dz and the spatial shape of W."""
    examples_as_channels = _written_out(jnp.swapaxes(x, 0, -1))
    dz_as_kernel = _written_out(jnp.moveaxis(dz, 0, -2))
    spans = _spans(x.shape[1:-1], window, dz.shape[1:-1], geometry)
    around = tuple((low, out - 1 + window - side - low) for low, side, window, out in spans)
    turned = geometry._replace(
        strides=geometry.kernel_spread, pads=around, kernel_spread=geometry.strides
    )
    return jnp.moveaxis(convolve(examples_as_channels, dz_as_kernel, turned), 0, -2)


def _spans(
    sides: tuple[int, ...], window: tuple[int, ...], outs: tuple[int, ...], geometry: Geometry
) -> list[tuple[int, ...]]:
    """(padding before, image, kernel, outputs) for each spatial axis, the last three as long as they are when spread."""
    spread = zip(
        (sides, window, outs),
        (geometry.spread, geometry.kernel_spread, geometry.strides),
        strict=True,
    )
    lengths = [
        [(count - 1) * distance + 1 for count, distance in zip(*axis, strict=True)]
        for axis in spread
    ]
    return list(zip([low for low, _ in geometry.pads], *lengths, strict=True))


def _written_out(operand: Array) -> Array:
    """`operand`, in memory as it stands (on the CPU; a GPU's convolution reads any layout)."""
    return lax.platform_dependent(
        operand, cpu=lax.optimization_barrier, default=lambda operand: operand
    )


def max_pool(window: int = 2) -> Layer:
    """y = the largest value of each window x window patch; the gradient goes to it, shared equally on a tie (as `jnp.max` does).

    The patches do not overlap; rows and columns left over at the far edges are dropped.

    Args:
        window: side of a patch, at least 1.

    >>> max_pool().forward((), jnp.arange(4.0).reshape(1, 2, 2, 1))[0].item()
    3.0
    """
    _validation.integer("window", window, low=1)

    def forward(params: tuple[()], x: Images) -> tuple[Images, Any]:
        _check(x, window)
        y = _patches(x, window).max((2, 4))
        return y, (x, y)

    def backward(params: tuple[()], residuals: Any, dy: Images) -> tuple[tuple[()], Images]:
        x, y = residuals
        largest = _patches(x, window) == y[:, :, None, :, None, :]
        share = dy / largest.sum((2, 4), dtype=dy.dtype)
        return (), _from_patches(jnp.where(largest, share[:, :, None, :, None, :], 0), x.shape)

    return Layer(lambda key: (), forward, backward, name=f"max_pool({window})")


def average_pool(window: int = 2) -> Layer:
    """y = the mean of each window x window patch; the gradient is spread evenly over the patch.

    The patches do not overlap; rows and columns left over at the far edges are dropped.

    Args:
        window: side of a patch, at least 1.

    >>> average_pool().forward((), jnp.arange(4.0).reshape(1, 2, 2, 1))[0].item()
    1.5
    """
    _validation.integer("window", window, low=1)

    def forward(params: tuple[()], x: Images) -> tuple[Images, Any]:
        _check(x, window)
        return _patches(x, window).mean((2, 4)), jnp.zeros_like(x, shape=(0, *x.shape[1:]))

    def backward(params: tuple[()], residuals: Any, dy: Images) -> tuple[tuple[()], Images]:
        batch, rows, columns, channels = dy.shape
        shared = jnp.broadcast_to(
            (dy / window**2)[:, :, None, :, None, :],
            (batch, rows, window, columns, window, channels),
        )
        return (), _from_patches(shared, (batch, *residuals.shape[1:]))

    return Layer(lambda key: (), forward, backward, name=f"average_pool({window})")


def _patches(x: Images, window: int) -> Float[Array, "batch rows window columns window channels"]:
    batch, height, width, channels = x.shape
    rows, columns = height // window, width // window
    return x[:, : rows * window, : columns * window].reshape(
        batch, rows, window, columns, window, channels
    )


def _from_patches(
    patches: Float[Array, "batch rows window columns window channels"], shape: tuple[int, ...]
) -> Images:
    batch, rows, window, columns, _, channels = patches.shape
    whole = patches.reshape(batch, rows * window, columns * window, channels)
    left_over = [(0, side - covered) for side, covered in zip(shape, whole.shape, strict=True)]
    return jnp.pad(whole, left_over)


def flatten() -> Layer:
    """(batch, ...) to (batch, n), row-major; the gradient is folded back.

    >>> flatten().forward((), jnp.zeros((2, 3, 4)))[0].shape
    (2, 12)
    """

    def forward(
        params: tuple[()], x: Float[Array, "batch ..."]
    ) -> tuple[Float[Array, "batch n"], Any]:
        _validation.floating("x", x)
        return x.reshape(len(x), -1), jnp.zeros_like(x, shape=(0, *x.shape[1:]))

    return Layer(
        lambda key: (),
        forward,
        lambda params, like, dy: ((), dy.reshape(len(dy), *like.shape[1:])),
        "flatten",
    )


def _check(x: Any, least: int, channels: int | None = None) -> None:
    _validation.floating("x", x, rank=4)
    if min(x.shape[1:3]) < least or (channels is not None and x.shape[3] != channels):
        expected = f"(batch, height, width, {'channels' if channels is None else channels}) with sides of at least {least}"
        raise ValueError(f"x must have shape {expected}, got {list(x.shape)}")
