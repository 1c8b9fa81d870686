"""What the steps of a training see: minibatches of arrays in memory, drawn without replacement.

The examples of all epochs stand in one row, each epoch in an order of its own, and a batch is the next B of them:

    row = permutation(fold_in(key, 0)), permutation(fold_in(key, 1)), ...        batch k = row[k B : (k + 1) B]

So every example is seen once in each epoch, whatever B is, all batches have one shape, and batch k follows from the key and k alone: a run
that goes on from step k sees what it would have seen. One batch of all N examples is left as it stands.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Integer

from diffprog import _validation, distributed
from diffprog.training._feed import Piece, Place, Seen

_STEPS_AT_ONCE = 1024


class Batches(NamedTuple):
    """Minibatches of examples in memory.

    Attributes:
        examples: N.
        size: B.
        steps: how many there are.
        key: for the orders.
        mesh: the devices that look the examples up; None for one.
        by_epoch: whether a piece ends with each epoch, for somebody to look up.
    """

    examples: int
    size: int
    steps: int
    key: jax.Array
    mesh: Mesh | None = None
    by_epoch: bool = False

    @property
    def each_is_all(self) -> bool:
        """Whether every batch is all examples."""
        return self.size == self.examples

    def epoch_ends(self, epoch: int) -> int:
        """The step before which so many epochs have begun and been seen to their end."""
        return -(-epoch * self.examples // self.size)

    def pieces(self, place: Place) -> Iterator[Piece]:
        """See `Feed`."""
        done = place.steps
        longest = self.epoch_ends(1) if self.by_epoch else max(_STEPS_AT_ONCE, self.epoch_ends(1))
        while done < self.steps:
            epoch = done * self.size // self.examples
            end = next(
                end for end in map(self.epoch_ends, range(epoch + 1, epoch + 3)) if end > done
            )
            last = min(end if self.by_epoch else done + longest, self.steps)
            # All of one length, so that all are one compiled loop.
            yield Piece(
                self.between(done, done + longest),
                last - done,
                (last - done) * self.size,
                Place(last),
                last == end,
            )
            done = last

    def between(self, first: int, last: int) -> Seen:
        """What the steps first .. last - 1 see, or would see, stacked."""
        seen = Seen(
            jnp.arange(first, last, dtype=jnp.int32),
            None if self.each_is_all else self._row(first * self.size, last * self.size),
        )
        return seen if self.mesh is None else distributed.replicate(self.mesh, seen)

    def _row(self, begin: int, end: int) -> Integer[Array, "steps batch"]:
        epochs = range(begin // self.examples, -(-end // self.examples))
        row = jnp.concatenate([_order(self.key, epoch, self.examples) for epoch in epochs])
        start = begin - epochs[0] * self.examples
        return row[start : start + end - begin].reshape(-1, self.size)


def batches(
    data: Any,
    batch_size: int | None,
    epochs: float | None,
    steps: int | None,
    key: jax.Array,
    mesh: Mesh | None,
) -> Batches:
    """As many minibatches as make up the epochs, or the steps."""
    count = _validation.batch(data=data)
    size = count if batch_size is None else _validation.integer("batch_size", batch_size, low=1)
    if size > count:
        raise ValueError(f"batch_size must be at most the number of examples, {count}, got {size}")
    if mesh is not None and size % distributed.batch_axis_size(mesh):
        raise ValueError(
            f"batch_size must divide among {distributed.batch_axis_size(mesh)} devices, got {size} examples"
        )
    if steps is None:
        steps = math.ceil(_validation.number("epochs", epochs, above=0) * count / size - 1e-9)
    return Batches(count, size, _validation.integer("steps", steps, low=0), key, mesh)


@functools.partial(jax.jit, static_argnums=2)
def _order(key: jax.Array, epoch: Any, examples: int) -> Integer[Array, "examples"]:
    return jax.random.permutation(jax.random.fold_in(key, epoch), examples)
