"""Contrastive losses against a double loop, their symmetries, and what batches and bfloat16 do to them."""

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
    """As the formula is written, one logarithm of one share after another."""
    z = [[jnp.exp(log_scale) * cosine(u, v) for v in texts] for u in images]
    total = 0.0
    for i in range(BATCH):
        own_texts = [j for j in range(BATCH) if positive[i, j]]
        own_images = [j for j in range(BATCH) if positive[j, i]]
        row, column = (
            sum(jnp.exp(z[i][k]) for k in range(BATCH)),
            sum(jnp.exp(z[k][i]) for k in range(BATCH)),
        )
        total -= sum(jnp.log(jnp.exp(z[i][j]) / row) for j in own_texts) / len(own_texts) / 2
        total -= sum(jnp.log(jnp.exp(z[j][i]) / column) for j in own_images) / len(own_images) / 2
    return total / BATCH


def naive_sigmoid_loss(images, texts, log_scale, bias, positive):
    total = 0.0
    for i in range(BATCH):
        for j in range(BATCH):
            z = jnp.exp(log_scale) * cosine(images[i], texts[j]) + bias
            total += jnp.log(1 + jnp.exp(-z if positive[i, j] else z))
    return total / BATCH


@pytest.mark.parametrize("positive", [None, POSITIVE])
def test_value_and_gradient_are_those_of_a_double_loop(positive):
    pairs = np.eye(BATCH, dtype=bool) if positive is None else positive
    with jax.enable_x64(True):
        given = [jnp.asarray(np.asarray(value, np.float64)) for value in (IMAGES, TEXTS, SCALE)]
        bias = jnp.asarray(-2.0)
        got = jax.value_and_grad(
            lambda *args: info_nce(*args, positive=positive).mean(), (0, 1, 2)
        )(*given)
        want = jax.jit(jax.value_and_grad(lambda *args: naive_info_nce(*args, pairs), (0, 1, 2)))(
            *given
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), got, want)
        got = jax.value_and_grad(
            lambda *args: sigmoid_loss(*args, positive=positive).mean(), (0, 1, 2, 3)
        )(*given, bias)
        want = jax.jit(
            jax.value_and_grad(lambda *args: naive_sigmoid_loss(*args, pairs), (0, 1, 2, 3))
        )(*given, bias)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), got, want)


@pytest.mark.parametrize(
    "loss", [info_nce, lambda *args, **options: sigmoid_loss(*args, BIAS, **options)]
)
def test_images_and_texts_may_be_swapped(loss):
    here, there = (
        loss(IMAGES, TEXTS, SCALE, positive=POSITIVE),
        loss(TEXTS, IMAGES, SCALE, positive=POSITIVE.T),
    )
    np.testing.assert_allclose(here, there, rtol=1e-5)


@pytest.mark.parametrize("loss", [info_nce, lambda *args: sigmoid_loss(*args, BIAS)])
def test_only_directions_count(loss):
    lengths = jnp.exp(jax.random.normal(jax.random.key(3), (BATCH, 1)))
    np.testing.assert_allclose(
        loss(IMAGES * lengths, 9 * TEXTS, SCALE), loss(IMAGES, TEXTS, SCALE), rtol=1e-5
    )


def test_by_chance_it_is_the_logarithm_of_the_batch():
    np.testing.assert_allclose(
        info_nce(jnp.ones((7, 2)), jnp.ones((7, 2)), SCALE), math.log(7), rtol=1e-6
    )


@pytest.mark.slow
def test_two_pairs_that_say_the_same_are_no_negatives_of_each_other():
    images = jnp.stack([IMAGES[0], IMAGES[0], -IMAGES[0]])
    same = np.array([[True, True, False], [True, True, False], [False, False, True]])
    cold = jnp.float32(math.log(50))
    np.testing.assert_allclose(
        info_nce(images, images, cold), [math.log(2), math.log(2), 0], atol=1e-6
    )
    # Told that they belong together, the loss is its least, the entropy of one in two, and nothing pushes them apart.
    together, slope = jax.value_and_grad(
        lambda images: info_nce(images, images, cold, positive=same).mean()
    )(images)
    np.testing.assert_allclose(together, 2 * math.log(2) / 3, rtol=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-5)


def test_the_diagonal_always_belongs_together():
    nothing = np.zeros((BATCH, BATCH), bool)
    np.testing.assert_array_equal(
        info_nce(IMAGES, TEXTS, SCALE, positive=nothing), info_nce(IMAGES, TEXTS, SCALE)
    )


@pytest.mark.slow
def test_the_scale_counts_at_most_100_and_may_come_back():
    cold = lambda log_scale: info_nce(IMAGES, TEXTS, log_scale).mean()
    np.testing.assert_array_equal(cold(jnp.float32(9.0)), cold(jnp.float32(math.log(100))))
    # These pairs are drawn at random, so that a lower scale is better; where they agree, a higher one would be.
    assert jax.grad(cold)(jnp.float32(9.0)) > 0
    agreed = lambda log_scale: info_nce(IMAGES, IMAGES + 0.6 * TEXTS, log_scale).mean()
    assert jax.grad(agreed)(jnp.float32(1.0)) < 0
    best = lambda log_scale: info_nce(jnp.eye(3), jnp.eye(3) - 0.999, log_scale).mean()
    assert jax.grad(best)(jnp.float32(9.0)) == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_logits_are_float32_where_features_are_not(dtype):
    low = (IMAGES.astype(dtype), TEXTS.astype(dtype))
    cold = jnp.asarray(math.log(64), dtype)
    loss = info_nce(*low, cold)
    assert loss.dtype == jnp.float32
    exact = info_nce(*(each.astype(jnp.float32) for each in low), cold.astype(jnp.float32))
    np.testing.assert_allclose(loss, exact, rtol=1e-6)
    assert sigmoid_loss(*low, cold, BIAS.astype(dtype)).dtype == jnp.float32
    assert jax.grad(lambda images: info_nce(images, low[1], cold).mean())(low[0]).dtype == dtype


def test_features_of_zero_have_a_finite_gradient():
    slope = jax.grad(lambda images: info_nce(images, TEXTS, SCALE).mean())(IMAGES.at[2].set(0))
    assert np.isfinite(slope).all()


def test_under_jit_it_is_the_same():
    np.testing.assert_allclose(
        jax.jit(info_nce)(IMAGES, TEXTS, SCALE), info_nce(IMAGES, TEXTS, SCALE), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("changed", "error", "message"),
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
            r"features of at least one number, got \[4, 0\]",
        ),
        ({"log_scale": jnp.ones(1)}, TypeError, "log_scale must be one float"),
        ({"log_scale": 2}, TypeError, "log_scale must be one float"),
        ({"log_scale": jnp.float32(jnp.inf)}, ValueError, "log_scale must be finite"),
        ({"positive": np.eye(BATCH)}, TypeError, "positive must be bool"),
        ({"positive": np.eye(BATCH + 1, dtype=bool)}, TypeError, "positive must be bool"),
        ({"positive": True}, TypeError, "positive must be bool"),
    ],
)
def test_refuses(changed, error, message):
    given = {"images": IMAGES, "texts": TEXTS, "log_scale": SCALE} | changed
    with pytest.raises(error, match=message):
        info_nce(**given)
    with pytest.raises(error, match=message):
        sigmoid_loss(**given, bias=BIAS)


@pytest.mark.parametrize("bias", [1, jnp.ones(2), None])
def test_refuses_a_bias_that_is_none(bias):
    with pytest.raises(TypeError, match="bias"):
        sigmoid_loss(IMAGES, TEXTS, SCALE, bias)
