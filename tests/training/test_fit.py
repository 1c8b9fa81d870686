"""Minibatches, the cost of a batch, and how training ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from diffprog.models import mlp
from diffprog.training import fit, gauss_newton, newton_cg
from diffprog.training._sampler import Sampler

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (12, 3))
Y = X @ jnp.array([1.0, -2.0, 3.0])
START = jnp.zeros(3)


def squares(w, x, y):
    return (x @ w - y) ** 2


@pytest.mark.parametrize("size", [1, 4, 5, 12])
def test_each_epoch_uses_every_example_once(size):
    sampler = Sampler(12, size, 60 // size, KEY)
    indices = sampler.step_inputs(0, sampler.steps).batch
    order = np.tile(np.arange(12), 5) if indices is None else np.asarray(indices).ravel()
    for epoch in order.reshape(5, 12):
        assert sorted(epoch) == list(range(12))


def test_a_batch_depends_on_the_key_and_its_number_alone():
    sampler = Sampler(12, 5, 15, KEY)
    np.testing.assert_array_equal(
        sampler.step_inputs(7, 11).batch, sampler.step_inputs(0, 15).batch[7:11]
    )


def test_accumulation_and_remat_do_not_change_the_result():
    weights = jnp.arange(1.0, 13)
    train = lambda **options: (
        fit(squares, START, (X, Y), epochs=5, optimizer=optax.sgd(0.1), key=KEY, **options).params
    )
    np.testing.assert_allclose(train(accumulate=3), train(), rtol=1e-5)
    np.testing.assert_allclose(
        train(accumulate=3, weights=weights), train(weights=weights), rtol=1e-5
    )
    np.testing.assert_allclose(train(remat=True), train(), rtol=1e-6)


def test_examples_of_weight_zero_are_ignored():
    weights = jnp.where(jnp.arange(12) < 6, 1.0, 0.0)
    train = lambda *data, **options: (
        fit(squares, START, data, epochs=5, optimizer=optax.sgd(0.1), key=KEY, **options).params
    )
    np.testing.assert_allclose(
        train(X, Y.at[6:].set(99.0), weights=weights), train(X[:6], Y[:6]), rtol=1e-5
    )


def test_patience_returns_the_best_parameters():
    diverging = lambda w, x, y: ((w - 1) ** 2).sum() + 0 * y.sum()
    fitted = fit(
        diverging,
        START,
        (X, Y),
        epochs=50,
        held_out=(X, Y),
        patience=3,
        optimizer=optax.sgd(1.5),
        key=KEY,
    )
    losses = fitted.history["loss"]
    assert fitted.ending == "patience"
    assert fitted.best == 1 + int(np.argmin(losses))
    assert len(losses) == fitted.best + 3
    assert diverging(fitted.params, X, Y) == losses.min() < losses[-1]


def test_a_loss_that_only_ties_with_the_best_exhausts_the_patience():
    constant = lambda w, x, y: 0 * w.sum() + 0 * y
    options = {"epochs": 50, "held_out": (X, Y), "patience": 2, "key": KEY}
    fitted = fit(constant, START, (X, Y), optimizer=optax.sgd(0.1), **options)
    assert (fitted.ending, fitted.best, len(fitted.history["loss"])) == ("patience", 1, 3)


def test_accumulated_parts_of_a_batch_draw_their_own_random_numbers():
    noise = lambda w, x, y, key: 0 * w.sum() + jax.random.uniform(key)
    costs = [
        float(fit(noise, START, (X, Y), steps=1, accumulate=parts, key=KEY).history["cost"][0])
        for parts in (1, 2, 3)
    ]
    assert len(set(costs)) == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "epochs or steps"),
        ({"epochs": 1, "steps": 1}, ValueError, "epochs or steps"),
        ({"epochs": 1, "batch_size": 13}, ValueError, "batch_size"),
        ({"epochs": 1, "accumulate": 5}, ValueError, "accumulate"),
        ({"epochs": 1, "patience": 2}, ValueError, "held_out"),
        ({"epochs": 1, "weights": jnp.ones(3)}, ValueError, "weights"),
        ({"epochs": 1, "weights": jnp.zeros(12)}, ValueError, "weights must not all be 0"),
        ({"epochs": 1, "compute_dtype": jnp.int32}, TypeError, "compute_dtype"),
        ({"epochs": 1, "compute_dtype": "foo"}, TypeError, "compute_dtype"),
        ({"epochs": 1, "remat": "no"}, TypeError, "remat"),
        ({"epochs": 1, "checkpoint": 3}, TypeError, "checkpoint must be the path"),
    ],
)
def test_invalid_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        fit(squares, START, (X, Y), key=KEY, **options)


@pytest.mark.parametrize(
    ("params", "data", "options", "error", "message"),
    [
        (jnp.full(3, jnp.nan), (X, Y), {}, ValueError, "params must be finite"),
        (START, [X, Y], {}, TypeError, "data must be a tuple of arrays"),
        (START, [(X, Y)], {"accumulate": 5}, ValueError, "accumulate must divide every batch"),
    ],
)
def test_invalid_params_and_data_are_refused(params, data, options, error, message):
    with pytest.raises(error, match=message):
        fit(squares, params, data, epochs=1, key=KEY, **options)


@pytest.mark.parametrize("data", [(X, Y), [(X, Y)]], ids=["arrays", "iterable"])
@pytest.mark.parametrize(
    "optimizer",
    [
        gauss_newton(lambda w, x: x[0] @ w, lambda z, x: ((z - x[1]) ** 2).mean()),
        optax.chain(newton_cg(), optax.scale_by_backtracking_linesearch(20)),
        optax.lbfgs(),
    ],
    ids=["gauss_newton", "newton_cg", "lbfgs"],
)
def test_second_order_rules_fit_a_line(optimizer, data):
    fitted = fit(squares, START, data, epochs=10, optimizer=optimizer, key=KEY)
    np.testing.assert_allclose(fitted.params, [1.0, -2.0, 3.0], atol=1e-4)


@pytest.mark.slow
def test_gauss_newton_differentiates_hand_written_layers():
    model = mlp((3, 4, 1))
    plain = lambda p, x: (
        jnp.tanh(x @ p["affine1"]["weight"].T + p["affine1"]["bias"]) @ p["logits"]["weight"].T
        + p["logits"]["bias"]
    )

    def train(apply):
        rule = gauss_newton(
            lambda p, b: apply(p, b[0])[:, 0], lambda z, b: ((z - b[1]) ** 2).mean(), damping=1e-2
        )
        loss = lambda p, x, y: (apply(p, x)[:, 0] - y) ** 2
        return fit(loss, model.init(KEY), (X, Y), epochs=3, optimizer=rule, key=KEY).history["cost"]

    np.testing.assert_allclose(train(model.apply), train(plain), rtol=1e-3)


@pytest.mark.parametrize("data", [(X, Y), [(X, Y)] * 4], ids=["arrays", "iterable"])
def test_a_step_to_a_nonfinite_cost_is_undone_across_epochs(data):
    cliff = lambda w, x, y: jnp.log(1 - w) * jnp.ones(len(x))
    train = lambda **options: fit(
        cliff, jnp.zeros(()), data, optimizer=optax.sgd(0.1), epochs=20, key=KEY, **options
    )
    evaluated, plain = train(held_out=(X, Y)), train()
    assert evaluated.ending == plain.ending == "nonfinite"
    assert evaluated.steps == plain.steps
    assert evaluated.params == plain.params < 1
    np.testing.assert_array_equal(evaluated.history["cost"], plain.history["cost"])


def test_optimizers_get_the_extra_arguments_that_they_name():
    fitted = fit(
        squares,
        START,
        (X, Y),
        epochs=3,
        optimizer=optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05)),
        key=KEY,
    )
    assert fitted.history["cost"][-1] < fitted.history["cost"][0]


def test_weights_of_another_dtype_keep_the_dtype_of_the_cost():
    start = jnp.zeros(3, jnp.bfloat16)
    fitted = fit(
        squares, start, (X, Y), epochs=2, accumulate=2, weights=np.ones(12, np.float32), key=KEY
    )
    assert fitted.params.dtype == fitted.history["cost"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metrics": [squares]}, TypeError, "metrics must be a dict"),
        (
            {"metrics": {"a": lambda w, x, y: (x, y)}},
            ValueError,
            r"metrics\['a'\] must return one number or one for each of 12",
        ),
        ({"metrics": {"a": lambda w, x, y: x}}, ValueError, r"metrics\['a'\] must return"),
        ({"metrics": {"a": lambda w, x, y: 1j * y}}, ValueError, r"metrics\['a'\] must return"),
    ],
)
def test_invalid_metrics_are_refused_before_any_step(options, error, message):
    def data(epoch):
        raise AssertionError("data were read")

    with pytest.raises(error, match=message):
        fit(squares, START, data, epochs=1, held_out=(X, Y), key=KEY, **options)


@pytest.mark.parametrize(
    ("length", "steps", "evaluations"),
    [
        ({"epochs": 5}, 12, 5),
        ({"epochs": 1}, 3, 1),
        ({"epochs": 0.5}, 2, 1),
        ({"steps": 4}, 4, 2),
        ({"steps": 3}, 3, 1),
    ],
)
def test_epochs_use_every_example_and_metrics_follow_each_and_the_run(length, steps, evaluations):
    # Twelve examples in batches of five: epochs end after 3, 5, 8, 10 and 12 steps.
    fitted = fit(squares, START, (X, Y), batch_size=5, held_out=(X, Y), key=KEY, **length)
    assert fitted.steps == steps
    assert len(fitted.history["loss"]) == evaluations
