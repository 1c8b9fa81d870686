"""Adversarial training: a linear model in closed form, Danskin's gradient, and a training run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffprog as dp

adv = dp.adversarial
EPSILON = 0.05
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def linear(params, x):
    return x @ params["weight"] + params["bias"]


def linear_case(seed=0, batch=16, size=6):
    """Draw a linear model of two classes, examples far from the box, and random labels."""
    rng = np.random.default_rng(seed)
    params = {
        "weight": jnp.asarray(rng.normal(size=(size, 2)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=2) / 5, jnp.float32),
    }
    x = jnp.asarray(rng.uniform(0.2, 0.8, (batch, size)), jnp.float32)
    return params, x, jnp.asarray(rng.integers(0, 2, batch))


def closed_form(norm):
    """Return the loss at the worst point of each ball: mean log(1 + exp(-(margin - ε ||w||_dual))).

    w is the difference of the two columns.
    """

    def cost(params, x, y):
        side = 2 * y - 1
        w = params["weight"][:, 1] - params["weight"][:, 0]
        b = params["bias"][1] - params["bias"][0]
        margin = side * (x @ w + b) - EPSILON * jnp.linalg.norm(w, DUAL[norm])
        return jnp.log1p(jnp.exp(-margin)).mean()

    return cost


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_loss_and_gradient_of_a_linear_model_are_the_closed_form(norm, key):
    """Including misclassified examples, which an attack alone would not perturb."""
    params, x, y = linear_case()
    predicted = linear(params, x).argmax(1)
    assert 0 < (predicted != y).sum() < len(y)
    cost = adv.adversarial_training(linear, adv.pgd(norm=norm, epsilon=EPSILON, steps=60))
    got, want = (
        jax.value_and_grad(cost)(params, x, y, key),
        jax.value_and_grad(closed_form(norm))(params, x, y),
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_a_radius_of_zero_is_standard_training(key):
    params, x, y = linear_case()
    cost = adv.adversarial_training(linear, adv.pgd(epsilon=0.0, steps=3))
    standard = lambda params: dp.losses.softmax_cross_entropy(linear(params, x), y).mean()
    got, want = jax.value_and_grad(cost)(params, x, y, key), jax.value_and_grad(standard)(params)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_gradient_is_that_at_fixed_perturbations(key):
    apply = lambda params, x: (
        jnp.tanh(linear(params, x)) ** 2 @ jnp.array([[1.0, -1.0], [-0.5, 2.0]])
    )
    params, x, _ = linear_case()
    y = apply(params, x).argmax(1)
    attack = adv.fgsm(epsilon=EPSILON)
    result = attack(dp.program(apply, params), x, y, key=key)
    fixed = lambda params: dp.losses.softmax_cross_entropy(
        apply(params, result.adversarial), y
    ).mean()
    got = jax.grad(adv.adversarial_training(apply, attack))(params, x, y, key)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(jax.grad(fixed)(params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_adversarial_training_gives_robust_accuracy(key):
    """Two clusters, 0.4 apart on one axis and 0.1 on thirty others.

    Standard training uses all axes, none of which but the first is robust in linf.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 256)
    x = (
        0.5
        + (labels[:, None] - 0.5) * np.r_[0.4, np.full(30, 0.1)]
        + rng.normal(size=(256, 31)) * 0.02
    )
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(labels)
    start = {"weight": jnp.zeros((31, 2)), "bias": jnp.zeros(2)}
    centred = lambda params, x: linear(params, x - 0.5)

    def robust_accuracy(epsilon):
        loss = adv.adversarial_training(centred, adv.pgd(epsilon=epsilon, steps=3))
        descent = dp.descent.descent(lambda params, key: loss(params, x, y, key), optax.sgd(2.0))
        params = dp.descent.run(descent, start, jax.random.split(key, 60)).variable
        attack = adv.pgd(epsilon=0.1, steps=3)
        return 1 - attack(dp.program(centred, params), x, y, key=key).success.mean()

    assert robust_accuracy(0.0) < 0.01
    assert robust_accuracy(0.1) > 0.99


@pytest.mark.slow
def test_new_data_keys_and_parameters_do_not_compile_again():
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return linear(params, x)

    step = jax.jit(jax.grad(adv.adversarial_training(counted, adv.pgd(epsilon=EPSILON, steps=5))))
    for seed in range(3):
        step(*linear_case(seed), jax.random.key(seed))
        first = len(traces) if seed == 0 else first
    assert len(traces) == first > 0


def test_any_loss_can_be_minimized(key):
    params, x, y = linear_case()
    squared = lambda logits, y: jnp.square(logits - jax.nn.one_hot(y, 2)).sum(1)
    cost = adv.adversarial_training(linear, adv.fgsm(epsilon=0.0), loss=squared)
    np.testing.assert_allclose(
        cost(params, x, y, key), squared(linear(params, x), y).mean(), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((1, adv.fgsm()), {}, TypeError, "apply must be callable, got int"),
        ((linear, "pgd"), {}, TypeError, "attack must be an Attack, got str"),
        ((linear, adv.fgsm(targeted=True)), {}, ValueError, "attack must not be targeted"),
        ((linear, adv.fgsm()), {"loss": 3}, TypeError, "loss must be callable"),
    ],
)
def test_bad_arguments_raise(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        adv.adversarial_training(*arguments, **keywords)


def test_the_loss_must_return_one_number_per_example(key):
    params, x, y = linear_case()
    with pytest.raises(ValueError, match="loss must have a leading axis"):
        adv.adversarial_training(linear, adv.fgsm(), loss=lambda logits, y: logits.mean())(
            params, x, y, key
        )


def test_bad_examples_raise_at_the_call():
    attack, x = adv.pgd(epsilon=0.1, steps=1), jnp.full((2, 3), 0.5)
    with pytest.raises(ValueError, match="f must return float logits"):
        adv.adversarial_training(lambda w, x: x.sum(1), attack)(
            jnp.ones(3), x, jnp.array([0, 1]), jax.random.key(0)
        )
    with pytest.raises(ValueError, match="leading axes must agree"):
        adv.adversarial_training(lambda w, x: x * w, attack)(
            jnp.ones(3), x, jnp.array([0, 1, 2]), jax.random.key(0)
        )


def test_an_example_on_the_decision_boundary_is_perturbed_whatever_its_label(key):
    """With equal logits the first class is predicted; both losses are log(1 + exp(2 ε))."""
    cost = adv.adversarial_training(lambda w, x: w * x, adv.fgsm(epsilon=EPSILON))
    for label in (0, 1):
        loss = cost(jnp.ones(()), jnp.array([[0.5, 0.5]]), jnp.array([label]), key)
        np.testing.assert_allclose(loss, np.log1p(np.exp(2 * EPSILON)), rtol=1e-6)
