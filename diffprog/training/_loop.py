"""The road of a training: the engine runs a piece of it, then one looks up, measures, saves, and goes on or not.

No step waits for any of it: the engine is asked for the next half second of steps, and whoever wants to know something is told between two
of them. What a piece has come to counts, and is saved, when the first cost after it is finite too; otherwise its last step is taken back.
"""

import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tqdm

from diffprog import descent
from diffprog.training._checkpoint import Checkpoints
from diffprog.training._evaluation import Watched
from diffprog.training._feed import Feed, Piece
from diffprog.training._state import Standing

Ending = Literal["steps", "until", "patience", "nonfinite", "interrupted"]


class _Road(NamedTuple):
    """The piece that has been run last, and how the training stood before it."""

    before: Standing
    piece: Piece

    def step_earlier(self, engine: descent.Descent) -> descent.State:
        """The state one step before its end."""
        count = self.piece.steps - 1
        if count == 0:
            return self.before.state
        xs = (
            self.piece.xs[:count]
            if isinstance(self.piece.xs, list)
            else jax.tree.map(lambda leaf: leaf[:count], self.piece.xs)
        )
        return descent.run(
            engine, self.before.state, iter(xs) if isinstance(xs, list) else xs, progress=False
        ).state


def train(
    engine: descent.Descent,
    standing: Standing,
    feed: Feed,
    watched: Watched,
    checkpoints: Checkpoints | None,
    until: float | None,
    progress: bool | None,
) -> tuple[Standing, Ending]:
    """Go on from where a training stands, to its end."""
    hidden = None if progress is None else not progress
    unsaved, road, at_once = None, None, 1
    with tqdm.tqdm(
        total=feed.steps, initial=standing.place.steps, disable=hidden, delay=0 if progress else 1
    ) as bar:
        try:
            for piece in feed.pieces(standing.place):
                before, began = standing, time.perf_counter()
                for result in _results(engine, standing, piece, until, at_once):
                    first = standing is before
                    standing = standing.after(result)
                    if (
                        result.ending == "nonfinite"
                        and first
                        and len(result.costs) == 1
                        and road is not None
                    ):
                        return standing.back(road.step_earlier(engine)), result.ending
                    if result.ending != "steps":
                        return standing, result.ending
                    if checkpoints is not None and unsaved is not None:
                        checkpoints.save(unsaved)
                        unsaved = None
                    done, seconds = (
                        standing.place.steps - before.place.steps,
                        time.perf_counter() - began,
                    )
                    at_once = descent.chunk_length(done, seconds)
                    _tell(bar, result, done / seconds * piece.examples / piece.steps)
                road = _Road(before, piece) if piece.steps else road
                standing = standing._replace(place=piece.after)
                if piece.ends_epoch and watched.measures and standing.looked < standing.place.steps:
                    standing = watched.look(standing)
                    if _is_over(standing, watched.patience):
                        return standing, "patience"
                unsaved = standing
        except KeyboardInterrupt:
            if checkpoints is not None and unsaved is not None:
                checkpoints.save_last(unsaved)
            return standing, "interrupted"
    if checkpoints is not None and unsaved is not None:
        checkpoints.save_last(unsaved)
    # Steps that end in the middle of an epoch: measured here and not saved, so that a run of more steps can go on from there.
    return watched.look(
        standing
    ) if watched.measures and standing.looked < standing.place.steps else standing, "steps"


def _results(
    engine: descent.Descent, standing: Standing, piece: Piece, until: float | None, at_once: int
) -> Iterator[descent.Result] | tuple[()]:
    if piece.steps == 0:
        return ()
    xs = iter(piece.xs) if isinstance(piece.xs, list) else piece.xs
    known = {
        "steps": piece.steps,
        "until": until,
        "previous_cost": standing.latest_cost,
        "first_chunk": at_once,
    }
    return descent.run_in_chunks(engine, standing.state, xs, progress=False, **known)  # type: ignore[arg-type]


def _is_over(standing: Standing, patience: int | None) -> bool:
    epochs = len(standing.measured["loss"])
    return (
        patience is not None
        and epochs - (0 if standing.best is None else standing.best.epoch) >= patience
    )


def _tell(bar: Any, result: descent.Result, rate: float) -> None:
    bar.update(result.steps)
    bar.set_postfix_str(
        f"cost={np.float64(result.costs[-1]):.4g}, {rate:.3g} examples/s", refresh=False
    )
