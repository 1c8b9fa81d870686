"""C&W, the elastic net and box L-BFGS: the truth of linear classifiers in a box, the search for c, and what holds for every one of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog.adversarial import box_lbfgs, carlini_wagner, elastic_net

slow = pytest.mark.slow
ATTACKS = {"box_lbfgs": box_lbfgs, "carlini_wagner": carlini_wagner, "elastic_net": elastic_net}
# The compile of one is left to the slow tests.
every_attack = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=slow if name == "carlini_wagner" else ()) for name in ATTACKS]
)
every_attack_slowly = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=slow) for name in ATTACKS]
)


@pytest.mark.slow
@every_attack
@pytest.mark.parametrize("inner", [False, True], ids=["the box bites", "the box is far"])
def test_a_linear_classifiers_distance_is_met_on_its_boundary(key, linear, name, inner):
    f, x, y = linear.case(1, inner=inner)
    attack = ATTACKS[name]()
    found = attack(f, x, y, key=key)
    linear.near(found, linear.truth(attack.norm, f, x, y))
    linear.on_the_boundary(found, f, x, y)
    assert ((found.adversarial >= 0) & (found.adversarial <= 1)).all()


@pytest.mark.slow
@every_attack
def test_the_surface_of_a_ball_is_met(key, linear, name):
    """Where no step along a flat boundary is the answer."""
    f, x, y = linear.ball(1)
    attack = ATTACKS[name]()
    found, truth = attack(f, x, y, key=key), linear.depth(attack.norm, x)
    if name != "elastic_net":
        linear.near(found, truth)
    else:  # in l1 each coordinate has a nearest point of its own, and a gradient on several of them does not end in one
        assert found.success.all()
        assert (found.distance >= truth).all()
        assert np.median(found.distance / truth) <= 1.005


@pytest.mark.slow
@every_attack_slowly
@pytest.mark.parametrize(
    ("classes", "targeted"), [(2, False), (2, True), (3, True), (10, False), (10, True)]
)
def test_any_number_of_classes_and_targets(key, linear, name, classes, targeted):
    for inner in (False, True):
        f, x, y = linear.case(classes, classes, inner=inner)
        wish = (y + 1) % classes if targeted else y
        attack = ATTACKS[name](targeted=targeted)
        found = attack(f, x, wish, key=key)
        linear.near(found, linear.truth(attack.norm, f, x, wish, targeted))
        linear.on_the_boundary(found, f, x, wish, targeted)


@pytest.mark.slow
@every_attack
def test_what_is_misread_already_is_left_alone(key, linear, name):
    f, x, y = linear.case(2)
    wrong = y.at[:5].set((y[:5] + 1) % 3)
    found = ATTACKS[name]()(f, x, wrong, key=key)
    np.testing.assert_array_equal(found.initially_misclassified, np.arange(len(x)) < 5)
    np.testing.assert_array_equal(found.adversarial[:5], x[:5])
    assert found.success.all()
    assert (found.distance[:5] == 0).all()
    assert (found.distance[5:] > 0).all()


@pytest.mark.slow
@every_attack
def test_an_examples_result_does_not_depend_on_the_others_and_a_key_says_it_bit_for_bit(
    key, linear, name
):
    f, x, y = linear.case(3)
    attack = ATTACKS[name]()
    found, again = (attack(f, x, y, key=key) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, found, again)
    backwards = attack(f, x[::-1], y[::-1], key=key)
    padded = attack(f, x.at[4:].set(0.5), y.at[4:].set(0), key=key)
    np.testing.assert_allclose(backwards.adversarial[::-1], found.adversarial, rtol=0, atol=1e-6)
    np.testing.assert_allclose(padded.adversarial[:4], found.adversarial[:4], rtol=0, atol=1e-6)


@pytest.mark.slow
@every_attack_slowly
def test_an_example_is_found_alone_as_in_a_batch(key, linear, name):
    """To a part in 10^4: matrices of other sizes are multiplied in another order, and hundreds of steps carry the rounding on."""
    f, x, y = linear.case(3)
    attack = ATTACKS[name]()
    together = attack(f, x, y, key=key)
    alone = [attack(f, x[i : i + 1], y[i : i + 1], key=key) for i in range(len(x))]
    np.testing.assert_allclose(
        np.concatenate([found.distance for found in alone]), together.distance, rtol=1e-4
    )


@pytest.mark.slow
@every_attack
def test_other_numbers_are_no_other_program(linear, name):
    numbers = {
        "box_lbfgs": {},
        "carlini_wagner": {"rate": 0.1},
        "elastic_net": {"rate": 0.1, "beta": 1.0},
    }[name]
    counts = []
    for seed, other in enumerate([{}, {"steps": 7}, {"searches": 3}, numbers]):
        f, x, y = linear.case(seed)
        ATTACKS[name](**other)(f, x, y, key=jax.random.key(seed))
        counts.append(len(linear.traces))
    assert len(set(counts)) == 1


@pytest.mark.slow
@every_attack
@pytest.mark.parametrize("fault", ["no_number_for_a_slope", "no_number_for_a_logit", "no_slope"])
def test_faults_of_the_program_poison_nothing(key, linear, name, fault):
    """Where f has no slope the search finds nothing, and a point drawn from the box is brought to the boundary."""
    f, x, y = linear.case(4, fault=getattr(linear, fault))
    y = jnp.nan_to_num(f(x)).argmax(1)
    found = ATTACKS[name]()(f, x, y, key=key)
    assert jnp.isfinite(found.adversarial).all()
    assert found.success.all()
    if fault == "no_number_for_a_slope":
        assert (found.step >= 0).all()
    np.testing.assert_array_equal(
        found.success,
        (f(found.adversarial).argmax(1) != y) & jnp.isfinite(f(found.adversarial)).all(1),
    )
    if fault == "no_slope":
        assert (found.step == -1).all()
        linear.on_the_boundary(found, f, x, y)


@pytest.mark.slow
@every_attack_slowly
def test_float64_in_float64_out(key, linear, name):
    with jax.enable_x64(True):
        f, x, y = linear.case(5, dtype=np.float64)
        attack = ATTACKS[name]()
        found = attack(f, x, y, key=key)
        assert found.adversarial.dtype == found.distance.dtype == np.float64
        linear.near(found, linear.truth(attack.norm, f, x, y), np.float64)


@pytest.mark.slow
@every_attack
def test_more_values_of_c_are_no_worse_and_are_counted(key, linear, name):
    f, x, y = linear.case(7)
    few, many = (ATTACKS[name](searches=searches)(f, x, y, key=key) for searches in (1, 6))
    # Of two the shorter is kept, and after that each is brought back to the boundary along its own segment.
    assert (many.distance <= few.distance * (1 + 1e-2)).all()
    assert (many.restart < 6).all()
    each = (many.gradients - few.gradients) / 5
    if name == "box_lbfgs":
        assert (each >= 2).all()
    else:
        np.testing.assert_array_equal(each, 100 if name == "elastic_net" else 200)


@pytest.mark.slow
@every_attack_slowly
def test_c_grows_until_there_is_a_success(key, name):
    """The slope falls from 18 at x to a half at the boundary, where the mean has risen by 0.2."""

    def saturating(x):
        rise = x.mean(1) - 0.2
        lead = 0.9 * jnp.tanh(20 * rise) + 0.5 * rise - 0.9 * np.tanh(4) - 0.1
        return jnp.stack([jnp.zeros_like(lead), lead], axis=1)

    found = ATTACKS[name]()(saturating, jnp.full((2, 4), 0.2), jnp.zeros(2, int), key=key)
    assert (found.step >= 0).all()
    np.testing.assert_allclose(found.distance, 0.8 if name == "elastic_net" else 0.4, rtol=1e-3)


@pytest.mark.parametrize(
    ("maker", "numbers", "error", "says"),
    [
        *[(maker, {"steps": 0}, ValueError, "steps") for maker in ATTACKS.values()],
        *[(maker, {"searches": 0}, ValueError, "searches") for maker in ATTACKS.values()],
        *[(maker, {"searches": 1.5}, TypeError, "searches") for maker in ATTACKS.values()],
        *[(maker, {"bounds": (1, 1)}, ValueError, "bounds") for maker in ATTACKS.values()],
        *[
            (maker, {"examples": jnp.full((2, 3), jnp.nan)}, ValueError, "examples")
            for maker in ATTACKS.values()
        ],
        (box_lbfgs, {"memory": 0}, ValueError, "memory"),
        (carlini_wagner, {"rate": 0}, ValueError, "rate"),
        (elastic_net, {"rate": -1}, ValueError, "rate"),
        (elastic_net, {"beta": -1}, ValueError, "beta"),
        (elastic_net, {"beta": "1"}, TypeError, "beta"),
    ],
)
def test_bad_numbers_are_refused_at_once(maker, numbers, error, says):
    with pytest.raises(error, match=says):
        maker(**numbers)
