"""Training on several devices and processes gives the result of one device."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from diffprog import distributed
from diffprog.training import fit

X, Y, START = jnp.ones((4, 3)), jnp.ones(4), jnp.zeros(3)


def train(**options):
    return fit(
        lambda w, x, y: (x @ w - y) ** 2,
        START,
        (X, Y),
        key=jax.random.key(0),
        epochs=3,
        optimizer=optax.sgd(0.1),
        **options,
    )


def test_a_mesh_of_one_device_changes_nothing():
    partition = lambda path, leaf: PartitionSpec("batch")
    np.testing.assert_array_equal(
        train(mesh=distributed.mesh({"batch": 1}), partition=partition).params, train().params
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mesh": 8}, TypeError, "mesh must be a jax.sharding.Mesh"),
        (
            {"partition": lambda path, leaf: PartitionSpec()},
            ValueError,
            "partition must be None without a mesh",
        ),
        (
            {"mesh": distributed.mesh({"batch": 1}), "partition": lambda path, leaf: "batch"},
            TypeError,
            "PartitionSpec, got str",
        ),
        (
            {
                "mesh": distributed.mesh({"batch": 1}),
                "partition": lambda path, leaf: PartitionSpec(None, "batch"),
            },
            ValueError,
            "partition must fit",
        ),
    ],
)
def test_an_invalid_mesh_or_partition_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        train(**options)


def free_port():
    with socket.socket() as bound:
        bound.bind(("localhost", 0))
        return bound.getsockname()[1]


def start_processes(out, processes=1, **options):
    """Start the processes of a run, and wait until all have begun."""
    arguments = {"out": str(out), "processes": processes, "port": free_port(), **options}
    script = [sys.executable, str(Path(__file__).with_name("mesh_run.py"))]
    start = lambda k: subprocess.Popen(
        [*script, json.dumps({**arguments, "process": k})], stdout=-1, stderr=-1, text=True
    )
    runs = [start(k) for k in range(processes)]
    for run in runs:
        assert run.stdout.readline() == "begun\n", run.communicate()[1]
    return runs


def run_to_end(out, **options):
    """Run the processes to their end, and return the result."""
    for run in start_processes(out, **options):
        errors = run.communicate(timeout=300)[1]
        assert run.returncode == 0, errors
    return np.load(out)


def assert_close(result, expected):
    assert set(result) == set(expected)
    for name in set(expected) - {"sharded"}:
        np.testing.assert_allclose(result[name], expected[name], atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return run_to_end(tmp_path_factory.mktemp("one_device") / "one.npz")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate": 2}, {"model_axis": 2}],
    ids=["plain", "accumulate", "sharded parameters"],
)
def test_eight_devices_give_the_result_of_one(tmp_path, one_device, options):
    result = run_to_end(tmp_path / "eight.npz", devices=8, **options)
    assert_close(result, one_device)
    # Two weights have an even number of rows; Adam keeps two moments of each.
    assert result["sharded"] == (6 if "model_axis" in options else 0)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_give_the_result_of_one(tmp_path, one_device, processes):
    assert_close(run_to_end(tmp_path / "many.npz", processes=processes), one_device)


@pytest.mark.slow
def test_each_process_gives_its_part_of_a_batch(tmp_path):
    assert_close(
        run_to_end(tmp_path / "two.npz", processes=2, source="stream"),
        run_to_end(tmp_path / "one.npz", source="stream"),
    )


def saved_steps(folder):
    return [int(path.name) for path in folder.glob("*") if path.name.isdigit()]


def run_until_one_dies(folder, victim):
    """Kill one of two processes after their first checkpoint; return the errors of the other."""
    runs = start_processes(
        folder.with_name("never.npz"), processes=2, epochs=100_000, checkpoint=str(folder)
    )
    deadline = time.monotonic() + 300
    try:
        while not saved_steps(folder) and time.monotonic() < deadline:
            time.sleep(0.2)
        runs[victim].kill()
        errors = runs[1 - victim].communicate(timeout=60)[1]
        assert runs[1 - victim].returncode != 0
        return errors
    finally:
        for run in runs:
            run.kill()
            run.communicate()


@pytest.mark.slow
def test_a_dead_first_process_stops_the_other(tmp_path):
    assert "another task died" in run_until_one_dies(tmp_path / "checkpoints", victim=0)


@pytest.mark.slow
def test_a_dead_process_stops_the_first_and_any_number_can_resume(tmp_path):
    folder = tmp_path / "checkpoints"
    assert "another task died" in run_until_one_dies(folder, victim=1)
    epochs = max(saved_steps(folder)) // 10 + 3
    expected = run_to_end(tmp_path / "whole.npz", epochs=epochs)
    assert_close(
        run_to_end(tmp_path / "four.npz", processes=4, epochs=epochs - 1, checkpoint=str(folder)),
        run_to_end(tmp_path / "less.npz", epochs=epochs - 1),
    )
    assert_close(run_to_end(tmp_path / "one.npz", epochs=epochs, checkpoint=str(folder)), expected)
