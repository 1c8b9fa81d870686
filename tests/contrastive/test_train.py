"""Pre-training: towers of colours that learn their words, which pairs belong together, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffprog as dp
from diffprog.contrastive._train import _own, pairs_loss

con, vis = dp.contrastive, dp.visualization

KEY = jax.random.key(0)
KNOWN = con.words(["red green blue dark"], length=2)
COLOURS = (
    np.repeat(np.eye(3, dtype=np.float32), 8, axis=0)
    * np.tile(np.linspace(0.3, 1, 8, dtype=np.float32), 3)[:, None]
)
IMAGES = jnp.asarray(COLOURS.reshape(24, 1, 1, 3))
CAPTIONS = [
    (name, f"dark {name}") if shade < 4 else (name,)
    for name in ("red", "green", "blue")
    for shade in range(8)
]


def towers(**options):
    """An image is affine in its colour, and a text the sum of its words' vectors."""
    drawn = lambda key: jax.random.normal(key, (4, 8))
    seen = dp.models.Model(
        drawn, lambda params, images: images.reshape(len(images), -1) @ params[:3] + params[3]
    )
    words = dp.models.Model(
        lambda key: 0.1 * jax.random.normal(key, (KNOWN.count, 8)),
        lambda params, ids: params[ids].sum(1),
    )
    return con.towers(seen, words, KNOWN, key=jax.random.key(1), **options)


def trained(start, **options):
    options = {
        "epochs": 150,
        "batch_size": 12,
        "optimizer": optax.adam(0.03),
        "progress": False,
    } | options
    return con.pretrain(start, IMAGES, CAPTIONS, key=KEY, **options)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [None, -2.0])
def test_colours_learn_their_names(bias):
    fit = trained(towers(bias=bias))
    assert isinstance(fit.params, con.Towers)
    found = con.zero_shot(fit.params, IMAGES, ["red", "green", "blue"])
    np.testing.assert_array_equal(found.labels, np.repeat([0, 1, 2], 8))
    assert fit.history["cost"][-10:].mean() < fit.history["cost"][:10].mean()
    # What only the second caption says is told from the image too: the four darker ones.
    dark = np.diff(np.asarray(con.similarity(fit.params, IMAGES[:8], ["red", "dark red"])), axis=1)[
        :, 0
    ]
    assert dark[:4].min() > dark[4:].max()


@pytest.mark.slow
def test_a_caption_is_true_of_every_image_that_lists_it():
    start = towers()
    own, ids = _own(start, [("red",), ("red", "dark red"), ("blue",)], 3)
    assert KNOWN.decode(ids) == ("blue", "dark red", "red")
    np.testing.assert_array_equal(own, [[2, -1], [2, 1], [0, -1]])
    loss = pairs_loss(ids, ())
    key = next(key for key in jax.random.split(KEY, 20) if _second(own, key) == 2)
    features = (
        start.image(IMAGES[:3]),
        start.text(jnp.asarray(KNOWN.encode(["red", "red", "blue"]))),
    )
    positive = np.array([[True, True, False], [True, True, False], [False, False, True]])
    expected = con.info_nce(*features, start.log_scale, positive=positive)
    np.testing.assert_allclose(
        loss(start, IMAGES[:3], jnp.asarray(own), key=key), expected, rtol=1e-5
    )
    # Drawn for the second image, "dark red" is not true of the first; "red", drawn for the first, is true of the second.
    key = next(key for key in jax.random.split(KEY, 20) if _second(own, key) == 1)
    features = (
        start.image(IMAGES[:3]),
        start.text(jnp.asarray(KNOWN.encode(["red", "dark red", "blue"]))),
    )
    positive = np.array([[True, False, False], [True, True, False], [False, False, True]])
    expected = con.info_nce(*features, start.log_scale, positive=positive)
    np.testing.assert_allclose(
        loss(start, IMAGES[:3], jnp.asarray(own), key=key), expected, rtol=1e-5
    )


def _second(own, key):
    from diffprog.contrastive._train import _drawn

    return int(_drawn(jnp.asarray(own), jax.random.split(key)[0])[1])


