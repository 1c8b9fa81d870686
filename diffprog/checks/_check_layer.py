"""Check the gradient of a layer or a function: `check_layer` and `check_grad`.

A gradient is compared in float64 at two points: at the arguments that the user passed (the given
point) and at random ones (the generic point). If it is correct, its rounding error in lower
precision is measured.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog import _validation
from diffprog.backprop import Layer
from diffprog.backprop._layer import require_layer
from diffprog.checks._determinism import bitwise_equal, trace_properties
from diffprog.checks._finite_differences import random_cotangent, value_and_gradient
from diffprog.checks._gradient_function import (
    GradientUnderTest,
    cast,
    cast_constants,
    function_under_test,
    layer_under_test,
    require_variables,
)
from diffprog.checks._low_precision import measure_precision
from diffprog.checks._report import Finding, Report
from diffprog.checks._second_order import check_second_order
from diffprog.checks._test_points import (
    FORMULA_SLACK,
    ULPS,
    TestPoint,
    evaluate_point,
    generic_point,
)
from diffprog.checks._verdict import check_leaf


def check_layer(layer: Layer, params: Any, x: Any, *, key: Array) -> Report:
    """Check a layer's backward pass against autodiff and finite differences of its forward pass.

    The gradients with respect to params and x are compared in float64, whatever the dtype of the
    arrays, for a random cotangent of the output. They are compared at the given params and x, and
    again at random values of both, where a mistake cannot be hidden by zeros or symmetry. The
    derivative of the backward pass is checked by a Hessian-vector product. The rounding error is
    measured in float32, bfloat16 and float16.

    Args:
        layer: the layer; a network is checked as one layer.
        params: parameters of the layer, any pytree. Float arrays are differentiated, others are
            held fixed.
        x: input of the layer, batch first, or a tuple of inputs.
        key: PRNG key of the cotangent and of the random values of params and x.

    Returns:
        A `Report` with one `Finding` (verdict and worst element) for each float array of params
        and x.

    Raises:
        TypeError: layer is not a `Layer`, or key is not a PRNG key.
        ValueError: params and x have no float array, an empty or a non-finite one.

    >>> from diffprog import backprop as bp
    >>> layer = bp.affine(3, 2)
    >>> params = layer.init(jax.random.key(0))
    >>> check_layer(layer, params, jnp.ones((4, 3)), key=jax.random.key(1)).ok
    True
    """
    require_layer("layer", layer)
    return _check(layer_under_test(layer, params, x), key)


def check_grad(
    f: Callable[..., Any],
    grad_f: Callable[..., Any],
    *args: Any,
    key: Array,
    argnums: int | tuple[int, ...] = 0,
) -> Report:
    """Check the gradient of a scalar function against autodiff and finite differences.

    Args:
        f: `f(*args)`, a float scalar, written in JAX.
        grad_f: `grad_f(*args)`, the gradient under test, laid out as by `jax.grad(f, argnums)`;
            written in JAX or NumPy.
        args: arguments of f, any pytrees.
        key: PRNG key of the random arguments at which the gradient is checked as well.
        argnums: position of the argument with respect to which grad_f differentiates, or a tuple of
            positions; then grad_f returns a tuple of gradients.

    Returns:
        A `Report` with one `Finding` (verdict and worst element) for each float array of the
        differentiated arguments.

    Raises:
        TypeError: f or grad_f is not callable, or key is not a PRNG key.
        ValueError: f does not return one float; an argnum is out of range; the arguments have no
            float array, an empty or a non-finite one.

    >>> x = jnp.array([1.0, -3.0])
    >>> check_grad(lambda x: (x**2).sum(), lambda x: 2 * x, x, key=jax.random.key(0)).ok
    True
    """
    _validation.function("f", f)
    _validation.function("grad_f", grad_f)
    if not isinstance(argnums, int):
        argnums = tuple(argnums)
    for number in (argnums,) if isinstance(argnums, int) else argnums:
        _validation.choice("argnums", number, range(len(args)))
    _validation.scalar("f", jax.eval_shape(f, *args))
    return _check(function_under_test(f, grad_f, _name_arguments(f, args), argnums), key)


def _name_arguments(f: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    """Return a dict of the arguments of f by parameter name.

    The keys are "args[0]", "args[1]", ... if f has no signature or has `*args`.
    """
    try:
        names = list(inspect.signature(f).bind(*args).arguments)
    except (TypeError, ValueError):
        names = []
    if len(names) != len(args):
        names = [f"args[{k}]" for k in range(len(args))]
    return dict(zip(names, args, strict=True))


def _check(test: GradientUnderTest, key: Array) -> Report:
    """Check a gradient at the given and at random arguments, then measure its rounding error."""
    require_variables(test.variables)
    _validation.key("key", key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    notes: list[str] = []
    asymmetry = 0.0
    # Correctness is decided in float64; only the measurement of precision uses the given dtypes.
    with jax.enable_x64(True):
        test = cast_constants(test, np.float64)
        variables = cast(test.variables, jnp.float64)
        properties = trace_properties(test, variables)
        dtypes = properties.function_dtypes
        unit_roundoff = _largest_eps(dtypes, 2.0**-53)
        if dtypes:
            notes.append(
                f"the function computes in {', '.join(dtypes)} regardless of the dtype of its "
                "arguments; it is checked to that accuracy only"
            )
        dy = random_cotangent(test, variables, rng)
        # A trace with equal constants may still be random, by a callback: compare the numbers too.
        given = evaluate_point(test, "given", variables, dy, unit_roundoff)
        second_call = value_and_gradient(test, variables, dy)[1]
        if properties.varies or not bitwise_equal(given.got, second_call):
            hint, nan = "two calls with the same arguments differ: pass a key", float("nan")
            finding = Finding("", "nondeterministic", (), nan, nan, nan, 0.0, hint)
            return Report(tuple(finding._replace(path=path) for path in variables))
        generic = generic_point(given, rng)
        if generic is None:
            notes.append(
                "no generic point was found at which the function is finite; "
                "checked at the given point only"
            )
        findings = [_check_leaf_at_both_points(given, generic, path, rng) for path in variables]
        if narrow := properties.gradient_dtypes:
            findings = [_allow_narrow_gradient(f, narrow, unit_roundoff) for f in findings]
        # A wrong first derivative makes the second one wrong as well, which is no new finding.
        if test.function_with_rule is not None and all(finding.ok for finding in findings):
            second_order, asymmetry = check_second_order(generic or given, rng)
            findings += second_order
    report = Report(tuple(findings), (), tuple(notes), asymmetry)
    return _check_precision(test, report, dy)


def _largest_eps(dtypes: list[str], default: float) -> float:
    return max((float(jnp.finfo(dtype).eps) for dtype in dtypes), default=default)


def _check_leaf_at_both_points(
    given: TestPoint, generic: TestPoint | None, path: str, rng: np.random.Generator
) -> Finding:
    """Check one array's gradient at the given arguments and then at random ones (`generic`).

    `path` names the array. Returns one finding for both points.
    """
    first = check_leaf(given, path, rng)
    if generic is None or not first.ok:
        return first
    second = check_leaf(generic, path, rng)
    if not second.ok:
        return second
    if first.verdict != "degenerate":
        return second if (first.verdict, second.verdict) == ("ok", "autodiff-wrong") else first
    if second.verdict == "degenerate":
        hint = (
            "zero here and at generic points: the function does not depend on it, "
            "or is piecewise constant"
        )
        return first._replace(verdict="unused", hint=hint)
    hint = "zero at the given point, which checks nothing; correct at a generic point"
    return first._replace(hint=hint)


def _allow_narrow_gradient(
    finding: Finding, gradient_dtypes: list[str], unit_roundoff: float
) -> Finding:
    """Change a verdict "wrong" to "precision" if rounding in low precision explains the error.

    `gradient_dtypes` are the float dtypes below float64 in which the gradient function computes,
    whatever the dtype of its arguments. `unit_roundoff` is that of the function.
    """
    eps = _largest_eps(gradient_dtypes, 0.0)
    # The slack in the tolerance is for another formula in float64, not for a narrow dtype.
    tolerance = finding.tolerance * eps / unit_roundoff * ULPS / FORMULA_SLACK
    if finding.verdict != "wrong" or eps <= unit_roundoff or not finding.error <= tolerance:
        return finding
    hint = (
        f"the gradient computes in {', '.join(gradient_dtypes)} "
        "regardless of the dtype of its arguments"
    )
    return finding._replace(verdict="precision", hint=hint)


def _check_precision(test: GradientUnderTest, report: Report, dy: Any) -> Report:
    """Measure the rounding errors of a gradient that is correct, and return a report with them.

    The verdict on an array becomes "precision" if, in the dtype that the user passed, the error of
    its gradient is above the rounding bound. `dy` is the cotangent of the output.
    """
    measurable = ("ok", "kink", "degenerate")
    paths = [finding.path for finding in report.findings if finding.verdict in measurable]
    if not report.ok or not paths:
        return report
    measured, notes = measure_precision(test, paths, dy)
    precision = tuple(entry for entry in measured if np.isfinite(entry.bound))
    notes += sorted(
        f"{entry.dtype}: {entry.path} not assessed, rounding may reach points where f is not finite"
        for entry in measured
        if not np.isfinite(entry.bound)
    )
    # The other dtypes are reported but do not change the verdict.
    dtypes = {path: str(jnp.result_type(leaf)) for path, leaf in test.variables.items()}
    too_large = {
        entry.path: entry
        for entry in precision
        if entry.dtype == dtypes[entry.path] and not entry.error <= entry.bound
    }
    findings = list(report.findings)
    for k, finding in enumerate(findings):
        if (entry := too_large.get(finding.path)) is not None:
            hint = (
                f"correct in float64; in {entry.dtype} the error of the whole leaf is "
                f"{entry.error:.2g}, above the rounding bound {entry.bound:.2g}"
            )
            finding = finding._replace(error=entry.error, tolerance=entry.bound, hint=hint)
            findings[k] = finding._replace(verdict="precision")
    return Report(tuple(findings), precision, (*report.notes, *notes), report.asymmetry)
