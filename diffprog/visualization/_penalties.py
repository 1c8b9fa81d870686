"""Penalties: what an image should not be, as a function of one image to a scalar.

    l1                  Σ |x|
    l2                  Σ x²                                    the most of w·x - λ Σ x² is at w / (2 λ)
    total_variation     Σ sqrt((x_{r+1,c} - x_{rc})² + (x_{r,c+1} - x_{rc})²)
    blur                Σ (x - b(x))²                           b: the binomial mean of 3 x 3 pixels
    to_reference(r)     Σ (x - r)²
    of_variable(R)      R of the variable the image is painted from

All sum over pixels and channels. Where a root or an absolute value has a kink the gradient is 0, so that it is finite on black and on plain
images and draws them nowhere.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffprog import _validation

Penalty = Callable[[Float[Array, "height width channels"]], Float[Array, ""]]


class OfVariable(NamedTuple):
    """A penalty of what an image is painted from; made by `of_variable`. Not callable: an image alone does not tell its variable.

    Attributes:
        penalty: `penalty(variable)`, of one image's variable, a pytree.
    """

    penalty: Callable[[Any], Float[Array, ""]]


def l1(image: Any) -> Float[Array, ""]:
    """Σ |x|, over all numbers of an array or pytree; its gradient at 0 is 0.

    >>> print(l1(jnp.array([[[-1.0], [2.0]]])))
    3.0
    """
    return _total(image, lambda x: x * jnp.sign(x))


def l2(image: Any) -> Float[Array, ""]:
    """Σ x², over all numbers of an array or pytree.

    >>> print(l2(jnp.array([[[-1.0], [2.0]]])))
    5.0
    """
    return _total(image, jnp.square)


def total_variation(image: Float[Array, "height width channels"]) -> Float[Array, ""]:
    """Σ sqrt((x_{r+1,c} - x_{rc})² + (x_{r,c+1} - x_{rc})²), differences across the border being 0.

    Isotropic: an edge of height a and length n costs a n in any direction but for the grid. The gradient of a plain patch is 0.

    Args:
        image: float (height, width, channels).

    Raises:
        TypeError, ValueError: anything else.

    Source: Rudin, Osher and Fatemi, "Nonlinear total variation based noise removal algorithms", 1992.

    >>> print(total_variation(jnp.array([0.0, 0.0, 2.0, 2.0]).reshape(1, 4, 1)))
    2.0
    """
    _validation.floating("image", image, rank=3)
    down = jnp.pad(jnp.diff(image, axis=0), ((0, 1), (0, 0), (0, 0)))
    right = jnp.pad(jnp.diff(image, axis=1), ((0, 0), (0, 1), (0, 0)))
    squares = down**2 + right**2
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0).sum()


def blur(image: Float[Array, "height width channels"]) -> Float[Array, ""]:
    """Σ (x - b(x))², with b(x) the image blurred by [1 2 1]/4 along both sides, edge pixels repeated.

    b(x) moves with x: the gradient is that of the formula.

    Args:
        image: float (height, width, channels).

    Raises:
        TypeError, ValueError: anything else.

    >>> print(blur(jnp.array([0.0, 4.0, 0.0]).reshape(1, 3, 1)))
    6.0
    """
    _validation.floating("image", image, rank=3)
    return jnp.square(image - _smooth(_smooth(image, 0), 1)).sum()


def to_reference(reference: Float[Array, "height width channels"]) -> Penalty:
    """Σ (x - reference)², of images that are to stay near one.

    Args:
        reference: finite float image (height, width, channels).

    Raises:
        TypeError, ValueError: a reference that is none; at the call, an image of another shape.

    >>> print(to_reference(jnp.ones((2, 2, 1)))(jnp.zeros((2, 2, 1))))
    4.0
    """
    _validation.floating("reference", reference, rank=3)
    _validation.finite("reference", reference)
    near = jnp.asarray(reference)

    def distance(image: Float[Array, "height width channels"]) -> Float[Array, ""]:
        _validation.same_shape(image=image, reference=near)
        return jnp.square(image - near).sum()

    return distance


def of_variable(penalty: Callable[[Any], Float[Array, ""]]) -> OfVariable:
    """A penalty of the variable an image is painted from: of_variable(l2) is |z|², for `covariance` the squared Mahalanobis distance.

    Args:
        penalty: `penalty(variable)`, of one image's variable.

    Raises:
        TypeError: not a function.

    >>> of_variable(l2) == of_variable(l2)
    True
    """
    return OfVariable(_validation.function("penalty", penalty))


def _total(tree: Any, each: Callable[[Array], Array]) -> Array:
    _validation.floating_leaves("image", tree)
    return sum((each(leaf).sum() for leaf in jax.tree.leaves(tree)), start=jnp.float32(0))


def _smooth(image: Array, axis: int) -> Array:
    """[1 2 1] / 4 along an axis, its ends repeated."""
    wide = jnp.pad(
        image, [(int(a == axis), int(a == axis)) for a in range(image.ndim)], mode="edge"
    )
    size = image.shape[axis]
    before, here, after = (jax.lax.slice_in_dim(wide, k, k + size, axis=axis) for k in range(3))
    return (before + 2 * here + after) / 4
