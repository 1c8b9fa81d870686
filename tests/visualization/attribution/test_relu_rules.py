"""Recognition of relus, and the gradient that a rule gives them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from diffprog import backprop, models
from diffprog.visualization import deconvolution, guided, straight_through, with_rectifier

X = jnp.array([[-2.0, -0.5, 0.5, 2.0]])
DY = jnp.array([[1.0, -1.0, 1.0, -1.0]])

RELUS = {
    "jax.nn.relu": jax.nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "maximum, operands swapped": lambda x: jnp.maximum(0.0, x),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "where not": lambda x: jnp.where(x < 0, 0, x),
    "the layer": lambda x: backprop.differentiable(backprop.relu())((), x),
    "in jit": jax.jit(lambda x: jnp.maximum(x, 0)),
    "in remat": jax.checkpoint(lambda x: jnp.maximum(x, 0)),
    "in scan": lambda x: lax.scan(lambda h, _: (jnp.maximum(h, 0), None), x, None, length=1)[0],
    "in cond": lambda x: lax.cond(x.sum() > -9, lambda x: jnp.maximum(x, 0), lambda x: x, x),
}


def gradient(f):
    return jax.vjp(f, X)[1](DY)[0]


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (guided, [[0, 0, 1, 0]]),
        (deconvolution, [[1, 0, 1, 0]]),
        (straight_through, [[1, -1, 1, -1]]),
    ],
)
def test_the_rule_changes_the_gradient_and_not_the_value(relu, rule, expected):
    f = with_rectifier(relu, rule)
    np.testing.assert_array_equal(f(X), np.maximum(X, 0))
    np.testing.assert_array_equal(gradient(f), expected)


def test_a_user_rule_may_hold_arrays():
    leak = jnp.float32(0.25)
    np.testing.assert_array_equal(
        gradient(with_rectifier(jax.nn.relu, lambda x, dy: jnp.where(x > 0, dy, leak * dy))),
        [[0.25, -0.25, 1, -1]],
    )


@pytest.mark.slow
def test_the_plain_rule_gives_the_plain_gradient():
    model = models.cnn((8, 8, 1), channels=(2, 3), hidden=(4,))
    params, x = model.init(jax.random.key(0)), jax.random.uniform(jax.random.key(1), (2, 8, 8, 1))
    f = lambda x: model.apply(params, x).sum()
    plain = with_rectifier(f, lambda x, dy: dy * (x > 0))
    np.testing.assert_allclose(jax.grad(plain)(x), jax.grad(f)(x), rtol=1e-5, atol=1e-7)
    assert np.abs(jax.grad(with_rectifier(f, guided))(x) - jax.grad(f)(x)).max() > 1e-3


@pytest.mark.parametrize(
    "bounded",
    [
        lambda x: jnp.clip(x, 0, 1),
        jax.nn.relu6,
        lambda x: jnp.sqrt(jnp.maximum(x, 0) + 1e-6),
        lambda x: lax.rsqrt(jnp.maximum(x, 0) + 1e-6),
    ],
)
def test_bounds_and_guards_are_not_relus(bounded):
    both = lambda x: bounded(x) + jax.nn.relu(x)
    np.testing.assert_allclose(
        gradient(with_rectifier(both, straight_through)), gradient(bounded) + DY, rtol=1e-6
    )
    with pytest.raises(ValueError, match="f has no relu"):
        with_rectifier(bounded, guided)(X)


def looped(x):
    return lax.while_loop(lambda h: h.sum() > 9, lambda h: jnp.maximum(h, 0) / 2, x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: with_rectifier(3, guided), TypeError, "f must be callable"),
        (lambda: with_rectifier(jax.nn.relu, "guided"), TypeError, "rule must be callable"),
        (lambda: with_rectifier(jnp.sin, guided)(X), ValueError, "f has no relu"),
        (lambda: with_rectifier(looped, guided)(X), ValueError, "inside 'while'"),
        (
            lambda: with_rectifier(jax.nn.relu, lambda x, dy: dy.sum())(X),
            ValueError,
            "rule must return an array like x",
        ),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
