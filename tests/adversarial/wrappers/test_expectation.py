"""What attacks are put over: random programs, programs that round, one perturbation for all, another program's gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp
from diffprog.adversarial import Attack, bpda, expectation, fgsm, pgd, transfer, universal
from diffprog.adversarial.wrappers._expectation import _minibatches

ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
BATCH, SIZE = 8, 10


def linear(weights, x):
    return (x - 0.5) @ weights


def case(seed, batch=BATCH, dtype=np.float32):
    """A linear program of two classes, examples in the middle of the box, and what it reads."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.4, 0.6, (batch, SIZE)).astype(dtype)
    f = dp.program(linear, jnp.asarray(rng.normal(size=(SIZE, 2)).astype(dtype)))
    return f, x, np.asarray(f(x).argmax(1))


def distances(norm, f, x):
    gap = np.abs(np.diff(np.asarray(f(x), np.float64))[:, 0])
    return gap / np.linalg.norm(np.diff(np.asarray(f.arrays[0], np.float64))[:, 0], DUAL[norm])


# --- expectation -------------------------------------------------------------------------------------------------------------------------


def half(weights, x, first):
    """A linear program of the first half of the numbers, or of the second."""
    return linear(weights, jnp.where((jnp.arange(SIZE) < SIZE // 2) == first, x, 0.5))


def tossed(weights, x, key):
    """The one or the other, as a bit of the key says: what jax.random draws takes long to compile."""
    return half(weights, x, jax.random.key_data(key)[-1] % 2 == 0)


@pytest.mark.slow
def test_the_mean_over_draws_is_attacked_and_judged_by_other_draws(key):
    f, x, y = case(0)
    weights = 20 * f.arrays[0]
    found = expectation(fgsm(epsilon=0.2), draws=32)(dp.program(tossed, weights), x, y, key=key)
    mean = (
        sum(jax.nn.softmax(half(weights, found.adversarial, first)) for first in (True, False)) / 2
    )
    # The mean of 128 tosses is within four standard deviations of 1/2, 0.18, of the halves' difference, at most 1.
    certain = np.abs(np.diff(mean)[:, 0]) > 2 * 0.18
    assert certain.sum() >= 6
    np.testing.assert_array_equal(found.success[certain], (mean.argmax(1) != y)[certain])
    assert found.success.sum() >= 6
    assert (np.abs(found.perturbation) <= 0.2 * (1 + 1e-6)).all()
    np.testing.assert_array_equal(found.perturbation, found.adversarial - x)
    np.testing.assert_array_equal(
        found.adversarial[found.initially_misclassified], x[found.initially_misclassified]
    )


@pytest.mark.slow
def test_a_lucky_draw_is_no_success(key):
    """A coin that f tosses: there is nothing to be found, and an attack that takes one toss for an answer finds it."""
    side = lambda x, key: 10 * jax.random.bernoulli(key, 0.2, (len(x),)) - 5.0
    coin = dp.program(lambda x, key: jnp.stack([jnp.zeros(len(x)), side(x, key)], 1) + 0 * x[:, :1])
    x, y = case(1)[1], np.zeros(BATCH, int)
    found = expectation(pgd(epsilon=0.2, steps=20, restarts=3), draws=1)(coin, x, y, key=key)
    assert (found.step >= 0).sum() >= 3
    # Two of four tosses of 1 in 5 or more: 0.18 each. Six of eight or more: 8e-4.
    assert found.success.sum() < 6


@pytest.mark.slow
def test_expectation_has_draws_for_each_example_and_one_program_for_all_numbers(key):
    traces = []

    def traced(weights, x, key):
        traces.append(1)
        return tossed(weights, x, key)

    f, x, y = case(2)
    program, attack = dp.program(traced, f.arrays[0]), expectation(fgsm(epsilon=0.1), draws=4)
    together, first = attack(program, x, y, key=key), len(traces)
    jax.tree.map(np.testing.assert_array_equal, attack(program, x, y, key=key), together)
    backwards = attack(program, x[::-1], y[::-1], key=key)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one[::-1], other, rtol=1e-5),
        backwards,
        together,
    )
    assert (attack(program, x, y, key=jax.random.key(5)).loss != together.loss).any()
    expectation(fgsm(epsilon=0.3), draws=4)(dp.program(traced, -f.arrays[0]), x, 1 - y, key=key)
    assert len(traces) == first


@pytest.mark.slow
def test_expectation_keeps_the_attacks_numbers():
    attack = expectation(fgsm(norm="l2", epsilon=0.3, targeted=True), draws=4)
    assert (attack.name, attack.norm, attack.epsilon, attack.targeted) == (
        "expectation of fgsm",
        "l2",
        0.3,
        True,
    )
    assert expectation(attack, draws=8).draws == 8


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: expectation("pgd"), TypeError, "attack must be an Attack, got str"),
        (lambda: expectation(fgsm(), draws=0), ValueError, "draws"),
        (lambda: expectation(fgsm(), draws=1.5), TypeError, "draws"),
        (lambda: transfer(fgsm, lambda x: x), TypeError, "attack must be an Attack, got function"),
        (lambda: transfer(fgsm(), 3), TypeError, "source must be callable"),
        (lambda: bpda(3), TypeError, "f must be callable"),
        (lambda: bpda(lambda x: x, through=3), TypeError, "through must be callable"),
        (lambda: universal(norm="l3"), ValueError, "norm"),
        (lambda: universal(epsilon=-1.0), ValueError, "epsilon"),
        (lambda: universal(epsilon=np.ones(3)), TypeError, "epsilon"),
        (lambda: universal(steps=0), ValueError, "steps"),
        (lambda: universal(batch_size=0), ValueError, "batch_size"),
        (lambda: universal(ceiling=np.nan), ValueError, "ceiling"),
        (lambda: universal(loss="hinge"), ValueError, "loss"),
        (lambda: universal(bounds=(1, 0)), ValueError, "bounds"),
    ],
)
def test_bad_numbers_are_refused_at_once(make, error, says):
    with pytest.raises(error, match=says):
        make()


