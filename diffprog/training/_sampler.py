"""Minibatches of arrays in memory, sampled without replacement.

The examples are ordered by one random permutation of all N for each epoch. Batch k is the k-th
block of B examples in this order:

    order = permutation(fold_in(key, 0)), permutation(fold_in(key, 1)), ...
    batch_k = order[k B : (k + 1) B]

Each epoch uses every example once, for any B, and all batches have one shape. Batch k depends on
the key and k alone, so a resumed run gets the batches that it would have got. If B = N, a batch is
all examples in their original order.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Integer

from diffprog import _validation, distributed
from diffprog.training._checkpoint import checksum
from diffprog.training._data_source import (
    Batch,
    DataPosition,
    DataSource,
    Segment,
    StepInput,
    validate_arrays,
)
from diffprog.training._step_loss import ComputeOptions

_MIN_SEGMENT_STEPS = 1024


class Sampler(NamedTuple):
    """Samples indices of minibatches, without replacement, from examples in memory.

    Attributes:
        examples: number of examples in memory.
        batch_size: number of examples in a batch.
        steps: number of batches in the run.
        key: PRNG key of the permutations.
        mesh: devices on which the indices are replicated; None for one device.
        split_at_epochs: whether the run is divided into segments at the end of each epoch.
    """

    examples: int
    batch_size: int
    steps: int
    key: jax.Array
    mesh: Mesh | None = None
    split_at_epochs: bool = False

    def segments(self, position: DataPosition) -> Iterator[Segment]:
        """Iterate over the segments of the run (consecutive steps) after a position in the data."""
        steps_until = lambda epochs: -(-epochs * self.examples // self.batch_size)
        length = steps_until(1)
        if not self.split_at_epochs:
            length = max(_MIN_SEGMENT_STEPS, length)
        done = position.steps
        while done < self.steps:
            epoch = done * self.batch_size // self.examples
            # A batch across the boundary of two epochs belongs to the first of them.
            epoch_end = next(end for end in map(steps_until, (epoch + 1, epoch + 2)) if end > done)
            stop = min(epoch_end if self.split_at_epochs else done + length, self.steps)
            # Inputs of one length for all segments, so that they share one compiled loop.
            yield Segment(
                self.step_inputs(done, done + length),
                stop - done,
                (stop - done) * self.batch_size,
                DataPosition(stop),
                stop == epoch_end,
            )
            done = stop

    def step_inputs(self, start: int, stop: int) -> StepInput:
        """Return the inputs of steps `start` to `stop` - 1, as arrays with leading axis step."""
        indices = None
        if self.batch_size < self.examples:
            first, last = start * self.batch_size, stop * self.batch_size
            epochs = range(first // self.examples, -(-last // self.examples))
            order = jnp.concatenate([_permutation(self.key, k, self.examples) for k in epochs])
            offset = epochs[0] * self.examples
            indices = order[first - offset : last - offset].reshape(-1, self.batch_size)
        inputs = StepInput(jnp.arange(start, stop, dtype=jnp.int32), indices)
        return inputs if self.mesh is None else distributed.replicate(self.mesh, inputs)


def from_arrays(
    data: Any,
    weights: Any,
    batch_size: int | None,
    epochs: float | None,
    steps: int | None,
    key: jax.Array,
    options: ComputeOptions,
    *,
    split_at_epochs: bool,
) -> DataSource:
    """Build a data source for `fit` that draws minibatches from arrays kept on the devices.

    `data`, `weights`, `batch_size`, `epochs` and `steps` are those of `fit`. `key` shuffles the
    data. `options` holds the mesh, and `accumulate`, which must divide the batch size. If
    `split_at_epochs`, no `Segment` (consecutive steps that run in one go) crosses the end of an
    epoch.
    """
    data, mesh = validate_arrays("data", data), options.mesh
    count = len(jax.tree.leaves(data)[0])
    size = count if batch_size is None else _validation.integer("batch_size", batch_size, low=1)
    if size > count:
        raise ValueError(f"batch_size must be at most the number of examples, {count}, got {size}")
    if mesh is not None and size % distributed.batch_axis_size(mesh):
        raise ValueError(
            f"batch_size must be a multiple of the {distributed.batch_axis_size(mesh)} devices "
            f"of the mesh, got {size}"
        )
    if steps is None:
        steps = math.ceil(_validation.number("epochs", epochs, above=0) * count / size - 1e-9)
    steps = _validation.integer("steps", steps, low=0)
    if size % options.accumulate:
        raise ValueError(f"accumulate must divide the batch size, {size}, got {options.accumulate}")
    if mesh is not None and size // options.accumulate % distributed.batch_axis_size(mesh):
        raise ValueError(
            "accumulate must leave parts that are a multiple of the "
            f"{distributed.batch_axis_size(mesh)} devices of the mesh, "
            f"got parts of {size // options.accumulate} examples"
        )
    weights = _validate_weights(weights, count)
    fingerprint = lambda: {
        "data": "arrays",
        "examples": count,
        "batch_size": size,
        "data checksum": checksum((data, weights)),
    }
    arrays = (data, weights) if mesh is None else distributed.replicate(mesh, (data, weights))
    sampler = Sampler(count, size, steps, key, mesh, split_at_epochs)

    def gather_batch(step_input: StepInput) -> tuple[Batch, Array | None]:
        if step_input.batch is None:
            return arrays
        return jax.tree.map(lambda leaf: leaf[step_input.batch], arrays)

    return DataSource(steps, sampler.segments, gather_batch, fingerprint)


def _validate_weights(weights: Any, count: int) -> Array | None:
    if weights is None:
        return None
    _validation.floating("weights", weights, rank=1)
    _validation.finite("weights", weights)
    _validation.within("weights", weights, 0, np.inf)
    if len(weights) != count:
        raise ValueError(
            f"weights must be one for each of {count} examples, got {list(np.shape(weights))}"
        )
    if not np.sum(weights) > 0:
        raise ValueError("weights must not all be 0")
    return jnp.asarray(weights)


@functools.partial(jax.jit, static_argnums=2)
def _permutation(key: jax.Array, epoch: Any, examples: int) -> Integer[Array, "examples"]:
    return jax.random.permutation(jax.random.fold_in(key, epoch), examples)
