"""Training on many devices and in many processes ends where it ends on one device, and in an error where one of them dies."""

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
    rule = lambda path, leaf: PartitionSpec("batch")
    np.testing.assert_array_equal(
        train(mesh=distributed.mesh({"batch": 1}), partition=rule).params, train().params
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
def test_refuses(options, error, message):
    with pytest.raises(error, match=message):
        train(**options)


def free_port():
    with socket.socket() as bound:
        bound.bind(("localhost", 0))
        return bound.getsockname()[1]


def started(out, processes=1, **options):
    """The processes of a run, all of which have begun."""
    given = {"out": str(out), "processes": processes, "port": free_port(), **options}
    script = [sys.executable, str(Path(__file__).with_name("mesh_run.py"))]
    begin = lambda k: subprocess.Popen(
        [*script, json.dumps({**given, "process": k})], stdout=-1, stderr=-1, text=True
    )
    runs = [begin(k) for k in range(processes)]
    for run in runs:
        assert run.stdout.readline() == "begun\n", run.communicate()[1]
    return runs


def ended(out, **options):
    """What a run ended with."""
    for run in started(out, **options):
        errors = run.communicate(timeout=300)[1]
        assert run.returncode == 0, errors
    return np.load(out)


def assert_near(found, expected):
    assert set(found) == set(expected)
    for name in set(expected) - {"divided"}:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return ended(tmp_path_factory.mktemp("alone") / "one.npz")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate": 2}, {"model_axis": 2}],
    ids=["plain", "accumulated", "parameters divided"],
)
def test_eight_devices_are_one(tmp_path, alone, options):
    found = ended(tmp_path / "eight.npz", devices=8, **options)
    assert_near(found, alone)
    # Both weights that a device can have half of, and the two moments of each.
    assert found["divided"] == (6 if "model_axis" in options else 0)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_are_one(tmp_path, alone, processes):
    assert_near(ended(tmp_path / "many.npz", processes=processes), alone)


@pytest.mark.slow
def test_processes_each_give_their_part_of_a_stream(tmp_path):
    assert_near(
        ended(tmp_path / "two.npz", processes=2, source="stream"),
        ended(tmp_path / "one.npz", source="stream"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_death_ends_the_others_and_the_run_goes_on_with_another_number(tmp_path, victim):
    folder = tmp_path / "checkpoints"
    saved = lambda: [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    runs = started(tmp_path / "never.npz", processes=2, epochs=100_000, checkpoint=str(folder))
    limit = time.monotonic() + 300
    try:
        while not saved() and time.monotonic() < limit:
            time.sleep(0.2)
        runs[victim].kill()
        errors = runs[1 - victim].communicate(timeout=60)[1]
        assert runs[1 - victim].returncode != 0
        assert "another task died" in errors
    finally:
        for run in runs:
            run.kill()
            run.communicate()
    epochs = max(saved()) // 10 + 3
    expected = ended(tmp_path / "whole.npz", epochs=epochs)
    assert_near(
        ended(tmp_path / "four.npz", processes=4, epochs=epochs - 1, checkpoint=str(folder)),
        ended(tmp_path / "less.npz", epochs=epochs - 1),
    )
    assert_near(ended(tmp_path / "alone.npz", epochs=epochs, checkpoint=str(folder)), expected)
