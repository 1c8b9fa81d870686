"""Objectives: what they score, how they compose, and what they refuse."""

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


def score(objective, x=X):
    """The score of each image by its own part."""
    values = vis.read_units(program, objective.requests)(x)[1]
    return np.asarray(objective.score(values, objective.data))


def test_logit_is_an_output():
    np.testing.assert_allclose(
        score(vis.logit([0, 1, 0])), np.asarray(program(X))[[0, 1, 2], [0, 1, 0]], rtol=1e-6
    )


def test_channel_is_a_mean_over_positions():
    np.testing.assert_allclose(
        score(vis.channel("h", [1, 0, 1])),
        2 * np.asarray(X).mean((1, 2))[[0, 1, 2], [1, 0, 1]],
        rtol=1e-5,
    )


def test_unit_is_the_middle_or_the_position_given():
    np.testing.assert_allclose(
        score(vis.unit("h", [1, 0, 1])), 2 * np.asarray(X)[[0, 1, 2], 2, 2, [1, 0, 1]], rtol=1e-6
    )
    np.testing.assert_allclose(
        score(vis.unit("h", [1, 0, 1], (3, 0))),
        2 * np.asarray(X)[[0, 1, 2], 3, 0, [1, 0, 1]],
        rtol=1e-6,
    )


def test_unit_of_a_vector_has_no_position():
    np.testing.assert_allclose(
        score(vis.unit("flat", [1, 0, 1])), np.asarray(program(X))[[0, 1, 2], [1, 0, 1]], rtol=1e-6
    )


def test_direction_is_an_inner_product():
    vector = jnp.array([1.0, -3.0])
    expected = (2 * np.asarray(X) @ np.asarray(vector)).mean((1, 2))
    np.testing.assert_allclose(
        score(vis.direction("h", jnp.tile(vector, (3, 1)))), expected, rtol=2e-5
    )


def test_a_direction_with_a_cosine_prefers_the_direction_to_the_length():
    vector, straight, long = jnp.array([[1.0, 0.0]]), jnp.array([1.0, 0.0]), jnp.array([1.2, 3.0])
    of = lambda h, power: float(
        score(vis.direction("h", vector, cosine=power), jnp.broadcast_to(h, (1, 4, 5, 2)))[0]
    )
    assert of(long, 0) > of(straight, 0)
    assert of(long, 2) < of(straight, 2)


def test_deep_dream_is_a_mean_square():
    np.testing.assert_allclose(
        score(vis.deep_dream("h").take([0] * 3)), 4 * np.square(X).mean((1, 2, 3)), rtol=1e-6
    )


def test_inversion_is_zero_at_its_target_and_minus_one_at_nothing():
    target = 2 * X
    np.testing.assert_allclose(score(vis.inversion("h", target)), 0, atol=1e-12)
    np.testing.assert_allclose(score(vis.inversion("h", target), jnp.zeros_like(X)), -1, rtol=1e-6)


def test_caricature_grows_with_the_activation_along_the_target():
    target = 2 * X
    lengths = np.sqrt(np.square(target).sum((1, 2, 3)))
    np.testing.assert_allclose(score(vis.caricature("h", target)), lengths, rtol=1e-5)
    np.testing.assert_allclose(score(vis.caricature("h", target), 3 * X), 3 * lengths, rtol=1e-5)


def test_diversity_is_least_where_all_images_are_alike():
    alike = score(vis.diversity("h").take([0] * 3), jnp.broadcast_to(X[:1], X.shape))
    np.testing.assert_allclose(alike, -1, rtol=1e-5)
    assert (score(vis.diversity("h").take([0] * 3)) > alike).all()


def test_alignment_looks_at_neighbours():
    line = jnp.arange(3.0)[:, None, None, None] * jnp.ones((3, 4, 5, 2))
    np.testing.assert_allclose(score(vis.alignment("h").take([0] * 3), line), -4, rtol=1e-6)
    # Only the first differs from its neighbour: it and, by half, the second.
    step = line.at[1:].set(5.0)
    np.testing.assert_allclose(
        score(vis.alignment("h").take([0] * 3), step), [-100, -50, 0], rtol=1e-6
    )


def test_a_minus_b_is_a_minus_b():
    a, b = vis.channel("h", [0, 1, 0]), vis.logit(1)
    alone = score(a), score(b.take([0] * 3))
    np.testing.assert_allclose(score(a - b), alone[0] - alone[1], rtol=1e-6)
    np.testing.assert_allclose(score(a + b), alone[0] + alone[1], rtol=1e-6)
    np.testing.assert_allclose(score(a * b), alone[0] * alone[1], rtol=1e-6)
    np.testing.assert_allclose(score(-a), -alone[0], rtol=1e-6)
    np.testing.assert_allclose(score(2 - a * 3 + 1), 3 - 3 * alone[0], rtol=1e-5)
    # The operands are what they were.
    np.testing.assert_allclose(score(a), alone[0])


def test_numbers_for_each_image():
    a = vis.channel("h", [0, 1, 0])
    np.testing.assert_allclose(
        score(a * jnp.array([1.0, 2.0, 3.0])), score(a) * [1, 2, 3], rtol=1e-6
    )
    np.testing.assert_allclose(
        score(np.array([1.0, 2.0, 3.0]) * a), score(a) * [1, 2, 3], rtol=1e-6
    )
    assert len(vis.logit(0) * jnp.ones(4)) == 4


def test_interpolation_goes_from_one_to_the_other():
    between = vis.interpolate(vis.logit(0), vis.logit(1), 3)
    same = jnp.broadcast_to(X[:1], X.shape)
    first, last = np.asarray(program(X))[0]
    np.testing.assert_allclose(score(between, same), [first, (first + last) / 2, last], rtol=1e-5)


def test_custom_gets_whole_values():
    objective = vis.custom(lambda h, flat: h.max((1, 2, 3)) - flat[:, 0], "h", "flat")
    expected = 2 * np.asarray(X).max((1, 2, 3)) - np.asarray(program(X))[:, 0]
    np.testing.assert_allclose(score(objective.take([0] * 3)), expected, rtol=1e-6)


def test_names_come_back_in_the_order_of_the_ids():
    assert vis.channel("h", np.array([7, 3])).names == ("h[7]", "h[3]")


def test_sizes_of_objectives():
    assert len(vis.logit(range(5)) + vis.deep_dream("h")) == 5
    assert len(vis.logit(1)) == 1


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
def test_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()
