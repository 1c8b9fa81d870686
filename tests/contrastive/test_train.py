"""Contrastive pre-training: color encoders learn words, positives of a batch, and errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffprog as dp
from diffprog.contrastive._train import index_captions, make_loss, sample_captions

con, vis = dp.contrastive, dp.visualization

KEY = jax.random.key(0)
WORDS = con.words(["red green blue dark"], length=2)
COLORS = (
    np.repeat(np.eye(3, dtype=np.float32), 8, axis=0)
    * np.tile(np.linspace(0.3, 1, 8, dtype=np.float32), 3)[:, None]
)
IMAGES = jnp.asarray(COLORS.reshape(24, 1, 1, 3))
CAPTIONS = [
    (name, f"dark {name}") if shade < 4 else (name,)
    for name in ("red", "green", "blue")
    for shade in range(8)
]


def towers(**options):
    """Return a dual encoder: affine in the color of an image, the sum of word vectors of a text."""
    init = lambda key: jax.random.normal(key, (4, 8))
    image = dp.models.Model(
        init, lambda params, images: images.reshape(len(images), -1) @ params[:3] + params[3]
    )
    words = dp.models.Model(
        lambda key: 0.1 * jax.random.normal(key, (WORDS.count, 8)),
        lambda params, ids: params[ids].sum(1),
    )
    return con.towers(image, words, WORDS, key=jax.random.key(1), **options)


def train(start, **options):
    options = {
        "epochs": 150,
        "batch_size": 12,
        "optimizer": optax.adam(0.03),
        "progress": False,
    } | options
    return con.pretrain(start, IMAGES, CAPTIONS, key=KEY, **options)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [None, -2.0])
def test_trained_encoders_classify_colors(bias):
    fit = train(towers(bias=bias))
    assert isinstance(fit.params, con.Towers)
    result = con.zero_shot(fit.params, IMAGES, ["red", "green", "blue"])
    np.testing.assert_array_equal(result.labels, np.repeat([0, 1, 2], 8))
    assert fit.history["cost"][-10:].mean() < fit.history["cost"][:10].mean()
    # Only the second captions name the four darker images.
    red, dark_red = np.asarray(con.similarity(fit.params, IMAGES[:8], ["red", "dark red"])).T
    assert (dark_red - red)[:4].min() > (dark_red - red)[4:].max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "positive"),
    [
        ("red", [[True, True, False], [True, True, False], [False, False, True]]),
        ("dark red", [[True, False, False], [True, True, False], [False, False, True]]),
    ],
)
def test_a_sampled_caption_is_positive_for_every_image_that_lists_it(second, positive):
    start, images = towers(), IMAGES[:3]
    indices, ids = index_captions(start, [("red",), ("red", "dark red"), ("blue",)], 3)
    assert WORDS.decode(ids) == ("blue", "dark red", "red")
    np.testing.assert_array_equal(indices, [[2, -1], [2, 1], [0, -1]])
    indices, texts = jnp.asarray(indices), ["red", second, "blue"]
    sample = lambda key: WORDS.decode(ids[sample_captions(indices, jax.random.split(key)[0])])
    key = next(key for key in jax.random.split(KEY, 20) if list(sample(key)) == texts)
    features = start.image(images), start.text(jnp.asarray(WORDS.encode(texts)))
    expected = con.info_nce(*features, start.log_scale, positive=np.array(positive))
    loss = make_loss(ids, ())(start, images, indices, key=key)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_captions_are_sampled_uniformly():
    indices = jnp.asarray([[4, 0, 9, -1], [0, -1, -1, -1]])
    sample = lambda key: sample_captions(indices, key)
    samples = np.asarray(jax.vmap(sample)(jax.random.split(KEY, 3000)))
    assert set(samples[:, 1]) == {0}
    counts = np.array([(samples[:, 0] == index).sum() for index in (4, 0, 9)])
    # Within five standard deviations of the binomial distribution.
    assert counts.sum() == 3000
    np.testing.assert_allclose(counts, 1000, atol=5 * np.sqrt(3000 * 2 / 9))


@pytest.mark.slow
def test_the_key_determines_the_result():
    leaves = lambda key: jax.tree.leaves(
        con.pretrain(towers(), IMAGES, CAPTIONS, key=key, epochs=2, batch_size=12).params
    )
    first, again, other = leaves(KEY), leaves(KEY), leaves(jax.random.key(5))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.slow
def test_transforms_are_applied_to_the_images():
    erase = lambda image, key: jnp.zeros_like(image)
    fit = train(towers(), transforms=[erase], epochs=4)
    # All images are equal, so the loss stays near that of guessing among three colors.
    assert fit.history["cost"].min() > np.log(3) - 0.3


@pytest.mark.slow
def test_compute_dtype_does_not_round_temperature_and_bias():
    # Each is halfway between two bfloat16 numbers.
    start = towers(bias=-2.0)._replace(
        log_scale=jnp.float32(2.6640625), bias=jnp.float32(-2.0078125)
    )
    indices, ids = index_captions(start, CAPTIONS, 24)
    low = make_loss(ids, (), jnp.bfloat16)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (start.image, start.text))
    sampled = np.asarray(sample_captions(jnp.asarray(indices), jax.random.split(KEY)[0]))
    positive = (indices[:, None, :] == sampled[None, :, None]).any(-1)
    features = half[0](IMAGES.astype(jnp.bfloat16)), half[1](jnp.asarray(ids)[sampled])
    expected = con.sigmoid_loss(*features, start.log_scale, start.bias, positive=positive)
    np.testing.assert_array_equal(low(start, IMAGES, jnp.asarray(indices), key=KEY), expected)
    scalars = (x.astype(jnp.bfloat16) for x in (start.log_scale, start.bias))
    rounded = con.sigmoid_loss(*features, *scalars, positive=positive)
    assert np.abs(rounded - expected).max() > 1e-3


def test_fit_keeps_params_in_float32(monkeypatch):
    passed = {}
    monkeypatch.setattr(dp.training, "fit", lambda *args, **options: passed.update(options))
    train(towers(), compute_dtype=jnp.bfloat16)
    assert "compute_dtype" not in passed


def test_training_in_bfloat16_returns_float32_encoders():
    fit = train(towers(), compute_dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(fit.params))
    result = con.zero_shot(fit.params, IMAGES, ["red", "green", "blue"])
    np.testing.assert_array_equal(result.labels, np.repeat([0, 1, 2], 8))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"towers": None}, TypeError, "towers must be Towers"),
        ({"images": IMAGES[0]}, ValueError, "images must have rank 4"),
        ({"images": IMAGES + 1}, ValueError, "images must lie in 0 .. 1"),
        ({"images": jnp.zeros((0, 1, 1, 3)), "captions": []}, ValueError, "images"),
        (
            {"captions": "red"},
            TypeError,
            "captions must be a list of texts for each image, got str",
        ),
        (
            {"captions": CAPTIONS[1:]},
            ValueError,
            "captions must be 24 lists, one per image, got 23",
        ),
        ({"captions": ["red"] * 24}, TypeError, r"captions\[0\] must be a sequence of texts"),
        ({"captions": [()] * 24}, ValueError, r"captions\[0\] must hold at least one"),
        ({"captions": [("mauve",)] * 24}, ValueError, "'mauve'"),
        ({"key": 0}, TypeError, "key"),
        ({"epochs": 0}, ValueError, "epochs"),
        ({"epochs": "many"}, TypeError, "epochs"),
        ({"batch_size": 25}, ValueError, "batch_size must be at most"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"optimizer": 0.1}, TypeError, "optimizer"),
        ({"transforms": [7]}, TypeError, "transforms"),
        ({"transforms": 3}, TypeError, "transforms must be a sequence of functions .*, got int"),
        ({"transforms": vis.jitter(1)}, TypeError, "transforms must be a sequence of functions"),
        ({"compute_dtype": int}, TypeError, "compute_dtype"),
        ({"compute_dtype": "foo"}, TypeError, "compute_dtype must be a float dtype, .*, got 'foo'"),
        (
            {"towers": "few"},
            ValueError,
            "towers.text must accept the tokenizer's rows of 2 ids up to 4",
        ),
        (
            {"towers": "narrow"},
            ValueError,
            r"features of one length, got \[24, 8\] for images and \[6, 5\] for texts",
        ),
    ],
)
def test_refuses(arguments, error, message):
    few = con.text_tower(3, 2, width=8, depth=1, heads=2, outputs=8)
    texts = {
        "narrow": lambda ids: jnp.ones((len(ids), 5)),
        "few": functools.partial(few.apply, few.init(KEY)),
    }
    given = {
        "towers": towers(),
        "images": IMAGES,
        "captions": CAPTIONS,
        "key": KEY,
        "epochs": 1,
        "batch_size": 12,
    } | arguments
    if isinstance(given["towers"], str):
        given["towers"] = towers()._replace(text=dp.program(texts[given["towers"]]))
    with pytest.raises(error, match=message):
        con.pretrain(**given)