# --- straight through --------------------------------------------------------------------------------------------------------------------

STEPS = {
    "round": jnp.round,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "sign": lambda x: jnp.sign(x - 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_step_is_passed_as_if_it_were_not_there(step):
    x = jnp.array([0.3, 0.55, 0.8])
    f = lambda x: 3 * step(4 * x**2) + x
    passed = bpda(f)
    np.testing.assert_array_equal(passed(x), f(x))
    np.testing.assert_allclose(jax.grad(lambda x: passed(x).sum())(x), 24 * x + 1, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda x: f(x).sum())(x), 1)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(passed)))(x), 24 * x + 1, rtol=1e-6)


@pytest.mark.slow
def test_a_stand_in_gives_the_gradient_of_what_cannot_be_passed():
    x = jnp.array([0.3, 0.55, 0.8])
    f = lambda x: (x * 4).astype(jnp.int8).astype(x.dtype)
    passed = bpda(f, through=lambda x: 4 * x)
    np.testing.assert_array_equal(passed(x), f(x))
    np.testing.assert_array_equal(jax.grad(lambda x: passed(x).sum())(x), 4)


def test_what_cannot_be_passed_is_refused():
    with pytest.raises(ValueError, match="f must have a round, floor, ceil, sign, got none"):
        bpda(jnp.sin)(0.5)
    ruled = jax.custom_jvp(lambda x: jnp.round(x))
    ruled.defjvp(lambda primals, tangents: (jnp.round(primals[0]), 0 * tangents[0]))
    with pytest.raises(
        ValueError, match=r"f must not have its round inside .*custom.*; give `through`"
    ):
        bpda(lambda x: ruled(x))(0.5)
    with pytest.raises(ValueError, match="through must return what f does"):
        bpda(jnp.round, through=lambda x: jnp.stack([x, x]))(0.5)


@pytest.mark.slow
def test_a_quantising_program_is_attacked_as_the_one_without_steps(key):
    """16 levels: its gradient is zero, and the attack that does not know finds what a random start does."""
    f, x, y = case(3)
    quantising = dp.program(lambda weights, x: linear(weights, jnp.round(15 * x) / 15), f.arrays[0])
    y = np.asarray(quantising(x).argmax(1))
    attack = pgd(epsilon=0.2, random_start=False)
    blind, seeing = attack(quantising, x, y, key=key), attack(bpda(quantising), x, y, key=key)
    assert not blind.success.any()
    # Four levels of 15 lie in the ball: no number is more than half a level short of 0.2.
    slope = np.abs(np.diff(np.asarray(f.arrays[0]))[:, 0]).sum()
    within = np.abs(np.diff(np.asarray(quantising(x)))[:, 0]) < (0.2 - 1 / 15) * slope
    assert within.sum() >= 6
    assert seeing.success[within].all()
    np.testing.assert_array_equal(seeing.success, quantising(seeing.adversarial).argmax(1) != y)


# --- universal ---------------------------------------------------------------------------------------------------------------------------


