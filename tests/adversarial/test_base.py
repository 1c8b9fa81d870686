"""What every attack shares: its checks, the rows, a key for each example, the last word; with searches that are no more than a formula."""

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


def found_at(problem: Problem, r) -> Search:
    none = jnp.zeros(len(r), jnp.int32)
    return Search(r, none, none, none + 1, none)


def downhill(problem: Problem) -> Search:
    """One step towards the likeliest other class, of which nobody draws."""
    own = lambda r: jnp.take_along_axis(problem.perturbed_logits(r), problem.y[:, None], 1).sum()
    return found_at(
        problem,
        problem.project(
            problem.epsilon[:, None]
            * problem.norm.ascent(-jax.grad(own)(jnp.zeros_like(problem.x)))
        ),
    )


def random(problem: Problem) -> Search:
    unit = jax.vmap(
        lambda key: jax.random.uniform(key, problem.x.shape[1:], problem.x.dtype, -1, 1)
    )(problem.keys)
    return found_at(problem, problem.project(problem.epsilon[:, None] * unit))


def attack(search=downhill, **numbers):
    return make_attack("formula", search, **{"norm": "linf", "epsilon": 0.3, **numbers})


# --- what comes back ---------------------------------------------------------------------------------------------------------------------


def test_the_last_word_is_fs_own(key):
    found = attack()(F, X, Y, key=key)
    said = np.asarray(F(found.adversarial))
    np.testing.assert_array_equal(found.success, said.argmax(1) != Y)
    np.testing.assert_array_equal(found.perturbation, found.adversarial - X)
    np.testing.assert_allclose(found.distance, np.abs(found.perturbation).max((1, 2)), rtol=1e-6)
    exact = np.log(np.exp(said.astype(np.float64)).sum(1)) - said[np.arange(6), Y]
    np.testing.assert_allclose(found.loss, exact, rtol=1e-5)
    assert found.success.any()
    assert not found.initially_misclassified.any()


@pytest.mark.parametrize("targeted", [False, True])
def test_examples_that_are_there_already_are_left_alone(key, targeted):
    y = np.where(np.arange(6) < 3, Y, (Y + 1) % 3)
    found = attack(targeted=targeted)(F, X, y, key=key)
    already = (y == Y) == targeted
    np.testing.assert_array_equal(found.initially_misclassified, already)
    np.testing.assert_array_equal(found.adversarial[already], X[already])
    np.testing.assert_array_equal(found.perturbation[already], 0)
    assert found.success[already].all()
    assert (found.distance[~already] > 0).all()


def test_nan_is_neither_already_nor_a_success(key):
    broken = dp.program(
        lambda weights, x: jnp.where(jnp.arange(6)[:, None] < 3, jnp.nan, 1) * linear(weights, x),
        WEIGHTS,
    )
    found = attack(epsilon=10.0)(broken, X, (Y + 1) % 3, key=key)
    assert not found.initially_misclassified[:3].any()
    assert not found.success[:3].any()
    assert found.initially_misclassified[3:].all()


@settings(max_examples=30, deadline=None)
@given(data=st.data(), shift=st.sampled_from([1e-30, 1e-8, 1e-3, 0.1, 3.0]))
def test_no_perturbation_is_x_bit_for_bit(data, shift):
    """Also of the smallest numbers, of -0 and of the faces of the box; and where r is not 0, |adversarial - x| <= |r|."""
    low, high = (float(np.float32(bound)) for bound in BOUNDS)
    number = st.floats(low, high, width=32) | st.sampled_from([low, high, -0.0, 0.0, 1e-45, -1e-40])
    x = np.array(data.draw(st.lists(number, min_size=6, max_size=6)), np.float32).reshape(1, 2, 3)
    y = np.asarray(F(x).argmax(1))
    nowhere = attack(epsilon=0.0, bounds=BOUNDS)(F, x, y, key=jax.random.key(0)).adversarial
    np.testing.assert_array_equal(np.asarray(nowhere).view(np.uint32), x.view(np.uint32))
    r = np.float32(shift) * np.sign(np.asarray(WEIGHTS[:, 0])).reshape(1, 2, 3)
    moved = np.asarray(add_rounded_toward_x(jnp.asarray(x), jnp.asarray(r)))
    x = np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)  # as XLA takes it
    assert (np.abs(moved - x) <= np.abs(r)).all()
    assert (
        np.abs(moved.astype(np.float64) - x - r) <= 2.0**-22 * (np.abs(x) + np.abs(r)) + 1e-37
    ).all()


def test_keys_follow_the_example_and_not_its_place(key):
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


