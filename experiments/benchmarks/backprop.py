"""Compare hand-written backward passes with `jax.grad` of the same network.

Measured is one jitted call of value and parameter gradients. Targets: for an MLP of
784-1024-1024-10 at most 1.05 of the time of `jax.grad`; for a CNN with two poolings at most 0.5 of
`jax.grad` through `lax.reduce_window`, and at most 1.0 of `jax.grad` of the same forward functions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import diffprog as dp
from diffprog.backprop import Layer
from experiments.benchmarks.harness import Comparison, compare

BATCH = 64
bp = dp.backprop


def main(fast: bool) -> dict[str, Comparison]:
    """Compare an MLP and a CNN."""
    widths, side, rounds = ((16, 8, 8, 10), 8, 2) if fast else ((784, 1024, 1024, 10), 28, 40)
    key = jax.random.key(0)
    labels = jax.random.randint(key, (BATCH,), 0, 10)
    vectors = jax.random.uniform(key, (BATCH, widths[0]))
    images = jax.random.uniform(key, (BATCH, side, side, 1))
    layers = [bp.affine(*widths[:2]), bp.relu(), bp.affine(*widths[1:3]), bp.relu()]
    mlp = bp.chain([*layers, bp.affine(*widths[2:])])
    fast_cnn, plain_cnn = cnn(bp.max_pool(), side), cnn(reduce_window_pool(), side)
    cases = {
        f"MLP {'-'.join(map(str, widths))}": (mlp, mlp, vectors),
        f"CNN on {side} x {side}, reduce_window": (fast_cnn, plain_cnn, images),
        f"CNN on {side} x {side}, fast layers": (fast_cnn, fast_cnn, images),
    }
    return {
        name: compare(
            {"by hand": by_hand(net, x, labels), "jax.grad": autodiff(baseline, x, labels)},
            baseline="jax.grad",
            rounds=rounds,
        )
        for name, (net, baseline, x) in cases.items()
    }


def cnn(pool: Layer, side: int) -> Layer:
    """Return the network of `dp.models.cnn` as a chain of layers."""
    first = [bp.convolution(1, 32), bp.relu(), pool]
    second = [bp.convolution(32, 64), bp.relu(), pool, bp.flatten()]
    dense = [bp.affine((side // 4) ** 2 * 64, 128), bp.relu(), bp.affine(128, 10)]
    return bp.chain([*first, *second, *dense])


def reduce_window_pool() -> Layer:
    """Max pooling with the forward pass of `lax.reduce_window`."""
    window = (1, 2, 2, 1)

    def forward(params: Any, x: jax.Array) -> tuple[jax.Array, None]:
        return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID"), None

    return bp.max_pool()._replace(forward=forward)


def by_hand(net: Layer, x: jax.Array, labels: jax.Array) -> Callable[[], Any]:
    """Compute value and parameter gradients by the layers' backward passes."""
    params, loss = net.init(jax.random.key(1)), bp.mean_over_examples(bp.softmax_cross_entropy())
    jitted = jax.jit(lambda params, x: bp.value_and_grads(net, loss, params, x, labels)[:2])
    return lambda: jitted(params, x)


def autodiff(net: Layer, x: jax.Array, labels: jax.Array) -> Callable[[], Any]:
    """Compute the same by `jax.grad` of the layers' forward passes."""
    params = net.init(jax.random.key(1))

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return dp.losses.softmax_cross_entropy(net.forward(params, x)[0], labels).mean()

    jitted = jax.jit(jax.value_and_grad(loss))
    return lambda: jitted(params, x)
