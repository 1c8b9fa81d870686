"""Elastic-net attack in l1: accelerated proximal gradient steps (FISTA) with an l1 penalty."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from diffprog import _validation
from diffprog.adversarial import _base
from diffprog.adversarial._base import Attack, Bounds, Flat, PerExample, Problem
from diffprog.adversarial._losses import Labels, Logits
from diffprog.adversarial.minimum_norm._binary_search import Shortest
from diffprog.adversarial.minimum_norm._penalty_search import hinge_loss, penalty_attack
from diffprog.descent import descent


def elastic_net(
    *,
    beta: float = 30.0,
    searches: int = 20,
    steps: int = 100,
    rate: float = 0.3,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """Elastic-net attack in l1 (EAD; Chen et al., 2018).

        min over r   ||r||² + β ||r||_1 + c max(-m, 0)
        r_{k+1} = shrink(v_k - α ∇L(v_k)),     L = ||v||² + c max(-m, 0)
        v_{k+1} = r_{k+1} + k/(k+3) (r_{k+1} - r_k)

    with m the margin of the logits, which is positive where the attack succeeds, c the penalty
    weight, for which several values are tried per example, α the step size, v_k the iterates with
    momentum, and shrink the soft threshold at α β followed by the clip to the box.

    Args:
        beta: weight β >= 0 of the l1 norm, in widths of the box. With the paper's 0.01 the
            objective is almost the squared l2 norm. Distances are measured in l1; at the default
            30 the square only makes the minimizer unique.
        searches: number of values of c, at least 1, shared among the classes that are tried. The
            paper uses 9.
        steps: steps per value of c, at least 1. The paper uses up to 1000; more searches of fewer
            steps find shorter perturbations.
        rate: initial α (1 + β) > 0; α decays geometrically to a thousandth.
        bounds: (low, high) of every value of x + r.
        targeted: whether y holds target classes.
        examples: inputs like x, of any batch size. Where the search fails, the nearest of them that
            is adversarial is moved to the decision boundary instead. Default: random points of the
            box.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or outside its range.

    Source: P.-Y. Chen et al., "EAD: elastic-net attacks to deep neural networks via adversarial
        examples", 2018.

    >>> x, y = jnp.array([[0.7, 0.4]]), jnp.array([0])
    >>> result = elastic_net()(lambda x: x @ jnp.eye(2), x, y, key=jax.random.key(0))
    >>> f"{result.distance[0]:.3f}"
    '0.300'
    """
    num_steps = jnp.int32(_validation.integer("steps", steps, low=1))
    initial_rate = np.asarray(_validation.number("rate", rate, above=0))
    l1_weight = np.asarray(_validation.number("beta", beta, low=0))

    def minimize(
        problem: Problem, c: PerExample, target: Labels, start: Flat, iteration: Array
    ) -> tuple[Shortest, Array]:
        scaled_l1_weight = l1_weight.astype(c.dtype) * problem.box_width

        def smooth_part(v: Flat, _: Any) -> tuple[Array, Logits]:
            logits = problem.perturbed_logits(v)
            value = jnp.square(v).sum(1) + c * hinge_loss(problem, target, logits)
            return value.sum(), logits

        def step(k: Array, carry: tuple[Flat, Flat, Shortest]) -> tuple[Flat, Flat, Shortest]:
            r, v, shortest = carry
            alpha = (initial_rate * 0.001 ** (k / num_steps)).astype(c.dtype)
            alpha = alpha / (1 + l1_weight.astype(c.dtype))

            def shrink(v: Flat) -> Flat:
                size = jnp.maximum(jnp.abs(v) - alpha * scaled_l1_weight, 0)
                return problem.clip_to_box(jnp.sign(v) * size)

            engine = descent(
                smooth_part,
                optax.chain(
                    optax.stateless(lambda g, _: _base.zero_nonfinite(g)), optax.scale(-alpha)
                ),
                shrink,
            )
            state, info = engine.step(engine.init(v), k)
            success = problem.is_adversarial(info.aux)
            shortest = shortest.update(problem, v, success, k, iteration)
            momentum = (k / (k + 3)).astype(c.dtype)
            v = problem.clip_to_box(state.variable + momentum * (state.variable - r))
            return state.variable, v, shortest

        carry = start, start, Shortest.empty(problem)
        _, _, shortest = jax.lax.fori_loop(0, num_steps, step, carry)
        return shortest, jnp.full(len(c), num_steps)

    return penalty_attack(
        "elastic_net", "l1", minimize, 4.0, searches, bounds, targeted, examples, l1_weight
    )
