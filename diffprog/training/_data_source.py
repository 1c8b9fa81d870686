"""Interface between training data and the training loop.

A `DataSource` divides a training run into segments: consecutive steps that run without
interruption. Between two segments, the training loop evaluates metrics and saves checkpoints.
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
    """Position of a training run in its data, from which the run can be continued.

    Attributes:
        steps: number of batches used so far.
        epoch: number of completed passes through an iterable; 0 for arrays in memory.
        batch: number of batches used of the current pass; 0 for arrays in memory.
    """

    steps: int = 0
    epoch: int = 0
    batch: int = 0


class StepInput(NamedTuple):
    """Input of one training step: its number and its batch.

    Attributes:
        step: number of the step, from 0.
        batch: indices (batch,) of examples in memory, None for all examples; or, with an iterable,
            the batch itself.
    """

    step: Any
    batch: Any


class Segment(NamedTuple):
    """Consecutive training steps that run without interruption, and their inputs.

    Attributes:
        xs: inputs of the steps: a list of `StepInput`, or one `StepInput` whose arrays have the
            step as leading axis, which may be longer than `steps`.
        steps: number of steps.
        examples: number of examples in these steps.
        end: position in the data after the last step.
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
        segments: `segments(position)` yields each `Segment` that follows a `DataPosition`.
        get_batch: `get_batch(step_input)` returns (batch, weights) for one `StepInput` of a
            segment; weights (batch,) are those of the examples, or None.
        fingerprint: `fingerprint()` returns values that identify the data, as a JSON dict.
    """

    steps: int | None
    segments: Callable[[DataPosition], Iterator[Segment]]
    get_batch: Callable[[StepInput], tuple[Batch, Array | None]]
    fingerprint: Callable[[], dict[str, Any]]


def validate_arrays(name: str, data: Any) -> Batch:
    """Check that `data` is a tuple of finite arrays with leading axes of equal length.

    They may be pytrees of arrays. Returns them as JAX arrays; errors call them `name`.
    """
    if not isinstance(data, tuple) or not data:
        raise TypeError(
            f"{name} must be a tuple of arrays such as (x, y), got {type(data).__name__}"
        )
    _validation.batch(**{name: data})
    _validation.finite(name, data)
    return jax.tree.map(jnp.asarray, data)
