"""Second-order check: the derivative of a hand-written rule against that of the function itself.

Both differentiate phi(v) = sum dy (y + y^2 / 2), y = f(v); the square makes the cotangent that
reaches the rule depend on v. A rule whose residuals are detached has a correct gradient and a wrong
Hessian-vector product H u. The symmetry u H w = w H u is measured too.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog.checks._finite_differences import random_direction
from diffprog.checks._gradient_function import GradientUnderTest, Variables, jit_unoptimized
from diffprog.checks._report import Finding
from diffprog.checks._test_points import TestPoint
from diffprog.program import Program

_SLACK, _PERTURBATION = 2.0**12, 2.0**-30


def check_second_order(
    test: GradientUnderTest, point: TestPoint, rng: np.random.Generator
) -> tuple[list[Finding], float]:
    """Check a Hessian-vector product of a hand-written rule, and the symmetry of its Hessian.

    Returns a finding for each leaf that is wrong, and the relative asymmetry.
    """
    assert test.function_with_rule is not None
    variables = point.variables
    u, w = ({path: random_direction(variables, path, rng) for path in variables} for _ in range(2))
    of_rule, of_rule_w = _hessian_vector_products(
        test.function_with_rule, variables, test.fixed, point.dy, u, w
    )
    want, _ = _hessian_vector_products(test.function, variables, test.fixed, point.dy, u, w)
    # The sensitivity of H u to a relative perturbation of v sets the tolerance.
    perturbed_variables = {
        path: leaf * (1 + _PERTURBATION * np.sin(1e3 * u[path])) for path, leaf in variables.items()
    }
    perturbed, _ = _hessian_vector_products(
        test.function, perturbed_variables, test.fixed, point.dy, u, w
    )
    findings = [
        _compare(point, path, *(np.asarray(tree[path]) for tree in (of_rule, want, perturbed)))
        for path in variables
    ]
    difference = abs(_inner(w, of_rule) - _inner(u, of_rule_w))
    scale = _inner(jax.tree.map(np.abs, w), jax.tree.map(np.abs, of_rule))
    asymmetry = difference / scale if scale else 0.0
    return [finding for finding in findings if finding is not None], asymmetry


@jit_unoptimized
def _hessian_vector_products(
    f: Program, variables: Variables, fixed: dict[str, Any], dy: Any, u: Variables, w: Variables
) -> tuple[Variables, Variables]:
    """Compute the products H u and H w of the Hessian with two vectors."""

    def phi(variables: Variables) -> Array:
        y = f(variables, fixed)
        return sum(
            leaf.sum()
            for leaf in jax.tree.leaves(jax.tree.map(lambda dy, y: dy * (y + y * y / 2), dy, y))
        )

    _, hessian_vector_product = jax.linearize(jax.grad(phi), variables)
    # Linearized once, applied to both vectors.
    both = jax.vmap(hessian_vector_product)(jax.tree.map(lambda *pair: jnp.stack(pair), u, w))
    return jax.tree.map(lambda leaf: leaf[0], both), jax.tree.map(lambda leaf: leaf[1], both)


def _compare(
    point: TestPoint, path: str, got: np.ndarray, want: np.ndarray, perturbed: np.ndarray
) -> Finding | None:
    error = np.abs(got - want)
    largest = np.abs(want).max() or np.abs(got).max()
    sensitivity = np.abs(perturbed - want) / _PERTURBATION
    tolerance = _SLACK * point.unit_roundoff * (sensitivity + np.abs(want) + largest)
    excess = np.where(np.isfinite(want), error - tolerance, -1.0)
    if not (excess > 0).any():
        return None
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(excess / tolerance)), want.shape))
    return Finding(
        path,
        "wrong",
        index,
        float(got[index]),
        float(want[index]),
        float(error[index]),
        float(tolerance[index]),
        hint="the derivative of the rule is wrong: is a residual detached or rounded?",
        point=point.name,
        order=2,
    )


def _inner(a: Variables, b: Variables) -> float:
    return float(sum(np.vdot(a[path], b[path]) for path in a))
