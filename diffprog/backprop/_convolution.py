"""Convolution and pooling of images (batch, height, width, channels), fast on CPU and GPU.

XLA on the CPU uses its fast kernel for the gradient of a convolution only at the top level of a
compiled function; in the body of a loop the gradient runs 10 to 100 times slower. So both gradients
are written as ordinary convolutions, which are always fast:

    dx = conv(dy dilated by the stride, W flipped with channels exchanged)
    dW = conv(x with examples as channels, dy dilated by the stride as the kernel)

On the CPU the rearranged operands are materialized, so that XLA does not fold the rearrangement
back into the convolution.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer, lecun_normal
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.backprop._layer import Layer, layer_without_params

Images = Float[Array, "batch height width channels"]
Weights = dict[str, Array]
Patches = Float[Array, "batch rows window columns window channels"]


def convolution(
    inputs: int,
    outputs: int,
    window: int = 3,
    *,
    stride: int = 1,
    padding: Literal["SAME", "VALID"] = "SAME",
    initializer: Initializer | None = None,
) -> Layer:
    """Convolution layer for images (strictly, a cross-correlation: the kernel is not flipped).

        z[p, q, o] = Σ_{i, j, c} W[i, j, c, o] x[s p + i, s q + j, c] + b[o]
        dW[i, j, c, o] = Σ_{p, q} dz[p, q, o] x[s p + i, s q + j, c]
        db[o] = Σ_{p, q} dz[p, q, o]
        dx[s p + i, s q + j, c] += W[i, j, c, o] dz[p, q, o] for all i, j, p, q, o

    Params: `{"weight": (window, window, inputs, outputs), "bias": (outputs,)}`.

    Shapes: x and the residual x (batch, height, width, inputs), z (batch, rows, columns, outputs).

    Args:
        inputs: channels of x.
        outputs: channels of z.
        window: side of the square kernel.
        stride: s, in both directions.
        padding: "SAME" pads x with zeros so that z has ceil(side / s) rows and columns, "VALID"
            does not pad.
        initializer: initializer of W, called with its shape; LeCun normal by default. b starts
            at 0.

    Raises:
        TypeError: a size is not an integer; at `forward`, x is not a float array.
        ValueError: a size is below 1 or the padding unknown; at `forward`, x does not have shape
            (batch, height, width, inputs), or is smaller than the window under "VALID".

    >>> layer = convolution(1, 8)
    >>> layer.forward(layer.init(jax.random.key(0)), jnp.ones((2, 6, 6, 1)))[0].shape
    (2, 6, 6, 8)
    """
    sizes = {"inputs": inputs, "outputs": outputs, "window": window, "stride": stride}
    for name, size in sizes.items():
        _validation.integer(name, size, low=1)
    _validation.choice("padding", padding, ("SAME", "VALID"))
    initialize = _validation.function("initializer", initializer or lecun_normal())
    shape = (window, window, inputs, outputs)

    def init(key: jax.Array) -> Weights:
        weight = initialize(key, shape)
        return {"weight": weight, "bias": jnp.zeros(outputs, weight.dtype)}

    def geometry(x: Images) -> Geometry:
        pads = lax.padtype_to_pads(x.shape[1:3], (window, window), (stride, stride), padding)
        return Geometry((stride, stride), tuple(pads), (1, 1), (1, 1))

    def forward(params: Weights, x: Images) -> tuple[Images, Images]:
        _check_images(x, window if padding == "VALID" else 1, inputs)
        _validation.entries("params", params, {"weight": shape, "bias": (outputs,)})
        return convolve(x, params["weight"], geometry(x)) + params["bias"], x

    def backward(params: Weights, x: Images, dz: Images) -> tuple[Weights, Images]:
        dx = input_gradient(params["weight"], x.shape[1:3], dz, geometry(x))
        dweight = kernel_gradient((window, window), x, dz, geometry(x))
        return {"weight": dweight, "bias": dz.sum((0, 1, 2))}, dx

    return Layer(init, forward, backward, name=f"convolution({inputs}, {outputs}, {window})")


class Geometry(NamedTuple):
    """Strides, padding and dilations of a convolution, one entry per spatial axis.

    Attributes:
        strides: steps of the window.
        pads: numbers of zeros before and after the image; negative ones crop it.
        dilation: distance at which neighbouring pixels of the image are placed, with zeros in
            between; 1 for no dilation.
        kernel_dilation: the same for neighbouring entries of the kernel.
        precision: precision of the products, as `lax.conv_general_dilated` takes it.
    """

    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    precision: Any = None


def fast_layout(rank: int) -> lax.ConvDimensionNumbers:
    """Return the axis order in which XLA's CPU convolution is fast, for arrays of a given rank.

    Images are (batch, *sides, channels), kernels (*window, inputs, outputs). Returned is a
    `lax.ConvDimensionNumbers`.
    """
    images = (0, rank - 1, *range(1, rank - 1))
    return lax.ConvDimensionNumbers(images, (rank - 1, rank - 2, *range(rank - 2)), images)


def convolve(
    x: Float[Array, "batch *sides inputs"],
    kernel: Float[Array, "*window inputs outputs"],
    geometry: Geometry,
) -> Array:
    """Convolve images (batch, *sides, inputs) with a kernel (*window, inputs, outputs)."""
    strides, pads, dilation, kernel_dilation, precision = geometry
    layout = fast_layout(x.ndim)
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dilation, kernel_dilation, layout, precision=precision
    )


def input_gradient(kernel: Array, sides: tuple[int, ...], dz: Array, geometry: Geometry) -> Array:
    """Return the input gradient dJ/dx of z = convolve(x, kernel, geometry).

    Args:
        kernel: kernel of the forward convolution.
        sides: spatial shape of x.
        dz: dJ/dz.
        geometry: geometry of the forward convolution.
    """
    flipped = jnp.flip(kernel, tuple(range(kernel.ndim - 2))).swapaxes(-1, -2)
    extents = _dilated_extents(sides, kernel.shape[:-2], dz.shape[1:-1], geometry)
    # Pads that give exactly the spatial shape of x back; negative ones crop.
    pads = tuple((window - 1 - low, side + low - out) for low, side, window, out in extents)
    transposed = geometry._replace(strides=geometry.dilation, pads=pads, dilation=geometry.strides)
    return convolve(dz, _materialize(flipped), transposed)


def kernel_gradient(window: tuple[int, ...], x: Array, dz: Array, geometry: Geometry) -> Array:
    """Return the kernel gradient dJ/dW of z = convolve(x, W, geometry).

    Args:
        window: spatial shape of W.
        x: input of the forward convolution.
        dz: dJ/dz.
        geometry: geometry of the forward convolution.
    """
    # dW sums over the batch, as a convolution sums over input channels.
    examples_as_channels = _materialize(jnp.swapaxes(x, 0, -1))
    dz_as_kernel = _materialize(jnp.moveaxis(dz, 0, -2))
    extents = _dilated_extents(x.shape[1:-1], window, dz.shape[1:-1], geometry)
    pads = tuple((low, out - 1 + window - side - low) for low, side, window, out in extents)
    transposed = geometry._replace(
        strides=geometry.kernel_dilation, pads=pads, kernel_dilation=geometry.strides
    )
    return jnp.moveaxis(convolve(examples_as_channels, dz_as_kernel, transposed), 0, -2)


def _dilated_extents(
    sides: tuple[int, ...], window: tuple[int, ...], outs: tuple[int, ...], geometry: Geometry
) -> list[tuple[int, int, int, int]]:
    """Return for each spatial axis the padding before the image and three dilated lengths.

    The lengths are those of the image, of the kernel and of the output, which is dilated by the
    stride. `sides`, `window` and `outs` are their spatial shapes.
    """

    def dilated(counts: tuple[int, ...], dilation: tuple[int, ...]) -> list[int]:
        return [(count - 1) * step + 1 for count, step in zip(counts, dilation, strict=True)]

    lows, images = [low for low, _ in geometry.pads], dilated(sides, geometry.dilation)
    kernels, outputs = dilated(window, geometry.kernel_dilation), dilated(outs, geometry.strides)
    return list(zip(lows, images, kernels, outputs, strict=True))


def _materialize(operand: Array) -> Array:
    """Return an array unchanged, which XLA on the CPU must then compute before it convolves it.

    Without this, XLA folds the transposition of the array into the convolution, which is slow.
    """
    # A GPU's convolution reads any layout.
    return lax.platform_dependent(
        operand, cpu=lax.optimization_barrier, default=lambda operand: operand
    )


def max_pool(window: int = 2) -> Layer:
    """Max pooling layer: the maximum of each channel over each patch of window x window pixels.

        y = max x over the patch
        dx = dy at the maximum, else 0

    If several pixels have the maximum, they share dy equally, as in `jnp.max`. Patches do not
    overlap; rows and columns left over at the far edges are dropped.

    Shapes: x (batch, height, width, channels), y (batch, height // window, width // window,
    channels); residuals (x, y).

    Args:
        window: side of a patch, at least 1.

    Raises:
        TypeError: window is not an integer; at `forward`, x is not a float array.
        ValueError: window is below 1; at `forward`, x has rank other than 4 or is smaller than
            window.

    >>> max_pool().forward((), jnp.arange(4.0).reshape(1, 2, 2, 1))[0].item()
    3.0
    """
    _validation.integer("window", window, low=1)

    def forward(x: Images) -> tuple[Images, Any]:
        _check_images(x, window)
        y = _split_patches(x, window).max((2, 4))
        return y, (x, y)

    def backward(residuals: Any, dy: Images) -> Images:
        x, y = residuals
        is_largest = _split_patches(x, window) == y[:, :, None, :, None, :]
        share = dy / is_largest.sum((2, 4), dtype=dy.dtype)
        dx = jnp.where(is_largest, share[:, :, None, :, None, :], 0)
        return _join_patches(dx, x.shape)

    return layer_without_params(f"max_pool({window})", forward, backward)


def average_pool(window: int = 2) -> Layer:
    """Average pooling layer: the mean of each channel over each patch of window x window pixels.

        y = mean of x over the patch
        dx = dy / window²

    Patches do not overlap; rows and columns left over at the far edges are dropped.

    Shapes: x and y as for `max_pool`; the residual is an empty array (0, height, width, channels),
    which tells the backward pass the shape of x.

    Args:
        window: side of a patch, at least 1.

    Raises:
        TypeError, ValueError: as for `max_pool`.

    >>> average_pool().forward((), jnp.arange(4.0).reshape(1, 2, 2, 1))[0].item()
    1.5
    """
    _validation.integer("window", window, low=1)

    def forward(x: Images) -> tuple[Images, Any]:
        _check_images(x, window)
        # An empty array holds the shape of x; as residuals, integers would become traced arrays.
        return _split_patches(x, window).mean((2, 4)), jnp.zeros_like(x, shape=(0, *x.shape[1:]))

    def backward(like_x: Any, dy: Images) -> Images:
        batch, rows, columns, channels = dy.shape
        shape = (batch, rows, window, columns, window, channels)
        dx = jnp.broadcast_to((dy / window**2)[:, :, None, :, None, :], shape)
        return _join_patches(dx, (batch, *like_x.shape[1:]))

    return layer_without_params(f"average_pool({window})", forward, backward)


def _split_patches(x: Images, window: int) -> Patches:
    """Split images into patches (batch, rows, window, columns, window, channels).

    Rows and columns of pixels that do not fill a patch are dropped.
    """
    batch, height, width, channels = x.shape
    rows, columns = height // window, width // window
    covered = x[:, : rows * window, : columns * window]
    return covered.reshape(batch, rows, window, columns, window, channels)


def _join_patches(patches: Patches, shape: tuple[int, ...]) -> Images:
    """Join patches, laid out as by `_split_patches`, to images of a shape; dropped pixels are 0."""
    batch, rows, window, columns, _, channels = patches.shape
    images = patches.reshape(batch, rows * window, columns * window, channels)
    margins = [(0, side - covered) for side, covered in zip(shape, images.shape, strict=True)]
    return jnp.pad(images, margins)


def flatten() -> Layer:
    """Layer that flattens all axes but the batch, in row-major order.

        y = x reshaped to (batch, n),    dx = dy reshaped to (batch, ...)

    The residual is an empty array (0, ...), which tells the backward pass the shape of x.

    >>> flatten().forward((), jnp.zeros((2, 3, 4)))[0].shape
    (2, 12)
    """

    def forward(x: Float[Array, "batch ..."]) -> tuple[Array, Array]:
        _validation.floating("x", x)
        return x.reshape(len(x), -1), jnp.zeros_like(x, shape=(0, *x.shape[1:]))

    backward = lambda like_x, dy: dy.reshape(len(dy), *like_x.shape[1:])
    return layer_without_params("flatten", forward, backward)


def _check_images(x: Any, min_side: int, channels: int | None = None) -> None:
    _validation.floating("x", x, rank=4)
    if min(x.shape[1:3]) < min_side or (channels is not None and x.shape[3] != channels):
        shape = f"(batch, height, width, {'channels' if channels is None else channels})"
        raise ValueError(
            f"x must have shape {shape} with sides of at least {min_side}, got {list(x.shape)}"
        )
