"""Flags: each is raised by a program that deserves it, and none by one that does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp
from diffprog.adversarial.evaluation._gradient_masking import Seen, signs

adv = dp.adversarial
RNG = np.random.default_rng(0)
WEIGHTS = [jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((12, 16), (16, 3))]
X = jnp.asarray(RNG.uniform(size=(40, 12)), jnp.float32)


def linear(weights, x):
    return 2 * (x - 0.5) @ weights[0][:, :3]


def net(weights, x):
    return jnp.tanh((x - 0.5) @ weights[0]) @ weights[1]


def names(f, attacks=None, x=X, **keywords):
    y = f(x).argmax(1)
    attacks = attacks or [adv.pgd(epsilon=0.05, steps=10)]
    return [
        flag.name
        for flag in adv.evaluate(f, x, y, attacks, key=jax.random.key(0), **keywords).flags
    ]


COUNT = 40
CLEAN = Seen(
    logits=jnp.tile(jnp.array([3.0, 1.0, -1.0]), (COUNT, 1)),
    again=jnp.tile(jnp.array([3.0, 1.0, -1.0]), (COUNT, 1)),
    gradient=jnp.ones((COUNT, 4)),
    nearby=(jnp.ones((COUNT, 3)), jnp.ones((COUNT, 4))),
    saturated=jnp.zeros(COUNT, bool),
    short=jnp.full(COUNT, 1.0),
    long=jnp.full(COUNT, 2.0),
    wide=jnp.full(COUNT, 3.0),
    turned=jnp.ones((4, COUNT), bool),
    widened=True,
)


def first(count, value, other):
    """The value for that many examples, the other for the rest."""
    which = jnp.arange(COUNT) < count
    return jnp.where(which.reshape(-1, *[1] * (jnp.ndim(other) - 1)), value, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("most", "change", "name"),
    [
        (0, lambda k: {"gradient": first(k, jnp.inf, CLEAN.gradient)}, "NaN or infinite gradients"),
        (
            0,
            lambda k: {"nearby": (first(k, jnp.nan, CLEAN.nearby[0]), CLEAN.nearby[1])},
            "NaN or infinite gradients",
        ),
        (
            2,
            lambda k: {
                "gradient": first(k, 0, CLEAN.gradient),
                "nearby": (CLEAN.logits, 0 * CLEAN.gradient),
            },
            "zero gradients",
        ),
        (10, lambda k: {"saturated": first(k, True, CLEAN.saturated)}, "saturated softmax"),
        (4, lambda k: {"long": first(k, 0.8, CLEAN.long)}, "loss falls with steps"),
        (10, lambda k: {"wide": first(k, CLEAN.long, CLEAN.wide)}, "loss does not rise with ε"),
        (6, lambda k: {"turned": CLEAN.turned.at[1, :k].set(False)}, "restarts disagree"),
    ],
)
def test_a_flag_is_raised_by_one_example_more_than_it_allows(most, change, name):
    raised = lambda k: [
        flag.name for flag in signs(CLEAN._replace(**change(k)), (), np.ones(COUNT, bool))
    ]
    assert raised(most) == []
    assert raised(most + 1) == [name]


@pytest.mark.slow
def test_two_calls_differ_by_more_than_rounding():
    raised = lambda by: [
        flag.name
        for flag in signs(CLEAN._replace(again=CLEAN.logits + by), (), np.ones(COUNT, bool))
    ]
    assert (raised(1e-6), raised(1e-2)) == ([], ["random program"])


@pytest.mark.slow
@pytest.mark.parametrize("apply", [pytest.param(linear, marks=pytest.mark.slow), net])
def test_a_program_without_a_defence_raises_none(apply):
    attacks = [
        adv.pgd(epsilon=0.05, steps=10),
        adv.square(epsilon=0.05, queries=50),
        adv.fmn(steps=20),
    ]
    assert names(dp.program(apply, WEIGHTS), attacks) == []


@pytest.mark.slow
def test_probabilities_for_logits():
    assert names(lambda x: jax.nn.softmax(net(WEIGHTS, x))) == ["probabilities for logits"]
    assert names(lambda x: jax.nn.log_softmax(net(WEIGHTS, x))) == []


@pytest.mark.slow
def test_saturated_softmax():
    assert names(lambda x: 1e3 * net(WEIGHTS, x)) == ["saturated softmax"]


@pytest.mark.slow
def test_zero_gradients_and_a_loss_that_does_not_rise():
    """An input rounded so coarsely that a start in the ball seldom crosses a step."""
    centres = jnp.round(2 * X) / 2
    found = names(lambda x: net(WEIGHTS, jnp.round(2 * x) / 2), x=centres)
    assert found == ["zero gradients", "loss does not rise with ε"]


@pytest.mark.slow
def test_nan_gradients():
    """A root at 0, under which the value is fine."""
    root = lambda x: net(WEIGHTS, x) + jnp.sqrt(jnp.maximum(x[:, :3] - 2, 0))
    assert "NaN or infinite gradients" in names(root)


@pytest.mark.slow
def test_nan_logits_near_the_examples():
    """A logarithm of what nearly any perturbation makes negative."""
    corner = jnp.where(X < 0.5, 0.3, 0.7)
    fragile = lambda x: net(WEIGHTS, x) + jnp.log(1e-3 - jnp.abs(x - corner).max(1, keepdims=True))
    assert "NaN or infinite gradients" in names(fragile, x=corner)


@pytest.mark.slow
@pytest.mark.parametrize("inside", ["python", "callback"])
def test_a_random_program(inside):
    source = np.random.default_rng(0)

    def noise(x):
        if inside == "python":
            return jax.random.normal(jax.random.key(source.integers(2**31)), x.shape)
        draw = lambda x: source.normal(size=x.shape).astype(x.dtype)
        return jax.pure_callback(
            draw, jax.ShapeDtypeStruct(x.shape, x.dtype), jax.lax.stop_gradient(x)
        )

    assert "random program" in names(lambda x: net(WEIGHTS, x + 0.1 * noise(x)))


@pytest.mark.slow
def test_a_program_that_takes_its_key_is_not_blamed_for_drawing():
    noisy = lambda x, key: net(WEIGHTS, x + 0.02 * jax.random.normal(key, x.shape))
    attack = adv.expectation(adv.pgd(epsilon=0.1, steps=5), draws=4)
    report = adv.evaluate(noisy, X, net(WEIGHTS, X).argmax(1), [attack], key=jax.random.key(0))
    assert "random program" not in [flag.name for flag in report.flags]
    assert report.robust(0.1).value < report.clean.value - 0.2


@pytest.mark.slow
def test_a_loss_that_falls_with_steps_and_a_black_box_that_wins():
    """A gradient of the wrong sign, which leads the more astray the longer it is followed."""
    backwards = lambda x: jax.lax.stop_gradient(2 * x) - x
    attacks = {
        "mine": adv.pgd(epsilon=0.1, steps=10),
        "yours": adv.square(epsilon=0.1, queries=100),
    }
    assert {"loss falls with steps", "black box beats white box"} <= set(
        names(lambda x: net(WEIGHTS, backwards(x)), attacks)
    )
    stages = [adv.cascade(list(attacks.values()))]
    assert "black box beats white box" in names(lambda x: net(WEIGHTS, backwards(x)), stages)


@pytest.mark.slow
def test_restarts_that_disagree():
    """A landscape of many hills, some of them high enough: where an ascent ends hangs on where it starts."""
    waves, phases = 8 * RNG.normal(size=(12, 60)), RNG.uniform(0, 6, 60)

    def hilly(x):
        height = jnp.cos(x @ waves.astype(np.float32) + phases.astype(np.float32)).sum(1) / np.sqrt(
            30
        )
        return jnp.stack([jnp.full(len(x), 3.5), height], axis=1)

    assert "restarts disagree" in names(hilly, [adv.pgd(epsilon=0.1, steps=3)])


@pytest.mark.slow
def test_a_flag_says_what_was_measured_and_what_to_do():
    (flag,) = adv.evaluate(
        lambda x: 1e3 * net(WEIGHTS, x),
        X,
        net(WEIGHTS, X).argmax(1),
        [adv.fgsm(epsilon=0.05)],
        key=jax.random.key(0),
    ).flags
    assert flag.measured == "at 40 of 40 examples the largest probability rounds to 1."
    assert "margin" in flag.remedy
    assert str(flag).splitlines() == [
        f"saturated softmax: {flag.measured}",
        f"    {flag.meaning}",
        f"    {flag.remedy}",
    ]
