"""Programs of each kind with arguments, for tests of their graphs."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diffprog import tap

X = np.array([0.3, -0.7, 1.1])
W = np.array([[0.1, 0.5, 0.2], [-0.3, 0.8, 0.4]])
PARAMS = {"W": W[:, :2], "u": W[:, 2]}


@jax.custom_vjp
def hundredfold(x):
    return jnp.sin(x)


hundredfold.defvjp(lambda x: (jnp.sin(x), None), lambda _, g: (100.0 * g,))


def product(x, y, z):
    return (x + y) * z


def squared_norm(W, x):
    return jnp.sum((W @ x) ** 2)


def activations(x):
    y = jax.nn.softmax(jax.nn.gelu(x)) + jax.nn.silu(x) * jax.nn.sigmoid(x) + jax.nn.relu(x)
    return jax.nn.logsumexp(y) + jax.nn.log_softmax(y)[0] + jnp.linalg.norm(y) + jnp.var(y)


def recurrent(params, xs):
    def step(h, x):
        h = tap(jnp.tanh(params["W"] @ h + params["u"] * x), "h")
        return h, h[0]

    h, ys = lax.scan(step, jnp.zeros(2), xs)
    return (h**2).sum() + ys.sum()


def reverse_scan(xs):
    end, ys = lax.scan(lambda c, x: (jnp.sin(c) * x, c + x), jnp.float64(0.5), xs, reverse=True)
    return end + (ys * jnp.arange(3)).sum()


def long_scan(x):
    return lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=100)[0].sum()


def conditional(x):
    return lax.cond(x[0] > 0, lambda x: jnp.sin(x).sum(), lambda x: jnp.cos(x).prod(), x)


def cut(x):
    return (lax.stop_gradient(jnp.exp(x)) * x).sum() + lax.stop_gradient(jnp.sin(x)).sum()


def jit_and_remat(x):
    return jax.jit(lambda x: jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)))(x))(x).sum()


def custom_rules(x):
    return (hundredfold(x) * jax.nn.relu(x - x)).sum() + hundredfold(x).sum()


def many_outputs(x):
    a, b = jnp.split(jnp.sort(jnp.concatenate([x, x * x])), 2)
    top, index = lax.top_k(a, 2)
    return a @ b + top.sum() + x[index[0]] + jnp.where(x > 0, x, 2 * x).max()


def sorted_by_integers(x):
    _, values = lax.sort((jnp.array([2, 0, 1]), x), num_keys=1)
    return (values * jnp.array([1.0, 10.0, 100.0])).sum()


def random_weights(x, key, weight):
    return (x * jax.random.normal(key, x.shape)).sum() * weight


def derivative_of_softmax(x):
    return jnp.sum(jax.grad(lambda x: jax.nn.softmax(x)[0])(x) ** 2)


def convolution(kernel, x):
    y = lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = lax.reduce_window(
        jax.vmap(jax.nn.relu)(y), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    return jax.nn.log_softmax(y.reshape(2, -1)).mean() + y.max()


def empty_arrays(x, y):
    return lax.associative_scan(jnp.multiply, x).sum() + y.sum() * x[0]


_RNG = np.random.default_rng(0)
PROGRAMS = {
    f.__name__: (f, args)
    for f, *args in [
        (product, -2.0, 5.0, -4.0),
        (squared_norm, W, X),
        (activations, X),
        (recurrent, PARAMS, X),
        (reverse_scan, X),
        (long_scan, X),
        (conditional, X),
        (cut, X),
        (jit_and_remat, X),
        (custom_rules, X),
        (many_outputs, X),
        (sorted_by_integers, X),
        (random_weights, X, jax.random.key(3), 2),
        (derivative_of_softmax, X),
        (empty_arrays, X, np.zeros((2, 0))),
        (convolution, _RNG.normal(size=(3, 3, 1, 4)), _RNG.normal(size=(2, 8, 8, 1))),
    ]
} | {"conditional, other branch": (conditional, [-X])}
