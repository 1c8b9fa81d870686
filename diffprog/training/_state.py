"""How a training stands: all that has to be known to go on as if nothing had happened, and so what a checkpoint holds."""

from typing import Any, NamedTuple

import numpy as np

from diffprog.descent import Result, State
from diffprog.training._feed import Place


class Best(NamedTuple):
    """Where the held-out loss was least: after which epoch, how little, and the state."""

    epoch: int
    loss: float
    state: State


class Standing(NamedTuple):
    """A training so far.

    Attributes:
        place: where it stands in the data.
        state: of the engine.
        costs: of the steps, in arrays one after another.
        measured: of each metric its values, one for each epoch.
        looked: the steps that had been taken when they were measured last.
        best: None before the first epoch, and where nobody asks for it.
    """

    place: Place
    state: State
    costs: tuple[np.ndarray, ...] = ()
    measured: dict[str, tuple[float, ...]] = {}
    looked: int = 0
    best: Best | None = None

    @property
    def latest_cost(self) -> float:
        """NaN before the first."""
        return float(self.costs[-1][-1]) if self.costs else np.nan

    def after(self, result: Result) -> "Standing":
        """With what the engine has come back with."""
        place = self.place._replace(steps=self.place.steps + result.steps)
        return self._replace(place=place, state=result.state, costs=(*self.costs, result.costs))

    def back(self, state: State) -> "Standing":
        """A step earlier, with the state of then; a cost that has been seen stays seen."""
        return self._replace(place=self.place._replace(steps=self.place.steps - 1), state=state)

    def looked_at(self, values: dict[str, float], keep_best: bool) -> "Standing":
        """With the metrics of another epoch."""
        measured = {name: (*self.measured.get(name, ()), value) for name, value in values.items()}
        least = np.inf if self.best is None else self.best.loss
        better = keep_best and values["loss"] < least
        best = Best(len(measured["loss"]), values["loss"], self.state) if better else self.best
        return self._replace(measured=measured, looked=self.place.steps, best=best)

    def history(self) -> dict[str, Any]:
        """The costs of all steps, and every metric over the epochs."""
        costs = np.concatenate(self.costs) if self.costs else np.zeros(0)
        return {"cost": costs} | {name: np.array(values) for name, values in self.measured.items()}
