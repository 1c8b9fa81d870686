"""`import diffprog` imports no optional package and takes little more time than JAX."""

import json
import resource
import subprocess
import sys

import pytest


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


def cpu_seconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    python(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_import_loads_no_optional_package():
    loaded = json.loads(
        python("import json, sys, diffprog; print(json.dumps(sorted(sys.modules)))")
    )
    assert "jax" in loaded
    assert {
        "matplotlib",
        "sklearn",
        "flax",
        "equinox",
        "jinja2",
        "PIL",
        "orbax",
        "safetensors",
        "tokenizers",
    }.isdisjoint(loaded)


def test_plotting_does_not_import_pyplot():
    loaded = json.loads(
        python("import json, sys, diffprog.plotting; print(json.dumps(sorted(sys.modules)))")
    )
    assert "matplotlib.figure" in loaded
    assert {"matplotlib.pyplot", "jinja2"}.isdisjoint(loaded)


@pytest.mark.slow
def test_import_takes_at_most_a_quarter_more_than_jax_and_optax():
    rounds = [(cpu_seconds("import diffprog"), cpu_seconds("import jax, optax")) for _ in range(5)]
    ours, baseline = (min(seconds) for seconds in zip(*rounds, strict=True))
    assert ours <= 1.25 * baseline
