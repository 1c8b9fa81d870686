"""Programs with known distances to their decision boundaries, and their exact solutions."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linprog, nnls

import diffprog as dp

BATCH, SIZE = 16, 12
RADIUS = 0.4  # of the class 0 in `ball_case`
HEALTHY, NAN_GRADIENTS, ZERO_GRADIENTS = range(3)
SOLVER_TOLERANCES = {
    "primal_feasibility_tolerance": 1e-10,
    "dual_feasibility_tolerance": 1e-10,
}


def _logits(weights, x):
    """Compute x W + b + curvature ||x - 0.5||² on class 1, with a fault that is a number.

    Linear, curved and faulty programs share one compiled program.
    """
    matrix, bias, fault, curvature = weights
    # The square root has an infinite slope at 0 and `maximum` a slope of 0: their product is NaN.
    first = jnp.where(fault == NAN_GRADIENTS, x[:, :1] - 0.5, 1.0)
    size = jnp.where(fault == NAN_GRADIENTS, 0.1, 0)
    logits = x @ matrix + bias + size * jnp.sqrt(jnp.maximum(first, 0))
    square = jnp.sum((x - 0.5) ** 2, axis=1, keepdims=True)
    logits += curvature * square * (jnp.arange(len(bias)) == 1)
    return jnp.where(fault == ZERO_GRADIENTS, jax.lax.stop_gradient(logits), logits)


def linear_case(seed, classes=3, *, inner=False, fault=HEALTHY, dtype=np.float32, uneven=False):
    """Draw a linear program, examples, and the classes that it predicts.

    With `inner`, the examples are in the middle of the box; otherwise many values are on its faces.
    With `uneven`, some classes are ten times as steep as others, so that the likeliest class is not
    always the nearest.
    """
    rng = np.random.default_rng(seed)
    x = (
        rng.uniform(0.4, 0.6, (BATCH, SIZE))
        if inner
        else np.clip(rng.uniform(-0.5, 1.5, (BATCH, SIZE)), 0, 1)
    )
    matrix = rng.normal(size=(SIZE, classes)) * (np.geomspace(0.3, 3, classes) if uneven else 1)
    x, matrix = x.astype(dtype), matrix.astype(dtype)
    bias = (-x.mean(0) @ matrix).astype(dtype)
    weights = matrix, bias, np.asarray(fault, dtype), np.zeros((), dtype)
    y = (x.astype(np.float64) @ matrix + bias).argmax(1)
    return dp.program(_logits, tuple(map(jnp.asarray, weights))), jnp.asarray(x), jnp.asarray(y)


def ball_case(seed, dtype=np.float32):
    """Draw examples inside a ball around the middle of the box where the program predicts 0."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(BATCH, SIZE))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    x = (0.5 + direction * rng.uniform(0.1, 0.3, (BATCH, 1))).astype(dtype)
    weights = (
        jnp.zeros((SIZE, 3), dtype),
        jnp.asarray([0, -(RADIUS**2), -9], dtype),
        jnp.zeros((), dtype),
        jnp.ones((), dtype),
    )
    return dp.program(_logits, weights), jnp.asarray(x), jnp.zeros(BATCH, int)


def distances_to_sphere(norm, x):
    """Compute the distances from points in the ball of `ball_case` to its surface.

    In l2 the nearest point lies along the radius; in linf every coordinate moves equally; in l1
    only the outermost moves.
    """
    offset = np.abs(np.asarray(x, np.float64) - 0.5)
    if norm == "l2":
        return RADIUS - np.linalg.norm(offset, axis=1)
    half, count = (offset.sum(1), offset.shape[1]) if norm == "linf" else (offset.max(1), 1)
    return (np.sqrt(half**2 + count * (RADIUS**2 - (offset**2).sum(1))) - half) / count


def smallest_norm(norm, g, gains, low, high):
    """Solve min ||d|| subject to g @ d >= gains, low <= d <= high; infinite if infeasible.

    By linear programming, in l2 by nonnegative least squares (Lawson and Hanson 1974, chapter 23).
    """
    size = len(low)
    if norm == "l2":
        constraints = np.vstack([g, np.eye(size), -np.eye(size)])
        matrix = np.vstack([constraints.T, np.r_[gains, low, -high]])
        last = np.r_[np.zeros(size), 1]
        multipliers, residual = nnls(matrix, last, maxiter=1000)
        rest = matrix @ multipliers - last
        return np.linalg.norm(rest[:-1] / rest[-1]) if residual > 1e-7 else np.inf
    # Variables: d, and the bounds on |d|, one for all in linf or one each in l1.
    sizes = -np.ones((size, 1)) if norm == "linf" else -np.eye(size)
    no_sizes = np.zeros((len(g), sizes.shape[1]))
    result = linprog(
        np.r_[np.zeros(size), np.ones(sizes.shape[1])],
        A_ub=np.block([[np.eye(size), sizes], [-np.eye(size), sizes], [-g, no_sizes]]),
        b_ub=np.r_[np.zeros(2 * size), -gains],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * sizes.shape[1]],
        options=SOLVER_TOLERANCES,
    )
    return result.fun if result.status == 0 else np.inf


def exact_distances(norm, f, x, y, targeted=False):
    """Compute the distances to the nearest other class, or to the target, in the unit box."""
    matrix, bias = (np.asarray(array, np.float64) for array in f.arrays[:2])

    def distance(x, label):
        logits, others = x @ matrix + bias, np.delete(np.arange(len(bias)), label)
        g = (matrix[:, others] - matrix[:, [label]]).T
        gains = logits[label] - logits[others]
        if targeted:
            return smallest_norm(norm, -g, -gains, -x, 1 - x)
        return min(smallest_norm(norm, g[[j]], gains[[j]], -x, 1 - x) for j in range(len(others)))

    pairs = zip(np.asarray(x, np.float64), np.asarray(y), strict=True)
    return np.array([distance(*pair) for pair in pairs])


def assert_near(result, exact, dtype=np.float32, p90=1.02):
    """Check that results are within 0.5 % in the median, `p90` at 90 %, and never too short."""
    reachable = np.isfinite(exact)
    np.testing.assert_array_equal(result.success, reachable)
    distance, exact = np.asarray(result.distance, np.float64)[reachable], exact[reachable]
    # The rounding of the logits, sums of 12 products of at most 3, over the slope of their
    # difference, which is at least 1 in every dual norm.
    assert (distance >= exact - 36 * np.finfo(dtype).eps - 1e-9).all()
    ratio = (distance + 1e-9) / (exact + 1e-9)
    assert np.median(ratio) <= 1.005
    assert np.percentile(ratio, 90) <= p90


def assert_on_the_boundary(result, f, x, y, targeted=False):
    """Check that slightly shorter perturbations do not succeed."""
    r = np.asarray(result.perturbation)
    logits = np.asarray(f(x))
    # The bisection leaves a margin of 64 units in the last place of the largest logit.
    gap = np.abs(
        np.take_along_axis(logits, np.asarray(y)[:, None], 1)[:, 0]
        - np.sort(logits, 1)[:, -1 if targeted else -2]
    )
    share = 1e-4 + 2 * 64 * np.finfo(r.dtype).eps * np.abs(logits).max(1) / gap
    predicted = f(jnp.asarray(np.asarray(x) + (1 - share[:, None]) * r)).argmax(1)
    perturbed = np.asarray(result.success & ~result.initially_misclassified)
    assert perturbed.any()
    assert ((predicted != y) if targeted else (predicted == y))[perturbed].all()
