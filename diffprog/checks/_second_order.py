"""The derivative of a hand-written rule: H u from the rule against H u from the plain function, and the symmetry of H.

The scalar is phi(v) = sum dy (y + y^2 / 2), y = f(v), so that the cotangent that reaches the rule depends on v too. A rule whose residuals
are detached has a right gradient and a wrong Hessian; it is seen here, and so is an H with u H w != w H u.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog.checks._finite_differences import random_direction
from diffprog.checks._gradient_function import Claim, Variables, compiled
from diffprog.checks._report import Finding
from diffprog.checks._test_points import Point
from diffprog.program import Program

_SLACK, _DISTURBED = 2.0**12, 2.0**-30


def second_order(
    claim: Claim, point: Point, draw: np.random.Generator
) -> tuple[list[Finding], float]:
    """The leaves whose row of H u is wrong, and |u H w - w H u| over the size of their terms."""
    assert claim.rule is not None
    u, w = (
        {path: random_direction(point.variables, path, draw) for path in point.variables}
        for _ in range(2)
    )
    hand, hand_w = _products(claim.rule, point.variables, claim.fixed, point.dy, u, w)
    plain, _ = _products(claim.value, point.variables, claim.fixed, point.dy, u, w)
    nudged = {
        path: leaf * (1 + _DISTURBED * np.sin(1e3 * u[path]))
        for path, leaf in point.variables.items()
    }
    moved, _ = _products(claim.value, nudged, claim.fixed, point.dy, u, w)
    found = [
        _compare(
            point, path, np.asarray(hand[path]), np.asarray(plain[path]), np.asarray(moved[path])
        )
        for path in point.variables
    ]
    one, other, size = (
        _inner(w, hand),
        _inner(u, hand_w),
        _inner(jax.tree.map(np.abs, w), jax.tree.map(np.abs, hand)),
    )
    return [finding for finding in found if finding is not None], abs(
        one - other
    ) / size if size else 0.0


@compiled
def _products(
    f: Program, variables: Variables, fixed: dict[str, Any], dy: Any, u: Variables, w: Variables
) -> tuple[Variables, Variables]:
    def phi(variables: Variables) -> Array:
        y = f(variables, fixed)
        return sum(
            leaf.sum()
            for leaf in jax.tree.leaves(jax.tree.map(lambda dy, y: dy * (y + y * y / 2), dy, y))
        )

    _, along = jax.linearize(jax.grad(phi), variables)
    both = jax.vmap(along)(jax.tree.map(lambda *directions: jnp.stack(directions), u, w))
    return jax.tree.map(lambda leaf: leaf[0], both), jax.tree.map(lambda leaf: leaf[1], both)


def _compare(
    point: Point, path: str, got: np.ndarray, want: np.ndarray, moved: np.ndarray
) -> Finding | None:
    error = np.abs(got - want)
    largest = np.abs(want).max() or np.abs(got).max()
    tolerance = _SLACK * point.unit * (np.abs(moved - want) / _DISTURBED + np.abs(want) + largest)
    over = np.where(np.isfinite(want), error - tolerance, -1.0)
    if not (over > 0).any():
        return None
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(over / tolerance)), want.shape))
    said = "the derivative of the rule is wrong: is a residual detached, or rounded?"
    numbers = (float(got[index]), float(want[index]), float(error[index]), float(tolerance[index]))
    return Finding(path, "wrong", index, *numbers, hint=said, point=point.name, order=2)


def _inner(a: Variables, b: Variables) -> float:
    return float(sum(np.vdot(a[path], b[path]) for path in a))
