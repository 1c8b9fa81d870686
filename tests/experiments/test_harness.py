import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import __main__ as command
from experiments.benchmarks import harness


class Clock:
    """Fake clock that only contenders advance."""

    def __init__(self, monkeypatch):
        self.wall = self.cpu = 0.0
        monkeypatch.setattr(harness.time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(harness.time, "process_time", lambda: self.cpu)

    def takes(self, wall: float, cpu: float):
        def contender():
            self.wall += wall
            self.cpu += cpu

        return contender


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_ratios_are_to_the_baseline_on_each_clock(clock):
    comparison = harness.compare(
        {"bare": clock.takes(2, 4), "ours": clock.takes(3, 2)}, baseline="bare", rounds=4, warmup=0
    )
    assert comparison.wall_ratio("ours") == pytest.approx((1.5, 1.5, 1.5))
    assert comparison.cpu_ratio("ours") == pytest.approx((0.5, 0.5, 0.5))
    assert comparison.wall_ratio("bare") == comparison.cpu_ratio("bare") == (1, 1, 1)


def test_drift_between_rounds_does_not_change_the_ratio(clock):
    slow = iter([1.0, 1.0, 10.0, 10.0, 3.0, 3.0])

    def drifting(seconds):
        def contender():
            clock.wall += seconds * next(slow)

        return contender

    comparison = harness.compare(
        {"bare": drifting(1), "ours": drifting(2)}, baseline="bare", rounds=3, warmup=0
    )
    assert comparison.wall_ratio("ours") == pytest.approx((2, 2, 2))


def test_ratio_is_median_and_quartiles():
    comparison = harness.Comparison(
        "a", {"a": [1.0] * 5, "b": [5.0, 1.0, 4.0, 2.0, 3.0]}, {"a": [1.0] * 5, "b": [2.0] * 5}
    )
    assert comparison.wall_ratio("b") == (3, 2, 4)


def test_single_round_has_no_spread(clock):
    comparison = harness.compare(
        {"a": clock.takes(1, 1), "b": clock.takes(2, 1)}, baseline="a", rounds=1, warmup=0
    )
    assert comparison.wall_ratio("b") == (2, 2, 2)


def test_every_round_calls_each_once_in_random_order():
    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    harness.compare(contenders, baseline="a", rounds=20, warmup=2)
    assert calls[:6] == ["a", "a", "b", "b", "c", "c"]
    rounds = [tuple(calls[start : start + 3]) for start in range(6, len(calls), 3)]
    assert len(rounds) == 20
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) == 6


def test_results_are_waited_for(monkeypatch):
    awaited = []
    monkeypatch.setattr(harness.jax, "block_until_ready", awaited.append)
    harness.compare({"a": lambda: "result"}, baseline="a", rounds=2, warmup=1)
    assert awaited == ["result"] * 3


def test_more_work_takes_longer_on_the_real_clocks():
    small, large = jnp.ones((50, 50)), jnp.ones((800, 800))
    product = jax.jit(lambda a: a @ a)
    comparison = harness.compare(
        {"small": lambda: product(small), "large": lambda: product(large)},
        baseline="small",
        rounds=5,
        warmup=1,
    )
    assert comparison.wall_ratio("large").median > 2
    assert comparison.cpu_ratio("large").median > 2


def test_too_coarse_clock_gives_nan(clock):
    comparison = harness.compare({"a": clock.takes(1, 0)}, baseline="a", rounds=1, warmup=0)
    assert str(comparison.cpu_ratio("a")) == "nan [nan, nan]"


def test_table_has_times_and_ratios(clock):
    comparison = harness.compare(
        {"bare": clock.takes(0.002, 0.004), "ours": clock.takes(0.003, 0.002)},
        baseline="bare",
        rounds=4,
        warmup=0,
    )
    assert str(comparison).splitlines() == [
        "      wall ms         wall ratio  CPU ms          CPU ratio",
        "bare        2  1.00 [1.00, 1.00]       4  1.00 [1.00, 1.00]",
        "ours        3  1.50 [1.50, 1.50]       2  0.50 [0.50, 0.50]",
        "ratios to bare: median [quartiles] of 4 rounds",
    ]


def test_file_has_the_machine_and_every_time(clock, tmp_path):
    comparison = harness.compare(
        {"bare": clock.takes(2, 4), "ours": clock.takes(3, 2)}, baseline="bare", rounds=2, warmup=0
    )
    saved = json.loads(
        harness.write(tmp_path / "deep" / "times.json", {"mlp": comparison}).read_text()
    )
    assert saved["machine"]["jax"] == jax.__version__
    assert saved["machine"]["backend"] == jax.default_backend()
    assert saved["machine"]["cores"] >= 1
    assert saved["comparisons"]["mlp"]["baseline"] == "bare"
    ours = saved["comparisons"]["mlp"]["contenders"]["ours"]
    assert ours["wall_seconds"] == pytest.approx([3, 3])
    assert ours["cpu_ratio"] == pytest.approx({"median": 0.5, "low": 0.5, "high": 0.5})


def test_command_prints_a_table_and_writes_a_file(clock, tmp_path, monkeypatch, capsys):
    def main(fast):
        return {
            f"fast={fast}": harness.compare({"bare": clock.takes(2, 4)}, baseline="bare", rounds=2)
        }

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "experiments.benchmarks.made_up", SimpleNamespace(main=main))
    command.main(["made_up"], fast=True)
    assert list(
        json.loads((tmp_path / "results/benchmarks/made_up.json").read_text())["comparisons"]
    ) == ["fast=True"]
    assert "made_up: fast=True\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"contenders": {"a": 3}}, TypeError, r"contenders\['a'\] must be callable, got int"),
        ({"baseline": "b"}, ValueError, "baseline must be one of 'a', got 'b'"),
        ({"contenders": {}}, ValueError, "baseline must be one of"),
        ({"rounds": 0}, ValueError, "rounds must be an integer >= 1, got 0"),
        ({"rounds": 1.5}, TypeError, "rounds must be an integer, got float"),
        ({"warmup": -1}, ValueError, "warmup must be an integer >= 0, got -1"),
    ],
)
def test_invalid_arguments_are_errors(change, error, message):
    arguments = {
        "contenders": {"a": lambda: None},
        "baseline": "a",
        "rounds": 1,
        "warmup": 0,
    } | change
    with pytest.raises(error, match=message):
        harness.compare(arguments.pop("contenders"), **arguments)
