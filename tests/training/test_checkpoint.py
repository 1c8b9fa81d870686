"""A resumed run ends with the same bits as an uninterrupted one; other checkpoints are refused."""

import gc
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from diffprog.training import _checkpoint, fit

# Orbax stops reading at the first error and leaves tasks and event loops open, which warn when they
# are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (12, 3))
Y = X @ jnp.array([1.0, -2.0, 3.0])
START = {"w": jnp.zeros(3)}
KILLS = 8


def squares(params, x, y, key):
    return (x @ params["w"] - y + 0.1 * jax.random.normal(key, y.shape)) ** 2


@pytest.fixture(autouse=True)
def save_every_epoch(monkeypatch):
    monkeypatch.setattr(_checkpoint, "_PAUSE_FACTOR", 0)


def train(folder, data=(X, Y), start=START, key=KEY, **options):
    defaults = {
        "batch_size": None if isinstance(data, list) else 5,
        "epochs": 6,
        "optimizer": optax.adam(0.1),
    }
    return fit(squares, start, data, key=key, checkpoint=folder, **(defaults | options))


def assert_equal(fitted, expected):
    def check(leaf, expected_leaf):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf, expected_leaf = jax.random.key_data(leaf), jax.random.key_data(expected_leaf)
        np.testing.assert_array_equal(leaf, expected_leaf)

    jax.tree.map(check, tuple(fitted), tuple(expected))


STREAM = [(X[k : k + 4], Y[k : k + 4]) for k in (0, 4, 8)]
HELD_OUT = {"held_out": (X, Y)}
NOISY = {"optimizer": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.sgd(0.01))}


@pytest.mark.parametrize(
    ("first_run", "options"),
    [
        ({"epochs": 2}, {}),
        ({"epochs": 2}, HELD_OUT),
        ({"epochs": 2}, HELD_OUT | {"patience": 4}),
        ({"epochs": None, "steps": 4}, HELD_OUT),
        ({"epochs": None, "steps": 4}, {"data": STREAM}),
        ({"epochs": None, "steps": 3}, HELD_OUT | {"data": STREAM}),
        pytest.param({"epochs": 2}, NOISY, marks=pytest.mark.slow),
    ],
    ids=[
        "plain",
        "held-out data",
        "patience",
        "within an epoch",
        "iterable within an epoch",
        "iterable after an epoch",
        "optimizer with a PRNG key",
    ],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path, first_run, options):
    train(tmp_path, **(options | first_run))
    assert_equal(train(tmp_path, **options), train(None, **options))


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"batch_size": 4}, "batch_size is 5 in the checkpoint, 4 here"),
        ({"data": (X, Y + 1)}, "data checksum is"),
        ({"data": [(X, Y)]}, "data is arrays in the checkpoint, iterable here"),
        ({"key": jax.random.key(1)}, "key is"),
        ({"optimizer": optax.sgd(0.1)}, "state optimizer/0/count is int32.* missing here"),
        ({"start": {"w": jnp.ones(3)}}, "start checksum is"),
        (
            {"start": {"w": jnp.zeros((3, 1))}},
            "state variable/w is float32.3. in the checkpoint, float32.3, 1. here",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, other, difference):
    train(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=f"is of another run, .*{difference}"):
        train(tmp_path, **other)


@pytest.mark.slow
def test_a_damaged_file_is_refused_or_harmless(tmp_path):
    train(tmp_path / "whole", epochs=1)
    files = [
        path.relative_to(tmp_path / "whole")
        for path in (tmp_path / "whole").rglob("*")
        if path.is_file() and path.stat().st_size
    ]
    errors = {}
    for number, path in enumerate(files):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / f"damaged{number}")
        content = bytearray((folder / path).read_bytes())
        content[len(content) // 2] ^= 0xFF
        (folder / path).write_bytes(content)
        try:
            fitted = train(folder)
        except ValueError as error:
            errors[path] = str(error)
        else:
            assert_equal(fitted, train(None))
    for _ in range(5):  # a finalizer may leave more to collect
        gc.collect()  # so that the warnings about what orbax leaves open belong to this test
    assert {path.parts[1] for path in errors} >= {"arrays", "metadata"}
    assert all("damaged" in message for message in errors.values())


def test_changed_parameters_are_refused(tmp_path):
    train(tmp_path, epochs=1)
    (folder,) = tmp_path.glob("3/arrays")
    with ocp.StandardCheckpointer() as checkpointer:
        leaves = checkpointer.restore(folder)
        leaves[0] = np.nextafter(leaves[0], np.float32(1))
        checkpointer.save(folder, leaves, force=True)
    with pytest.raises(ValueError, match="damaged, the checksum of its arrays"):
        train(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: {},
        lambda saved: [],
        lambda saved: saved | {"text": saved["text"].replace('"loss": [', '"loss": [1')},
        lambda saved: saved | {"text": saved["text"].replace('"best"', '"worst"')},
    ],
    ids=["empty", "list", "metric", "name"],
)
def test_changed_metadata_are_refused(tmp_path, change):
    train(tmp_path, epochs=1, **HELD_OUT)
    (file,) = tmp_path.glob("3/metadata/metadata")
    saved = json.loads(file.read_text())
    assert change(saved) != saved
    file.write_text(json.dumps(change(saved)))
    with pytest.raises(ValueError, match=f"checkpoint {tmp_path / '3'} cannot be used"):
        train(tmp_path, **HELD_OUT)


def test_a_file_and_a_missing_orbax_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a folder"):
        train(tmp_path / "file")
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"diffprog\[checkpoint\]"):
        train(tmp_path)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_like_an_uninterrupted_one(tmp_path):
    def start_run(out, *folder):
        return subprocess.Popen(
            [sys.executable, Path(__file__).with_name("long_run.py"), out, *folder],
            stdout=subprocess.PIPE,
            text=True,
        )

    with start_run(tmp_path / "whole.npz") as run:
        run.stdout.readline()
        start_time = time.perf_counter()
    seconds = time.perf_counter() - start_time
    assert run.returncode == 0
    kills, runs, generator = 0, 0, random.Random(0)
    while kills < KILLS or not (tmp_path / f"{runs}.npz").exists():
        runs += (tmp_path / f"{runs}.npz").exists()
        with start_run(tmp_path / f"{runs}.npz", tmp_path / f"checkpoints{runs}") as run:
            run.stdout.readline()
            if kills < KILLS:
                time.sleep(generator.uniform(0, seconds))
                kills += run.poll() is None
                run.kill()
    expected = np.load(tmp_path / "whole.npz")
    for number in range(runs + 1):
        result = np.load(tmp_path / f"{number}.npz")
        assert set(result) == set(expected)
        for name in expected:
            np.testing.assert_array_equal(result[name], expected[name])


def test_the_end_of_a_run_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(_checkpoint, "_PAUSE_FACTOR", 1e9)
    train(tmp_path, [(X[:4], Y[:4]), (X[4:8], Y[4:8])], epochs=5)
    assert "10" in [path.name for path in tmp_path.iterdir()]
