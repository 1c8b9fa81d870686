"""The data of a training as its steps see them: arrays in memory, of which a step looks its batch up, or the batches of an iterable."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from diffprog import _validation, distributed
from diffprog.training._checkpoint import checksum
from diffprog.training._feed import Feed
from diffprog.training._prefetch import stream
from diffprog.training._sampler import batches
from diffprog.training._sharding import placed
from diffprog.training._step_loss import BatchOf, Ways, given, looked_up


class Data(NamedTuple):
    """What steps see of the data.

    Attributes:
        feed: which steps there are, in pieces.
        batch_of: the batch, and its weights, of what a step sees.
        identity: what a checkpoint has to be of.
    """

    feed: Feed
    batch_of: BatchOf
    identity: Callable[[], dict[str, Any]]


def from_arrays(
    data: Any,
    weights: Any,
    batch_size: int | None,
    epochs: float | None,
    steps: int | None,
    key: jax.Array,
    ways: Ways,
    *,
    by_epoch: bool,
) -> Data:
    """Of arrays with leading axis example, kept where the steps are computed."""
    data = arrays("data", data)
    feed = batches(data, batch_size, epochs, steps, key, ways.mesh)._replace(by_epoch=by_epoch)
    _require_parts(feed.size, ways.accumulate, ways.mesh)
    shares = _weights(weights, feed.examples)
    identity = lambda: {
        "examples": feed.examples,
        "batch_size": feed.size,
        "checksum": checksum((data, shares)),
    }
    return Data(feed, looked_up(*placed(ways.mesh, (data, shares))), identity)


def from_iterable(
    data: Any,
    weights: Any,
    batch_size: int | None,
    epochs: float | None,
    steps: int | None,
    ways: Ways,
) -> Data:
    """Of an iterable of batches, or of a function (epoch) -> iterable."""
    if isinstance(data, list) and data and all(hasattr(part, "shape") for part in data):
        raise TypeError(
            "data must be a tuple of arrays such as (x, y), got a list of arrays; a list is taken for batches"
        )
    for name, value in {"batch_size": batch_size, "weights": weights}.items():
        if value is not None:
            raise ValueError(f"{name} must be None for data from an iterable, got {value!r:.60}")
    return Data(stream(data, epochs, steps, ways.mesh), given, lambda: {"kind": "iterable"})


def _require_parts(size: int, accumulate: int, mesh: Mesh | None) -> None:
    if size % accumulate:
        raise ValueError(f"accumulate must divide the batch, {size} examples, got {accumulate}")
    if mesh is not None and size // accumulate % distributed.batch_axis_size(mesh):
        raise ValueError(
            f"accumulate must leave parts that divide among {distributed.batch_axis_size(mesh)} devices, got {size // accumulate} examples"
        )


def arrays(name: str, data: Any) -> tuple[Any, ...]:
    """A tuple of finite arrays, or pytrees of them, of one leading axis."""
    if not isinstance(data, tuple) or not data:
        raise TypeError(
            f"{name} must be a tuple of arrays such as (x, y), got {type(data).__name__}"
        )
    _validation.batch(**{name: data})
    _validation.finite(name, data)
    return jax.tree.map(jnp.asarray, data)


def _weights(weights: Any, count: int) -> Array | None:
    if weights is None:
        return None
    _validation.floating("weights", weights, rank=1)
    _validation.finite("weights", weights)
    _validation.within("weights", weights, 0, np.inf)
    if len(weights) != count or not np.sum(weights) > 0:
        raise ValueError(
            f"weights must be one for each of {count} examples and not all 0, got {list(np.shape(weights))}"
        )
    return jnp.asarray(weights)
