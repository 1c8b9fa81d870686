"""What the steps of a training see: minibatches of arrays in memory, drawn without replacement.

The examples of all epochs stand in one row, each epoch in an order of its own, and a batch is the next B of them:

    row = permutation(fold_in(key, 0)), permutation(fold_in(key, 1)), ...        batch k = row[k B : (k + 1) B]

So every example is seen once in each epoch, whatever B is, all batches have one shape, and batch k follows from the key and k alone: a run
that goes on from step k sees what it would have seen. One batch of all N examples is left as it stands.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer

from diffprog import require


class Seen(NamedTuple):
    """What the cost function of one step is given.

    Attributes:
        step: k.
        examples: (B,), which; None for all.
    """

    step: Integer[Array, ""]
    examples: Integer[Array, "batch"] | None


class Batches(NamedTuple):
    """Minibatches of examples in memory.

    Attributes:
        examples: N.
        size: B.
        steps: how many there are.
        key: for the orders.
    """

    examples: int
    size: int
    steps: int
    key: jax.Array

    @property
    def each_is_all(self) -> bool:
        """Whether every batch is all examples."""
        return self.size == self.examples

    def epoch_ends(self, epoch: int) -> int:
        """The step before which so many epochs have begun and been seen to their end."""
        return min(math.ceil(epoch * self.examples / self.size), self.steps)

    def between(self, first: int, last: int) -> Seen:
        """What the steps first .. last - 1 see, stacked."""
        steps = jnp.arange(first, last, dtype=jnp.int32)
        if self.each_is_all:
            return Seen(steps, None)
        begin, end = first * self.size, last * self.size
        epochs = range(begin // self.examples, -(-end // self.examples))
        row = jnp.concatenate([_order(self.key, epoch, self.examples) for epoch in epochs])
        start = begin - epochs[0] * self.examples
        return Seen(steps, row[start : start + end - begin].reshape(-1, self.size))


def batches(data: Any, batch_size: int | None, epochs: float | None, steps: int | None, key: jax.Array) -> Batches:
    """As many minibatches as make up the epochs, or the steps."""
    count = require.batch(data=data)
    size = count if batch_size is None else require.integer("batch_size", batch_size, low=1)
    if size > count:
        raise ValueError(f"batch_size must be at most the number of examples, {count}, got {size}")
    if (epochs is None) == (steps is None):
        raise ValueError(f"epochs or steps must be given, and not both, got epochs={epochs} and steps={steps}")
    if steps is None:
        return Batches(count, size, int(require.number("epochs", epochs, above=0) * count / size + 1e-9), key)
    return Batches(count, size, require.integer("steps", steps, low=0), key)


@functools.partial(jax.jit, static_argnums=2)
def _order(key: jax.Array, epoch: Any, examples: int) -> Integer[Array, "examples"]:
    return jax.random.permutation(jax.random.fold_in(key, epoch), examples)
