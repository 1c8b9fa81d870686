import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import __main__ as command
from experiments.benchmarks import harness


class Clock:
    """Time that passes only when a contender says so."""

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


def test_ratios_are_to_the_baseline_in_each_clock(clock):
    compared = harness.compare(
        {"bare": clock.takes(2, 4), "ours": clock.takes(3, 2)}, baseline="bare", rounds=4, warmup=0
    )
    assert compared.wall_ratio("ours") == pytest.approx((1.5, 1.5, 1.5))
    assert compared.cpu_ratio("ours") == pytest.approx((0.5, 0.5, 0.5))
    assert compared.wall_ratio("bare") == compared.cpu_ratio("bare") == (1, 1, 1)


def test_a_drift_common_to_a_round_leaves_the_ratio(clock):
    slow = iter([1.0, 1.0, 10.0, 10.0, 3.0, 3.0])

    def drifting(seconds):
        def contender():
            clock.wall += seconds * next(slow)

        return contender

    compared = harness.compare(
        {"bare": drifting(1), "ours": drifting(2)}, baseline="bare", rounds=3, warmup=0
    )
    assert compared.wall_ratio("ours") == pytest.approx((2, 2, 2))


def test_median_and_quartiles():
    compared = harness.Comparison(
        "a", {"a": [1.0] * 5, "b": [5.0, 1.0, 4.0, 2.0, 3.0]}, {"a": [1.0] * 5, "b": [2.0] * 5}
    )
    assert compared.wall_ratio("b") == (3, 2, 4)


def test_a_single_round_has_no_spread(clock):
    compared = harness.compare(
        {"a": clock.takes(1, 1), "b": clock.takes(2, 1)}, baseline="a", rounds=1, warmup=0
    )
    assert compared.wall_ratio("b") == (2, 2, 2)


def test_every_round_calls_each_once_and_the_order_changes():
    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    harness.compare(contenders, baseline="a", rounds=20, warmup=2)
    assert calls[:6] == ["a", "a", "b", "b", "c", "c"]
    rounds = [tuple(calls[start : start + 3]) for start in range(6, len(calls), 3)]
    assert len(rounds) == 20
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) == 6


def test_the_result_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(harness.jax, "block_until_ready", waited.append)
    harness.compare({"a": lambda: "result"}, baseline="a", rounds=2, warmup=1)
    assert waited == ["result"] * 3


def test_more_work_is_seen_on_the_real_clocks():
    small, large = jnp.ones((50, 50)), jnp.ones((800, 800))
    product = jax.jit(lambda a: a @ a)
    compared = harness.compare(
        {"small": lambda: product(small), "large": lambda: product(large)},
        baseline="small",
        rounds=5,
        warmup=1,
    )
    assert compared.wall_ratio("large").median > 2
    assert compared.cpu_ratio("large").median > 2


def test_a_clock_too_coarse_gives_nan(clock):
    compared = harness.compare({"a": clock.takes(1, 0)}, baseline="a", rounds=1, warmup=0)
    assert str(compared.cpu_ratio("a")) == "nan [nan, nan]"


def test_the_table_says_times_and_ratios(clock):
    compared = harness.compare(
        {"bare": clock.takes(0.002, 0.004), "ours": clock.takes(0.003, 0.002)},
        baseline="bare",
        rounds=4,
        warmup=0,
    )
    assert str(compared).splitlines() == [
        "      wall ms         wall ratio  CPU ms          CPU ratio",
        "bare        2  1.00 [1.00, 1.00]       4  1.00 [1.00, 1.00]",
        "ours        3  1.50 [1.50, 1.50]       2  0.50 [0.50, 0.50]",
        "ratios to bare: median [quartiles] of 4 rounds",
    ]


def test_the_file_holds_the_machine_and_every_time(clock, tmp_path):
    compared = harness.compare(
        {"bare": clock.takes(2, 4), "ours": clock.takes(3, 2)}, baseline="bare", rounds=2, warmup=0
    )
    said = json.loads(
        harness.write(tmp_path / "deep" / "times.json", {"mlp": compared}).read_text()
    )
    assert said["machine"]["jax"] == jax.__version__
    assert said["machine"]["backend"] == jax.default_backend()
    assert said["machine"]["cores"] >= 1
    assert said["comparisons"]["mlp"]["baseline"] == "bare"
    ours = said["comparisons"]["mlp"]["contenders"]["ours"]
    assert ours["wall_seconds"] == pytest.approx([3, 3])
    assert ours["cpu_ratio"] == pytest.approx({"median": 0.5, "low": 0.5, "high": 0.5})


def test_the_command_prints_a_table_and_writes_a_file_for_each_benchmark(
    clock, tmp_path, monkeypatch, capsys
):
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
def test_bad_input_is_refused(change, error, message):
    given = {"contenders": {"a": lambda: None}, "baseline": "a", "rounds": 1, "warmup": 0} | change
    with pytest.raises(error, match=message):
        harness.compare(given.pop("contenders"), **given)
