from pathlib import Path

import jax
import pytest

MEMORY_MAPS = Path("/proc/self/maps")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


def pytest_runtest_teardown() -> None:
    """Free compiled programs before their memory maps reach Linux's limit of 65,530 a process."""
    if MEMORY_MAPS.exists() and MEMORY_MAPS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