def test_an_example_alone_in_a_batch_padded_or_elsewhere_is_found_alike(key):
    together = attack(random)(F, X, Y, key=key)
    elsewhere = attack(random)(F, X[::-1], Y[::-1], key=key)
    alone = attack(random)(F, X[2:3], Y[2:3], key=key)
    padded = attack(random)(
        F, np.concatenate([X, np.zeros_like(X)]), np.concatenate([Y, Y]), key=key
    )
    np.testing.assert_array_equal(elsewhere.adversarial[::-1], together.adversarial)
    np.testing.assert_array_equal(alone.adversarial, together.adversarial[2:3])
    np.testing.assert_array_equal(padded.adversarial[:6], together.adversarial)
    np.testing.assert_array_equal(
        attack(random)(F, X, Y, key=key).adversarial, together.adversarial
    )
    assert (
        (attack(random)(F, X, Y, key=jax.random.key(1)).adversarial != together.adversarial)
        .any((1, 2))
        .all()
    )


@pytest.mark.slow
def test_a_pytree_is_its_numbers_side_by_side(key):
    tree = {"left": X[:, 0], "right": X[:, 1, :, None]}
    of_tree = dp.program(
        lambda weights, x: linear(weights, jnp.concatenate([x["left"], x["right"][..., 0]], 1)),
        WEIGHTS,
    )
    found, plain = (
        attack(random, norm="l2")(of_tree, tree, Y, key=key),
        attack(random, norm="l2")(F, X, Y, key=key),
    )
    np.testing.assert_array_equal(found.adversarial["left"], plain.adversarial[:, 0])
    np.testing.assert_array_equal(found.perturbation["right"][..., 0], plain.perturbation[:, 1])
    np.testing.assert_allclose(found.distance, plain.distance, rtol=1e-6)
    rows, back = flatten_examples(jax.tree.map(jnp.asarray, tree))
    assert jax.tree.map(np.shape, back(rows[:2])) == {"left": (2, 3), "right": (2, 3, 1)}


def test_float64_stays(key):
    with jax.enable_x64(True):
        f = dp.program(linear, jnp.asarray(WEIGHTS, jnp.float64))
        found = attack(random, epsilon=0.1)(f, X.astype(np.float64), Y, key=key)
        assert {
            array.dtype
            for array in (found.adversarial, found.perturbation, found.distance, found.loss)
        } == {np.dtype(np.float64)}
        assert (found.distance <= 0.1).all()
        assert (found.distance > 0.01).all()


def test_each_example_has_its_own_radius(key):
    epsilon = np.array([0.0, 0.01, 0.1, 0.2, 0.0, 0.3], np.float32)
    found = attack(epsilon=epsilon, bounds=(-1, 2))(F, X, Y, key=key)
    np.testing.assert_allclose(found.distance, epsilon, rtol=1e-5)
    np.testing.assert_array_equal(found.adversarial[epsilon == 0], X[epsilon == 0])


def test_a_search_for_the_smallest_has_no_radius(key):
    seen = []

    def search(problem):
        seen.append(problem.shape)
        return found_at(
            problem,
            jnp.where(jnp.isinf(problem.epsilon)[:, None], problem.clip_to_box(problem.x + 5), 0),
        )

    found = attack(search, epsilon=None)(F, X, Y, key=key)
    np.testing.assert_array_equal(found.adversarial, 1)
    assert seen == [(2, 3)]


def test_one_program_for_other_numbers(key):
    traces = []

    def traced(weights, x):
        traces.append(1)
        return linear(weights, x)

    counts = []
    for seed in range(3):
        x, y = np.random.default_rng(seed).uniform(0, 1, X.shape).astype(np.float32), (Y + seed) % 3
        attack(epsilon=0.1 * seed)(
            dp.program(traced, WEIGHTS + seed), x, y, key=jax.random.key(seed)
        )
        counts.append(len(traces))
    assert counts == counts[:1] * 3


def test_it_can_be_called_where_nothing_has_a_value(key):
    outside = attack()(F, X, Y, key=key)
    inside = jax.jit(lambda x, y, key: attack()(F, x, y, key=key))(X, Y, key)
    np.testing.assert_allclose(inside.adversarial, outside.adversarial, atol=1e-6)
    other = jax.jit(lambda y: attack(targeted=True)(F, X, y, key=key, labels=y))((Y + 1) % 3)
    assert other.success.shape == (6,)


# --- what is refused ---------------------------------------------------------------------------------------------------------------------


def with_number(value, count=1):
    x = X.copy()
    x.flat[:count] = value
    return x


