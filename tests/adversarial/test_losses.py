"""Losses of attacks: their formulas in float64, where the softmax saturates, and NaN logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from diffprog.adversarial._losses import LOSSES, cross_entropy, dlr, is_adversarial, margin

both = pytest.mark.parametrize("targeted", [False, True])
cases = settings(max_examples=20, deadline=None)
SHAPES = {2: (6, 2), 3: (6, 3), 7: (6, 7)}


def case(seed, classes, scale=3.0):
    rng = np.random.default_rng(seed)
    return (scale * rng.normal(size=SHAPES[classes])).astype(np.float32), rng.integers(
        0, classes, 6
    )


def exact_margin(logits, y, targeted):
    own = logits[np.arange(len(y)), y]
    others = np.where(np.arange(logits.shape[1]) == y[:, None], -np.inf, logits).max(1)
    return own - others if targeted else others - own


@both
@cases
@given(seed=st.integers(0, 2**32 - 1), classes=st.sampled_from([2, 3, 7]))
def test_losses_are_their_formulas(targeted, seed, classes):
    logits, y = case(seed, classes)
    gap = exact_margin(logits, y, targeted)
    exact = log_softmax(logits.astype(np.float64), 1)[np.arange(6), y]
    np.testing.assert_allclose(margin(logits, y, targeted), gap, rtol=1e-6)
    # Where the softmax rounds to 1 it is the margin, tested below.
    unsaturated = (exact > -15.9) & (np.log1p(-np.exp(exact)) > -15.9)
    value = cross_entropy(logits, y, targeted)
    np.testing.assert_allclose(
        value[unsaturated], (exact if targeted else -exact)[unsaturated], rtol=1e-4, atol=1e-6
    )
    ranked = np.sort(logits, 1)
    np.testing.assert_allclose(
        dlr(logits, y, targeted),
        gap / (ranked[:, -1] - ranked[:, -3]) if classes > 2 else gap,
        rtol=1e-5,
    )


@both
@cases
@given(seed=st.integers(0, 2**32 - 1), classes=st.sampled_from([2, 3, 7]))
def test_margin_and_dlr_are_positive_exactly_where_the_attack_succeeded(targeted, seed, classes):
    logits, y = case(seed, classes)
    np.testing.assert_array_equal(
        margin(logits, y, targeted) > 0, is_adversarial(logits, y, targeted)
    )
    np.testing.assert_array_equal(dlr(logits, y, targeted) > 0, is_adversarial(logits, y, targeted))


@both
@pytest.mark.parametrize("logits", [[np.nan, 0, 0], [0, np.nan, 0], [1, 2, np.nan]])
def test_nan_logits_are_never_adversarial(targeted, logits):
    logits = np.array([logits], np.float32)
    assert not any(is_adversarial(logits, np.array([label]), targeted).any() for label in range(3))


def test_dlr_is_invariant_to_scale_and_shift():
    logits, y = case(0, 7)
    np.testing.assert_allclose(dlr(100 * logits + 5, y, False), dlr(logits, y, False), rtol=1e-4)


@pytest.mark.slow
@both
def test_cross_entropy_is_the_margin_where_the_softmax_saturates(targeted):
    logits, y = case(1, 7)
    lead = np.array([20, 30, 100, 300, 1e3, 1e6], np.float32)
    logits[np.arange(6), y] = (
        np.delete(logits, 0, 1).min(1) - lead if targeted else logits.max(1) + lead
    )
    value, slope = jax.vmap(
        jax.value_and_grad(lambda z, y: cross_entropy(z[None], y[None], targeted)[0])
    )(logits, y)
    gap, direction = jax.vmap(
        jax.value_and_grad(lambda z, y: margin(z[None], y[None], targeted)[0])
    )(logits, y)
    np.testing.assert_array_equal(value, gap)
    np.testing.assert_array_equal(slope, direction)
    np.testing.assert_array_equal(np.abs(slope).sum(1), 2)


@pytest.mark.slow
@both
def test_cross_entropy_is_monotonic_where_it_becomes_the_margin(targeted):
    """While one logit rises, the loss of it as target, or of another as label, never falls."""
    rise = jnp.linspace(-40, 40, 4001, dtype=jnp.float32)
    logits = jnp.stack([jnp.zeros_like(rise), rise, jnp.full_like(rise, -50)], 1)
    y = jnp.full(4001, int(targeted))
    assert (jnp.diff(cross_entropy(logits, y, targeted)) >= -1e-6).all()
    slopes = jax.grad(lambda z: cross_entropy(z, y, targeted).sum())(logits)[:, 1]
    assert (slopes[:2000] > 0).all()
    # Where the softmax is saturated, the slope is that of the margin.
    np.testing.assert_array_equal(slopes[:2000][rise[:2000] < -17], 1)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES.values())
@both
def test_gradients_of_huge_and_of_equal_logits_are_finite(loss, targeted):
    logits = jnp.array([[1e30, -1e30, 0], [0, 0, 0], [5e4, 5e4, -5e4]])
    slopes = jax.grad(lambda z: loss(z, jnp.array([0, 1, 2]), targeted).sum())(logits)
    assert jnp.isfinite(slopes).all()


@pytest.mark.parametrize("loss", LOSSES.values())
@both
def test_float64_is_kept(loss, targeted):
    with jax.enable_x64(True):
        assert loss(jnp.array([[0.0, 1.0, 3.0]]), jnp.array([1]), targeted).dtype == jnp.float64
