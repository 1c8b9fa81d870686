from pathlib import Path

import jax
import pytest

MAPS_OF_THIS_PROCESS = Path("/proc/self/maps")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


def pytest_runtest_teardown() -> None:
    """Every compiled program holds memory maps, and XLA dies where Linux lends no more (65,530 a process): they are released before."""
    if MAPS_OF_THIS_PROCESS.exists() and MAPS_OF_THIS_PROCESS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
