"""Training by `dp.training.fit` against a bare optax loop over the same network, against torch, and with checkpoints.

Four cases: an MLP and a CNN, on the digits and on 60,000 random images of 28 x 28; all with Adam, in batches of 64.

    fit                       at most 1.05 of the bare loop on digits, 1.03 on 60,000 images
    with metrics              the same, measured on held-out data after every epoch
    with checkpoints          at most 1.05 of fit without them, saving after every epoch of 60,000 images
    torch, eager              fit takes at most 0.75 of its time on MLPs and 0.95 on CNNs; where it is installed, on one thread
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
    compared = {name: _case(*case, fast=fast) for name, case in cases(fast).items()}
    large = list(cases(fast).items())[2:]
    return compared | {
        f"{name}, 4 epochs, with checkpoints": _saved(*case, fast=fast) for name, case in large
    }


def _case(
    model: dp.models.Model, x: jax.Array, y: jax.Array, epochs: int, rounds: int, *, fast: bool
) -> Comparison:
    params, epochs, rounds = (
        model.init(jax.random.key(0)),
        1 if fast else epochs,
        1 if fast else rounds,
    )
    steps = epochs * len(x) // BATCH
    order = jnp.concatenate(
        [jax.random.permutation(key, len(x)) for key in jax.random.split(jax.random.key(2), epochs)]
    )
    host, scan = bare_loops(model, params, x, y, order[: steps * BATCH].reshape(-1, BATCH))
    contenders = {
        "fit": lambda: _fitted(model, params, x, y, steps=steps),
        "fit, with metrics": lambda: _fitted(
            model,
            params,
            x,
            y,
            steps=steps,
            held_out=(x[:256], y[:256]),
            metrics={"right": _right(model)},
        ),
        "Python loop": host,
        "lax.scan": scan,
    }
    return compare(
        contenders | baselines.torch_training(params, x, y, BATCH, steps),
        baseline="Python loop",
        rounds=rounds,
    )


def _saved(
    model: dp.models.Model, x: jax.Array, y: jax.Array, epochs: int, rounds: int, *, fast: bool
) -> Comparison:
    params, folder = model.init(jax.random.key(0)), Path(tempfile.mkdtemp())
    steps = 4 * len(x) // BATCH

    def saved() -> Any:
        shutil.rmtree(folder)
        found = _fitted(model, params, x, y, steps=steps, checkpoint=folder)
        if not list(folder.glob("[0-9]*")):
            raise RuntimeError("nothing was saved")
        return found

    contenders: dict[str, Callable[[], Any]] = {
        "fit": lambda: _fitted(model, params, x, y, steps=steps),
        "with checkpoints": saved,
    }
    return compare(contenders, baseline="fit", rounds=1 if fast else rounds)


def _fitted(model: dp.models.Model, params: Any, x: jax.Array, y: jax.Array, **options: Any) -> Any:
    loss = lambda params, x, y: dp.losses.softmax_cross_entropy(model.apply(params, x), y)
    found = dp.training.fit(
        loss,
        params,
        (x, y),
        optimizer=OPTIMIZER,
        batch_size=BATCH,
        key=jax.random.key(3),
        progress=False,
        **options,
    )
    return found.params


def _right(model: dp.models.Model) -> Callable[..., jax.Array]:
    return lambda params, x, y: model.apply(params, x).argmax(-1) == y