UNFIT = {
    "outside": (
        with_number(1.5, 3),
        Y,
        ValueError,
        r"x must lie in 0 .. 1, got 3 values outside, the worst 1.5",
    ),
    "below": (
        with_number(-1e-3),
        Y,
        ValueError,
        r"x must lie in 0 .. 1, got 1 values outside, the worst -0.001",
    ),
    "nan": (with_number(np.nan), Y, ValueError, "x must be finite, got 1 NaN"),
    "infinite": (with_number(np.inf), Y, ValueError, "x must be finite"),
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


@pytest.mark.parametrize(("x", "y", "error", "says"), UNFIT.values(), ids=UNFIT)
def test_examples_and_labels_that_do_not_fit_are_refused(key, x, y, error, says):
    called = []
    with pytest.raises(error, match=says):
        attack()(
            lambda x: called.append(1) or F(jax.tree.leaves(x)[0].astype(jnp.float32)),
            x,
            y,
            key=key,
        )


def test_rounding_is_no_offence(key):
    x = with_number(np.float32(1 + 1e-7), 2)
    x.flat[3:5] = -1e-7
    found = attack(epsilon=0.0)(F, x, np.asarray(F(x).argmax(1)), key=key)
    np.testing.assert_array_equal(found.adversarial, np.clip(x, 0, 1))


PROGRAMS = {
    "no classes": lambda x: x.reshape(len(x), -1).sum(1),
    "one class": lambda x: x.reshape(len(x), -1)[:, :1],
    "another batch": lambda x: x.reshape(len(x), -1)[:2],
    "integers": lambda x: x.reshape(len(x), -1).astype(int),
    "two arrays": lambda x: (F(x), F(x)),
}


@pytest.mark.parametrize("f", PROGRAMS.values(), ids=PROGRAMS)
def test_programs_without_logits_are_refused(key, f):
    with pytest.raises(
        ValueError, match=r"f must return float logits of shape \(6, classes\), classes >= 2"
    ):
        attack()(f, X, Y, key=key)


def test_what_is_no_program_or_no_key_is_refused(key):
    with pytest.raises(TypeError, match="callable"):
        attack()(3, X, Y, key=key)
    with pytest.raises(TypeError, match="key must be a random key"):
        attack()(F, X, Y, key=0)


def test_targets_that_are_the_labels_are_refused(key):
    targets = np.where(np.arange(6) < 2, Y, (Y + 1) % 3)
    with pytest.raises(
        ValueError, match="y must be targets that differ from the labels, got 2 equal"
    ):
        attack(targeted=True)(F, X, targets, key=key, labels=Y)
    with pytest.raises(ValueError, match="shapes must agree"):
        attack(targeted=True)(F, X, targets, key=key, labels=Y[:2])
    with pytest.raises(ValueError, match="labels must be None"):
        attack()(F, X, Y, key=key, labels=Y)


@pytest.mark.parametrize(
    ("epsilon", "error", "says"),
    [
        (-0.1, ValueError, "epsilon"),
        (np.nan, ValueError, "epsilon"),
        (np.inf, ValueError, "epsilon"),
        (True, TypeError, "epsilon"),
        ("0.1", TypeError, "epsilon"),
        (np.array([0.1, -0.1]), ValueError, "epsilon"),
        (np.array([0.1, np.nan]), ValueError, "epsilon"),
        (np.ones((6, 1)), ValueError, "epsilon"),
        (np.arange(6), TypeError, "epsilon"),
    ],
)
def test_radii_are_refused_at_once(epsilon, error, says):
    with pytest.raises(error, match=says):
        attack(epsilon=epsilon)


def test_radii_that_do_not_fit_the_batch_are_refused(key):
    with pytest.raises(ValueError, match="one value for each of 6 examples, got shape \\[4\\]"):
        attack(epsilon=np.full(4, 0.1))(F, X, Y, key=key)


@pytest.mark.parametrize("bounds", [(1, 0), (0, 0), (0, np.nan), 1.0, (0, 1, 2)])
def test_bounds_are_refused_at_once(bounds):
    with pytest.raises((TypeError, ValueError), match="bounds"):
        attack(bounds=bounds)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="norm must be one of 'linf', 'l2', 'l1'"):
        attack(norm="l3")


# --- several devices ---------------------------------------------------------------------------------------------------------------------

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
for attack in (dp.adversarial.pgd(epsilon=0.05, restarts=2), dp.adversarial.apgd(norm="l2", epsilon=0.1, steps=20),
               dp.adversarial.fgsm(norm="l1", epsilon=jnp.linspace(0, 1, 8))):
    one = attack(f, x, y, key=jax.random.key(2))
    two = attack(f, jax.device_put(x, over), jax.device_put(y, over), key=jax.random.key(2))
    assert len(two.adversarial.sharding.device_set) == 2, two.adversarial.sharding
    np.testing.assert_allclose(one.adversarial, two.adversarial, atol=2e-5)
    np.testing.assert_array_equal(one.success, two.success)
    np.testing.assert_array_equal(one.gradients, two.gradients)
print("alike")
"""


@pytest.mark.slow
def test_examples_over_two_devices_are_found_as_on_one():
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "NPROC": "32",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", _SHARDED], env=flags, capture_output=True, text=True
    )
    assert done.stdout.strip() == "alike", done.stderr
