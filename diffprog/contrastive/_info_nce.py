"""Contrastive losses of a batch of pairs: symmetric InfoNCE and the sigmoid loss.

With unit features u_i of the images and v_j of the texts, and a learned temperature 1 / s:

    z_ij = s <u_i, v_j>
    InfoNCE:       L_i = ½ (H(p_i., softmax_j z_ij) + H(p_.i, softmax_j z_ji))
    sigmoid loss:  L_i = ½ Σ_j (b_ij + b_ji),    b_ij = -log σ(± (z_ij + c)), + for positive pairs

c is a learned bias, σ the logistic function and H the cross-entropy. Its target p_i. is a
distribution over the texts that match image i, p_.i over the images that match text i, both uniform
over the positive pairs. Positive are the diagonal and the pairs marked by `positive`. Marking them
avoids false negatives, such as two images of a seven that both have the caption "a seven".

Logits and losses are float32 even if features are bfloat16, whose 8 significant bits would change
a logit of size 100 by up to half a nat.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from diffprog import _validation, norms

MAX_LOG_SCALE = math.log(100)

Features = Float[Array, "batch width"]


def info_nce(
    images: Features,
    texts: Features,
    log_scale: Float[Array, ""],
    *,
    positive: Bool[Array, "batch batch"] | None = None,
) -> Float[Array, "batch"]:
    """Symmetric InfoNCE loss of image and text features, as in CLIP (Radford et al., 2021).

    It is the mean of two cross-entropies with temperature: classifying the text of each image and
    the image of each text. If all features are equal, the loss is log(batch).

    Args:
        images: image features, finite floats (batch, width); they are normalized to length 1.
        texts: text features, (batch, width); text i describes image i; normalized as well.
        log_scale: logarithm of the inverse temperature, clipped to at most log 100. Where it is
            clipped, its gradient is kept only if a descent step would decrease it.
        positive: True at (i, j) if text j describes image i; the diagonal always counts as True.

    Returns:
        The loss of each image and its text, (batch,), at least float32.

    Raises:
        TypeError, ValueError: features are not finite floats (batch, width) of one shape, log_scale
            is not a float scalar, or positive is not bool (batch, batch).

    Source: A. van den Oord et al., "Representation learning with contrastive predictive coding",
    2018; A. Radford et al., "Learning transferable visual models from natural language
    supervision", 2021 (symmetry, learned temperature and its bound); P. Khosla et al., "Supervised
    contrastive learning", 2020 (several positives).

    >>> print(info_nce(jnp.eye(2), jnp.eye(2), jnp.log(2.0)))
    [0.12692805 0.12692805]
    """
    logits, positives = _logits_and_positives(images, texts, log_scale, positive)
    cross_entropy = lambda logits, positives: optax.losses.softmax_cross_entropy(
        logits, positives / positives.sum(1, keepdims=True)
    )
    return (cross_entropy(logits, positives) + cross_entropy(logits.T, positives.T)) / 2


def sigmoid_loss(
    images: Features,
    texts: Features,
    log_scale: Float[Array, ""],
    bias: Float[Array, ""],
    *,
    positive: Bool[Array, "batch batch"] | None = None,
) -> Float[Array, "batch"]:
    """Sigmoid loss of image and text features, as in SigLIP (Zhai et al., 2023).

    It is a binary cross-entropy for each image i and text j, -log σ(± (s <u_i, v_j> + c)), with +
    for positive pairs, unit features u and v, inverse temperature s and bias c. Terms of different
    pairs are independent, so it works with small batches.

    Args:
        images: image features, as of `info_nce`.
        texts: text features, as of `info_nce`.
        log_scale: log s, as of `info_nce`.
        bias: c; initialize near -log(batch), since most pairs are negative.
        positive: True at (i, j) if text j describes image i, as of `info_nce`.

    Returns:
        The loss of each image and its text, (batch,), at least float32: half the sum of the terms
        with this image or this text.

    Raises:
        TypeError, ValueError: as `info_nce`, or bias is not a float scalar.

    Source: X. Zhai et al., "Sigmoid loss for language image pre-training", 2023.

    >>> print(sigmoid_loss(jnp.eye(2), jnp.eye(2), jnp.log(2.0), jnp.float32(-1)))
    [0.6265234 0.6265234]
    """
    _check_scalar("bias", bias)
    logits, positives = _logits_and_positives(images, texts, log_scale, positive)
    losses = optax.losses.sigmoid_binary_cross_entropy(
        logits + jnp.asarray(bias, logits.dtype), positives
    )
    return (losses.sum(0) + losses.sum(1)) / 2


def _logits_and_positives(
    images: Any, texts: Any, log_scale: Any, positive: Any
) -> tuple[Float[Array, "batch batch"], Float[Array, "batch batch"]]:
    """Check the arguments of a loss; return its logits and its 0-1 labels, both (batch, batch).

    The label of an image and a text is 1 if they are a positive pair.
    """
    for name, features in (("images", images), ("texts", texts)):
        _validation.floating(name, features, rank=2)
        _validation.finite(name, features)
    _validation.same_shape(images=images, texts=texts)
    batch = _validation.batch(images=images)
    if images.shape[1] == 0:
        raise ValueError(
            f"images and texts must have at least one feature, got shape {list(images.shape)}"
        )
    _check_scalar("log_scale", log_scale)
    positives = jnp.eye(batch)
    if positive is not None:
        positive = _validation.array("positive", positive)
        if positive.dtype != bool or positive.shape != (batch, batch):
            raise TypeError(
                f"positive must be bool {[batch, batch]}, "
                f"got {positive.dtype}{list(positive.shape)}"
            )
        positives = (jnp.asarray(positive) | jnp.eye(batch, dtype=bool)).astype(jnp.float32)
    u, v = normalize(images), normalize(texts)
    return inverse_temperature(jnp.asarray(log_scale, u.dtype)) * (u @ v.T), positives


def normalize(features: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
    """Scale each row to length 1, in float32 or higher precision; rows of zeros stay zero."""
    return norms.l2.ascent(features.astype(jnp.promote_types(features.dtype, jnp.float32)))


def inverse_temperature(log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """Return the inverse temperature exp(log_scale), at most 100."""
    return jnp.exp(_clip_log_scale(log_scale))


@jax.custom_vjp
def _clip_log_scale(log_scale: Array) -> Array:
    return jnp.minimum(log_scale, MAX_LOG_SCALE)


# The derivative of a minimum is 0 beyond the bound: a scale that got there could never decrease.
_clip_log_scale.defvjp(
    lambda log_scale: (_clip_log_scale(log_scale), log_scale),
    lambda log_scale, cotangent: (
        jnp.where(log_scale < MAX_LOG_SCALE, cotangent, jnp.maximum(cotangent, 0)),
    ),
)


def _check_scalar(name: str, value: Any) -> None:
    array = _validation.array(name, value)
    if array.shape != () or not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be a float scalar, got {array.dtype}{list(array.shape)}")
    _validation.finite(name, array)
