"""A layer defined outside of the package works wherever a built-in layer does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import backprop as bp
from diffprog import checks

X = jax.random.normal(jax.random.key(0), (5, 3))
KEY = jax.random.key(1)


def softplus(width):
    """y = s log(1 + e^z) with a trainable scale s of each unit."""

    def forward(params, z):
        y = jax.nn.softplus(z)
        return params["scale"] * y, (y, jax.nn.sigmoid(z))

    def backward(params, residuals, dy):
        y, slope = residuals
        return {"scale": (dy * y).sum(0)}, dy * params["scale"] * slope

    return bp.Layer(lambda key: {"scale": jnp.ones(width)}, forward, backward, "softplus")


def chain():
    return bp.chain([bp.affine(3, 3), softplus(3)])


def dag():
    nodes = {
        "a": (softplus(3), "x"),
        "b": (bp.affine(3, 3), "x"),
        "y": (bp.multiply(), ("a", "b")),
    }
    return bp.dag(nodes, output="y")


@pytest.mark.parametrize("make", [lambda: softplus(3), chain, dag])
def test_gradients_equal_autodiff(make):
    net = make()
    params = net.init(KEY)
    got = jax.grad(lambda *args: (bp.differentiable(net)(*args) ** 2).sum(), (0, 1))(params, X)
    want = jax.grad(lambda *args: (net.forward(*args)[0] ** 2).sum(), (0, 1))(params, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


def test_value_and_grads_names_it_and_its_adjoint():
    net = chain()
    loss = bp.sum_over_examples(bp.half_squared_error())
    gradients = bp.value_and_grads(net, loss, net.init(KEY), X, jnp.zeros((5, 3)))
    np.testing.assert_allclose(gradients.adjoints["softplus1"], gradients.values["softplus1"])


def test_check_layer_accepts_it():
    assert checks.check_layer(softplus(3), softplus(3).init(KEY), X, key=KEY).ok


def test_check_layer_finds_a_mistake_in_it():
    def backward(params, residuals, dy):
        y, slope = residuals
        return {"scale": (dy * y).sum(0)}, dy * slope

    layer, params = softplus(3)._replace(backward=backward), {"scale": jnp.full(3, 2.0)}
    report = checks.check_layer(layer, params, X, key=KEY)
    assert [finding.path for finding in report.findings if not finding.ok] == ["x"]
