"""Norms against closed forms, a general optimizer, and the properties that define a projection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from diffprog import norms

NAMES = ("linf", "l2", "l1")
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
EPSILONS = (0.0, 1e-3, 0.3, 1.0, 100.0)
# Bounds whose ends are not round numbers in binary: there high - x + x can miss high.
BOUNDS = ((0.0, 1.0), (-2.1179, 2.64))

every_norm = pytest.mark.parametrize("name", NAMES)
cases = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def reference_length(name, r):
    return np.linalg.norm(np.asarray(r, np.float64).reshape(len(r), -1), ORDER[name], axis=1)


def random_problem(seed, bounds=(0.0, 1.0), shape=(5, 2, 3), dtype=np.float32):
    """Perturbations of many sizes, and images with some pixels at the bounds."""
    rng = np.random.default_rng(seed)
    low, high = (dtype(bound) for bound in bounds)
    x = np.clip(
        rng.uniform(1.2 * low - 0.2 * high, 1.2 * high - 0.2 * low, shape).astype(dtype), low, high
    )
    r = rng.normal(size=shape) * 10.0 ** rng.uniform(-2, 2, (shape[0],) + (1,) * (len(shape) - 1))
    return np.where(rng.uniform(size=shape) < 0.1, 0, r).astype(dtype), x


@every_norm
def test_length_equals_numpy(name):
    r, _ = random_problem(0)
    np.testing.assert_allclose(norms.named(name).length(r), reference_length(name, r), rtol=1e-6)


@every_norm
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_length_and_ascent_work_at_any_scale(name, scale):
    norm, unit = norms.named(name), np.array([[3, -4, 0.5]], np.float32)
    np.testing.assert_allclose(
        norm.length(unit * np.float32(scale)), norm.length(unit) * scale, rtol=1e-6
    )
    np.testing.assert_allclose(norm.ascent(unit * np.float32(scale)), norm.ascent(unit), rtol=1e-6)


@every_norm
def test_the_gradient_of_length_is_the_ascent_of_the_dual_norm(name):
    norm, (r, _) = norms.named(name), random_problem(1)
    gradient = jax.grad(lambda r: norm.length(r).sum())(r)
    np.testing.assert_allclose(
        np.where(r == 0, 0, gradient), norms.named(DUAL[name]).ascent(r), rtol=1e-5, atol=1e-6
    )


def test_the_gradient_of_the_l2_length_is_zero_at_zero():
    np.testing.assert_array_equal(jax.grad(lambda r: norms.l2.length(r).sum())(np.zeros((2, 3))), 0)


@pytest.mark.slow
@every_norm
def test_gradients_are_finite_at_zero(name):
    norm, zero = norms.named(name), jnp.zeros((2, 3))
    for f in (
        norm.length,
        norm.ascent,
        lambda r: norm.project(r, 0.0),
        lambda r: norm.project_in_box(r, zero, 0.5),
    ):
        assert np.isfinite(jax.grad(lambda r, f=f: f(r).sum())(zero)).all()


@every_norm
def test_ascent_has_length_one_and_attains_the_dual_norm(name):
    gradient, _ = random_problem(2)
    direction = norms.named(name).ascent(gradient)
    np.testing.assert_allclose(reference_length(name, direction), 1, rtol=1e-6)
    np.testing.assert_allclose(
        (direction * gradient).sum((1, 2)), reference_length(DUAL[name], gradient), rtol=1e-5
    )


@every_norm
def test_ascent_of_a_zero_gradient_is_zero(name):
    np.testing.assert_array_equal(norms.named(name).ascent(np.zeros((2, 3), np.float32)), 0)


def test_l1_ascent_moves_the_first_of_the_largest_coordinates():
    np.testing.assert_array_equal(norms.l1.ascent(np.array([[1.0, -3.0, 3.0]])), [[0, -1, 0]])


def test_projections_of_worked_examples():
    r = np.array([[3.0, -4.0], [0.3, 0.4]])
    np.testing.assert_allclose(norms.linf.project(r, 1.0), [[1, -1], [0.3, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(norms.l2.project(r, 1.0), [[0.6, -0.8], [0.3, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(norms.l1.project(r, 3.0), [[1, -2], [0.3, 0.4]], rtol=1e-6)


def test_projections_in_a_box_of_worked_examples():
    # The second coordinate has room 0.2 only, so the first one uses the rest of the length.
    r, x = np.array([[3.0, 4.0]]), np.array([[0.0, 0.8]])
    np.testing.assert_allclose(norms.linf.project_in_box(r, x, 0.5), [[0.5, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(
        norms.l2.project_in_box(r, x, 0.5), [[np.sqrt(0.25 - 0.04), 0.2]], rtol=1e-6
    )
    np.testing.assert_allclose(norms.l1.project_in_box(r, x, 0.5), [[0.3, 0.2]], rtol=1e-6)


def test_a_large_entry_without_room_does_not_cost_precision():
    r, x = np.array([[1e6, 0.3, 0.2996]], np.float32), np.array([[1.0, 0.5, 0.5]], np.float32)
    np.testing.assert_allclose(norms.l1.project_in_box(r, x, 1e-3), [[0, 7e-4, 3e-4]], atol=1e-7)


def sequential_quadratic_programming(name, r, x, epsilon):
    """The joint projection by scipy, in units of epsilon.

    For l1 it solves for p, q >= 0 with r = p - q, in which the ball is smooth.
    """
    n, r, low, high = r.size, r / epsilon, -x / epsilon, (1 - x) / epsilon
    start = np.clip(
        r / np.linalg.norm(r, ORDER[name]), low, high
    )  # not 0, where the l2 ball has no gradient
    if name == "l2":
        to_r, box = np.eye(n), zip(low, high, strict=True)
        ball = {"fun": lambda z: 1 - z @ z, "jac": lambda z: -2 * z}
    else:
        to_r, start = (
            np.hstack([np.eye(n), -np.eye(n)]),
            np.concatenate([np.maximum(start, 0), np.maximum(-start, 0)]),
        )
        box = [(0, size) for size in np.concatenate([high, -low])]
        ball = {"fun": lambda z: 1 - z.sum(), "jac": lambda z: -np.ones(2 * n)}
    result = minimize(
        lambda z: (0.5 * np.sum((to_r @ z) ** 2) - r @ to_r @ z) / np.linalg.norm(r),
        start,
        jac=lambda z: (to_r @ z - r) @ to_r / np.linalg.norm(r),
        bounds=list(box),
        constraints={"type": "ineq", **ball},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert ball["fun"](result.x) > -1e-7, (
        "the optimizer left the ball, so its result is no reference"
    )
    return epsilon * to_r @ result.x


@pytest.mark.parametrize("name", ["l2", "l1"])
@pytest.mark.parametrize("epsilon", [1e-3, 0.3, 1.0])
def test_projection_in_a_box_equals_a_general_optimizer(name, epsilon):
    rng = np.random.default_rng(3)
    r, x = rng.normal(size=(6, 5)), rng.uniform(size=(6, 5))
    with jax.enable_x64(True):
        found = norms.named(name).project_in_box(r, x, epsilon)
    expected = [
        sequential_quadratic_programming(name, *row, epsilon) for row in zip(r, x, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6 * epsilon)


def sorted_breakpoints(name, size, room, epsilon):
    """The joint projection of sizes, exact between sorted breakpoints of the dual variable."""
    if reference_length(name, [np.minimum(size, room)])[0] <= epsilon:
        return np.minimum(size, room)
    if name == "l2":

        def sizes(s):
            return np.minimum(s * size, room)

        knots = np.sort(
            np.concatenate(
                [[0, 1], np.divide(room, size, out=np.ones_like(size), where=size > room)]
            )
        )
    else:

        def sizes(t):
            return np.clip(size - size.max() + t, 0, room)

        knots = np.sort(np.concatenate([[0], size.max() - size, size.max() - size + room]))
    before = [knot for knot in knots if reference_length(name, [sizes(knot)])[0] <= epsilon][-1]
    after = knots[np.searchsorted(knots, before, "right")]
    free = sizes(after) > sizes(before)
    start = sizes(before)
    if name == "l1":
        return start + free * (epsilon - start.sum()) / free.sum()
    return np.where(
        free,
        size * np.sqrt((epsilon**2 - np.sum(start[~free] ** 2)) / np.sum(size[free] ** 2)),
        start,
    )


@pytest.mark.parametrize("name", ["l2", "l1"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_projection_in_a_box_is_exact_to_rounding(name, dtype, tolerance, bounds):
    r, x = random_problem(4, bounds, (12, 40), dtype)
    low, high = np.asarray(bounds, dtype).astype(np.float64)
    with jax.enable_x64(dtype is np.float64):
        for epsilon in EPSILONS:
            found = np.asarray(norms.named(name).project_in_box(r, x, epsilon, bounds))
            r64, x64 = r.astype(np.float64), x.astype(np.float64)
            room = np.where(r64 < 0, x64 - low, high - x64)
            expected = [
                sorted_breakpoints(name, *row, epsilon)
                for row in zip(np.abs(r64), room, strict=True)
            ]
            assert found.dtype == dtype
            np.testing.assert_allclose(found, np.sign(r) * expected, atol=tolerance)


@every_norm
@pytest.mark.parametrize("bounds", BOUNDS)
@cases
@given(seed=seeds, epsilon=st.sampled_from(EPSILONS))
def test_projections_lie_in_ball_and_box(name, bounds, seed, epsilon):
    r, x = random_problem(seed, bounds)
    projected = norms.named(name).project_in_box(r, x, epsilon, bounds)
    assert (
        (x + projected >= np.float32(bounds[0])) & (x + projected <= np.float32(bounds[1]))
    ).all()
    assert (reference_length(name, projected) <= epsilon * (1 + 1e-6)).all()
    assert (
        reference_length(name, norms.named(name).project(r, epsilon)) <= epsilon * (1 + 1e-6)
    ).all()


@every_norm
@cases
@given(seed=seeds, epsilon=st.sampled_from(EPSILONS))
def test_no_feasible_point_is_nearer(name, seed, epsilon):
    # p is the projection of r on a convex set exactly if <r - p, c - p> <= 0 for every c of the
    # set.
    (r, x), norm = random_problem(seed), norms.named(name)
    p = norm.project_in_box(r, x, epsilon)
    for other in range(5):
        c = norm.project_in_box(random_problem(other)[0], x, epsilon)
        products = np.asarray((r - p) * (c - p)).sum((1, 2))
        assert (
            products <= 1e-5 * reference_length("l2", r) * (reference_length("l2", c) + 1e-3)
        ).all()


@every_norm
@cases
@given(seed=seeds, epsilon=st.sampled_from(EPSILONS))
def test_projections_are_idempotent_and_nonexpansive(name, seed, epsilon):
    (r, x), (s, _), norm = random_problem(seed), random_problem(seed + 1), norms.named(name)
    for project in (
        lambda r: norm.project(r, epsilon),
        lambda r: norm.project_in_box(r, x, epsilon),
    ):
        p, q = project(r), project(s)
        np.testing.assert_allclose(project(p), p, atol=1e-6 * max(epsilon, 1))
        assert (
            reference_length("l2", p - q) <= reference_length("l2", r - s) * (1 + 1e-5) + 1e-6
        ).all()


@every_norm
def test_points_inside_are_returned_unchanged(name):
    r, x = np.array([[0.1, -0.2, 0.3]], np.float32), np.full((1, 3), 0.5, np.float32)
    np.testing.assert_array_equal(norms.named(name).project(r, 0.7), r)
    np.testing.assert_array_equal(norms.named(name).project_in_box(r, x, 0.7), r)


@every_norm
def test_a_pixel_at_its_bound_does_not_leave_the_box(name):
    r = np.array([[1.0, 1.0, -1.0, -1.0]], np.float32)
    np.testing.assert_array_equal(
        norms.named(name).project_in_box(r, np.array([[1, 1, 0, 0]], np.float32), 0.5), 0
    )


@pytest.mark.parametrize("name", ["l2", "l1"])
def test_derivatives_of_projections_match_finite_differences(name):
    norm = norms.named(name)
    with jax.enable_x64(True):
        r, x = (jnp.asarray(array) for array in random_problem(5, shape=(4, 6), dtype=np.float64))
        f = lambda r, epsilon: jnp.sum(jnp.sin(3 * norm.project_in_box(r, x, epsilon)))
        direction, step = random_problem(6, shape=(4, 6), dtype=np.float64)[0], 1e-6
        by_r, by_epsilon = jax.grad(f, (0, 1))(r, jnp.asarray(0.6))
        np.testing.assert_allclose(
            jnp.vdot(by_r, direction),
            (f(r + step * direction, 0.6) - f(r - step * direction, 0.6)) / (2 * step),
            rtol=1e-6,
        )
        np.testing.assert_allclose(
            by_epsilon, (f(r, 0.6 + step) - f(r, 0.6 - step)) / (2 * step), rtol=1e-6
        )


@pytest.mark.slow
@every_norm
def test_epsilon_can_differ_per_example_and_be_traced_and_vmapped(name):
    norm, (r, x) = norms.named(name), random_problem(7)
    epsilon = np.array([0.0, 1e-3, 0.3, 1.0, 100.0], np.float32)
    one_by_one = np.concatenate(
        [norm.project_in_box(r[i : i + 1], x[i : i + 1], float(epsilon[i])) for i in range(5)]
    )
    batched = norm.project_in_box(r, x, epsilon)
    traced = jax.jit(norm.project_in_box)(r, x, epsilon)
    vmapped = jax.vmap(lambda r, x, e: norm.project_in_box(r[None], x[None], e)[0])(r, x, epsilon)
    for found in (batched, traced, vmapped):
        np.testing.assert_allclose(found, one_by_one, rtol=1e-5, atol=1e-7)


@every_norm
def test_samples_are_uniform_in_the_ball(name):
    # The ball of radius u epsilon has a fraction u^n of the volume, so (||r|| / epsilon)^n is
    # uniform with mean 1/2 and variance 1/12.
    number, n, epsilon = 4000, 6, 0.3
    r = norms.named(name).sample(jax.random.key(0), (number, 2, 3), epsilon)
    depth = (reference_length(name, r) / epsilon) ** n
    assert r.shape == (number, 2, 3)
    assert depth.max() <= 1 + 1e-5
    assert abs(depth.mean() - 0.5) < 5 / np.sqrt(12 * number)
    assert np.abs(np.quantile(depth, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.04
    # Means vanish, and every coordinate has the second moment of the uniform distribution.
    flat = np.asarray(r).reshape(number, n) / epsilon
    moment = {"linf": 1 / 3, "l2": 1 / (n + 2), "l1": 2 / ((n + 1) * (n + 2))}[name]
    assert np.abs(flat.mean(0)).max() < 5 * np.sqrt(moment / number)
    np.testing.assert_allclose(np.square(flat).mean(0), moment, rtol=0.15)
    np.testing.assert_allclose(np.square(flat).mean(), moment, rtol=0.05)


@every_norm
def test_samples_follow_key_shape_radius_and_dtype(name):
    sample, key = norms.named(name).sample, jax.random.key(2)
    r = sample(key, (3, 4), np.array([0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(r, sample(key, (3, 4), np.array([0.0, 1.0, 2.0])))
    np.testing.assert_array_equal(r[0], 0)
    assert not np.allclose(r[1], r[2] / 2)
    assert (
        jax.eval_shape(lambda key: sample(key, (2, 3), 0.5, jnp.bfloat16), key).dtype
        == jnp.bfloat16
    )


@every_norm
@pytest.mark.parametrize("epsilon", [1e-45, 1e-38, 1e-20, 1e30])
@pytest.mark.parametrize("scale", [1e-42, 1e-20, 1e3, 1e38])
def test_extreme_radii_and_sizes_give_finite_points_of_the_ball(name, epsilon, scale):
    norm, r = norms.named(name), np.array([[1, -0.5, 0.25, 0]], np.float32) * np.float32(scale)
    for projected in (
        norm.project(r, epsilon),
        norm.project_in_box(r, np.full_like(r, 0.5), epsilon),
    ):
        assert np.isfinite(projected).all()
        assert (reference_length(name, projected) <= np.float32(epsilon) * (1 + 1e-6)).all()


def test_named_returns_the_three_norms():
    assert [norms.named(name) for name in NAMES] == [norms.linf, norms.l2, norms.l1]


@pytest.mark.parametrize("name", ["l3", "", None, ["l2"]])
def test_unknown_names_raise(name):
    with pytest.raises(ValueError, match="norm must be one of 'linf', 'l2', 'l1'"):
        norms.named(name)


VALID = np.full((2, 3), 0.5, np.float32)
INVALID = [
    (np.ones((2, 3), np.int32), TypeError, "must be a float array, got int32"),
    ("r", TypeError, "must be an array, got str"),
    (np.float32(1.0), ValueError, "must have a leading axis"),
    (np.ones((0, 3), np.float32), ValueError, "must not be empty"),
    (np.array([[1.0, np.nan]]), ValueError, "must be finite, got 1 NaN or infinite"),
    (np.array([[1.0, np.inf]]), ValueError, "must be finite"),
]


@every_norm
@pytest.mark.parametrize(("value", "error", "message"), INVALID)
def test_invalid_arrays_raise(name, value, error, message):
    norm = norms.named(name)
    with pytest.raises(error, match="r " + message):
        norm.length(value)
    with pytest.raises(error, match="r " + message):
        norm.project(value, 1.0)
    with pytest.raises(error, match="r " + message):
        norm.project_in_box(value, VALID, 1.0)
    with pytest.raises(error, match="x " + message):
        norm.project_in_box(VALID, value, 1.0)
    with pytest.raises(error, match="gradient " + message):
        norm.ascent(value)


@every_norm
@pytest.mark.parametrize(
    ("epsilon", "error"),
    [
        (-0.1, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (np.array([0.1, -0.1]), ValueError),
        (np.array([0.1, np.nan]), ValueError),
        (np.array([0.1, 0.1, 0.1]), ValueError),
        (np.ones((2, 1)), ValueError),
        (np.array([1, 1]), TypeError),
        (True, TypeError),
        ("0.1", TypeError),
    ],
)
def test_invalid_radii_raise(name, epsilon, error):
    norm = norms.named(name)
    with pytest.raises(error, match="epsilon must"):
        norm.project(VALID, epsilon)
    with pytest.raises(error, match="epsilon must"):
        norm.project_in_box(VALID, VALID, epsilon)
    with pytest.raises(error, match="epsilon must"):
        norm.sample(jax.random.key(0), (2, 3), epsilon)


@pytest.mark.parametrize(
    ("x", "bounds", "error", "message"),
    [
        (VALID[:, :2], (0, 1), ValueError, "shapes must agree, got r: .*, x: "),
        (VALID.astype(jnp.bfloat16), (0, 1), TypeError, "r and x must share a dtype"),
        (VALID, (1, 1), ValueError, "bounds must be .* low < high"),
        (VALID, (1, 0), ValueError, "bounds must be .* low < high"),
        (VALID, (0, np.nan), ValueError, r"bounds\[1\] must be a finite number"),
        (VALID, 1.0, TypeError, "bounds must be a pair"),
        (VALID + 0.6, (0, 1), ValueError, "x must lie in 0 .. 1, got values from 1.1"),
        (VALID - 0.6, (0, 1), ValueError, "x must lie in 0 .. 1"),
    ],
)
def test_invalid_boxes_raise(x, bounds, error, message):
    with pytest.raises(error, match=message):
        norms.l2.project_in_box(VALID, x, 0.5, bounds)


@pytest.mark.parametrize(
    ("shape", "error"),
    [((), ValueError), ((0, 3), ValueError), ((2, -1), ValueError), ((2, 1.5), TypeError)],
)
def test_invalid_sample_shapes_raise(shape, error):
    with pytest.raises(error, match="shape"):
        norms.l2.sample(jax.random.key(0), shape, 0.5)


def test_an_integer_dtype_raises():
    with pytest.raises(TypeError, match="dtype must be a float dtype, got int32"):
        norms.l2.sample(jax.random.key(0), (2, 3), 0.5, np.int32)


def test_under_jit_shapes_are_checked_and_values_are_not():
    with pytest.raises(ValueError, match="epsilon must"):
        jax.jit(norms.l2.project)(VALID, np.ones(3, np.float32))
    assert np.isnan(jax.jit(norms.l2.length)(np.full((1, 2), np.nan))).all()
