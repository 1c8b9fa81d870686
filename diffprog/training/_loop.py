"""The road of a training: the engine runs a piece of it, then one looks up, measures, saves, and goes on or not.

No step waits for any of it: the engine is asked for the next half second of steps, and whoever wants to know something is told between two
of them.
"""

import time
from typing import Any, Literal

import numpy as np
import tqdm

from diffprog import descent
from diffprog.training._checkpoint import Checkpoints
from diffprog.training._feed import Feed
from diffprog.training._standing import Standing
from diffprog.training._watched import Watched

Ending = Literal["steps", "until", "patience", "nonfinite", "interrupted"]


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
    with tqdm.tqdm(total=feed.steps, initial=standing.place.steps, disable=hidden, delay=0 if progress else 1) as bar:
        try:
            for piece in feed.pieces(standing.place, short=bool(watched.measures) or checkpoints is not None):
                began, before = time.perf_counter(), standing.place.steps
                for result in descent.pieces(engine, standing.state, piece.xs, until=until, after=standing.latest_cost, progress=False):
                    standing = standing.after(result)
                    if result.ending != "steps":
                        return standing, result.ending
                    share = (standing.place.steps - before) / (piece.after.steps - before)
                    _tell(bar, result, share * piece.examples / (time.perf_counter() - began))
                standing = standing._replace(place=piece.after)
                if piece.ends_epoch and watched.measures:
                    standing = watched.look(standing)
                    if _is_over(standing, watched.patience):
                        return standing, "patience"
                if checkpoints is not None:
                    checkpoints.save(standing, last=standing.place.steps == feed.steps)
        except KeyboardInterrupt:
            return standing, "interrupted"
    # Steps that end in the middle of an epoch: measured here and not saved, so that a run of more steps can go on from there.
    return watched.look(standing) if watched.measures and standing.looked < standing.place.steps else standing, "steps"


def _is_over(standing: Standing, patience: int | None) -> bool:
    epochs = len(standing.measured["loss"])
    return patience is not None and epochs - (0 if standing.best is None else standing.best.epoch) >= patience


def _tell(bar: Any, result: descent.Result, rate: float) -> None:
    bar.update(result.steps)
    bar.set_postfix_str(f"cost={np.float64(result.costs[-1]):.4g}, {rate:.3g} examples/s", refresh=False)