# Bounds whose ends are not round numbers in binary: there high - x + x can miss high.
BOUNDS = (-2.1179, 2.64)
LOW, HIGH = np.float32(BOUNDS)


def one_side(seed, dtype=np.float32):
    """A linear program, 16 examples that it reads as 0, and the slope of the margin of 1."""
    f, x, y = case(seed, batch=16, dtype=dtype)
    return (
        f,
        np.where(y[:, None] == 1, 1 - x, x),
        np.zeros(16, int),
        np.diff(np.asarray(f.arrays[0]))[:, 0],
    )


def for_all(**numbers):
    return universal(**{"steps": 50, "batch_size": 8, "bounds": BOUNDS, **numbers})


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm",
    [
        "linf",
        pytest.param("l2", marks=pytest.mark.slow),
        pytest.param("l1", marks=pytest.mark.slow),
    ],
)
def test_one_perturbation_fells_all_of_one_side_of_a_linear_program(key, norm):
    """Beyond the largest distance, and none within the smallest; as long as its radius."""
    f, x, y, _ = one_side(4)
    distance = distances(norm, f, x)
    for epsilon, expected in ((1.02 * distance.max(), True), (0.99 * distance.min(), False)):
        found = for_all(norm=norm, epsilon=float(epsilon))(f, x, y, key=key)
        np.testing.assert_array_equal(found.found.success, expected)
        length = np.linalg.norm(np.asarray(found.perturbation, np.float64), ORDER[norm])
        np.testing.assert_allclose(length, epsilon, rtol=1e-6)
        np.testing.assert_allclose(found.found.adversarial, x + found.perturbation, rtol=2e-7)


@pytest.mark.slow
def test_the_box_is_kept_and_what_is_read_wrongly_left_alone(key):
    f, x, _, _ = one_side(5)
    x = (
        np.random.default_rng(0)
        .uniform(1.2 * LOW, 1.2 * HIGH, x.shape)
        .astype(np.float32)
        .clip(LOW, HIGH)
    )
    y = np.where(np.arange(16) < 5, 1, 0) ^ np.asarray(f(x).argmax(1))
    for epsilon in (4.7, 1e-3, 0.0):
        universal = for_all(epsilon=epsilon)(f, x, y, key=key)
        found = universal.found
        assert ((found.adversarial >= LOW) & (found.adversarial <= HIGH)).all()
        assert (found.distance <= epsilon * (1 + 1e-6)).all()
        assert (np.abs(universal.perturbation) <= epsilon * (1 + 1e-6)).all()
        np.testing.assert_array_equal(found.initially_misclassified, np.arange(16) < 5)
        np.testing.assert_array_equal(found.adversarial[:5], x[:5])
        np.testing.assert_array_equal(found.success, f(found.adversarial).argmax(1) != y)
        np.testing.assert_array_equal((found.step, found.gradients), [[50] * 16, [25] * 16])
    np.testing.assert_array_equal(found.adversarial, x)


@pytest.mark.slow
def test_an_example_whose_logits_or_gradient_are_no_numbers_has_no_say(key):
    @jax.custom_jvp
    def broken(x):
        return x

    broken.defjvp(
        lambda primals, tangents: (
            primals[0],
            jnp.where(primals[0][:, :1] > 1, jnp.nan, 1) * tangents[0],
        )
    )
    f, x, y, slope = one_side(7)
    x[:3, 0], x[3:6, 0] = 2.0, -1.0
    torn = lambda weights, x: jnp.where(x[:, :1] < -0.5, jnp.nan, 1) * linear(weights, broken(x))
    found = for_all(epsilon=0.05)(dp.program(torn, f.arrays[0]), x, y, key=key)
    assert not found.found.success[3:6].any()
    np.testing.assert_allclose(found.perturbation, 0.05 * np.sign(slope), rtol=1e-5)
    np.testing.assert_array_equal(found.found.step, 50)


