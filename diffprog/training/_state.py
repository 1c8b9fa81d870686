"""State of a training run: all that is needed to continue it, and so what a checkpoint saves."""

from typing import Any, NamedTuple

import numpy as np

from diffprog.descent import Result, State
from diffprog.training._data_source import DataPosition


class Best(NamedTuple):
    """Epoch with the lowest held-out loss, that loss, and the engine's state after the epoch."""

    epoch: int
    loss: float
    state: State


class TrainingState(NamedTuple):
    """State of a training run between two chunks of steps.

    Attributes:
        position: position in the data.
        state: parameters and optimizer state.
        costs: costs of the steps so far, as consecutive arrays.
        metrics: values of each metric, one per epoch.
        evaluated_at: number of steps before the last evaluation of the metrics.
        best: snapshot of the best epoch so far; None before the first, or without `patience`.
    """

    position: DataPosition
    state: State
    costs: tuple[np.ndarray, ...]
    metrics: dict[str, tuple[float, ...]]
    evaluated_at: int = 0
    best: Best | None = None

    def advance(self, result: Result) -> "TrainingState":
        """Return the training state after a chunk of steps, given the engine's result."""
        position = self.position._replace(steps=self.position.steps + result.steps)
        return self._replace(
            position=position, state=result.state, costs=(*self.costs, result.costs)
        )

    def add_metrics(self, values: dict[str, float], *, track_best: bool) -> "TrainingState":
        """Return the training state with the metrics of one more epoch."""
        metrics = {name: (*self.metrics.get(name, ()), value) for name, value in values.items()}
        best = self.best
        if track_best and values["loss"] < (np.inf if best is None else best.loss):
            best = Best(len(metrics["loss"]), values["loss"], self.state)
        return self._replace(metrics=metrics, evaluated_at=self.position.steps, best=best)

    def history(self) -> dict[str, Any]:
        """Return the costs of all steps and the values of each metric, as arrays by name."""
        costs = np.concatenate(self.costs) if self.costs else np.zeros(0)
        return {"cost": costs} | {name: np.array(values) for name, values in self.metrics.items()}
