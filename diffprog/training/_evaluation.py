"""What one looks at between epochs: the loss and other metrics on held-out data, and whether to go on."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffprog import _validation, distributed
from diffprog.program import Program, program
from diffprog.training._state import Standing
from diffprog.training._step_loss import Loss, takes_key


class Watched(NamedTuple):
    """What is looked at.

    Attributes:
        measures: functions of (params, *held_out) by name, "loss" among them; none where nothing is held out.
        held_out: the data to measure on.
        patience: for how many epochs the loss need not fall; None for ever.
    """

    measures: dict[str, Program]
    held_out: tuple[Any, ...] | None
    patience: int | None

    def look(self, standing: Standing) -> Standing:
        """With each measure of what now are the parameters, a mean over the examples where it is one for each."""
        params = standing.state.variable
        values = {
            name: float(distributed.fetch(_mean(measure, params, self.held_out)))
            for name, measure in self.measures.items()
        }
        return standing.looked_at(values, keep_best=self.patience is not None)

    def check(self, params: Any) -> None:
        """Before any step is taken: that each measure says a number, or one for each example held out."""
        for name, measure in self.measures.items():
            said = _said.eval_shape(measure, params, self.held_out)
            count = len(jax.tree.leaves(self.held_out)[0])
            kinds = (jnp.bool_, jnp.integer, jnp.floating)
            numbers = isinstance(said, jax.ShapeDtypeStruct) and any(
                jnp.issubdtype(said.dtype, kind) for kind in kinds
            )
            if not numbers or said.shape not in ((), (count,)):
                label = "loss" if name == "loss" else f"metrics[{name!r}]"
                raise ValueError(
                    f"{label} must return a number or one for each of {count} examples held out, got {said}"
                )


def watched(
    loss: Loss,
    held_out: Any,
    metrics: Mapping[str, Callable[..., Any]] | None,
    patience: int | None,
) -> Watched:
    """The loss and the metrics, on what is held out."""
    if held_out is None:
        if metrics or patience is not None:
            raise ValueError("held_out must be given for metrics and patience, got None")
        return Watched({}, None, None)
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(
            f"metrics must be a dict of functions by name, got {type(metrics).__name__}"
        )
    given = dict(metrics or {})
    if "cost" in given or "loss" in given:
        raise ValueError(
            "metrics must not be called 'cost' or 'loss', which the history has anyway"
        )
    keyed = functools.partial(loss, key=jax.random.key(0)) if takes_key(loss) else loss
    others = {
        name: program(_validation.function(f"metrics[{name!r}]", metric))
        for name, metric in given.items()
    }
    return Watched(
        {"loss": program(keyed)} | others,
        held_out,
        None if patience is None else _validation.integer("patience", patience, low=1),
    )


@jax.jit
def _said(measure: Program, params: Any, held_out: tuple[Any, ...]) -> Any:
    """Only ever asked for its shape."""
    return measure(params, *held_out)


@jax.jit
def _mean(measure: Program, params: Any, held_out: tuple[Any, ...]) -> Any:
    return jnp.mean(measure(params, *held_out))
