"""Descent on images: closed forms, invariants of batches and keys, one compile, and what is refused."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffprog as dp

vis = dp.visualization

KEY = jax.random.key(0)
W = jax.random.normal(jax.random.key(1), (3, 12))
SHAPE = (2, 3, 2)


def linear(x):
    return x.reshape(len(x), -1) @ W.T


def network():
    model = dp.models.cnn((8, 8, 1), channels=(4, 6), hidden=(8,))
    return dp.program(model.apply, model.init(jax.random.key(2)))


def free(**options):
    return vis.pixels(SHAPE, range=(-jnp.inf, jnp.inf), **options)


def test_linear_unit_with_l2_penalty_ends_at_w_over_two_lambda():
    seen = vis.visualize(
        linear,
        vis.logit([0, 2]),
        free(),
        key=KEY,
        steps=400,
        penalties={vis.l2: 0.5},
        optimizer=optax.sgd(0.3),
    )
    np.testing.assert_allclose(seen.images.reshape(2, -1), W[jnp.array([0, 2])], rtol=1e-5)


def test_linear_unit_in_a_ball_ends_at_r_w_over_length():
    ball = lambda x: x * jnp.minimum(1, 0.7 / jnp.linalg.norm(x))
    seen = vis.visualize(
        linear, vis.logit(1), free(project=ball), key=KEY, steps=300, optimizer=optax.sgd(0.5)
    )
    np.testing.assert_allclose(
        seen.images.ravel(), 0.7 * W[1] / jnp.linalg.norm(W[1]), rtol=1e-4, atol=1e-5
    )


def test_linear_unit_in_a_box_ends_in_its_corner():
    seen = vis.visualize(
        linear, vis.logit([0, 1]), vis.pixels(SHAPE, range=(-1, 2)), key=KEY, steps=200
    )
    np.testing.assert_array_equal(
        seen.images.reshape(2, -1), np.where(np.asarray(W[:2]) > 0, 2.0, -1.0)
    )


def test_quadratic_on_the_sphere_ends_at_the_top_eigenvector():
    a = W.T @ W
    quadratic = lambda x: jnp.einsum(
        "bi,ij,bj->b", x.reshape(len(x), -1), a, x.reshape(len(x), -1)
    )[:, None]
    sphere = free(project=lambda x: x / jnp.linalg.norm(x))
    seen = vis.visualize(
        quadratic, vis.logit(0), sphere, key=KEY, steps=500, optimizer=optax.sgd(0.05)
    )
    values, vectors = np.linalg.eigh(np.asarray(a))
    np.testing.assert_allclose(abs(np.asarray(seen.images).ravel() @ vectors[:, -1]), 1, rtol=1e-5)
    np.testing.assert_allclose(seen.scores, values[-1], rtol=1e-5)


def test_a_difference_of_objectives_goes_up_one_and_down_the_other():
    seen = vis.visualize(linear, vis.logit(0) - vis.logit(1), vis.pixels(SHAPE), key=KEY, steps=200)
    np.testing.assert_array_equal(seen.images.ravel(), np.asarray(W[0] > W[1], np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("transforms", [(), (vis.jitter(1), vis.noise(0.1))])
def test_batched_equals_one_by_one(transforms):
    f, options = network(), {"key": KEY, "steps": 12, "transforms": transforms}
    together, alone = (
        vis.visualize(
            f, vis.channel("conv2", [0, 3, 5]), vis.fourier((8, 8, 1)), batch_size=n, **options
        )
        for n in (3, 1)
    )
    np.testing.assert_allclose(together.images, alone.images, atol=1e-5)
    two = vis.visualize(
        f, vis.channel("conv2", [0, 3, 5]), vis.fourier((8, 8, 1)), batch_size=2, **options
    )
    np.testing.assert_allclose(together.images, two.images, atol=1e-5)
    assert two.names == ("conv2[0]", "conv2[3]", "conv2[5]")


def test_same_key_same_bits_other_key_other_bits():
    f, of = network(), vis.channel("conv2", [0, 1])
    make = lambda key: (
        vis.visualize(
            f, of, vis.pixels((8, 8, 1)), key=key, steps=5, transforms=vis.default_transforms()
        ).images
    )
    np.testing.assert_array_equal(make(KEY), make(KEY))
    assert (make(KEY) != make(jax.random.key(9))).any()


@pytest.mark.slow
def test_every_image_has_its_own_draws():
    seen = vis.visualize(
        network(),
        vis.channel("conv2", [2, 2]),
        vis.pixels((8, 8, 1)),
        key=KEY,
        steps=3,
        transforms=[vis.noise(0.3)],
    )
    assert (seen.history[:, 0] != seen.history[:, 1]).all()


def test_slicing_changes_rounding_only():
    f, of = network(), vis.channel("conv2", [0, 3, 5])
    sliced, whole = (
        vis.visualize(f, of, vis.fourier((8, 8, 1)), key=KEY, steps=10, slicing=s).images
        for s in (True, False)
    )
    np.testing.assert_allclose(sliced, whole, atol=2e-5)


@pytest.mark.slow
def test_other_units_other_weights_and_other_keys_compile_nothing(caplog):
    def go(seed, units, steps):
        model = dp.models.cnn((8, 8, 1), channels=(4, 6), hidden=(8,))
        f = dp.program(model.apply, model.init(jax.random.key(seed)))
        image = vis.covariance(jax.random.uniform(jax.random.key(seed), (90, 8, 8, 1)))
        objective = vis.channel("conv2", units) - 0.5 * vis.logit([seed])
        vis.visualize(
            f,
            objective,
            image,
            key=jax.random.key(seed),
            steps=steps,
            transforms=[vis.jitter(1)],
            data=jnp.ones((3, 8, 8, 1)),
        )

    go(0, [1, 2], 4)
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        go(1, [5, 0], 9)
    assert not [record for record in caplog.records if "Compiling" in record.message]


def test_history_and_scores():
    seen = vis.visualize(linear, vis.logit([0, 1]), vis.pixels(SHAPE), key=KEY, steps=7)
    assert seen.history.shape == (7, 2)
    np.testing.assert_allclose(
        seen.scores, np.asarray(linear(seen.images))[[0, 1], [0, 1]], rtol=1e-6
    )
    assert (seen.history[-1] > seen.history[0]).all()
    assert seen.endings == ("steps", "steps")


def test_percentiles_rank_against_real_data():
    data = jax.random.uniform(jax.random.key(3), (50, *SHAPE))
    seen = vis.visualize(
        linear,
        vis.logit([0, 1]),
        vis.pixels(SHAPE),
        key=KEY,
        steps=1,
        optimizer=optax.sgd(0.0),
        data=data,
    )
    expected = [100 * (np.asarray(linear(data))[:, j] < seen.scores[j]).mean() for j in (0, 1)]
    np.testing.assert_allclose(seen.percentiles, expected)
    assert "% of the data" in str(seen)


@pytest.mark.slow
def test_starts_from_given_images():
    start = jax.random.uniform(jax.random.key(4), SHAPE)
    still = optax.sgd(0.0)
    one = vis.visualize(
        linear, vis.logit([0, 1]), vis.pixels(SHAPE), key=KEY, steps=1, optimizer=still, start=start
    )
    np.testing.assert_array_equal(one.images, jnp.stack([start, start]))
    each = vis.visualize(
        linear,
        vis.logit([0, 1]),
        vis.fourier(SHAPE),
        key=KEY,
        steps=1,
        optimizer=still,
        start=jnp.stack([start, 1 - start]),
    )
    np.testing.assert_allclose(each.images, jnp.stack([start, 1 - start]), atol=1e-4)


def test_stops_on_a_plateau():
    seen = vis.visualize(linear, vis.logit(0), vis.pixels(SHAPE), key=KEY, steps=500, plateau=20)
    assert seen.endings == ("plateau",)
    assert len(seen.history) < 200
    np.testing.assert_array_equal(seen.images.ravel(), np.asarray(W[0] > 0, np.float32))


def test_a_cost_that_ends_in_nan_says_so():
    broken = lambda x: jnp.log(0.6 - x.reshape(len(x), -1))
    seen = vis.visualize(broken, -vis.logit(0), vis.pixels(SHAPE), key=KEY, steps=100)
    assert seen.endings == ("nonfinite",)
    assert np.isfinite(seen.images).all()
    assert "nonfinite" in str(seen)


def test_an_image_that_ends_in_nan_takes_no_other_with_it():
    both = lambda x: jnp.stack([linear(x)[:, 0], jnp.log(0.6 - x[:, 0, 0, 0])], 1)
    see = functools.partial(vis.visualize, both, image=vis.pixels(SHAPE), steps=60)
    seen = see(vis.logit([0, 1]) * jnp.array([1.0, -1.0]), key=KEY)
    alone = see(vis.logit(0), key=KEY)
    assert seen.endings == ("steps", "nonfinite")
    np.testing.assert_allclose(seen.images[0], alone.images[0], atol=1e-6)
    np.testing.assert_allclose(seen.history[:, 0], alone.history[:, 0], rtol=1e-6)
    last = np.isfinite(seen.history[:, 1]).sum()
    assert 0 < last < 60
    assert np.isnan(seen.history[last:, 1]).all()
    assert np.isfinite(seen.images).all()
    assert np.isfinite(seen.scores).all()


def test_an_image_stops_on_its_own_plateau():
    narrow = lambda x: jnp.stack([linear(x)[:, 0], x[:, 0, 0, 0] * 1e-3], 1)
    see = functools.partial(
        vis.visualize,
        narrow,
        image=vis.pixels(SHAPE),
        steps=300,
        plateau=20,
        optimizer=optax.sgd(0.05),
    )
    seen, alone = see(vis.logit([0, 1]), key=KEY), see(vis.logit(0), key=KEY)
    assert seen.endings == ("plateau", "steps")
    np.testing.assert_allclose(seen.images[0], alone.images[0], atol=1e-6)


def test_another_weight_of_a_penalty_compiles_nothing(caplog):
    see = lambda weight: vis.visualize(
        linear, vis.logit(0), vis.pixels(SHAPE), key=KEY, steps=3, penalties={vis.l2: weight}
    )
    first = see(0.1)
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        other, same = see(0.2), see(jnp.float32(0.1))
    assert not [record for record in caplog.records if "Compiling" in record.message]
    np.testing.assert_array_equal(first.images, same.images)
    assert np.abs(other.images - first.images).max() > 0


def test_straight_through_reaches_a_unit_that_is_switched_off():
    off = lambda x: jax.nn.relu(linear(x) - 100)
    off_then_on = lambda x: jax.nn.relu(linear(x) - 1)
    options = {"key": KEY, "steps": 60, "start": jnp.zeros(SHAPE)}
    stuck = vis.visualize(off_then_on, vis.logit(0), vis.pixels(SHAPE), **options)
    np.testing.assert_array_equal(stuck.images, 0)
    moved = vis.visualize(
        off_then_on, vis.logit(0), vis.pixels(SHAPE), straight_through=30, **options
    )
    np.testing.assert_array_equal(moved.images.ravel(), np.asarray(W[0] > 0, np.float32))
    through = vis.visualize(off, vis.logit(0), vis.pixels(SHAPE), straight_through=60, **options)
    np.testing.assert_array_equal(through.images.ravel(), np.asarray(W[0] > 0, np.float32))


def test_a_plain_function_of_the_output_is_an_objective():
    seen = vis.visualize(
        linear, lambda logits: logits[:, 0] - logits[:, 1], vis.pixels(SHAPE), key=KEY, steps=200
    )
    np.testing.assert_array_equal(seen.images.ravel(), np.asarray(W[0] > W[1], np.float32))


@pytest.mark.slow
def test_a_flax_model_without_taps():
    import flax.linen

    class Net(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x):
            x = jax.nn.relu(flax.linen.Conv(4, (3, 3))(x))
            return flax.linen.Dense(3)(x.reshape(len(x), -1))

    net = Net()
    f = dp.program(net.apply, net.init(KEY, jnp.zeros((1, 6, 6, 1))))
    seen = vis.visualize(f, vis.channel("conv:0", [0, 3]), vis.pixels((6, 6, 1)), key=KEY, steps=20)
    assert (seen.scores > seen.history[0]).all()


@pytest.mark.slow
def test_transforms_that_change_the_size():
    f = network()
    seen = vis.visualize(
        f, vis.logit([0, 1]), vis.pixels((12, 12, 1)), key=KEY, steps=3, transforms=[vis.crop(8)]
    )
    assert seen.images.shape == (2, 12, 12, 1)


def test_several_penalties_and_one_that_holds_an_array():
    near = jnp.full(SHAPE, 0.25)
    penalties = {vis.to_reference(near): 50.0, vis.l1: 1e-3, vis.of_variable(vis.l2): 1e-3}
    seen = vis.visualize(linear, vis.logit(0), free(), key=KEY, steps=300, penalties=penalties)
    # The most of w·x - 50 |x - r|² - 0.001 (|x|_1 + |x|²), where x > 0.
    w = np.asarray(W[0])
    np.testing.assert_allclose(seen.images.ravel(), (w - 1e-3 + 25) / (2 * 50.001), rtol=1e-3)


@pytest.mark.slow
def test_alpha_is_where_the_objective_looks():
    half = lambda x: (x[:, :2] ** 2).sum((1, 2))
    images = jax.random.uniform(KEY, (1, 4, 4, 1), minval=0.2)
    alpha = vis.alpha_map(half, vis.logit(0), images, key=KEY)
    np.testing.assert_allclose(alpha[0, :2], images[0, :2, :, 0] / images[0, :2].max(), rtol=1e-5)
    np.testing.assert_array_equal(alpha[0, 2:], 0)
    moved = vis.alpha_map(half, vis.logit(0), images, key=KEY, transforms=[vis.jitter(1)], draws=64)
    assert (moved[0, 2] > 0).any()
    with pytest.raises(ValueError, match="images must be one for each"):
        vis.alpha_map(half, vis.logit([0, 0]), images, key=KEY)
    with pytest.raises(ValueError, match="draws"):
        vis.alpha_map(half, vis.logit(0), images, key=KEY, draws=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"objective": vis.channel("nowhere", 0)}, ValueError, "nowhere.*conv1"),
        ({"objective": vis.channel("conv2", [0, 6])}, ValueError, "units 0 .. 5, got 6"),
        ({"objective": vis.logit(10)}, ValueError, "units 0 .. 9, got 10"),
        ({"objective": vis.unit("conv2", 0, (9, 0))}, ValueError, "position"),
        ({"objective": vis.unit("conv2", 0, (1,))}, ValueError, "position"),
        ({"objective": 3}, TypeError, "objective must be one Objective.* got int"),
        ({"objective": []}, TypeError, "objective must be one Objective.* got an empty list"),
        (
            {"objective": [vis.logit(1), vis.logit(2)]},
            TypeError,
            "objective must be one Objective.* got a list",
        ),
        (
            {"objective": vis.direction("conv2", jnp.ones(1))},
            ValueError,
            "vector must have one number for each of the 6 units",
        ),
        ({"objective": lambda logits: logits}, ValueError, "one for each image"),
        ({"objective": vis.inversion("conv2", jnp.ones((1, 2, 2, 6)))}, ValueError, "shape"),
        ({"image": (8, 8, 1)}, TypeError, "image must be an Image"),
        ({"image": vis.pixels((8, 8, 3))}, ValueError, "8, 8, 1"),
        ({"key": 0}, TypeError, "key"),
        ({"steps": 0}, ValueError, "steps"),
        ({"steps": 2.0}, TypeError, "steps"),
        ({"transforms": vis.jitter(1)}, TypeError, "put it in a list"),
        ({"transforms": [vis.crop(9)]}, ValueError, "9"),
        ({"transforms": [3]}, TypeError, "transforms"),
        ({"transforms": None}, TypeError, "transforms"),
        ({"penalties": [vis.l2]}, TypeError, "penalties"),
        ({"penalties": {vis.l2: "a"}}, TypeError, "weight"),
        ({"penalties": {(lambda image: image): 1.0}}, ValueError, "scalar"),
        ({"optimizer": 0.1}, TypeError, "optimizer"),
        ({"start": jnp.zeros((7, 8, 1))}, ValueError, "start"),
        ({"start": jnp.full((8, 8, 1), jnp.nan)}, ValueError, "start"),
        ({"start": jnp.full((8, 8, 1), 1.5)}, ValueError, "start"),
        ({"start": jnp.zeros((3, 8, 8, 1))}, ValueError, "start"),
        ({"data": jnp.zeros((8, 8, 1))}, ValueError, "data"),
        ({"data": jnp.full((2, 8, 8, 1), jnp.nan)}, ValueError, "data"),
        ({"data": jnp.zeros((2, 8, 8, 3))}, ValueError, "data must be images as f sees them"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"plateau": 0}, ValueError, "plateau"),
        ({"straight_through": -1}, ValueError, "straight_through"),
        ({"slicing": "no"}, TypeError, "slicing"),
    ],
)
def test_refuses(options, error, message):
    given = {
        "objective": vis.logit([0, 1]),
        "image": vis.pixels((8, 8, 1)),
        "key": KEY,
        "steps": 2,
    } | options
    with pytest.raises(error, match=message):
        vis.visualize(network(), given.pop("objective"), given.pop("image"), **given)
