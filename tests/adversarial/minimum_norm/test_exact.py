"""Attacks on ReLU networks against the exact minimum, from mixed-integer programming.

    min ε   subject to   |x' - x| <= ε,  0 <= x' <= 1,  f(x')_j >= f(x')_y

A ReLU a = max(z, 0) with low <= z <= high is four inequalities and a binary variable d:

    a >= 0,   a >= z,   a <= z - low (1 - d),   a <= high d

Source: V. Tjeng, K. Xiao and R. Tedrake, "Evaluating robustness of neural networks with mixed
integer programming", 2019.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

import diffprog as dp
from diffprog.adversarial import deep_fool, fab, fmn

pytestmark = pytest.mark.slow
WIDTHS, BATCH = (10, 10, 10, 3), 24
TOLERANCE = 1e-6  # of the solver's constraints


def network(weights, x):
    for matrix, bias in weights[:-1]:
        x = jnp.maximum(x @ matrix + bias, 0)
    return x @ weights[-1][0] + weights[-1][1]


def case(seed):
    rng = np.random.default_rng(seed)
    shapes = list(itertools.pairwise(WIDTHS))
    weights = [
        (rng.normal(size=shape) * np.sqrt(2 / shape[0]), 0.1 * rng.normal(size=shape[1]))
        for shape in shapes
    ]
    x = rng.uniform(size=(BATCH, WIDTHS[0]))
    weights[-1] = (
        weights[-1][0],
        -np.asarray(network([*weights[:-1], (weights[-1][0], 0)], x)).mean(0),
    )
    return weights, x, np.asarray(network(weights, x)).argmax(1)


def exact_distance(weights, x, y, reach):
    """Compute the linf distance of one example to the nearest other class; infinite if > reach."""
    return min(distance_to_class(weights, x, y, j, reach) for j in range(WIDTHS[-1]) if j != y)


def distance_to_class(weights, x, y, j, reach):
    """Solve the program for one class; its variables are ε, x', and a and d of each ReLU."""
    size, hidden = len(x), sum(WIDTHS[1:-1])
    total = 1 + size + 2 * hidden
    rows, lower = [], []

    def at_least(row, side):
        rows.append(row)
        lower.append(side)

    one = np.eye(total)
    for i in range(size):
        at_least(one[0] - one[1 + i], -x[i])
        at_least(one[0] + one[1 + i], x[i])
    inputs, low, high = one[1 : 1 + size], np.maximum(x - reach, 0), np.minimum(x + reach, 1)
    first = 1 + size
    for matrix, bias in weights[:-1]:
        up, down = np.maximum(matrix, 0), np.minimum(matrix, 0)
        least, most = low @ up + high @ down + bias, high @ up + low @ down + bias
        units = range(len(bias))
        a, d = one[first : first + len(bias)], one[first + hidden : first + hidden + len(bias)]
        for k in units:
            z = matrix[:, k] @ inputs
            at_least(a[k] - z, bias[k])
            at_least(z - a[k] + min(least[k], 0) * d[k], min(least[k], 0) - bias[k])
            at_least(max(most[k], 0) * d[k] - a[k], 0)
        inputs, low, high, first = a, np.maximum(least, 0), np.maximum(most, 0), first + len(bias)
    matrix, bias = weights[-1]
    at_least((matrix[:, j] - matrix[:, y]) @ inputs, bias[y] - bias[j])
    is_binary = np.arange(total) >= 1 + size + hidden
    ends = np.r_[reach, np.ones(size), np.full(hidden, np.inf), np.ones(hidden)]
    constraints, options = LinearConstraint(np.array(rows), lower, np.inf), {"mip_rel_gap": 1e-9}
    result = milp(
        one[0],
        integrality=is_binary,
        bounds=Bounds(0, ends),
        constraints=constraints,
        options=options,
    )
    if result.status == 2:
        return np.inf
    assert result.status == 0, result.message
    # Solve again with the binary variables rounded: a linear program without their tolerance.
    rounded = np.where(is_binary, result.x.round(), np.nan)
    fixed = Bounds(np.where(is_binary, rounded, 0), np.where(is_binary, rounded, ends))
    again = milp(one[0], bounds=fixed, constraints=constraints)
    return again.fun if again.status == 0 else result.fun


@pytest.mark.parametrize("seed", [0, 1, 2, 5])
def test_the_best_attack_is_near_the_exact_minimum_of_a_relu_network(key, seed):
    """The best of several, since each alone ends in a local minimum for some examples."""
    weights, x, y = case(seed)
    attacks = [fmn(restarts=10), fab(), deep_fool(norm="linf")]
    with jax.enable_x64(True):
        f = dp.program(network, [tuple(map(jnp.asarray, layer)) for layer in weights])
        results = [attack(f, jnp.asarray(x), jnp.asarray(y), key=key) for attack in attacks]
        assert all(result.success.all() for result in results)
        distances = np.array([result.distance for result in results])
    best = distances.min(0)
    exact = np.array(
        [
            exact_distance(weights, *example, reach=1.001 * bound)
            for *example, bound in zip(x, y, best, strict=True)
        ]
    )
    assert np.isfinite(exact).all()
    assert (best >= exact - TOLERANCE).all()
    assert np.median(best / exact) <= 1.005
    assert np.percentile(best / exact, 90) <= 1.03
    assert np.median(distances[0] / exact) <= 1.005, "FMN alone"


def test_the_exact_minimum_of_a_linear_network_has_a_closed_form():
    """Large biases in the hidden layers keep all ReLUs active; the output bias cancels them."""
    weights, x, _ = case(1)
    weights = [(matrix, bias + 100) for matrix, bias in weights[:-1]] + [weights[-1]]
    matrix = np.linalg.multi_dot([layer[0] for layer in weights])
    constant = np.asarray(network(weights, x)) - x @ matrix
    weights[-1] = weights[-1][0], weights[-1][1] - constant[0] - x.mean(0) @ matrix
    logits = np.asarray(network(weights, x))
    for k in range(5):
        y, order = logits[k].argmax(), np.argsort(-logits[k])
        others = [j for j in order if j != y]
        closed_form = min(
            (logits[k, y] - logits[k, j]) / np.abs(matrix[:, y] - matrix[:, j]).sum()
            for j in others
        )
        inside = ((x[k] >= closed_form) & (x[k] <= 1 - closed_form)).all()
        distance = exact_distance(weights, x[k], y, reach=1.0)
        assert distance >= closed_form * (1 - 1e-6)
        assert not inside or distance <= closed_form * (1 + 1e-6)
