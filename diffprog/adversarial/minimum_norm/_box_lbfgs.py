"""Box-constrained L-BFGS attack in l2: minimize ||r||² plus a weighted cross-entropy."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffprog import _validation
from diffprog.adversarial._base import Attack, Bounds, Flat, PerExample, Problem
from diffprog.adversarial._losses import Labels, Logits
from diffprog.adversarial.minimum_norm import _lbfgs
from diffprog.adversarial.minimum_norm._binary_search import Shortest
from diffprog.adversarial.minimum_norm._penalty_search import ANY_CLASS, penalty_attack

_CLEAN_MARGIN = 100.0  # the margin at x after scaling the logits


def box_lbfgs(
    *,
    searches: int = 10,
    steps: int = 30,
    memory: int = 8,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """Box-constrained L-BFGS attack in l2 (Szegedy et al., 2013).

        min over r   ||r||² + c loss(f(x + r)),     low <= x + r <= high

    The loss is -log p with p the probability of the target class, or -log (1 - p) with p that of
    the label; c is the penalty weight, for which several values are tried per example. The logits
    are scaled to a margin of 100 at x, because the minimizer depends on their scale. The paper
    minimizes ||r||; its square has the same minimizers for other values of c, and a gradient at
    r = 0.

    Args:
        searches: number of values of c, at least 1.
        steps: L-BFGS steps per value of c, at least 1. Each takes one gradient per trial of its
            line search, mostly one.
        memory: number of past steps from which the inverse Hessian is estimated, at least 1.
        bounds: (low, high) of every value of x + r.
        targeted: whether y holds target classes.
        examples: inputs like x, of any batch size. Where the search fails, the nearest of them that
            is adversarial is moved to the decision boundary instead. Default: random points of the
            box.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or outside its range.

    Source: C. Szegedy et al., "Intriguing properties of neural networks", 2013, section 4.1.

    >>> x, y = jnp.array([[0.7, 0.4]]), jnp.array([0])
    >>> result = box_lbfgs()(lambda x: x @ jnp.eye(2), x, y, key=jax.random.key(0))
    >>> f"{result.distance[0]:.3f}"
    '0.212'
    """
    num_steps = jnp.int32(_validation.integer("steps", steps, low=1))
    memory = _validation.integer("memory", memory, low=1)

    def minimize(
        problem: Problem, c: PerExample, target: Labels, start: Flat, iteration: Array
    ) -> tuple[Shortest, Array]:
        low, high = (bound - problem.x for bound in problem.bounds)
        clean_margin = jnp.abs(jnp.nan_to_num(problem.margin(problem.clean_logits)))
        unit = jnp.maximum(clean_margin, 1e-6) / _CLEAN_MARGIN

        def objective(r: Flat) -> tuple[PerExample, Logits]:
            logits = problem.perturbed_logits(r)
            loss = _negative_log_probability(problem, target, logits / unit[:, None])
            return jnp.square(r).sum(1) + c * unit * loss, logits

        def step(k: Array, carry: tuple[_lbfgs.State, Shortest]) -> tuple[_lbfgs.State, Shortest]:
            state, shortest = carry
            state = _lbfgs.step(objective, low, high, state)
            success = problem.is_adversarial(state.aux)
            return state, shortest.update(problem, state.point, success, k, iteration)

        carry = _lbfgs.init(objective, start, memory), Shortest.empty(problem)
        state, shortest = jax.lax.fori_loop(0, num_steps, step, carry)
        return shortest, state.gradients

    return penalty_attack("box_lbfgs", "l2", minimize, 2.0, searches, bounds, targeted, examples)


def _negative_log_probability(problem: Problem, target: Labels, logits: Logits) -> PerExample:
    """Compute -log p, with p the softmax probability of the class `target`.

    Where `target` is ANY_CLASS, p is the total probability of all classes that count as a success.
    """
    one_hot = lambda labels: jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    adversarial = one_hot(problem.y) if problem.targeted else ~one_hot(problem.y)
    classes = jnp.where((target == ANY_CLASS)[:, None], adversarial, one_hot(target))
    return jax.nn.logsumexp(logits, axis=1) - jax.nn.logsumexp(
        jnp.where(classes, logits, -jnp.inf), axis=1
    )
