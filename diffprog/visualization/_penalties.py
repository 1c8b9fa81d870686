"""Penalties on an image: functions of one image that return a scalar to minimize.

    l1                  Σ |x|
    l2                  Σ x²
    total_variation     Σ sqrt((x_{r+1,c} - x_{rc})² + (x_{r,c+1} - x_{rc})²)
    blur                Σ (x - b(x))²                 b: 3 x 3 binomial blur
    to_reference(r)     Σ (x - r)²
    of_variable(R)      R of the image's parameters, such as Fourier coefficients, not of its pixels

Sums are over pixels and channels; x_{rc} is the pixel in row r and column c. Where a root or an
absolute value is not differentiable, its gradient is set to 0, so that it is finite on black and on
constant images.

Any function `image -> scalar` of your own can be used as a penalty too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffprog import _validation

Penalty = Callable[[Float[Array, "height width channels"]], Float[Array, ""]]


class OfVariable(NamedTuple):
    """Penalty on the optimized variable of an image instead of its pixels, from `of_variable`.

    It is not callable, unlike other penalties: the variable (for example Fourier coefficients)
    cannot be computed from the image alone.

    Attributes:
        penalty: function of the variable of one image, a pytree, that returns a scalar.
    """

    penalty: Callable[[Any], Float[Array, ""]]


def l1(image: Any) -> Float[Array, ""]:
    """L1 penalty: the sum of absolute values, Σ |x|, of an image or pytree; gradient 0 at 0.

    >>> print(l1(jnp.array([[[-1.0], [2.0]]])))
    3.0
    """
    return _sum_over_leaves(image, lambda x: x * jnp.sign(x))


def l2(image: Any) -> Float[Array, ""]:
    """L2 penalty: the sum of squares, Σ x², of an image or pytree.

    Example: the image that maximizes a linear unit w·x minus λ Σ x² is x = w / (2 λ).

    >>> print(l2(jnp.array([[[-1.0], [2.0]]])))
    5.0
    """
    return _sum_over_leaves(image, jnp.square)


def total_variation(image: Float[Array, "height width channels"]) -> Float[Array, ""]:
    """Isotropic total variation of an image (Rudin, Osher and Fatemi, 1992).

        Σ sqrt((x_{r+1,c} - x_{rc})² + (x_{r,c+1} - x_{rc})²),   differences across the border are 0

    Args:
        image: float (height, width, channels).

    Raises:
        TypeError, ValueError: the image is not a float array of rank 3.

    >>> print(total_variation(jnp.array([0.0, 0.0, 2.0, 2.0]).reshape(1, 4, 1)))
    2.0
    """
    _validation.floating("image", image, rank=3)
    down = jnp.pad(jnp.diff(image, axis=0), ((0, 1), (0, 0), (0, 0)))
    right = jnp.pad(jnp.diff(image, axis=1), ((0, 0), (0, 1), (0, 0)))
    squares = down**2 + right**2
    # Double `where`: the square root has no finite gradient at 0.
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0).sum()


def blur(image: Float[Array, "height width channels"]) -> Float[Array, ""]:
    """Penalty on high frequencies: the squared distance between an image and its blurred version.

        Σ (x - b(x))²,   b: blur with [1 2 1] / 4 along both axes, edge pixels repeated

    The gradient flows through b(x) too.

    Args:
        image: float (height, width, channels).

    Raises:
        TypeError, ValueError: the image is not a float array of rank 3.

    >>> print(blur(jnp.array([0.0, 4.0, 0.0]).reshape(1, 3, 1)))
    6.0
    """
    _validation.floating("image", image, rank=3)
    return jnp.square(image - _binomial(_binomial(image, 0), 1)).sum()


def to_reference(reference: Float[Array, "height width channels"]) -> Penalty:
    """Return the penalty Σ (x - reference)², which keeps images near a reference.

    Args:
        reference: finite float image (height, width, channels).

    Raises:
        TypeError, ValueError: the reference is not such an image; at the call, the image has
            another shape.

    >>> print(to_reference(jnp.ones((2, 2, 1)))(jnp.zeros((2, 2, 1))))
    4.0
    """
    _validation.floating("reference", reference, rank=3)
    _validation.finite("reference", reference)
    reference = jnp.asarray(reference)

    def squared_distance(image: Float[Array, "height width channels"]) -> Float[Array, ""]:
        _validation.same_shape(image=image, reference=reference)
        return jnp.square(image - reference).sum()

    return squared_distance


def of_variable(penalty: Callable[[Any], Float[Array, ""]]) -> OfVariable:
    """Penalize the optimized variable (for example Fourier coefficients) instead of the pixels.

    Pass the result to `visualize` as a penalty. With the parametrization `covariance`,
    `of_variable(l2)` is the squared Mahalanobis distance to the mean image.

    Args:
        penalty: function `variable -> scalar` of the variable of one image, such as `l2`.

    Raises:
        TypeError: the penalty is not callable.

    >>> of_variable(l2) == of_variable(l2)
    True
    """
    return OfVariable(_validation.function("penalty", penalty))


def _sum_over_leaves(tree: Any, function: Callable[[Array], Array]) -> Array:
    _validation.floating_leaves("image", tree)
    return sum((function(leaf).sum() for leaf in jax.tree.leaves(tree)), start=jnp.float32(0))


def _binomial(image: Array, axis: int) -> Array:
    """Blur with [1 2 1] / 4 along an axis, with edge pixels repeated."""
    padded = jnp.pad(
        image, [(int(a == axis), int(a == axis)) for a in range(image.ndim)], mode="edge"
    )
    size = image.shape[axis]
    before, here, after = (jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in range(3))
    return (before + 2 * here + after) / 4
