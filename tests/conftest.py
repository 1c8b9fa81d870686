"""How the tests compile: quickly, once for all runs, and in at most 2 GB for each worker."""

import ctypes
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
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.01")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


def pytest_collection_finish() -> None:
    """Leave what was imported out of the later searches of the garbage collector."""
    gc.collect()
    gc.freeze()


def resident_megabytes() -> int:
    """Return the memory that this process holds; 0 where only Linux would tell."""
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmRSS:")[1].split()[0]) // 1024 if status.exists() else 0


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Free the compiled programs, up to 10 MB each, before a worker holds too many."""
    file_ends = nextitem is None or nextitem.path != item.path
    if resident_megabytes() > (900 if file_ends else 1200):
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # returns what was freed to the system
