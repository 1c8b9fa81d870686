"""Record parameters or optimizer state at every step, by wrapping an optax optimizer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Integer


class RecorderState(NamedTuple):
    """State of the wrapper.

    Attributes:
        step: number of steps taken.
        records: the recorded values, one per leading index; zeros for future steps.
        inner: state of the wrapped optimizer.
    """

    step: Integer[Array, ""]
    records: Any
    inner: Any


def record(
    optimizer: optax.GradientTransformation,
    steps: int,
    observe: Callable[[Any, Any], Any] = lambda params, state: params,
    *,
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that its state also holds `observe(params, state)` of each step.

    Args:
        optimizer: an optax optimizer; its updates do not change.
        steps: total number of steps.
        observe: (parameters before the step, optimizer state after it) -> pytree of arrays;
            default the parameters.
        every: keep the last record of every `every` steps; default 1.

    >>> from diffprog import descent
    >>> halving = descent.descent(lambda v, k: 0.5 * v**2, record(optax.sgd(0.5), 3))
    >>> descent.run(halving, 8.0, 3).state.optimizer.records.tolist()
    [8.0, 4.0, 2.0]
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> RecorderState:
        inner = optimizer.init(params)
        shapes = jax.eval_shape(observe, params, inner)
        count = -(-steps // every)
        records = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), shapes)
        return RecorderState(jnp.int32(0), records, inner)

    def update(
        gradient: Any, state: RecorderState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, RecorderState]:
        updates, inner = optimizer.update(gradient, state.inner, params, **extra_args)
        records = jax.tree.map(
            lambda array, value: array.at[state.step // every].set(value),
            state.records,
            observe(params, inner),
        )
        return updates, RecorderState(state.step + 1, records, inner)

    return optax.GradientTransformationExtraArgs(init, update)
