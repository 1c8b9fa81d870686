"""Each verdict, on the smallest function that deserves it; and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import backprop as bp
from diffprog import checks

KEY = jax.random.key(3)
ZEROS = jnp.array([-1.0, 0.0, 2.0])


def only(report):
    (finding,) = report.findings
    return finding


def of_grad(f, grad_f, *args, **settings):
    return checks.check_grad(f, grad_f, *args, key=KEY, **settings)


def relu_with(slope_at_zero):
    return bp.relu()._replace(
        backward=lambda p, z, dy: ((), dy * ((z > 0) + slope_at_zero * (z == 0)))
    )


@pytest.mark.slow
@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_any_subgradient_is_a_kink_with_its_interval(slope):
    finding = only(checks.check_layer(relu_with(slope), (), ZEROS[None], key=KEY))
    assert (finding.verdict, finding.index) == ("kink", (0, 1))
    low, high = finding.interval
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-9)
    assert low <= finding.got <= high
    assert "max at element (0, 1), margin 0" in finding.hint


@pytest.mark.parametrize("slope", [-0.1, 1.5])
def test_a_slope_outside_the_one_sided_derivatives_is_an_invalid_kink(slope):
    report = checks.check_layer(relu_with(slope), (), ZEROS[None], key=KEY)
    assert only(report).verdict == "invalid-kink"
    assert not report.ok


def absolute(x):
    return jax.nn.relu(x) - jax.nn.relu(-x)


def test_autodiff_is_overruled_where_the_function_moves_as_claimed():
    report = of_grad(lambda x: absolute(x).sum(), jnp.ones_like, ZEROS)
    finding = only(report)
    assert (finding.verdict, finding.index, finding.got) == ("autodiff-wrong", (1,), 1.0)
    assert finding.want == pytest.approx(1)
    assert report.ok


def test_autodiff_is_no_excuse_for_what_the_function_does_not_do():
    f = lambda x: absolute(x).sum()
    finding = only(of_grad(f, jax.grad(f), ZEROS))
    assert (finding.verdict, finding.index, finding.got) == ("wrong", (1,), 0.0)


@jax.custom_vjp
def crooked_sine(x):
    return jnp.sin(x)


crooked_sine.defvjp(
    lambda x: (jnp.sin(x), x),
    lambda x, dy: (dy * jnp.cos(x) * jnp.where(jnp.arange(x.size) == 17, 1.01, 1.0),),
)


def test_a_wrong_rule_inside_the_function_is_found_by_moving_it():
    f = lambda x: crooked_sine(x).sum()
    finding = only(of_grad(f, jax.grad(f), jnp.linspace(0, 1, 40)))
    assert (finding.verdict, finding.index) == ("wrong", (17,))
    assert finding.want == pytest.approx(np.cos(17 / 39))
    assert "autodiff says the same" in finding.hint


def test_a_function_that_is_not_finite_there():
    root = lambda x: jnp.sqrt(x).sum()
    finding = only(of_grad(root, jax.grad(root), jnp.array([0.0, 1.0])))
    assert (finding.verdict, finding.index) == ("nonfinite", (0,))
    assert "sqrt at element (0,)" in finding.hint


def test_a_claim_that_is_not_finite():
    layer = bp.tanh()._replace(backward=lambda p, y, dy: ((), dy / jnp.where(y > 0, 0, 1)))
    finding = only(checks.check_layer(layer, (), ZEROS[None], key=KEY))
    assert (finding.verdict, finding.index) == ("nonfinite", (0, 2))
    assert "autodiff is finite" in finding.hint


def test_zero_everywhere_moves_to_a_generic_point_and_says_so():
    finding = only(of_grad(lambda x: jax.nn.relu(x).sum(), lambda x: (x > 0) * 1.0, -jnp.ones(3)))
    assert finding.verdict == "degenerate"
    assert "generic point" in finding.hint


def test_a_bug_that_zeros_hide_is_found_at_the_generic_point():
    """The transposed weight of a net whose upper weights are zero: every gradient below them is 0 either way."""
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


def test_an_unused_parameter_is_named():
    f = lambda p: (p["a"] ** 2).sum()
    report = of_grad(f, jax.grad(f), {"a": jnp.ones(3), "b": jnp.ones(2)})
    assert [(finding.path, finding.verdict) for finding in report.findings] == [
        ("p['a']", "ok"),
        ("p['b']", "unused"),
    ]


def test_randomness_without_a_key_is_noticed():
    draw = np.random.default_rng(0)
    report = of_grad(
        lambda x: (x * draw.normal(size=3)).sum(), lambda x: draw.normal(size=3), jnp.ones(3)
    )
    assert only(report).verdict == "nondeterministic"
    assert not report.ok


def test_a_gradient_in_numpy_will_do():
    f = lambda x: (x**2).sum()
    assert of_grad(f, lambda x: 2 * np.asarray(x), jnp.arange(3.0)).ok
    assert only(of_grad(f, lambda x: np.asarray(x), jnp.arange(3.0))).verdict == "wrong"


def test_a_function_that_insists_on_float32_is_told_so():
    report = of_grad(
        lambda x: (x.astype(jnp.float32) ** 3).sum(), lambda x: 3 * x**2, jnp.arange(3.0) / 3
    )
    assert report.ok
    assert any("computes in float32" in note for note in report.notes)


def test_a_rule_that_insists_on_float32_is_inexact_and_not_wrong():
    grad_f = lambda x: jnp.cos(x.astype(jnp.float32)).astype(x.dtype)
    finding = only(of_grad(lambda x: jnp.sin(x).sum(), grad_f, jnp.arange(3.0) / 3))
    assert finding.verdict == "precision"
    assert "float32" in finding.hint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rule_that_cancels_is_inexact_in_the_dtype_of_its_arguments(dtype):
    layer = bp.tanh()._replace(
        backward=lambda p, y, dy: ((), (dy + 300) * (1 - y * y) - 300 * (1 - y * y))
    )
    finding = only(checks.check_layer(layer, (), jnp.array([[-1.5, 0.2, 0.7]], dtype), key=KEY))
    assert finding.verdict == "precision"


def test_precision_in_another_dtype_is_reported_and_no_verdict():
    layer = bp.tanh()._replace(
        backward=lambda p, y, dy: ((), (dy + 300) * (1 - y * y) - 300 * (1 - y * y))
    )
    with jax.enable_x64(True):
        report = checks.check_layer(layer, (), jnp.array([[-1.5, 0.2, 0.7]]), key=KEY)
    assert report.ok
    assert {found.dtype: found.error > found.bound for found in report.precision} == dict.fromkeys(
        ["float32", "bfloat16", "float16"], True
    )


def test_leaves_of_very_different_magnitude_are_judged_each_on_its_own_scale():
    tree = {"small": jnp.full(3, 1e-8), "large": jnp.full(3, 3e5)}
    f = lambda t: 1e-8 * jnp.sin(t["small"]).sum() + 1e-3 * (t["large"] ** 2).sum()
    grad_f = lambda t: {
        "small": 1e-8 * jnp.cos(t["small"]) * jnp.array([1, 1.001, 1]),
        "large": 2e-3 * t["large"],
    }
    findings = {finding.path: finding for finding in of_grad(f, grad_f, tree).findings}
    assert findings["t['large']"].verdict == "ok"
    assert (findings["t['small']"].verdict, findings["t['small']"].index) == ("wrong", (1,))


@pytest.mark.slow
def test_one_of_a_million_numbers_off_by_a_millionth_is_named():
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
def test_the_sine_far_out_and_a_wide_relu_are_no_alarm():
    assert of_grad(lambda x: jnp.sin(x).sum(), jnp.cos, jnp.array([1e3, 2e3])).ok
    weight = jax.random.normal(KEY, (64, 256))
    assert of_grad(
        lambda w, x: jax.nn.relu(x @ w).sum(),
        jax.grad(lambda w, x: jax.nn.relu(x @ w).sum()),
        weight,
        jnp.ones((8, 64)),
    ).ok


def test_both_arguments_by_argnums():
    report = of_grad(
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


def test_data_in_a_closure_is_taken_along_to_float64():
    data = jax.random.normal(KEY, (4, 3))
    f = lambda w: jnp.tanh(jax.lax.dot(data, w)).sum()
    assert of_grad(f, jax.grad(f), jnp.ones((3, 2))).ok


def test_arguments_that_are_held_are_taken_along_too():
    f = lambda w, x: jnp.tanh(x @ w).sum()
    report = of_grad(f, jax.grad(f, 1), jnp.ones((3, 2)), jax.random.normal(KEY, (4, 3)), argnums=1)
    assert report.ok
    assert not report.notes


def test_a_function_that_jax_grad_sees_half_of():
    f = lambda x: (jax.lax.stop_gradient(x) * x).sum()
    found = only(of_grad(f, lambda x: 2 * x, jnp.array([0.3, 0.7])))
    assert (found.verdict, found.point) == ("autodiff-wrong", "given")
    assert only(of_grad(f, jax.grad(f), jnp.array([0.3, 0.7]))).verdict == "wrong"


@pytest.mark.slow
def test_the_same_key_gives_the_same_report():
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
            lambda: checks.check_layer(jnp.tanh, (), ZEROS, key=KEY),
            TypeError,
            "layer must be a Layer",
        ),
        (
            lambda: checks.check_net("net", (), ZEROS, key=KEY),
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
        (lambda: of_grad("f", jnp.cos, 1.0), TypeError, "f must be callable, got str"),
        (lambda: of_grad(jnp.sin, None, 1.0), TypeError, "grad_f must be callable, got NoneType"),
        (
            lambda: of_grad(jnp.sin, jnp.cos, ZEROS),
            ValueError,
            r"f must return one float scalar, got float32\[3\]",
        ),
        (
            lambda: of_grad(jnp.sin, jnp.cos, 1.0, argnums=1),
            ValueError,
            "argnums must be one of 0, got 1",
        ),
        (
            lambda: checks.slope_test(jnp.sin, jnp.cos, ZEROS, key=KEY),
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
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
