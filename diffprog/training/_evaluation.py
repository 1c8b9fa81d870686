"""Evaluation after each epoch: loss and metrics on held-out data, and early stopping."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffprog import _validation, distributed
from diffprog.program import Program, program
from diffprog.training._state import TrainingState
from diffprog.training._step_loss import Loss, takes_key


class Evaluator(NamedTuple):
    """Evaluates loss and metrics on held-out data, and decides on early stopping.

    Attributes:
        metrics: dict from names to functions of (params, *held_out), with the loss as "loss"; empty
            without held-out data.
        held_out: the held-out data.
        patience: number of epochs without improvement after which to stop; None for no limit.
    """

    metrics: dict[str, Program]
    held_out: tuple[Any, ...] | None
    patience: int | None

    def evaluate(self, state: TrainingState) -> TrainingState:
        """Return the training state with the metrics of its parameters added.

        If they have been added already, the state is returned unchanged.
        """
        if not self.metrics or state.evaluated_at == state.position.steps:
            return state
        values = {
            name: float(distributed.fetch(_mean(metric, state.state.variable, self.held_out)))
            for name, metric in self.metrics.items()
        }
        return state.add_metrics(values, track_best=self.patience is not None)

    def is_patience_exhausted(self, state: TrainingState) -> bool:
        """Return whether the held-out loss has not improved for `patience` epochs."""
        if self.patience is None:
            return False
        best_epoch = 0 if state.best is None else state.best.epoch
        return len(state.metrics.get("loss", ())) - best_epoch >= self.patience

    def validate_metrics(self, params: Any) -> None:
        """Check that each metric returns one number or one per example; it is traced, not run."""
        for name, metric in self.metrics.items():
            output = _call.eval_shape(metric, params, self.held_out)
            count = len(jax.tree.leaves(self.held_out)[0])
            is_real = isinstance(output, jax.ShapeDtypeStruct) and any(
                jnp.issubdtype(output.dtype, kind)
                for kind in (jnp.bool_, jnp.integer, jnp.floating)
            )
            if not is_real or output.shape not in ((), (count,)):
                label = "loss" if name == "loss" else f"metrics[{name!r}]"
                raise ValueError(
                    f"{label} must return one number or one for each of {count} held-out "
                    f"examples, got {output}"
                )


def make_evaluator(
    loss: Loss,
    held_out: Any,
    metrics: Mapping[str, Callable[..., Any]] | None,
    patience: int | None,
) -> Evaluator:
    """Build an `Evaluator` of the loss and of other metrics on held-out data.

    `metrics` maps names to functions of (params, *held_out). `patience` is the number of epochs
    without improvement after which to stop; None for no early stopping.
    """
    if held_out is None:
        if metrics or patience is not None:
            raise ValueError("held_out must be given with metrics or patience, got None")
        return Evaluator({}, None, None)
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(
            f"metrics must be a dict of functions by name, got {type(metrics).__name__}"
        )
    functions = dict(metrics or {})
    if "cost" in functions or "loss" in functions:
        raise ValueError("metrics must not be named 'cost' or 'loss', which fit records itself")
    if patience is not None:
        patience = _validation.integer("patience", patience, low=1)
    keyed = functools.partial(loss, key=jax.random.key(0)) if takes_key(loss) else loss
    programs = {"loss": program(keyed)}
    for name, metric in functions.items():
        programs[name] = program(_validation.function(f"metrics[{name!r}]", metric))
    return Evaluator(programs, held_out, patience)


@jax.jit
def _call(metric: Program, params: Any, held_out: tuple[Any, ...]) -> Any:
    return metric(params, *held_out)


@jax.jit
def _mean(metric: Program, params: Any, held_out: tuple[Any, ...]) -> Any:
    return jnp.mean(metric(params, *held_out))
