"""What survives a kill: the standing of a training, saved by orbax while the steps go on, and found whole or not at all.

    folder/STEP/arrays       state of the engine (parameters and optimizer), the best one, and the costs
    folder/STEP/standing     JSON: place, metrics, what the run is of, and a checksum of every array

A run goes on from the last checkpoint, and since what a step sees follows from its number and the keys, it ends where it would have ended
without the kill, to the bit. Orbax writes beside and renames, so a kill while it saves leaves the checkpoint before. After a save twenty
times what it took, from its begin until all was written, goes by before the next: saving takes no more than a twentieth of the time.
"""

import json
import math
import os
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from diffprog import distributed
from diffprog.descent import State
from diffprog.training._feed import Place
from diffprog.training._state import Best, Standing

_KEPT, _SHARE = 2, 20

Identity = dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in a folder.

    Args:
        folder: made if there is none.
        identity: what the run is of, JSON; a checkpoint of another is refused.

    Raises:
        ImportError: orbax is not installed.
        ValueError: something that is no folder is in the way.
    """

    def __init__(self, folder: str | Path, identity: Identity) -> None:
        self._ocp, self._identity = _orbax(), identity
        if not isinstance(folder, str | os.PathLike) or not str(folder):
            raise TypeError(f"checkpoint must be the path of a folder, got {folder!r}")
        self._folder = Path(folder).expanduser().absolute()
        if self._folder.exists() and not self._folder.is_dir():
            raise ValueError(f"checkpoint must be a folder, got the file {str(folder)!r}")
        options = self._ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT, cleanup_tmp_directories=True
        )
        self._manager = self._ocp.CheckpointManager(self._folder, options=options)
        self._latest: tuple[int, float] | None = None

    def restored(self, start: Standing) -> Standing:
        """How the run stands after the last checkpoint; as it starts, if there is none.

        Raises:
            ValueError: the checkpoint is of another run, with what differs, or cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return start
        where, args = str(self._folder / str(step)), self._ocp.args
        said = _whole(where, self._read(where, step, standing=args.JsonRestore())["standing"])
        self._require_same(where, said)
        kinds = _arrays(
            start._replace(best=said["best"] and Best(0, 0.0, start.state)),
            np.zeros(said["place"][0], said["costs"]),
        )
        like = jax.tree.map(_like, kinds)
        arrays = self._read(where, step, arrays=args.StandardRestore(like))["arrays"]
        found = {name: int(bits) for name, bits in _checksums(arrays).items()}
        if wrong := sorted(name for name in found if found[name] != said["checksums"].get(name)):
            raise ValueError(
                f"checkpoint {where} is corrupt: {len(wrong)} of {len(found)} arrays are not what was saved, {', '.join(wrong)}"
            )
        self._latest = step, time.time()
        return _standing(start, arrays, said)

    def save(self, standing: Standing) -> None:
        """Begin to save, unless it is too early; the steps go on meanwhile."""
        if self._is_due():
            self.save_last(standing)

    def save_last(self, standing: Standing) -> None:
        """Begin to save, however early."""
        if self._latest is None or self._latest[0] != standing.place.steps:
            self._latest = standing.place.steps, time.time()
            self._write(standing)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until all is written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _is_due(self) -> bool:
        first = jax.process_index() == 0
        due = first and not self._manager.is_saving_in_progress() and time.time() >= self._next()
        return (
            due
            if jax.process_count() == 1
            else bool(multihost_utils.broadcast_one_to_all(np.array(due)))
        )

    def _next(self) -> float:
        """When to save again: twenty times later than the last was written, as it took. Its folder knows when that was."""
        if self._latest is None:
            return -math.inf
        step, began = self._latest
        written = (self._folder / str(step)).stat().st_mtime
        return written + _SHARE * max(written - began, 0)

    def _write(self, standing: Standing) -> None:
        arrays = _arrays(standing, standing.history()["cost"])
        said = {
            "run": self._identity,
            "place": list(standing.place),
            "costs": str(arrays["costs"].dtype),
            "measured": {
                name: [value.hex() for value in values]
                for name, values in standing.measured.items()
            },
            "looked": standing.looked,
            "best": standing.best and [standing.best.epoch, standing.best.loss.hex()],
            "checksums": {name: int(bits) for name, bits in _checksums(arrays).items()},
        }
        args = self._ocp.args
        self._manager.save(
            standing.place.steps,
            args=args.Composite(
                arrays=args.StandardSave(arrays), standing=args.JsonSave(_sealed(said))
            ),
            force=True,
        )

    def _read(self, where: str, step: int, **args: Any) -> Any:
        try:
            return self._manager.restore(step, args=self._ocp.args.Composite(**args))
        except Exception as error:
            hint = "delete it, to go on from an earlier one, or the folder, to begin anew"
            raise ValueError(
                f"checkpoint {where} cannot be read; {hint}: {type(error).__name__}: {error!s:.200}"
            ) from error

    def _require_same(self, where: str, said: Any) -> None:
        differ = [
            f"{name} {key}: {saved.get(key, 'nothing')} there, {given.get(key, 'nothing')} here"
            for name in dict.fromkeys([*self._identity, *said["run"]])
            for saved, given in [(said["run"].get(name, {}), self._identity.get(name, {}))]
            for key in dict.fromkeys([*given, *saved])
            if saved.get(key) != given.get(key)
        ]
        if differ:
            raise ValueError(f"checkpoint {where} is of another run: {'; '.join(differ)}")


