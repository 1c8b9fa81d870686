"""Compare `dp.training.fit` with a hand-written optax loop, with torch, and with checkpoints.

Four cases: an MLP and a CNN, on the digits and on 60,000 random images of 28 x 28, all with Adam
and minibatches of 64. Targets:

    fit                at most 1.05 of the hand-written loop on digits, 1.03 on 60,000 images
    with metrics       the same, evaluated on held-out data after every epoch
    with checkpoints   at most 1.05 of fit without them, saving after every epoch of 60,000 images
    torch, eager       fit takes at most 0.75 of its time on MLPs and 0.95 on CNNs (one thread)

torch is measured where it is installed.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import diffprog as dp
from experiments.benchmarks import baselines
from experiments.benchmarks.harness import Comparison, compare
from experiments.benchmarks.loops import BATCH, OPTIMIZER, bare_loops, cases


def main(fast: bool) -> dict[str, Comparison]:
    """Compare in every case."""
    comparisons = {name: _case(*case, fast=fast) for name, case in cases(fast).items()}
    for name, (model, x, y, _, rounds) in list(cases(fast).items())[2:]:
        comparisons[f"{name}, 4 epochs, with checkpoints"] = _checkpoint_case(
            model, x, y, 1 if fast else rounds
        )
    return comparisons


def _case(
    model: dp.models.Model, x: jax.Array, y: jax.Array, epochs: int, rounds: int, *, fast: bool
) -> Comparison:
    params = model.init(jax.random.key(0))
    epochs, rounds = (1, 1) if fast else (epochs, rounds)
    steps = epochs * len(x) // BATCH
    order = jnp.concatenate(
        [jax.random.permutation(key, len(x)) for key in jax.random.split(jax.random.key(2), epochs)]
    )
    batches = order[: steps * BATCH].reshape(-1, BATCH)
    is_correct = lambda params, x, y: model.apply(params, x).argmax(-1) == y
    metrics: Any = {"held_out": (x[:256], y[:256]), "metrics": {"accuracy": is_correct}}
    contenders = {
        "fit": lambda: _fit(model, params, x, y, steps=steps),
        "fit, with metrics": lambda: _fit(model, params, x, y, steps=steps, **metrics),
        **bare_loops(model, params, x, y, batches),
        **baselines.torch_training(params, x, y, BATCH, steps),
    }
    return compare(contenders, baseline="Python loop", rounds=rounds)


def _checkpoint_case(model: dp.models.Model, x: jax.Array, y: jax.Array, rounds: int) -> Comparison:
    params, folder = model.init(jax.random.key(0)), Path(tempfile.mkdtemp())
    steps = 4 * len(x) // BATCH

    def with_checkpoints() -> Any:
        shutil.rmtree(folder)
        trained = _fit(model, params, x, y, steps=steps, checkpoint=folder)
        if not list(folder.glob("[0-9]*")):
            raise RuntimeError("no checkpoint was saved")
        return trained

    contenders: dict[str, Callable[[], Any]] = {
        "fit": lambda: _fit(model, params, x, y, steps=steps),
        "with checkpoints": with_checkpoints,
    }
    return compare(contenders, baseline="fit", rounds=rounds)


def _fit(model: dp.models.Model, params: Any, x: jax.Array, y: jax.Array, **options: Any) -> Any:
    loss = lambda params, x, y: dp.losses.softmax_cross_entropy(model.apply(params, x), y)
    fit = dp.training.fit(
        loss,
        params,
        (x, y),
        optimizer=OPTIMIZER,
        batch_size=BATCH,
        key=jax.random.key(3),
        progress=False,
        **options,
    )
    return fit.params
