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
