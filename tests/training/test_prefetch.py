"""Batches from an iterable: the same training as from arrays, read ahead, and never far."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffprog.training import fit
from diffprog.training._prefetch import _read_ahead

KEY = jax.random.key(0)
X = np.asarray(jax.random.normal(jax.random.key(1), (24, 3)))
Y = X @ np.array([1.0, -2.0, 3.0], np.float32)
START = jnp.zeros(3)


def squares(w, x, y):
    return (x @ w - y) ** 2


def in_order(size):
    return [(X[k : k + size], Y[k : k + size]) for k in range(0, 24, size)]


def train(data, **options):
    return fit(squares, START, data, optimizer=optax.sgd(0.1), key=KEY, **options)


def test_batches_that_are_all_are_full_descent():
    found, whole = train([(X, Y)], epochs=7), train((X, Y), epochs=7)
    np.testing.assert_array_equal(found.history["cost"], whole.history["cost"])


def test_costs_are_those_of_a_loop_by_hand():
    w, costs = START, []
    for x, y in 2 * in_order(8):
        value, gradient = jax.value_and_grad(lambda w, x=x, y=y: squares(w, x, y).mean())(w)
        w = w - 0.1 * gradient
        costs.append(value)
    np.testing.assert_allclose(train(in_order(8), epochs=2).history["cost"], costs, rtol=1e-5)


def test_epochs_and_metrics():
    found = train(in_order(8), epochs=3, held_out=(X, Y))
    assert found.steps == 9
    assert len(found.history["loss"]) == 3
    assert len(train(in_order(8), steps=4, held_out=(X, Y)).history["loss"]) == 2


def test_a_function_gives_each_epoch_its_own_order():
    asked = []

    def order(epoch):
        asked.append(epoch)
        return in_order(8)[epoch:]

    assert train(order, epochs=3).steps == 3 + 2 + 1
    assert asked == [0, 1, 2]


def test_an_iterator_is_good_for_one_epoch():
    assert train(iter(in_order(8)), epochs=1).steps == 3
    with pytest.raises(ValueError, match="data must be an iterable that begins anew"):
        train(iter(in_order(8)), epochs=2)


def test_what_waits_is_bounded():
    given = []

    def source():
        for k in range(100):
            given.append(k)
            yield k

    with _read_ahead(source()) as ahead:
        assert next(ahead) == 0
    assert len(given) <= 8


def test_an_error_of_the_iterable_is_raised():
    def broken(epoch):
        yield X, Y
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        train(broken, epochs=1)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (3, {"epochs": 1}, TypeError, "data"),
        ([], {"epochs": 1}, ValueError, "at least one batch"),
        ([[X]], {"epochs": 1}, TypeError, "tuples of arrays"),
        ([(X, Y[:3])], {"epochs": 1}, ValueError, "leading axes"),
        ([(np.full_like(X, np.nan), Y)], {"epochs": 1}, ValueError, "finite"),
        ([(X, Y)], {"epochs": 0.5}, ValueError, "epochs"),
        ([(X, Y)], {"epochs": 1, "batch_size": 3}, ValueError, "batch_size"),
        ([(X, Y)], {"epochs": 1, "weights": np.ones(24, np.float32)}, ValueError, "weights"),
    ],
)
def test_refuses(data, options, error, message):
    with pytest.raises(error, match=message):
        train(data, **options)


def test_reading_goes_on_while_steps_are_computed():
    read, seen = [], []

    def source(epoch):
        for k in range(60):
            read.append(k)
            yield X, Y

    def look(w):
        """The first step does not end before the batch of the second has been read."""
        limit = time.monotonic() + 20
        while len(read) < 2 and time.monotonic() < limit:
            time.sleep(0.01)
        seen.append(len(read))
        return np.float32(0)

    def loss(w, x, y):
        return squares(w, x, y).mean() + jax.pure_callback(
            look, jax.ShapeDtypeStruct((), jnp.float32), jax.lax.stop_gradient(w)
        )

    assert fit(loss, START, source, optimizer=optax.sgd(0.1), epochs=1, key=KEY).steps == 60
    # One batch in use, two that wait, four that are being read.
    assert 2 <= seen[0] <= 1 + 2 + 4
