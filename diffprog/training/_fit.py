"""Training: gradient descent on parameters over minibatches, with evaluation after each epoch.

    θ_{k+1} = update(θ_k, d/dθ J(θ_k, batch_k)),      J = mean of the loss over the batch

θ are the parameters, and `update` is that of an optax optimizer. `diffprog.descent` does the steps.
`fit` builds their inputs: a cost J from the user's loss (`_step_loss`), batches from the data
(`_sampler`, `_prefetch`) and the sharding of the arrays. `_loop` runs the steps, and between them
evaluates metrics (`_evaluation`) and saves checkpoints (`_checkpoint`).
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from diffprog import _validation, descent, distributed
from diffprog.distributed import Partition
from diffprog.program import program
from diffprog.training._checkpoint import Checkpoints, make_fingerprint
from diffprog.training._data_source import DataPosition, validate_arrays
from diffprog.training._evaluation import make_evaluator
from diffprog.training._loop import Ending, train
from diffprog.training._prefetch import from_iterable
from diffprog.training._sampler import from_arrays
from diffprog.training._state import TrainingState
from diffprog.training._step_loss import ComputeOptions, Loss, pass_batch_as_x, step_cost


class Fit(NamedTuple):
    """Result of training: parameters, history and the reason why it ended.

    Attributes:
        params: the last parameters; with `patience`, those with the lowest held-out loss.
        history: dict with "cost", (steps,), the cost of each step on its batch; and, with held-out
            data, "loss" and each metric by its name, (epochs,), their values after each epoch.
        steps: total number of updates.
        state: parameters and optimizer state after the last step; pass it as `params` to another
            `fit` to continue.
        best: epoch of `params`, counted from 1; None if they are the last parameters.
        ending: "steps" if all steps were taken, "until" if the cost no longer changed, "patience"
            if the held-out loss no longer fell, "nonfinite" if the cost was NaN or infinite,
            "interrupted" by the keyboard.
    """

    params: Any
    history: dict[str, Float[np.ndarray, "..."]]
    steps: int
    state: descent.State
    best: int | None
    ending: Ending


def fit(
    loss: Loss,
    params: Any,
    data: tuple[Any, ...] | Iterable[tuple[Any, ...]] | Callable[[int], Iterable[tuple[Any, ...]]],
    *,
    key: jax.Array,
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    until: float | None = None,
    held_out: tuple[Any, ...] | None = None,
    metrics: Mapping[str, Callable[..., Any]] | None = None,
    patience: int | None = None,
    weights: Float[Array, "examples"] | None = None,
    accumulate: int = 1,
    remat: bool = False,
    compute_dtype: Any = None,
    mesh: Mesh | None = None,
    partition: Partition | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Fit:
    """Train parameters by gradient descent on the mean loss of minibatches.

    Args:
        loss: `loss(params, *batch)`, a float scalar or one float per example. If it has an argument
            `key`, it gets a new PRNG key in each step.
        params: initial parameters, a pytree of finite float arrays; or a `descent.State` such as
            `fit.state`, to continue from it.
        data: tuple of arrays such as (x, y), or of pytrees of arrays, whose leading axis is the
            example. For data larger than memory, an iterable of such tuples, each a batch, which
            is read ahead and iterated again in each epoch; or a function epoch -> iterable, with
            epochs counted from 0. With several processes, each gives its own part of every batch.
        key: PRNG key, for the order of the examples and for the loss.
        optimizer: any optax optimizer; by default `optax.adam(1e-3)`.
        batch_size: from 1 to the number of examples, the default; None with an iterable.
        epochs: number of passes through the data; exclusive with `steps`.
        steps: number of updates; exclusive with `epochs`.
        until: stop when the costs of two consecutive steps differ by at most this.
        held_out: tuple of arrays like `data`, on which the loss is evaluated after each epoch.
        metrics: dict from names to functions `metric(params, *held_out)`, evaluated with the loss.
            Each returns a number, or one number per example, which are averaged.
        patience: stop if the held-out loss has not fallen for this many epochs, and return the
            parameters with the lowest.
        weights: (examples,), weight >= 0 of each example in the mean.
        accumulate: number of parts in which a batch is computed one after another, to save memory.
        remat: whether to recompute intermediate values in the backward pass, to save memory.
        compute_dtype: dtype of the forward and backward pass, such as `jnp.bfloat16`; parameters
            and means keep theirs.
        mesh: devices among which each batch is divided, from `distributed.mesh()`. The result is
            that of one device up to rounding.
        partition: `partition(path, shape_and_dtype) -> PartitionSpec`, the sharding of each
            parameter, given its path such as "affine1/weight"; the optimizer state is sharded
            alike. By default parameters are replicated.
        checkpoint: folder in which to save the run, and from which to continue it: a run that was
            killed ends with the same bits as one that was not. Needs the extra `checkpoint`. Code
            is not compared: use the same loss, optimizer and metrics.
        progress: whether to show a progress bar; None shows it for long runs on a terminal.

    Returns:
        The result as a `Fit`. A nonfinite cost or Ctrl-C ends the training early, without an error.

    Raises:
        TypeError, ValueError: an invalid argument; data that are empty or of different lengths;
            both or neither of `epochs` and `steps`; `metrics` or `patience` without `held_out`; a
            checkpoint that is damaged, or of other initial parameters, data, batch size or key.
        ImportError: `checkpoint` without orbax installed.

    >>> x, y = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([1.0, 3.0, 5.0])
    >>> squares = lambda params, x, y: (x @ params["w"] + params["b"] - y) ** 2
    >>> start = {"w": jnp.zeros(1), "b": jnp.zeros(())}
    >>> fitted = fit(
    ...     squares, start, (x, y), optimizer=optax.sgd(0.2), epochs=200, key=jax.random.key(0)
    ... )
    >>> fitted.params["w"].round(2), fitted.params["b"].round(2)
    (Array([2.], dtype=float32), Array(1., dtype=float32))
    """
    _validation.function("loss", loss)
    _validation.key("key", key)
    if (epochs is None) == (steps is None):
        raise ValueError(
            f"exactly one of epochs or steps must be given, got epochs={epochs} and steps={steps}"
        )
    if not isinstance(remat, bool):
        raise TypeError(f"remat must be True or False, got {remat!r}")
    if partition is not None:
        _validation.function("partition", partition)
        if mesh is None:
            raise ValueError("partition must be None without a mesh")
    mesh = None if mesh is None else distributed.validate_mesh(mesh)
    until = None if until is None else _validation.number("until", until, low=0)
    accumulate = _validation.integer("accumulate", accumulate, low=1)
    options = ComputeOptions(accumulate, remat, _validate_dtype(compute_dtype), mesh)
    held_out = None if held_out is None else validate_arrays("held_out", held_out)
    evaluator = make_evaluator(loss, held_out, metrics, patience)
    order_key, loss_key = jax.random.split(key)
    if isinstance(data, tuple):
        split_at_epochs = held_out is not None or checkpoint is not None
        source = from_arrays(
            data,
            weights,
            batch_size,
            epochs,
            steps,
            order_key,
            options,
            split_at_epochs=split_at_epochs,
        )
    else:
        source = from_iterable(data, weights, batch_size, epochs, steps, mesh)
    if mesh is not None:
        loss_key = distributed.replicate(mesh, loss_key)
        evaluator = evaluator._replace(held_out=distributed.replicate(mesh, held_out))
    optimizer = descent.require_optimizer(optax.adam(1e-3) if optimizer is None else optimizer)
    cost = step_cost(loss, source, weights is not None, options, loss_key)
    engine = descent.descent(cost, pass_batch_as_x(optimizer, source))
    state = descent.init_state(engine, params, name="params")
    evaluator.validate_metrics(state.variable)
    if mesh is not None:
        engine, state = _shard(engine, state, mesh, partition)
    # Decompose the closures once here, not again for every segment.
    engine = descent.Descent(*(program(part, fast_gradients=False) for part in engine))
    training_state = TrainingState(DataPosition(), state, costs=(), metrics={})
    if checkpoint is None:
        training_state, ending = train(
            engine, training_state, source, evaluator, None, until, progress
        )
    else:
        key_data = jax.random.key_data(key).tolist()
        fingerprint = make_fingerprint(state, key=key_data, **source.fingerprint())
        with contextlib.closing(Checkpoints(checkpoint, fingerprint)) as checkpoints:
            training_state = checkpoints.restore(training_state)
            training_state, ending = train(
                engine, training_state, source, evaluator, checkpoints, until, progress
            )
    best = training_state.best
    return Fit(
        params=(training_state.state if best is None else best.state).variable,
        history=training_state.history(),
        steps=training_state.position.steps,
        state=training_state.state,
        best=None if best is None else best.epoch,
        ending=ending,
    )


def _shard(
    engine: descent.Descent, state: descent.State, mesh: Mesh, partition: Partition | None
) -> tuple[descent.Descent, descent.State]:
    """Shard parameters and optimizer state by a partition rule; steps keep the sharding.

    Returns the engine, which computes the training steps, and the sharded state.
    """
    shardings = distributed.partition_shardings(mesh, partition, state.variable)
    params = jax.tree.map(distributed.put, state.variable, shardings)
    state = descent.State(params, distributed.match_shardings(params, state.optimizer))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)

    def step(state: descent.State, x: Any) -> tuple[descent.State, descent.Info]:
        state, info = engine.step(state, x)
        return jax.lax.with_sharding_constraint(state, shardings), info

    return descent.Descent(engine.init, step), state


def _validate_dtype(dtype: Any) -> Any:
    try:
        if dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            return dtype
    except TypeError:
        pass
    raise TypeError(f"compute_dtype must be a float dtype, got {dtype!r}")
