"""Zero-shot and retrieval against cosines sorted by hand, on towers whose every angle is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp

con = dp.contrastive

KNOWN = con.words(["red green blue"])
# An image of one pixel with three colours is its own features; a word is the unit vector of its colour.
COLOURS = jnp.asarray([[0.0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
TOWERS = con.Towers(
    dp.program(lambda images: images.reshape(len(images), -1)),
    dp.program(lambda colours, ids: colours[ids].sum(1), COLOURS),
    KNOWN,
    jnp.float32(np.log(10)),
)
IMAGES = jnp.asarray([[0.9, 0.1, 0.3], [0.1, 0.2, 0.8], [0.4, 0.5, 0.0], [0.0, 0.0, 0.0]]).reshape(
    4, 1, 1, 3
)


def unit(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def test_the_likeliest_class_is_the_nearest_colour():
    found = con.zero_shot(TOWERS, IMAGES[:3], ["red", "green", "blue"])
    assert found.labels.tolist() == [0, 2, 1]
    assert found.names == ("red", "green", "blue")
    odds = np.exp(10 * unit(np.asarray(IMAGES[:3]).reshape(3, 3)))
    np.testing.assert_allclose(found.probabilities, odds / odds.sum(1, keepdims=True), rtol=1e-5)


def test_an_image_without_features_says_nothing():
    np.testing.assert_allclose(
        con.zero_shot(TOWERS, IMAGES[3:], ["red", "green"]).probabilities, 0.5
    )


def test_several_prompts_count_by_the_mean_of_their_directions():
    found = con.zero_shot(TOWERS, IMAGES[:3], {"warm": ["red", "red green"], "cold": ["blue"]})
    means = unit(
        np.stack([unit(np.array([1.0, 0, 0])) + unit(np.array([1.0, 1, 0])), np.array([0.0, 0, 1])])
    )
    odds = np.exp(10 * unit(np.asarray(IMAGES[:3]).reshape(3, 3)) @ means.T)
    np.testing.assert_allclose(found.probabilities, odds / odds.sum(1, keepdims=True), rtol=1e-5)
    assert found.names == ("warm", "cold")


def test_recall_of_pairs():
    # Image 0 is red, image 1 blue and image 2 between red and green.
    found = con.retrieval(TOWERS, IMAGES[:3], ["red", "blue", "red green"], among=(1, 2))
    assert found.texts == {1: 1.0, 2: 1.0}
    found = con.retrieval(TOWERS, IMAGES[:3], ["green", "blue", "red"], among=(1, 2, 5))
    assert found.texts == {1: 1 / 3, 2: 2 / 3, 5: 1.0}
    assert found.images == {1: 1 / 3, 2: 2 / 3, 5: 1.0}


def test_recall_with_several_true_texts():
    true = np.array([[True, False, True], [False, False, False], [False, True, False]])
    found = con.retrieval(
        TOWERS, IMAGES[:3], ["red", "green", "red green blue"], true, among=(1, 3)
    )
    # Image 1 has no text and is not asked about. Image 2 and the third text choose one another, of which nothing is true.
    assert found.texts == {1: 0.5, 3: 1.0}
    np.testing.assert_allclose([found.images[1], found.images[3]], [2 / 3, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: con.zero_shot(None, IMAGES, ["red"]), TypeError, "towers"),
        (lambda: con.zero_shot(TOWERS, IMAGES[0], ["red"]), ValueError, "images must have rank 4"),
        (
            lambda: con.zero_shot(TOWERS, 255 * IMAGES, ["red"]),
            ValueError,
            "images must lie in 0 .. 1",
        ),
        (
            lambda: con.retrieval(TOWERS, IMAGES - 1, ["red"] * 4),
            ValueError,
            "images must lie in 0 .. 1",
        ),
        (lambda: con.zero_shot(TOWERS, IMAGES, "red"), TypeError, "classes must be a sequence"),
        (lambda: con.zero_shot(TOWERS, IMAGES, []), ValueError, "classes must hold at least one"),
        (lambda: con.zero_shot(TOWERS, IMAGES, {}), ValueError, "classes must hold at least one"),
        (
            lambda: con.zero_shot(TOWERS, IMAGES, {"warm": []}),
            ValueError,
            r"classes\['warm'\] must hold at least one",
        ),
        (
            lambda: con.zero_shot(TOWERS, IMAGES, {"warm": "red"}),
            TypeError,
            r"classes\['warm'\] must be a sequence",
        ),
        (lambda: con.zero_shot(TOWERS, IMAGES, ["mauve"]), ValueError, "'mauve'"),
        (
            lambda: con.zero_shot(TOWERS, IMAGES, ["red", "red"]),
            ValueError,
            "classes must differ, got 'red' twice",
        ),
        (
            lambda: con.retrieval(TOWERS, IMAGES, ["red"]),
            ValueError,
            "true must say which .* got 4 and 1",
        ),
        (
            lambda: con.retrieval(TOWERS, IMAGES, ["red"], np.ones((4, 1))),
            TypeError,
            "true must be bool",
        ),
        (
            lambda: con.retrieval(TOWERS, IMAGES, ["red"], np.ones((1, 4), bool)),
            TypeError,
            r"true must be bool \[4, 1\]",
        ),
        (
            lambda: con.retrieval(TOWERS, IMAGES, ["red"], np.zeros((4, 1), bool)),
            ValueError,
            "true must be True",
        ),
        (lambda: con.retrieval(TOWERS, IMAGES[:1], ["red"], among=(0,)), ValueError, "among"),
        (lambda: con.retrieval(TOWERS, IMAGES[:1], ["red"], among=()), ValueError, "among"),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_under_jit_retrieval_says_what_to_do():
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda images: con.retrieval(TOWERS, images, ["red"] * 4).texts[1])(IMAGES)
