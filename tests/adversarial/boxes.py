"""Linear programs in a box whose ends are not round, and the most that a perturbation can do to them: what the ascents are held against."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import diffprog as dp

NORMS = ("linf", "l2", "l1")
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
# Bounds whose ends are not round numbers in binary: there high - x + x can miss high.
BOUNDS = (-2.1179, 2.64)
LOW, HIGH = np.float32(BOUNDS)
BATCH, SIZE = 8, 10

every_norm = pytest.mark.parametrize("norm", NORMS)


def linear(weights, x):
    return (x - 0.5) @ weights


def case(seed, classes=2, faces=0.0, dtype=np.float32):
    """A linear program, examples (some numbers of them on the faces of the box), and what it reads."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(LOW, HIGH, (BATCH, SIZE)).astype(dtype)
    x = np.where(rng.uniform(size=x.shape) < faces, rng.choice([LOW, HIGH], x.shape), x).astype(
        dtype
    )
    f = dp.program(linear, jnp.asarray(rng.normal(size=(SIZE, classes)).astype(dtype)))
    return f, x, np.asarray(f(x).argmax(1))


def most(norm, gradient, room, epsilon):
    """max <g, r> of one r with ||r|| <= epsilon that keeps to its room, all in sizes: greedily for l1, by the root of the dual for l2."""
    if norm == "linf":
        return gradient @ np.minimum(room, epsilon)
    if norm == "l1":
        order = np.argsort(-gradient)
        before = np.concatenate([[0], np.cumsum(room[order])[:-1]])
        return gradient[order] @ np.clip(epsilon - before, 0, room[order])
    if np.linalg.norm(room) <= epsilon:
        return gradient @ room
    length = lambda s: np.linalg.norm(np.minimum(s * gradient, room)) - epsilon
    return gradient @ np.minimum(
        brentq(length, 0, 2 * room.max() / gradient.min(), xtol=1e-15) * gradient, room
    )
