"""Minibatches, the cost of a batch, and where training ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffprog.training import fit, gauss_newton, newton_cg
from diffprog.training._batches import batches

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (12, 3))
Y = X @ jnp.array([1.0, -2.0, 3.0])
START = jnp.zeros(3)


def squares(w, x, y):
    return (x @ w - y) ** 2


@pytest.mark.parametrize("size", [1, 4, 5, 12])
def test_every_example_is_seen_once_an_epoch(size):
    plan = batches((X, Y), size, 5, None, KEY, None)
    seen = plan.between(0, plan.steps).examples
    row = np.tile(np.arange(12), (5, 1)) if seen is None else np.asarray(seen).ravel()[: 60 // size * size]
    for epoch in range(len(row.ravel()) // 12):
        assert sorted(row.ravel()[12 * epoch : 12 * epoch + 12]) == list(range(12))


def test_a_batch_follows_from_the_key_and_its_number_alone():
    plan = batches((X, Y), 5, 6, None, KEY, None)
    np.testing.assert_array_equal(plan.between(7, 11).examples, plan.between(0, plan.steps).examples[7:11])


def test_the_parts_of_a_batch_add_up_to_it():
    weights = jnp.arange(1.0, 13)
    train = lambda **options: fit(squares, START, (X, Y), epochs=5, optimizer=optax.sgd(0.1), key=KEY, **options).params  # noqa: E731
    np.testing.assert_allclose(train(accumulate=3), train(), rtol=1e-5)
    np.testing.assert_allclose(train(accumulate=3, weights=weights), train(weights=weights), rtol=1e-5)
    np.testing.assert_allclose(train(remat=True), train(), rtol=1e-6)


def test_examples_without_weight_do_not_count():
    weights = jnp.where(jnp.arange(12) < 6, 1.0, 0.0)
    train = lambda *data, **options: fit(squares, START, data, epochs=5, optimizer=optax.sgd(0.1), key=KEY, **options).params  # noqa: E731
    np.testing.assert_allclose(train(X, Y.at[6:].set(99.0), weights=weights), train(X[:6], Y[:6]), rtol=1e-5)


def test_patience_returns_the_best_parameters():
    away = lambda w, x, y: ((w - 1) ** 2).sum() + 0 * y.sum()  # noqa: E731
    found = fit(away, START, (X, Y), epochs=50, held_out=(X, Y), patience=3, optimizer=optax.sgd(1.5), key=KEY)
    assert found.ending == "patience"
    assert found.best == 1 + int(np.argmin(found.history["loss"]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "epochs or steps"),
        ({"epochs": 1, "steps": 1}, ValueError, "epochs or steps"),
        ({"epochs": 1, "batch_size": 13}, ValueError, "batch_size"),
        ({"epochs": 1, "accumulate": 5}, ValueError, "accumulate"),
        ({"epochs": 1, "patience": 2}, ValueError, "held_out"),
        ({"epochs": 1, "weights": jnp.ones(3)}, ValueError, "weights"),
        ({"epochs": 1, "compute_dtype": jnp.int32}, TypeError, "compute_dtype"),
    ],
)
def test_refuses(options, error, message):
    with pytest.raises(error, match=message):
        fit(squares, START, (X, Y), key=KEY, **options)


@pytest.mark.parametrize("data", [(X, Y), [(X, Y)]], ids=["arrays", "iterable"])
@pytest.mark.parametrize(
    "rule",
    [
        gauss_newton(lambda w, x: x[0] @ w, lambda z, x: ((z - x[1]) ** 2).mean()),
        optax.chain(newton_cg(), optax.scale_by_backtracking_linesearch(20)),
        optax.lbfgs(),
    ],
    ids=["gauss_newton", "newton_cg", "lbfgs"],
)
def test_second_order_fits_a_line(rule, data):
    found = fit(squares, START, data, epochs=10, optimizer=rule, key=KEY)
    np.testing.assert_allclose(found.params, [1.0, -2.0, 3.0], atol=1e-4)
