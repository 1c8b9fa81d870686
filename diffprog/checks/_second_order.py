"""Second-order check: is the derivative of a hand-written backward pass correct?

A backward pass that uses residuals without gradient (by `stop_gradient`, for example) gives a
correct gradient and a wrong second derivative. So a Hessian-vector product H u is computed once
with the backward pass and once with autodiff of the forward pass y = f(v). H is the Hessian of

    phi(v) = sum dy (y + y^2 / 2)

with a random dy; the square makes the cotangent that reaches the backward pass depend on v. The
symmetry u H w = w H u is measured too, for random vectors u and w.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog.checks._finite_differences import random_direction
from diffprog.checks._gradient_function import Variables, WithConstants, jit_unoptimized
from diffprog.checks._report import Finding
from diffprog.checks._test_points import TestPoint

_SLACK, _PERTURBATION = 2.0**12, 2.0**-30


def check_second_order(point: TestPoint, rng: np.random.Generator) -> tuple[list[Finding], float]:
    """Check a Hessian-vector product by a hand-written backward pass, and the Hessian's symmetry.

    Returns a list with one finding for each variable whose part of the product is wrong, and the
    relative asymmetry |u H w - w H u| of the Hessian H for random vectors u and w.
    """
    function, function_with_rule = point.test.function, point.test.function_with_rule
    assert function_with_rule is not None
    variables, dy = point.variables, point.dy
    u, w = ({path: random_direction(variables, path, rng) for path in variables} for _ in range(2))
    got, got_w = _hessian_vector_products(function_with_rule, variables, dy, u, w)
    want, _ = _hessian_vector_products(function, variables, dy, u, w)
    # The sensitivity of H u to a relative perturbation of v sets the tolerance.
    perturbed_variables = {
        path: leaf * (1 + _PERTURBATION * np.sin(1e3 * u[path])) for path, leaf in variables.items()
    }
    perturbed, _ = _hessian_vector_products(function, perturbed_variables, dy, u, w)
    findings = [
        _compare(point, path, *(np.asarray(tree[path]) for tree in (got, want, perturbed)))
        for path in variables
    ]
    difference = abs(_inner(w, got) - _inner(u, got_w))
    scale = _inner(jax.tree.map(np.abs, w), jax.tree.map(np.abs, got))
    asymmetry = difference / scale if scale else 0.0
    return [finding for finding in findings if finding is not None], asymmetry


@jit_unoptimized
def _hessian_vector_products(
    f: WithConstants, variables: Variables, dy: Any, u: Variables, w: Variables
) -> tuple[Variables, Variables]:
    """Return H u and H w for the Hessian H of phi(v) = sum dy (y + y^2 / 2), y = f(v), at v."""

    def phi(variables: Variables) -> Array:
        terms = jax.tree.map(lambda dy, y: (dy * (y + y * y / 2)).sum(), dy, f(variables))
        return functools.reduce(jnp.add, jax.tree.leaves(terms))

    # Linearized once, applied to both vectors.
    _, hessian_vector_product = jax.linearize(jax.grad(phi), variables)
    both = jax.vmap(hessian_vector_product)(jax.tree.map(lambda *pair: jnp.stack(pair), u, w))
    return jax.tree.map(lambda leaf: leaf[0], both), jax.tree.map(lambda leaf: leaf[1], both)


def _compare(
    point: TestPoint, path: str, got: np.ndarray, want: np.ndarray, perturbed: np.ndarray
) -> Finding | None:
    """Compare a variable's part of a Hessian-vector product with the one by autodiff.

    Args:
        point: the point at which the products are evaluated.
        path: path of the variable.
        got: product by the hand-written backward pass.
        want: product by autodiff.
        perturbed: product by autodiff at slightly perturbed variables, which sets the tolerance.

    Returns:
        A finding with verdict "wrong", or None if the products agree up to rounding.
    """
    error = np.abs(got - want)
    largest = np.abs(want).max() or np.abs(got).max()
    sensitivity = np.abs(perturbed - want) / _PERTURBATION
    tolerance = _SLACK * point.unit_roundoff * (sensitivity + np.abs(want) + largest)
    excess = np.where(np.isfinite(want), error - tolerance, -1.0)
    if not (excess > 0).any():
        return None
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(excess / tolerance)), want.shape))
    hint = "the derivative of the rule is wrong: is a residual detached or rounded?"
    value, reference, error, tolerance = (float(a[index]) for a in (got, want, error, tolerance))
    finding = Finding(path, "wrong", index, value, reference, error, tolerance, hint)
    return finding._replace(point=point.name, order=2)


def _inner(a: Variables, b: Variables) -> float:
    return float(sum(np.vdot(a[path], b[path]) for path in a))
