"""The checks of a layer and of a gradient function: one claim at two points, in float64 and below."""

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
from diffprog.checks._determinism import same, traced
from diffprog.checks._finite_differences import cotangent, value_and_claimed
from diffprog.checks._gradient_function import (
    Claim,
    cast,
    function_claim,
    in_dtype,
    layer_claim,
    require_variables,
)
from diffprog.checks._low_precision import precisions
from diffprog.checks._report import Finding, Report
from diffprog.checks._second_order import second_order
from diffprog.checks._test_points import SLACK, ULPS, Point, generic_point, observe
from diffprog.checks._verdict import judge


def check_layer(layer: Layer, params: Any, x: Any, *, key: Array) -> Report:
    """Hold dy dy/dparams and dy dy/dx of a layer's backward against autodiff of its forward, and against how forward moves.

    Correctness is decided in float64 whatever the dtype of the arrays, with a random cotangent dy, at the given point and at a generic one;
    precision is reported for float32, bfloat16 and float16. The derivative of the rule (a Hessian-vector product) is checked too.

    Args:
        layer: the layer, or a net that is to be taken as one layer.
        params: its parameters, any pytree; float arrays are differentiated, others held.
        x: its input, batch first, or a tuple of inputs.
        key: for the cotangent and the generic point.

    Returns:
        A `Report`, with a finding for each float leaf of params and x.

    Raises:
        TypeError, ValueError: not a layer; params or x without float arrays, empty or not finite.

    >>> from diffprog import backprop as bp
    >>> layer = bp.affine(3, 2)
    >>> check_layer(layer, layer.init(jax.random.key(0)), jnp.ones((4, 3)), key=jax.random.key(1)).ok
    True
    """
    require_layer("layer", layer)
    claim = layer_claim(layer, params, x)
    require_variables(claim.variables)
    return _check(claim, key)


def check_grad(
    f: Callable[..., Any],
    grad_f: Callable[..., Any],
    *args: Any,
    key: Array,
    argnums: int | tuple[int, ...] = 0,
) -> Report:
    """Hold a claimed gradient of a scalar function against autodiff, and against how the function moves.

    Args:
        f: `f(*args)`, a float scalar, written in JAX.
        grad_f: `grad_f(*args)`, its gradient as `jax.grad(f, argnums)` would return it; NumPy will do.
        args: any pytrees.
        key: for the generic point.
        argnums: the argument that grad_f differentiates, or a tuple of them; then it returns a tuple.

    Returns:
        A `Report`, with a finding for each float leaf of those arguments.

    Raises:
        TypeError, ValueError: functions that are not callable, a value that is not one float; arguments without float arrays, empty or not
            finite.

    >>> check_grad(lambda x: (x**2).sum(), lambda x: 2 * x, jnp.array([1.0, -3.0]), key=jax.random.key(0)).ok
    True
    """
    _validation.function("f", f)
    _validation.function("grad_f", grad_f)
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for number in chosen:
        _validation.choice("argnums", number, range(len(args)))
    _validation.scalar("f", jax.eval_shape(f, *args))
    claim = function_claim(
        f, grad_f, _named(f, args), argnums if isinstance(argnums, int) else chosen
    )
    require_variables(claim.variables)
    return _check(claim, key)


def _check(claim: Claim, key: Array) -> Report:
    _validation.key("key", key)
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    notes: list[str] = []
    asymmetry = 0.0
    with jax.enable_x64(True):
        claim = in_dtype(claim, np.float64)
        variables = cast(claim.variables, jnp.float64)
        narrow, narrow_rule, changing = traced(claim, variables)
        unit = max((float(jnp.finfo(dtype).eps) for dtype in narrow), default=2.0**-53)
        if narrow:
            notes.append(
                f"the function computes in {', '.join(narrow)} whatever the dtype of its arguments, and is checked to that accuracy only"
            )
        dy = cotangent(claim, variables, draw)
        given = observe(claim, "given", variables, dy, unit)
        if changing or not same(given.got, value_and_claimed(claim, variables, dy)[1]):
            return Report(tuple(_nondeterministic(given, path) for path in variables))
        generic = generic_point(claim, given, draw)
        if generic is None:
            notes.append(
                "no generic point was found at which the function is finite; checked at the given point only"
            )
        findings = [_of_leaf(claim, given, generic, path, draw) for path in variables]
        findings = [_excused(finding, narrow_rule, unit) for finding in findings]
        if claim.rule is not None and all(finding.ok for finding in findings):
            seconds, asymmetry = second_order(claim, generic or given, draw)
            findings += seconds
    return _with_precision(claim, Report(tuple(findings), (), tuple(notes), asymmetry), dy)


