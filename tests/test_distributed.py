"""Meshes, shardings, and their errors."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from diffprog import distributed


def test_sharding_keeps_the_values_of_arrays():
    mesh = distributed.mesh({"batch": 1, "model": 1})
    tree = {"x": jnp.arange(6.0), "key": jax.random.split(jax.random.key(0), 2)}
    for sharded in (
        distributed.replicate(mesh, tree),
        distributed.shard_batch(mesh, tree),
        distributed.all_gather(distributed.shard_batch(mesh, tree)),
    ):
        np.testing.assert_array_equal(distributed.fetch(sharded["x"]), tree["x"])
        np.testing.assert_array_equal(
            jax.random.key_data(sharded["key"]), jax.random.key_data(tree["key"])
        )


def test_a_validated_mesh_has_auto_axes():
    explicit = Mesh(np.array(jax.devices()[:1]), ("batch",), axis_types=(AxisType.Explicit,))
    assert distributed.validate_mesh(explicit).axis_types == (AxisType.Auto,)


def test_a_batch_is_divided_over_the_first_axis_alone():
    assert distributed.batch_axis_size(AbstractMesh((2, 3), ("batch", "model"))) == 2


def test_a_partition_rule_gets_the_path_of_every_array():
    shapes = {}
    mesh = distributed.mesh({"batch": 1})
    rule = lambda path, leaf: shapes.update({path: leaf.shape}) or PartitionSpec("batch")
    shardings = distributed.partition_shardings(
        mesh, rule, {"affine1": {"weight": jnp.ones((2, 3)), "bias": jnp.ones(2)}}
    )
    assert shapes == {"affine1/weight": (2, 3), "affine1/bias": (2,)}
    assert shardings["affine1"]["bias"].spec == PartitionSpec("batch")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: distributed.mesh({"batch": 10_000}), ValueError, "at most"),
        (lambda: distributed.mesh({}), ValueError, "axes"),
        (lambda: distributed.mesh({"batch": 0}), ValueError, "axes"),
        (lambda: distributed.initialize("localhost"), ValueError, "host:port"),
        (
            lambda: distributed.initialize("localhost:1", 2, 2),
            ValueError,
            "process_id must be below num_processes, 2, got 2",
        ),
        (lambda: distributed.initialize("localhost:1", 0, 0), ValueError, "num_processes"),
        (
            lambda: distributed.initialize("localhost:1", 1, 0, heartbeat_timeout_seconds=0),
            ValueError,
            "heartbeat",
        ),
    ],
)
def test_invalid_arguments_raise(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.slow
def test_eight_devices_give_the_results_of_one(tmp_path):
    one, eight = tmp_path / "one.npz", tmp_path / "eight.npz"
    for out, devices in ((one, 1), (eight, 8)):
        subprocess.run(
            [sys.executable, Path(__file__).with_name("distributed_run.py"), out, str(devices)],
            check=True,
        )
    expected, got = np.load(one), np.load(eight)
    assert set(got) == set(expected)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], atol=1e-5, err_msg=name)
