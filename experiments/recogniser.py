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


def train(model: dp.models.Model, images: jax.Array, labels: jax.Array, epochs: int, key: jax.Array) -> Trained:
    """Descend on the parameters: cross-entropy of minibatches, each image shifted by a fraction of a pixel."""
    init_key, order_key, shift_key = jax.random.split(key, 3)
    steps = len(images) // BATCH
    orders = [jax.random.permutation(key, len(images))[: steps * BATCH] for key in jax.random.split(order_key, epochs)]
    batches = jnp.concatenate(orders).reshape(-1, BATCH)

    def cost(params: Any, seen: tuple[jax.Array, jax.Array]) -> jax.Array:
        batch, key = seen
        logits = model.apply(params, shifted(images[batch], key))
        return dp.losses.softmax_cross_entropy(logits, labels[batch]).mean()

    optimizer = optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, len(batches)), weight_decay=0.01)
    descent = dp.descent.descent(cost, optimizer)
    result = dp.descent.run(descent, model.init(init_key), (batches, jax.random.split(shift_key, len(batches))))
    return Trained(dp.program(model.apply, result.variable), result.variable, result.costs)


def shifted(images: jax.Array, key: jax.Array, *, reach: float = 0.6) -> jax.Array:
    """Each image moved by its own random fraction of a pixel, up to `reach` in both directions."""
    shifts = jax.random.uniform(key, (len(images), 2), minval=-reach, maxval=reach)
    move = lambda image, shift: jax.image.scale_and_translate(image, image.shape, (0, 1), jnp.ones(2), shift, "linear")  # noqa: E731
    return jax.vmap(move)(images, shifts)
