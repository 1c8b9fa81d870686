"""Towers: cosines, weights as leaves, one compile for towers of any weight, and what is refused."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp

con = dp.contrastive

KNOWN = con.words(["a thin seven", "a one"], length=4)
LETTERS = con.characters(length=16)
IMAGE = dp.models.cnn((8, 8, 1), channels=(4,), hidden=(), classes=6)
TEXT = con.text_tower(KNOWN.count, KNOWN.length, width=8, depth=1, heads=2, outputs=6)
IMAGES = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1))
TEXTS = ["a seven", "one", "thin seven"]


read = jax.jit(TEXT.apply)


@functools.cache
def pair(seed=0, **options):
    return con.towers(IMAGE, TEXT, KNOWN, key=jax.random.key(seed), **options)


def test_similarity_is_the_cosine_of_the_features():
    towers = pair()
    see = jax.jit(lambda tower, x: tower(x))
    u, v = np.asarray(see(towers.image, IMAGES)), np.asarray(see(towers.text, KNOWN.encode(TEXTS)))
    cosines = (u @ v.T) / np.linalg.norm(u, axis=1)[:, None] / np.linalg.norm(v, axis=1)
    np.testing.assert_allclose(con.similarity(towers, IMAGES, TEXTS), cosines, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_more_images_than_are_seen_at_once():
    plain = dp.program(lambda images: images[:, 0, :6, 0])
    towers, many = (
        pair()._replace(image=plain),
        jax.random.uniform(jax.random.key(1), (600, 8, 8, 1)),
    )
    together = con.similarity(towers, many, TEXTS)
    assert together.shape == (600, 3)
    np.testing.assert_allclose(together[590:], con.similarity(towers, many[590:], TEXTS), atol=1e-6)


def test_start_and_temperature():
    towers = pair(temperature=0.1, bias=-10.0)
    np.testing.assert_allclose(jnp.exp(towers.log_scale), 10, rtol=1e-6)
    assert towers.bias == -10
    assert pair().bias is None
    drawn, other = (jax.tree.leaves(pair(seed)) for seed in (0, 1))
    assert any((a != b).any() for a, b in zip(drawn, other, strict=True))


def test_every_leaf_is_a_float_array_and_towers_of_any_weight_are_one_program(caplog):
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(pair(bias=0.0)))
    assert jax.tree.structure(pair(0)) == jax.tree.structure(pair(1))
    con.similarity(pair(0), IMAGES, TEXTS)
    other = pair(1)
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        con.similarity(other, IMAGES, TEXTS)
    assert not [record for record in caplog.records if "Compiling" in record.message]


@pytest.mark.slow
def test_under_jit_and_grad():
    towers = pair()
    score = lambda towers, images: con.similarity(towers, images, TEXTS).sum()
    np.testing.assert_allclose(jax.jit(score)(towers, IMAGES), score(towers, IMAGES), rtol=1e-5)
    of_weights, of_images = jax.grad(score, (0, 1))(towers, IMAGES)
    assert isinstance(of_weights, con.Towers)
    assert of_images.shape == IMAGES.shape
    assert sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(of_weights.text)) > 0


def test_the_text_tower_overlooks_what_is_filled_up():
    plain, ids = TEXT.init(jax.random.key(3)), jnp.asarray([[1, 3, 0, 0]])
    weight, positions = plain["embedding"]["weight"], plain["positions"]
    other = jax.random.normal(jax.random.key(4), (2, 8))
    changed = plain | {
        "embedding": {"weight": weight.at[0].set(other[0])},
        "positions": positions.at[2:].set(other),
    }
    np.testing.assert_allclose(read(changed, ids), read(plain, ids), rtol=1e-5, atol=1e-6)
    seen = plain | {"positions": positions.at[:2].set(other)}
    assert np.abs(read(seen, ids) - read(plain, ids)).max() > 1e-3


def test_the_text_tower_reads_the_order_of_words():
    params = TEXT.init(jax.random.key(3))
    features = read(params, jnp.asarray([[1, 3, 4, 0], [3, 1, 4, 0], [1, 3, 4, 0]]))
    np.testing.assert_array_equal(features[0], features[2])
    assert np.abs(features[0] - features[1]).max() > 1e-3


@pytest.mark.slow
def test_a_vit_and_characters():
    vit = dp.models.vit((8, 8, 1), patch=4, width=8, depth=1, heads=2, outputs=6)
    text = con.text_tower(LETTERS.count, LETTERS.length, width=8, depth=1, heads=2, outputs=6)
    towers = con.towers(vit, text, LETTERS, key=jax.random.key(0))
    assert con.similarity(towers, IMAGES, ["any text at all"]).shape == (3, 1)
    assert {"tokens", "block0.hidden", "pooled", "features"} <= set(
        dp.nodes.names(towers.text, jnp.ones((1, 16), jnp.int32))
    )


def test_a_text_tower_that_does_not_know_its_tokenizer_is_refused_where_the_two_meet():
    fewer = con.text_tower(len(KNOWN.known), KNOWN.length, width=8, depth=1, heads=2, outputs=6)
    longer = con.text_tower(KNOWN.count, 5, width=8, depth=1, heads=2, outputs=6)
    with pytest.raises(
        ValueError,
        match=r"text must read rows of 4 ids up to 4, as the tokenizer makes them: ids must lie in 0 .. 3",
    ):
        con.towers(IMAGE, fewer, KNOWN, key=jax.random.key(0))
    with pytest.raises(
        ValueError,
        match=r"text must read rows of 4 ids up to 4, .*: ids must have shape \(batch, 5\), got \[1, 4\]",
    ):
        con.towers(IMAGE, longer, KNOWN, key=jax.random.key(0))


@pytest.mark.parametrize("within", [lambda f: f, jax.jit])
def test_a_text_of_an_id_that_the_tower_does_not_know_is_refused(within):
    other = pair()._replace(tokenizer=con.words(["a b c d e f g"], length=4))
    asked = within(lambda towers, texts=("g",): con.similarity(towers, IMAGES, list(texts)))
    with pytest.raises(
        ValueError, match=r"towers.text must read rows of 4 ids up to 7, .*: ids must lie in 0 .. 4"
    ):
        asked(other)
    assert con.similarity(other, IMAGES, ["a b"]).shape == (3, 1)


def test_features_of_two_lengths_are_refused_before_anything_is_compiled(caplog):
    towers, texts = other_length(), [*TEXTS, "a", "a one"]
    with (
        jax.log_compiles(True),
        caplog.at_level(logging.WARNING),
        pytest.raises(ValueError, match="features of one length"),
    ):
        con.similarity(towers, IMAGES, texts)
    assert not [record for record in caplog.records if "Compiling jit(_unit)" in record.message]


def other_length():
    return pair()._replace(text=dp.program(lambda ids: jnp.ones((len(ids), 5))))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: con.towers(IMAGE.apply, TEXT, KNOWN, key=jax.random.key(0)),
            TypeError,
            "image must be a Model",
        ),
        (
            lambda: con.towers(IMAGE, None, KNOWN, key=jax.random.key(0)),
            TypeError,
            "text must be a Model",
        ),
        (
            lambda: con.towers(IMAGE, TEXT, str, key=jax.random.key(0)),
            TypeError,
            "tokenizer must have encode and decode",
        ),
        (lambda: con.towers(IMAGE, TEXT, KNOWN, key=0), TypeError, "key"),
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
            r"ids must have shape \(batch, 4\)",
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
            lambda: con.similarity(other_length(), IMAGES, TEXTS),
            ValueError,
            r"features of one length, got \[3, 6\] of images and \[3, 5\]",
        ),
        (
            lambda: con.zero_shot(other_length(), IMAGES, TEXTS),
            ValueError,
            "features of one length",
        ),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
