"""Dual encoders: similarity, weights as leaves, one compile for all weights, and errors."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp

con = dp.contrastive

WORDS = con.words(["a thin seven", "a one"], length=4)
CHARACTERS = con.characters(length=16)
IMAGE = dp.models.cnn((8, 8, 1), channels=(4,), hidden=(), classes=6)
TEXT = con.text_tower(WORDS.count, WORDS.length, width=8, depth=1, heads=2, outputs=6)
IMAGES = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1))
TEXTS = ["a seven", "one", "thin seven"]

encode = jax.jit(TEXT.apply)


@functools.cache
def pair(seed=0, **options):
    return con.towers(IMAGE, TEXT, WORDS, key=jax.random.key(seed), **options)


def test_similarity_is_the_cosine_of_the_features():
    towers = pair()
    apply = jax.jit(lambda encoder, x: encoder(x))
    u = np.asarray(apply(towers.image, IMAGES))
    v = np.asarray(apply(towers.text, WORDS.encode(TEXTS)))
    cosines = (u @ v.T) / np.linalg.norm(u, axis=1)[:, None] / np.linalg.norm(v, axis=1)
    np.testing.assert_allclose(con.similarity(towers, IMAGES, TEXTS), cosines, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_images_of_several_batches():
    towers = pair()._replace(image=dp.program(lambda images: images[:, 0, :6, 0]))
    many = jax.random.uniform(jax.random.key(1), (600, 8, 8, 1))
    together = con.similarity(towers, many, TEXTS)
    assert together.shape == (600, 3)
    np.testing.assert_allclose(together[590:], con.similarity(towers, many[590:], TEXTS), atol=1e-6)


def test_initial_temperature_and_bias():
    towers = pair(temperature=0.1, bias=-10.0)
    np.testing.assert_allclose(jnp.exp(towers.log_scale), 10, rtol=1e-6)
    assert towers.bias == -10
    assert pair().bias is None
    first, other = (jax.tree.leaves(pair(seed)) for seed in (0, 1))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_leaves_are_float_arrays_and_other_weights_do_not_recompile(caplog):
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(pair(bias=0.0)))
    assert jax.tree.structure(pair(0)) == jax.tree.structure(pair(1))
    con.similarity(pair(0), IMAGES, TEXTS)
    other = pair(1)
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        con.similarity(other, IMAGES, TEXTS)
    assert not [record for record in caplog.records if "Compiling" in record.message]


@pytest.mark.slow
def test_similarity_under_jit_and_grad():
    towers = pair()
    score = lambda towers, images: con.similarity(towers, images, TEXTS).sum()
    np.testing.assert_allclose(jax.jit(score)(towers, IMAGES), score(towers, IMAGES), rtol=1e-5)
    weight_gradient, image_gradient = jax.grad(score, (0, 1))(towers, IMAGES)
    assert isinstance(weight_gradient, con.Towers)
    assert image_gradient.shape == IMAGES.shape
    assert sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(weight_gradient.text)) > 0


def test_the_text_encoder_ignores_padding():
    plain, ids = TEXT.init(jax.random.key(3)), jnp.asarray([[1, 3, 0, 0]])
    weight, positions = plain["embedding"]["weight"], plain["positions"]
    other = jax.random.normal(jax.random.key(4), (2, 8))
    changed = plain | {
        "embedding": {"weight": weight.at[0].set(other[0])},
        "positions": positions.at[2:].set(other),
    }
    np.testing.assert_allclose(encode(changed, ids), encode(plain, ids), rtol=1e-5, atol=1e-6)
    visible = plain | {"positions": positions.at[:2].set(other)}
    assert np.abs(encode(visible, ids) - encode(plain, ids)).max() > 1e-3


def test_the_text_encoder_depends_on_word_order():
    params = TEXT.init(jax.random.key(3))
    features = encode(params, jnp.asarray([[1, 3, 4, 0], [3, 1, 4, 0], [1, 3, 4, 0]]))
    np.testing.assert_array_equal(features[0], features[2])
    assert np.abs(features[0] - features[1]).max() > 1e-3


@pytest.mark.slow
def test_a_vit_with_a_character_tokenizer():
    vit = dp.models.vit((8, 8, 1), patch=4, width=8, depth=1, heads=2, outputs=6)
    text = con.text_tower(CHARACTERS.count, CHARACTERS.length, width=8, depth=1, heads=2, outputs=6)
    towers = con.towers(vit, text, CHARACTERS, key=jax.random.key(0))
    assert con.similarity(towers, IMAGES, ["any text at all"]).shape == (3, 1)
    assert {"tokens", "block0.hidden", "pooled", "features"} <= set(
        dp.nodes.names(towers.text, jnp.ones((1, 16), jnp.int32))
    )


def test_refuses_a_text_model_that_does_not_accept_the_ids_of_its_tokenizer():
    fewer = con.text_tower(len(WORDS.known), WORDS.length, width=8, depth=1, heads=2, outputs=6)
    longer = con.text_tower(WORDS.count, 5, width=8, depth=1, heads=2, outputs=6)
    with pytest.raises(
        ValueError,
        match=r"text must accept the tokenizer's rows of 4 ids up to 4: ids must lie in 0 .. 3",
    ):
        con.towers(IMAGE, fewer, WORDS, key=jax.random.key(0))
    with pytest.raises(
        ValueError,
        match=r"4 ids up to 4: ids must have shape \(batch, length\) .* 5, got int32\[1, 4\]",
    ):
        con.towers(IMAGE, longer, WORDS, key=jax.random.key(0))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_refuses_an_id_outside_the_vocabulary_of_the_text_encoder(transform):
    other = pair()._replace(tokenizer=con.words(["a b c d e f g"], length=4))
    call = transform(lambda towers, texts=("g",): con.similarity(towers, IMAGES, list(texts)))
    with pytest.raises(
        ValueError,
        match=r"towers.text must accept the tokenizer's rows .* up to 7: ids must lie in 0 .. 4",
    ):
        call(other)
    assert con.similarity(other, IMAGES, ["a b"]).shape == (3, 1)


def test_refuses_features_of_two_lengths_before_compiling(caplog):
    towers, texts = make_mismatched_pair(), [*TEXTS, "a", "a one"]
    with (
        jax.log_compiles(True),
        caplog.at_level(logging.WARNING),
        pytest.raises(ValueError, match="features of one length"),
    ):
        con.similarity(towers, IMAGES, texts)
    assert not [
        record for record in caplog.records if "Compiling jit(_unit_features)" in record.message
    ]


def make_mismatched_pair():
    return pair()._replace(text=dp.program(lambda ids: jnp.ones((len(ids), 5))))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: con.towers(IMAGE.apply, TEXT, WORDS, key=jax.random.key(0)),
            TypeError,
            "image must be a Model",
        ),
        (
            lambda: con.towers(IMAGE, None, WORDS, key=jax.random.key(0)),
            TypeError,
            "text must be a Model",
        ),
        (
            lambda: con.towers(IMAGE, TEXT, str, key=jax.random.key(0)),
            TypeError,
            "tokenizer must have methods encode and decode",
        ),
        (lambda: con.towers(IMAGE, TEXT, WORDS, key=0), TypeError, "key"),
        (lambda: pair(temperature=0), ValueError, "temperature"),
        (lambda: pair(temperature="cold"), TypeError, "temperature"),
        (lambda: pair(bias=float("nan")), ValueError, "bias"),
        (lambda: con.text_tower(0, 4), ValueError, "count"),
        (lambda: con.text_tower(5, 4, width=6, heads=4), ValueError, "multiple of heads"),
        (lambda: con.text_tower(5, 0), ValueError, "length"),
        (lambda: con.text_tower(5, 4, outputs=1.0), TypeError, "outputs"),
        (
            lambda: TEXT.apply(TEXT.init(jax.random.key(0)), jnp.ones((1, 4))),
            TypeError,
            "ids must be integers",
        ),
        (
            lambda: TEXT.apply(TEXT.init(jax.random.key(0)), jnp.ones((1, 5), int)),
            ValueError,
            r"ids must have shape \(batch, length\) with length 4, got int32\[1, 5\]",
        ),
        (
            lambda: TEXT.apply(TEXT.init(jax.random.key(0)), jnp.full((1, 4), 5)),
            ValueError,
            r"ids must lie in 0 .. 4",
        ),
        (
            lambda: con.similarity(pair(), IMAGES + 0.1, TEXTS),
            ValueError,
            "images must lie in 0 .. 1",
        ),
        (lambda: con.similarity(pair(), -IMAGES, TEXTS), ValueError, "images must lie in 0 .. 1"),
        (
            lambda: con.similarity(None, IMAGES, TEXTS),
            TypeError,
            "towers must be Towers, got NoneType",
        ),
        (
            lambda: con.similarity(pair()._replace(image=IMAGE.apply), IMAGES, TEXTS),
            TypeError,
            "towers.image must be a Program",
        ),
        (
            lambda: con.similarity(pair()._replace(tokenizer=3), IMAGES, TEXTS),
            TypeError,
            "tokenizer",
        ),
        (lambda: con.similarity(pair(), IMAGES[0], TEXTS), ValueError, "images must have rank 4"),
        (lambda: con.similarity(pair(), IMAGES[:0], TEXTS), ValueError, "images"),
        (
            lambda: con.similarity(pair(), IMAGES.at[0].set(jnp.nan), TEXTS),
            ValueError,
            "images must be finite",
        ),
        (lambda: con.similarity(pair(), jnp.zeros((1, 9, 8, 1)), TEXTS), ValueError, "8, 8, 1"),
        (lambda: con.similarity(pair(), IMAGES, "a seven"), TypeError, "texts must be a sequence"),
        (lambda: con.similarity(pair(), IMAGES, ["a cat"]), ValueError, "'cat'"),
        (
            lambda: con.similarity(make_mismatched_pair(), IMAGES, TEXTS),
            ValueError,
            r"features of one length, got \[3, 6\] for images and \[3, 5\]",
        ),
        (
            lambda: con.zero_shot(make_mismatched_pair(), IMAGES, TEXTS),
            ValueError,
            "features of one length",
        ),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
