"""The frame of all attacks: checks, flattening, keys and results; with one-line searches."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffprog as dp
from diffprog.adversarial._base import (
    Problem,
    Search,
    add_rounded_toward_x,
    flatten_examples,
    make_attack,
    per_example_keys,
)

BOUNDS = (-2.1179, 2.64)
X = np.random.default_rng(0).uniform(0, 1, (6, 2, 3)).astype(np.float32)
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)), jnp.float32)


def linear(weights, x):
    return (x.reshape(len(x), -1) - 0.5) @ weights


F = dp.program(linear, WEIGHTS)
Y = np.asarray(F(X).argmax(1))


def result_at(r) -> Search:
    zeros = jnp.zeros(len(r), jnp.int32)
    return Search(r, zeros, zeros, zeros + 1, zeros)


def gradient_step(problem: Problem) -> Search:
    """Take one step that decreases the logit of y, without randomness."""
    own = lambda r: jnp.take_along_axis(problem.perturbed_logits(r), problem.y[:, None], 1).sum()
    direction = problem.norm.ascent(-jax.grad(own)(jnp.zeros_like(problem.x)))
    return result_at(problem.project(problem.epsilon[:, None] * direction))


def random_point(problem: Problem) -> Search:
    unit = jax.vmap(
        lambda key: jax.random.uniform(key, problem.x.shape[1:], problem.x.dtype, -1, 1)
    )(problem.keys)
    return result_at(problem.project(problem.epsilon[:, None] * unit))


def make(search=gradient_step, **arguments):
    return make_attack("formula", search, **{"norm": "linf", "epsilon": 0.3, **arguments})


# --- results -------------------------------------------------------------------------------------


def test_success_distance_and_loss_are_computed_from_the_returned_arrays(key):
    result = make()(F, X, Y, key=key)
    logits = np.asarray(F(result.adversarial))
    np.testing.assert_array_equal(result.success, logits.argmax(1) != Y)
    np.testing.assert_array_equal(result.perturbation, result.adversarial - X)
    np.testing.assert_allclose(result.distance, np.abs(result.perturbation).max((1, 2)), rtol=1e-6)
    exact = np.log(np.exp(logits.astype(np.float64)).sum(1)) - logits[np.arange(6), Y]
    np.testing.assert_allclose(result.loss, exact, rtol=1e-5)
    assert result.success.any()
    assert not result.initially_misclassified.any()


@pytest.mark.parametrize("targeted", [False, True])
def test_examples_that_are_adversarial_already_are_not_perturbed(key, targeted):
    y = np.where(np.arange(6) < 3, Y, (Y + 1) % 3)
    result = make(targeted=targeted)(F, X, y, key=key)
    initial = (y == Y) == targeted
    np.testing.assert_array_equal(result.initially_misclassified, initial)
    np.testing.assert_array_equal(result.adversarial[initial], X[initial])
    np.testing.assert_array_equal(result.perturbation[initial], 0)
    assert result.success[initial].all()
    assert (result.distance[~initial] > 0).all()


def test_nan_logits_are_neither_initially_misclassified_nor_a_success(key):
    nan_logits = dp.program(
        lambda weights, x: jnp.where(jnp.arange(6)[:, None] < 3, jnp.nan, 1) * linear(weights, x),
        WEIGHTS,
    )
    result = make(epsilon=10.0)(nan_logits, X, (Y + 1) % 3, key=key)
    assert not result.initially_misclassified[:3].any()
    assert not result.success[:3].any()
    assert result.initially_misclassified[3:].all()


@settings(max_examples=30, deadline=None)
@given(data=st.data(), shift=st.sampled_from([1e-30, 1e-8, 1e-3, 0.1, 3.0]))
def test_a_zero_perturbation_is_x_bit_for_bit(data, shift):
    """Also for subnormal numbers, -0 and the faces. Otherwise |adversarial - x| <= |r|."""
    low, high = (float(np.float32(bound)) for bound in BOUNDS)
    number = st.floats(low, high, width=32) | st.sampled_from([low, high, -0.0, 0.0, 1e-45, -1e-40])
    x = np.array(data.draw(st.lists(number, min_size=6, max_size=6)), np.float32).reshape(1, 2, 3)
    y = np.asarray(F(x).argmax(1))
    result = make(epsilon=0.0, bounds=BOUNDS)(F, x, y, key=jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(result.adversarial).view(np.uint32), x.view(np.uint32))
    r = np.float32(shift) * np.sign(np.asarray(WEIGHTS[:, 0])).reshape(1, 2, 3)
    total = np.asarray(add_rounded_toward_x(jnp.asarray(x), jnp.asarray(r)))
    x = np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)  # as XLA does
    assert (np.abs(total - x) <= np.abs(r)).all()
    error = np.abs(total.astype(np.float64) - x - r)
    assert (error <= 2.0**-22 * (np.abs(x) + np.abs(r)) + 1e-37).all()


def test_rounding_never_carries_a_result_beyond_its_radius(key):
    """Many sums x + r round outward; |adversarial - x| <= epsilon must hold without tolerance."""
    x = np.random.default_rng(2).uniform(0.5, 1, (200, 2, 3)).astype(np.float32)
    epsilon = np.float32(0.1)
    y = np.asarray(F(x).argmax(1))
    search = lambda problem: result_at(jnp.full_like(problem.x, epsilon))
    result = make(search, epsilon=epsilon, bounds=(0.0, 2.0))(F, x, y, key=key)
    assert (x + epsilon - x > epsilon).any()
    assert (np.abs(np.asarray(result.adversarial) - x) <= epsilon).all()
    assert (result.adversarial > x).all()


def test_a_search_evaluates_the_points_that_it_returns(key):
    """Also in the last bit: here the logits are the perturbed inputs themselves."""
    x = np.random.default_rng(3).uniform(0.5, 1, (200, 3)).astype(np.float32)
    identity, y = dp.program(lambda x: x), x.argmax(1)
    seen = []

    def search(problem):
        r = jnp.full_like(problem.x, 0.1) * (1 - jax.nn.one_hot(problem.y, 3))
        jax.debug.callback(seen.append, problem.perturbed_logits(r))
        return result_at(r)

    result = make(search, bounds=(0.0, 2.0))(identity, x, y, key=key)
    jax.effects_barrier()
    assert (x + np.float32(0.1) - x > np.float32(0.1)).any()
    np.testing.assert_array_equal(seen[0], result.adversarial)


def test_a_perturbation_with_one_value_outside_the_box_is_no_success(key):
    x = np.array([[0.8, 0.5, 0.5], [0.5, 0.5, 0.5]], np.float32)
    second = dp.program(lambda x: jnp.stack([0 * x[:, 0], x[:, 1] - 0.6], 1))
    attack = make(lambda problem: result_at(jnp.full_like(problem.x, 0.3)), epsilon=0.4)
    result = attack(second, x, np.zeros(2, int), key=key)
    np.testing.assert_array_equal(result.success, [False, True])
    np.testing.assert_array_equal(result.adversarial[0], x[0])


def test_keys_depend_on_the_example_and_not_on_its_position(key):
    rows = jnp.asarray(X).reshape(6, -1)
    keys = jax.random.key_data(per_example_keys(key, rows))
    assert len(np.unique(keys, axis=0)) == 6
    np.testing.assert_array_equal(
        jax.random.key_data(per_example_keys(key, rows[::-1]))[::-1], keys
    )
    np.testing.assert_array_equal(jax.random.key_data(per_example_keys(key, rows[2:3])), keys[2:3])
    swapped = jax.random.key_data(per_example_keys(key, rows[:, ::-1]))
    changed = jax.random.key_data(per_example_keys(key, jnp.nextafter(rows, 1)))
    for other in (swapped, changed, jax.random.key_data(per_example_keys(jax.random.key(1), rows))):
        assert (other != keys).any(1).all()


def test_an_example_has_one_result_alone_in_any_order_and_in_a_padded_batch(key):
    attack = make(random_point)
    result = attack(F, X, Y, key=key).adversarial
    reverse = attack(F, X[::-1], Y[::-1], key=key)
    alone = attack(F, X[2:3], Y[2:3], key=key)
    padded = attack(F, np.concatenate([X, np.zeros_like(X)]), np.concatenate([Y, Y]), key=key)
    np.testing.assert_array_equal(reverse.adversarial[::-1], result)
    np.testing.assert_array_equal(alone.adversarial, result[2:3])
    np.testing.assert_array_equal(padded.adversarial[:6], result)
    np.testing.assert_array_equal(attack(F, X, Y, key=key).adversarial, result)
    other = attack(F, X, Y, key=jax.random.key(1)).adversarial
    assert (other != result).any((1, 2)).all()


@pytest.mark.slow
def test_a_pytree_is_attacked_like_its_concatenation(key):
    tree = {"left": X[:, 0], "right": X[:, 1, :, None]}
    of_tree = dp.program(
        lambda weights, x: linear(weights, jnp.concatenate([x["left"], x["right"][..., 0]], 1)),
        WEIGHTS,
    )
    attack = make(random_point, norm="l2")
    result, plain = attack(of_tree, tree, Y, key=key), attack(F, X, Y, key=key)
    np.testing.assert_array_equal(result.adversarial["left"], plain.adversarial[:, 0])
    np.testing.assert_array_equal(result.perturbation["right"][..., 0], plain.perturbation[:, 1])
    np.testing.assert_allclose(result.distance, plain.distance, rtol=1e-6)
    rows, unflatten = flatten_examples(jax.tree.map(jnp.asarray, tree))
    assert jax.tree.map(np.shape, unflatten(rows[:2])) == {"left": (2, 3), "right": (2, 3, 1)}


def test_float64_is_kept(key):
    with jax.enable_x64(True):
        f = dp.program(linear, jnp.asarray(WEIGHTS, jnp.float64))
        result = make(random_point, epsilon=0.1)(f, X.astype(np.float64), Y, key=key)
        arrays = result.adversarial, result.perturbation, result.distance, result.loss
        assert {array.dtype for array in arrays} == {np.dtype(np.float64)}
        assert (result.distance <= 0.1).all()
        assert (result.distance > 0.01).all()


def test_each_example_can_have_its_own_radius(key):
    epsilon = np.array([0.0, 0.01, 0.1, 0.2, 0.0, 0.3], np.float32)
    result = make(epsilon=epsilon, bounds=(-1, 2))(F, X, Y, key=key)
    np.testing.assert_allclose(result.distance, epsilon, rtol=1e-5)
    np.testing.assert_array_equal(result.adversarial[epsilon == 0], X[epsilon == 0])


def test_the_radius_of_a_minimum_norm_attack_is_infinite(key):
    shapes = []

    def search(problem):
        shapes.append(problem.shape)
        r = problem.clip_to_box(problem.x + 5)
        return result_at(jnp.where(jnp.isinf(problem.epsilon)[:, None], r, 0))

    result = make(search, epsilon=None)(F, X, Y, key=key)
    np.testing.assert_array_equal(result.adversarial, 1)
    assert shapes == [(2, 3)]


def test_new_numbers_do_not_compile_again():
    traces = []

    def traced(weights, x):
        traces.append(1)
        return linear(weights, x)

    counts = []
    for seed in range(3):
        x, y = np.random.default_rng(seed).uniform(0, 1, X.shape).astype(np.float32), (Y + seed) % 3
        f = dp.program(traced, WEIGHTS + seed)
        make(epsilon=0.1 * seed)(f, x, y, key=jax.random.key(seed))
        counts.append(len(traces))
    assert counts == counts[:1] * 3


def test_an_attack_can_be_called_under_jit(key):
    eager = make()(F, X, Y, key=key)
    jitted = jax.jit(lambda x, y, key: make()(F, x, y, key=key))(X, Y, key)
    np.testing.assert_allclose(jitted.adversarial, eager.adversarial, atol=1e-6)
    targeted = jax.jit(lambda y: make(targeted=True)(F, X, y, key=key, labels=y))((Y + 1) % 3)
    assert targeted.success.shape == (6,)


# --- errors --------------------------------------------------------------------------------------


def with_value(value, count=1):
    x = X.copy()
    x.flat[:count] = value
    return x


BAD_EXAMPLES = {
    "outside": (
        with_value(1.5, 3),
        Y,
        ValueError,
        r"x must lie in 0 .. 1, got 3 values outside, the worst 1.5",
    ),
    "below": (
        with_value(-1e-3),
        Y,
        ValueError,
        r"x must lie in 0 .. 1, got 1 values outside, the worst -0.001",
    ),
    "nan": (with_value(np.nan), Y, ValueError, "x must be finite, got 1 NaN"),
    "infinite": (with_value(np.inf), Y, ValueError, "x must be finite"),
    "integers": ((255 * X).astype(np.uint8), Y, TypeError, "x must be a float array, got uint8"),
    "no array": ({}, Y, ValueError, "x must hold at least one array"),
    "empty": (X[:0], Y[:0], ValueError, "must not be empty"),
    "batch": (X, Y[:3], ValueError, "leading axes must agree"),
    "no batch": (X[0, 0, 0], Y, ValueError, "x must have a leading axis"),
    "float labels": (X, Y.astype(np.float32), TypeError, "y must be integer labels"),
    "one-hot labels": (X, np.eye(3, dtype=int)[Y], TypeError, "y must be integer labels"),
    "boolean labels": (X, Y > 0, TypeError, "y must be integer labels"),
    "label too large": (X, Y + 3, ValueError, "y must lie in 0 .. 2"),
    "negative label": (X, Y - 3, ValueError, "y must lie in 0 .. 2"),
    "dtypes": (
        [X, X.astype(jnp.bfloat16)],
        Y,
        TypeError,
        "x must be of one dtype, got bfloat16, float32",
    ),
}


@pytest.mark.parametrize(("x", "y", "error", "message"), BAD_EXAMPLES.values(), ids=BAD_EXAMPLES)
def test_bad_examples_and_labels_raise(key, x, y, error, message):
    f = lambda x: F(jax.tree.leaves(x)[0].astype(jnp.float32))
    with pytest.raises(error, match=message):
        make()(f, x, y, key=key)


def test_rounding_errors_outside_the_bounds_are_clipped(key):
    x = with_value(np.float32(1 + 1e-7), 2)
    x.flat[3:5] = -1e-7
    result = make(epsilon=0.0)(F, x, np.asarray(F(x).argmax(1)), key=key)
    np.testing.assert_array_equal(result.adversarial, np.clip(x, 0, 1))


BAD_PROGRAMS = {
    "no classes": lambda x: x.reshape(len(x), -1).sum(1),
    "one class": lambda x: x.reshape(len(x), -1)[:, :1],
    "another batch": lambda x: x.reshape(len(x), -1)[:2],
    "integers": lambda x: x.reshape(len(x), -1).astype(int),
    "two arrays": lambda x: (F(x), F(x)),
}


@pytest.mark.parametrize("f", BAD_PROGRAMS.values(), ids=BAD_PROGRAMS)
def test_a_program_must_return_logits(key, f):
    with pytest.raises(
        ValueError, match=r"f must return float logits of shape \(6, classes\), classes >= 2"
    ):
        make()(f, X, Y, key=key)


def test_the_program_must_be_callable_and_the_key_a_key(key):
    with pytest.raises(TypeError, match="callable"):
        make()(3, X, Y, key=key)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        make()(F, X, Y, key=0)


def test_targets_must_differ_from_the_labels(key):
    targets = np.where(np.arange(6) < 2, Y, (Y + 1) % 3)
    with pytest.raises(
        ValueError, match="y must be targets that differ from the labels, got 2 equal"
    ):
        make(targeted=True)(F, X, targets, key=key, labels=Y)
    with pytest.raises(ValueError, match="shapes must agree"):
        make(targeted=True)(F, X, targets, key=key, labels=Y[:2])
    with pytest.raises(ValueError, match="labels must be None"):
        make()(F, X, Y, key=key, labels=Y)


@pytest.mark.parametrize(
    ("epsilon", "error"),
    [
        (-0.1, ValueError),
        (np.nan, ValueError),
        (np.inf, ValueError),
        (True, TypeError),
        ("0.1", TypeError),
        (np.array([0.1, -0.1]), ValueError),
        (np.array([0.1, np.nan]), ValueError),
        (np.ones((6, 1)), ValueError),
        (np.arange(6), TypeError),
    ],
)
def test_a_bad_radius_raises(epsilon, error):
    with pytest.raises(error, match="epsilon"):
        make(epsilon=epsilon)


def test_radii_must_fit_the_batch(key):
    with pytest.raises(ValueError, match="one value for each of 6 examples, got shape \\[4\\]"):
        make(epsilon=np.full(4, 0.1))(F, X, Y, key=key)


@pytest.mark.parametrize("bounds", [(1, 0), (0, 0), (0, np.nan), 1.0, (0, 1, 2)])
def test_bad_bounds_raise(bounds):
    with pytest.raises((TypeError, ValueError), match="bounds"):
        make(bounds=bounds)


def test_bad_flags_raise():
    for flag in ("targeted", "uses_gradients"):
        with pytest.raises(TypeError, match=f"{flag} must be True or False, got 1"):
            make(**{flag: 1})


def test_an_unknown_norm_raises():
    with pytest.raises(ValueError, match="norm must be one of 'linf', 'l2', 'l1'"):
        make(norm="l3")


# --- several devices -----------------------------------------------------------------------------

_SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import diffprog as dp
model = dp.models.cnn((8, 8, 1), channels=(4,), hidden=(8,))
f = dp.program(model.apply, model.init(jax.random.key(0)))
x = jax.random.uniform(jax.random.key(1), (8, 8, 8, 1))
y = f(x).argmax(1)
mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
over = NamedSharding(mesh, PartitionSpec("batch"))
assert len(jax.devices()) == 2
for attack in (
    dp.adversarial.pgd(epsilon=0.05, restarts=2),
    dp.adversarial.apgd(norm="l2", epsilon=0.1, steps=20),
    dp.adversarial.fgsm(norm="l1", epsilon=jnp.linspace(0, 1, 8)),
):
    one = attack(f, x, y, key=jax.random.key(2))
    two = attack(f, jax.device_put(x, over), jax.device_put(y, over), key=jax.random.key(2))
    assert len(two.adversarial.sharding.device_set) == 2, two.adversarial.sharding
    np.testing.assert_allclose(one.adversarial, two.adversarial, atol=2e-5)
    np.testing.assert_array_equal(one.success, two.success)
    np.testing.assert_array_equal(one.gradients, two.gradients)
print("alike")
"""


@pytest.mark.slow
def test_two_devices_give_the_results_of_one():
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "NPROC": "32",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", _SHARDED], env=flags, capture_output=True, text=True
    )
    assert done.stdout.strip() == "alike", done.stderr
