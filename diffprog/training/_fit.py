"""Training: descent on parameters, over minibatches, looked at after every epoch.

    θ_{k+1} = update(θ_k, d/dθ J(θ_k, batch_k)),      J = mean of the loss over the batch

The loop is the engine's (`descent.run`), an epoch at a time. Between two epochs stands what one wants to know while it runs: metrics on
held-out data, the best parameters so far, a bar, and whether to stop. No step waits for any of it.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jaxtyping import Array, Float

from diffprog import descent, require
from diffprog.program import Program, program
from diffprog.training._batches import Batches, batches
from diffprog.training._cost import Loss, Ways, in_memory, of_batch, takes_key

Ending = Literal["steps", "until", "patience", "nonfinite", "interrupted"]

_STEPS_AT_ONCE = 1024


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
    data: tuple[Any, ...],
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
    progress: bool | None = None,
) -> Fit:
    """Train: descend on the mean loss of minibatches.

    Args:
        loss: (params, *batch) -> a float scalar, or one float for each example; with an argument `key`, it is given one at each step.
        params: the start, a pytree of finite float arrays; or a `descent.State`, such as `fit.state`, to go on from it.
        data: arrays with leading axis example, such as (x, y), or pytrees of them.
        key: a random key: for the order of the examples and the keys of the loss.
        optimizer: any optax optimizer, with clipping and schedules composed by `optax.chain`; Adam with rate 0.001 by default.
        batch_size: B, from 1 (stochastic descent) to all examples (full descent), the default.
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
        progress: a bar with cost and examples per second; None shows it for long runs on a terminal.

    Returns:
        A `Fit`. A cost that is not finite and Ctrl-C end it, and raise nothing.

    Raises:
        TypeError, ValueError: arguments that are none of these: data that are empty or of several lengths, a batch size larger than
            they are, both or neither of epochs and steps, metrics or patience without held-out data, ...

    >>> x, y = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([1.0, 3.0, 5.0])
    >>> squares = lambda params, x, y: ((x @ params["w"] + params["b"] - y) ** 2)
    >>> start = {"w": jnp.zeros(1), "b": jnp.zeros(())}
    >>> fitted = fit(squares, start, (x, y), optimizer=optax.sgd(0.2), batch_size=3, epochs=200, key=jax.random.key(0))
    >>> fitted.params["w"].round(2), fitted.params["b"].round(2)
    (Array([2.], dtype=float32), Array(1., dtype=float32))
    """
    require.function("loss", loss)
    require.key("key", key)
    data, held_out = _arrays("data", data), None if held_out is None else _arrays("held_out", held_out)
    measured = _metrics(loss, metrics, patience, held_out)
    order_key, loss_key = jax.random.split(key)
    plan = batches(data, batch_size, epochs, steps, order_key)
    ways = Ways(require.integer("accumulate", accumulate, low=1), bool(remat), _dtype(compute_dtype))
    if plan.size % ways.accumulate:
        raise ValueError(f"accumulate must divide the batch, {plan.size} examples, got {accumulate}")
    cost = in_memory(of_batch(loss, weights is not None, ways), data, _weights(weights, plan.examples), loss_key)
    engine = descent.descent(cost, optax.adam(1e-3) if optimizer is None else optimizer)
    until = None if until is None else require.number("until", until, low=0)
    watched = _Watched(measured, held_out, None if patience is None else require.integer("patience", patience, low=1))
    return _epoch_by_epoch(engine, params, plan, until, watched, progress)


class _Watched(NamedTuple):
    """What is looked at between epochs: measures of params on the held-out data, and how long the loss may not fall."""

    measures: dict[str, Program]
    held_out: tuple[Any, ...] | None
    patience: int | None

    def of(self, params: Any) -> dict[str, float]:
        """Each measure, a mean over the examples where it is one for each."""
        return {name: float(jnp.mean(_measured(measure, params, self.held_out))) for name, measure in self.measures.items()}


@jax.jit
def _measured(measure: Program, params: Any, held_out: tuple[Any, ...]) -> Any:
    return measure(params, *held_out)


def _epoch_by_epoch(
    engine: descent.Descent, params: Any, plan: Batches, until: float | None, watched: _Watched, progress: bool | None
) -> Fit:
    state, best_state, best, least = params, None, None, np.inf
    costs: list[np.ndarray] = []
    measured: list[dict[str, float]] = []
    done: int = 0
    ending: Ending = "steps"
    with tqdm.tqdm(total=plan.steps, disable=None if progress is None else not progress, delay=0 if progress else 1) as bar:
        while done < plan.steps and ending == "steps":
            last, epoch = _next_look(plan, done, bool(watched.measures)), len(measured) + 1
            began = time.perf_counter()
            try:
                result = descent.run(engine, state, plan.between(done, last), until=until, progress=False)
            except KeyboardInterrupt:
                ending = "interrupted"
                break
            if until is not None and costs and abs(result.costs[0] - costs[-1][-1]) <= until:
                costs.append(result.costs[:1])
                ending = "until"
                break
            state, done, ending = result.state, done + result.steps, result.ending
            costs.append(result.costs)
            rate = result.steps * plan.size / (time.perf_counter() - began)
            bar.update(result.steps)
            bar.set_postfix_str(f"cost={result.costs[-1]:.4g}, {rate:.3g} examples/s", refresh=False)
            if watched.measures and ending != "nonfinite":
                measured.append(watched.of(state.variable))
                if watched.patience is not None and measured[-1]["loss"] < least:
                    best_state, best, least = state, epoch, measured[-1]["loss"]
                elif watched.patience is not None and best is not None and epoch - best >= watched.patience:
                    ending = "patience"
    names = measured[0] if measured else {}
    history = {"cost": np.concatenate(costs) if costs else np.zeros(0), **{name: np.array([m[name] for m in measured]) for name in names}}
    final = state if isinstance(state, descent.State) else engine.init(jax.tree.map(jnp.asarray, state))
    return Fit(final.variable if best_state is None else best_state.variable, history, done, final, best, ending)


def _next_look(plan: Batches, done: int, measuring: bool) -> int:
    """Where to look up from the steps: at the end of an epoch, or after many steps where nothing is measured."""
    if not measuring:
        return min(done + max(_STEPS_AT_ONCE, plan.epoch_ends(1)), plan.steps)
    epoch = done * plan.size // plan.examples + 1
    ends = (plan.epoch_ends(epoch + later) for later in range(2))
    return next(end for end in ends if end > done)


def _arrays(name: str, data: Any) -> tuple[Any, ...]:
    if not isinstance(data, tuple) or not data:
        raise TypeError(f"{name} must be a tuple of arrays such as (x, y), got {type(data).__name__}")
    require.batch(**{name: data})
    require.finite(name, data)
    return jax.tree.map(jnp.asarray, data)


def _weights(weights: Any, count: int) -> Array | None:
    if weights is None:
        return None
    require.floating("weights", weights, rank=1)
    require.finite("weights", weights)
    require.within("weights", weights, 0, np.inf)
    if len(weights) != count or not np.sum(weights) > 0:
        raise ValueError(f"weights must be one for each of {count} examples and not all 0, got {list(np.shape(weights))}")
    return jnp.asarray(weights)


def _metrics(loss: Loss, metrics: Any, patience: Any, held_out: Any) -> dict[str, Program]:
    if held_out is None:
        if metrics or patience is not None:
            raise ValueError("held_out must be given for metrics and patience, got None")
        return {}
    given = dict(metrics or {})
    if "cost" in given or "loss" in given:
        raise ValueError("metrics must not be called 'cost' or 'loss', which the history has anyway")
    key = jax.random.key(0)
    keyed = functools.partial(loss, key=key) if takes_key(loss) else loss
    return {"loss": program(keyed)} | {name: program(require.function(f"metrics[{name!r}]", metric)) for name, metric in given.items()}


def _dtype(dtype: Any) -> Any:
    if dtype is None or jnp.issubdtype(dtype, jnp.floating):
        return dtype
    raise TypeError(f"compute_dtype must be a float dtype, got {dtype}")
