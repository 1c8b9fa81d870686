"""An epoch of `dp.descent.run` against an optax step written by hand, in a Python loop and in `lax.scan`.

Four cases: an MLP and a CNN, on the digits (8 x 8) and on 60,000 random images of 28 x 28. All three take the same batches of the same
model from data on the device. Wanted: `run` at most 1.05 of the better of the two.

An epoch of the digits is 22 steps. It is measured as one trains, many epochs to a call (sixty in the tour): a call of `run` takes about a
millisecond for its checks and its pieces, which would be half of a single such epoch of the MLP.
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
    """Model, images, labels, epochs and rounds."""
    digits = dp.data.digits()
    count = 256 if fast else 60_000
    random = jax.random.uniform(jax.random.key(0), (count, 28, 28, 1))
    labels = jax.random.randint(jax.random.key(1), (count,), 0, 10)
    flat = lambda images: images.reshape(len(images), -1)
    return {
        "MLP on digits, 60 epochs": (
            dp.models.mlp((64, 128, 10)),
            flat(digits.x_train),
            digits.y_train,
            60,
            20,
        ),
        "CNN on digits, 20 epochs": (
            dp.models.cnn((8, 8, 1)),
            digits.x_train,
            digits.y_train,
            20,
            10,
        ),
        "MLP on 60,000 of 28 x 28": (dp.models.mlp((784, 128, 10)), flat(random), labels, 1, 9),
        "CNN on 60,000 of 28 x 28": (
            dp.models.cnn((28, 28, 1), channels=(16, 32)),
            random,
            labels,
            1,
            3,
        ),
    }


def _case(
    model: dp.models.Model, x: jax.Array, y: jax.Array, epochs: int, rounds: int, *, fast: bool
) -> Comparison:
    params, epochs, rounds = (
        model.init(jax.random.key(0)),
        1 if fast else epochs,
        1 if fast else rounds,
    )
    orders = [
        jax.random.permutation(key, len(x))[: len(x) // BATCH * BATCH]
        for key in jax.random.split(jax.random.key(2), epochs)
    ]
    order = jnp.concatenate(orders).reshape(-1, BATCH)

    def cost(params: Any, batch: jax.Array) -> jax.Array:
        return dp.losses.softmax_cross_entropy(model.apply(params, x[batch]), y[batch]).mean()

    run = lambda: dp.descent.run(dp.descent.descent(cost, OPTIMIZER), params, order).variable
    host, scan = bare_loops(model, params, x, y, order)
    return compare(
        {"run": run, "Python loop": host, "lax.scan": scan}, baseline="Python loop", rounds=rounds
    )


def bare_loops(
    model: dp.models.Model, params: Any, x: jax.Array, y: jax.Array, order: jax.Array
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What one would write without the toolkit, in Python and as a scan: the data are arguments, batches are gathered inside jit."""

    def step(carry: Any, batch: jax.Array, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        cost = lambda params: optax.losses.softmax_cross_entropy_with_integer_labels(
            model.apply(params, x[batch]), y[batch]
        ).mean()
        value, gradient = jax.value_and_grad(cost)(params)
        updates, state = OPTIMIZER.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    jitted = jax.jit(lambda carry, order, k, x, y: step(carry, order[k], x, y))
    scanned = jax.jit(
        lambda carry, order, x, y: jax.lax.scan(
            lambda carry, batch: step(carry, batch, x, y), carry, order
        )
    )

    def host() -> Any:
        carry, costs = (params, OPTIMIZER.init(params)), []
        for k in range(len(order)):
            carry, value = jitted(carry, order, k, x, y)
            costs.append(value)
        return carry, jnp.stack(jax.device_get(costs))

    return host, lambda: scanned((params, OPTIMIZER.init(params)), order, x, y)
