"""Transforms: compared with NumPy and SciPy, algebraic identities, randomness per image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from diffprog.visualization._transforms import (
    bilinear_sample,
    compose,
    crop,
    default_transforms,
    flip,
    jitter,
    noise,
    pad,
    rotate,
    scale,
    similarity_transform,
    warp,
)

KEEP_SIZE = {
    "jitter": jitter(2),
    "scale": scale(0.8, 1.25),
    "rotate": rotate(30),
    "warp": warp(shift=0.1, low=0.9, high=1.1, degrees=10),
    "flip": flip(),
    "noise": noise(0.1),
    "default": compose(default_transforms()),
}
CHANGE_SIZE = {
    "pad": (pad(2), (12, 10)),
    "crop": (crop((5, 3)), (5, 3)),
    "both": (compose([pad(2), crop(9)]), (9, 9)),
}
KEEP_RANGE = ("jitter", "warp", "flip")
transform_by = jax.jit(similarity_transform)
SMALL = [(8, 8, 1), (5, 7, 3), (3, 3, 2)]

JITTED = {name: jax.jit(transform) for name, transform in KEEP_SIZE.items()}
# Scale and rotate are warps, and the default is one too.
BASIC = {name: KEEP_SIZE[name] for name in ("jitter", "warp", "flip", "noise")} | {
    name: t for name, (t, _) in CHANGE_SIZE.items()
}

every_basic_transform = pytest.mark.parametrize("transform", BASIC.values(), ids=BASIC)
slow = pytest.mark.slow


def image(shape=(8, 6, 2), seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), jnp.float32)


@pytest.mark.parametrize("name", KEEP_SIZE)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_keeps_the_size(name, shape, key):
    assert jax.eval_shape(KEEP_SIZE[name], image(shape), key).shape == shape


@pytest.mark.parametrize("name", CHANGE_SIZE)
def test_the_new_size_depends_only_on_the_arguments(name, key):
    transform, size = CHANGE_SIZE[name]
    assert jax.eval_shape(transform, image(), key).shape == (*size, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("jitter", "warp", "both") else pytest.param(name, marks=slow)
        for name in BASIC
    ],
)
def test_batched_equals_looped_with_a_draw_per_key(name):
    transform = BASIC[name]
    keys, same = jax.random.split(jax.random.key(3), 16), jnp.broadcast_to(image(), (16, 8, 6, 2))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    single = jax.jit(transform)
    batch = jax.jit(jax.vmap(transform))(same, keys)
    np.testing.assert_allclose(batch, jnp.stack([single(image(), key) for key in keys]), atol=1e-6)
    np.testing.assert_array_equal(single(image(), keys[0]), single(image(), keys[0]))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    if name != "pad":
        assert len(np.unique(np.round(np.asarray(batch).reshape(16, -1), 4), axis=0)) > 1


@pytest.mark.parametrize("name", KEEP_RANGE)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_values_stay_in_the_range_of_the_image(name, seed):
    x = image(seed=seed)
    out = JITTED[name](x, jax.random.key(seed))
    # A weighted mean of four values is rounded four times.
    assert x.min() * (1 - 4e-7) <= out.min()
    assert out.max() <= x.max() * (1 + 4e-7)


@pytest.mark.parametrize("name", KEEP_RANGE)
def test_a_constant_image_stays_constant(name, key):
    np.testing.assert_allclose(JITTED[name](jnp.full((8, 6, 2), 0.7), key), 0.7, rtol=4e-7)


@pytest.mark.parametrize("name", ["jitter", "warp", "flip"])
def test_the_gradient_is_the_adjoint_of_the_linear_map(name, key):
    x, y = image(), image(seed=1)
    product, back = jax.jit(jax.value_and_grad(lambda x: (KEEP_SIZE[name](x, key) * y).sum()))(x)
    np.testing.assert_allclose(product, (x * back).sum(), rtol=1e-5)


@pytest.mark.parametrize("shape", [*SMALL, (1, 1, 1), (1, 5, 2), (4, 1, 3)], ids=str)
def test_bilinear_sample_matches_scipy(shape):
    rng, x = np.random.default_rng(0), np.asarray(image(shape))
    rows, columns = (rng.uniform(-2, side + 1, (6, 4)).astype(np.float32) for side in shape[:2])
    want = np.stack(
        [
            ndimage.map_coordinates(x[..., c], [rows, columns], order=1, mode="nearest")
            for c in range(shape[2])
        ],
        -1,
    )
    np.testing.assert_allclose(
        jax.jit(bilinear_sample)(jnp.asarray(x), jnp.asarray(rows), jnp.asarray(columns)),
        want,
        atol=2e-6,
    )


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_rotations_match_numpy(turns):
    x = image((7, 7, 3))
    rotated = transform_by(x, jnp.zeros(2), jnp.float32(1), jnp.float32(turns * np.pi / 2))
    np.testing.assert_allclose(rotated, np.rot90(x, turns), atol=1e-5)


def test_integer_shifts_move_pixels_and_repeat_the_edge():
    x = image((5, 4, 1))
    shifted = transform_by(x, jnp.array([1 / 5, -2 / 4]), jnp.float32(1), jnp.float32(0))
    np.testing.assert_allclose(shifted, x[np.ix_([0, 0, 1, 2, 3], [2, 3, 3, 3])], atol=1e-5)


def test_scaling_is_about_the_centre():
    ramp = jnp.linspace(0, 1, 9)[:, None, None] * jnp.ones((1, 9, 1))
    out = transform_by(ramp, jnp.zeros(2), jnp.float32(2), jnp.float32(0))
    np.testing.assert_allclose(out[:, 0, 0], np.linspace(0.25, 0.75, 9), atol=1e-6)


def test_rotating_back_recovers_a_smooth_image():
    rows, columns = jnp.mgrid[-1:1:33j, -1:1:33j]
    x = jnp.exp(-4 * ((rows - 0.2) ** 2 + columns**2))[..., None]
    rotated = transform_by(x, jnp.zeros(2), jnp.float32(1.1), jnp.float32(0.3))
    back = transform_by(rotated, jnp.zeros(2), jnp.float32(1 / 1.1), jnp.float32(-0.3))
    # Error of one linear interpolation: h² / 8 (|x_rr| + |x_cc|) <= 1/128, as h = 1/16 and the
    # second derivatives are at most 8.
    assert np.abs(rotated - x).max() > 0.1
    np.testing.assert_allclose(back[8:-8, 8:-8], x[8:-8, 8:-8], atol=2 / 128)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "count"),
    [((2, 3), 3 * 2), pytest.param((4, 4), 1, marks=slow), pytest.param((1, 1), 16, marks=slow)],
)
def test_crop_draws_every_window_and_nothing_else(size, count):
    x = jnp.arange(16.0).reshape(4, 4, 1)
    windows = {
        bytes(np.asarray(x[r : r + size[0], c : c + size[1]]))
        for r in range(5 - size[0])
        for c in range(5 - size[1])
    }
    samples = jax.jit(jax.vmap(crop(size), (None, 0)))(x, jax.random.split(jax.random.key(0), 400))
    assert {bytes(np.asarray(window)) for window in samples} == windows
    assert len(windows) == count


def test_jitter_draws_every_integer_shift():
    x = jnp.pad(jnp.ones((1, 1, 1)), ((2, 2), (2, 2), (0, 0)))
    samples = jax.jit(jax.vmap(jitter(2), (None, 0)))(x, jax.random.split(jax.random.key(0), 600))
    places = np.unique(np.asarray(samples).reshape(600, -1).argmax(1))
    assert samples.sum((1, 2, 3)).max() == 1
    np.testing.assert_array_equal(places, np.arange(25))


def test_flip_flips_half_of_the_time():
    x = jnp.array([0.0, 1.0]).reshape(1, 2, 1)
    flipped = jax.jit(jax.vmap(flip(), (None, 0)))(x, jax.random.split(jax.random.key(0), 1000))[
        :, 0, 0, 0
    ]
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / np.sqrt(1000)


def test_noise_has_the_given_standard_deviation(key):
    noisy = noise(0.3)(jnp.zeros((100, 100, 1)), key)
    assert abs(noisy.std() - 0.3) < 5 * 0.3 / np.sqrt(2 * 10_000)


def test_pad_fills_the_border_with_the_value(key):
    np.testing.assert_array_equal(
        pad(1, 0.25)(image(), key), np.pad(image(), ((1, 1), (1, 1), (0, 0)), constant_values=0.25)
    )


def test_compose_chains_with_a_key_per_transform(key):
    x = image()
    both = compose([noise(0.1), noise(0.1)])(x, key)
    first = noise(0.1)(x, jax.random.fold_in(key, 0))
    np.testing.assert_array_equal(both, noise(0.1)(first, jax.random.fold_in(key, 1)))
    assert np.abs(both - x - 2 * (first - x)).max() > 0.01
    np.testing.assert_array_equal(compose([])(x, key), x)


@pytest.mark.parametrize(
    "make",
    [lambda: crop(9), lambda: crop((3, 7)), lambda: jitter(6)],
    ids=["crop", "crop side", "jitter"],
)
def test_rejects_images_that_are_too_small(make, key):
    with pytest.raises(
        ValueError, match=r"image must be at least \d x \d for (crop|jitter)\(.*\), got 8 x 6"
    ):
        make()(image(), key)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pad(-1), ValueError, "n must be"),
        (lambda: pad(1.5), TypeError, "n must be"),
        (lambda: pad(1, np.nan), ValueError, "value must be"),
        (lambda: jitter(-1), ValueError, "d must be"),
        (lambda: scale(0, 1), ValueError, "low must be"),
        (lambda: scale(1.1, 0.9), ValueError, "high must be"),
        (lambda: rotate(-1), ValueError, "degrees must be"),
        (lambda: rotate("10"), TypeError, "degrees must be"),
        (lambda: warp(shift=-1, low=1, high=1, degrees=0), ValueError, "shift must be"),
        (lambda: noise(np.inf), ValueError, "std must be"),
        (lambda: crop((4, 0)), ValueError, "size"),
        (lambda: crop((4, 4, 4)), ValueError, "size must be"),
        (lambda: default_transforms(zoom=0.9), ValueError, "zoom must be"),
        (lambda: compose([None]), TypeError, r"transforms\[0\] must be callable"),
    ],
)
def test_rejects_bad_arguments_when_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


@every_basic_transform
def test_rejects_bad_images_and_keys(transform, key):
    with pytest.raises(TypeError, match="image must be a float array"):
        transform(jnp.zeros((8, 8, 1), int), key)
    with pytest.raises(ValueError, match="image must have rank 3"):
        transform(jnp.zeros((2, 8, 8, 1)), key)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        transform(image(), 0)
