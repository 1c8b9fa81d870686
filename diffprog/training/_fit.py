"""Training: descent on parameters, over minibatches, looked at after every epoch.

    θ_{k+1} = update(θ_k, d/dθ J(θ_k, batch_k)),      J = mean of the loss over the batch

The loop is the engine's. Here stands what its arguments are made of: a cost of the user's loss (`_cost`), what its steps see of the data
(`_data`), where the arrays lie (`_placing`), what is looked at between epochs (`_watched`) and what is saved (`_checkpoint`).
"""

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
from diffprog.training._checkpoint import Checkpoints, checksum, identity
from diffprog.training._data_source import arrays, from_arrays, from_iterable
from diffprog.training._evaluation import watched
from diffprog.training._feed import Place
from diffprog.training._loop import Ending, train
from diffprog.training._sharding import kept_in_place, placed
from diffprog.training._state import Standing
from diffprog.training._step_loss import Loss, Ways, of_batch, of_step, on_batches


class Fit(NamedTuple):
    """What training comes back with.

    Attributes:
        params: the last parameters; with `patience` the best, as measured on the held-out data.
        history: "cost", (steps,), the cost of every step on its own batch; every other name (epochs,), a metric on the held-out data
            after each epoch, "loss" among them.
        steps: updates made in all.
        state: of the engine after them, to go on from.
        best: the epoch, counted from 1, whose parameters those are; None for the last.
        ending: "steps" when all were taken, "until" when the cost no longer changed, "patience" when the held-out loss no longer fell,
            "nonfinite" when the cost was NaN or infinite, "interrupted" by the keyboard.
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
    """Train: descend on the mean loss of minibatches.

    Args:
        loss: (params, *batch) -> a float scalar, or one float for each example; with an argument `key`, it is given one at each step.
        params: the start, a pytree of finite float arrays; or a `descent.State`, such as `fit.state`, to go on from it.
        data: arrays with leading axis example, such as (x, y), or pytrees of them. Or an iterable of such tuples, each a batch, for data
            larger than memory, which is read ahead while steps are computed and begun anew in each epoch; or a function epoch -> iterable,
            counted from 0, for another order in each. Of several processes each gives its own part of every batch.
        key: a random key: for the order of the examples and the keys of the loss.
        optimizer: any optax optimizer, with clipping and schedules composed by `optax.chain`; Adam with rate 0.001 by default.
        batch_size: B, from 1 (stochastic descent) to all examples (full descent), the default; not for an iterable.
        epochs: how often each example is seen; not with `steps`.
        steps: how many updates; not with `epochs`.
        until: stop before a step whose cost differs from that of the step before by no more than this, lecture 004's rule.
        held_out: arrays as `data`, to measure on after each epoch.
        metrics: (params, *held_out) -> a number or one for each example, by name; beside the loss, which is always measured.
        patience: stop when the held-out loss has not fallen for so many epochs, and return the parameters where it was least.
        weights: (examples,), how much each example counts, >= 0.
        accumulate: see the batch in so many parts, one after another, for as much less memory.
        remat: keep no intermediate values for the backward pass.
        compute_dtype: such as `jnp.bfloat16`, for the forward and backward pass; parameters and means keep theirs.
        mesh: devices among which every batch is divided, from `distributed.mesh()`; the result is that of one device, but for rounding.
        partition: (path, shape and dtype) -> PartitionSpec, how parameters are divided too, with paths such as "affine1/weight"; what the
            optimizer keeps for a parameter lies as the parameter does. By default each device has them all.
        checkpoint: a folder to save to while training, and to go on from, if the run was killed: it ends as if it had not been, to the bit.
            Needs the extra `checkpoint`. What the loss, the optimizer and the metrics say is not looked at: they have to be the same.
        progress: a bar with cost and examples per second; None shows it for long runs on a terminal.

    Returns:
        A `Fit`. A cost that is not finite and Ctrl-C end it, and raise nothing.

    Raises:
        TypeError, ValueError: arguments that are none of these: data that are empty or of several lengths, a batch size larger than
            they are, both or neither of epochs and steps, metrics or patience without held-out data, ...; a checkpoint of another
            start, of other data, batch size or key, or one that cannot be read.
        ImportError: a checkpoint without orbax.

    >>> x, y = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([1.0, 3.0, 5.0])
    >>> squares = lambda params, x, y: ((x @ params["w"] + params["b"] - y) ** 2)
    >>> start = {"w": jnp.zeros(1), "b": jnp.zeros(())}
    >>> fitted = fit(squares, start, (x, y), optimizer=optax.sgd(0.2), batch_size=3, epochs=200, key=jax.random.key(0))
    >>> fitted.params["w"].round(2), fitted.params["b"].round(2)
    (Array([2.], dtype=float32), Array(1., dtype=float32))
    """
    _validation.function("loss", loss)
    _validation.key("key", key)
    if (epochs is None) == (steps is None):
        raise ValueError(
            f"epochs or steps must be given, and not both, got epochs={epochs} and steps={steps}"
        )
    mesh, until = (
        _mesh(mesh, partition),
        None if until is None else _validation.number("until", until, low=0),
    )
    if not isinstance(remat, bool):
        raise TypeError(f"remat must be True or False, got {remat!r}")
    ways = Ways(
        _validation.integer("accumulate", accumulate, low=1), remat, _dtype(compute_dtype), mesh
    )
    look = watched(
        loss, None if held_out is None else arrays("held_out", held_out), metrics, patience
    )
    order_key, loss_key = jax.random.split(key)
    if isinstance(data, tuple):
        seen = from_arrays(
            data,
            weights,
            batch_size,
            epochs,
            steps,
            order_key,
            ways,
            by_epoch=bool(look.measures) or checkpoint is not None,
        )
    else:
        seen = from_iterable(data, weights, batch_size, epochs, steps, ways)
    rule = descent.require_optimizer(optax.adam(1e-3) if optimizer is None else optimizer)
    cost = of_step(of_batch(loss, weights is not None, ways), seen.batch_of, placed(mesh, loss_key))
    engine = descent.descent(cost, on_batches(rule, seen.batch_of))
    state = descent.init_state(engine, params, name="params")
    look.check(state.variable)
    engine, state = (
        (engine, state) if mesh is None else kept_in_place(engine, state, mesh, partition)
    )
    # Opened here, once, and not for every epoch.
    engine = descent.Descent(*(program(part, fast_gradients=False) for part in engine))
    look, start = look._replace(held_out=placed(mesh, look.held_out)), Standing(Place(), state)
    if checkpoint is None:
        standing, ending = train(engine, start, seen.feed, look, None, until, progress)
    else:
        keys = {"data": jax.random.key_data(key).tolist()}
        with Checkpoints(
            checkpoint,
            identity(state, key=keys, data=seen.identity(), start={"checksum": checksum(state)}),
        ) as checkpoints:
            standing, ending = train(
                engine, checkpoints.restored(start), seen.feed, look, checkpoints, until, progress
            )
    best = standing.best
    params = (standing.state if best is None else best.state).variable
    return Fit(
        params,
        standing.history(),
        standing.place.steps,
        standing.state,
        best and best.epoch,
        ending,
    )


def _mesh(mesh: Any, partition: Any) -> Mesh | None:
    if mesh is None and partition is not None:
        raise ValueError("partition must be None without a mesh")
    if partition is not None:
        _validation.function("partition", partition)
    return None if mesh is None else distributed.validate_mesh(mesh)


def _dtype(dtype: Any) -> Any:
    try:
        if dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            return dtype
    except TypeError:
        pass
    raise TypeError(f"compute_dtype must be a float dtype, got {dtype!r}")
