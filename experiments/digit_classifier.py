"""Train a classifier of handwritten digits; used by the other experiments."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffprog as dp

BATCH_SIZE, LEARNING_RATE = 64, 2e-3


class Trained(NamedTuple):
    """Trained program, its parameters and the loss of each step."""

    program: dp.Program
    params: Any
    losses: np.ndarray

    def accuracy(self, images: jax.Array, labels: jax.Array) -> float:
        """Compute the share of images that are correctly classified."""
        return float((self.program(images).argmax(-1) == labels).mean())


def train(
    model: dp.models.Model,
    images: jax.Array,
    labels: jax.Array,
    epochs: int,
    key: jax.Array,
    *,
    attack: dp.adversarial.Attack | None = None,
) -> Trained:
    """Minimize the cross-entropy on images shifted at random, or on those that an attack perturbs.

    Args:
        model: `init(key)` and `apply(params, images)` -> logits.
        images: (batch, height, width, channels).
        labels: (batch,), integers.
        epochs: number of passes over the images.
        key: PRNG key.
        attack: attack for adversarial training; default none.
    """
    init_key, fit_key = jax.random.split(key)

    def loss(params: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        return dp.losses.softmax_cross_entropy(model.apply(params, shift_randomly(x, key)), y)

    learning_rate = optax.cosine_decay_schedule(LEARNING_RATE, epochs * len(images) // BATCH_SIZE)
    fitted = dp.training.fit(
        loss if attack is None else dp.adversarial.adversarial_training(model.apply, attack),
        model.init(init_key),
        (images, labels),
        optimizer=optax.adamw(learning_rate, weight_decay=0.01),
        batch_size=BATCH_SIZE,
        epochs=epochs,
        key=fit_key,
    )
    return Trained(dp.program(model.apply, fitted.params), fitted.params, fitted.history["cost"])


def shift_randomly(images: jax.Array, key: jax.Array, *, reach: float = 0.6) -> jax.Array:
    """Shift each image by a random fraction of a pixel, up to `reach` along both axes."""
    shifts = jax.random.uniform(key, (len(images), 2), minval=-reach, maxval=reach)

    def shift_one(image: jax.Array, shift: jax.Array) -> jax.Array:
        scale = jnp.ones(2)
        return jax.image.scale_and_translate(image, image.shape, (0, 1), scale, shift, "linear")

    return jax.vmap(shift_one)(images, shifts)
