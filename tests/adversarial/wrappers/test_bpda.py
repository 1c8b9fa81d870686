"""BPDA: the values of a program that rounds, with the gradient of one that does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp
from diffprog.adversarial import bpda, pgd
from tests.adversarial.boxes import inner_case, linear

X = jnp.array([0.3, 0.55, 0.8])
ROUNDING = {
    "round": jnp.round,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "sign": lambda x: jnp.sign(x - 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ROUNDING.values(), ids=ROUNDING)
def test_rounding_is_differentiated_as_the_identity(rounding):
    f = lambda x: 3 * rounding(4 * x**2) + x
    smooth = bpda(f)
    np.testing.assert_array_equal(smooth(X), f(X))
    np.testing.assert_allclose(jax.grad(lambda x: smooth(x).sum())(X), 24 * X + 1, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda x: f(x).sum())(X), 1)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(smooth)))(X), 24 * X + 1, rtol=1e-6)


def test_through_gives_the_gradient_of_any_program():
    f = lambda x: (x * 4).astype(jnp.int8).astype(x.dtype)
    smooth = bpda(f, through=lambda x: 4 * x)
    np.testing.assert_array_equal(smooth(X), f(X))
    np.testing.assert_array_equal(jax.grad(lambda x: smooth(x).sum())(X), 4)


def test_what_cannot_be_replaced_raises():
    with pytest.raises(ValueError, match="f must have a round, floor, ceil, sign, got none"):
        bpda(jnp.sin)(0.5)
    custom = jax.custom_jvp(lambda x: jnp.round(x))
    custom.defjvp(lambda primals, tangents: (jnp.round(primals[0]), 0 * tangents[0]))
    with pytest.raises(
        ValueError, match=r"f must not have its round inside .*custom.*; give `through`"
    ):
        bpda(lambda x: custom(x))(0.5)
    with pytest.raises(ValueError, match="through must return the shapes and dtypes of f"):
        bpda(jnp.round, through=lambda x: jnp.stack([x, x]))(0.5)


@pytest.mark.slow
def test_a_program_that_rounds_its_input_is_attacked_like_one_that_does_not(key):
    """16 levels: the gradient is zero, and without BPDA the attack does not move."""
    f, x, _ = inner_case(3)
    rounding = dp.program(lambda weights, x: linear(weights, jnp.round(15 * x) / 15), f.arrays[0])
    y = np.asarray(rounding(x).argmax(1))
    attack = pgd(epsilon=0.2, random_start=False)
    plain, smooth = attack(rounding, x, y, key=key), attack(bpda(rounding), x, y, key=key)
    assert not plain.success.any()
    # Four of 15 levels lie in the ball: no value is more than half a level short of 0.2.
    slope = np.abs(np.diff(np.asarray(f.arrays[0]))[:, 0]).sum()
    within = np.abs(np.diff(np.asarray(rounding(x)))[:, 0]) < (0.2 - 1 / 15) * slope
    assert within.sum() >= 6
    assert smooth.success[within].all()
    np.testing.assert_array_equal(smooth.success, rounding(smooth.adversarial).argmax(1) != y)


def test_bad_arguments_raise():
    with pytest.raises(TypeError, match="f must be callable"):
        bpda(3)
    with pytest.raises(TypeError, match="through must be callable"):
        bpda(lambda x: x, through=3)
