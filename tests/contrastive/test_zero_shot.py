"""Zero-shot classification and retrieval against closed forms, for color encoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp

con = dp.contrastive

WORDS = con.words(["red green blue"])
# One-pixel images are their own features; a word is the unit vector of its color.
COLORS = jnp.asarray([[0.0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
TOWERS = con.Towers(
    dp.program(lambda images: images.reshape(len(images), -1)),
    dp.program(lambda colors, ids: colors[ids].sum(1), COLORS),
    WORDS,
    jnp.float32(np.log(10)),
)
IMAGES = jnp.asarray([[0.9, 0.1, 0.3], [0.1, 0.2, 0.8], [0.4, 0.5, 0.0], [0.0, 0.0, 0.0]]).reshape(
    4, 1, 1, 3
)


def unit(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def test_the_predicted_class_is_the_nearest_color():
    result = con.zero_shot(TOWERS, IMAGES[:3], ["red", "green", "blue"])
    assert result.labels.tolist() == [0, 2, 1]
    assert result.names == ("red", "green", "blue")
    odds = np.exp(10 * unit(np.asarray(IMAGES[:3]).reshape(3, 3)))
    np.testing.assert_allclose(result.probabilities, odds / odds.sum(1, keepdims=True), rtol=1e-5)


def test_zero_features_give_uniform_probabilities():
    np.testing.assert_allclose(
        con.zero_shot(TOWERS, IMAGES[3:], ["red", "green"]).probabilities, 0.5
    )


def test_a_prompt_ensemble_is_the_mean_of_unit_features():
    result = con.zero_shot(TOWERS, IMAGES[:3], {"warm": ["red", "red green"], "cold": ["blue"]})
    means = unit(
        np.stack([unit(np.array([1.0, 0, 0])) + unit(np.array([1.0, 1, 0])), np.array([0.0, 0, 1])])
    )
    odds = np.exp(10 * unit(np.asarray(IMAGES[:3]).reshape(3, 3)) @ means.T)
    np.testing.assert_allclose(result.probabilities, odds / odds.sum(1, keepdims=True), rtol=1e-5)
    assert result.names == ("warm", "cold")


def test_recall_at_k_of_pairs():
    # Image 0 is red, image 1 blue and image 2 between red and green.
    result = con.retrieval(TOWERS, IMAGES[:3], ["red", "blue", "red green"], among=(1, 2))
    assert result.texts == {1: 1.0, 2: 1.0}
    result = con.retrieval(TOWERS, IMAGES[:3], ["green", "blue", "red"], among=(1, 2, 5))
    assert result.texts == {1: 1 / 3, 2: 2 / 3, 5: 1.0}
    assert result.images == {1: 1 / 3, 2: 2 / 3, 5: 1.0}


def test_recall_at_k_with_several_matches():
    true = np.array([[True, False, True], [False, False, False], [False, True, False]])
    result = con.retrieval(
        TOWERS, IMAGES[:3], ["red", "green", "red green blue"], true, among=(1, 3)
    )
    # Image 1 has no match and is no query. Image 2 is nearest to text 2, which does not match it.
    assert result.texts == {1: 0.5, 3: 1.0}
    np.testing.assert_allclose([result.images[1], result.images[3]], [2 / 3, 1])


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
            "true must be given .* got 4 images and 1 texts",
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


def test_retrieval_refuses_traced_images():
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda images: con.retrieval(TOWERS, images, ["red"] * 4).texts[1])(IMAGES)
