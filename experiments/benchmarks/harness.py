"""Comparing the speed of functions on a machine that is not quiet.

A time measured alone says little: other work on the machine, its clock and its temperature drift. Two functions called right after one
another see the same drift, so what is kept is a *ratio within a round*. Every round calls every contender once, in shuffled order, and
divides by the baseline's time of that round; the ratio reported is the median over rounds, with the quartiles as its spread.

Wall time is what a person waits. CPU time adds up all threads of the process: it shows work that a second core hides, and is hardly moved
by other processes. Every result is waited for, since JAX returns before its work is done.
"""

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffprog import _validation


class Ratio(NamedTuple):
    """The median over rounds, and the quartiles below and above it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Comparison(NamedTuple):
    """Seconds that each contender took in each round; `str` is a table."""

    baseline: str
    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]

    def wall_ratio(self, name: str) -> Ratio:
        """Wall time over the baseline's in the same round."""
        return _ratio(self.wall[name], self.wall[self.baseline])

    def cpu_ratio(self, name: str) -> Ratio:
        """CPU time over the baseline's in the same round."""
        return _ratio(self.cpu[name], self.cpu[self.baseline])

    def __str__(self) -> str:
        header = ("", "wall ms", "wall ratio", "CPU ms", "CPU ratio")
        rows = [
            (
                name,
                _milliseconds(self.wall[name]),
                str(self.wall_ratio(name)),
                _milliseconds(self.cpu[name]),
                str(self.cpu_ratio(name)),
            )
            for name in self.wall
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in [header, *rows]
        ]
        return "\n".join(
            [
                *lines,
                f"ratios to {self.baseline}: median [quartiles] of {len(self.wall[self.baseline])} rounds",
            ]
        )


def compare(
    contenders: Mapping[str, Callable[[], Any]], *, baseline: str, rounds: int, warmup: int = 1
) -> Comparison:
    """Time the contenders against one of them, interleaved in this process.

    Args:
        contenders: functions of no argument that return arrays, by name.
        baseline: the name of the one the others are divided by.
        rounds: how often each is called and timed, at least 1.
        warmup: how often each is called before, untimed, so that compilation is not measured.

    Raises:
        TypeError, ValueError: a contender that cannot be called, an unknown baseline, rounds < 1, warmup < 0.

    >>> print(compare({"sum": lambda: sum(range(9))}, baseline="sum", rounds=3).wall_ratio("sum"))
    1.00 [1.00, 1.00]
    """
    for name, contender in contenders.items():
        _validation.function(f"contenders[{name!r}]", contender)
    _validation.choice("baseline", baseline, contenders)
    rounds, warmup = (
        _validation.integer("rounds", rounds, low=1),
        _validation.integer("warmup", warmup, low=0),
    )
    for contender in contenders.values():
        for _ in range(warmup):
            _timed(contender)
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    shuffle = random.Random(0)
    for _ in range(rounds):
        for name in shuffle.sample(list(contenders), len(contenders)):
            seconds, cpu_seconds = _timed(contenders[name])
            wall[name].append(seconds)
            cpu[name].append(cpu_seconds)
    return Comparison(baseline, wall, cpu)


def machine() -> dict[str, Any]:
    """What the times depend on beside the code."""
    return {
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "processor": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
    }


def write(path: str | Path, comparisons: Mapping[str, Comparison]) -> Path:
    """Every time and ratio, with the machine they were measured on, as JSON; makes the folder, returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {
        "machine": machine(),
        "comparisons": {case: _plain(comparison) for case, comparison in comparisons.items()},
    }
    path.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return path


def _timed(function: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(function())
    return time.perf_counter() - wall, time.process_time() - cpu


def _ratio(times: list[float], baseline: list[float]) -> Ratio:
    # A clock too coarse for the baseline says nothing: nan, rather than an end of the run.
    ratios = [
        ours / theirs if theirs else float("nan")
        for ours, theirs in zip(times, baseline, strict=True)
    ]
    low, median, high = (
        statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    )
    return Ratio(median, low, high)


def _milliseconds(times: list[float]) -> str:
    return f"{1e3 * statistics.median(times):.3g}"


def _plain(comparison: Comparison) -> dict[str, Any]:
    contenders = {
        name: {
            "wall_seconds": comparison.wall[name],
            "cpu_seconds": comparison.cpu[name],
            "wall_ratio": comparison.wall_ratio(name)._asdict(),
            "cpu_ratio": comparison.cpu_ratio(name)._asdict(),
        }
        for name in comparison.wall
    }
    return {"baseline": comparison.baseline, "contenders": contenders}