@pytest.mark.slow
def test_universal_takes_other_numbers_without_a_new_program(key):
    traces, counts = [], []

    def traced(weights, x):
        traces.append(1)
        return linear(weights, x)

    for seed, steps in ((0, 5), (1, 30)):
        f, x, y, _ = one_side(seed)
        attack = for_all(epsilon=0.1 + seed, ceiling=5.0 + seed, steps=steps)
        attack(dp.program(traced, f.arrays[0]), x, y, key=jax.random.key(seed))
        counts.append(len(traces))
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_universal_in_float64(key):
    with jax.enable_x64(True):
        f, x, y, _ = one_side(8, dtype=np.float64)
        found = for_all(norm="l2", epsilon=0.1)(f, x, y, key=key)
        assert found.perturbation.dtype == found.found.adversarial.dtype == np.float64
        np.testing.assert_allclose(np.linalg.norm(found.perturbation), 0.1, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_minibatches_show_every_example_once_before_any_again(key):
    batches = np.asarray(_minibatches(key, 10, 3, 7))
    assert batches.shape == (7, 3)
    for epoch in (batches[:3], batches[3:6]):
        assert len(set(epoch.ravel().tolist())) == 9
    assert (batches[:3] != batches[3:6]).any()


# --- transfer ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_one_gives_the_gradient_and_the_other_judges(key):
    f, x, y = case(9)

    @jax.custom_vjp
    def sealed(logits):
        return logits

    sealed.defvjp(
        lambda logits: pytest.fail("a gradient was asked for"), lambda _, gradient: (gradient,)
    )
    judge = dp.program(lambda weights, x: sealed(linear(weights, x)), f.arrays[0])
    epsilon = np.float32(np.where(np.arange(BATCH) < 5, 1.05, 0.95) * distances("linf", f, x))
    attack = transfer(fgsm(epsilon=epsilon, bounds=(-9, 9)), source=f)
    found = attack(judge, x, y, key=key)
    np.testing.assert_array_equal(found.success, np.arange(BATCH) < 5)
    assert attack.name == "transfer of fgsm"
    # Of a source with other weights the direction is another: the same length no longer does.
    weak = transfer(fgsm(epsilon=epsilon, bounds=(-9, 9)), source=case(10)[0])(judge, x, y, key=key)
    assert weak.success.sum() < 5
    np.testing.assert_array_equal(weak.success, judge(weak.adversarial).argmax(1) != y)


@pytest.mark.slow
def test_examples_that_either_reads_wrongly_are_left_alone(key):
    f, x, y = case(11)
    other = dp.program(linear, -f.arrays[0])
    attack = transfer(fgsm(epsilon=np.full(BATCH, 0.3), bounds=(-9, 9)), source=other)
    found = attack(f, x, y, key=key)
    np.testing.assert_array_equal(found.adversarial, x)
    assert not found.success.any()
    assert not found.initially_misclassified.any()
    found = attack(f, x, 1 - y, key=key)
    np.testing.assert_array_equal(found.adversarial, x)
    np.testing.assert_array_equal(found.perturbation, 0)
    assert found.initially_misclassified.all()
    assert found.success.all()


def test_a_source_of_other_examples_is_refused(key):
    f, x, y = case(12)
    with pytest.raises(ValueError, match="f must return float logits"):
        transfer(fgsm(), source=lambda x: x[:, 0])(f, x, y, key=key)


@pytest.mark.slow
def test_an_attack_is_a_value():
    attack = fgsm(epsilon=0.2)
    assert dataclasses.replace(attack, name="other").run is attack.run
    assert isinstance(expectation(attack), Attack)


@pytest.mark.slow
def test_a_nan_is_never_a_success_of_an_expectation():
    x, y = jnp.array([[0.9, 0.1], [0.6, 0.5]]), jnp.array([0, 0])
    broken = lambda x, key: jnp.where(x[:, :1] > 0.7, jnp.nan, 1.0) * x
    found = expectation(fgsm(epsilon=0.1), 2)(broken, x, y, key=jax.random.key(0))
    assert found.initially_misclassified.tolist() == [False, False]
    assert found.success.tolist() == [False, True]


@pytest.mark.slow
def test_the_stages_of_a_cascade_are_those_that_the_judge_upholds():
    x, y = jax.random.uniform(jax.random.key(1), (16, 2)), jnp.zeros(16, int)
    drawn = lambda x, key: x + 0.3 * jax.random.normal(key, x.shape)
    found = expectation(
        dp.adversarial.cascade([fgsm(epsilon=0.1), fgsm(epsilon=0.1, loss="margin")]), 2
    )(drawn, x, y, key=jax.random.key(0))
    np.testing.assert_array_equal(found.stage >= 0, found.success & ~found.initially_misclassified)


@pytest.mark.slow
def test_an_expectation_is_neither_transferred_nor_cascaded():
    with pytest.raises(ValueError, match="transfer the attack inside it"):
        transfer(expectation(fgsm(), 2), lambda x: x)
    with pytest.raises(ValueError, match="put expectation around the cascade"):
        dp.adversarial.cascade([expectation(fgsm(), 2)])
