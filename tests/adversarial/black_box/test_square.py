"""Square attack: the truth of linear classifiers, the ball and the box, and how often f was asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffprog as dp
from diffprog.adversarial.black_box._square import square

NORMS = ("linf", "l2", "l1")
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
SHAPE, SIZE = (4, 4, 1), 16
# Bounds whose ends are not round numbers in binary: there high - x + x can miss high.
BOUNDS = {"linf": (-2.1179, 2.64), "l2": (0.0, 1.0), "l1": (-2.1179, 2.64)}

every_norm = pytest.mark.parametrize("norm", NORMS)


@jax.custom_vjp
def scores(x, weights):
    """Logits that nobody can differentiate: an attack that asks for a gradient fails."""
    return (x.reshape(len(x), -1) - 0.5) @ weights


def _refused(*_):
    raise AssertionError("a gradient was asked for")


scores.defvjp(_refused, _refused)


def linear(weights):
    return dp.program(lambda weights, x: scores(x, weights), jnp.asarray(weights))


def case(seed, batch=8, bounds=(0.0, 1.0), shape=SHAPE, dtype=np.float32, faces=0.0):
    """A linear program of two classes, examples (some numbers of them on the faces of the box), and what it reads."""
    rng = np.random.default_rng(seed)
    low, high = (dtype(bound) for bound in bounds)
    x = rng.uniform(low + 0.4 * (high - low), high - 0.4 * (high - low), (batch, *shape)).astype(
        dtype
    )
    x = np.where(rng.uniform(size=x.shape) < faces, rng.choice([low, high], x.shape), x)
    f = linear(rng.normal(size=(x[0].size, 2)).astype(dtype))
    return f, jnp.asarray(x), f(x).argmax(1)


def lengths(norm, r):
    return np.linalg.norm(np.asarray(r, np.float64).reshape(len(r), -1), ORDER[norm], axis=1)


def distances(norm, f, x, y):
    """Of x to the boundary of a classifier of two classes, without a box."""
    (weights,) = f.arrays
    gap = np.abs(np.diff(np.asarray(f(x), np.float64))[:, 0])
    return gap / np.linalg.norm(np.diff(np.asarray(weights, np.float64))[:, 0], DUAL[norm])


@pytest.mark.slow
@every_norm
@pytest.mark.parametrize("targeted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_linear_classifier_is_fooled_beyond_its_distance_and_not_within(key, norm, targeted):
    f, x, y = case(0, bounds=BOUNDS[norm])
    wish = 1 - y if targeted else y
    distance = distances(norm, f, x, y)
    for factor, expected in ((1.5, True), (0.999, False)):
        epsilon = jnp.asarray(factor * distance, jnp.float32)
        found = square(
            norm=norm, epsilon=epsilon, queries=1500, targeted=targeted, bounds=BOUNDS[norm]
        )(f, x, wish, key=key)
        np.testing.assert_array_equal(found.success, expected)
        np.testing.assert_array_equal(found.gradients, 0)
        assert (lengths(norm, found.perturbation) <= epsilon * (1 + 1e-6)).all()
        np.testing.assert_array_equal(found.step + 1, found.queries if expected else 0)
        asked = found.queries[~found.success]
        assert (asked <= 400).all() if norm == "linf" else (asked == 1500).all()


def test_a_search_in_linf_ends_where_no_square_is_left_that_helps(key):
    """On a linear program that is the corner of the ball: every number moved by epsilon against its weight, and not one query more."""
    f, x, y = case(5, batch=6)
    epsilon = jnp.asarray(0.9 * distances("linf", f, x, y), jnp.float32)
    found = square(epsilon=epsilon, queries=1500)(f, x, y, key=key)
    (weights,) = f.arrays
    corner = epsilon[:, None] * jnp.sign(weights[:, 1 - y].T - weights[:, y].T)
    np.testing.assert_allclose(found.perturbation.reshape(6, -1), corner, rtol=1e-5)
    assert (found.queries <= 400).all()
    assert len(set(found.queries.tolist())) > 1
    alone = square(epsilon=epsilon[:1], queries=1500)(f, x[:1], y[:1], key=key)
    assert alone.queries[0] == found.queries[0]


@pytest.mark.slow
@every_norm
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(-4, 1))
def test_ball_and_box_are_never_left(norm, seed, scale):
    f, x, y = case(seed, bounds=BOUNDS[norm], faces=0.3)
    epsilon = jnp.asarray(10**scale * np.linspace(0, 3, len(x)), jnp.float32)
    found = square(norm=norm, epsilon=epsilon, queries=40, restarts=2, bounds=BOUNDS[norm])(
        f, x, y, key=jax.random.key(seed % 1000)
    )
    low, high = (np.float32(bound) for bound in BOUNDS[norm])
    assert (lengths(norm, found.perturbation) <= epsilon * (1 + 1e-6)).all()
    assert ((found.adversarial >= low) & (found.adversarial <= high)).all()
    np.testing.assert_array_equal(found.adversarial[0], x[0])
    np.testing.assert_array_equal(found.success, f(found.adversarial).argmax(1) != y)
    assert (found.queries <= 80).all()


@pytest.mark.slow
@every_norm
def test_the_random_search_climbs(key, norm):
    f, x, y = case(3, bounds=BOUNDS[norm])
    epsilon = jnp.asarray(0.9 * distances(norm, f, x, y), jnp.float32)
    few, many = (
        square(norm=norm, epsilon=epsilon, queries=queries, bounds=BOUNDS[norm])(
            f, x, y, key=key
        ).loss
        for queries in (1, 1500)
    )
    best = np.log1p(
        np.exp(-0.1 * np.abs(np.diff(f(x))[:, 0]))
    )  # the gap that is left at 0.9 of the distance is a tenth
    assert (many > few).all()
    assert np.median((many - few) / (best - few)) > 0.9


@pytest.mark.slow
def test_queries_are_the_calls_of_f(key):
    calls = []

    def counted(weights, x):
        jax.debug.callback(lambda _: calls.append(1), x)
        return scores(x, weights)

    f, x, y = case(1, batch=1)
    program = dp.program(counted, f.arrays[0])
    for factor, restarts in ((0.9, 1), (0.9, 3), (1.5, 3)):
        epsilon = float(factor * distances("linf", f, x, y)[0])
        calls.clear()
        found = jax.block_until_ready(
            square(epsilon=epsilon, queries=200, restarts=restarts)(program, x, y, key=key)
        )
        jax.effects_barrier()
        # What every attack asks besides: the logits of x and of the result.
        assert len(calls) == found.queries[0] + 2
        assert found.gradients[0] == 0


@pytest.mark.slow
def test_restarts_go_on_only_for_what_is_not_found(key):
    f, x, y = case(2, bounds=BOUNDS["linf"])
    epsilon = jnp.asarray(1.05 * distances("linf", f, x, y), jnp.float32)
    attack = lambda restarts: square(
        epsilon=epsilon, queries=20, restarts=restarts, bounds=BOUNDS["linf"]
    )
    once, often = (attack(restarts)(f, x, y, key=key) for restarts in (1, 20))
    np.testing.assert_array_equal(once.adversarial[once.success], often.adversarial[once.success])
    assert often.success.sum() > once.success.sum()
    assert (often.loss >= once.loss).all()
    assert (often.restart[often.success & ~once.success] > 0).all()
    np.testing.assert_array_equal(
        often.queries, np.where(often.success, 20 * often.restart + often.step + 1, 400)
    )


@pytest.mark.slow
def test_an_example_is_searched_the_same_way_among_others_and_in_any_order(key):
    f, x, y = case(4, shape=(7, 5, 2))
    attack = square(epsilon=jnp.float32(0.02), queries=100)
    together = attack(f, x, y, key=key)
    backwards = attack(f, x[::-1], y[::-1], key=key)
    among = jnp.concatenate([x[:3], 1 - x[3:]])
    others = attack(f, among, f(among).argmax(1), key=key)
    np.testing.assert_array_equal(together.adversarial, backwards.adversarial[::-1])
    np.testing.assert_array_equal(together.adversarial[:3], others.adversarial[:3])
    np.testing.assert_array_equal(together.queries[:3], others.queries[:3])
    assert (attack(f, x, y, key=jax.random.key(9)).adversarial != together.adversarial).any()


@pytest.mark.slow
def test_other_numbers_are_no_other_program(key):
    traces = []

    def traced(weights, x):
        traces.append(1)
        return scores(x, weights)

    for seed, epsilon, queries, p in (
        (0, 0.1, 5, 0.8),
        (1, 0.2, 50, 0.3),
        (2, jnp.linspace(0, 1, 8), 7, 0.5),
    ):
        f, x, y = case(seed)
        program = dp.program(traced, f.arrays[0])
        square(epsilon=jnp.full(8, epsilon), queries=queries, p=p, restarts=1 + seed)(
            program, x, y, key=jax.random.key(seed)
        )
        counted = counted if seed else len([*traces])
    # Beyond the first call f is only traced for its shape, by the checks.
    assert len(traces) <= counted + 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm", ["l2", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("linf", "l1"))]
)
def test_float64_of_what_is_no_image(key, norm):
    with jax.enable_x64(True):
        f, x, y = case(5, shape=(16,), dtype=np.float64)
        epsilon = 1.5 * distances(norm, f, x, y)
        found = square(norm=norm, epsilon=jnp.asarray(epsilon), queries=1500)(f, x, y, key=key)
        assert found.adversarial.dtype == np.float64
        assert found.success.all()
        assert (lengths(norm, found.perturbation) <= epsilon * (1 + 1e-14)).all()


@pytest.mark.slow
def test_nan_is_no_success_and_does_not_stop_the_search(key):
    f, x, y = case(6)
    broken = dp.program(
        lambda weights, x: (
            jnp.where(x[:, :1, 0, 0] > x[:, 1:2, 0, 0], jnp.nan, 1) * scores(x, weights)
        ),
        f.arrays[0],
    )
    y = jnp.nan_to_num(broken(x)).argmax(1)
    found = square(epsilon=0.3, queries=500)(broken, x, y, key=key)
    assert jnp.isfinite(found.adversarial).all()
    assert not found.success[jnp.isnan(broken(found.adversarial)).any(1)].any()
    assert found.success.any()


@pytest.mark.parametrize(
    ("numbers", "error", "says"),
    [
        ({"norm": "l3"}, ValueError, "norm"),
        ({"epsilon": -1.0}, ValueError, "epsilon"),
        ({"epsilon": None}, TypeError, "epsilon"),
        ({"queries": 0}, ValueError, "queries"),
        ({"queries": 10.5}, TypeError, "queries"),
        ({"p": 0.0}, ValueError, "p must"),
        ({"p": 1.5}, ValueError, "p must"),
        ({"loss": "hinge"}, ValueError, "loss"),
        ({"restarts": 0}, ValueError, "restarts"),
        ({"bounds": (1, 0)}, ValueError, "bounds"),
    ],
)
def test_bad_numbers_are_refused_at_once(numbers, error, says):
    with pytest.raises(error, match=says):
        square(**numbers)


def test_a_thousand_channels(key):
    f, x, y = case(6, batch=2, shape=(1, 1, 2048))
    found = square(epsilon=1e-4, queries=5)(f, x, y, key=key)
    np.testing.assert_array_equal(found.queries, 5)
