"""Contrastive losses: of all pairs in a batch, which image belongs to which text.

With unit vectors u_i of the images and v_j of the texts, and a temperature 1 / s that is learned as log s:

    z_ij = s <u_i, v_j>
    InfoNCE      L_i = ½ (H(p_i., softmax_j z_ij) + H(p_.i, softmax_j z_ji))        each image picks its text, each text its image
    sigmoid      L_i = ½ Σ_j (b(z_ij + c) + b(z_ji + c)),  b(z) = -log σ(± z)       each pair for itself: + where it belongs together

Both are symmetric: swap images and texts, and nothing changes. A batch holds what it happens to hold, and two images of a seven, both told
"a seven", are no mistake that a model should pay for: `positive` says which pairs belong together beside those on the diagonal, and H is
the cross-entropy from the uniform distribution p over all that do.

Logits and all that follows are float32 even where the features are bfloat16: at s = 100 a rounding of 2⁻⁸ would be half a nat.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from diffprog import _validation, norms

LARGEST_LOG_SCALE = math.log(100)

Features = Float[Array, "batch width"]


def info_nce(
    images: Features,
    texts: Features,
    log_scale: Float[Array, ""],
    *,
    positive: Bool[Array, "batch batch"] | None = None,
) -> Float[Array, "batch"]:
    """Symmetric InfoNCE, ½ (cross-entropy of the texts for each image + of the images for each text); log(batch) by chance.

    Args:
        images: features, finite floats (batch, width) of any length; only directions count.
        texts: features of the texts, in the same order.
        log_scale: log s, the logarithm of the inverse temperature. Beyond log 100 it counts as log 100, and its gradient only lets it
            come back.
        positive: (i, j) is True where text j is true of image i; the diagonal always is.

    Returns:
        The loss of each pair (batch,), at least float32.

    Raises:
        TypeError, ValueError: features that are no floats (batch, width), of two shapes or not finite, a scale that is no float scalar,
            positive that is not bool (batch, batch).

    Source: A. van den Oord et al., "Representation learning with contrastive predictive coding", 2018; A. Radford et al., "Learning
    transferable visual models from natural language supervision", 2021, for the symmetry, the temperature and its bound;
    P. Khosla et al., "Supervised contrastive learning", 2020, for several positives.

    >>> print(info_nce(jnp.eye(2), jnp.eye(2), jnp.log(2.0)))
    [0.12692805 0.12692805]
    """
    logits, belongs = _logits(images, texts, log_scale), _belongs(images, texts, positive)
    by_image = optax.losses.softmax_cross_entropy(logits, belongs / belongs.sum(1, keepdims=True))
    by_text = optax.losses.softmax_cross_entropy(
        logits.T, belongs.T / belongs.T.sum(1, keepdims=True)
    )
    return (by_image + by_text) / 2


def sigmoid_loss(
    images: Features,
    texts: Features,
    log_scale: Float[Array, ""],
    bias: Float[Array, ""],
    *,
    positive: Bool[Array, "batch batch"] | None = None,
) -> Float[Array, "batch"]:
    """The sigmoid loss, -Σ_j log σ(± (s <u_i, v_j> + c)), + where image and text belong together and - elsewhere.

    No pair's term knows of the others, so it does not need a large batch, and several texts may be true of an image at no loss.

    Args:
        images, texts, log_scale, positive: as `info_nce` has them.
        bias: c, to start from about -log(batch), because most pairs do not belong together.

    Returns:
        The loss of each pair, half of its image's row and half of its text's column, (batch,), at least float32.

    Raises:
        TypeError, ValueError: as `info_nce`; a bias that is no float scalar.

    Source: X. Zhai et al., "Sigmoid loss for language image pre-training", 2023.

    >>> print(sigmoid_loss(jnp.eye(2), jnp.eye(2), jnp.log(2.0), jnp.float32(-1)))
    [0.6265234 0.6265234]
    """
    _check_scalar("bias", bias)
    logits, belongs = _logits(images, texts, log_scale), _belongs(images, texts, positive)
    each = optax.losses.sigmoid_binary_cross_entropy(
        logits + jnp.asarray(bias, logits.dtype), belongs
    )
    return (each.sum(0) + each.sum(1)) / 2


def _logits(images: Any, texts: Any, log_scale: Any) -> Float[Array, "batch batch"]:
    for name, features in (("images", images), ("texts", texts)):
        _validation.floating(name, features, rank=2)
        _validation.finite(name, features)
    _validation.same_shape(images=images, texts=texts)
    _validation.batch(images=images)
    if images.shape[1] == 0:
        raise ValueError(
            f"images and texts must have features of at least one number, got {list(images.shape)}"
        )
    _check_scalar("log_scale", log_scale)
    u, v = unit_length(images), unit_length(texts)
    return inverse_temperature(jnp.asarray(log_scale, u.dtype)) * (u @ v.T)


def unit_length(features: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
    """Each row divided by its length, zero where that is zero, in float32 or more."""
    return norms.l2.ascent(features.astype(jnp.promote_types(features.dtype, jnp.float32)))


def inverse_temperature(log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """s = e^(log s), at most 100."""
    return jnp.exp(_bounded(log_scale))


@jax.custom_vjp
def _bounded(log_scale: Array) -> Array:
    return jnp.minimum(log_scale, LARGEST_LOG_SCALE)


# The derivative of a minimum is 0 beyond the bound, where a scale that once went there would stay for good.
_bounded.defvjp(
    lambda log_scale: (_bounded(log_scale), log_scale),
    lambda log_scale, slope: (
        jnp.where(log_scale < LARGEST_LOG_SCALE, slope, jnp.maximum(slope, 0)),
    ),
)


def _belongs(images: Any, texts: Any, positive: Any) -> Float[Array, "batch batch"]:
    """1 where image i and text j belong together, 0 elsewhere."""
    count = len(images)
    if positive is None:
        return jnp.eye(count)
    given = _validation.array("positive", positive)
    if given.dtype != bool or given.shape != (count, count):
        raise TypeError(
            f"positive must be bool {[count, count]}, got {given.dtype}{list(given.shape)}"
        )
    return (jnp.asarray(given) | jnp.eye(count, dtype=bool)).astype(jnp.float32)


def _check_scalar(name: str, value: Any) -> None:
    given = _validation.array(name, value)
    if given.shape != () or not jnp.issubdtype(given.dtype, jnp.floating):
        raise TypeError(f"{name} must be one float, got {given.dtype}{list(given.shape)}")
    _validation.finite(name, given)
