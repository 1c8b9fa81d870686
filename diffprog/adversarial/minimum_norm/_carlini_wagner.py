"""Carlini and Wagner's l2 attack: Adam on a change of variables that keeps x + r in the box."""

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
from diffprog.adversarial.minimum_norm._ddn_fmn import cosine_decay
from diffprog.adversarial.minimum_norm._penalty_search import hinge_loss, penalty_attack
from diffprog.descent import descent

_TANH_EDGE = 1e-4  # keeps arctanh finite for values on a face of the box


def carlini_wagner(
    *,
    searches: int = 9,
    steps: int = 200,
    rate: float = 0.05,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """Carlini and Wagner's l2 attack (C&W, 2017).

        min over w   ||r||² + c max(-m, 0),     x + r = low + (high - low) (tanh w + 1) / 2

    by Adam, with m the margin of the logits, which is positive where the attack succeeds, and c the
    penalty weight, for which several values are tried per example.

    Args:
        searches: number of values of c, at least 1. The paper's 9.
        steps: Adam steps per value of c, at least 1. The paper uses up to 10000.
        rate: Adam's learning rate on w, > 0; a cosine schedule takes it to a hundredth.
        bounds: (low, high) of every value of x + r.
        targeted: whether y holds target classes.
        examples: inputs like x, of any batch size. Where the search fails, the nearest of them that
            is adversarial is moved to the decision boundary instead. Default: random points of the
            box.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or outside its range.

    Source: N. Carlini and D. Wagner, "Towards evaluating the robustness of neural networks", 2017.

    >>> x, y = jnp.array([[0.7, 0.4]]), jnp.array([0])
    >>> result = carlini_wagner()(lambda x: x @ jnp.eye(2), x, y, key=jax.random.key(0))
    >>> f"{result.distance[0]:.3f}"
    '0.212'
    """
    num_steps = jnp.int32(_validation.integer("steps", steps, low=1))
    learning_rate = np.asarray(_validation.number("rate", rate, above=0))

    def minimize(
        problem: Problem, c: PerExample, target: Labels, start: Flat, iteration: Array
    ) -> tuple[Shortest, Array]:
        low, high = problem.bounds

        def perturbation(w: Flat) -> Flat:
            return jnp.clip(low + (high - low) * (jnp.tanh(w) + 1) / 2, low, high) - problem.x

        def objective(w: Flat, _: Any) -> tuple[Array, tuple[Flat, Logits]]:
            r = perturbation(w)
            logits = problem.perturbed_logits(r)
            value = jnp.square(r).sum(1) + c * hinge_loss(problem, target, logits)
            return value.sum(), (r, logits)

        def negative_rate(k: Array) -> Array:
            return -cosine_decay(learning_rate, learning_rate / 100, k, num_steps).astype(c.dtype)

        engine = descent(
            objective,
            optax.chain(
                optax.stateless(lambda g, _: _base.zero_nonfinite(g)),
                optax.scale_by_adam(),
                optax.scale_by_schedule(negative_rate),
            ),
        )

        def step(k: Array, carry: tuple[Any, Shortest]) -> tuple[Any, Shortest]:
            state, shortest = carry
            state, info = engine.step(state, k)
            r, logits = info.aux
            success = problem.is_adversarial(logits)
            return state, shortest.update(problem, r, success, k, iteration)

        scaled = 2 * (problem.x + start - low) / (high - low) - 1
        w = jnp.arctanh(jnp.clip(scaled, -1 + _TANH_EDGE, 1 - _TANH_EDGE))
        carry = engine.init(w), Shortest.empty(problem)
        _, shortest = jax.lax.fori_loop(0, num_steps, step, carry)
        return shortest, jnp.full(len(c), num_steps)

    return penalty_attack(
        "carlini_wagner", "l2", minimize, 2.0, searches, bounds, targeted, examples
    )
