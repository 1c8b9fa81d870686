"""Checkpoints of a training run, saved in the background by orbax.

    folder/STEP/arrays       parameters and optimizer state, both after the latest step and after
                             the best epoch; and the costs of all steps
    folder/STEP/metadata     position in the data, metrics, fingerprint of the run, and checksums

A run continues from the latest checkpoint. Since the batch and the PRNG key of a step depend on its
number alone, the run ends with the same bits as without the interruption. Orbax renames a
checkpoint when it is complete, so if the process is killed while saving, the previous checkpoint is
still there. Orbax does not verify the arrays that it reads, so this module compares a checksum.
"""

import json
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
from diffprog.training._data_source import DataPosition
from diffprog.training._state import Best, TrainingState

# After a save that took t seconds, 20 t pass before the next, so that saving takes little time.
_PAUSE_FACTOR = 20


class Checkpoints:
    """Saves and restores the checkpoints of one training run in a folder.

    Args:
        folder: folder of the checkpoints; created if it does not exist.
        fingerprint: values that identify the run, as a JSON dict; `restore` refuses a checkpoint
            with other values.

    Raises:
        ImportError: orbax is not installed.
        TypeError, ValueError: `folder` is not the path of a folder.
    """

    def __init__(self, folder: str | Path, fingerprint: dict[str, Any]) -> None:
        try:
            import orbax.checkpoint as ocp
        except ImportError as error:
            message = "checkpoint needs orbax: pip install 'diffprog[checkpoint]'"
            raise ImportError(message) from error
        if not isinstance(folder, str | os.PathLike) or not str(folder):
            raise TypeError(f"checkpoint must be the path of a folder, got {folder!r}")
        self._folder = Path(folder).expanduser().absolute()
        if self._folder.exists() and not self._folder.is_dir():
            raise ValueError(f"checkpoint must be a folder, got the file {str(folder)!r}")
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self._manager, self._args = ocp.CheckpointManager(self._folder, options=options), ocp.args
        self._fingerprint = fingerprint
        self._save_start: float | None = None
        self.close = self._manager.close  # waits until all is written

    def restore(self, start: TrainingState) -> TrainingState:
        """Return the training state in the latest checkpoint, or `start` if there is none.

        Its arrays get the sharding of those in `start`.

        Raises:
            ValueError: the checkpoint is damaged, or of another run.
        """
        step = self._manager.latest_step()
        if step is None:
            return start
        try:
            return self._restore(step, start)
        except Exception as error:
            raise ValueError(
                f"checkpoint {self._folder / str(step)} cannot be used; delete it to continue from "
                f"an earlier one, or the folder to start again: {error!s:.500}"
            ) from error

    def _restore(self, step: int, start: TrainingState) -> TrainingState:
        args, read = self._args, self._manager.restore
        saved = read(step, args=args.Composite(metadata=args.JsonRestore()))["metadata"]
        if zlib.crc32(saved["text"].encode()) != saved["checksum"]:
            raise ValueError("it is damaged, the checksum of its metadata differs")
        metadata = json.loads(saved["text"])
        fingerprint = metadata["fingerprint"]
        differences = [
            f"{name} is {fingerprint.get(name, 'missing')} in the checkpoint, "
            f"{self._fingerprint.get(name, 'missing')} here"
            for name in self._fingerprint | fingerprint
            if fingerprint.get(name) != self._fingerprint.get(name)
        ]
        if differences:
            raise ValueError(f"it is of another run, {'; '.join(differences)}")
        position, best = DataPosition(*metadata["position"]), metadata["best"]
        costs = np.zeros(position.steps, metadata["cost_dtype"])
        like, structure = jax.tree.flatten((start.state, best and start.state, costs))
        leaves = read(step, args=args.Composite(arrays=args.StandardRestore(like)))["arrays"]
        if checksum(leaves) != metadata["checksum"]:
            raise ValueError("it is damaged, the checksum of its arrays differs")
        state, best_state, costs = jax.tree.unflatten(structure, leaves)
        metrics = {name: tuple(values) for name, values in metadata["metrics"].items()}
        best = best and Best(**best, state=best_state)
        return TrainingState(position, state, (costs,), metrics, metadata["evaluated_at"], best)

    def save(self, state: TrainingState, *, force: bool = False) -> None:
        """Save a training state in the background, unless the last save was too recent.

        `force` saves it however recent the last save was.
        """
        step = state.position.steps
        if step == self._manager.latest_step() or not (force or self._is_due()):
            return
        self._save_start = time.time()
        costs, best = state.history()["cost"], state.best
        arrays = jax.tree.leaves((state.state, best and best.state, costs))
        metadata = {
            "fingerprint": self._fingerprint,
            "position": state.position,
            "cost_dtype": str(costs.dtype),
            "metrics": state.metrics,
            "evaluated_at": state.evaluated_at,
            "best": best and {"epoch": best.epoch, "loss": best.loss},
            "checksum": checksum(arrays),
        }
        text, args = json.dumps(metadata), self._args
        saved = {"text": text, "checksum": zlib.crc32(text.encode())}
        items = args.Composite(arrays=args.StandardSave(arrays), metadata=args.JsonSave(saved))
        self._manager.save(step, args=items, force=True)

    def _is_due(self) -> bool:
        due = jax.process_index() == 0 and not self._manager.is_saving_in_progress()
        if due and self._save_start is not None:
            end = (self._folder / str(self._manager.latest_step())).stat().st_mtime
            due = time.time() >= end + _PAUSE_FACTOR * max(end - self._save_start, 0)
        if jax.process_count() == 1:
            return due
        return bool(multihost_utils.broadcast_one_to_all(np.array(due)))  # process 0 decides


def make_fingerprint(state: State, **others: Any) -> dict[str, Any]:
    """Return a JSON dict that identifies a run by its initial state and `others`.

    It has dtype and shape of each array of the state, their checksum, and `others`.
    """
    arrays = {
        f"state {name}": f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _named_leaves(state)
    }
    return arrays | {"start checksum": checksum(state)} | others


def checksum(tree: Any) -> int:
    """Return a 32-bit checksum of the names and bits of all arrays in a pytree.

    It does not depend on how the arrays are sharded.
    """
    leaves = _named_leaves(tree)
    sums = distributed.fetch([_bit_sum(leaf) for _, leaf in leaves])
    named = [(name, int(total)) for (name, _), total in zip(leaves, sums, strict=True)]
    return zlib.crc32(repr(named).encode())


@jax.jit
def _bit_sum(leaf: Any) -> jax.Array:
    """Return a 32-bit checksum of an array, which a change of a single entry always changes.

    The bit pattern of each entry is read as an integer and multiplied by an odd number that depends
    on its index; the checksum is the sum modulo 2^32.
    """
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    leaf = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
    dtype = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(leaf, dtype).astype(jnp.uint32)
    index = jnp.arange(bits.size, dtype=jnp.uint32).reshape(bits.shape)
    return ((bits ^ (bits >> 15)) * (2 * index + 1)).sum(dtype=jnp.uint32)


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
