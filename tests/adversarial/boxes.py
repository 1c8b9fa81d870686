"""Linear programs in a box, and their exact optimum over ball and box."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import diffprog as dp

NORMS = ("linf", "l2", "l1")
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
# Bounds that are not round numbers in binary: there high - x + x can differ from high.
BOUNDS = (-2.1179, 2.64)
LOW, HIGH = np.float32(BOUNDS)
BATCH, SIZE = 8, 10

every_norm = pytest.mark.parametrize("norm", NORMS)


def linear(weights, x):
    return (x - 0.5) @ weights


def linear_case(seed, classes=2, faces=0.0, dtype=np.float32):
    """Draw a linear program, examples with a share of values on the faces, and their classes."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(LOW, HIGH, (BATCH, SIZE)).astype(dtype)
    x = np.where(rng.uniform(size=x.shape) < faces, rng.choice([LOW, HIGH], x.shape), x)
    x = x.astype(dtype)
    f = dp.program(linear, jnp.asarray(rng.normal(size=(SIZE, classes)).astype(dtype)))
    return f, x, np.asarray(f(x).argmax(1))


def max_gain(norm, gradient, room, epsilon):
    """Compute max <g, r> over ||r|| <= epsilon, 0 <= r <= room, for one example and g >= 0.

    For l1 greedily, for l2 by the root of the dual problem.
    """
    if norm == "linf":
        return gradient @ np.minimum(room, epsilon)
    if norm == "l1":
        order = np.argsort(-gradient)
        before = np.concatenate([[0], np.cumsum(room[order])[:-1]])
        return gradient[order] @ np.clip(epsilon - before, 0, room[order])
    if np.linalg.norm(room) <= epsilon:
        return gradient @ room
    excess = lambda s: np.linalg.norm(np.minimum(s * gradient, room)) - epsilon
    scale = brentq(excess, 0, 2 * room.max() / gradient.min(), xtol=1e-15)
    return gradient @ np.minimum(scale * gradient, room)


def lengths(norm, r):
    return np.linalg.norm(np.asarray(r, np.float64).reshape(len(r), -1), ORDER[norm], axis=1)


def assert_in_ball_and_box(norm, result, x, epsilon):
    assert ((result.adversarial >= LOW) & (result.adversarial <= HIGH)).all()
    assert (lengths(norm, result.perturbation) <= epsilon * (1 + 1e-6)).all()
    np.testing.assert_array_equal(result.perturbation, result.adversarial - x)


# --- examples far from the faces -----------------------------------------------------------------

DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def inner_case(seed, batch=BATCH, dtype=np.float32):
    """Draw a linear program of two classes, examples in the middle of the unit box, and classes."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.4, 0.6, (batch, SIZE)).astype(dtype)
    f = dp.program(linear, jnp.asarray(rng.normal(size=(SIZE, 2)).astype(dtype)))
    return f, x, np.asarray(f(x).argmax(1))


def distances(norm, f, x):
    """Compute the distances to the boundary of a linear program of two classes, without a box."""
    gap = np.abs(np.diff(np.asarray(f(x), np.float64))[:, 0])
    return gap / np.linalg.norm(np.diff(np.asarray(f.arrays[0], np.float64))[:, 0], DUAL[norm])
