"""A training that goes on from a checkpoint ends as one that was never stopped, to the bit; what is not its checkpoint is refused."""

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
import pytest

from diffprog.training import _checkpoint, fit

# Orbax gives up reading at the first error, and leaves tasks and event loops to be collected, with complaints.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (12, 3))
Y = X @ jnp.array([1.0, -2.0, 3.0])
START = {"w": jnp.zeros(3)}


def squares(params, x, y, key):
    return (x @ params["w"] - y + 0.1 * jax.random.normal(key, y.shape)) ** 2


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch):
    monkeypatch.setattr(_checkpoint, "_SHARE", 0)


def train(folder, data=(X, Y), start=START, key=KEY, **options):
    given = {
        "batch_size": None if isinstance(data, list) else 5,
        "epochs": 6,
        "optimizer": optax.adam(0.1),
    } | options
    return fit(squares, start, data, key=key, checkpoint=folder, **given)


def plain(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def assert_same(found, expected):
    ours, theirs = (
        jax.tree.map(plain, (fitted.params, fitted.state)) for fitted in (found, expected)
    )
    jax.tree.map(np.testing.assert_array_equal, (ours, found.best), (theirs, expected.best))
    assert found.history.keys() == expected.history.keys()
    jax.tree.map(np.testing.assert_array_equal, found.history, expected.history)


@pytest.mark.parametrize(
    "options",
    [{}, {"held_out": (X, Y)}, {"held_out": (X, Y), "patience": 4}],
    ids=["bare", "held out", "patience"],
)
def test_goes_on_where_it_was(tmp_path, options):
    train(tmp_path, epochs=2, **options)
    assert_same(train(tmp_path, **options), train(None, **options))


def test_more_steps_go_on_from_fewer(tmp_path):
    train(tmp_path, epochs=None, steps=4, held_out=(X, Y))
    assert_same(train(tmp_path, held_out=(X, Y)), train(None, held_out=(X, Y)))


def test_a_stream_goes_on_in_the_middle_of_an_epoch(tmp_path):
    data = [(X[k : k + 4], Y[k : k + 4]) for k in (0, 4, 8)]
    train(tmp_path, data, epochs=None, steps=4)
    assert_same(train(tmp_path, data), train(None, data))


@pytest.mark.slow
def test_a_rule_that_keeps_a_random_key(tmp_path):
    noisy = {
        "optimizer": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.sgd(0.01))
    }
    train(tmp_path, epochs=2, **noisy)
    assert_same(train(tmp_path, **noisy), train(None, **noisy))


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({"batch_size": 4}, "batch_size: 5 there, 4 here"),
        ({"data": (X, Y + 1)}, "checksum"),
        ({"key": jax.random.key(1)}, "key data"),
        ({"optimizer": optax.sgd(0.1)}, "state optimizer/0/count: int32.* there, nothing here"),
        (
            {"start": {"w": jnp.zeros((3, 1))}},
            "state variable/w: float32.3. there, float32.3, 1. here",
        ),
    ],
)
def test_refuses_the_checkpoint_of_another_run(tmp_path, other, differs):
    train(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=f"is of another run: .*{differs}"):
        train(tmp_path, **other)


@pytest.mark.slow
def test_one_that_was_spoiled_is_refused_or_as_good_as_new(tmp_path):
    train(tmp_path / "whole", epochs=1)
    files = [
        path.relative_to(tmp_path / "whole")
        for path in (tmp_path / "whole").rglob("*")
        if path.is_file() and path.stat().st_size
    ]
    refused = set()
    for number, path in enumerate(files):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / f"spoiled{number}")
        content = bytearray((folder / path).read_bytes())
        content[len(content) // 2] ^= 0xFF
        (folder / path).write_bytes(content)
        try:
            found = train(folder)
        except ValueError as error:
            refused.add(path.parts[1])
            assert "spoiled" in str(error), error
        else:
            assert_same(found, train(None))
    gc.collect()  # so that what orbax has left is complained of here
    assert refused >= {"arrays", "standing"}


def test_refuses_one_with_other_numbers(tmp_path, monkeypatch):
    train(tmp_path, epochs=1)
    read = _checkpoint.Checkpoints._read

    def changed(self, where, step, **args):
        found = read(self, where, step, **args)
        if "arrays" in args:
            found["arrays"]["state"][-1] = found["arrays"]["state"][-1].at[0].add(1e-6)
        return found

    monkeypatch.setattr(_checkpoint.Checkpoints, "_read", changed)
    with pytest.raises(ValueError, match="is corrupt: 1 of"):
        train(tmp_path)


def test_refuses_a_file_and_a_missing_orbax(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a folder"):
        train(tmp_path / "file")
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"diffprog\[checkpoint\]"):
        train(tmp_path)


@pytest.mark.slow
def test_killed_at_twenty_moments_it_ends_as_if_it_had_not_been(tmp_path):
    def started(out, *folder):
        return subprocess.Popen(
            [sys.executable, Path(__file__).with_name("long_run.py"), out, *folder],
            stdout=subprocess.PIPE,
            text=True,
        )

    with started(tmp_path / "whole.npz") as run:
        run.stdout.readline()
        began = time.perf_counter()
    seconds = time.perf_counter() - began
    assert run.returncode == 0
    kills, runs, moments = 0, 0, random.Random(0)
    while kills < 20 or not (tmp_path / f"{runs}.npz").exists():
        runs += (tmp_path / f"{runs}.npz").exists()
        with started(tmp_path / f"{runs}.npz", tmp_path / f"checkpoints{runs}") as run:
            run.stdout.readline()
            if kills < 20:
                time.sleep(moments.uniform(0, seconds))
                kills += run.poll() is None
                run.kill()
    expected = np.load(tmp_path / "whole.npz")
    for number in range(runs + 1):
        found = np.load(tmp_path / f"{number}.npz")
        assert set(found) == set(expected)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


def test_a_stream_that_ended_with_an_epoch_measures_it_when_it_goes_on(tmp_path):
    data = [(X[k : k + 4], Y[k : k + 4]) for k in (0, 4, 8)]
    train(tmp_path, data, epochs=None, steps=3, held_out=(X, Y))
    assert_same(train(tmp_path, data, held_out=(X, Y)), train(None, data, held_out=(X, Y)))


def test_the_end_of_a_stream_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(_checkpoint, "_SHARE", 1e9)
    train(tmp_path, [(X[:4], Y[:4]), (X[4:8], Y[4:8])], epochs=5)
    assert "10" in [path.name for path in tmp_path.iterdir()]


def test_arrays_and_iterables_are_other_runs(tmp_path):
    train(tmp_path, epochs=1)
    with pytest.raises(ValueError, match="data kind: nothing there, iterable here"):
        train(tmp_path, [(X, Y)])
    with pytest.raises(ValueError, match="start checksum"):
        train(tmp_path, start={"w": jnp.ones(3)})


def test_what_was_said_is_sealed(tmp_path):
    train(tmp_path, epochs=1, held_out=(X, Y))
    (file,) = tmp_path.glob("3/standing/metadata")
    said = json.loads(file.read_text())
    for other in (
        {},
        [],
        said | {"measured": {"loss": ["0x1.0p+5"]}},
        {name: value for name, value in said.items() if name != "best"},
    ):
        file.write_text(json.dumps(other))
        with pytest.raises(ValueError, match=r"is corrupt|cannot be read"):
            train(tmp_path, held_out=(X, Y))