def test_each_of_an_images_captions_is_drawn_as_often():
    from diffprog.contrastive._train import _drawn

    own = jnp.asarray([[4, 7, 9, -1], [1, -1, -1, -1]])
    drawn = np.asarray(jax.vmap(lambda key: _drawn(own, key))(jax.random.split(KEY, 3000)))
    assert set(drawn[:, 1]) == {1}
    counts = np.array([(drawn[:, 0] == number).sum() for number in (4, 7, 9)])
    # Five standard deviations of a binomial of 3000 thirds.
    assert counts.sum() == 3000
    np.testing.assert_allclose(counts, 1000, atol=5 * np.sqrt(3000 * 2 / 9))


@pytest.mark.slow
def test_same_key_same_towers_other_key_others():
    leaves = lambda key: jax.tree.leaves(
        con.pretrain(towers(), IMAGES, CAPTIONS, key=key, epochs=2, batch_size=12).params
    )
    first, again, other = leaves(KEY), leaves(KEY), leaves(jax.random.key(5))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.slow
def test_transforms_are_what_the_towers_overlook():
    grey = lambda image, key: jnp.zeros_like(image)
    fit = trained(towers(), transforms=[grey], epochs=4)
    # All images look alike: nothing can be told, and the loss stays above what it is by chance for three kinds.
    assert fit.history["cost"].min() > np.log(3) - 0.3


@pytest.mark.slow
def test_bfloat16_is_for_the_towers_and_not_for_temperature_and_bias():
    # Halfway between two bfloat16 each.
    start = towers(bias=-2.0)._replace(
        log_scale=jnp.float32(2.6640625), bias=jnp.float32(-2.0078125)
    )
    own, ids = _own(start, CAPTIONS, 24)
    low = pairs_loss(ids, (), jnp.bfloat16)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (start.image, start.text))
    drawn = _drawn_texts(own, ids)
    features = half[0](IMAGES.astype(jnp.bfloat16)), half[1](drawn[0])
    expected = con.sigmoid_loss(*features, start.log_scale, start.bias, positive=drawn[1])
    np.testing.assert_array_equal(low(start, IMAGES, jnp.asarray(own), key=KEY), expected)
    rounded = con.sigmoid_loss(
        *features,
        *(x.astype(jnp.bfloat16) for x in (start.log_scale, start.bias)),
        positive=drawn[1],
    )
    assert np.abs(rounded - expected).max() > 1e-3


def test_fit_is_handed_float32_whatever_is_computed_in(monkeypatch):
    given = {}
    monkeypatch.setattr(dp.training, "fit", lambda *args, **options: given.update(options))
    trained(towers(), compute_dtype=jnp.bfloat16)
    assert "compute_dtype" not in given


def _drawn_texts(own, ids):
    from diffprog.contrastive._train import _drawn

    drawn = _drawn(jnp.asarray(own), jax.random.split(KEY)[0])
    return jnp.asarray(ids)[drawn], (own[:, None, :] == np.asarray(drawn)[None, :, None]).any(-1)


def test_bfloat16_learns_too_and_keeps_float32_towers():
    fit = trained(towers(), compute_dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(fit.params))
    found = con.zero_shot(fit.params, IMAGES, ["red", "green", "blue"])
    np.testing.assert_array_equal(found.labels, np.repeat([0, 1, 2], 8))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
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
            "captions must be one list for each of 24 images, got 23",
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
        ({"compute_dtype": "foo"}, TypeError, "compute_dtype must be of floats, .*, got 'foo'"),
        ({"towers": "few"}, ValueError, "towers.text must read rows of 2 ids up to 4"),
        (
            {"towers": "narrow"},
            ValueError,
            r"features of one length, got \[24, 8\] of images and \[6, 5\] of texts",
        ),
    ],
)
def test_refuses(changed, error, message):
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
    } | changed
    if isinstance(given["towers"], str):
        given["towers"] = towers()._replace(text=dp.program(texts[given["towers"]]))
    with pytest.raises(error, match=message):
        con.pretrain(**given)
