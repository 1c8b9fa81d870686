"""Training loop: run a segment of steps, then evaluate, save and check whether to stop.

The engine (`diffprog.descent`) runs the steps of a segment in chunks of about half a second. All
other work is done between two chunks, so that no single step waits for it. The state after a
segment is saved only when the first cost after it is known to be finite. If that cost is not
finite, the last step of the segment led to it and is undone.
"""

import time
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import tqdm

from diffprog import descent
from diffprog.training._checkpoint import Checkpoints
from diffprog.training._data_source import DataSource, Segment
from diffprog.training._evaluation import Evaluator
from diffprog.training._state import TrainingState

Ending = Literal["steps", "until", "patience", "nonfinite", "interrupted"]


def train(
    engine: descent.Descent,
    state: TrainingState,
    source: DataSource,
    evaluator: Evaluator,
    checkpoints: Checkpoints | None,
    until: float | None,
    progress: bool | None,
) -> tuple[TrainingState, Ending]:
    """Run the training loop from `state`; return the final state and the reason it ended.

    `engine` computes the steps, `source` gives their inputs, and `evaluator` evaluates metrics and
    decides on early stopping. Without `checkpoints` nothing is saved. `until` and `progress` are
    those of `fit`; the reason for the end is as in `Fit.ending`.
    """
    unsaved: TrainingState | None = None
    previous: tuple[TrainingState, Segment] | None = None
    first_chunk = 1
    with tqdm.tqdm(
        total=source.steps,
        initial=state.position.steps,
        disable=None if progress is None else not progress,
        delay=0 if progress else 1,
    ) as bar:
        try:
            for segment in source.segments(state.position):
                before, start_time = state, time.perf_counter()
                for result in _run_segment(
                    engine,
                    state.state,
                    segment,
                    segment.steps,
                    until=until,
                    previous_cost=float(state.costs[-1][-1]) if state.costs else np.nan,
                    first_chunk=first_chunk,
                ):
                    is_first = state is before
                    state = state.advance(result)
                    if result.ending != "steps":
                        starts_nonfinite = is_first and len(result.costs) == 1
                        if result.ending == "nonfinite" and starts_nonfinite and previous:
                            state = _undo_step(engine, state, *previous)
                        return state, result.ending
                    if checkpoints is not None and unsaved is not None:
                        checkpoints.save(unsaved)
                        unsaved = None
                    steps = state.position.steps - before.position.steps
                    seconds = time.perf_counter() - start_time
                    first_chunk = descent.chunk_length(steps, seconds)
                    rate = steps / seconds * segment.examples / segment.steps
                    bar.update(result.steps)
                    bar.set_postfix_str(
                        f"cost={np.float64(result.costs[-1]):.4g}, {rate:.3g} examples/s",
                        refresh=False,
                    )
                previous = (before, segment) if segment.steps else previous
                state = state._replace(position=segment.end)
                if segment.ends_epoch:
                    state = evaluator.evaluate(state)
                    if evaluator.is_patience_exhausted(state):
                        return state, "patience"
                unsaved = state
        except KeyboardInterrupt:
            if checkpoints is not None and unsaved is not None:
                checkpoints.save(unsaved, force=True)
            return state, "interrupted"
    if checkpoints is not None and unsaved is not None:
        checkpoints.save(unsaved, force=True)
    # A run may end within an epoch. The metrics there are not saved: a longer run has none there.
    return evaluator.evaluate(state), "steps"


def _run_segment(
    engine: descent.Descent, state: descent.State, segment: Segment, steps: int, **options: Any
) -> Iterator[descent.Result]:
    """Run the first `steps` steps of a segment from `state`; iterate over results of its chunks.

    `options` are those of `descent.run_in_chunks`.
    """
    if steps == 0:
        return iter(())
    xs = iter(segment.xs[:steps]) if isinstance(segment.xs, list) else segment.xs
    return descent.run_in_chunks(engine, state, xs, steps=steps, progress=False, **options)


def _undo_step(
    engine: descent.Descent, state: TrainingState, before: TrainingState, segment: Segment
) -> TrainingState:
    """Return the training state `state` with the last step of `segment` undone.

    The other steps of the segment are run again from `before`, the state in which it started.
    """
    earlier = before.state
    for result in _run_segment(engine, earlier, segment, segment.steps - 1):
        earlier = result.state
    position = state.position._replace(steps=state.position.steps - 1)
    return state._replace(position=position, state=earlier)
