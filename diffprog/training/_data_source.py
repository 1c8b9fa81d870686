"""Interface between training data and the training loop.

A `DataSource` divides the data of a run into segments: consecutive steps that the engine runs
without interruption. Between two segments, the loop evaluates metrics and saves checkpoints.
`_sampler` makes a data source from arrays in memory, `_prefetch` from an iterable of batches.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffprog import _validation

Batch = tuple[Any, ...]


class DataPosition(NamedTuple):
    """Position of a run in its data.

    Attributes:
        steps: number of batches used so far.
        epoch: number of completed passes through an iterable.
        batch: number of batches used of the current pass.
    """

    steps: int = 0
    epoch: int = 0
    batch: int = 0


class StepInput(NamedTuple):
    """Input of one step: its number and its batch.

    Attributes:
        step: number k of the step.
        batch: indices (batch,) of examples in memory, None for all examples; or, with an iterable,
            the batch itself.
    """

    step: Any
    batch: Any


class Segment(NamedTuple):
    """Consecutive steps of a run and their inputs.

    Attributes:
        xs: one `StepInput` of stacked arrays, which may be longer than `steps`; or a list of them.
        steps: number of steps.
        examples: number of examples in these steps.
        end: position after the last step.
        ends_epoch: whether an epoch ends with the last step.
    """

    xs: Any
    steps: int
    examples: int
    end: DataPosition
    ends_epoch: bool


class DataSource(NamedTuple):
    """Training data, divided into segments of steps.

    Attributes:
        steps: number of steps of the run; None if it is not known in advance.
        segments: `segments(position)` iterates over the segments after a position.
        get_batch: `get_batch(step_input)` returns the batch of a step and its weights or None.
        fingerprint: `fingerprint()` returns what identifies the data, as JSON values by name.
    """

    steps: int | None
    segments: Callable[[DataPosition], Iterator[Segment]]
    get_batch: Callable[[StepInput], tuple[Batch, Array | None]]
    fingerprint: Callable[[], dict[str, Any]]


def validate_arrays(name: str, data: Any) -> Batch:
    """Check that `data` is a tuple of finite arrays of one length, and return it as JAX arrays."""
    if not isinstance(data, tuple) or not data:
        raise TypeError(
            f"{name} must be a tuple of arrays such as (x, y), got {type(data).__name__}"
        )
    _validation.batch(**{name: data})
    _validation.finite(name, data)
    return jax.tree.map(jnp.asarray, data)
