"""How the tests compile: quickly, once for all runs, and in at most 2 GB for each worker."""

import gc
import os
import sys
from importlib.metadata import version
from pathlib import Path

# JAX reads these when it is imported, here and in every process that a test starts. Compiling was
# two thirds of the time of the tests, and most programs run once on a few numbers: so they are not
# optimized, and what was compiled is kept for the next run with the same versions.
VERSIONS = f"python-{sys.version_info.major}.{sys.version_info.minor}-jaxlib-{version('jaxlib')}"
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "compiled" / VERSIONS
FLAGS = "--xla_backend_optimization_level=0"
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # later ones refuse this flag
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import pytest  # noqa: E402

LIVE_PROGRAMS = 500


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


def pytest_runtest_teardown() -> None:
    """Free the compiled programs, each about a megabyte, before a worker holds too many."""
    if len(jax.devices()[0].client.live_executables()) > LIVE_PROGRAMS:
        jax.clear_caches()
        gc.collect()
