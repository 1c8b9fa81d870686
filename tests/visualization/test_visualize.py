"""`visualize`: closed forms, invariance to batches, randomness by key, compilation, errors."""

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


def unbounded(**options):
    return vis.pixels(SHAPE, range=(-jnp.inf, jnp.inf), **options)


def test_linear_unit_with_l2_is_maximal_at_w_over_two_lambda():
    result = vis.visualize(
        linear,
        vis.logit([0, 2]),
        unbounded(),
        key=KEY,
        steps=400,
        penalties={vis.l2: 0.5},
        optimizer=optax.sgd(0.3),
    )
    np.testing.assert_allclose(result.images.reshape(2, -1), W[jnp.array([0, 2])], rtol=1e-5)


def test_linear_unit_in_a_ball_is_maximal_at_radius_times_unit_w():
    ball = lambda x: x * jnp.minimum(1, 0.7 / jnp.linalg.norm(x))
    result = vis.visualize(
        linear, vis.logit(1), unbounded(project=ball), key=KEY, steps=300, optimizer=optax.sgd(0.5)
    )
    np.testing.assert_allclose(
        result.images.ravel(), 0.7 * W[1] / jnp.linalg.norm(W[1]), rtol=1e-4, atol=1e-5
    )


def test_linear_unit_in_a_box_is_maximal_at_a_corner():
    result = vis.visualize(
        linear, vis.logit([0, 1]), vis.pixels(SHAPE, range=(-1, 2)), key=KEY, steps=200
    )
    np.testing.assert_array_equal(
        result.images.reshape(2, -1), np.where(np.asarray(W[:2]) > 0, 2.0, -1.0)
    )


def test_quadratic_on_the_sphere_is_maximal_at_the_top_eigenvector():
    a = W.T @ W
    quadratic = lambda x: jnp.einsum(
        "bi,ij,bj->b", x.reshape(len(x), -1), a, x.reshape(len(x), -1)
    )[:, None]
    sphere = unbounded(project=lambda x: x / jnp.linalg.norm(x))
    result = vis.visualize(
        quadratic, vis.logit(0), sphere, key=KEY, steps=500, optimizer=optax.sgd(0.05)
    )
    values, vectors = np.linalg.eigh(np.asarray(a))
    np.testing.assert_allclose(
        abs(np.asarray(result.images).ravel() @ vectors[:, -1]), 1, rtol=1e-5
    )
    np.testing.assert_allclose(result.scores, values[-1], rtol=1e-5)


