"""What a training is fed: pieces of the road through the data, each of which the engine runs before anybody looks up."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol


class Place(NamedTuple):
    """Where in the data a training stands.

    Attributes:
        steps: batches seen in all.
        epoch: passes through the data that have been seen to their end.
        batch: batches seen of the present one.
    """

    steps: int = 0
    epoch: int = 0
    batch: int = 0


class Seen(NamedTuple):
    """What the cost function of one step is given.

    Attributes:
        step: k.
        examples: (B,), which, of data in memory, None for all; of an iterable the batch itself.
    """

    step: Any
    examples: Any


class Piece(NamedTuple):
    """Some steps in a row.

    Attributes:
        xs: what they see, a `Seen` of arrays or a list of `Seen`; of the arrays the first so many steps.
        steps: how many.
        examples: how many in all.
        after: where the training stands when they have been taken.
        ends_epoch: whether a pass through the data ends with them.
    """

    xs: Any
    steps: int
    examples: int
    after: Place
    ends_epoch: bool


class Feed(Protocol):
    """The data, as steps see them.

    Attributes:
        steps: how many there will be; None where only the end of the data will tell.
    """

    @property
    def steps(self) -> int | None: ...

    def pieces(self, place: Place) -> Iterator[Piece]:
        """What comes after a place."""
        ...
