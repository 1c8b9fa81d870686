"""Objectives: a protocol that all of them follow, their formulas, composition, and errors."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp

vis = dp.visualization

X = jax.random.normal(jax.random.key(0), (3, 4, 5, 2))


def program(x):
    h = dp.tap(x * 2, "h")
    return dp.tap(h.mean((1, 2)), "flat")


def brightest(node, units):
    """An objective of a user, with a unit and a number for each image."""
    units = jnp.asarray(units)
    return vis.Objective(
        (vis.Request(node, units),),
        jnp.linspace(1, 2, len(units)),
        lambda values, scale: scale * values[0].max((1, 2)),
        tuple(f"brightest {unit}" for unit in units),
    )


# name -> node -> objective of 1 or 3 images. Every exported objective has a row.
OBJECTIVES = {
    "logit": lambda node: vis.logit([0, 1, 0]),
    "unit": lambda node: vis.unit(node, [0, 1, 0]),
    "unit at a position": lambda node: vis.unit(node, [0, 1, 0], (3, 0)),
    "channel": lambda node: vis.channel(node, [0, 1, 0]),
    "direction": lambda node: vis.direction(node, jnp.array([[1.0, -2], [0, 1], [1, 1]])),
    "direction with cosine": lambda node: vis.direction(node, jnp.ones(2), cosine=2),
    "deep_dream": lambda node: vis.deep_dream(node),
    "inversion": lambda node: vis.inversion(node, 1 + X),
    "caricature": lambda node: vis.caricature(node, 1 + X),
    "diversity": lambda node: vis.diversity(node),
    "alignment": lambda node: vis.alignment(node),
    "interpolate": lambda node: vis.interpolate(vis.channel(node, 0), vis.logit(1), 3),
    "custom": lambda node: vis.custom(lambda h: h.var((1, 2, 3)), node),
    "custom of the output": lambda node: vis.custom(lambda y: y[:, 0] * y[:, 1]),
    "a user's own": lambda node: brightest(node, [0, 1, 0]),
}
RELATE_IMAGES = ("diversity", "alignment")
READ_THE_OUTPUT = ("logit", "custom of the output")
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def batch_of_three(name):
    objective = OBJECTIVES[name]("h")
    return objective if len(objective) == 3 else objective.take([0] * 3)


def score(objective, x=X):
    """Return the score of each image by its own part of the objective."""
    values = vis.read_units(program, objective.requests)(x)[1]
    return objective.score(values, objective.data)


def test_every_exported_objective_has_a_row():
    exported = {
        name
        for name in vis.__all__
        if inspect.isfunction(function := getattr(vis, name))
        and inspect.signature(function).return_annotation is vis.Objective
    }
    assert "logit" in exported
    assert exported <= set(OBJECTIVES)


@every_objective
def test_one_name_and_one_finite_score_per_image(name):
    objective = batch_of_three(name)
    assert len(objective) == len(objective.names) == 3
    assert all(isinstance(name, str) and name for name in objective.names)
    scores = score(objective)
    assert scores.shape == (3,)
    assert scores.dtype == X.dtype
    assert np.isfinite(scores).all()


@pytest.mark.slow
@every_objective
def test_jit_equals_eager(name):
    objective = batch_of_three(name)
    compiled = jax.jit(lambda x: score(objective, x))(X)
    np.testing.assert_allclose(compiled, score(objective), rtol=2e-5, atol=1e-6)


@every_objective
def test_the_gradient_is_finite_also_at_zero_and_on_equal_images(name):
    objective = batch_of_three(name)
    gradient = jax.jit(jax.grad(lambda x: score(objective, x).sum()))
    for x in (X, jnp.zeros_like(X), jnp.ones_like(X)):
        assert np.isfinite(gradient(x)).all()


@every_objective
def test_take_selects_the_objectives_of_images(name):
    objective, order = batch_of_three(name), np.array([2, 0, 1])
    taken = objective.take(order)
    assert taken.names == tuple(objective.names[k] for k in order)
    if name not in RELATE_IMAGES:
        np.testing.assert_allclose(score(taken, X[order]), score(objective)[order], rtol=1e-5)


@every_objective
def test_composes_with_objectives_and_numbers(name):
    a, b = batch_of_three(name), vis.logit(1)
    score_a, score_b = score(a), score(b.take([0] * 3))
    composed = 2 - a * 3 + b * a - jnp.array([1.0, 2.0, 3.0]) * b
    expected = 2 - score_a * 3 + score_b * score_a - jnp.array([1.0, 2.0, 3.0]) * score_b
    np.testing.assert_allclose(score(composed), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(score(-a), -score_a)
    assert len(composed.names) == 3


@every_objective
def test_rejects_unknown_nodes(name):
    if name not in READ_THE_OUTPUT:
        with pytest.raises(ValueError, match="'nowhere' is unknown, expected one of 'h'"):
            vis.visualize(
                program, OBJECTIVES[name]("nowhere"), vis.pixels((4, 5, 2)), key=jax.random.key(0)
            )


@pytest.mark.slow
@every_objective
def test_visualize_increases_the_objective(name):
    result = vis.visualize(
        program, OBJECTIVES[name]("h"), vis.pixels((4, 5, 2)), key=jax.random.key(0), steps=30
    )
    assert (result.scores >= result.history[0]).all()


def test_logit_is_an_output():
    np.testing.assert_allclose(
        score(vis.logit([0, 1, 0])), program(X)[[0, 1, 2], [0, 1, 0]], rtol=1e-6
    )


def test_channel_is_a_mean_over_positions():
    np.testing.assert_allclose(
        score(vis.channel("h", [1, 0, 1])), 2 * X.mean((1, 2))[[0, 1, 2], [1, 0, 1]], rtol=1e-5
    )


def test_unit_is_in_the_middle_or_at_the_position():
    in_the_middle, at_a_position = vis.unit("h", [1, 0, 1]), vis.unit("h", [1, 0, 1], (3, 0))
    images, units = [0, 1, 2], [1, 0, 1]
    np.testing.assert_allclose(score(in_the_middle), 2 * X[images, 2, 2, units], rtol=1e-6)
    np.testing.assert_allclose(score(at_a_position), 2 * X[images, 3, 0, units], rtol=1e-6)


def test_unit_of_a_vector_has_no_position():
    np.testing.assert_allclose(
        score(vis.unit("flat", [1, 0, 1])), program(X)[[0, 1, 2], [1, 0, 1]], rtol=1e-6
    )


def test_direction_is_an_inner_product():
    vector = jnp.array([1.0, -3.0])
    expected = (2 * np.asarray(X) @ np.asarray(vector)).mean((1, 2))
    np.testing.assert_allclose(
        score(vis.direction("h", jnp.tile(vector, (3, 1)))), expected, rtol=2e-5
    )


def test_a_cosine_makes_the_direction_matter_more_than_the_length():
    vector, aligned, long = jnp.array([[1.0, 0.0]]), jnp.array([1.0, 0.0]), jnp.array([1.2, 3.0])

    def of(h, cosine):
        objective = vis.direction("h", vector, cosine=cosine)
        return float(score(objective, jnp.broadcast_to(h, (1, 4, 5, 2)))[0])

    assert of(long, 0) > of(aligned, 0)
    assert of(long, 2) < of(aligned, 2)


def test_a_power_of_the_cosine_multiplies_the_products_whose_cosine_is_positive():
    h, vector = 2 * np.asarray(X), np.array([1.0, -3.0], np.float32)
    product = h @ vector
    cosine = product / np.linalg.norm(h, axis=-1) / np.linalg.norm(vector)
    expected = np.where(cosine > 0, product * np.abs(cosine) ** 1.5, product).mean((1, 2))
    objective = vis.direction("h", np.tile(vector, (3, 1)), cosine=1.5)
    np.testing.assert_allclose(score(objective), expected, rtol=1e-4)


def test_deep_dream_is_a_mean_square():
    np.testing.assert_allclose(
        score(vis.deep_dream("h").take([0] * 3)), 4 * np.square(X).mean((1, 2, 3)), rtol=1e-6
    )


def test_inversion_is_zero_at_the_target_and_minus_one_at_zero():
    target = 2 * X
    np.testing.assert_allclose(score(vis.inversion("h", target)), 0, atol=1e-12)
    np.testing.assert_allclose(score(vis.inversion("h", target), jnp.zeros_like(X)), -1, rtol=1e-6)


def test_caricature_grows_with_the_activation_along_the_target():
    target = 2 * X
    norms = np.sqrt(np.square(target).sum((1, 2, 3)))
    np.testing.assert_allclose(score(vis.caricature("h", target)), norms, rtol=1e-5)
    np.testing.assert_allclose(score(vis.caricature("h", target), 3 * X), 3 * norms, rtol=1e-5)
    np.testing.assert_allclose(score(vis.caricature("h", target), -X), -norms, rtol=1e-5)


def test_diversity_is_least_for_equal_images():
    equal = score(vis.diversity("h").take([0] * 3), jnp.broadcast_to(X[:1], X.shape))
    np.testing.assert_allclose(equal, -1, rtol=1e-5)
    assert (score(vis.diversity("h").take([0] * 3)) > equal).all()


def test_alignment_compares_neighbours():
    ramp = jnp.arange(3.0)[:, None, None, None] * jnp.ones((3, 4, 5, 2))
    np.testing.assert_allclose(score(vis.alignment("h").take([0] * 3), ramp), -4, rtol=1e-6)
    # Only the first two images differ; the second has another neighbour equal to it.
    step = ramp.at[1:].set(5.0)
    np.testing.assert_allclose(
        score(vis.alignment("h").take([0] * 3), step), [-100, -50, 0], rtol=1e-6
    )


def test_one_image_composes_with_one_number_per_image():
    assert len(vis.logit(0) * jnp.ones(4)) == 4


def test_interpolation_is_linear_between_the_objectives():
    objective = vis.interpolate(vis.logit(0), vis.logit(1), 3)
    first, last = np.asarray(program(X))[0]
    got = score(objective, jnp.broadcast_to(X[:1], X.shape))
    np.testing.assert_allclose(got, [first, (first + last) / 2, last], rtol=1e-5)


def test_custom_reads_whole_nodes():
    objective = vis.custom(lambda h, flat: h.max((1, 2, 3)) - flat[:, 0], "h", "flat")
    expected = 2 * np.asarray(X).max((1, 2, 3)) - np.asarray(program(X))[:, 0]
    np.testing.assert_allclose(score(objective.take([0] * 3)), expected, rtol=1e-6)


def test_a_users_objective_is_visualized_and_evaluated():
    objective = brightest("h", [1, 0])
    result = vis.visualize(
        program, objective, vis.pixels((4, 5, 2)), key=jax.random.key(0), steps=100
    )
    np.testing.assert_allclose(result.scores, [2, 4], rtol=1e-6)
    assert result.names == ("brightest 1", "brightest 0")
    expected = 2 * np.asarray(X).max((1, 2))[:, [1, 0]].T * np.array([[1], [2]])
    np.testing.assert_allclose(vis.scores(program, objective, X), expected, rtol=1e-6)


def test_names_are_in_the_order_of_the_units():
    assert vis.channel("h", np.array([7, 3])).names == ("h[7]", "h[3]")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: vis.logit([]), ValueError, "unit must hold at least one"),
        (lambda: vis.logit(-1), ValueError, "unit"),
        (lambda: vis.logit(1.5), TypeError, "unit"),
        (lambda: vis.logit(True), TypeError, "unit"),
        (lambda: vis.logit("3"), TypeError, "unit"),
        (lambda: vis.channel("", 0), TypeError, "node"),
        (lambda: vis.channel(3, 0), TypeError, "node"),
        (lambda: vis.unit("h", 0, position=(-1, 0)), ValueError, "position"),
        (lambda: vis.direction("h", jnp.array([1.0, jnp.nan])), ValueError, "vector"),
        (lambda: vis.direction("h", jnp.array([1, 2])), TypeError, "vector"),
        (lambda: vis.direction("h", jnp.ones(2), cosine=-1), ValueError, "cosine"),
        (lambda: vis.inversion("h", jnp.full((1, 2), jnp.inf)), ValueError, "target"),
        (lambda: vis.caricature("h", jnp.zeros((0, 2))), ValueError, "target"),
        (
            lambda: vis.interpolate(vis.logit([1, 2]), vis.logit(3), 4),
            ValueError,
            "a must be an objective of one image",
        ),
        (lambda: vis.interpolate(vis.logit(1), vis.logit(3), 1), ValueError, "images"),
        (lambda: vis.custom(3), TypeError, "score"),
        (lambda: vis.logit([1, 2]) + vis.logit([1, 2, 3]), ValueError, "2 and 3 images"),
        (lambda: vis.logit([1, 2]) * jnp.ones(3), ValueError, "2 images"),
        (lambda: vis.logit(1) * "a", TypeError, "operand"),
        (lambda: vis.logit(1) + jnp.nan, ValueError, "operand"),
    ],
)
def test_rejects_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
