"""Compare the speed of functions on a machine with other load.

A time measured alone means little: other processes, clock rate and temperature change it. Functions
called right after one another are slowed down alike, so each round calls every function once, in
random order, and divides by the time of the baseline in that round. The reported ratio is the
median over rounds, with quartiles.

Wall time is what a user waits for. CPU time is summed over all threads of the process: it shows
work that a second core hides, and other processes hardly change it. Results are waited for, as JAX
returns before its work is done.
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
    """Median over rounds, with the lower and the upper quartile."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Comparison(NamedTuple):
    """Seconds of each contender in each round; `str` formats them as a table."""

    baseline: str
    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]

    def wall_ratio(self, name: str) -> Ratio:
        """Return the ratio of wall times to the baseline in the same round."""
        return _ratio(self.wall[name], self.wall[self.baseline])

    def cpu_ratio(self, name: str) -> Ratio:
        """Return the ratio of CPU times to the baseline in the same round."""
        return _ratio(self.cpu[name], self.cpu[self.baseline])

    def __str__(self) -> str:
        header = ("", "wall ms", "wall ratio", "CPU ms", "CPU ratio")
        milliseconds = lambda times: f"{1e3 * statistics.median(times):.3g}"
        rows = [
            (
                name,
                milliseconds(self.wall[name]),
                str(self.wall_ratio(name)),
                milliseconds(self.cpu[name]),
                str(self.cpu_ratio(name)),
            )
            for name in self.wall
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in [header, *rows]
        ]
        rounds = len(self.wall[self.baseline])
        lines.append(f"ratios to {self.baseline}: median [quartiles] of {rounds} rounds")
        return "\n".join(lines)


def compare(
    contenders: Mapping[str, Callable[[], Any]], *, baseline: str, rounds: int, warmup: int = 1
) -> Comparison:
    """Time functions against one of them, interleaved in this process.

    Args:
        contenders: functions without arguments that return arrays, by name.
        baseline: name of the contender whose times the others are divided by.
        rounds: number of timed calls of each, at least 1.
        warmup: number of untimed calls of each before, for compilation; default 1.

    Raises:
        TypeError: a contender is not callable; rounds or warmup is not an integer.
        ValueError: baseline is not a contender; rounds < 1; warmup < 0.

    >>> print(compare({"sum": lambda: sum(range(9))}, baseline="sum", rounds=3).wall_ratio("sum"))
    1.00 [1.00, 1.00]
    """
    for name, contender in contenders.items():
        _validation.function(f"contenders[{name!r}]", contender)
    _validation.choice("baseline", baseline, contenders)
    rounds = _validation.integer("rounds", rounds, low=1)
    warmup = _validation.integer("warmup", warmup, low=0)
    for contender in contenders.values():
        for _ in range(warmup):
            _time(contender)
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    shuffle = random.Random(0)
    for _ in range(rounds):
        for name in shuffle.sample(list(contenders), len(contenders)):
            seconds, cpu_seconds = _time(contenders[name])
            wall[name].append(seconds)
            cpu[name].append(cpu_seconds)
    return Comparison(baseline, wall, cpu)


def machine() -> dict[str, Any]:
    """Describe the machine and the software that was measured."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "processor": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
    }


def write(path: str | Path, comparisons: Mapping[str, Comparison]) -> Path:
    """Write all times and ratios, and the machine, to a JSON file; return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {
        "machine": machine(),
        "comparisons": {case: _to_dict(comparison) for case, comparison in comparisons.items()},
    }
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return path


def _time(function: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(function())
    return time.perf_counter() - wall, time.process_time() - cpu


def _ratio(times: list[float], baseline: list[float]) -> Ratio:
    # A clock too coarse for the baseline measures 0 seconds: the ratio is NaN.
    ratios = [
        ours / theirs if theirs else float("nan")
        for ours, theirs in zip(times, baseline, strict=True)
    ]
    low, median, high = (
        statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    )
    return Ratio(median, low, high)


def _to_dict(comparison: Comparison) -> dict[str, Any]:
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
