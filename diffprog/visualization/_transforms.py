"""Random transforms of an image, between painting it and showing it to a program.

What a unit is shown a little displaced, turned or enlarged at every step has to excite it in all of these ways: that is
max_x E_t[f(t(x))], and patterns that only work pixel by pixel, which are most of what excites a network, do not survive it.

A transform is a function (image, key) -> image of one image and one key; mapped over a batch with a key for each, every image has a draw
of its own. The size that comes out depends on the size that goes in and on nothing drawn, and only `pad` and `crop` change it. What comes
from outside an image is its nearest edge pixel.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.visualization._resampling import bilinear

Transform = Callable[
    [Float[Array, "height width channels"], jax.Array], Float[Array, "h w channels"]
]


def default_transforms(
    *, shift: float = 1 / 16, zoom: float = 1.1, degrees: float = 10.0
) -> tuple[Transform, ...]:
    """What images are shown through unless one says otherwise: one `warp`, small and relative to the image, of 8 x 8 as of 224 x 224.

    Args:
        shift: furthest shift, as a share of each side.
        zoom: largest enlargement; its inverse is the smallest.
        degrees: furthest rotation, either way.

    Raises:
        TypeError, ValueError: an argument out of these.

    >>> len(default_transforms())
    1
    """
    most = _validation.number("zoom", zoom, low=1)
    return (warp(shift=shift, low=1 / most, high=most, degrees=degrees),)


def compose(transforms: Sequence[Transform]) -> Transform:
    """One transform that does several, first to last, each with a key of its own.

    Args:
        transforms: functions (image, key) -> image; none for the identity.

    Raises:
        TypeError: something that is not a function.

    >>> both = compose([pad(2), crop(8)])
    >>> both(jnp.zeros((8, 8, 1)), jax.random.key(0)).shape
    (8, 8, 1)
    """
    parts = tuple(
        _validation.function(f"transforms[{k}]", transform)
        for k, transform in enumerate(transforms)
    )

    def composed(image: Array, key: jax.Array) -> Array:
        _check(image, key)
        for number, part in enumerate(parts):
            image = part(image, jax.random.fold_in(key, number))
        return image

    return composed


def pad(n: int, value: float = 0.5) -> Transform:
    """A frame of one value around the image: (height + 2n, width + 2n).

    Args:
        n: its width in pixels, at least 0.
        value: of its pixels.

    Raises:
        TypeError, ValueError: an argument out of these.

    >>> pad(1)(jnp.zeros((8, 8, 3)), jax.random.key(0)).shape
    (10, 10, 3)
    """
    n, value = _validation.integer("n", n, low=0), _validation.number("value", value)

    def padded(image: Array, key: jax.Array) -> Array:
        _check(image, key)
        return jnp.pad(image, ((n, n), (n, n), (0, 0)), constant_values=value)

    return padded


def jitter(d: int) -> Transform:
    """The image moved by whole pixels, -d to d in both directions, each move as likely as another.

    Args:
        d: reach in pixels, less than each side.

    Raises:
        TypeError, ValueError: an argument out of these; at the call, an image that is not larger than d.

    >>> moved = jitter(1)(jnp.arange(16.0).reshape(4, 4, 1), jax.random.key(0))
    >>> moved.shape
    (4, 4, 1)
    """
    d = _validation.integer("d", d, low=0)

    def jittered(image: Array, key: jax.Array) -> Array:
        _check(image, key, above=(d, d), what=f"jitter({d})")
        height, width, _ = image.shape
        return _window(jnp.pad(image, ((d, d), (d, d), (0, 0)), mode="edge"), height, width, key)

    return jittered


def crop(size: int | tuple[int, int]) -> Transform:
    """A window of the image at a random place, each place as likely as another.

    Args:
        size: (height, width) of the window, or one side of a square.

    Raises:
        TypeError, ValueError: an argument out of these; at the call, an image that is smaller.

    >>> crop((4, 6))(jnp.zeros((8, 8, 1)), jax.random.key(0)).shape
    (4, 6, 1)
    """
    sides = size if isinstance(size, Sequence) else (size, size)
    height, width = _validation.integers("size", sides, least=2, most=2)

    def cropped(image: Array, key: jax.Array) -> Array:
        _check(image, key, above=(height - 1, width - 1), what=f"crop(({height}, {width}))")
        return _window(image, height, width, key)

    return cropped


def scale(low: float, high: float) -> Transform:
    """The image enlarged about its middle by a factor in low .. high, drawn uniformly; its size stays.

    Args:
        low, high: factors, 0 < low <= high. Below about 1/2 the interpolation leaves pixels out.

    Raises:
        TypeError, ValueError: an argument out of these.

    >>> scale(0.9, 1.1)(jnp.zeros((8, 8, 1)), jax.random.key(0)).shape
    (8, 8, 1)
    """
    return warp(shift=0, low=low, high=high, degrees=0)


def rotate(degrees: float) -> Transform:
    """The image turned about its middle by an angle in -degrees .. degrees, drawn uniformly; its size stays.

    Args:
        degrees: furthest angle, at least 0.

    Raises:
        TypeError, ValueError: an argument out of these.

    >>> rotate(10)(jnp.zeros((8, 8, 1)), jax.random.key(0)).shape
    (8, 8, 1)
    """
    return warp(shift=0, low=1, high=1, degrees=degrees)


def warp(*, shift: float, low: float, high: float, degrees: float) -> Transform:
    """Shifted, enlarged and turned about its middle, by one interpolation; all four drawn uniformly.

    Point p of the outcome, from the middle, shows point R(-angle) p / factor - shift of the image.

    Args:
        shift: furthest shift down or up as a share of the height, right or left as one of the width; fractions of pixels count.
        low, high: factors of enlargement, 0 < low <= high.
        degrees: furthest angle, either way; a positive one turns counterclockwise.

    Raises:
        TypeError, ValueError: an argument out of these.

    >>> warp(shift=0.1, low=0.9, high=1.1, degrees=10)(jnp.zeros((8, 8, 1)), jax.random.key(0)).shape
    (8, 8, 1)
    """
    shift = _validation.number("shift", shift, low=0)
    low, high = (
        _validation.number("low", low, above=0),
        _validation.number("high", high, low=_validation.number("low", low, above=0)),
    )
    most = math.radians(_validation.number("degrees", degrees, low=0))

    def warped(image: Array, key: jax.Array) -> Array:
        _check(image, key)
        shift_key, factor_key, angle_key = jax.random.split(key, 3)
        by = jax.random.uniform(shift_key, (2,), image.dtype, -shift, shift)
        factor = jax.random.uniform(factor_key, (), image.dtype, low, high)
        angle = jax.random.uniform(angle_key, (), image.dtype, -most, most)
        return similar(image, by, factor, angle)

    return warped


def similar(
    image: Float[Array, "height width channels"],
    shift: Float[Array, "2"],
    factor: Float[Array, ""],
    angle: Float[Array, ""],
) -> Float[Array, "height width channels"]:
    """The image shifted (a share of its sides, down and right), enlarged and turned counterclockwise (radians) about its middle."""
    height, width, _ = image.shape
    middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
    down = (jnp.arange(height, dtype=image.dtype) - middle_row)[:, None]
    right = (jnp.arange(width, dtype=image.dtype) - middle_column)[None]
    cosine, sine = jnp.cos(angle) / factor, jnp.sin(angle) / factor
    rows = middle_row + cosine * down + sine * right - height * shift[0]
    columns = middle_column - sine * down + cosine * right - width * shift[1]
    return bilinear(image, rows, columns)


def flip() -> Transform:
    """Left and right exchanged in half of all draws.

    >>> flip()(jnp.zeros((8, 8, 1)), jax.random.key(0)).shape
    (8, 8, 1)
    """

    def flipped(image: Array, key: jax.Array) -> Array:
        _check(image, key)
        return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)

    return flipped


def noise(std: float) -> Transform:
    """Independent normal noise on every number; it leaves the range.

    Args:
        std: standard deviation, at least 0.

    Raises:
        TypeError, ValueError: an argument out of these.

    >>> noise(0.1)(jnp.zeros((8, 8, 1)), jax.random.key(0)).shape
    (8, 8, 1)
    """
    std = _validation.number("std", std, low=0)

    def noisy(image: Array, key: jax.Array) -> Array:
        _check(image, key)
        return image + std * jax.random.normal(key, image.shape, image.dtype)

    return noisy


def _window(image: Array, height: int, width: int, key: jax.Array) -> Array:
    """A window of that size, at a place drawn uniformly from all there are."""
    places = jnp.array([image.shape[0] - height + 1, image.shape[1] - width + 1])
    row, column = jax.random.randint(key, (2,), 0, places)
    return jax.lax.dynamic_slice(
        image, (row, column, jnp.zeros_like(row)), (height, width, image.shape[2])
    )


def _check(
    image: Any, key: Any, *, above: tuple[int, int] = (0, 0), what: str = "the transform"
) -> None:
    _validation.floating("image", image, rank=3)
    _validation.key("key", key)
    if not (image.shape[0] > above[0] and image.shape[1] > above[1]):
        raise ValueError(
            f"image must be at least {above[0] + 1} x {above[1] + 1} for {what}, got {image.shape[0]} x {image.shape[1]}"
        )
