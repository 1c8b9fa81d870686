"""Transfer: the source gives the gradients, the attacked program decides success."""

import jax
import numpy as np
import pytest

import diffprog as dp
from diffprog.adversarial import fgsm, transfer
from tests.adversarial.boxes import BATCH, distances, inner_case, linear

WIDE = (-9, 9)


@pytest.mark.slow
def test_success_is_decided_by_the_attacked_program(key):
    f, x, y = inner_case(9)
    share = np.where(np.arange(BATCH) < 5, 1.05, 0.95)
    epsilon = np.float32(share * distances("linf", f, x))
    attack = transfer(fgsm(epsilon=epsilon, bounds=WIDE), source=f)
    np.testing.assert_array_equal(attack(f, x, y, key=key).success, np.arange(BATCH) < 5)
    assert attack.name == "transfer of fgsm"
    # The direction of another source is not the best: the same length no longer suffices.
    weak = transfer(fgsm(epsilon=epsilon, bounds=WIDE), source=inner_case(10)[0])
    result = weak(f, x, y, key=key)
    assert result.success.sum() < 5
    np.testing.assert_array_equal(result.success, f(result.adversarial).argmax(1) != y)


def test_the_attacked_program_is_not_differentiated(key):
    @jax.custom_vjp
    def no_gradient(logits):
        return logits

    no_gradient.defvjp(lambda logits: pytest.fail("differentiated"), lambda _, g: (g,))
    f, x, y = inner_case(9)
    attacked = dp.program(lambda weights, x: no_gradient(linear(weights, x)), f.arrays[0])
    attack = transfer(fgsm(epsilon=0.3), source=f)
    assert not attack.uses_gradients
    assert attack(attacked, x, y, key=key).success.any()


@pytest.mark.slow
def test_what_either_program_misclassifies_is_not_perturbed(key):
    f, x, y = inner_case(11)
    source = dp.program(linear, -f.arrays[0])
    attack = transfer(fgsm(epsilon=np.full(BATCH, 0.3), bounds=WIDE), source=source)
    result = attack(f, x, y, key=key)
    np.testing.assert_array_equal(result.adversarial, x)
    assert not result.success.any()
    assert not result.initially_misclassified.any()
    result = attack(f, x, 1 - y, key=key)
    np.testing.assert_array_equal(result.adversarial, x)
    np.testing.assert_array_equal(result.perturbation, 0)
    assert result.initially_misclassified.all()
    assert result.success.all()


def test_the_source_must_take_the_same_examples(key):
    f, x, y = inner_case(12)
    with pytest.raises(ValueError, match="f must return float logits"):
        transfer(fgsm(), source=lambda x: x[:, 0])(f, x, y, key=key)


def test_bad_arguments_raise():
    with pytest.raises(TypeError, match="attack must be an Attack, got function"):
        transfer(fgsm, lambda x: x)
    with pytest.raises(TypeError, match="source must be callable"):
        transfer(fgsm(), 3)
