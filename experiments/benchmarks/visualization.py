"""Compare 64 images for 64 units of a convolution with as many bare gradients of the same network.

The networks have two convolutions (32-64 channels) or three (32-64-64) on 32 x 32 x 3 images; the
units are those of the last one. `visualize` optimizes Fourier images of decorrelated colour, with
the default transforms, by Adam. The baseline is a lower bound for computing the whole layer: one
jitted `value_and_grad` per step of the mean of each image's channel, without transforms, colours
or updates. Target: 0.95 of it, also for an unmodified flax network against its own bare gradients.
lucent, where it is installed, should take four times as long as documented, and twice as long with
a hand-written objective of the batch.
"""

from collections.abc import Callable
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp

import diffprog as dp
from diffprog.backprop import affine, convolution, flatten, relu
from experiments.benchmarks.baselines import lucent
from experiments.benchmarks.harness import Comparison, compare

vis = dp.visualization

SHAPE, NETWORKS, UNITS, STEPS = (32, 32, 3), ((32, 64), (32, 64, 64)), 64, 256


class FlaxNetwork(flax.linen.Module):
    """The same network in flax."""

    channels: tuple[int, ...]

    @flax.linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits of images."""
        for number, channels in enumerate(self.channels, 1):
            h = flax.linen.Conv(channels, (3, 3))(x)
            x = jax.nn.relu(dp.tap(h, f"conv{number}"))
        return flax.linen.Dense(10)(x.reshape(len(x), -1))


def main(fast: bool) -> dict[str, Comparison]:
    """Compare `visualize` with bare gradients, for each network in diffprog and in flax."""
    steps, rounds = (2, 1) if fast else (STEPS, 5)
    key, comparisons = jax.random.key(0), {}
    for channels in NETWORKS:
        model, flax_network = _make_model(channels), FlaxNetwork(channels)
        networks = {
            "diffprog's layers": (model.apply, model.init(key)),
            "unmodified flax": (
                flax_network.apply,
                flax_network.init(key, jnp.zeros((1, *SHAPE))),
            ),
        }
        for name, (apply, params) in networks.items():
            others = lucent(channels, SHAPE[0], UNITS, steps)
            comparisons[f"{len(channels)} convolutions, {name}"] = _case(
                apply, params, f"conv{len(channels)}", steps, rounds, others
            )
    return comparisons


def _make_model(channels: tuple[int, ...]) -> dp.models.Model:
    layers: list[Any] = []
    for number, (inputs, outputs) in enumerate(zip((3, *channels), channels, strict=False), 1):
        layers += [(f"conv{number}", convolution(inputs, outputs)), (f"hidden{number}", relu())]
    return dp.models.sequential(
        [*layers, ("flat", flatten()), ("logits", affine(32 * 32 * channels[-1], 10))], shape=SHAPE
    )


def _case(
    apply: Any,
    params: Any,
    node: str,
    steps: int,
    rounds: int,
    others: dict[str, Callable[[], Any]],
) -> Comparison:
    f, bare = dp.program(apply, params), dp.program(apply, params, fast_gradients=False)
    data = jax.random.uniform(jax.random.key(1), (64, *SHAPE))
    image, units = vis.fourier(SHAPE, colors=vis.decorrelated(data)), jnp.arange(UNITS)

    def visualize() -> jax.Array:
        result = vis.visualize(
            f,
            vis.channel(node, units),
            image,
            key=jax.random.key(2),
            steps=steps,
            transforms=vis.default_transforms(),
            progress=False,
        )
        return result.images

    return compare(
        {
            "visualize": visualize,
            f"{steps} bare gradients": _bare_gradients(bare, node, data, units, steps),
            **others,
        },
        baseline=f"{steps} bare gradients",
        rounds=rounds,
    )


def _bare_gradients(
    f: dp.Program, node: str, x: jax.Array, units: jax.Array, steps: int
) -> Callable[[], Any]:
    def loss(x: jax.Array, units: jax.Array) -> jax.Array:
        _, values = dp.nodes.read(f, [node])(x)
        return jnp.take_along_axis(values[node].mean((1, 2)), units[:, None], axis=1).sum()

    gradient = jax.jit(jax.value_and_grad(loss))
    return lambda: [jax.block_until_ready(gradient(x, units)) for _ in range(steps)][-1]
