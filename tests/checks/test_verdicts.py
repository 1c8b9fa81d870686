"""Each verdict on a minimal function, and invalid arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import backprop as bp
from diffprog import checks

KEY = jax.random.key(3)
X_WITH_ZERO = jnp.array([-1.0, 0.0, 2.0])


def only_finding(report):
    (finding,) = report.findings
    return finding


def check_grad(f, grad_f, *args, **settings):
    return checks.check_grad(f, grad_f, *args, key=KEY, **settings)


def relu_with_subgradient(at_zero):
    return bp.relu()._replace(backward=lambda p, z, dy: ((), dy * ((z > 0) + at_zero * (z == 0))))


@pytest.mark.slow
@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_every_subgradient_is_a_kink_with_its_interval(slope):
    finding = only_finding(
        checks.check_layer(relu_with_subgradient(slope), (), X_WITH_ZERO[None], key=KEY)
    )
    assert (finding.verdict, finding.index) == ("kink", (0, 1))
    low, high = finding.interval
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-9)
    assert low <= finding.got <= high
    assert "max at element (0, 1), margin 0" in finding.hint


@pytest.mark.parametrize("slope", [-0.1, 1.5])
def test_a_gradient_outside_the_one_sided_derivatives_is_an_invalid_kink(slope):
    report = checks.check_layer(relu_with_subgradient(slope), (), X_WITH_ZERO[None], key=KEY)
    assert only_finding(report).verdict == "invalid-kink"
    assert not report.ok


def relu_difference(x):
    return jax.nn.relu(x) - jax.nn.relu(-x)


def test_autodiff_is_wrong_where_finite_differences_agree_with_the_gradient():
    report = check_grad(lambda x: relu_difference(x).sum(), jnp.ones_like, X_WITH_ZERO)
    finding = only_finding(report)
    assert (finding.verdict, finding.index, finding.got) == ("autodiff-wrong", (1,), 1.0)
    assert finding.want == pytest.approx(1)
    assert report.ok


def test_the_autodiff_gradient_is_wrong_where_finite_differences_disagree():
    f = lambda x: relu_difference(x).sum()
    finding = only_finding(check_grad(f, jax.grad(f), X_WITH_ZERO))
    assert (finding.verdict, finding.index, finding.got) == ("wrong", (1,), 0.0)


@jax.custom_vjp
def sine_with_wrong_rule(x):
    return jnp.sin(x)


sine_with_wrong_rule.defvjp(
    lambda x: (jnp.sin(x), x),
    lambda x, dy: (dy * jnp.cos(x) * jnp.where(jnp.arange(x.size) == 17, 1.01, 1.0),),
)


def test_finite_differences_find_a_wrong_custom_rule_inside_the_function():
    f = lambda x: sine_with_wrong_rule(x).sum()
    finding = only_finding(check_grad(f, jax.grad(f), jnp.linspace(0, 1, 40)))
    assert (finding.verdict, finding.index) == ("wrong", (17,))
    assert finding.want == pytest.approx(np.cos(17 / 39))
    assert "autodiff agrees" in finding.hint


def test_a_singular_derivative_is_nonfinite():
    root = lambda x: jnp.sqrt(x).sum()
    finding = only_finding(check_grad(root, jax.grad(root), jnp.array([0.0, 1.0])))
    assert (finding.verdict, finding.index) == ("nonfinite", (0,))
    assert "sqrt at element (0,)" in finding.hint


def test_a_nonfinite_gradient_is_nonfinite():
    layer = bp.tanh()._replace(backward=lambda p, y, dy: ((), dy / jnp.where(y > 0, 0, 1)))
    finding = only_finding(checks.check_layer(layer, (), X_WITH_ZERO[None], key=KEY))
    assert (finding.verdict, finding.index) == ("nonfinite", (0, 2))
    assert "autodiff is finite" in finding.hint


def test_a_gradient_of_zeros_is_degenerate_and_checked_at_a_generic_point():
    finding = only_finding(
        check_grad(lambda x: jax.nn.relu(x).sum(), lambda x: (x > 0) * 1.0, -jnp.ones(3))
    )
    assert finding.verdict == "degenerate"
    assert "generic point" in finding.hint


def test_a_bug_hidden_by_zero_weights_is_found_at_the_generic_point():
    square = bp.affine(3, 3)
    bug = square._replace(
        backward=lambda p, x, dz: ({"weight": dz.T @ x, "bias": dz.sum(0)}, dz @ p["weight"].T)
    )
    params = {"weight": jnp.zeros((3, 3)), "bias": jnp.zeros(3)}
    findings = {
        finding.path: finding
        for finding in checks.check_layer(bug, params, jnp.ones((2, 3)), key=KEY).findings
    }
    assert (findings["x"].verdict, findings["x"].point) == ("wrong", "generic")


def test_a_logarithm_has_a_generic_point_at_positive_numbers():
    report = check_grad(lambda x: jnp.log(x).sum(), lambda x: 1 / x, jnp.arange(1.0, 13.0))
    assert report.ok
    assert "generic point" not in str(report)


def test_a_gradient_that_is_nan_at_other_points_is_nonfinite_at_the_generic_point():
    square = lambda x: (x**2).sum()
    gradient = lambda x: jnp.where(x < 0, jnp.nan, 2 * x)
    finding = only_finding(check_grad(square, gradient, jnp.arange(1.0, 13.0)))
    assert (finding.verdict, finding.point) == ("nonfinite", "generic")


def test_a_backward_pass_that_detaches_its_cotangent_has_a_wrong_second_derivative():
    detached = bp.tanh()._replace(
        backward=lambda p, y, dy: ((), jax.lax.stop_gradient(dy) * (1 - y**2))
    )
    findings = checks.check_layer(detached, (), jnp.array([[0.3, -0.7]]), key=KEY).findings
    assert [(finding.verdict, finding.order) for finding in findings if not finding.ok] == [
        ("wrong", 2)
    ]


def test_a_finite_gradient_where_the_derivative_is_infinite_is_nonfinite():
    root = lambda x: jnp.sqrt(x).sum()
    finite = lambda x: jnp.where(x > 0, 0.5 / jnp.sqrt(x), 0.0)
    finding = only_finding(check_grad(root, finite, jnp.array([0.0, 1.0])))
    assert not finding.ok
    assert finding.index == (0,)


def test_an_unused_parameter_is_unused():
    f = lambda p: (p["a"] ** 2).sum()
    report = check_grad(f, jax.grad(f), {"a": jnp.ones(3), "b": jnp.ones(2)})
    assert [(finding.path, finding.verdict) for finding in report.findings] == [
        ("p['a']", "ok"),
        ("p['b']", "unused"),
    ]


def test_randomness_without_a_key_is_nondeterministic():
    rng = np.random.default_rng(0)
    report = check_grad(
        lambda x: (x * rng.normal(size=3)).sum(), lambda x: rng.normal(size=3), jnp.ones(3)
    )
    assert only_finding(report).verdict == "nondeterministic"
    assert not report.ok


def test_a_gradient_may_be_written_in_numpy():
    f = lambda x: (x**2).sum()
    assert check_grad(f, lambda x: 2 * np.asarray(x), jnp.arange(3.0)).ok
    assert only_finding(check_grad(f, lambda x: np.asarray(x), jnp.arange(3.0))).verdict == "wrong"


def test_a_function_that_casts_to_float32_is_noted():
    report = check_grad(
        lambda x: (x.astype(jnp.float32) ** 3).sum(), lambda x: 3 * x**2, jnp.arange(3.0) / 3
    )
    assert report.ok
    assert any("computes in float32" in note for note in report.notes)


def test_a_gradient_that_casts_to_float32_lacks_precision_and_is_not_wrong():
    grad_f = lambda x: jnp.cos(x.astype(jnp.float32)).astype(x.dtype)
    finding = only_finding(check_grad(lambda x: jnp.sin(x).sum(), grad_f, jnp.arange(3.0) / 3))
    assert finding.verdict == "precision"
    assert "float32" in finding.hint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cancellation_lacks_precision_in_the_dtype_of_the_arguments(dtype):
    layer = bp.tanh()._replace(
        backward=lambda p, y, dy: ((), (dy + 300) * (1 - y * y) - 300 * (1 - y * y))
    )
    finding = only_finding(
        checks.check_layer(layer, (), jnp.array([[-1.5, 0.2, 0.7]], dtype), key=KEY)
    )
    assert finding.verdict == "precision"


def test_precision_in_another_dtype_does_not_change_the_verdict():
    layer = bp.tanh()._replace(
        backward=lambda p, y, dy: ((), (dy + 300) * (1 - y * y) - 300 * (1 - y * y))
    )
    with jax.enable_x64(True):
        report = checks.check_layer(layer, (), jnp.array([[-1.5, 0.2, 0.7]]), key=KEY)
    assert report.ok
    assert {entry.dtype: entry.error > entry.bound for entry in report.precision} == dict.fromkeys(
        ["float32", "bfloat16", "float16"], True
    )


def test_each_leaf_is_checked_at_its_own_magnitude():
    tree = {"small": jnp.full(3, 1e-8), "large": jnp.full(3, 3e5)}
    f = lambda t: 1e-8 * jnp.sin(t["small"]).sum() + 1e-3 * (t["large"] ** 2).sum()
    grad_f = lambda t: {
        "small": 1e-8 * jnp.cos(t["small"]) * jnp.array([1, 1.001, 1]),
        "large": 2e-3 * t["large"],
    }
    findings = {finding.path: finding for finding in check_grad(f, grad_f, tree).findings}
    assert findings["t['large']"].verdict == "ok"
    assert (findings["t['small']"].verdict, findings["t['small']"].index) == ("wrong", (1,))


@pytest.mark.slow
def test_one_element_in_a_million_off_by_a_millionth_is_found():
    layer = bp.affine(1000, 1000)

    def backward(params, x, dy):
        dparams, dx = layer.backward(params, x, dy)
        return {**dparams, "weight": dparams["weight"].at[123, 456].multiply(1 + 1e-6)}, dx

    params, x = layer.init(KEY), jax.random.normal(KEY, (16, 1000))
    report = checks.check_layer(layer._replace(backward=backward), params, x, key=KEY)
    (finding,) = [finding for finding in report.findings if not finding.ok]
    assert (finding.path, finding.index) == ("params['weight']", (123, 456))
    assert "1 of 1000000 elements wrong" in finding.hint


@pytest.mark.slow
def test_a_sine_of_large_arguments_and_a_wide_relu_pass():
    assert check_grad(lambda x: jnp.sin(x).sum(), jnp.cos, jnp.array([1e3, 2e3])).ok
    weight = jax.random.normal(KEY, (64, 256))
    assert check_grad(
        lambda w, x: jax.nn.relu(x @ w).sum(),
        jax.grad(lambda w, x: jax.nn.relu(x @ w).sum()),
        weight,
        jnp.ones((8, 64)),
    ).ok


def test_argnums_select_several_arguments():
    report = check_grad(
        lambda a, b: (a * b).sum(),
        lambda a, b: (b, 2 * a),
        jnp.arange(1.0, 4),
        jnp.ones(3),
        argnums=(0, 1),
    )
    assert [(finding.path, finding.verdict) for finding in report.findings] == [
        ("a", "ok"),
        ("b", "wrong"),
    ]
    assert "a constant factor 2" in report.findings[1].hint


def test_arrays_in_a_closure_are_cast_to_float64():
    data = jax.random.normal(KEY, (4, 3))
    f = lambda w: jnp.tanh(jax.lax.dot(data, w)).sum()
    assert check_grad(f, jax.grad(f), jnp.ones((3, 2))).ok


def test_fixed_arguments_are_cast_to_float64():
    f = lambda w, x: jnp.tanh(x @ w).sum()
    report = check_grad(
        f, jax.grad(f, 1), jnp.ones((3, 2)), jax.random.normal(KEY, (4, 3)), argnums=1
    )
    assert report.ok
    assert not report.notes


def test_stop_gradient_makes_autodiff_wrong():
    f = lambda x: (jax.lax.stop_gradient(x) * x).sum()
    finding = only_finding(check_grad(f, lambda x: 2 * x, jnp.array([0.3, 0.7])))
    assert (finding.verdict, finding.point) == ("autodiff-wrong", "given")
    assert only_finding(check_grad(f, jax.grad(f), jnp.array([0.3, 0.7]))).verdict == "wrong"


@pytest.mark.slow
def test_equal_keys_give_equal_reports():
    layer, x = bp.softmax(), jnp.arange(6.0).reshape(2, 3)
    one, other, another = (
        checks.check_layer(layer, (), x, key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert one == other
    assert one != another


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: checks.check_layer(jnp.tanh, (), X_WITH_ZERO, key=KEY),
            TypeError,
            "layer must be a Layer",
        ),
        (
            lambda: checks.check_net("net", (), X_WITH_ZERO, key=KEY),
            TypeError,
            "net must be a Layer, got str",
        ),
        (
            lambda: checks.check_layer(bp.tanh(), (), jnp.array([[jnp.nan]]), key=KEY),
            ValueError,
            "x must be finite, got 1 NaN",
        ),
        (
            lambda: checks.check_layer(bp.tanh(), (), jnp.ones((0, 3)), key=KEY),
            ValueError,
            r"x must not be empty, got shape \[0, 3\]",
        ),
        (
            lambda: checks.check_layer(bp.tanh(), (), jnp.ones((1, 3), int), key=KEY),
            ValueError,
            "at least one float array",
        ),
        (lambda: check_grad("f", jnp.cos, 1.0), TypeError, "f must be callable, got str"),
        (
            lambda: check_grad(jnp.sin, None, 1.0),
            TypeError,
            "grad_f must be callable, got NoneType",
        ),
        (
            lambda: check_grad(jnp.sin, jnp.cos, X_WITH_ZERO),
            ValueError,
            r"f must return one float scalar, got float32\[3\]",
        ),
        (
            lambda: check_grad(jnp.sin, jnp.cos, 1.0, argnums=1),
            ValueError,
            "argnums must be one of 0, got 1",
        ),
        (
            lambda: checks.slope_test(jnp.sin, jnp.cos, X_WITH_ZERO, key=KEY),
            ValueError,
            "f must return one float scalar",
        ),
        (
            lambda: checks.slope_test(jnp.sin, jnp.cos, jnp.inf, key=KEY),
            ValueError,
            "x must be finite",
        ),
    ],
)
def test_invalid_arguments_are_rejected(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_constants_of_64_bits_are_accepted_without_x64():
    logits, labels = jnp.eye(2), np.array([0, 1])
    assert checks.check_layer(bp.softmax_cross_entropy(), (), (logits, labels), key=KEY).ok
