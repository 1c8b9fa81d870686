"""FAB: the truth of linear classifiers in a box, the radius, what f is asked, and that examples go their own ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

import diffprog as dp
from diffprog.adversarial.minimum_norm._fab import fab

NORMS = ("linf", "l2", "l1")
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
SIZE = 16  # random draws of rows that are no multiple of 8 take three times as long to compile
# Bounds whose ends are not round numbers in binary: there high - x + x can miss high.
BOUNDS = (-2.1179, 2.64)

every_norm = pytest.mark.parametrize("norm", NORMS)
# Each norm is a program to compile.
one_norm = pytest.mark.parametrize(
    "norm", ["l1", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("linf", "l2"))]
)


def linear(weights, x):
    return (x.reshape(len(x), -1) - 0.5) @ weights


def case(seed, batch=16, classes=3, bounds=(0.0, 1.0), dtype=np.float32, faces=0.2):
    """A linear program, examples (some numbers of them on the faces of the box), and what it reads."""
    rng = np.random.default_rng(seed)
    low, high = (dtype(bound) for bound in bounds)
    x = rng.uniform(low, high, (batch, SIZE)).astype(dtype)
    x = np.where(rng.uniform(size=x.shape) < faces, rng.choice([low, high], x.shape), x)
    f = dp.program(linear, jnp.asarray(rng.normal(size=(SIZE, classes)).astype(dtype)))
    return f, jnp.asarray(x), f(x).argmax(1)


def lengths(norm, r):
    return np.linalg.norm(np.asarray(r, np.float64).reshape(len(r), -1), ORDER[norm], axis=1)


def shortest(norm, g, gain, low, high):
    """min ||d|| such that <g, d> = gain > 0 and low <= d <= high: a knapsack filled in order, or the root of the dual; infinite if none."""
    size, room = np.abs(g), np.where(g > 0, high, -low)
    if size @ room < gain:
        return np.inf
    if norm == "l1":
        order = np.argsort(-size)
        return np.interp(
            gain, np.r_[0, np.cumsum((size * room)[order])], np.r_[0, np.cumsum(room[order])]
        )
    step = lambda t: np.minimum(t if norm == "linf" else t * size, room)
    enough = 2.0 ** next(k for k in range(-60, 60) if size @ step(2.0**k) >= gain)
    return np.linalg.norm(step(brentq(lambda t: size @ step(t) - gain, 0, enough)), ORDER[norm])


def truth(norm, f, x, y, bounds=(0.0, 1.0)):
    """The distance inside the box of each example to another class of a linear program.

    The boundary to class j may lie in a third class: each distance is a bound from below, and the least of them is met."""
    weights, logits, x = (np.asarray(array, np.float64) for array in (f.arrays[0], f(x), x))
    low, high = bounds

    def to(i, j):
        return shortest(
            norm,
            weights[:, j] - weights[:, y[i]],
            logits[i, y[i]] - logits[i, j],
            low - x[i],
            high - x[i],
        )

    return np.array(
        [min(to(i, j) for j in range(weights.shape[1]) if j != y[i]) for i in range(len(x))]
    )


def meets(found, expected):
    """Success where there is a solution, at its distance."""
    reachable = np.isfinite(expected)
    assert reachable.mean() > 0.7
    np.testing.assert_array_equal(found.success, reachable)
    ratio = (np.asarray(found.distance) / expected)[reachable]
    assert ratio.min() > 1 - 1e-5
    assert np.median(ratio) <= 1.005
    assert np.percentile(ratio, 90) <= 1.02


@pytest.mark.slow
@every_norm
def test_a_linear_classifiers_distance_in_the_box_is_met(key, norm):
    for seed in range(2):
        f, x, y = case(seed)
        meets(fab(norm=norm)(f, x, y, key=key), truth(norm, f, x, y))


@pytest.mark.slow
@every_norm
@pytest.mark.parametrize(
    ("classes", "targets", "targeted"),
    [(2, None, False), (2, None, True), (2, 1, False), (3, 2, False)],
)
def test_so_it_is_with_two_classes_by_targets_and_one_by_one(key, norm, classes, targets, targeted):
    f, x, y = case(classes, batch=30, classes=classes)
    found = fab(norm=norm, targets=targets, targeted=targeted)(
        f, x, 1 - y if targeted else y, key=key
    )
    meets(found, truth(norm, f, x, y))


@pytest.mark.slow
@every_norm
@pytest.mark.parametrize("classes", [3, 10])
def test_a_target_beyond_several_boundaries_is_reached_by_the_shortest_way(
    key, linear, norm, classes
):
    f, x, y = linear.case(classes, classes)
    target = (y + 1) % classes
    found = fab(norm=norm, targeted=True)(f, x, target, key=key)
    linear.near(found, linear.truth(norm, f, x, target, targeted=True))


@pytest.mark.slow
def test_one_rival_after_another_takes_a_gradient_for_each_step(key):
    f, x, y = case(3)
    one_by_one, all_at_once = (
        fab(norm="l2", steps=10, targets=targets)(f, x, y, key=key) for targets in (2, None)
    )
    meets(one_by_one, truth("l2", f, x, y))
    np.testing.assert_array_equal(one_by_one.gradients[one_by_one.success], 20)
    np.testing.assert_array_equal(all_at_once.gradients[all_at_once.success], 20)


@pytest.mark.slow
@one_norm
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(-4, 1))
def test_ball_and_box_are_never_left(norm, seed, scale):
    f, x, y = case(seed, bounds=BOUNDS)
    epsilon = jnp.asarray(10**scale * np.linspace(0, 3, len(x)), jnp.float32)
    found = fab(norm=norm, epsilon=epsilon, steps=5, restarts=2, bounds=BOUNDS)(
        f, x, y, key=jax.random.key(seed % 1000)
    )
    low, high = (np.float32(bound) for bound in BOUNDS)
    assert (lengths(norm, found.perturbation) <= epsilon * (1 + 1e-6)).all()
    assert ((found.adversarial >= low) & (found.adversarial <= high)).all()
    np.testing.assert_array_equal(found.adversarial[0], x[0])
    np.testing.assert_array_equal(found.success, f(found.adversarial).argmax(1) != y)


@pytest.mark.slow
@one_norm
def test_a_radius_is_met_where_the_distance_allows_it(key, norm):
    f, x, y = case(3, bounds=BOUNDS)
    expected = truth(norm, f, x, y, BOUNDS)
    assert np.isfinite(expected).all()
    for factor in (1.02, 0.99):
        epsilon = jnp.asarray(factor * expected, jnp.float32)
        found = fab(norm=norm, epsilon=epsilon, bounds=BOUNDS)(f, x, y, key=key)
        assert found.success.mean() >= 0.9 if factor > 1 else not found.success.any()
        np.testing.assert_array_equal(found.step >= 0, found.success)
        # What is found is done; what is not walks to the end, with one gradient for each of the two other classes.
        assert (found.gradients[found.success] < 200).all()
        np.testing.assert_array_equal(found.gradients[~found.success], 200)


def bent(weights, x):
    """No linear program: the walk has to go on after its first step."""
    return jnp.tanh(x @ weights[0]) @ weights[1]


def bent_case(seed, batch=16):
    """In a box so wide that it is never met."""
    rng = np.random.default_rng(seed)
    f = dp.program(
        bent, [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((SIZE, 16), (16, 3))]
    )
    x = jnp.asarray(rng.normal(size=(batch, SIZE)), jnp.float32)
    return f, x, f(x).argmax(1)


WIDE = (-100.0, 100.0)


@pytest.mark.slow
def test_a_walk_ends_where_the_perturbation_stands_upright_on_the_boundary(key):
    f, x, y = bent_case(0)

    def upright(found):
        rival = jnp.where(jax.nn.one_hot(y, 3, dtype=bool), -jnp.inf, f(found.adversarial)).argmax(
            1
        )
        gap = lambda x: (
            jnp.take_along_axis(f(x), rival[:, None], 1).sum()
            - jnp.take_along_axis(f(x), y[:, None], 1).sum()
        )
        g = jax.grad(gap)(found.adversarial)
        return (
            (g * found.perturbation).sum(1) / lengths("l2", g) / lengths("l2", found.perturbation)
        )

    first, walked = (
        fab(norm="l2", steps=steps, bounds=WIDE)(f, x, y, key=key) for steps in (1, 100)
    )
    assert first.success.all()
    assert walked.distance.sum() < first.distance.sum()
    assert np.median(upright(first)) < 0.99 < 0.999 < np.median(upright(walked))


@pytest.mark.slow
def test_restarts_shorten_and_say_which_they_were(key):
    f, x, y = bent_case(1)
    once, often = (
        fab(norm="l2", steps=10, restarts=restarts, bounds=WIDE)(f, x, y, key=key)
        for restarts in (1, 5)
    )
    # The shortest is chosen before its last halving, which may shorten another more: no promise for each, but for most.
    assert (often.distance <= once.distance).mean() > 0.8
    assert often.distance.sum() < once.distance.sum()
    assert (often.restart > 0).any()
    np.testing.assert_array_equal(often.gradients, 5 * once.gradients)


@pytest.mark.slow
def test_an_example_walks_the_same_way_among_others_and_in_any_order(key):
    f, x, y = bent_case(2)
    attack = fab(norm="l2", steps=10, restarts=2, bounds=WIDE)
    together, backwards = attack(f, x, y, key=key), attack(f, x[::-1], y[::-1], key=key)
    among = jnp.concatenate([x[:3], -x[3:]])
    others = attack(f, among, f(among).argmax(1), key=key)
    np.testing.assert_allclose(together.distance, backwards.distance[::-1], rtol=1e-4)
    np.testing.assert_allclose(together.distance[:3], others.distance[:3], rtol=1e-4)
    np.testing.assert_array_equal(attack(f, x, y, key=key).adversarial, together.adversarial)


@pytest.mark.slow
def test_other_numbers_are_no_other_program(key):
    traces = []

    def traced(weights, x):
        traces.append(1)
        return linear(weights, x)

    f, x, y = case(0)
    fab(epsilon=jnp.full(16, 0.1), steps=3, overshoot=0.1, restarts=2)(
        dp.program(traced, f.arrays[0]), x, y, key=key
    )
    before = len(traces)
    f, x, y = case(1)
    other = fab(epsilon=jnp.linspace(0, 1, 16), steps=4, overshoot=0.05, pull=0.2, backward=0.8)
    other(dp.program(traced, f.arrays[0]), x, y, key=jax.random.key(1))
    # Once more at most, for its shape, by the checks.
    assert len(traces) <= before + 1


@pytest.mark.slow
@every_norm
def test_float64(key, norm):
    with jax.enable_x64(True):
        f, x, y = case(5, classes=2, dtype=np.float64)
        found = fab(norm=norm, steps=20)(f, x, y, key=key)
        expected = truth(norm, f, x, y)
        reachable = np.isfinite(expected)
        assert found.adversarial.dtype == np.float64
        # A part in 10^5 is where the last halving ends; from below, float64's rounding.
        ratio = (np.asarray(found.distance) / expected)[reachable]
        assert ratio.min() > 1 - 1e-12
        assert np.median(ratio) < 1 + 2e-5


@pytest.mark.slow
def test_logits_and_gradients_that_are_nan_are_no_success_and_leave_no_trace(key):
    """NaN logits and a NaN gradient in half of the box; in the rest, an infinite gradient where it begins."""
    f, x, _ = case(6, faces=0)
    holes = dp.program(
        lambda weights, x: linear(weights, x) + 0 * jnp.sqrt(x[:, :1] - 0.5), f.arrays[0]
    )
    said = holes(x)
    found = fab(norm="l2", steps=10, epsilon=1.0)(holes, x, jnp.nan_to_num(said).argmax(1), key=key)
    assert jnp.isfinite(found.adversarial).all()
    assert not (found.success & jnp.isnan(holes(found.adversarial)).any(1)).any()
    assert found.success[~jnp.isnan(said).any(1)].any()


@pytest.mark.slow
def test_examples_are_where_a_search_that_sees_no_slope_ends(key):
    stairs = dp.program(
        lambda x: jnp.stack([jnp.zeros(len(x)), jnp.where(x.min(1) > 0.9, 1.0, -1.0)], 1)
    )
    x, y = jnp.full((3, SIZE), 0.5), jnp.zeros(3, int)
    examples = jnp.stack([jnp.full(SIZE, 1.0), jnp.full(SIZE, 0.7)])
    found = fab(norm="l2", steps=3, examples=examples)(stairs, x, y, key=key)
    assert found.success.all()
    np.testing.assert_allclose(found.distance, 0.4 * np.sqrt(SIZE), rtol=2e-5)
    np.testing.assert_array_equal(found.step, -1)


@pytest.mark.parametrize(
    ("numbers", "error", "says"),
    [
        ({"norm": "l3"}, ValueError, "norm"),
        ({"epsilon": -1.0}, ValueError, "epsilon"),
        ({"steps": 0}, ValueError, "steps"),
        ({"restarts": 1.5}, TypeError, "restarts"),
        ({"targets": 0}, ValueError, "targets"),
        ({"targets": 2, "targeted": True}, ValueError, "targets"),
        ({"overshoot": -0.1}, ValueError, "overshoot"),
        ({"pull": 1.5}, ValueError, "pull"),
        ({"backward": float("nan")}, ValueError, "backward"),
        ({"bounds": (1, 0)}, ValueError, "bounds"),
        ({"examples": jnp.full((2, 3), 2.0)}, ValueError, "examples"),
    ],
)
def test_bad_numbers_are_refused_at_once(numbers, error, says):
    with pytest.raises(error, match=says):
        fab(**numbers)
