"""Every flag is raised by a model with that defect; none is raised by undefended models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp
from diffprog.adversarial.evaluation._gradient_masking import Measurements, masking_flags

adv = dp.adversarial
RNG = np.random.default_rng(0)
WEIGHTS = [jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((12, 16), (16, 3))]
X = jnp.asarray(RNG.uniform(size=(40, 12)), jnp.float32)


def linear(weights, x):
    return 2 * (x - 0.5) @ weights[0][:, :3]


def net(weights, x):
    return jnp.tanh((x - 0.5) @ weights[0]) @ weights[1]


def flag_names(f, attacks=None, x=X, **keywords):
    y = f(x).argmax(1)
    attacks = attacks or [adv.pgd(epsilon=0.05, steps=10)]
    return [
        flag.name
        for flag in adv.evaluate(f, x, y, attacks, key=jax.random.key(0), **keywords).flags
    ]


COUNT = 40
CLEAN = Measurements(
    logits=jnp.tile(jnp.array([3.0, 1.0, -1.0]), (COUNT, 1)),
    repeated_logits=jnp.tile(jnp.array([3.0, 1.0, -1.0]), (COUNT, 1)),
    gradient=jnp.ones((COUNT, 4)),
    nearby=(jnp.ones((COUNT, 3)), jnp.ones((COUNT, 4))),
    saturated=jnp.zeros(COUNT, bool),
    one_step_loss=jnp.full(COUNT, 1.0),
    loss=jnp.full(COUNT, 2.0),
    wide_loss=jnp.full(COUNT, 3.0),
    success=jnp.ones((4, COUNT), bool),
    widened=True,
)


def first(count, value, other):
    """Select `value` for the first `count` examples, else `other`."""
    mask = jnp.arange(COUNT) < count
    return jnp.where(mask.reshape(-1, *[1] * (jnp.ndim(other) - 1)), value, other)


@pytest.mark.parametrize(
    ("threshold", "change", "name"),
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
        (4, lambda k: {"loss": first(k, 0.8, CLEAN.loss)}, "loss falls with steps"),
        (
            10,
            lambda k: {"wide_loss": first(k, CLEAN.loss, CLEAN.wide_loss)},
            "loss does not rise with ε",
        ),
        (6, lambda k: {"success": CLEAN.success.at[1, :k].set(False)}, "restarts disagree"),
    ],
)
def test_a_flag_is_raised_above_its_threshold(threshold, change, name):
    raised = lambda k: [
        flag.name for flag in masking_flags(CLEAN._replace(**change(k)), (), np.ones(COUNT, bool))
    ]
    assert raised(threshold) == []
    assert raised(threshold + 1) == [name]


@pytest.mark.slow
def test_random_program_is_flagged_only_above_rounding():
    raised = lambda by: [
        flag.name
        for flag in masking_flags(
            CLEAN._replace(repeated_logits=CLEAN.logits + by), (), np.ones(COUNT, bool)
        )
    ]
    assert (raised(1e-6), raised(1e-2)) == ([], ["random program"])


@pytest.mark.slow
@pytest.mark.parametrize("apply", [pytest.param(linear, marks=pytest.mark.slow), net])
def test_undefended_models_raise_no_flag(apply):
    attacks = [
        adv.pgd(epsilon=0.05, steps=10),
        adv.square(epsilon=0.05, queries=50),
        adv.fmn(steps=20),
    ]
    assert flag_names(dp.program(apply, WEIGHTS), attacks) == []


@pytest.mark.slow
def test_probabilities_for_logits_are_flagged():
    assert flag_names(lambda x: jax.nn.softmax(net(WEIGHTS, x))) == ["probabilities for logits"]
    assert flag_names(lambda x: jax.nn.log_softmax(net(WEIGHTS, x))) == []


@pytest.mark.slow
def test_saturated_softmax_is_flagged():
    assert flag_names(lambda x: 1e3 * net(WEIGHTS, x)) == ["saturated softmax"]


@pytest.mark.slow
def test_rounded_inputs_give_zero_gradients():
    """The input is rounded so coarsely that few points of the ball are rounded elsewhere."""
    centres = jnp.round(2 * X) / 2
    raised = flag_names(lambda x: net(WEIGHTS, jnp.round(2 * x) / 2), x=centres)
    assert raised == ["zero gradients", "loss does not rise with ε"]


@pytest.mark.slow
def test_nan_gradients_are_flagged():
    """The derivative of a root at 0 is infinite while its value is finite."""
    root = lambda x: net(WEIGHTS, x) + jnp.sqrt(jnp.maximum(x[:, :3] - 2, 0))
    assert "NaN or infinite gradients" in flag_names(root)


@pytest.mark.slow
def test_nan_logits_near_the_examples_are_flagged():
    """Nearly any perturbation makes the argument of a logarithm negative."""
    corner = jnp.where(X < 0.5, 0.3, 0.7)
    fragile = lambda x: net(WEIGHTS, x) + jnp.log(1e-3 - jnp.abs(x - corner).max(1, keepdims=True))
    assert "NaN or infinite gradients" in flag_names(fragile, x=corner)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["python", "callback"])
def test_a_random_program_is_flagged(source):
    generator = np.random.default_rng(0)

    def noise(x):
        if source == "python":
            return jax.random.normal(jax.random.key(generator.integers(2**31)), x.shape)
        draw = lambda x: generator.normal(size=x.shape).astype(x.dtype)
        return jax.pure_callback(
            draw, jax.ShapeDtypeStruct(x.shape, x.dtype), jax.lax.stop_gradient(x)
        )

    assert "random program" in flag_names(lambda x: net(WEIGHTS, x + 0.1 * noise(x)))


@pytest.mark.slow
def test_a_program_of_a_key_is_not_flagged_as_random():
    noisy = lambda x, key: net(WEIGHTS, x + 0.02 * jax.random.normal(key, x.shape))
    attack = adv.expectation(adv.pgd(epsilon=0.1, steps=5), draws=4)
    report = adv.evaluate(noisy, X, net(WEIGHTS, X).argmax(1), [attack], key=jax.random.key(0))
    assert "random program" not in [flag.name for flag in report.flags]
    assert report.robust(0.1).value < report.clean.value - 0.2


@pytest.mark.slow
def test_a_reversed_gradient_is_flagged():
    """With the sign of the gradient flipped, every step of PGD decreases the loss."""
    reversed_gradient = lambda x: jax.lax.stop_gradient(2 * x) - x
    attacks = {
        "mine": adv.pgd(epsilon=0.1, steps=10),
        "yours": adv.square(epsilon=0.1, queries=100),
    }
    assert {"loss falls with steps", "black box beats white box"} <= set(
        flag_names(lambda x: net(WEIGHTS, reversed_gradient(x)), attacks)
    )
    stages = [adv.cascade(list(attacks.values()))]
    assert "black box beats white box" in flag_names(
        lambda x: net(WEIGHTS, reversed_gradient(x)), stages
    )


@pytest.mark.slow
def test_disagreeing_restarts_are_flagged():
    """On a loss with many local maxima the result of PGD depends on its random start."""
    waves, phases = 8 * RNG.normal(size=(12, 60)), RNG.uniform(0, 6, 60)

    def hilly(x):
        height = jnp.cos(x @ waves.astype(np.float32) + phases.astype(np.float32)).sum(1) / np.sqrt(
            30
        )
        return jnp.stack([jnp.full(len(x), 3.5), height], axis=1)

    assert "restarts disagree" in flag_names(hilly, [adv.pgd(epsilon=0.1, steps=3)])


@pytest.mark.slow
def test_a_flag_prints_measurement_meaning_and_remedy():
    (flag,) = adv.evaluate(
        lambda x: 1e3 * net(WEIGHTS, x),
        X,
        net(WEIGHTS, X).argmax(1),
        [adv.fgsm(epsilon=0.05)],
        key=jax.random.key(0),
    ).flags
    assert flag.measured == "The largest probability rounds to 1 at 40 of 40 examples."
    assert "margin" in flag.remedy
    assert str(flag).splitlines() == [
        "gradient masking suspected: saturated softmax",
        f"    {flag.measured}",
        f"    {flag.meaning}",
        f"    {flag.remedy}",
    ]


@pytest.mark.slow
def test_black_box_flag_depends_on_uses_gradients_and_not_on_names():
    """Names are swapped; a cascade of gradient-based attacks is transferred from another model."""
    masked = lambda x: jax.lax.stop_gradient(net(WEIGHTS, x))
    pgd, square = adv.pgd(epsilon=0.1, steps=2), adv.square(epsilon=0.1, queries=30)
    attacks = {
        "white box": dataclasses.replace(pgd, name="square"),
        "black box": dataclasses.replace(square, name="pgd"),
        "transferred": adv.transfer(adv.cascade([pgd]), dp.program(net, WEIGHTS)),
    }
    y = net(WEIGHTS, X).argmax(1)
    report = adv.evaluate(masked, X, y, attacks, key=jax.random.key(0), flags=False)
    flags = masking_flags(None, report.outcomes, report.correct)
    assert [flag.name for flag in flags] == 2 * ["black box beats white box"]
    assert [flag.measured.split(" succeeds")[0] for flag in flags] == ["black box", "transferred"]