def test_a_difference_of_objectives_is_maximized():
    result = vis.visualize(
        linear, vis.logit(0) - vis.logit(1), vis.pixels(SHAPE), key=KEY, steps=200
    )
    np.testing.assert_array_equal(result.images.ravel(), np.asarray(W[0] > W[1], np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("transforms", [(), (vis.jitter(1), vis.noise(0.1))])
def test_the_batch_size_does_not_change_the_images(transforms):
    f, options = network(), {"key": KEY, "steps": 12, "transforms": transforms}
    batched, alone = (
        vis.visualize(
            f, vis.channel("conv2", [0, 3, 5]), vis.fourier((8, 8, 1)), batch_size=n, **options
        )
        for n in (3, 1)
    )
    np.testing.assert_allclose(batched.images, alone.images, atol=1e-5)
    two = vis.visualize(
        f, vis.channel("conv2", [0, 3, 5]), vis.fourier((8, 8, 1)), batch_size=2, **options
    )
    np.testing.assert_allclose(batched.images, two.images, atol=1e-5)
    assert two.names == ("conv2[0]", "conv2[3]", "conv2[5]")


def test_same_key_gives_the_same_bits_and_another_key_others():
    f, of = network(), vis.channel("conv2", [0, 1])
    make = lambda key: (
        vis.visualize(
            f, of, vis.pixels((8, 8, 1)), key=key, steps=5, transforms=vis.default_transforms()
        ).images
    )
    np.testing.assert_array_equal(make(KEY), make(KEY))
    assert (make(KEY) != make(jax.random.key(9))).any()


@pytest.mark.slow
def test_every_image_has_its_own_random_transforms():
    result = vis.visualize(
        network(),
        vis.channel("conv2", [2, 2]),
        vis.pixels((8, 8, 1)),
        key=KEY,
        steps=3,
        transforms=[vis.noise(0.3)],
    )
    assert (result.history[:, 0] != result.history[:, 1]).all()


@pytest.mark.slow
def test_other_units_weights_and_keys_do_not_recompile(caplog):
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


def test_scores_are_the_objective_of_the_final_images():
    result = vis.visualize(linear, vis.logit([0, 1]), vis.pixels(SHAPE), key=KEY, steps=7)
    assert result.history.shape == (7, 2)
    np.testing.assert_allclose(
        result.scores, np.asarray(linear(result.images))[[0, 1], [0, 1]], rtol=1e-6
    )
    assert (result.history[-1] > result.history[0]).all()
    assert result.endings == ("steps", "steps")


def test_percentiles_are_ranks_among_the_data():
    data = jax.random.uniform(jax.random.key(3), (50, *SHAPE))
    result = vis.visualize(
        linear,
        vis.logit([0, 1]),
        vis.pixels(SHAPE),
        key=KEY,
        steps=1,
        optimizer=optax.sgd(0.0),
        data=data,
    )
    expected = [100 * (np.asarray(linear(data))[:, j] < result.scores[j]).mean() for j in (0, 1)]
    np.testing.assert_allclose(result.percentiles, expected)
    assert "% of the data" in str(result)


def test_data_of_the_same_score_are_not_below_an_image():
    scores_alike = lambda x: jnp.zeros((len(x), 3))
    result = vis.visualize(
        scores_alike, vis.logit([0, 1]), unbounded(), key=KEY, steps=1, data=jnp.ones((3, *SHAPE))
    )
    np.testing.assert_array_equal(result.percentiles, [0, 0])


@pytest.mark.slow
def test_starts_from_the_given_images():
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
    result = vis.visualize(linear, vis.logit(0), vis.pixels(SHAPE), key=KEY, steps=500, plateau=20)
    assert result.endings == ("plateau",)
    assert len(result.history) < 200
    np.testing.assert_array_equal(result.images.ravel(), np.asarray(W[0] > 0, np.float32))


def test_a_plateau_window_does_not_change_the_random_transforms_of_later_steps():
    options = {"steps": 6, "optimizer": optax.sgd(0.01), "transforms": [vis.noise(0.005)]}
    windows, whole = (
        vis.visualize(
            linear, vis.logit([0, 1]), vis.pixels(SHAPE), key=KEY, plateau=plateau, **options
        )
        for plateau in (2, None)
    )
    assert windows.endings == ("steps", "steps")
    np.testing.assert_allclose(windows.history, whole.history, rtol=1e-6)
    # Without noise, the score of a linear unit rises by 0.01 |w|² in every step.
    assert (np.diff(whole.history, axis=0).std(0) > 1e-3).all()


def test_reports_a_nonfinite_objective():
    broken = lambda x: jnp.log(0.6 - x.reshape(len(x), -1))
    result = vis.visualize(broken, -vis.logit(0), vis.pixels(SHAPE), key=KEY, steps=100)
    assert result.endings == ("nonfinite",)
    assert np.isfinite(result.images).all()
    assert "nonfinite" in str(result)


def test_a_nonfinite_image_does_not_affect_the_others():
    both = lambda x: jnp.stack([linear(x)[:, 0], jnp.log(0.6 - x[:, 0, 0, 0])], 1)
    run = functools.partial(vis.visualize, both, image=vis.pixels(SHAPE), steps=60)
    result = run(vis.logit([0, 1]) * jnp.array([1.0, -1.0]), key=KEY)
    alone = run(vis.logit(0), key=KEY)
    assert result.endings == ("steps", "nonfinite")
    np.testing.assert_allclose(result.images[0], alone.images[0], atol=1e-6)
    np.testing.assert_allclose(result.history[:, 0], alone.history[:, 0], rtol=1e-6)
    last = np.isfinite(result.history[:, 1]).sum()
    assert 0 < last < 60
    assert np.isnan(result.history[last:, 1]).all()
    assert np.isfinite(result.images).all()
    assert np.isfinite(result.scores).all()


def test_every_image_stops_on_its_own_plateau():
    flat = lambda x: jnp.stack([linear(x)[:, 0], x[:, 0, 0, 0] * 1e-3], 1)
    run = functools.partial(
        vis.visualize,
        flat,
        image=vis.pixels(SHAPE),
        steps=300,
        plateau=20,
        optimizer=optax.sgd(0.05),
    )
    result, alone = run(vis.logit([0, 1]), key=KEY), run(vis.logit(0), key=KEY)
    assert result.endings == ("plateau", "steps")
    np.testing.assert_allclose(result.images[0], alone.images[0], atol=1e-6)


def test_another_penalty_weight_does_not_recompile(caplog):
    run = lambda weight: vis.visualize(
        linear, vis.logit(0), vis.pixels(SHAPE), key=KEY, steps=3, penalties={vis.l2: weight}
    )
    first = run(0.1)
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        other, same = run(0.2), run(jnp.float32(0.1))
    assert not [record for record in caplog.records if "Compiling" in record.message]
    np.testing.assert_array_equal(first.images, same.images)
    assert np.abs(other.images - first.images).max() > 0


def test_straight_through_reaches_an_inactive_unit():
    never_active = lambda x: jax.nn.relu(linear(x) - 100)
    inactive = lambda x: jax.nn.relu(linear(x) - 1)
    options = {"key": KEY, "steps": 60, "start": jnp.zeros(SHAPE)}
    stuck = vis.visualize(inactive, vis.logit(0), vis.pixels(SHAPE), **options)
    np.testing.assert_array_equal(stuck.images, 0)
    released = vis.visualize(
        inactive, vis.logit(0), vis.pixels(SHAPE), straight_through=30, **options
    )
    np.testing.assert_array_equal(released.images.ravel(), np.asarray(W[0] > 0, np.float32))
    through = vis.visualize(
        never_active, vis.logit(0), vis.pixels(SHAPE), straight_through=60, **options
    )
    np.testing.assert_array_equal(through.images.ravel(), np.asarray(W[0] > 0, np.float32))


def test_accepts_a_function_of_the_output():
    result = vis.visualize(
        linear, lambda logits: logits[:, 0] - logits[:, 1], vis.pixels(SHAPE), key=KEY, steps=200
    )
    np.testing.assert_array_equal(result.images.ravel(), np.asarray(W[0] > W[1], np.float32))


@pytest.mark.slow
def test_visualizes_a_flax_model_without_taps():
    import flax.linen

    class Net(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x):
            x = jax.nn.relu(flax.linen.Conv(4, (3, 3))(x))
            return flax.linen.Dense(3)(x.reshape(len(x), -1))

    net = Net()
    f = dp.program(net.apply, net.init(KEY, jnp.zeros((1, 6, 6, 1))))
    result = vis.visualize(
        f, vis.channel("conv:0", [0, 3]), vis.pixels((6, 6, 1)), key=KEY, steps=20
    )
    assert (result.scores > result.history[0]).all()


@pytest.mark.slow
def test_transforms_may_change_the_size():
    f = network()
    result = vis.visualize(
        f, vis.logit([0, 1]), vis.pixels((12, 12, 1)), key=KEY, steps=3, transforms=[vis.crop(8)]
    )
    assert result.images.shape == (2, 12, 12, 1)


def test_penalties_add_up():
    near = jnp.full(SHAPE, 0.25)
    penalties = {vis.to_reference(near): 50.0, vis.l1: 1e-3, vis.of_variable(vis.l2): 1e-3}
    result = vis.visualize(
        linear, vis.logit(0), unbounded(), key=KEY, steps=300, penalties=penalties
    )
    # Maximum of w·x - 50 |x - r|² - 0.001 (|x|_1 + |x|²) where x > 0.
    w = np.asarray(W[0])
    np.testing.assert_allclose(result.images.ravel(), (w - 1e-3 + 25) / (2 * 50.001), rtol=1e-3)


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
            "objective must be one Objective.* got list",
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
        ({"data": jnp.zeros((2, 8, 8, 3))}, ValueError, "data must be images of f's input shape"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"plateau": 0}, ValueError, "plateau"),
        ({"straight_through": -1}, ValueError, "straight_through"),
    ],
)
def test_rejects_bad_arguments(options, error, message):
    arguments = {
        "objective": vis.logit([0, 1]),
        "image": vis.pixels((8, 8, 1)),
        "key": KEY,
        "steps": 2,
    } | options
    with pytest.raises(error, match=message):
        vis.visualize(network(), arguments.pop("objective"), arguments.pop("image"), **arguments)
