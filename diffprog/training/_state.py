"""State of a training run: everything that a checkpoint saves to continue the run."""

from typing import Any, NamedTuple

import numpy as np

from diffprog.descent import Result, State
from diffprog.training._data_source import DataPosition


class Best(NamedTuple):
    """Epoch with the lowest held-out loss, counted from 1; its loss; and the state after it.

    The state is the parameters and the optimizer state.
    """

    epoch: int
    loss: float
    state: State


class TrainingState(NamedTuple):
    """State of a training run between two chunks (consecutive steps that run without a stop).

    Attributes:
        position: position in the data.
        state: parameters and optimizer state.
        costs: costs of all steps so far, as arrays to concatenate.
        metrics: dict from the name of each metric to its values, one per epoch.
        evaluated_at: number of steps that had been taken when the metrics were last evaluated.
        best: best epoch so far; None before the end of the first, or without early stopping.
    """

    position: DataPosition
    state: State
    costs: tuple[np.ndarray, ...]
    metrics: dict[str, tuple[float, ...]]
    evaluated_at: int = 0
    best: Best | None = None

    def advance(self, result: Result) -> "TrainingState":
        """Return the training state after a chunk of steps, given the result of these steps."""
        position = self.position._replace(steps=self.position.steps + result.steps)
        return self._replace(
            position=position, state=result.state, costs=(*self.costs, result.costs)
        )

    def add_metrics(self, values: dict[str, float], *, track_best: bool) -> "TrainingState":
        """Return the training state with the values of the metrics after one more epoch.

        With `track_best` it also becomes the best epoch if its "loss" is the lowest so far.
        """
        metrics = {name: (*self.metrics.get(name, ()), value) for name, value in values.items()}
        best = self.best
        if track_best and values["loss"] < (np.inf if best is None else best.loss):
            best = Best(len(metrics["loss"]), values["loss"], self.state)
        return self._replace(metrics=metrics, evaluated_at=self.position.steps, best=best)

    def history(self) -> dict[str, Any]:
        """Return a dict of arrays: "cost", of each step; and each metric by name, of each epoch."""
        costs = np.concatenate(self.costs) if self.costs else np.zeros(0)
        return {"cost": costs} | {name: np.array(values) for name, values in self.metrics.items()}
