"""Compare an epoch of `dp.descent.run` with hand-written optax loops, in Python and in `lax.scan`.

Four cases: an MLP and a CNN, on the digits (8 x 8) and on 60,000 random images of 28 x 28. All
loops take the same batches from data on the device. Target: `run` takes at most 1.05 of the faster
of the two.

An epoch of the digits has 22 steps. As in training, many epochs are run in one call: a call of
`run` has a fixed cost of about a millisecond, half the time of a single epoch of the MLP.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import diffprog as dp
from experiments.benchmarks.harness import Comparison, compare

BATCH = 64
OPTIMIZER = optax.adam(1e-3)

Case = tuple[dp.models.Model, jax.Array, jax.Array, int, int]


def main(fast: bool) -> dict[str, Comparison]:
    """Compare the loops in every case."""
    return {name: _case(*case, fast=fast) for name, case in cases(fast).items()}


def cases(fast: bool) -> dict[str, Case]:
    """Return model, images, labels, epochs and rounds of each case."""
    digits = dp.data.digits()
    count = 256 if fast else 60_000
    random = jax.random.uniform(jax.random.key(0), (count, 28, 28, 1))
    labels = jax.random.randint(jax.random.key(1), (count,), 0, 10)
    small_mlp, large_mlp = dp.models.mlp((64, 128, 10)), dp.models.mlp((784, 128, 10))
    small_cnn, large_cnn = dp.models.cnn((8, 8, 1)), dp.models.cnn((28, 28, 1), channels=(16, 32))
    flat = lambda images: images.reshape(len(images), -1)
    return {
        "MLP on digits, 60 epochs": (small_mlp, flat(digits.x_train), digits.y_train, 60, 20),
        "CNN on digits, 20 epochs": (small_cnn, digits.x_train, digits.y_train, 20, 10),
        "MLP on 60,000 of 28 x 28": (large_mlp, flat(random), labels, 1, 9),
        "CNN on 60,000 of 28 x 28": (large_cnn, random, labels, 1, 3),
    }


def _case(
    model: dp.models.Model, x: jax.Array, y: jax.Array, epochs: int, rounds: int, *, fast: bool
) -> Comparison:
    params = model.init(jax.random.key(0))
    epochs, rounds = (1, 1) if fast else (epochs, rounds)
    batches = jnp.concatenate(
        [
            jax.random.permutation(key, len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH)
            for key in jax.random.split(jax.random.key(2), epochs)
        ]
    )

    def cost(params: Any, batch: jax.Array) -> jax.Array:
        return dp.losses.softmax_cross_entropy(model.apply(params, x[batch]), y[batch]).mean()

    run = lambda: dp.descent.run(dp.descent.descent(cost, OPTIMIZER), params, batches).variable
    contenders = {"run": run, **bare_loops(model, params, x, y, batches)}
    return compare(contenders, baseline="Python loop", rounds=rounds)


def bare_loops(
    model: dp.models.Model, params: Any, x: jax.Array, y: jax.Array, batches: jax.Array
) -> dict[str, Callable[[], Any]]:
    """Return hand-written training loops; data are arguments, batches are gathered inside jit."""

    def step(carry: Any, batch: jax.Array, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry

        def loss(params: Any) -> jax.Array:
            logits = model.apply(params, x[batch])
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y[batch]).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = OPTIMIZER.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def step_at(carry: Any, k: int, batches: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        return step(carry, batches[k], x, y)

    @jax.jit
    def scan(carry: Any, batches: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        return jax.lax.scan(lambda carry, batch: step(carry, batch, x, y), carry, batches)

    def python_loop() -> Any:
        carry, losses = (params, OPTIMIZER.init(params)), []
        for k in range(len(batches)):
            carry, value = step_at(carry, k, batches, x, y)
            losses.append(value)
        return carry, jnp.stack(jax.device_get(losses))

    return {
        "Python loop": python_loop,
        "lax.scan": lambda: scan((params, OPTIMIZER.init(params)), batches, x, y),
    }
