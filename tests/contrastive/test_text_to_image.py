"""Text-to-image generation: closed forms for color encoders, prompt weights, and errors."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffprog as dp

con, vis = dp.contrastive, dp.visualization

KEY = jax.random.key(0)
WORDS = con.words(["red green blue"])
SHAPE = (1, 1, 3)
BALL = vis.pixels(SHAPE, range=(-jnp.inf, jnp.inf), project=lambda x: x / jnp.linalg.norm(x))


def towers(mix=None):
    """Return a dual encoder of colors: one-pixel images, and words as their unit vectors."""
    colors = jnp.concatenate([jnp.zeros((1, 3)), jnp.eye(3)[jnp.array([2, 1, 0])]])
    mix = jnp.eye(3) if mix is None else mix
    image = dp.program(lambda mix, images: images.reshape(len(images), -1) @ mix, mix)
    return con.Towers(
        image, dp.program(lambda colors, ids: colors[ids].sum(1), colors), WORDS, jnp.float32(1)
    )


def generate(text, image=BALL, **options):
    return con.generate(towers(), text, image, key=KEY, steps=300, **options)


def unit(vector):
    return np.asarray(vector, float) / np.linalg.norm(vector)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "direction"),
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
def test_the_image_is_the_direction_of_the_weighted_texts(prompt, direction):
    result = generate(prompt)
    np.testing.assert_allclose(result.images.ravel(), unit(direction), atol=5e-3)


def test_similarities_and_scores_agree_with_the_image():
    result = generate({"red": 1.0, "blue": -0.5})
    pixel = unit(np.asarray(result.images).ravel())
    np.testing.assert_allclose(
        [result.similarities[0]["red"], result.similarities[0]["blue"]], pixel[[0, 2]], atol=1e-5
    )
    np.testing.assert_allclose(result.seen.scores, [pixel[0] - 0.5 * pixel[2]], atol=1e-5)
    assert result.names == ("red:1 | blue:-0.5",)
    assert str(result).startswith("red:1 | blue:-0.5: red 0.89")


def test_similarities_are_those_of_the_image_without_its_random_transforms():
    result = generate(["red", "blue:2 | green"], transforms=[vis.noise(1.0)])
    red, other = np.asarray(result.images).reshape(2, 3)
    assert result.similarities[0] == pytest.approx({"red": unit(red)[0]}, abs=1e-5)
    expected = {"blue": unit(other)[2], "green": unit(other)[1]}
    assert result.similarities[1] == pytest.approx(expected, abs=1e-5)


def test_texts_of_negative_weight_alone_are_avoided():
    result = generate("red:-1 | blue:-2")
    np.testing.assert_allclose(result.images.ravel(), unit([-1, 0, -2]), atol=5e-3)
    np.testing.assert_allclose(result.seen.scores, np.sqrt(5), rtol=1e-4)


@pytest.mark.slow
def test_prompts_generated_together_agree_with_one_alone():
    prompts = ["red", {"green": 2}, "blue:1 | red:-0.5"]
    together = generate(prompts)
    assert together.names == ("red", "green:2", "blue:1 | red:-0.5")
    assert together.images.shape == (3, *SHAPE)
    assert [set(row) for row in together.similarities] == [{"red"}, {"green"}, {"blue", "red"}]
    np.testing.assert_allclose(together.images[:1], generate("red").images, atol=1e-5)


def test_lengths_of_text_features_are_ignored():
    np.testing.assert_allclose(
        generate("red:1 | green blue:1").images.ravel(), unit([1, 0.5**0.5, 0.5**0.5]), atol=5e-3
    )


def test_similar_to_combines_with_other_objectives():
    objective = con.similar_to(towers(), "red:2 | blue") - vis.logit(0)
    assert objective.names == ("red:2 | blue:1 - logit[0]",)
    result = vis.visualize(
        towers().image, objective, BALL, key=KEY, steps=300, optimizer=optax.sgd(0.1)
    )
    np.testing.assert_allclose(result.images.ravel(), unit([1, 0, 1]), atol=5e-3)


@pytest.mark.slow
def test_all_parametrizations_of_an_image():
    data = jax.random.uniform(jax.random.key(1), (20, *SHAPE))
    for image in (vis.pixels(SHAPE), vis.fourier(SHAPE), vis.covariance(data)):
        result = generate("red", image)
        assert 0 <= float(result.images.min()) <= float(result.images.max()) <= 1
        assert result.similarities[0]["red"] > 0.9


def test_penalties_are_subtracted():
    penalty = vis.to_reference(jnp.asarray([0.2, 0.4, 0.1]).reshape(SHAPE))
    result = generate("red", vis.pixels(SHAPE), penalties={penalty: 1e3})
    np.testing.assert_allclose(result.images.ravel(), [0.2, 0.4, 0.1], atol=2e-3)


@pytest.mark.slow
def test_transforms_can_change_the_size():
    patches = towers()._replace(
        image=dp.program(
            lambda images: images.sum((1, 2)) + 0 * images.reshape(len(images), 12)[:, :3]
        )
    )
    result = con.generate(
        patches, "red", vis.pixels((4, 4, 3)), key=KEY, steps=50, transforms=[vis.crop(2)]
    )
    assert result.images.shape == (1, 4, 4, 3)
    assert result.similarities[0]["red"] > 0.9


def test_other_texts_weights_and_encoders_do_not_recompile(caplog):
    run = lambda text, mix: con.generate(towers(mix), text, BALL, key=KEY, steps=20)
    first, double = run("red:1 | blue:-0.5", jnp.eye(3)), 2 * jnp.eye(3)
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        other, same = run("green:1 | blue:-1", double), run("red:1 | blue:-0.5", jnp.eye(3))
    assert not [record for record in caplog.records if "Compiling" in record.message]
    np.testing.assert_array_equal(first.images, same.images)
    assert np.abs(other.images - first.images).max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"text": 7}, TypeError, "text must be a prompt or a sequence of prompts, got int"),
        ({"text": []}, ValueError, "text must hold at least one prompt"),
        ({"text": ["red", 7]}, TypeError, r"text\[1\] must be a text or a dict"),
        ({"text": ""}, ValueError, "text must hold nonempty texts, got ''"),
        ({"text": "red | "}, ValueError, "text must hold nonempty texts"),
        ({"text": {}}, ValueError, "text must have a nonzero weight"),
        ({"text": "red:0"}, ValueError, "text must have a nonzero weight, got 'red:0'"),
        (
            {"text": {"red": float("nan")}},
            ValueError,
            "the weight of 'red' must be a finite number",
        ),
        ({"text": {"red": "1"}}, TypeError, "the weight of 'red' must be a number, got str"),
        ({"text": {7: 1.0}}, ValueError, "nonempty texts, got 7"),
        ({"text": "mauve"}, ValueError, "tokens of the vocabulary, got 'mauve'"),
        *(
            (
                {"text": f"blue | red:{weight}"},
                ValueError,
                f"text must have a finite number as weight .* got 'red:{weight}'",
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
            r"text\[1\] must have a finite number as weight",
        ),
        (
            {"text": "red:1 | Red:-1"},
            ValueError,
            "text must not cancel, got 'red:1 | Red:-1', whose .* add up to 0",
        ),
        (
            {"text": {"red green": 0.5, "green red": -0.5}},
            ValueError,
            "text must not cancel",
        ),
        *(
            (
                {"text": text},
                ValueError,
                f"text must have a largest weight of size 1e-06 .. 1e\\+06, got {got}",
            )
            for text, got in (
                ("red:1e-9", "'red:1e-9'"),
                ({"red": 1e20, "blue": 1}, "{'red': "),
                ({"red": -1e20, "blue": 1}, "{'red': "),
            )
        ),
        ({"towers": None}, TypeError, "towers must be Towers"),
        ({"image": SHAPE}, TypeError, "image must be an Image"),
        (
            {"image": vis.pixels((2, 2, 1))},
            ValueError,
            r"outputs \(batch, 3\), like the text features, got \[1, 4\]",
        ),
        ({"key": 0}, TypeError, "key"),
        ({"steps": 0}, ValueError, "steps"),
        ({"transforms": vis.jitter(1)}, TypeError, "transforms"),
    ],
)
def test_refuses(arguments, error, message):
    plain = towers()._replace(image=dp.program(lambda images: images.reshape(len(images), -1)))
    given = {"towers": plain, "text": "red", "image": BALL, "key": KEY} | arguments
    with pytest.raises(error, match=message):
        con.generate(**given)
    if set(arguments) <= {"text", "towers"}:
        with pytest.raises(error, match=message):
            con.similar_to(given["towers"], given["text"])


@pytest.mark.parametrize("text", ["red: green", "red: information", "RED: nano"])
def test_a_colon_without_a_number_is_part_of_the_text(text):
    tokenizer = con.words(["red green information nano"])
    pair = towers()._replace(tokenizer=tokenizer, text=dp.program(lambda ids: 1.0 * ids[:, :3] + 1))
    assert con.similar_to(pair, text).names == (text,)


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_extreme_weights_generate_the_same_image(size):
    np.testing.assert_allclose(
        generate({"red": size, "blue": -size / 2}).images.ravel(), unit([1, 0, -0.5]), atol=5e-3
    )


def test_refuses_traced_towers():
    with pytest.raises(
        TypeError,
        match=r"towers.* must have values, got a traced array; call generate outside the",
    ):
        jax.jit(lambda given: con.generate(given, "red", BALL, key=KEY, steps=2).images)(towers())
