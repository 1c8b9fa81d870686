"""Batches from an iterable train like arrays, and are read ahead within bounds."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffprog.training import fit
from diffprog.training._data_source import DataPosition
from diffprog.training._prefetch import BatchStream, _read_ahead

KEY = jax.random.key(0)
X = np.asarray(jax.random.normal(jax.random.key(1), (24, 3)))
Y = X @ np.array([1.0, -2.0, 3.0], np.float32)
START = jnp.zeros(3)


def squares(w, x, y):
    return (x @ w - y) ** 2


def batches(size):
    return [(X[k : k + size], Y[k : k + size]) for k in range(0, 24, size)]


def train(data, **options):
    return fit(squares, START, data, optimizer=optax.sgd(0.1), key=KEY, **options)


def test_one_batch_of_all_examples_is_full_gradient_descent():
    streamed, in_memory = train([(X, Y)], epochs=7), train((X, Y), epochs=7)
    np.testing.assert_array_equal(streamed.history["cost"], in_memory.history["cost"])


def test_costs_equal_those_of_a_loop_by_hand():
    w, costs = START, []
    for x, y in 2 * batches(8):
        value, gradient = jax.value_and_grad(lambda w, x=x, y=y: squares(w, x, y).mean())(w)
        w = w - 0.1 * gradient
        costs.append(value)
    np.testing.assert_allclose(train(batches(8), epochs=2).history["cost"], costs, rtol=1e-5)


def test_metrics_are_evaluated_after_each_epoch_and_the_run():
    fitted = train(batches(8), epochs=3, held_out=(X, Y))
    assert fitted.steps == 9
    assert len(fitted.history["loss"]) == 3
    assert len(train(batches(8), steps=4, held_out=(X, Y)).history["loss"]) == 2


def test_a_function_gives_each_epoch_its_own_order():
    epochs = []

    def data(epoch):
        epochs.append(epoch)
        return batches(8)[epoch:]

    assert train(data, epochs=3).steps == 3 + 2 + 1
    assert epochs == [0, 1, 2]


def test_an_iterator_serves_one_epoch():
    assert train(iter(batches(8)), epochs=1).steps == 3
    with pytest.raises(ValueError, match="data must be an iterable that can be iterated again"):
        train(iter(batches(8)), epochs=2)


def test_a_run_resumed_within_an_epoch_takes_the_steps_that_are_left():
    stream = BatchStream(lambda epoch: batches(8), epochs=None, steps=6, mesh=None)
    whole = list(stream.segments(DataPosition()))
    resumed = list(stream.segments(DataPosition(steps=4, epoch=1, batch=1)))
    taken = [step for segment in resumed for step in segment.xs]
    for step, (x, y) in zip(taken, batches(8)[1:], strict=True):
        np.testing.assert_array_equal(step.batch[0], x)
        np.testing.assert_array_equal(step.batch[1], y)
    assert [int(step.step) for step in taken] == [4, 5]
    assert resumed[-1].end == whole[-1].end


def test_the_number_of_waiting_items_is_bounded():
    read = []

    def source():
        for k in range(100):
            read.append(k)
            yield k

    with _read_ahead(source()) as ahead:
        assert next(ahead) == 0
    assert len(read) <= 8


def test_an_error_in_the_iterable_is_raised():
    def broken(epoch):
        yield X, Y
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        train(broken, epochs=1)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (3, {"epochs": 1}, TypeError, "data must be a tuple of arrays"),
        ([], {"epochs": 1}, ValueError, "at least one batch"),
        ([[X]], {"epochs": 1}, TypeError, "tuples of arrays"),
        ([(X, Y[:3])], {"epochs": 1}, ValueError, "leading axes"),
        ([(np.full_like(X, np.nan), Y)], {"epochs": 1}, ValueError, "finite"),
        ([(X, Y)], {"epochs": 0.5}, ValueError, "epochs"),
        ([(X, Y)], {"epochs": 1, "batch_size": 3}, ValueError, "batch_size"),
        ([(X, Y)], {"epochs": 1, "weights": np.ones(24, np.float32)}, ValueError, "weights"),
    ],
)
def test_invalid_data_are_refused(data, options, error, message):
    with pytest.raises(error, match=message):
        train(data, **options)


def test_batches_are_read_while_steps_are_computed():
    read, counts = [], []

    def source(epoch):
        for k in range(60):
            read.append(k)
            yield X, Y

    def wait_for_second_batch(w):
        deadline = time.monotonic() + 20
        while len(read) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        counts.append(len(read))
        return np.float32(0)

    def loss(w, x, y):
        return squares(w, x, y).mean() + jax.pure_callback(
            wait_for_second_batch,
            jax.ShapeDtypeStruct((), jnp.float32),
            jax.lax.stop_gradient(w),
        )

    assert fit(loss, START, source, optimizer=optax.sgd(0.1), epochs=1, key=KEY).steps == 60
    # One batch in use, a group of two that waits, and a group of four that is being read.
    assert 2 <= counts[0] <= 1 + 2 + 4
