"""Making 64 images for 64 units of a convolution, against as many bare gradients of the same network.

The network has three convolutions, 32-64-64 channels, on 32 x 32 x 3 images; the images are Fourier images of decorrelated colour, seen
through the default transforms and moved by Adam. What they are held against is the limit for whoever computes the whole layer: one jitted
`value_and_grad` of the mean of each image's channel, as often as there are steps, of the same network and with no transforms, colours, or
updates. Wanted: 0.35 of it with slicing, 0.95 without, and the same of an unmodified flax network against its own bare gradients.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp

import diffprog as dp
from diffprog.backprop import affine, convolution, flatten, relu
from experiments.benchmarks.harness import Comparison, compare

vis = dp.visualization

SHAPE, CHANNELS, UNITS, STEPS = (32, 32, 3), (32, 64, 64), 64, 256
NODE = "conv3"


class Flax(flax.linen.Module):
    """The same network as flax users write it."""

    @flax.linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images."""
        for number, channels in enumerate(CHANNELS, 1):
            h = flax.linen.Conv(channels, (3, 3))(x)
            x = jax.nn.relu(dp.tap(h, f"conv{number}"))
        return flax.linen.Dense(10)(x.reshape(len(x), -1))


def main(fast: bool) -> dict[str, Comparison]:
    """Compare `visualize` with bare gradients, of both networks."""
    layers: list[Any] = []
    for number, (inputs, outputs) in enumerate(zip((3, *CHANNELS), CHANNELS, strict=False), 1):
        layers += [(f"conv{number}", convolution(inputs, outputs)), (f"hidden{number}", relu())]
    model = dp.models.sequential([*layers, ("flat", flatten()), ("logits", affine(32 * 32 * CHANNELS[-1], 10))], shape=SHAPE)
    unmodified = Flax()
    steps, rounds = (2, 1) if fast else (STEPS, 5)
    return {
        "diffprog's layers": _case(model.apply, model.init(jax.random.key(0)), steps, rounds),
        "unmodified flax": _case(unmodified.apply, unmodified.init(jax.random.key(0), jnp.zeros((1, *SHAPE))), steps, rounds),
    }


def _case(apply: Any, params: Any, steps: int, rounds: int) -> Comparison:
    f, bare = dp.program(apply, params), dp.program(apply, params, fast_gradients=False)
    data = jax.random.uniform(jax.random.key(1), (64, *SHAPE))
    image, units = vis.fourier(SHAPE, colors=vis.decorrelated(data)), jnp.arange(UNITS)

    def made(*, slicing: bool) -> jax.Array:
        seen = vis.visualize(
            f,
            vis.channel(NODE, units),
            image,
            key=jax.random.key(2),
            steps=steps,
            transforms=vis.default_transforms(),
            slicing=slicing,
            progress=False,
        )
        return seen.images

    return compare(
        {
            "visualize": functools.partial(made, slicing=True),
            "visualize without slicing": functools.partial(made, slicing=False),
            f"{steps} bare gradients": _bare_gradients(bare, data, units, steps),
        },
        baseline=f"{steps} bare gradients",
        rounds=rounds,
    )


def _bare_gradients(f: dp.Program, x: jax.Array, units: jax.Array, steps: int) -> Callable[[], Any]:
    def cost(x: jax.Array, units: jax.Array) -> jax.Array:
        _, values = dp.nodes.read(f, [NODE])(x)
        return jnp.take_along_axis(values[NODE].mean((1, 2)), units[:, None], axis=1).sum()

    gradient = jax.jit(jax.value_and_grad(cost))
    return lambda: [jax.block_until_ready(gradient(x, units)) for _ in range(steps)][-1]
