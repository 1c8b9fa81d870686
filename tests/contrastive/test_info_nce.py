"""Contrastive losses against a double loop, their symmetries, precision, and errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog.contrastive import info_nce, sigmoid_loss

BATCH, WIDTH = 4, 5
SCALE, BIAS = jnp.float32(1.3), jnp.float32(-2.0)
IMAGES, TEXTS = (jax.random.normal(jax.random.key(k), (BATCH, WIDTH)) for k in range(2))
POSITIVE = np.eye(BATCH, dtype=bool)
POSITIVE[0, 2] = POSITIVE[0, 3] = POSITIVE[3, 1] = True


def cosine(u, v):
    return (u * v).sum() / jnp.sqrt((u * u).sum()) / jnp.sqrt((v * v).sum())


def naive_info_nce(images, texts, log_scale, positive):
    """Evaluate the formula term by term."""
    z = [[jnp.exp(log_scale) * cosine(u, v) for v in texts] for u in images]
    total = 0.0
    for i in range(BATCH):
        positive_texts = [j for j in range(BATCH) if positive[i, j]]
        positive_images = [j for j in range(BATCH) if positive[j, i]]
        row = sum(jnp.exp(z[i][k]) for k in range(BATCH))
        column = sum(jnp.exp(z[k][i]) for k in range(BATCH))
        for_texts = sum(jnp.log(jnp.exp(z[i][j]) / row) for j in positive_texts)
        for_images = sum(jnp.log(jnp.exp(z[j][i]) / column) for j in positive_images)
        total -= (for_texts / len(positive_texts) + for_images / len(positive_images)) / 2
    return total / BATCH


def naive_sigmoid_loss(images, texts, log_scale, bias, positive):
    total = 0.0
    for i in range(BATCH):
        for j in range(BATCH):
            z = jnp.exp(log_scale) * cosine(images[i], texts[j]) + bias
            total += jnp.log(1 + jnp.exp(-z if positive[i, j] else z))
    return total / BATCH


@pytest.mark.parametrize("positive", [None, POSITIVE])
@pytest.mark.parametrize(
    ("loss", "naive", "inputs"),
    [
        (info_nce, naive_info_nce, (IMAGES, TEXTS, SCALE)),
        (sigmoid_loss, naive_sigmoid_loss, (IMAGES, TEXTS, SCALE, BIAS)),
    ],
)
def test_value_and_gradient_agree_with_a_double_loop(loss, naive, inputs, positive):
    pairs = np.eye(BATCH, dtype=bool) if positive is None else positive
    arguments = range(len(inputs))
    with jax.enable_x64(True):
        inputs = [jnp.asarray(np.asarray(value, np.float64)) for value in inputs]
        mean_loss = lambda *args: loss(*args, positive=positive).mean()
        naive_loss = lambda *args: naive(*args, pairs)
        value_and_gradient = jax.value_and_grad(mean_loss, arguments)(*inputs)
        expected = jax.jit(jax.value_and_grad(naive_loss, arguments))(*inputs)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9),
            value_and_gradient,
            expected,
        )


@pytest.mark.parametrize(
    "loss", [info_nce, lambda *args, **options: sigmoid_loss(*args, BIAS, **options)]
)
def test_losses_are_symmetric_in_images_and_texts(loss):
    swapped = loss(TEXTS, IMAGES, SCALE, positive=POSITIVE.T)
    np.testing.assert_allclose(loss(IMAGES, TEXTS, SCALE, positive=POSITIVE), swapped, rtol=1e-5)


@pytest.mark.parametrize("loss", [info_nce, lambda *args: sigmoid_loss(*args, BIAS)])
def test_losses_do_not_depend_on_feature_lengths(loss):
    lengths = jnp.exp(jax.random.normal(jax.random.key(3), (BATCH, 1)))
    np.testing.assert_allclose(
        loss(IMAGES * lengths, 9 * TEXTS, SCALE), loss(IMAGES, TEXTS, SCALE), rtol=1e-5
    )


def test_info_nce_of_uninformative_features_is_the_log_of_the_batch_size():
    np.testing.assert_allclose(
        info_nce(jnp.ones((7, 2)), jnp.ones((7, 2)), SCALE), math.log(7), rtol=1e-6
    )


@pytest.mark.slow
def test_marked_duplicates_are_not_negatives():
    images = jnp.stack([IMAGES[0], IMAGES[0], -IMAGES[0]])
    same = np.array([[True, True, False], [True, True, False], [False, False, True]])
    log_scale = jnp.float32(math.log(50))
    np.testing.assert_allclose(
        info_nce(images, images, log_scale), [math.log(2), math.log(2), 0], atol=1e-6
    )
    # With both marked as positives, the loss is at its minimum, the entropy of two equal choices.
    loss, gradient = jax.value_and_grad(
        lambda images: info_nce(images, images, log_scale, positive=same).mean()
    )(images)
    np.testing.assert_allclose(loss, 2 * math.log(2) / 3, rtol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_the_diagonal_is_always_positive():
    none = np.zeros((BATCH, BATCH), bool)
    np.testing.assert_array_equal(
        info_nce(IMAGES, TEXTS, SCALE, positive=none), info_nce(IMAGES, TEXTS, SCALE)
    )


def test_the_scale_is_clipped_at_100_and_can_decrease_again():
    random = lambda log_scale: info_nce(IMAGES, TEXTS, log_scale).mean()
    np.testing.assert_array_equal(random(jnp.float32(9.0)), random(jnp.float32(math.log(100))))
    # A lower scale is better for random pairs, a higher one for pairs that agree.
    assert jax.grad(random)(jnp.float32(9.0)) > 0
    similar = lambda log_scale: info_nce(IMAGES, IMAGES + 0.6 * TEXTS, log_scale).mean()
    assert jax.grad(similar)(jnp.float32(1.0)) < 0
    separable = lambda log_scale: info_nce(jnp.eye(3), jnp.eye(3) - 0.999, log_scale).mean()
    assert jax.grad(separable)(jnp.float32(9.0)) == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_logits_are_float32_for_half_precision_features(dtype):
    low = (IMAGES.astype(dtype), TEXTS.astype(dtype))
    log_scale = jnp.asarray(math.log(64), dtype)
    loss = info_nce(*low, log_scale)
    assert loss.dtype == jnp.float32
    exact = info_nce(*(each.astype(jnp.float32) for each in low), log_scale.astype(jnp.float32))
    np.testing.assert_allclose(loss, exact, rtol=1e-6)
    assert sigmoid_loss(*low, log_scale, BIAS.astype(dtype)).dtype == jnp.float32
    assert (
        jax.grad(lambda images: info_nce(images, low[1], log_scale).mean())(low[0]).dtype == dtype
    )


def test_the_gradient_at_zero_features_is_finite():
    gradient = jax.grad(lambda images: info_nce(images, TEXTS, SCALE).mean())(IMAGES.at[2].set(0))
    assert np.isfinite(gradient).all()


def test_jit_agrees_with_eager():
    np.testing.assert_allclose(
        jax.jit(info_nce)(IMAGES, TEXTS, SCALE), info_nce(IMAGES, TEXTS, SCALE), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": [[1.0]]}, TypeError, "images must be an array"),
        ({"images": IMAGES.astype(int)}, TypeError, "images must be a float array"),
        ({"texts": TEXTS[0]}, ValueError, "texts must have rank 2"),
        ({"texts": TEXTS[1:]}, ValueError, "shapes must agree"),
        ({"texts": TEXTS.at[0, 0].set(jnp.nan)}, ValueError, "texts must be finite"),
        ({"images": IMAGES[:0], "texts": TEXTS[:0]}, ValueError, "empty"),
        (
            {"images": IMAGES[:, :0], "texts": TEXTS[:, :0]},
            ValueError,
            r"at least one feature, got shape \[4, 0\]",
        ),
        ({"log_scale": jnp.ones(1)}, TypeError, "log_scale must be a float scalar"),
        ({"log_scale": 2}, TypeError, "log_scale must be a float scalar"),
        ({"log_scale": jnp.float32(jnp.inf)}, ValueError, "log_scale must be finite"),
        ({"positive": np.eye(BATCH)}, TypeError, "positive must be bool"),
        ({"positive": np.eye(BATCH + 1, dtype=bool)}, TypeError, "positive must be bool"),
        ({"positive": True}, TypeError, "positive must be bool"),
    ],
)
def test_refuses(arguments, error, message):
    given = {"images": IMAGES, "texts": TEXTS, "log_scale": SCALE} | arguments
    with pytest.raises(error, match=message):
        info_nce(**given)
    with pytest.raises(error, match=message):
        sigmoid_loss(**given, bias=BIAS)


@pytest.mark.parametrize("bias", [1, jnp.ones(2), None])
def test_refuses_an_invalid_bias(bias):
    with pytest.raises(TypeError, match="bias"):
        sigmoid_loss(IMAGES, TEXTS, SCALE, bias)
