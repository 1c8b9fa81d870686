"""Image parametrizations against closed forms, NumPy transforms and statistics, and inversion."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffprog import data as real
from diffprog import descent, norms
from diffprog.program import program
from diffprog.visualization.parametrization._decorrelation import decorrelated
from diffprog.visualization.parametrization._fourier import fourier, phase_only, spectrum
from diffprog.visualization.parametrization._image import Image, covariance, pixels

SHAPES = [(8, 6, 1), (5, 7, 3), (6, 5, 2), (4, 9, 4), (1, 1, 1), (1, 6, 1), (7, 1, 2)]


def slow_except(values, *quick):
    """Mark every parameter but the quick ones as slow: each value compiles."""
    return [
        value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values
    ]


RANGES = [(0.0, 1.0), (-2.1179, 2.64)]


def images(n=12, shape=(6, 5, 3), bounds=(0.0, 1.0), seed=0):
    """Images with correlated positions and channels, well inside the range."""
    rng = np.random.default_rng(seed)
    low, high = bounds
    noise = (
        rng.uniform(size=(n, *shape))
        + rng.uniform(size=(n, 1, 1, shape[2]))
        + rng.uniform(size=(n, *shape[:2], 1))
    )
    return (low + (high - low) * (0.1 + 0.8 * noise / 3)).astype(np.float32)


MAKERS = {
    "pixels": lambda shape, bounds: pixels(shape, range=bounds),
    "fourier": lambda shape, bounds: fourier(shape, range=bounds),
    "fourier, decorrelated": lambda shape, bounds: fourier(
        shape, range=bounds, colors=decorrelated(images(shape=shape, bounds=bounds))
    ),
    "spectrum": lambda shape, bounds: spectrum(images(shape=shape, bounds=bounds), range=bounds),
    "phase_only": lambda shape, bounds: phase_only(shape, range=bounds),
    "phase_only, data": lambda shape, bounds: phase_only(
        shape, range=bounds, data=images(shape=shape, bounds=bounds)
    ),
    "covariance": lambda shape, bounds: covariance(images(200, shape, bounds), range=bounds),
}
FROM_SHAPE = ("pixels", "fourier", "phase_only")
INVERTIBLE = ("pixels", "fourier", "fourier, decorrelated", "spectrum", "covariance")
WITH_ARRAYS = tuple(name for name in MAKERS if name != "pixels")

every_maker = pytest.mark.parametrize("name", MAKERS)


@pytest.mark.slow
@every_maker
@pytest.mark.parametrize("shape", slow_except(SHAPES, (5, 7, 3)), ids=str)
def test_any_size_and_number_of_channels_works(name, shape, key):
    image = MAKERS[name](shape, RANGES[1])
    assert isinstance(image, Image)
    assert (image.shape, image.range) == (shape, RANGES[1])

    @jax.jit
    def paint_and_invert(key):
        variable = image.project(image.init(key))
        painted = image.paint(variable)
        return (
            variable,
            painted,
            image.invert(painted),
            jax.grad(lambda v: (image.paint(v) ** 2).sum())(variable),
        )

    variable, painted, inverted, gradient = paint_and_invert(key)
    assert painted.shape == shape
    assert painted.dtype == jnp.float32
    for other in (inverted, gradient):
        assert jax.tree.map(jnp.shape, other) == jax.tree.map(jnp.shape, variable)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(other))


@pytest.mark.slow
@every_maker
def test_painted_images_stay_in_the_range(name, key):
    image, bounds, rng = MAKERS[name]((6, 5, 3), RANGES[1]), RANGES[1], np.random.default_rng(0)
    paint = jax.jit(lambda variable: image.paint(image.project(variable)))
    for size in (1.0, 1e4):
        variable = jax.tree.map(
            lambda leaf, size=size: np.float32(size * rng.normal(size=leaf.shape)),
            jax.eval_shape(image.init, key),
        )
        painted = paint(variable)
        assert np.float32(bounds[0]) <= painted.min()
        assert painted.max() <= np.float32(bounds[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_except(MAKERS, "fourier, decorrelated", "covariance"))
def test_vmap_equals_one_image_at_a_time(name):
    image, keys = MAKERS[name]((6, 5, 3), (0.0, 1.0)), jax.random.split(jax.random.key(0), 3)
    single = jax.jit(lambda key: image.paint(image.init(key)))
    batch = jax.jit(jax.vmap(single))(keys)
    np.testing.assert_allclose(batch, jnp.stack([single(key) for key in keys]), atol=2e-6)
    np.testing.assert_array_equal(single(keys[0]), single(keys[0]))
    assert np.abs(batch[0] - batch[1]).max() > 1e-3


@pytest.mark.parametrize("name", WITH_ARRAYS)
def test_arrays_are_leaves_of_the_program(name):
    one, other = (program(MAKERS[name]((6, 5, 3), (0.0, 1.0)).paint) for _ in range(2))
    assert one.arrays
    assert one.structure is other.structure


@pytest.mark.parametrize("name", INVERTIBLE)
def test_painting_an_inverted_image_returns_it(name):
    bounds = RANGES[1]
    image, given = MAKERS[name]((6, 5, 3), bounds), images(1, bounds=bounds, seed=5)[0]
    # Inverse and forward each round a sum of 90 numbers; scales differ by less than 100.
    np.testing.assert_allclose(
        jax.jit(lambda x: image.paint(image.invert(x)))(given),
        given,
        atol=100 * 90 * 6e-8 * (bounds[1] - bounds[0]),
    )


def test_black_and_white_are_painted_to_half_a_grey_level():
    given = jnp.array([0.0, 1.0, 0.5, 0.25]).reshape(2, 2, 1)
    image = fourier((2, 2, 1))
    np.testing.assert_allclose(image.paint(image.invert(given)), given, atol=1 / 512 + 1e-6)


@pytest.mark.parametrize("name", slow_except(FROM_SHAPE, "pixels", "fourier"))
def test_initial_images_have_the_expected_mean_and_contrast(name, key):
    image = MAKERS[name]((16, 16, 3), (-1.0, 3.0))
    painted = jax.jit(lambda key: image.paint(image.init(key)))(key)
    assert abs(painted.mean() - 1) < 0.2
    assert 0.001 < painted.std() < 1.5


# -- pixels: closed forms of gradient ascent


def ascend(score, image, key, rate=0.1, steps=100):
    result = descent.run(
        descent.descent(lambda x, _: -score(image.paint(x)), optax.sgd(rate), image.project),
        image.init(key),
        steps,
    )
    return image.paint(result.variable)


def test_a_linear_unit_ends_in_a_corner_of_the_box(key):
    w = jax.random.normal(key, (4, 3, 2))
    corner = ascend(lambda x: (w * x).sum(), pixels((4, 3, 2), range=(-1, 2)), key, rate=1e3)
    np.testing.assert_array_equal(corner, jnp.where(w > 0, 2.0, -1.0))


@pytest.mark.slow
def test_a_linear_unit_in_a_ball_ends_along_its_weights(key):
    w = jax.random.normal(key, (4, 3, 2))
    ball = lambda x: norms.l2.project(x[None], 1.5)[0]
    result = ascend(
        lambda x: (w * x).sum(), pixels((4, 3, 2), range=(-1.5, 1.5), project=ball), key, rate=1e3
    )
    np.testing.assert_allclose(result, 1.5 * w / jnp.linalg.norm(w), atol=1e-3)


def test_a_quadratic_on_the_sphere_ends_at_its_top_eigenvector(key):
    root = jax.random.normal(key, (6, 6))
    quadratic, sphere = root @ root.T, lambda x: x / jnp.linalg.norm(x)
    image = pixels((2, 3, 1), range=(-1, 1), spread=1.0, project=sphere)
    result = ascend(lambda x: x.ravel() @ quadratic @ x.ravel(), image, key, steps=500).ravel()
    top = np.linalg.eigh(np.asarray(quadratic, np.float64))[1][:, -1]
    np.testing.assert_allclose(abs(result @ top), 1, rtol=1e-5)


def test_an_unbounded_image_is_not_clipped(key):
    image = pixels((2, 2, 1), range=(-np.inf, np.inf))
    far = jnp.full((2, 2, 1), -1e6)
    np.testing.assert_array_equal(image.paint(image.project(far)), far)
    assert np.abs(image.init(key)).max() < 0.1


def test_the_initial_image_is_projected(key):
    assert pixels((4, 4, 1), spread=10.0).init(key).max() == 1


# -- Fourier


def multiplicity(width):
    column = np.arange(width // 2 + 1)
    return np.where((column == 0) | (2 * column == width), 1, 2)[:, None]


def before_the_sigmoid(image, variable):
    share = np.asarray(jax.jit(image.paint)(variable), np.float64)
    return np.log(share / (1 - share))


@pytest.mark.parametrize("shape", slow_except(SHAPES, (8, 6, 1), (5, 7, 3)), ids=str)
def test_parseval_holds(shape):
    image = fourier(shape, decay=0)
    spectrum = np.fft.rfft2(np.random.default_rng(0).normal(size=shape), axes=(0, 1), norm="ortho")
    variable = np.stack([spectrum.real, spectrum.imag]).astype(np.float32)
    energy = (multiplicity(shape[1]) * np.asarray(variable, np.float64) ** 2).sum()
    np.testing.assert_allclose((before_the_sigmoid(image, variable) ** 2).sum(), energy, rtol=1e-4)


@pytest.mark.parametrize("shape", [(8, 6, 1), (5, 7, 2)], ids=str)
def test_one_coefficient_paints_a_wave_divided_by_its_frequency(shape):
    height, width, channels = shape
    variable = np.zeros((2, height, width // 2 + 1, channels), np.float32)
    variable[0, 1, 2, 0], variable[1, 1, 2, 0] = 0.3, -0.4
    rows, columns = np.mgrid[:height, :width]
    wave = (
        2
        / np.sqrt(height * width)
        * np.real((0.3 - 0.4j) * np.exp(2j * np.pi * (rows / height + 2 * columns / width)))
    )
    seen = before_the_sigmoid(fourier(shape), variable)
    np.testing.assert_allclose(seen[..., 0], wave / np.hypot(1 / height, 2 / width), atol=2e-6)
    np.testing.assert_array_equal(seen[..., 1:], 0)


def test_the_mean_is_scaled_as_the_lowest_frequency():
    variable = np.zeros((2, 8, 4, 1), np.float32)
    variable[0, 0, 0, 0] = 0.1
    np.testing.assert_allclose(
        before_the_sigmoid(fourier((8, 6, 1)), variable), 0.1 * 8 / np.sqrt(48), rtol=1e-4
    )


# -- spectrum and phase_only with data


def linear(data, bounds=(0.0, 1.0)):
    low, high = bounds
    return 4 * (np.asarray(data, np.float64) - (low + high) / 2) / (high - low)


def test_spectrum_scales_by_the_mean_amplitude_of_the_data():
    data = images()
    amplitude = np.abs(np.fft.rfft2(linear(data), axes=(1, 2), norm="ortho")).mean(0)
    variable = np.ones((2, 6, 3, 3), np.float32) * np.array([1, 0])[:, None, None, None]
    image = spectrum(data)
    seen = np.fft.rfft2(before_the_sigmoid(image, 0.1 * variable), axes=(0, 1), norm="ortho")
    np.testing.assert_allclose(seen.real, 0.1 * amplitude, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "fitted"),
    [
        ((8, 6, 1), False),
        ((7, 5, 2), False),
        ((6, 7, 1), True),
        ((5, 8, 3), True),
        ((4, 4, 2), True),
    ],
    ids=str,
)
def test_phase_only_keeps_the_magnitude_of_every_frequency(shape, fitted, key):
    data = images(shape=shape)
    image = phase_only(shape, data=data if fitted else None)
    if fitted:
        expected = np.abs(np.fft.rfft2(linear(data), axes=(1, 2), norm="ortho")).mean(0)
    else:
        frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
        expected = 1 / np.maximum(frequency, 1 / max(shape[:2]))[..., None] * np.ones(shape[2])
        expected[0, 0] = 0
        expected /= np.sqrt((multiplicity(shape[1]) * expected**2).sum((0, 1)) / np.prod(shape[:2]))
    # Arbitrary phases, not only those of a real image.
    phases = (
        np.random.default_rng(0)
        .uniform(-9, 9, jax.eval_shape(image.init, key).shape)
        .astype(np.float32)
    )
    seen = np.abs(np.fft.rfft2(before_the_sigmoid(image, phases), axes=(0, 1), norm="ortho"))
    # Rounding of float32 images near 0 and 1 is amplified by the inverse of the sigmoid.
    np.testing.assert_allclose(seen, expected, rtol=1e-3, atol=1e-4)


def test_phase_only_paints_the_phases_of_an_inverted_image():
    # A dark image: the sign of its mean is negative.
    given = 0.5 * images(1, shape=(8, 7, 1))[0]
    image = phase_only((8, 7, 1), data=given[None])
    logits = lambda x: np.fft.rfft2(np.log(x / (1 - x)), axes=(0, 1))
    painted = logits(np.asarray(image.paint(image.invert(given)), np.float64))
    phase_error = np.abs(np.angle(painted * np.conj(logits(given.astype(np.float64)))))
    rows, columns = np.indices(phase_error.shape[:2])
    own_opposite = (columns == 0) & (rows % 4 == 0)
    np.testing.assert_allclose(phase_error[~own_opposite], 0, atol=2e-3)
    assert painted[0, 0, 0].real < 0


# -- covariance and colours


def test_covariance_has_the_mean_and_covariance_of_the_data():
    data = images(300, (3, 3, 2))
    image = covariance(data, range=(-9.0, 9.0))
    z = np.eye(18, dtype=np.float32)
    paint = jax.jit(jax.vmap(image.paint))
    columns = np.asarray(paint(z) - paint(0 * z), np.float64).reshape(18, 18)
    np.testing.assert_allclose(paint(0 * z)[0], data.mean(0), atol=1e-5)
    expected = np.cov(data.reshape(300, -1).T)
    np.testing.assert_allclose(columns.T @ columns, expected, atol=1e-4 * expected.max())


def test_the_squared_norm_is_the_mahalanobis_distance():
    data = images(300, (3, 3, 2)).astype(np.float64)
    x = data[0].ravel() - data.reshape(300, -1).mean(0)
    expected = x @ np.linalg.solve(np.cov(data.reshape(300, -1).T), x)
    np.testing.assert_allclose(
        (covariance(data).invert(jnp.asarray(data[0], jnp.float32)) ** 2).sum(), expected, rtol=1e-3
    )


def test_the_largest_components_are_kept():
    data = images(300, (3, 3, 2))
    assert covariance(data, components=4).init(jax.random.key(0)).shape == (4,)
    assert covariance(data[:5]).init(jax.random.key(0)).shape == (4,)
    kept = covariance(data, components=4)
    error = (
        ((jax.jit(jax.vmap(lambda x: kept.paint(kept.invert(x))))(data) - data) ** 2)
        .sum((1, 2, 3))
        .mean()
    )
    rest = np.linalg.eigvalsh(np.cov(data.reshape(300, -1).T))[:-4].sum() * 299 / 300
    np.testing.assert_allclose(error, rest, rtol=1e-3)


@pytest.mark.slow
def test_a_clipped_image_returns_into_the_range(key):
    image = covariance(images(300, (3, 3, 2)))
    cost = lambda z, _: (image.paint(z) ** 2).sum() + 0.01 * (z**2).sum()
    start = 60 * image.init(key)
    assert ((image.paint(start) == 0) | (image.paint(start) == 1)).any()
    result = descent.run(descent.descent(cost, optax.adam(0.1)), start, 500)
    assert (result.variable**2).sum() < 0.1 * (start**2).sum()


@pytest.mark.slow
def test_digits_are_painted_from_their_covariance():
    digits = real.digits().x_train
    image = covariance(digits)
    # Some pixels are black in every digit and have no component.
    assert 50 < image.init(jax.random.key(0)).size < 64
    np.testing.assert_allclose(image.paint(image.invert(digits[0])), digits[0], atol=1e-3)


@pytest.mark.slow
def test_large_images_keep_256_components():
    data = np.random.default_rng(0).uniform(size=(300, 32, 32, 3)).astype(np.float32)
    assert covariance(data).init(jax.random.key(0)).shape == (256,)


def test_mixed_channels_have_the_correlations_of_the_data():
    data = images(200)
    mix = np.asarray(decorrelated(data).mix, np.float64)
    expected = np.cov(data.reshape(-1, 3).T)
    np.testing.assert_allclose(mix.T @ mix, expected / np.trace(expected) * 3, atol=1e-4)
    np.testing.assert_allclose(mix @ decorrelated(data).unmix, np.eye(3), atol=1e-5)


def test_a_single_channel_is_not_changed():
    np.testing.assert_allclose(decorrelated(images(shape=(4, 4, 1))).mix, [[1]], rtol=1e-6)


@pytest.mark.parametrize(
    "shape", [(6, 5, 3), (1, 7, 3), (31, 33, 3), (1, 1, 5), (4, 4, 40)], ids=str
)
def test_decorrelated_colours_multiply_each_pixel(shape):
    colors = decorrelated(images(shape=shape))
    plain, coloured = fourier(shape, decay=0), fourier(shape, decay=0, colors=colors)
    half = (2, shape[0], shape[1] // 2 + 1, shape[2])
    z = np.random.default_rng(0).normal(size=half).astype(np.float32) / 10
    np.testing.assert_allclose(
        before_the_sigmoid(coloured, z), before_the_sigmoid(plain, z) @ colors.mix, atol=1e-4
    )


# -- bad input

DATA = images()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pixels((8, 8)), ValueError, "shape must be 3 positive integers"),
        (lambda: fourier((8, 0, 1)), ValueError, r"shape\[1\] must be"),
        (lambda: fourier((8, 8, 1), range=(1, 0)), ValueError, "range must be"),
        (lambda: fourier((8, 8, 1), range=(-np.inf, np.inf)), ValueError, "range"),
        (lambda: pixels((8, 8, 1), range=(0, np.inf)), ValueError, "range"),
        (lambda: pixels((8, 8, 1), project=0.5), TypeError, "project must be callable"),
        (lambda: pixels((8, 8, 1), spread=-1), ValueError, "spread must be"),
        (lambda: fourier((8, 8, 1), decay=np.nan), ValueError, "decay must be"),
        (
            lambda: fourier((8, 8, 1), colors=np.eye(1)),
            TypeError,
            "colors must be made by decorrelated",
        ),
        (
            lambda: fourier((8, 8, 1), colors=decorrelated(DATA)),
            ValueError,
            r"colors must have 1 channels for shape \[8, 8, 1\], got 3",
        ),
        (lambda: spectrum(DATA[0]), ValueError, "data must have rank 4"),
        (
            lambda: spectrum(np.full((3, 4, 4, 1), 0.5, np.float32)),
            ValueError,
            "data must not be constant at the middle",
        ),
        (lambda: spectrum(2 * DATA), ValueError, "data must lie in 0 .. 1"),
        (lambda: spectrum(DATA * np.nan), ValueError, "data must be finite"),
        (lambda: covariance(DATA[:1]), ValueError, r"with n >= 2, got shape \[1, "),
        (lambda: covariance(np.ones_like(DATA)), ValueError, "data must vary"),
        (lambda: covariance(DATA, components=0), ValueError, "components must be"),
        (
            lambda: covariance((255 * DATA).astype(np.uint8)),
            TypeError,
            "data must be a float array",
        ),
        (lambda: jax.jit(covariance)(DATA), TypeError, "data must have values"),
        (
            lambda: phase_only((8, 8, 1), data=DATA),
            ValueError,
            r"data must be images of shape \[8, 8, 1\]",
        ),
        (lambda: decorrelated(np.ones_like(DATA)), ValueError, "data must vary"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@every_maker
def test_images_of_another_shape_are_refused(name):
    with pytest.raises(ValueError, match=r"image must have shape \[6, 5, 3\], got \[5, 6, 3\]"):
        MAKERS[name]((6, 5, 3), (0.0, 1.0)).invert(jnp.zeros((5, 6, 3)))
