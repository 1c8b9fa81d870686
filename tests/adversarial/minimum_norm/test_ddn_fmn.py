"""DDN and FMN: the truth of linear classifiers in a box, runs, and what holds for every search for the smallest perturbation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog.adversarial import ddn, fmn

slow = pytest.mark.slow
ATTACKS = {
    "ddn": ddn,
    **{f"fmn {norm}": functools.partial(fmn, norm=norm) for norm in ("linf", "l2", "l1")},
}
LATER = {"fmn l2", "fmn l1"}  # whose compile is left to the slow tests
every_attack = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=slow if name in LATER else ()) for name in ATTACKS]
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
    linear.near(attack(f, x, y, key=key), linear.depth(attack.norm, x))


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
    counts = []
    for seed, numbers in enumerate([{}, {"steps": 7}, {"rate": 0.5, "gamma": 0.1}]):
        f, x, y = linear.case(seed)
        ATTACKS[name](**numbers)(f, x, y, key=jax.random.key(seed))
        counts.append(len(linear.traces))
    assert counts[0] == counts[1] == counts[2]


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
@slow
@pytest.mark.parametrize("attack", [ddn, functools.partial(fmn, norm="l2")], ids=["ddn", "fmn"])
def test_later_runs_go_to_classes_that_the_first_does_not_see(key, linear, attack):
    """The likeliest class is not always the nearest of ten."""
    f, x, y = linear.case(6, 10, inner=True, uneven=True)
    truth = linear.truth("l2", f, x, y)
    once, often = (attack(steps=100, restarts=runs)(f, x, y, key=key) for runs in (1, 3))
    rounding = 1e-5
    assert (often.distance <= once.distance + rounding).all()
    assert (once.distance > 1.02 * truth + rounding).any()
    assert (often.distance < 1.005 * truth + rounding).all()
    assert set(np.unique(often.restart)) <= {0, 1, 2}
    np.testing.assert_array_equal(once.gradients, 100)
    np.testing.assert_array_equal(often.gradients, 300 + 9)


@pytest.mark.parametrize(
    ("maker", "numbers", "error", "says"),
    [
        (fmn, {"norm": "l3"}, ValueError, "norm"),
        *[(maker, {"steps": 0}, ValueError, "steps") for maker in (ddn, fmn)],
        *[(maker, {"steps": 1.5}, TypeError, "steps") for maker in (ddn, fmn)],
        *[(maker, {"restarts": 0}, ValueError, "restarts") for maker in (ddn, fmn)],
        *[(maker, {"rate": 0}, ValueError, "rate") for maker in (ddn, fmn)],
        *[(maker, {"gamma": 0}, ValueError, "gamma") for maker in (ddn, fmn)],
        *[(maker, {"gamma": 1.5}, ValueError, "gamma") for maker in (ddn, fmn)],
        *[(maker, {"bounds": (1, 0)}, ValueError, "bounds") for maker in (ddn, fmn)],
        *[
            (maker, {"examples": jnp.full((2, 3), 1.5)}, ValueError, "examples")
            for maker in (ddn, fmn)
        ],
        *[
            (maker, {"examples": jnp.ones((2, 3), int)}, TypeError, "examples")
            for maker in (ddn, fmn)
        ],
    ],
)
def test_bad_numbers_are_refused_at_once(maker, numbers, error, says):
    with pytest.raises(error, match=says):
        maker(**numbers)
