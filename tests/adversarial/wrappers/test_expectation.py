"""Expectation over transformation: attacks on random programs, evaluated with new draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp
from diffprog.adversarial import cascade, expectation, fgsm, pgd, transfer
from diffprog.adversarial.wrappers._expectation import _log_mean_softmax
from tests.adversarial.boxes import BATCH, SIZE, inner_case, linear


def half(weights, x, first):
    """Compute a linear program of the first half of the values, or of the second."""
    return linear(weights, jnp.where((jnp.arange(SIZE) < SIZE // 2) == first, x, 0.5))


def random_half(weights, x, key):
    """Use the half that a bit of the key selects; `jax.random` would take longer to compile."""
    return half(weights, x, jax.random.key_data(key)[-1] % 2 == 0)


@pytest.mark.slow
def test_success_agrees_with_the_exact_expectation(key):
    f, x, y = inner_case(0)
    weights = 20 * f.arrays[0]
    attack = expectation(fgsm(epsilon=0.2), draws=32)
    result = attack(dp.program(random_half, weights), x, y, key=key)
    mean = (
        sum(jax.nn.softmax(half(weights, result.adversarial, first)) for first in (True, False)) / 2
    )
    # The mean of 128 draws is within four standard deviations of 1/2, 0.18, of the difference of
    # the halves, at most 1.
    certain = np.abs(np.diff(mean)[:, 0]) > 2 * 0.18
    assert certain.sum() >= 6
    np.testing.assert_array_equal(result.success[certain], (mean.argmax(1) != y)[certain])
    assert result.success.sum() >= 6
    assert (np.abs(result.perturbation) <= 0.2 * (1 + 1e-6)).all()
    np.testing.assert_array_equal(result.perturbation, result.adversarial - x)
    initial = result.initially_misclassified
    np.testing.assert_array_equal(result.adversarial[initial], x[initial])


@pytest.mark.slow
def test_a_lucky_draw_is_no_success(key):
    """The program tosses a coin: an attack that is judged by the draws it searched on succeeds."""
    side = lambda x, key: 10 * jax.random.bernoulli(key, 0.2, (len(x),)) - 5.0
    coin = dp.program(lambda x, key: jnp.stack([jnp.zeros(len(x)), side(x, key)], 1) + 0 * x[:, :1])
    x, y = inner_case(1)[1], np.zeros(BATCH, int)
    result = expectation(pgd(epsilon=0.2, steps=20, restarts=3), draws=1)(coin, x, y, key=key)
    assert (result.step >= 0).sum() >= 3
    # Two of four tosses of probability 1/5 or more: 0.18 each. Six of eight or more: 8e-4.
    assert result.success.sum() < 6


@pytest.mark.slow
def test_draws_are_per_example_and_new_numbers_do_not_compile_again(key):
    traces = []

    def traced(weights, x, key):
        traces.append(1)
        return random_half(weights, x, key)

    f, x, y = inner_case(2)
    program, attack = dp.program(traced, f.arrays[0]), expectation(fgsm(epsilon=0.1), draws=4)
    result, first = attack(program, x, y, key=key), len(traces)
    jax.tree.map(np.testing.assert_array_equal, attack(program, x, y, key=key), result)
    reverse = attack(program, x[::-1], y[::-1], key=key)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one[::-1], other, rtol=1e-5), reverse, result
    )
    assert (attack(program, x, y, key=jax.random.key(5)).loss != result.loss).any()
    expectation(fgsm(epsilon=0.3), draws=4)(dp.program(traced, -f.arrays[0]), x, 1 - y, key=key)
    assert len(traces) == first


def test_the_settings_of_the_attack_are_kept():
    attack = expectation(fgsm(norm="l2", epsilon=0.3, targeted=True), draws=4)
    assert (attack.name, attack.norm, attack.epsilon, attack.targeted, attack.uses_gradients) == (
        "expectation of fgsm",
        "l2",
        0.3,
        True,
        True,
    )
    assert expectation(attack, draws=8).draws == 8


@pytest.mark.slow
def test_nan_is_never_a_success():
    x, y = jnp.array([[0.9, 0.1], [0.6, 0.5]]), jnp.array([0, 0])
    faulty = lambda x, key: jnp.where(x[:, :1] > 0.7, jnp.nan, 1.0) * x
    result = expectation(fgsm(epsilon=0.1), 2)(faulty, x, y, key=jax.random.key(0))
    assert result.initially_misclassified.tolist() == [False, False]
    assert result.success.tolist() == [False, True]


@pytest.mark.slow
def test_a_stage_of_a_cascade_counts_only_if_success_is_confirmed():
    x, y = jax.random.uniform(jax.random.key(1), (16, 2)), jnp.zeros(16, int)
    noisy = lambda x, key: x + 0.3 * jax.random.normal(key, x.shape)
    attack = expectation(cascade([fgsm(epsilon=0.1), fgsm(epsilon=0.1, loss="margin")]), 2)
    result = attack(noisy, x, y, key=jax.random.key(0))
    np.testing.assert_array_equal(
        result.stage >= 0, result.success & ~result.initially_misclassified
    )


def test_an_expectation_can_be_neither_transferred_nor_cascaded():
    with pytest.raises(ValueError, match="transfer the attack inside"):
        transfer(expectation(fgsm(), 2), lambda x: x)
    with pytest.raises(ValueError, match="wrap the cascade in expectation"):
        cascade([expectation(fgsm(), 2)])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("pgd",), TypeError, "attack must be an Attack, got str"),
        ((fgsm(), 0), ValueError, "draws"),
        ((fgsm(), 1.5), TypeError, "draws"),
    ],
)
def test_bad_arguments_raise(arguments, error, message):
    with pytest.raises(error, match=message):
        expectation(*arguments)


def test_the_evaluation_draws_other_keys_than_the_search(key):
    """Four times as many; that the first of them are those of the search would favor the attack."""
    noise = lambda x, key: x + jax.random.normal(key, x.shape)
    x = jnp.array([[0.5, 0.5], [0.2, 0.8]])
    attack = expectation(fgsm(epsilon=0.1), draws=2)
    evaluated = attack.mean_program(noise, key)(x)
    np.testing.assert_array_equal(attack.mean_program(noise, key)(x), evaluated)
    for k in range(2):
        drawn = _log_mean_softmax(noise, jax.random.split(key)[k], 8)(x)
        assert (np.abs(drawn - evaluated) > 1e-4).all() == (k == 0)
