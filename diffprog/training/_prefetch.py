"""What the steps of a training see: batches from an iterable, for data larger than memory.

An epoch is one pass through the iterable, in whose hands the order is. A thread of its own reads ahead and brings the batches to the
devices while the steps before them are computed; what waits there is bounded in bytes, whatever the length of the data.
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
from diffprog.training._feed import Piece, Place, Seen

_BYTES_AT_ONCE, _BATCHES_AT_ONCE, _SECONDS_AT_ONCE = 2**27, 256, 1.0

Batch = tuple[Any, ...]


class Stream(NamedTuple):
    """Batches from an iterable.

    Attributes:
        batches: of the epoch of that number.
        epochs: passes; None for as many as the steps take.
        steps: how many there are; None for as many as the passes give.
        mesh: the devices among which each batch is divided; None for one.
    """

    batches: Callable[[int], Iterable[Batch]]
    epochs: int | None
    steps: int | None
    mesh: Mesh | None

    def pieces(self, place: Place) -> Iterator[Piece]:
        """See `Feed`; what comes before the place is read again, and left."""
        while place.epoch != self.epochs and place.steps != self.steps:
            epoch = Place(place.steps - place.batch, place.epoch + 1)
            left = None if self.steps is None else self.steps - epoch.steps
            rest = itertools.islice(self.batches(place.epoch), place.batch, left)
            with _read_ahead(_together(map(self._brought, rest))) as ahead:
                for batches in ahead:
                    steps = range(place.steps, place.steps + len(batches))
                    place = Place(steps.stop, place.epoch, place.batch + len(batches))
                    examples = sum(len(jax.tree.leaves(batch)[0]) for batch in batches)
                    yield Piece(
                        list(map(Seen, map(np.int32, steps), batches)),
                        len(batches),
                        examples,
                        place,
                        False,
                    )
            if place.batch == 0:
                raise ValueError(
                    f"data must give at least one batch in each epoch, got none in epoch {epoch.epoch}"
                )
            if place.steps != self.steps:
                place = epoch._replace(steps=place.steps)
                yield Piece([], 0, 0, place, True)

    def _brought(self, batch: Any) -> Batch:
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
                f"data must give batches that divide among {distributed.batch_axis_size(self.mesh)} devices, got {count} examples"
            )
        sharding = distributed.batch_sharding(self.mesh)
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch
        )


def stream(data: Any, epochs: float | None, steps: int | None, mesh: Mesh | None) -> Stream:
    """The batches of an iterable, or of a function (epoch) -> iterable, as many passes or steps as are asked for."""
    if not callable(data) and not isinstance(data, Iterable):
        raise TypeError(
            f"data must be a tuple of arrays such as (x, y), an iterable of such batches or a function, got {type(data).__name__}"
        )
    if isinstance(data, Iterator) and epochs != 1:
        raise ValueError(
            f"data must be an iterable that begins anew in each epoch, got an iterator, which is good for epochs=1, not {epochs}"
        )
    if epochs is not None and epochs != int(_validation.number("epochs", epochs, above=0)):
        raise ValueError(f"epochs must be an integer for data from an iterable, got {epochs}")
    steps = None if steps is None else _validation.integer("steps", steps, low=0)
    return Stream(
        data if callable(data) else lambda epoch: data,
        None if epochs is None else int(epochs),
        steps,
        mesh,
    )


def _together(batches: Iterator[Batch]) -> Iterator[list[Batch]]:
    """Lists of batches: one, then two, and so on to as many as come in a second or as memory may hold."""
    most = 1
    while some := list(itertools.islice(batches, 1)):
        size, began = _bytes(some[0]), time.monotonic()
        for batch in itertools.islice(batches, most - 1):
            some.append(batch)
            size += _bytes(batch)
            if size >= _BYTES_AT_ONCE or time.monotonic() - began > _SECONDS_AT_ONCE:
                break
        most = min(2 * most, _BATCHES_AT_ONCE)
        yield some


def _bytes(batch: Batch) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(batch))


@contextlib.contextmanager
def _read_ahead(source: Iterator[Any]) -> Iterator[Iterator[Any]]:
    """What an iterator gives, read by a thread: one item waits while another is used, and a third is being read."""
    read: queue.Queue[tuple[str, Any]] = queue.Queue(1)
    left = threading.Event()

    def reading() -> None:
        try:
            for item in source:
                read.put(("item", item))
                if left.is_set():
                    return
            read.put(("end", None))
        except BaseException as error:  # raised again where the batches are asked for
            read.put(("error", error))

    def given() -> Iterator[Any]:
        while (come := read.get())[0] == "item":
            yield come[1]
        if come[0] == "error":
            raise come[1]

    threading.Thread(target=reading, daemon=True).start()
    try:
        yield given()
    finally:
        left.set()
        while not read.empty():
            read.get_nowait()
