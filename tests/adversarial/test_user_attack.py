"""An attack made by a user, from public names only, works wherever a built-in attack does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import adversarial
from tests.adversarial.attacks import BOUNDS, linear_problem, random_search

BALL = {"epsilon": 0.3, "bounds": BOUNDS}


def test_a_user_attack_can_be_evaluated(key):
    f, x, y = linear_problem(0)
    attacks = [random_search(**BALL), adversarial.fgsm(**BALL)]
    report = adversarial.evaluate(f, x, y, attacks, key=key, flags=False)
    mine, fgsm = report.outcomes
    assert mine.name == "random_search"
    np.testing.assert_array_equal(mine.found.success, f(mine.found.adversarial).argmax(1) != y)
    # On a linear program FGSM is optimal: no other attack in the ball succeeds where it fails.
    assert mine.found.success.any()
    assert (mine.found.success <= fgsm.found.success).all()


def test_a_user_attack_can_be_a_stage_of_a_cascade(key):
    f, x, y = linear_problem(0)
    result = adversarial.cascade([random_search(**BALL), adversarial.fgsm(**BALL)])(
        f, x, y, key=key
    )
    assert tuple(result.stages) == ("random_search", "fgsm")
    np.testing.assert_array_equal(result.success, f(result.adversarial).argmax(1) != y)
    assert (result.stage == 0).any()


@pytest.mark.slow
def test_a_user_attack_can_attack_the_expectation_of_a_random_program(key):
    _, x, _ = linear_problem(0)
    noisy = lambda x, key: x[:, :3] + 0.01 * jax.random.normal(key, (len(x), 3))
    y = x[:, :3].argmax(1)
    attack = adversarial.expectation(random_search(**{**BALL, "epsilon": 4.0}), draws=2)
    result = attack(noisy, x, y, key=key)
    assert attack.name == "expectation of random_search"
    assert not attack.uses_gradients
    clear = np.diff(np.sort(result.adversarial[:, :3], 1)[:, 1:])[:, 0] > 0.1
    np.testing.assert_array_equal(
        result.success[clear], (result.adversarial[:, :3].argmax(1) != y)[clear]
    )
    assert result.success.any()


def test_a_user_attack_can_be_transferred(key):
    f, x, y = linear_problem(0)
    result = adversarial.transfer(random_search(**BALL), f)(f, x, y, key=key)
    direct = random_search(**BALL)(f, x, y, key=key)
    np.testing.assert_array_equal(result.adversarial, direct.adversarial)


def test_a_search_returns_flat_perturbations_of_any_shape_of_example(key):
    corner = lambda problem: adversarial.Search(
        problem.project(jnp.ones_like(problem.x)), *[jnp.zeros(len(problem.x), int)] * 4
    )
    attack = adversarial.make_attack("corner", corner, norm="linf", epsilon=0.25)
    x = {"image": jnp.full((2, 3, 3, 1), 0.5), "label": jnp.full((2, 2), 0.9)}
    f = lambda x: jnp.stack([1 - x["image"].mean((1, 2, 3)), x["image"].mean((1, 2, 3))], 1)
    result = attack(f, x, jnp.zeros(2, int), key=key)
    np.testing.assert_allclose(result.adversarial["image"], 0.75)
    np.testing.assert_allclose(result.adversarial["label"], 1.0)


@pytest.mark.parametrize(
    "r",
    [5.0, -5.0, 0.41, np.nan, np.inf],
    ids=["above the box", "below the box", "outside the ball", "nan", "infinite"],
)
def test_invalid_perturbations_of_a_search_are_no_success(r, key):
    def search(problem):
        return adversarial.Search(jnp.full_like(problem.x, r).at[:, 0].set(0.0), 3, 0, 0, 0)

    attack = adversarial.make_attack("invalid", search, norm="linf", epsilon=0.4)
    x = jnp.full((2, 3), 0.5)
    result = attack(lambda x: jnp.stack([x[:, 0], x[:, 1] - 0.1], 1), x, jnp.zeros(2, int), key=key)
    np.testing.assert_array_equal(result.adversarial, x)
    assert not result.success.any()
    assert result.step.shape == (2,)


@pytest.mark.parametrize(
    ("search", "error", "match"),
    [
        (5, TypeError, "search must be callable, got int"),
        (lambda problem: problem.x, TypeError, "search must return a Search, got"),
        (
            lambda problem: adversarial.Search(problem.x[:, :1], 0, 0, 0, 0),
            ValueError,
            r"search must return r of shape \(2, 3\), got \(2, 1\)",
        ),
        (
            lambda problem: adversarial.Search(0 * problem.x, jnp.zeros(7), 0, 0, 0),
            ValueError,
            r"search must return step of shape \(2,\), got \(7,\)",
        ),
    ],
)
def test_a_search_that_returns_something_else_is_refused(search, error, match, key):
    def attack(x):
        made = adversarial.make_attack("mine", search, norm="linf", epsilon=0.4)
        return made(lambda x: x, x, jnp.zeros(2, int), key=key)

    with pytest.raises(error, match=match):
        attack(jnp.full((2, 3), 0.5))
