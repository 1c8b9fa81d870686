"""HopSkipJump: labels only, exact distances to linear boundaries, and the number of queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp
from diffprog.adversarial import hop_skip_jump

DUAL_ORDER = {"linf": 1, "l2": 2}
SIZE = 16  # random samples of rows that are no multiple of 8 take three times as long to compile
# Bounds that are not round numbers in binary: there high - x + x can differ from high.
BOUNDS = (-2.1179, 2.64)

both_norms = pytest.mark.parametrize("norm", ["l2", "linf"])


def linear(weights, x):
    return (x - 0.5) @ weights


def linear_case(seed, batch=16, dtype=np.float32):
    """Draw a linear program of two classes, examples, and the classes it predicts."""
    rng = np.random.default_rng(seed)
    low, high = BOUNDS
    low, high = low + 0.4 * (high - low), high - 0.4 * (high - low)
    x = jnp.asarray(rng.uniform(low, high, (batch, SIZE)).astype(dtype))
    f = dp.program(linear, jnp.asarray(rng.normal(size=(SIZE, 2)).astype(dtype)))
    return f, x, f(x).argmax(1)


def exact_distances(norm, f, x):
    """Compute the distances to the decision boundary, without a box."""
    (weights,) = f.arrays
    margin = np.abs(np.diff(np.asarray(f(x), np.float64))[:, 0])
    g = np.diff(np.asarray(weights, np.float64))[:, 0]
    return margin / np.linalg.norm(g, DUAL_ORDER[norm])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "targeted", "median", "worst"),
    [
        # Each step adds to r a tangential share σ = ξ sin θ / d, with
        # tan² θ = π/2 (n - 1) / draws and ξ = d / sqrt k, and shrinks the rest by
        # ρ = 1 / (1 + ξ cos θ / d). For n = 16 and k = 40 this settles at
        # σ² / (1 - ρ²) = 0.0027: the length is 1.0013 of the shortest. We allow three times
        # that excess in the median and ten times at worst.
        ("l2", False, 1.004, 1.013),
        ("l2", True, 1.004, 1.013),
        # sign(v) has no such form: twice the excess on 64 other examples, 1.0036 and 1.013.
        ("linf", False, 1.0072, 1.026),
    ],
)
def test_distances_to_a_linear_boundary_are_nearly_exact(key, norm, targeted, median, worst):
    f, x, y = linear_case(0)
    attack = hop_skip_jump(norm=norm, targeted=targeted, bounds=BOUNDS)
    result = attack(f, x, 1 - y if targeted else y, key=key)
    assert result.success.all()
    ratio = np.asarray(result.distance) / exact_distances(norm, f, x)
    assert ratio.min() > 1 - 1e-5
    assert np.median(ratio) < median
    assert ratio.max() < worst


@pytest.mark.slow
@both_norms
def test_results_lie_on_the_boundary(key, norm):
    f, x, y = linear_case(3)
    result = hop_skip_jump(norm=norm, steps=3, draws=5, bounds=BOUNDS)(f, x, y, key=key)
    np.testing.assert_array_equal(f(result.adversarial).argmax(1), 1 - y)
    np.testing.assert_array_equal(f(x + (1 - 1e-4) * result.perturbation).argmax(1), y)


@pytest.mark.slow
@both_norms
def test_only_predicted_classes_are_used(key, norm):
    f, x, y = linear_case(1)
    classes_only = dp.program(
        lambda weights, x: jax.nn.one_hot(linear(weights, x).argmax(1), 2), f.arrays[0]
    )
    attack = hop_skip_jump(norm=norm, steps=5, draws=20, bounds=BOUNDS)
    result, blind = attack(f, x, y, key=key), attack(classes_only, x, y, key=key)
    np.testing.assert_array_equal(blind.adversarial, result.adversarial)
    np.testing.assert_array_equal(blind.queries, result.queries)
    np.testing.assert_array_equal(blind.gradients, 0)


@pytest.mark.slow
def test_queries_count_the_forward_passes(key):
    calls = []

    def counted(weights, x):
        jax.debug.callback(lambda _: calls.append(1), x)
        return linear(weights, x)

    for steps, draws in ((1, 10), (4, 30)):
        f, x, y = linear_case(steps, batch=1)
        calls.clear()
        attack = hop_skip_jump(steps=steps, draws=draws, bounds=BOUNDS)
        result = attack(dp.program(counted, f.arrays[0]), x, y, key=jax.random.key(steps))
        jax.block_until_ready(result)
        jax.effects_barrier()
        assert result.success.all()
        # Every attack also evaluates the logits of x and of the result.
        assert len(calls) == result.queries[0] + 2


@pytest.mark.slow
def test_a_target_that_noise_does_not_find_needs_examples(key):
    """The target is predicted in a corner of the box that a hundred samples of noise miss."""
    corner = dp.program(lambda x: jnp.stack([jnp.zeros(len(x)), (x - 0.9).min(1)], 1))
    x, targets = jnp.full((3, SIZE), 0.5), jnp.ones(3, int)
    without = hop_skip_jump(steps=3, targeted=True)(corner, x, targets, key=key)
    assert not without.success.any()
    np.testing.assert_array_equal(without.adversarial, x)
    np.testing.assert_array_equal(without.step, -1)
    np.testing.assert_array_equal(without.queries, 100)
    examples = jnp.stack([jnp.full(SIZE, value) for value in (1.0, 0.95, 0.7)])
    attack = hop_skip_jump(steps=3, targeted=True, examples=examples)
    result = attack(corner, x, targets, key=key)
    assert result.success.all()
    assert (result.step >= 0).all()
    assert (result.distance <= 0.45 * np.sqrt(SIZE)).all()


@pytest.mark.slow
def test_float64_is_kept(key):
    with jax.enable_x64(True):
        f, x, y = linear_case(5, dtype=np.float64)
        result = hop_skip_jump(steps=3, bounds=BOUNDS)(f, x, y, key=key)
        assert result.adversarial.dtype == np.float64
        assert result.success.all()
        assert (result.distance >= exact_distances("l2", f, x)).all()


def test_l1_is_refused():
    with pytest.raises(ValueError, match="norm"):
        hop_skip_jump(norm="l1")
