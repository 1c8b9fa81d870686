"""Value and gradient of a network by its hand-written backward passes, against `jax.grad` of the same network.

Each as one jitted call, with respect to the parameters. An MLP of 784-1024-1024-10: wanted at most 1.05. A CNN with two poolings: wanted at
most 0.5 of `jax.grad` through `lax.reduce_window`, and at most 1.0 of `jax.grad` of the same forward functions.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

import diffprog as dp
from diffprog.backprop import Layer
from experiments.benchmarks.harness import Comparison, compare

BATCH = 64
bp = dp.backprop


def main(fast: bool) -> dict[str, Comparison]:
    """Compare an MLP and a CNN."""
    widths, side, rounds = ((784, 1024, 1024, 10), 28, 40) if not fast else ((16, 8, 8, 10), 8, 2)
    key = jax.random.key(0)
    labels = jax.random.randint(key, (BATCH,), 0, 10)
    mlp = bp.chain(
        [
            bp.affine(*widths[:2]),
            bp.relu(),
            bp.affine(*widths[1:3]),
            bp.relu(),
            bp.affine(*widths[2:]),
        ]
    )
    rows, images = (
        jax.random.uniform(key, (BATCH, widths[0])),
        jax.random.uniform(key, (BATCH, side, side, 1)),
    )
    return {
        f"MLP {'-'.join(map(str, widths))}": compare(
            {"by hand": by_hand(mlp, rows, labels), "jax.grad": automatic(mlp, rows, labels)},
            baseline="jax.grad",
            rounds=rounds,
        ),
        f"CNN on {side} x {side}, reduce_window": compare(
            {
                "by hand": by_hand(cnn(bp.max_pool(), side), images, labels),
                "jax.grad": automatic(cnn(pooling_by_reduce_window(), side), images, labels),
            },
            baseline="jax.grad",
            rounds=rounds,
        ),
        f"CNN on {side} x {side}, fast forms": compare(
            {
                "by hand": by_hand(cnn(bp.max_pool(), side), images, labels),
                "jax.grad": automatic(cnn(bp.max_pool(), side), images, labels),
            },
            baseline="jax.grad",
            rounds=rounds,
        ),
    }


def cnn(pool: Layer, side: int) -> Layer:
    """The network of `dp.models.cnn`, as a chain."""
    flat = (side // 4) ** 2 * 64
    convolutions = [
        bp.convolution(1, 32),
        bp.relu(),
        pool,
        bp.convolution(32, 64),
        bp.relu(),
        pool,
        bp.flatten(),
    ]
    return bp.chain([*convolutions, bp.affine(flat, 128), bp.relu(), bp.affine(128, 10)])


def pooling_by_reduce_window() -> Layer:
    """Max pooling as `lax` has it, for its forward pass."""
    window = (1, 2, 2, 1)
    forward = lambda params, x: (
        lax.reduce_window(x, -jax.numpy.inf, lax.max, window, window, "VALID"),
        None,
    )
    return bp.max_pool()._replace(forward=forward)


def by_hand(net: Layer, x: jax.Array, labels: jax.Array) -> Callable[[], Any]:
    """Value and parameter gradients by the layers' own backward passes."""
    params, loss = net.init(jax.random.key(1)), bp.mean_over_examples(bp.softmax_cross_entropy())
    jitted = jax.jit(lambda params, x: bp.value_and_grads(net, loss, params, x, labels)[:2])
    return lambda: jitted(params, x)


def automatic(net: Layer, x: jax.Array, labels: jax.Array) -> Callable[[], Any]:
    """The same by `jax.grad` of the layers' forward passes."""
    params = net.init(jax.random.key(1))
    cost = lambda params, x: dp.losses.softmax_cross_entropy(
        net.forward(params, x)[0], labels
    ).mean()
    jitted = jax.jit(jax.value_and_grad(cost))
    return lambda: jitted(params, x)
