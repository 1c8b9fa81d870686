"""DeepFool: the truth of linear classifiers in a box, and what its steps cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog.adversarial import deep_fool

slow = pytest.mark.slow
NORMS = ("linf", "l2", "l1")
every_norm = pytest.mark.parametrize(
    "norm", ["l2", *(pytest.param(norm, marks=slow) for norm in ("linf", "l1"))]
)
every_norm_slowly = pytest.mark.parametrize(
    "norm", [pytest.param(norm, marks=slow) for norm in NORMS]
)


@pytest.mark.slow
@every_norm
@pytest.mark.parametrize("inner", [False, True], ids=["the box bites", "the box is far"])
def test_a_linear_classifiers_distance_is_met_on_its_boundary(key, linear, norm, inner):
    f, x, y = linear.case(1, inner=inner)
    found = deep_fool(norm=norm)(f, x, y, key=key)
    linear.near(found, linear.truth(norm, f, x, y))
    linear.on_the_boundary(found, f, x, y)
    assert ((found.adversarial >= 0) & (found.adversarial <= 1)).all()


@pytest.mark.slow
@every_norm_slowly
@pytest.mark.parametrize(("classes", "targeted"), [(2, False), (2, True), (10, False)])
def test_any_number_of_classes(key, linear, norm, classes, targeted):
    f, x, y = linear.case(classes, classes)
    wish = (y + 1) % classes if targeted else y
    found = deep_fool(norm=norm, targeted=targeted)(f, x, wish, key=key)
    linear.near(found, linear.truth(norm, f, x, wish, targeted))
    linear.on_the_boundary(found, f, x, wish, targeted)


@pytest.mark.slow
@every_norm_slowly
@pytest.mark.parametrize("inner", [False, True], ids=["the box bites", "the box is far"])
@pytest.mark.parametrize("classes", [3, 10])
def test_a_target_beyond_several_boundaries_is_reached_by_the_shortest_way(
    key, linear, norm, classes, inner
):
    f, x, y = linear.case(classes, classes, inner=inner)
    target = (y + 1) % classes
    found = deep_fool(norm=norm, targeted=True)(f, x, target, key=key)
    linear.near(found, linear.truth(norm, f, x, target, targeted=True))


@pytest.mark.slow
@every_norm
def test_a_bent_boundary_takes_several_steps(key, linear, norm):
    f, x, y = linear.ball(1)
    once, often = (deep_fool(norm=norm, steps=steps)(f, x, y, key=key) for steps in (1, 50))
    assert often.success.all()
    assert (often.distance >= linear.depth(norm, x) - 1e-6).all()
    # Two rivals: two gradients in each step that is taken, and one more look to see that it is done.
    np.testing.assert_array_equal(often.gradients, 2 * often.step)
    assert (once.gradients == 2).all()


@pytest.mark.slow
@every_norm
def test_what_is_misread_already_is_left_alone(key, linear, norm):
    f, x, y = linear.case(2)
    wrong = y.at[:5].set((y[:5] + 1) % 3)
    found = deep_fool(norm=norm)(f, x, wrong, key=key)
    np.testing.assert_array_equal(found.initially_misclassified, np.arange(len(x)) < 5)
    np.testing.assert_array_equal(found.adversarial[:5], x[:5])
    assert found.success.all()
    assert (found.gradients[:5] == 0).all()


@pytest.mark.slow
@every_norm
def test_an_examples_result_does_not_depend_on_the_others_and_a_key_says_it_bit_for_bit(
    key, linear, norm
):
    f, x, y = linear.case(3)
    attack = deep_fool(norm=norm)
    found, again = (attack(f, x, y, key=key) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, found, again)
    backwards = attack(f, x[::-1], y[::-1], key=key)
    padded = attack(f, x.at[4:].set(0.5), y.at[4:].set(0), key=key)
    np.testing.assert_allclose(backwards.adversarial[::-1], found.adversarial, rtol=0, atol=1e-6)
    np.testing.assert_allclose(padded.adversarial[:4], found.adversarial[:4], rtol=0, atol=1e-6)


@pytest.mark.slow
@every_norm_slowly
def test_an_example_is_found_alone_as_in_a_batch(key, linear, norm):
    f, x, y = linear.case(3)
    attack = deep_fool(norm=norm)
    together = attack(f, x, y, key=key)
    alone = [attack(f, x[i : i + 1], y[i : i + 1], key=key).distance for i in range(len(x))]
    np.testing.assert_allclose(np.concatenate(alone), together.distance, rtol=1e-4)


@pytest.mark.slow
@every_norm
def test_other_numbers_are_no_other_program(linear, norm):
    counts = []
    for seed, numbers in enumerate([{}, {"steps": 7}, {"overshoot": 0.5}]):
        f, x, y = linear.case(seed)
        deep_fool(norm=norm, **numbers)(f, x, y, key=jax.random.key(seed))
        counts.append(len(linear.traces))
    assert len(set(counts)) == 1


@pytest.mark.slow
@every_norm
@pytest.mark.parametrize("fault", ["no_number_for_a_slope", "no_number_for_a_logit", "no_slope"])
def test_faults_of_the_program_poison_nothing(key, linear, norm, fault):
    f, x, y = linear.case(4, fault=getattr(linear, fault))
    y = jnp.nan_to_num(f(x)).argmax(1)
    found = deep_fool(norm=norm)(f, x, y, key=key)
    assert jnp.isfinite(found.adversarial).all()
    assert found.success.all()
    if fault == "no_number_for_a_slope":
        assert (found.step >= 0).all()
    np.testing.assert_array_equal(
        found.success,
        (f(found.adversarial).argmax(1) != y) & jnp.isfinite(f(found.adversarial)).all(1),
    )


@pytest.mark.slow
@slow
def test_fewer_candidates_take_fewer_gradients_and_may_miss_the_nearest(key, linear):
    f, x, y = linear.case(6, 10, inner=True, uneven=True)
    one, all_of_them = (deep_fool(candidates=count)(f, x, y, key=key) for count in (1, 20))
    np.testing.assert_array_equal(one.gradients * 9, all_of_them.gradients)
    assert (all_of_them.distance <= one.distance + 1e-5).all()
    assert (all_of_them.distance < 0.98 * one.distance).any()


@pytest.mark.slow
@every_norm_slowly
def test_float64_in_float64_out(key, linear, norm):
    with jax.enable_x64(True):
        f, x, y = linear.case(5, dtype=np.float64)
        found = deep_fool(norm=norm)(f, x, y, key=key)
        assert found.adversarial.dtype == found.distance.dtype == np.float64
        linear.near(found, linear.truth(norm, f, x, y), np.float64)


@pytest.mark.parametrize(
    ("numbers", "error", "says"),
    [
        ({"norm": "l0"}, ValueError, "norm"),
        ({"steps": 0}, ValueError, "steps"),
        ({"overshoot": -0.1}, ValueError, "overshoot"),
        ({"candidates": 0}, ValueError, "candidates"),
        ({"candidates": 2.0}, TypeError, "candidates"),
        ({"bounds": (0, 0)}, ValueError, "bounds"),
        ({"examples": jnp.full((2, 3), -0.5)}, ValueError, "examples"),
    ],
)
def test_bad_numbers_are_refused_at_once(numbers, error, says):
    with pytest.raises(error, match=says):
        deep_fool(**numbers)


@pytest.mark.slow
@pytest.mark.parametrize("logits", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("targeted", [False, True])
def test_sixteen_bits_go_in_and_come_out(targeted, logits):
    """Also where the logits have more: nothing there is can be solved, or halved to a part in 10^5, in so few."""
    x = jax.random.uniform(jax.random.key(0), (5, 12)).astype(jnp.bfloat16)
    weights = jax.random.normal(jax.random.key(1), (12, 4))
    f = lambda x: x.astype(logits) @ weights.astype(logits)
    y = (f(x).argmax(1) + targeted) % 4
    found = deep_fool(targeted=targeted)(f, x, y, key=jax.random.key(2))
    assert found.success.all()
    assert found.adversarial.dtype == jnp.bfloat16
