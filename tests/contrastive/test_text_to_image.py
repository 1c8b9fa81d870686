"""Images from sentences: closed forms on towers of colours, prompts and their weights, an objective among others, and what is refused."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffprog as dp

con, vis = dp.contrastive, dp.visualization

KEY = jax.random.key(0)
KNOWN = con.words(["red green blue"])
SHAPE = (1, 1, 3)
BALL = vis.pixels(SHAPE, range=(-jnp.inf, jnp.inf), project=lambda x: x / jnp.linalg.norm(x))


def towers(mix=None):
    """An image of one pixel with three colours is its own features; a word is the unit vector of its colour."""
    colours = jnp.concatenate([jnp.zeros((1, 3)), jnp.eye(3)[jnp.array([2, 1, 0])]])
    mix = jnp.eye(3) if mix is None else mix
    image = dp.program(lambda mix, images: images.reshape(len(images), -1) @ mix, mix)
    return con.Towers(
        image, dp.program(lambda colours, ids: colours[ids].sum(1), colours), KNOWN, jnp.float32(1)
    )


def made(text, image=BALL, **options):
    return con.generate(towers(), text, image, key=KEY, steps=300, **options)


def unit(vector):
    return np.asarray(vector, float) / np.linalg.norm(vector)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "toward"),
    [
        ("red", [1, 0, 0]),
        ("red green", [1, 1, 0]),
        ("red:2 | blue:1", [2, 0, 1]),
        ("red:1 | blue:-0.5", [1, 0, -0.5]),
        ({"green": 1, "blue": -2}, [0, 1, -2]),
        ("red | red | green", [2, 1, 0]),
        ("green:-1e0|blue:.5", [0, -1, 0.5]),
    ],
)
def test_the_image_points_where_the_weighted_texts_do(prompt, toward):
    one = made(prompt)
    np.testing.assert_allclose(one.images.ravel(), unit(toward), atol=5e-3)


def test_similarities_and_scores_are_those_of_the_image():
    one = made({"red": 1.0, "blue": -0.5})
    pixel = unit(np.asarray(one.images).ravel())
    np.testing.assert_allclose(
        [one.similarities[0]["red"], one.similarities[0]["blue"]], pixel[[0, 2]], atol=1e-5
    )
    np.testing.assert_allclose(one.seen.scores, [pixel[0] - 0.5 * pixel[2]], atol=1e-5)
    assert one.names == ("red:1 | blue:-0.5",)
    assert str(one).startswith("red:1 | blue:-0.5: red 0.89")


@pytest.mark.slow
def test_one_image_for_each_prompt_made_alone_or_together():
    prompts = ["red", {"green": 2}, "blue:1 | red:-0.5"]
    together = made(prompts)
    assert together.names == ("red", "green:2", "blue:1 | red:-0.5")
    assert together.images.shape == (3, *SHAPE)
    assert [set(row) for row in together.similarities] == [{"red"}, {"green"}, {"blue", "red"}]
    np.testing.assert_allclose(together.images[:1], made("red").images, atol=1e-5)


def test_the_length_of_a_text_says_nothing():
    np.testing.assert_allclose(
        made("red:1 | green blue:1").images.ravel(), unit([1, 0.5**0.5, 0.5**0.5]), atol=5e-3
    )


def test_it_is_one_objective_among_others():
    objective = con.similar_to(towers(), "red:2 | blue") - vis.logit(0)
    assert objective.names == ("red:2 | blue:1 - logit[0]",)
    seen = vis.visualize(
        towers().image, objective, BALL, key=KEY, steps=300, optimizer=optax.sgd(0.1)
    )
    np.testing.assert_allclose(seen.images.ravel(), unit([1, 0, 1]), atol=5e-3)


@pytest.mark.slow
def test_pixels_frequencies_and_the_covariance_of_images():
    data = jax.random.uniform(jax.random.key(1), (20, *SHAPE))
    for image in (vis.pixels(SHAPE), vis.fourier(SHAPE), vis.covariance(data)):
        one = made("red", image)
        assert 0 <= float(one.images.min()) <= float(one.images.max()) <= 1
        assert one.similarities[0]["red"] > 0.9


def test_what_is_subtracted_is():
    stay = vis.to_reference(jnp.asarray([0.2, 0.4, 0.1]).reshape(SHAPE))
    kept = made("red", vis.pixels(SHAPE), penalties={stay: 1e3})
    np.testing.assert_allclose(kept.images.ravel(), [0.2, 0.4, 0.1], atol=2e-3)


@pytest.mark.slow
def test_transforms_that_change_the_size():
    patches = towers()._replace(
        image=dp.program(
            lambda images: images.sum((1, 2)) + 0 * images.reshape(len(images), 12)[:, :3]
        )
    )
    one = con.generate(
        patches, "red", vis.pixels((4, 4, 3)), key=KEY, steps=50, transforms=[vis.crop(2)]
    )
    assert one.images.shape == (1, 4, 4, 3)
    assert one.similarities[0]["red"] > 0.9


def test_other_sentences_other_weights_and_other_towers_compile_nothing(caplog):
    go = lambda text, mix: con.generate(towers(mix), text, BALL, key=KEY, steps=20)
    first, double = go("red:1 | blue:-0.5", jnp.eye(3)), 2 * jnp.eye(3)
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        other, same = go("green:1 | blue:-1", double), go("red:1 | blue:-0.5", jnp.eye(3))
    assert not [record for record in caplog.records if "Compiling" in record.message]
    np.testing.assert_array_equal(first.images, same.images)
    assert np.abs(other.images - first.images).max() > 0.1


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"text": 7}, TypeError, "text must be a prompt or a sequence of prompts, got int"),
        ({"text": []}, ValueError, "text must hold at least one prompt"),
        ({"text": ["red", 7]}, TypeError, r"text\[1\] must be a sentence or a dict"),
        ({"text": ""}, ValueError, "text must hold sentences, got ''"),
        ({"text": "red | "}, ValueError, "text must hold sentences"),
        ({"text": {}}, ValueError, "text must have a weight that is not 0"),
        ({"text": "red:0"}, ValueError, "text must have a weight that is not 0, got 'red:0'"),
        (
            {"text": {"red": float("nan")}},
            ValueError,
            "the weight of 'red' must be a finite number",
        ),
        ({"text": {"red": "1"}}, TypeError, "the weight of 'red' must be a number, got str"),
        ({"text": {7: 1.0}}, ValueError, "sentences, got 7"),
        ({"text": "mauve"}, ValueError, "known pieces, got 'mauve'"),
        *(
            (
                {"text": f"blue | red:{weight}"},
                ValueError,
                f"text must have a finite number for a weight .* got 'red:{weight}'",
            )
            for weight in (
                "1,5",
                "1/2",
                "--1",
                "",
                "-",
                "nan",
                "Infinity",
                "-inf",
                "1e999",
                "2 blue",
                ".5.5",
            )
        ),
        (
            {"text": ["red", "red: 1 2"]},
            ValueError,
            r"text\[1\] must have a finite number for a weight",
        ),
        (
            {"text": "red:1 | Red:-1"},
            ValueError,
            "text must ask for something, got 'red:1 | Red:-1', of which .* add up to 0",
        ),
        (
            {"text": {"red green": 0.5, "green red": -0.5}},
            ValueError,
            "text must ask for something",
        ),
        (
            {"text": "red:1e-9"},
            ValueError,
            "text must have a largest weight of size 1e-06 .. 1e\\+06, got 'red:1e-9'",
        ),
        ({"text": {"red": 1e20, "blue": 1}}, ValueError, "text must have a largest weight of size"),
        ({"towers": None}, TypeError, "towers must be Towers"),
        ({"image": SHAPE}, TypeError, "image must be an Image"),
        (
            {"image": vis.pixels((2, 2, 1))},
            ValueError,
            r"outputs \(batch, 3\), as the texts' features, got \[1, 4\]",
        ),
        ({"key": 0}, TypeError, "key"),
        ({"steps": 0}, ValueError, "steps"),
        ({"transforms": vis.jitter(1)}, TypeError, "transforms"),
    ],
)
def test_refuses(changed, error, message):
    plain = towers()._replace(image=dp.program(lambda images: images.reshape(len(images), -1)))
    given = {"towers": plain, "text": "red", "image": BALL, "key": KEY} | changed
    with pytest.raises(error, match=message):
        con.generate(**given)
    if set(changed) <= {"text", "towers"}:
        with pytest.raises(error, match=message):
            con.similar_to(given["towers"], given["text"])


@pytest.mark.parametrize("sentence", ["red: green", "red: information", "RED: nano"])
def test_a_colon_in_a_sentence_is_no_weight(sentence):
    known = con.words(["red green information nano"])
    anyhow = towers()._replace(tokenizer=known, text=dp.program(lambda ids: 1.0 * ids[:, :3] + 1))
    assert con.similar_to(anyhow, sentence).names == (sentence,)


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_weights_of_any_size_that_is_allowed_move_the_image(size):
    np.testing.assert_allclose(
        made({"red": size, "blue": -size / 2}).images.ravel(), unit([1, 0, -0.5]), atol=5e-3
    )


def test_under_jit_it_says_what_to_do():
    with pytest.raises(
        TypeError,
        match=r"towers.* must have values, got a traced array; generate outside the transformation",
    ):
        jax.jit(lambda given: con.generate(given, "red", BALL, key=KEY, steps=2).images)(towers())