def identity(state: State, **others: dict[str, Any]) -> Identity:
    """What a run is of: the arrays of its state by name, and whatever else must be the same."""
    named = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _named(state).items()}
    return {"state": named} | others


def _sealed(said: dict[str, Any]) -> dict[str, Any]:
    return said | {"seal": zlib.crc32(json.dumps(said, sort_keys=True).encode())}


def _whole(where: str, said: Any) -> dict[str, Any]:
    """What was said, if it is what was sealed."""
    if (
        isinstance(said, dict)
        and _sealed({name: value for name, value in said.items() if name != "seal"}) == said
    ):
        return said
    raise ValueError(f"checkpoint {where} is corrupt: its standing is not what was saved")


def checksum(tree: Any) -> int:
    """A number that other arrays are most unlikely to have: a weighted sum of their bits, wherever they lie."""
    total = 0
    for name, bits in sorted(_checksums(tree).items()):
        total = (31 * total + int(bits) + len(name)) % 2**32
    return total


def _checksums(tree: Any) -> dict[str, Any]:
    return distributed.fetch({name: _bits(leaf) for name, leaf in _named(tree).items()})


@jax.jit
def _bits(leaf: Any) -> jax.Array:
    leaf = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
    kind = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(leaf, kind).astype(jnp.uint32)
    places = jnp.arange(bits.size, dtype=jnp.uint32).reshape(bits.shape)
    return ((bits ^ (bits >> 15)) * (2 * places + 1)).sum(dtype=jnp.uint32)


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(_plain, tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _arrays(standing: Standing, costs: np.ndarray) -> dict[str, Any]:
    best = (
        {}
        if standing.best is None
        else {"best": jax.tree.leaves(jax.tree.map(_plain, standing.best.state))}
    )
    return {"state": jax.tree.leaves(jax.tree.map(_plain, standing.state)), "costs": costs, **best}


def _like(leaf: Any) -> Any:
    return (
        leaf
        if isinstance(leaf, np.ndarray)
        else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    )


def _standing(start: Standing, arrays: dict[str, Any], said: Any) -> Standing:
    def state(leaves: list[Any]) -> State:
        like, structure = jax.tree.flatten(start.state)
        return jax.tree.unflatten(
            structure, [_as(leaf, kind) for leaf, kind in zip(leaves, like, strict=True)]
        )

    measured = {
        name: tuple(map(float.fromhex, values)) for name, values in said["measured"].items()
    }
    best = said["best"] and Best(
        said["best"][0], float.fromhex(said["best"][1]), state(arrays["best"])
    )
    return Standing(
        Place(*said["place"]),
        state(arrays["state"]),
        (np.asarray(arrays["costs"]),),
        measured,
        said["looked"],
        best,
    )


def _as(leaf: Any, kind: Any) -> Any:
    return (
        jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(kind))
        if jnp.issubdtype(kind.dtype, jax.dtypes.prng_key)
        else leaf
    )


def _orbax() -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError("checkpoint needs orbax: pip install 'diffprog[checkpoint]'") from error
    return ocp
