"""Square attack: exact decisions on linear programs, early stopping, and the number of queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp
from diffprog.adversarial import square

DUAL_ORDER = {"linf": 1, "l2": 2, "l1": np.inf}
SHAPE = (4, 4, 1)
# Bounds that are not round numbers in binary: there high - x + x can differ from high.
BOUNDS = {"linf": (-2.1179, 2.64), "l2": (0.0, 1.0), "l1": (-2.1179, 2.64)}

every_norm = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])


def linear(weights, x):
    return (x.reshape(len(x), -1) - 0.5) @ weights


def linear_case(seed, batch=8, bounds=(0.0, 1.0), shape=SHAPE, dtype=np.float32, faces=0.0):
    """Draw a linear program of two classes, examples, and the classes it predicts.

    A share of the values, `faces`, lies on the faces of the box.
    """
    rng = np.random.default_rng(seed)
    low, high = (dtype(bound) for bound in bounds)
    inner = low + 0.4 * (high - low), high - 0.4 * (high - low)
    x = rng.uniform(*inner, (batch, *shape)).astype(dtype)
    x = np.where(rng.uniform(size=x.shape) < faces, rng.choice([low, high], x.shape), x)
    f = dp.program(linear, jnp.asarray(rng.normal(size=(x[0].size, 2)).astype(dtype)))
    return f, jnp.asarray(x), f(x).argmax(1)


def exact_distances(norm, f, x):
    """Compute the distances to the decision boundary, without a box."""
    (weights,) = f.arrays
    margin = np.abs(np.diff(np.asarray(f(x), np.float64))[:, 0])
    g = np.diff(np.asarray(weights, np.float64))[:, 0]
    return margin / np.linalg.norm(g, DUAL_ORDER[norm])


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow), "l1"])
@pytest.mark.parametrize("targeted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_success_is_decided_by_the_distance(key, norm, targeted):
    f, x, y = linear_case(0, bounds=BOUNDS[norm])
    exact = exact_distances(norm, f, x)
    for factor, success in ((1.5, True), (0.999, False)):
        epsilon = jnp.asarray(factor * exact, jnp.float32)
        attack = square(
            norm=norm, epsilon=epsilon, queries=1500, targeted=targeted, bounds=BOUNDS[norm]
        )
        result = attack(f, x, 1 - y if targeted else y, key=key)
        np.testing.assert_array_equal(result.success, success)
        np.testing.assert_array_equal(result.gradients, 0)
        np.testing.assert_array_equal(result.step + 1, result.queries if success else 0)
        queries = result.queries[~result.success]
        assert (queries <= 400).all() if norm == "linf" else (queries == 1500).all()


def test_linf_stops_at_the_optimum_of_a_linear_program(key):
    """The optimum is a corner of the ball; no further square increases the loss there."""
    f, x, y = linear_case(5, batch=6)
    epsilon = jnp.asarray(0.9 * exact_distances("linf", f, x), jnp.float32)
    result = square(epsilon=epsilon, queries=1500)(f, x, y, key=key)
    (weights,) = f.arrays
    corner = epsilon[:, None] * jnp.sign(weights[:, 1 - y].T - weights[:, y].T)
    np.testing.assert_allclose(result.perturbation.reshape(6, -1), corner, rtol=1e-5)
    assert (result.queries <= 400).all()
    assert len(set(result.queries.tolist())) > 1
    alone = square(epsilon=epsilon[:1], queries=1500)(f, x[:1], y[:1], key=key)
    assert alone.queries[0] == result.queries[0]


@pytest.mark.slow
@every_norm
def test_more_queries_increase_the_loss(key, norm):
    f, x, y = linear_case(3, bounds=BOUNDS[norm])
    epsilon = jnp.asarray(0.9 * exact_distances(norm, f, x), jnp.float32)
    few, many = (
        square(norm=norm, epsilon=epsilon, queries=queries, bounds=BOUNDS[norm])(
            f, x, y, key=key
        ).loss
        for queries in (1, 1500)
    )
    # At 0.9 of the distance a tenth of the margin is left.
    optimum = np.log1p(np.exp(-0.1 * np.abs(np.diff(f(x))[:, 0])))
    assert (many > few).all()
    assert np.median((many - few) / (optimum - few)) > 0.9


@pytest.mark.slow
def test_queries_count_the_forward_passes(key):
    calls = []

    def counted(weights, x):
        jax.debug.callback(lambda _: calls.append(1), x)
        return linear(weights, x)

    f, x, y = linear_case(1, batch=1)
    program = dp.program(counted, f.arrays[0])
    for factor, restarts in ((0.9, 1), (0.9, 3), (1.5, 3)):
        epsilon = float(factor * exact_distances("linf", f, x)[0])
        calls.clear()
        attack = square(epsilon=epsilon, queries=200, restarts=restarts)
        result = jax.block_until_ready(attack(program, x, y, key=key))
        jax.effects_barrier()
        # Every attack also evaluates the logits of x and of the result.
        assert len(calls) == result.queries[0] + 2
        assert result.gradients[0] == 0


@pytest.mark.slow
def test_restarts_go_on_for_examples_without_success(key):
    f, x, y = linear_case(2, bounds=BOUNDS["linf"])
    epsilon = jnp.asarray(1.05 * exact_distances("linf", f, x), jnp.float32)
    one, many = (
        square(epsilon=epsilon, queries=20, restarts=restarts, bounds=BOUNDS["linf"])(
            f, x, y, key=key
        )
        for restarts in (1, 20)
    )
    np.testing.assert_array_equal(one.adversarial[one.success], many.adversarial[one.success])
    assert many.success.sum() > one.success.sum()
    assert (many.loss >= one.loss).all()
    assert (many.restart[many.success & ~one.success] > 0).all()
    np.testing.assert_array_equal(
        many.queries, np.where(many.success, 20 * many.restart + many.step + 1, 400)
    )


@pytest.mark.slow
def test_images_do_not_depend_on_their_position_and_the_other_images(key):
    f, x, y = linear_case(4, shape=(7, 5, 2), faces=0.3)
    attack = square(epsilon=jnp.float32(0.02), queries=100)
    together, backwards = attack(f, x, y, key=key), attack(f, x[::-1], y[::-1], key=key)
    replaced = jnp.concatenate([x[:3], 1 - x[3:]])
    others = attack(f, replaced, f(replaced).argmax(1), key=key)
    np.testing.assert_array_equal(together.adversarial, backwards.adversarial[::-1])
    np.testing.assert_array_equal(together.adversarial[:3], others.adversarial[:3])
    np.testing.assert_array_equal(together.queries[:3], others.queries[:3])


@pytest.mark.slow
@every_norm
def test_rows_of_values_are_attacked_in_float64(key, norm):
    with jax.enable_x64(True):
        f, x, y = linear_case(5, shape=(16,), dtype=np.float64)
        epsilon = jnp.asarray(1.5 * exact_distances(norm, f, x))
        result = square(norm=norm, epsilon=epsilon, queries=1500)(f, x, y, key=key)
        assert result.adversarial.dtype == np.float64
        assert result.success.all()


@pytest.mark.parametrize("p", [0.0, 1.5])
def test_a_share_outside_0_to_1_is_refused(p):
    with pytest.raises(ValueError, match="p must"):
        square(p=p)


def test_thousands_of_channels_do_not_overflow(key):
    f, x, y = linear_case(6, batch=2, shape=(1, 1, 2048))
    result = square(epsilon=1e-4, queries=5)(f, x, y, key=key)
    np.testing.assert_array_equal(result.queries, 5)
