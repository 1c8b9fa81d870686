"""A network that reads handwritten digits: what the experiments look into."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffprog as dp

BATCH, LEARNING_RATE = 64, 2e-3


class Trained(NamedTuple):
    """The trained program, its parameters and the cost of each step."""

    program: dp.Program
    params: Any
    costs: np.ndarray

    def accuracy(self, images: jax.Array, labels: jax.Array) -> float:
        """The share of images that it reads rightly."""
        return float((self.program(images).argmax(-1) == labels).mean())


def train(
    model: dp.models.Model, images: jax.Array, labels: jax.Array, epochs: int, key: jax.Array
) -> Trained:
    """Descend on the parameters: cross-entropy of minibatches, each image shifted by a fraction of a pixel."""
    init_key, fit_key = jax.random.split(key)

    def loss(params: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        return dp.losses.softmax_cross_entropy(model.apply(params, shifted(x, key)), y)

    start, data, optimizer = (
        model.init(init_key),
        (images, labels),
        decaying(epochs * len(images) // BATCH),
    )
    fitted = dp.training.fit(
        loss, start, data, optimizer=optimizer, batch_size=BATCH, epochs=epochs, key=fit_key
    )
    return Trained(dp.program(model.apply, fitted.params), fitted.params, fitted.history["cost"])


def decaying(steps: int) -> optax.GradientTransformation:
    """Adam with weight decay, its rate falling to zero over so many steps along a cosine."""
    return optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, steps), weight_decay=0.01)


def shifted(images: jax.Array, key: jax.Array, *, reach: float = 0.6) -> jax.Array:
    """Each image moved by its own random fraction of a pixel, up to `reach` in both directions."""
    shifts = jax.random.uniform(key, (len(images), 2), minval=-reach, maxval=reach)
    move = lambda image, shift: jax.image.scale_and_translate(
        image, image.shape, (0, 1), jnp.ones(2), shift, "linear"
    )
    return jax.vmap(move)(images, shifts)
