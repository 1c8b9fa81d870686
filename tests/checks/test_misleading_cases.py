"""Cases that the checker once judged wrongly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import backprop as bp
from diffprog import checks

KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(0), (5, 4))


@pytest.mark.parametrize("factor", [jnp.nan, jnp.inf])
def test_slope_test_rejects_a_nonfinite_gradient(factor):
    report = checks.slope_test(
        lambda x: x.sum(), lambda x: factor * x, jnp.array([1.0, -2.0, 3.0]), key=KEY
    )
    assert not report.ok
    assert "not finite" in str(report)


def test_slope_test_rejects_a_gradient_without_its_leaf():
    with pytest.raises(ValueError, match="grad_f must return a gradient of shape"):
        checks.slope_test(lambda x: x["a"].sum(), lambda x: {}, {"a": jnp.ones(3)}, key=KEY)


def test_integer_powers_of_negative_numbers_pass():
    report = checks.check_grad(
        lambda x: (x**2.0).sum(), lambda x: 2 * x, jnp.array([1.0, -2.0, 3.0]), key=KEY
    )
    assert report.ok
    assert any("not assessed" in note for note in report.notes)


def test_a_narrow_dtype_in_one_leaf_does_not_hide_a_wrong_sign_in_another():
    layer = bp.affine(4, 3)

    def backward(params, x, dz):
        return {
            "weight": (dz.T @ x).astype(jnp.bfloat16).astype(dz.dtype),
            "bias": dz.sum(0),
        }, -dz @ params["weight"]

    report = checks.check_layer(layer._replace(backward=backward), layer.init(KEY), X, key=KEY)
    findings = {finding.path: finding for finding in report.findings}
    assert {path: finding.verdict for path, finding in findings.items()} == {
        "params['bias']": "ok",
        "params['weight']": "precision",
        "x": "wrong",
    }
    assert "sign" in findings["x"].hint


def test_a_piecewise_constant_function_passes():
    x = jnp.asarray(np.linspace(0.11, 2.3, 7))
    assert checks.check_grad(lambda x: jnp.round(x * 3).sum(), jnp.zeros_like, x, key=KEY).ok


def test_check_net_names_the_layers_that_do_not_fit():
    net = bp.chain([bp.affine(4, 3), bp.tanh(), bp.affine(4, 2)])
    params = net.init(KEY)
    with pytest.raises(
        ValueError, match=r"'affine2' \(affine\(4, 2\)\) does not fit its input 'tanh1'"
    ):
        checks.check_net(net, params, X, key=KEY)
    with pytest.raises(ValueError, match="params must be what chain"):
        checks.check_net(net, params[:2], X, key=KEY)


@pytest.mark.parametrize("key", [None, 0])
def test_a_missing_key_is_rejected(key):
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        checks.check_layer(bp.tanh(), (), X, key=key)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        checks.slope_test(jnp.sum, jnp.ones_like, X, key=key)
