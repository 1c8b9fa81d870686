"""Cases that once misled the checker."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import backprop as bp
from diffprog import checks

KEY = jax.random.key(3)
ROWS = jax.random.normal(jax.random.key(0), (5, 4))


@pytest.mark.parametrize("claimed", [jnp.nan, jnp.inf])
def test_a_slope_that_is_not_finite_is_not_right(claimed):
    report = checks.slope_test(
        lambda x: x.sum(), lambda x: claimed * x, jnp.array([1.0, -2.0, 3.0]), key=KEY
    )
    assert not report.ok
    assert "not finite" in str(report)


def test_a_slope_without_its_leaf_is_refused():
    with pytest.raises(ValueError, match="grad_f must return a gradient of shape"):
        checks.slope_test(lambda x: x["a"].sum(), lambda x: {}, {"a": jnp.ones(3)}, key=KEY)


def test_whole_powers_of_negative_numbers_are_right():
    report = checks.check_grad(
        lambda x: (x**2.0).sum(), lambda x: 2 * x, jnp.array([1.0, -2.0, 3.0]), key=KEY
    )
    assert report.ok
    assert any("not judged" in note for note in report.notes)


def test_one_narrow_leaf_does_not_excuse_a_wrong_sign_in_another():
    layer = bp.affine(4, 3)

    def backward(params, x, dz):
        return {
            "weight": (dz.T @ x).astype(jnp.bfloat16).astype(dz.dtype),
            "bias": dz.sum(0),
        }, -dz @ params["weight"]

    report = checks.check_layer(layer._replace(backward=backward), layer.init(KEY), ROWS, key=KEY)
    found = {finding.path: finding for finding in report.findings}
    assert {path: finding.verdict for path, finding in found.items()} == {
        "params['bias']": "ok",
        "params['weight']": "precision",
        "x": "wrong",
    }
    assert "sign" in found["x"].hint


def test_a_function_of_steps_is_not_wrong():
    x = jnp.asarray(np.linspace(0.11, 2.3, 7))
    assert checks.check_grad(lambda x: jnp.round(x * 3).sum(), jnp.zeros_like, x, key=KEY).ok


def test_a_net_that_does_not_fit_is_refused_by_the_names_of_its_layers():
    net = bp.chain([bp.affine(4, 3), bp.tanh(), bp.affine(4, 2)])
    params = net.init(KEY)
    with pytest.raises(
        ValueError, match=r"'affine2' \(affine\(4, 2\)\) does not fit what it reads, 'tanh1'"
    ):
        checks.check_net(net, params, ROWS, key=KEY)
    with pytest.raises(ValueError, match="params must be what chain"):
        checks.check_net(net, params[:2], ROWS, key=KEY)


@pytest.mark.parametrize("key", [None, 0])
def test_a_key_that_is_none_is_refused(key):
    with pytest.raises(TypeError, match="key must be a random key"):
        checks.check_layer(bp.tanh(), (), ROWS, key=key)
    with pytest.raises(TypeError, match="key must be a random key"):
        checks.slope_test(jnp.sum, jnp.ones_like, ROWS, key=key)
