"""Random transforms of an image, applied before it is passed to a model.

A unit that is maximized through random shifts, rotations and scalings, max_x E_t[f(t(x))], must
respond to the image under all of them. This removes the high-frequency patterns that excite a
network only at one exact alignment (Olah, Mordvintsev and Schubert, 2017).

A transform t is a function (image, key) -> image of one image and one PRNG key. Under `jax.vmap`
with a key per image, every image gets its own random parameters. The size of the output depends
only on the size of the input; only `pad` and `crop` change it. Pixels outside an image are read as
the nearest edge pixel.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffprog import _validation

Pixels = Float[Array, "height width channels"]
Transform = Callable[[Pixels, jax.Array], Float[Array, "h w channels"]]
_TWO_PIXELS = jax.lax.GatherDimensionNumbers(
    offset_dims=(2,), collapsed_slice_dims=(), start_index_map=(0,)
)


def default_transforms(
    *, shift: float = 1 / 16, zoom: float = 1.1, degrees: float = 10.0
) -> tuple[Transform, ...]:
    """Return a tuple of recommended transforms: a small random shift, zoom and rotation.

    Args:
        shift: largest shift, as a fraction of each side.
        zoom: largest scale factor, at least 1; its inverse is the smallest.
        degrees: largest rotation in either direction.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    >>> len(default_transforms())
    1
    """
    high = _validation.number("zoom", zoom, low=1)
    return (warp(shift=shift, low=1 / high, high=high, degrees=degrees),)


def compose(transforms: Sequence[Transform]) -> Transform:
    """Chain transforms into one, first to last; number k gets the PRNG key `fold_in(key, k)`.

    Args:
        transforms: functions (image, key) -> image; an empty sequence gives the identity.

    Raises:
        TypeError: `transforms` is not a sequence of functions.

    >>> both = compose([pad(2), crop(8)])
    >>> both(jnp.zeros((8, 8, 1)), jax.random.key(0)).shape
    (8, 8, 1)
    """
    if callable(transforms) or not isinstance(transforms, Iterable):
        one = "one function; put it in a list"
        raise TypeError(
            "transforms must be a sequence of functions (image, key) -> image, "
            f"got {one if callable(transforms) else type(transforms).__name__}"
        )
    functions = [_validation.function(f"transforms[{k}]", t) for k, t in enumerate(transforms)]

    def apply(image: Array, key: jax.Array) -> Array:
        _require_image(image, key)
        for k, function in enumerate(functions):
            image = function(image, jax.random.fold_in(key, k))
        return image

    return apply


def pad(n: int, value: float = 0.5) -> Transform:
    """Transform that pads an image with a constant border, to (height + 2n, width + 2n).

    Args:
        n: width of the border in pixels, at least 0.
        value: pixel value of the border.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    >>> pad(1)(jnp.zeros((8, 8, 3)), jax.random.key(0)).shape
    (10, 10, 3)
    """
    n, value = _validation.integer("n", n, low=0), _validation.number("value", value)

    def apply(image: Array, key: jax.Array) -> Array:
        _require_image(image, key)
        return jnp.pad(image, ((n, n), (n, n), (0, 0)), constant_values=value)

    return apply


def jitter(d: int) -> Transform:
    """Transform that shifts an image by a random whole number of pixels, -d .. d along each axis.

    Shifts are uniform. Pixels outside the image are read as the nearest edge pixel.

    Args:
        d: largest shift in pixels, less than each side of the image.

    Raises:
        TypeError, ValueError: d is not an integer >= 0; at the call, a side of the image is not
            larger than d.

    >>> jitter(1)(jnp.arange(16.0).reshape(4, 4, 1), jax.random.key(0)).shape
    (4, 4, 1)
    """
    d = _validation.integer("d", d, low=0)

    def apply(image: Array, key: jax.Array) -> Array:
        _require_image(image, key, minimum=(d + 1, d + 1), transform=f"jitter({d})")
        height, width, _ = image.shape
        padded = jnp.pad(image, ((d, d), (d, d), (0, 0)), mode="edge")
        return _random_window(padded, height, width, key)

    return apply


def crop(size: int | tuple[int, int]) -> Transform:
    """Transform that crops a window of a given size at a uniformly random position.

    Args:
        size: (height, width) of the window, or the side of a square one.

    Raises:
        TypeError, ValueError: the size is not positive; at the call, the image is smaller.

    >>> crop((4, 6))(jnp.zeros((8, 8, 1)), jax.random.key(0)).shape
    (4, 6, 1)
    """
    sides = size if isinstance(size, Sequence) else (size, size)
    height, width = _validation.integers("size", sides, least=2, most=2)

    def apply(image: Array, key: jax.Array) -> Array:
        name = f"crop(({height}, {width}))"
        _require_image(image, key, minimum=(height, width), transform=name)
        return _random_window(image, height, width, key)

    return apply


def scale(low: float, high: float) -> Transform:
    """Transform that scales an image about its centre by a uniformly random factor, low .. high.

    The size of the array does not change.

    Args:
        low, high: factors, 0 < low <= high. Below about 1/2 the interpolation skips pixels.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    >>> scale(0.9, 1.1)(jnp.zeros((8, 8, 1)), jax.random.key(0)).shape
    (8, 8, 1)
    """
    return warp(shift=0, low=low, high=high, degrees=0)


def rotate(degrees: float) -> Transform:
    """Transform that rotates an image about its centre by a random angle, -degrees .. degrees.

    The size of the array does not change.

    Args:
        degrees: largest angle, at least 0.

    Raises:
        TypeError, ValueError: `degrees` is not a number >= 0.

    >>> rotate(10)(jnp.zeros((8, 8, 1)), jax.random.key(0)).shape
    (8, 8, 1)
    """
    return warp(shift=0, low=1, high=1, degrees=degrees)


def warp(*, shift: float, low: float, high: float, degrees: float) -> Transform:
    """Transform that randomly shifts, scales and rotates an image about its centre.

    It interpolates only once. With coordinates relative to the centre, the output at pixel p is the
    image at

        R(-angle) p / factor - shift,      R: rotation matrix

    Args:
        shift: largest shift, as a fraction of the height (vertical) and width (horizontal).
        low, high: scale factors, 0 < low <= high.
        degrees: largest rotation in either direction; positive angles are counterclockwise.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    >>> tilt = warp(shift=0.1, low=0.9, high=1.1, degrees=10)
    >>> tilt(jnp.zeros((8, 8, 1)), jax.random.key(0)).shape
    (8, 8, 1)
    """
    shift = _validation.number("shift", shift, low=0)
    low = _validation.number("low", low, above=0)
    high = _validation.number("high", high, low=low)
    max_angle = math.radians(_validation.number("degrees", degrees, low=0))

    def apply(image: Array, key: jax.Array) -> Array:
        _require_image(image, key)
        shift_key, factor_key, angle_key = jax.random.split(key, 3)
        offset = jax.random.uniform(shift_key, (2,), image.dtype, -shift, shift)
        factor = jax.random.uniform(factor_key, (), image.dtype, low, high)
        angle = jax.random.uniform(angle_key, (), image.dtype, -max_angle, max_angle)
        return similarity_transform(image, offset, factor, angle)

    return apply


def flip() -> Transform:
    """Transform that flips an image left to right with probability 1/2.

    >>> flip()(jnp.zeros((8, 8, 1)), jax.random.key(0)).shape
    (8, 8, 1)
    """

    def apply(image: Array, key: jax.Array) -> Array:
        _require_image(image, key)
        return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)

    return apply


def noise(std: float) -> Transform:
    """Transform that adds independent Gaussian noise to every value of an image.

    The result may leave the pixel range.

    Args:
        std: standard deviation, at least 0.

    Raises:
        TypeError, ValueError: `std` is not a number >= 0.

    >>> noise(0.1)(jnp.zeros((8, 8, 1)), jax.random.key(0)).shape
    (8, 8, 1)
    """
    std = _validation.number("std", std, low=0)

    def apply(image: Array, key: jax.Array) -> Array:
        _require_image(image, key)
        return image + std * jax.random.normal(key, image.shape, image.dtype)

    return apply


def similarity_transform(
    image: Pixels, shift: Float[Array, "2"], factor: Float[Array, ""], angle: Float[Array, ""]
) -> Pixels:
    """Shift, scale and rotate an image about its centre by the given amounts.

    Args:
        image: float image.
        shift: (down, right), as fractions of the height and the width.
        factor: scale factor, > 0.
        angle: counterclockwise rotation in radians.

    Returns:
        Image of the same shape; pixels outside the input are read as the nearest edge pixel.
    """
    height, width, _ = image.shape
    centre_row, centre_column = (height - 1) / 2, (width - 1) / 2
    down = (jnp.arange(height, dtype=image.dtype) - centre_row)[:, None]
    right = (jnp.arange(width, dtype=image.dtype) - centre_column)[None]
    cosine, sine = jnp.cos(angle) / factor, jnp.sin(angle) / factor
    rows = centre_row + cosine * down + sine * right - height * shift[0]
    columns = centre_column - sine * down + cosine * right - width * shift[1]
    return bilinear_sample(image, rows, columns)


def bilinear_sample(
    image: Pixels, rows: Float[Array, "h w"], columns: Float[Array, "h w"]
) -> Float[Array, "h w channels"]:
    """Sample an image at fractional pixel coordinates by bilinear interpolation.

        out[p] = Σ_{r, c} hat(rows[p] - r) hat(columns[p] - c) image[r, c]
        hat(t) = max(0, 1 - |t|)

    Args:
        image: float image.
        rows, columns: coordinates (h, w) of each sample p in pixels, clipped to the image.

    Returns:
        Samples (h, w, channels).
    """
    height, width, channels = image.shape
    top, down = _cell(rows, height)
    left, right = _cell(columns, width)
    # An image of a single row or column gets a second one, which has weight 0.
    padded = jnp.pad(image, ((0, int(height == 1)), (0, int(width == 1)), (0, 0)))
    flat, stride = padded.ravel(), padded.shape[1]

    # Horizontal neighbours are adjacent in memory, so a sample is two slices of 2 * channels
    # numbers: on XLA:CPU three times as fast, value and gradient, as a gather per neighbour and
    # channel (`jax.scipy.ndimage.map_coordinates`).
    def pixel_pairs(first: Array) -> Array:
        starts = channels * first[..., None]
        return jax.lax.gather(flat, starts, _TWO_PIXELS, (2 * channels,), mode="clip")

    first = stride * top + left
    column_pairs = (1 - down) * pixel_pairs(first) + down * pixel_pairs(first + stride)
    # An einsum and not a sum: XLA:CPU would fuse a sum into the gathers of a second interpolation
    # and recompute it at every read.
    weights = jnp.concatenate([1 - right, right], axis=-1)
    return jnp.einsum("hwk,hwkc->hwc", weights, column_pairs.reshape(*rows.shape, 2, channels))


def _cell(position: Array, size: int) -> tuple[Array, Array]:
    """Return the index of the pixel before each position, and the weight of the pixel after it.

    Positions are coordinates along an axis of `size` pixels; the weights are for interpolation.
    """
    inside = jnp.clip(position, 0, size - 1)
    before = jnp.clip(jnp.floor(inside), 0, max(size - 2, 0))
    return before.astype(jnp.int32), (inside - before)[..., None]


def _random_window(image: Array, height: int, width: int, key: jax.Array) -> Array:
    """Crop an image to (height, width) at a uniformly random position."""
    counts = jnp.array([image.shape[0] - height + 1, image.shape[1] - width + 1])
    row, column = jax.random.randint(key, (2,), 0, counts)
    start = (row, column, jnp.zeros_like(row))
    return jax.lax.dynamic_slice(image, start, (height, width, image.shape[2]))


def _require_image(
    image: Any, key: Any, *, minimum: tuple[int, int] = (1, 1), transform: str = "the transform"
) -> None:
    _validation.floating("image", image, rank=3)
    _validation.key("key", key)
    if image.shape[0] < minimum[0] or image.shape[1] < minimum[1]:
        raise ValueError(
            f"image must be at least {minimum[0]} x {minimum[1]} for {transform}, "
            f"got {image.shape[0]} x {image.shape[1]}"
        )
