"""Penalties: formulas, gradients at kinks, and their optima for a linear unit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from diffprog.program import program
from diffprog.visualization._penalties import (
    OfVariable,
    blur,
    l1,
    l2,
    of_variable,
    to_reference,
    total_variation,
)

REFERENCE = jax.random.uniform(jax.random.key(7), (5, 6, 2))
PENALTIES = {
    "l1": l1,
    "l2": l2,
    "total_variation": total_variation,
    "blur": blur,
    "to_reference": to_reference(REFERENCE),
}
GRADIENTS = {name: jax.jit(jax.value_and_grad(penalty)) for name, penalty in PENALTIES.items()}
SMOOTHING = ("total_variation", "blur")
every_penalty = pytest.mark.parametrize("name", PENALTIES)


def image(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(5, 6, 2)), jnp.float32)


def test_values_match_numpy():
    x = np.asarray(image(), np.float64)
    down, right = np.diff(x, axis=0, append=x[-1:]), np.diff(x, axis=1, append=x[:, -1:])
    smooth = ndimage.correlate(x, np.outer([1, 2, 1], [1, 2, 1])[..., None] / 16, mode="nearest")
    want = {
        "l1": np.abs(x).sum(),
        "l2": (x**2).sum(),
        "total_variation": np.hypot(down, right).sum(),
        "blur": ((x - smooth) ** 2).sum(),
        "to_reference": ((x - np.asarray(REFERENCE)) ** 2).sum(),
    }
    for name, penalty in PENALTIES.items():
        np.testing.assert_allclose(jax.jit(penalty)(image()), want[name], rtol=1e-5)


@pytest.mark.slow
@every_penalty
def test_scalar_of_the_image_dtype_and_finite_gradient_on_constant_images(name):
    for value in (0.0, 0.5):
        constant = jnp.full((5, 6, 2), value)
        penalty, gradient = GRADIENTS[name](constant)
        assert penalty.shape == ()
        assert penalty.dtype == jnp.float32
        assert np.isfinite(gradient).all()


@pytest.mark.slow
@every_penalty
def test_the_gradient_matches_finite_differences(name):
    x, tangent = image(), image(1)
    with jax.enable_x64(True):
        x, tangent = x.astype(float), tangent.astype(float)
        slope = (PENALTIES[name](x + 1e-6 * tangent) - PENALTIES[name](x - 1e-6 * tangent)) / 2e-6
        np.testing.assert_allclose((jax.grad(PENALTIES[name])(x) * tangent).sum(), slope, rtol=1e-6)


@pytest.mark.parametrize("name", SMOOTHING)
def test_constant_images_have_no_penalty_and_no_gradient(name):
    value, gradient = GRADIENTS[name](jnp.full((5, 6, 2), 0.3))
    assert abs(value) < 1e-12
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


@pytest.mark.parametrize("name", SMOOTHING)
def test_smoothing_penalties_ignore_brightness(name):
    np.testing.assert_allclose(PENALTIES[name](image() + 3), PENALTIES[name](image()), rtol=1e-5)


def test_the_gradient_of_l1_is_zero_at_zero():
    np.testing.assert_array_equal(jax.grad(l1)(jnp.zeros((2, 2, 1))), 0)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 1), (4, 1, 3)], ids=str)
def test_smoothing_penalties_are_finite_on_one_row_or_column(shape):
    x = jnp.arange(float(np.prod(shape))).reshape(shape)
    assert np.isfinite([total_variation(x), blur(x)]).all()


def test_the_total_variation_of_an_edge_is_height_times_length():
    x = jnp.where(jnp.arange(9)[None, :, None] < 4, 0.2, 0.7) * jnp.ones((6, 9, 1))
    np.testing.assert_allclose(total_variation(x), 0.5 * 6, rtol=1e-6)
    np.testing.assert_allclose(total_variation(jnp.swapaxes(x, 0, 1)), 0.5 * 6, rtol=1e-6)


def test_penalties_are_hashable_and_their_arrays_are_leaves():
    weights = {**dict.fromkeys(PENALTIES.values(), 0.1), of_variable(l2): 0.01}
    assert weights[of_variable(l2)] == 0.01
    assert [leaf.shape for leaf in program(to_reference(REFERENCE)).arrays] == [REFERENCE.shape]


def test_norms_accept_pytrees():
    tree = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}
    assert (l1(tree), l2(tree)) == (6.0, 14.0)
    assert isinstance(of_variable(l2), OfVariable)
    assert not callable(of_variable(l2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: total_variation(jnp.zeros((1, 4, 4, 1))), ValueError, "image must have rank 3"),
        (lambda: blur(jnp.zeros((4, 4, 1), int)), TypeError, "image must be a float array"),
        (lambda: l2([]), ValueError, "image must hold at least one array"),
        (lambda: l1(jnp.zeros(3, int)), TypeError, "image must be a float array"),
        (
            lambda: to_reference(jnp.full((2, 2, 1), jnp.nan)),
            ValueError,
            "reference must be finite",
        ),
        (lambda: to_reference(jnp.zeros((2, 2))), ValueError, "reference must have rank 3"),
        (lambda: to_reference(REFERENCE)(jnp.zeros((4, 4, 1))), ValueError, "shapes must agree"),
        (lambda: of_variable(0.1), TypeError, "penalty must be callable"),
    ],
)
def test_rejects_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
