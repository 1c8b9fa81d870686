"""Arguments of a traced function."""

import jax
import numpy as np
import pytest

from diffprog.graph import trace


@pytest.mark.parametrize("number", [2**31, -(2**31) - 1, 2**32 - 1])
def test_integers_that_jax_cannot_hold_are_refused(number):
    power = lambda x, n: x * n
    with jax.enable_x64(False), pytest.raises(ValueError, match=f"n must fit .* got {number}"):
        trace(power, 2.0, number)
    with jax.enable_x64(True):
        assert trace(power, 2.0, number)["x"].adjoint == number


def test_the_largest_integers_are_accepted():
    with jax.enable_x64(False):
        for number in (2**31 - 1, -(2**31)):
            assert trace(lambda x, n: x * n, 2.0, number)["x"].adjoint == np.float32(number)
