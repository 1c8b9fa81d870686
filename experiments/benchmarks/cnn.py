"""Compare the CNN of `dp.models` with the same network in plain `jax.lax`.

The baseline uses `lax.conv_general_dilated` and `lax.reduce_window`. Measured is one jitted call of
value and parameter gradients. Target: at most 0.6 of the baseline.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import diffprog as dp
from experiments.benchmarks.harness import Comparison, compare


def main(fast: bool) -> dict[str, Comparison]:
    """Compare on 8 x 8 and on 28 x 28 images."""
    sizes = [(8, 4)] if fast else [(8, 64), (28, 64)]
    return {
        f"{side} x {side}, batch {batch}": _case(side, batch, rounds=3 if fast else 40)
        for side, batch in sizes
    }


def _case(side: int, batch: int, rounds: int) -> Comparison:
    model = dp.models.cnn((side, side, 1))
    params = model.init(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (batch, side, side, 1))
    y = jax.random.randint(jax.random.key(2), (batch,), 0, 10)

    def gradient(apply: Any) -> Any:
        loss = lambda params, x: dp.losses.softmax_cross_entropy(apply(params, x), y).mean()
        jitted = jax.jit(jax.value_and_grad(loss))
        return lambda: jitted(params, x)

    contenders = {"models.cnn": gradient(model.apply), "plain lax": gradient(apply_in_lax)}
    return compare(contenders, baseline="plain lax", rounds=rounds)


def apply_in_lax(params: Any, x: jax.Array) -> jax.Array:
    """Apply the same network, written in `jax.lax`."""
    for k in (1, 2):
        x = lax.conv_general_dilated(
            x,
            params[f"conv{k}"]["weight"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + params[f"conv{k}"]["bias"])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.relu(
        x.reshape(len(x), -1) @ params["affine3"]["weight"].T + params["affine3"]["bias"]
    )
    return x @ params["logits"]["weight"].T + params["logits"]["bias"]
