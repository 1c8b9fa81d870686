"""The smallest perturbations of a rectified network, exactly, by mixed-integer programming; and how near the attacks come.

    min ε   such that   |x' - x| <= ε,  0 <= x' <= 1,  a network of affine layers and rectifiers reads x' as class j

A rectifier a = max(z, 0) with low <= z <= high is four inequalities and a number d that is 0 or 1:

    a >= 0,   a >= z,   a <= z - low (1 - d),   a <= high d

Source: V. Tjeng, K. Xiao and R. Tedrake, "Evaluating robustness of neural networks with mixed integer programming", 2019.
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
LENGTHS, BATCH = (10, 10, 10, 3), 24
TOLERANCE = 1e-6  # of the solver, by which its constraints may be missed


def network(weights, x):
    for matrix, bias in weights[:-1]:
        x = jnp.maximum(x @ matrix + bias, 0)
    return x @ weights[-1][0] + weights[-1][1]


def case(seed):
    rng = np.random.default_rng(seed)
    shapes = list(itertools.pairwise(LENGTHS))
    weights = [
        (rng.normal(size=shape) * np.sqrt(2 / shape[0]), 0.1 * rng.normal(size=shape[1]))
        for shape in shapes
    ]
    x = rng.uniform(size=(BATCH, LENGTHS[0]))
    weights[-1] = (
        weights[-1][0],
        -np.asarray(network([*weights[:-1], (weights[-1][0], 0)], x)).mean(0),
    )
    return weights, x, np.asarray(network(weights, x)).argmax(1)


def exact(weights, x, y, reach):
    """The linf distance of one example to the nearest other class, where there is one within `reach`; infinite where there is none."""
    return min(_to(weights, x, y, j, reach) for j in range(LENGTHS[-1]) if j != y)


def _to(weights, x, y, j, reach):
    """The variables are ε, x', and a and d of each rectifier."""
    size, hidden = len(x), sum(LENGTHS[1:-1])
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
    whole = np.arange(total) >= 1 + size + hidden
    ends = np.r_[reach, np.ones(size), np.full(hidden, np.inf), np.ones(hidden)]
    constraints, options = LinearConstraint(np.array(rows), lower, np.inf), {"mip_rel_gap": 1e-9}
    answer = milp(
        one[0], integrality=whole, bounds=Bounds(0, ends), constraints=constraints, options=options
    )
    if answer.status == 2:
        return np.inf
    assert answer.status == 0, answer.message
    # Once more with the integers rounded: what is left is a linear program, without their tolerance.
    switched = np.where(whole, answer.x.round(), np.nan)
    fixed = Bounds(np.where(whole, switched, 0), np.where(whole, switched, ends))
    again = milp(one[0], bounds=fixed, constraints=constraints)
    return again.fun if again.status == 0 else answer.fun


@pytest.mark.parametrize("seed", [0, 1, 2, 5])
def test_the_best_attack_meets_the_exact_minimum_of_a_rectified_network(key, seed):
    """Of several, since each alone ends in a nearest point that is only locally so for some of the examples."""
    weights, x, y = case(seed)
    attacks = [fmn(restarts=10), fab(), deep_fool(norm="linf")]
    with jax.enable_x64(True):
        f = dp.program(network, [tuple(map(jnp.asarray, layer)) for layer in weights])
        found = [attack(f, jnp.asarray(x), jnp.asarray(y), key=key) for attack in attacks]
        assert all(one.success.all() for one in found)
        distances = np.array([one.distance for one in found])
    best = distances.min(0)
    truth = np.array(
        [
            exact(weights, *example, reach=1.001 * ub)
            for *example, ub in zip(x, y, best, strict=True)
        ]
    )
    assert np.isfinite(truth).all()
    assert (best >= truth - TOLERANCE).all()
    assert np.median(best / truth) <= 1.005
    assert np.percentile(best / truth, 90) <= 1.03
    assert np.median(distances[0] / truth) <= 1.005, "FMN alone"


def test_the_exact_minimum_is_that_of_a_linear_program_where_nothing_is_rectified():
    """With large biases in the hidden layers, taken off again after them."""
    weights, x, _ = case(1)
    weights = [(matrix, bias + 100) for matrix, bias in weights[:-1]] + [weights[-1]]
    matrix = np.linalg.multi_dot([layer[0] for layer in weights])
    constant = np.asarray(network(weights, x)) - x @ matrix
    weights[-1] = weights[-1][0], weights[-1][1] - constant[0] - x.mean(0) @ matrix
    logits = np.asarray(network(weights, x))
    for k in range(5):
        y, order = logits[k].argmax(), np.argsort(-logits[k])
        others = [j for j in order if j != y]
        near = min(
            (logits[k, y] - logits[k, j]) / np.abs(matrix[:, y] - matrix[:, j]).sum()
            for j in others
        )
        inside = ((x[k] >= near) & (x[k] <= 1 - near)).all()
        distance = exact(weights, x[k], y, reach=1.0)
        assert distance >= near * (1 - 1e-6)
        assert not inside or distance <= near * (1 + 1e-6)
