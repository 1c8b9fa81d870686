"""Minibatches, the cost of a batch, and where training ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from diffprog.models import mlp
from diffprog.training import fit, gauss_newton, newton_cg
from diffprog.training._sampler import batches

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
    row = (
        np.tile(np.arange(12), (5, 1))
        if seen is None
        else np.asarray(seen).ravel()[: 60 // size * size]
    )
    for epoch in range(len(row.ravel()) // 12):
        assert sorted(row.ravel()[12 * epoch : 12 * epoch + 12]) == list(range(12))


def test_a_batch_follows_from_the_key_and_its_number_alone():
    plan = batches((X, Y), 5, 6, None, KEY, None)
    np.testing.assert_array_equal(
        plan.between(7, 11).examples, plan.between(0, plan.steps).examples[7:11]
    )


def test_the_parts_of_a_batch_add_up_to_it():
    weights = jnp.arange(1.0, 13)
    train = lambda **options: (
        fit(squares, START, (X, Y), epochs=5, optimizer=optax.sgd(0.1), key=KEY, **options).params
    )
    np.testing.assert_allclose(train(accumulate=3), train(), rtol=1e-5)
    np.testing.assert_allclose(
        train(accumulate=3, weights=weights), train(weights=weights), rtol=1e-5
    )
    np.testing.assert_allclose(train(remat=True), train(), rtol=1e-6)


def test_examples_without_weight_do_not_count():
    weights = jnp.where(jnp.arange(12) < 6, 1.0, 0.0)
    train = lambda *data, **options: (
        fit(squares, START, data, epochs=5, optimizer=optax.sgd(0.1), key=KEY, **options).params
    )
    np.testing.assert_allclose(
        train(X, Y.at[6:].set(99.0), weights=weights), train(X[:6], Y[:6]), rtol=1e-5
    )


def test_patience_returns_the_best_parameters():
    away = lambda w, x, y: ((w - 1) ** 2).sum() + 0 * y.sum()
    found = fit(
        away,
        START,
        (X, Y),
        epochs=50,
        held_out=(X, Y),
        patience=3,
        optimizer=optax.sgd(1.5),
        key=KEY,
    )
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


@pytest.mark.slow
def test_gauss_newton_goes_through_hand_written_layers():
    model = mlp((3, 4, 1))
    plain = lambda p, x: (
        jnp.tanh(x @ p["affine1"]["weight"].T + p["affine1"]["bias"]) @ p["logits"]["weight"].T
        + p["logits"]["bias"]
    )

    def trained(apply):
        rule = gauss_newton(
            lambda p, b: apply(p, b[0])[:, 0], lambda z, b: ((z - b[1]) ** 2).mean(), damping=1e-2
        )
        loss = lambda p, x, y: (apply(p, x)[:, 0] - y) ** 2
        return fit(loss, model.init(KEY), (X, Y), epochs=3, optimizer=rule, key=KEY).history["cost"]

    np.testing.assert_allclose(trained(model.apply), trained(plain), rtol=1e-3)


@pytest.mark.parametrize("data", [(X, Y), [(X, Y)] * 4], ids=["arrays", "iterable"])
def test_a_step_that_leads_nowhere_is_taken_back_over_the_end_of_an_epoch(data):
    cliff = lambda w, x, y: jnp.log(1 - w) * jnp.ones(len(x))
    train = lambda **options: fit(
        cliff, jnp.zeros(()), data, optimizer=optax.sgd(0.1), epochs=20, key=KEY, **options
    )
    measured, alone = train(held_out=(X, Y)), train()
    assert measured.ending == alone.ending == "nonfinite"
    assert measured.steps == alone.steps
    assert measured.params == alone.params < 1
    np.testing.assert_array_equal(measured.history["cost"], alone.history["cost"])


def test_rules_that_name_what_they_take():
    fitted = fit(
        squares,
        START,
        (X, Y),
        epochs=3,
        optimizer=optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05)),
        key=KEY,
    )
    assert fitted.history["cost"][-1] < fitted.history["cost"][0]


def test_weights_of_another_dtype_do_not_change_that_of_the_cost():
    start = jnp.zeros(3, jnp.bfloat16)
    found = fit(
        squares, start, (X, Y), epochs=2, accumulate=2, weights=np.ones(12, np.float32), key=KEY
    )
    assert found.params.dtype == found.history["cost"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metrics": [squares]}, TypeError, "metrics must be a dict"),
        (
            {"metrics": {"a": lambda w, x, y: (x, y)}},
            ValueError,
            r"metrics\['a'\] must return a number or one for each of 12",
        ),
        ({"metrics": {"a": lambda w, x, y: x}}, ValueError, r"metrics\['a'\] must return"),
        ({"metrics": {"a": lambda w, x, y: 1j * y}}, ValueError, r"metrics\['a'\] must return"),
    ],
)
def test_refuses_metrics_before_any_step(options, error, message):
    def never(step):
        raise AssertionError("a step was taken")

    with pytest.raises(error, match=message):
        fit(squares, START, never, epochs=1, held_out=(X, Y), key=KEY, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((squares, jnp.full(3, jnp.nan), (X, Y)), {}, "params must be finite"),
        ((squares, START, [X, Y]), {}, "tuple of arrays"),
        ((squares, START, (X, Y)), {"remat": "no"}, "remat"),
        ((squares, START, (X, Y)), {"compute_dtype": "foo"}, "compute_dtype"),
        ((squares, START, (X, Y)), {"checkpoint": 3}, "checkpoint must be the path"),
        ((squares, START, [(X, Y)]), {"accumulate": 5}, "accumulate must divide every batch"),
    ],
)
def test_errors_name_the_argument(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fit(*arguments, epochs=1, key=KEY, **options)


@pytest.mark.parametrize(
    ("length", "looks"),
    [({"epochs": 5}, 5), ({"steps": 4}, 2), ({"steps": 3}, 1), ({"epochs": 0.5}, 1)],
)
def test_metrics_are_taken_at_the_end_of_every_epoch_and_of_the_run(length, looks):
    # Twelve examples in batches of five: epochs end after 3, 5, 8, 10 and 12 steps.
    assert (
        len(
            fit(squares, START, (X, Y), batch_size=5, held_out=(X, Y), key=KEY, **length).history[
                "loss"
            ]
        )
        == looks
    )