def _nondeterministic(point: Point, path: str) -> Finding:
    nothing = float("nan")
    return Finding(
        path,
        "nondeterministic",
        (),
        nothing,
        nothing,
        nothing,
        0.0,
        "two calls with the same arguments differ: pass a key",
    )


def _of_leaf(
    claim: Claim, given: Point, generic: Point | None, path: str, draw: np.random.Generator
) -> Finding:
    first = judge(claim, given, path, draw)
    if generic is None or not first.ok:
        return first
    second = judge(claim, generic, path, draw)
    if not second.ok:
        return second
    if first.verdict != "degenerate":
        return second if (first.verdict, second.verdict) == ("ok", "autodiff-wrong") else first
    if second.verdict == "degenerate":
        return first._replace(
            verdict="unused",
            hint="zero here and at generic points: the function does not depend on it, or in steps only",
        )
    return first._replace(
        hint="zero at the given point, where nothing can be seen; right at a generic point"
    )


def _excused(finding: Finding, narrow_rule: list[str], unit: float) -> Finding:
    """A rule that is right but for a dtype it insists on is inexact, not wrong."""
    eps = max((float(jnp.finfo(dtype).eps) for dtype in narrow_rule), default=0.0)
    # The slack within the tolerance is for another formula in float64, not for a narrow dtype.
    if (
        finding.verdict == "wrong"
        and eps > unit
        and finding.error <= finding.tolerance * eps / unit * ULPS / SLACK
    ):
        return finding._replace(
            verdict="precision",
            hint=f"the rule computes in {', '.join(narrow_rule)} whatever the dtype of its arguments",
        )
    return finding


def _with_precision(claim: Claim, report: Report, dy: Any) -> Report:
    """Measure the leaves of a right report; one that is too inexact in its own dtype is a finding."""
    right = [
        finding.path
        for finding in report.findings
        if finding.verdict in ("ok", "kink", "degenerate")
    ]
    if not report.ok or not right:
        return report
    measured, said = precisions(claim, right, dy)
    found = [p for p in measured if np.isfinite(p.bound)]
    lost = sorted(
        {f"{p.dtype}: {p.path}" for p in measured} - {f"{p.dtype}: {p.path}" for p in found}
    )
    said += [
        f"{name} not judged, rounding may lead it to where the function is not finite"
        for name in lost
    ]
    own = {path: str(jnp.result_type(leaf)) for path, leaf in claim.variables.items()}
    inexact = {p.path: p for p in found if p.dtype == own[p.path] and not p.error <= p.bound}
    findings = [
        _imprecise(finding, inexact[finding.path]) if finding.path in inexact else finding
        for finding in report.findings
    ]
    return report._replace(
        findings=tuple(findings), precision=tuple(found), notes=(*report.notes, *said)
    )


def _imprecise(finding: Finding, found: Any) -> Finding:
    said = f"right in float64; in {found.dtype} the error of the whole leaf is {found.error:.2g}, rounding explains {found.bound:.2g}"
    return finding._replace(
        verdict="precision", error=found.error, tolerance=found.bound, hint=said
    )


def _named(f: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments by the names that f has for them."""
    try:
        bound = inspect.signature(f).bind(*args).arguments
        names = list(bound) if len(bound) == len(args) else []
    except (TypeError, ValueError):
        names = []
    return dict(zip(names or [f"args[{k}]" for k in range(len(args))], args, strict=True))
