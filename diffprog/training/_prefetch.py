"""Batches from an iterable, for data larger than memory.

An epoch is one pass through the iterable, which determines the order of the examples. A thread
reads ahead: it moves batches to the devices while earlier steps are computed. The number of batches
read ahead is bounded, so the memory does not grow with the length of the data.
"""

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffprog import _validation, distributed
from diffprog.training._data_source import Batch, DataPosition, DataSource, Segment, StepInput

_MAX_GROUP_BYTES, _MAX_GROUP_BATCHES, _MAX_GROUP_SECONDS = 2**27, 256, 1.0


class BatchStream(NamedTuple):
    """Divides the batches of an iterable into segments of training steps.

    Attributes:
        batches: `batches(epoch)` is an iterable of the batches of that epoch.
        epochs: number of passes through the iterable; None for as many as `steps` needs.
        steps: number of steps of the run; None for as many as there are batches in `epochs` passes.
        mesh: devices among which each batch is divided; None for one device.
    """

    batches: Callable[[int], Iterable[Batch]]
    epochs: int | None
    steps: int | None
    mesh: Mesh | None

    def segments(self, position: DataPosition) -> Iterator[Segment]:
        """Iterate over the segments of the run, groups of consecutive batches, after a position.

        To resume in the middle of an epoch, its earlier batches are read and dropped.
        """
        while position.epoch != self.epochs and position.steps != self.steps:
            epoch = position.epoch
            stop = None if self.steps is None else self.steps - position.steps + position.batch
            rest = itertools.islice(self.batches(epoch), position.batch, stop)
            with _read_ahead(_group(map(self._to_devices, rest))) as groups:
                for batches in groups:
                    steps = range(position.steps, position.steps + len(batches))
                    position = DataPosition(steps.stop, epoch, position.batch + len(batches))
                    examples = sum(len(jax.tree.leaves(batch)[0]) for batch in batches)
                    inputs = list(map(StepInput, map(np.int32, steps), batches))
                    yield Segment(inputs, len(batches), examples, position, False)
            if position.batch == 0:
                raise ValueError(
                    "data must give at least one batch in each epoch, "
                    f"got none in epoch {epoch + 1}"
                )
            if position.steps != self.steps:
                # The end of an epoch is known only after its last batch: a segment without steps.
                position = DataPosition(position.steps, epoch + 1)
                yield Segment([], 0, 0, position, True)

    def _to_devices(self, batch: Any) -> Batch:
        if not isinstance(batch, tuple) or not batch:
            raise TypeError(
                f"data must give tuples of arrays such as (x, y), got {type(batch).__name__}"
            )
        count = _validation.batch(data=batch)
        _validation.finite("data", batch)
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, batch)
        if count * jax.process_count() % distributed.batch_axis_size(self.mesh):
            raise ValueError(
                "data must give batches of a multiple of the "
                f"{distributed.batch_axis_size(self.mesh)} devices of the mesh, "
                f"got {count * jax.process_count()} examples"
            )
        sharding = distributed.batch_sharding(self.mesh)
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch
        )


def from_iterable(
    data: Any,
    weights: Any,
    batch_size: int | None,
    epochs: float | None,
    steps: int | None,
    mesh: Mesh | None,
) -> DataSource:
    """Build a data source from an iterable of batches or a function epoch -> iterable, for `fit`.

    `weights` and `batch_size` must be None; the other arguments are those of `fit`.
    """
    if isinstance(data, list) and data and all(hasattr(part, "shape") for part in data):
        raise TypeError(
            "data must be a tuple of arrays such as (x, y) or an iterable of batches, "
            "got a list of arrays"
        )
    for name, value in {"batch_size": batch_size, "weights": weights}.items():
        if value is not None:
            raise ValueError(f"{name} must be None for data from an iterable, got {value!r:.60}")
    if not callable(data) and not isinstance(data, Iterable):
        raise TypeError(
            "data must be a tuple of arrays such as (x, y), an iterable of batches or a function "
            f"epoch -> iterable, got {type(data).__name__}"
        )
    if isinstance(data, Iterator) and epochs != 1:
        raise ValueError(
            "data must be an iterable that can be iterated again in each epoch, "
            f"got an iterator, which needs epochs=1, not {epochs}"
        )
    if epochs is not None and epochs != int(_validation.number("epochs", epochs, above=0)):
        raise ValueError(f"epochs must be an integer for data from an iterable, got {epochs}")
    stream = BatchStream(
        data if callable(data) else lambda epoch: data,
        None if epochs is None else int(epochs),
        None if steps is None else _validation.integer("steps", steps, low=0),
        mesh,
    )
    get_batch = lambda step_input: (step_input.batch, None)
    return DataSource(stream.steps, stream.segments, get_batch, lambda: {"data": "iterable"})


def _group(batches: Iterator[Batch]) -> Iterator[list[Batch]]:
    """Group consecutive batches into lists of 1, 2, 4, ... batches, up to a maximal length.

    A list ends earlier if its batches have many bytes or took long to read.
    """
    most = 1
    while group := list(itertools.islice(batches, 1)):
        size, start_time = _nbytes(group[0]), time.monotonic()
        for batch in itertools.islice(batches, most - 1):
            group.append(batch)
            size += _nbytes(batch)
            if size >= _MAX_GROUP_BYTES or time.monotonic() - start_time > _MAX_GROUP_SECONDS:
                break
        most = min(2 * most, _MAX_GROUP_BATCHES)
        yield group


def _nbytes(batch: Batch) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(batch))


@contextlib.contextmanager
def _read_ahead(source: Iterator[Any]) -> Iterator[Iterator[Any]]:
    """Context manager: an iterator over `source`, which a thread reads ahead of its use.

    At most three items are in memory: one in use, one waiting, and one being read.
    """
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(1)
    closed = threading.Event()

    def read() -> None:
        try:
            for item in source:
                waiting.put(("item", item))
                if closed.is_set():
                    return
            waiting.put(("end", None))
        except BaseException as error:  # raised again in the thread that uses the items
            waiting.put(("error", error))

    def items() -> Iterator[Any]:
        while (entry := waiting.get())[0] == "item":
            yield entry[1]
        if entry[0] == "error":
            raise entry[1]

    threading.Thread(target=read, daemon=True).start()
    try:
        yield items()
    finally:
        closed.set()
        while not waiting.empty():  # frees a reader that waits to put its item
            waiting.get_nowait()
