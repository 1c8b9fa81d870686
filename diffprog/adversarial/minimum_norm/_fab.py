"""FAB: step along the decision boundary towards its point nearest to the example x.

Around the perturbation r, the boundary between the label and another class is linearized to
{r' : v + <g, r' - r> = 0}, with v the difference of the two logits at x + r and g its gradient. Two
projections onto it, both in the box, give the next iterate:

    d      from r:  the smallest d with <g, d> = -v
    d_x    from x:  the smallest d with <g, d> = <g, r> - v
    α  = min(||d|| / (||d|| + ||d_x||), α_max)
    r' = (1 - α) (r + η d) + α η d_x            slightly beyond the boundary (η > 1), biased to x
    r  ← β r'  where x + r' is adversarial,  else  r'

The shortest adversarial r' is kept, and moved to the boundary in the end. The linearized boundary
is that of the nearest class; for a target, that between the target and the likeliest other class.
Where several boundaries limit the target's region, these steps end beside the nearest point. A
targeted attack therefore takes a few DeepFool steps first, which cross all boundaries at once.

Source: F. Croce and M. Hein, "Minimally distorted adversarial examples with a fast adaptive
boundary attack", 2020.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Integer

from diffprog import _validation
from diffprog.adversarial import _base
from diffprog.adversarial._base import Attack, Bounds, Flat, PerExample, Problem, Search
from diffprog.adversarial.minimum_norm import _binary_search, _deepfool
from diffprog.adversarial.minimum_norm._binary_search import Shortest, bisect_to_boundary
from diffprog.adversarial.minimum_norm._halfspace_projection import DUAL_NORMS, project_to_halfspace

_DEEPFOOL_STEPS, _DEEPFOOL_CANDIDATES, _DEEPFOOL_STEP_SIZE = 3, 10, 1.02

Boundary = Callable[[Flat], tuple[PerExample, Flat]]
"""Function r -> (v, g), the linearized boundary at x + r; v > 0 on its adversarial side."""


def fab(
    *,
    norm: str = "linf",
    epsilon: Any = None,
    steps: int = 100,
    restarts: int = 1,
    targets: int | None = None,
    overshoot: float = 0.05,
    pull: float = 0.1,
    backward: float = 0.9,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """Fast adaptive boundary attack (FAB; Croce and Hein, 2020).

        r' = (1 - α) (r + η d) + α η d_x

    with r the perturbation, d and d_x the smallest steps from x + r and from x onto the linearized
    decision boundary, and α in 0 .. α_max the weight of the latter. The iterates move along the
    boundary towards its point nearest to x.

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: None for a minimum-norm attack. With a radius, a number or an array (batch,), an
            example stops once it has a perturbation inside the ball; longer ones are projected.
        steps: steps per restart and target class, at least 1. The paper's 100.
        restarts: number of restarts, at least 1. The first starts at x, later ones at random points
            within half the shortest norm so far.
        targets: number of likeliest other classes to attack one after another, for one gradient per
            step (FAB-T). None steps to the nearest of all boundaries, for one gradient per class
            and step.
        overshoot: η - 1 >= 0, the share by which steps overshoot the boundary.
        pull: α_max in 0 .. 1, the largest weight of the projection from x.
        backward: β in 0 .. 1, the factor that shortens r' after a success.
        bounds: (low, high) of every value of x + r.
        targeted: whether y holds target classes.
        examples: inputs like x, of any batch size. Where a minimum-norm search fails, the nearest
            of them that is adversarial is moved to the decision boundary instead. Default: random
            points of the box.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or outside its range, or `targets` of a
            targeted attack.

    Source: Croce and Hein 2020, with its defaults; FAB-T, F. Croce and M. Hein, "Reliable
        evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
        2020.

    >>> x, y = jnp.array([[0.7, 0.4]]), jnp.array([0])
    >>> result = fab(norm="l2")(lambda x: x @ jnp.eye(2), x, y, key=jax.random.key(0))
    >>> print(f"{result.distance[0]:.3f}", result.success)
    0.212 [ True]
    """
    num_steps = jnp.int32(_validation.integer("steps", steps, low=1))
    num_restarts = jnp.int32(_validation.integer("restarts", restarts, low=1))
    eta = np.asarray(1 + _validation.number("overshoot", overshoot, low=0))
    alpha_max = np.asarray(_validation.number("pull", pull, low=0, high=1))
    beta = np.asarray(_validation.number("backward", backward, low=0, high=1))
    num_targets = _base.validate_num_targets(targets, targeted)
    starts = _binary_search.validate_starting_examples(examples, bounds)
    is_minimum_norm = epsilon is None

    def step(
        problem: Problem, boundary: Boundary, r: Flat
    ) -> tuple[Flat, Bool[Array, "batch"], Flat]:
        """Take one FAB step from r: return r', whether x + r' is adversarial, and the next iterate.

        boundary(r) returns the logit difference v and its gradient g at x + r.
        """
        v, g = boundary(r)
        d = _project_to_boundary(problem, norm, g, -v, r)
        d_x = _project_to_boundary(problem, norm, g, (g * r).sum(1) - v, jnp.zeros_like(r))
        length, length_x = problem.norm.length(d), problem.norm.length(d_x)
        total = jnp.maximum(length + length_x, jnp.finfo(r.dtype).tiny)
        alpha = jnp.minimum(length / total, alpha_max)[:, None]
        biased = (1 - alpha) * (r + eta * d) + alpha * eta * d_x
        new_r = problem.clip_to_box(biased.astype(r.dtype))
        success = problem.is_adversarial(problem.perturbed_logits(new_r))
        return new_r, success, jnp.where(success[:, None], beta * new_r, new_r).astype(r.dtype)

    def search(problem: Problem) -> Search:
        classes = _deepfool.likeliest_classes(problem, problem.clean_logits.shape[1])
        num_runs, cost = jnp.int32(1), 1
        if num_targets is not None:
            num_runs = jnp.minimum(num_targets, len(classes))
        elif not targeted:
            cost = len(classes)

        def walk(run: Array, state: _State) -> _State:
            restart = run // num_runs
            if targeted:
                boundary = functools.partial(_margin_boundary, problem)
            elif num_targets is None:
                boundary = functools.partial(_nearest_boundary, problem, norm, classes)
            else:
                boundary = functools.partial(_class_boundary, problem, classes[run % num_runs])

            def iterate(carry: tuple[Array, Flat, _State]) -> tuple[Array, Flat, _State]:
                k, r, state = carry
                new_r, success, r = step(problem, boundary, r)
                return k + 1, r, state.update(problem, new_r, success, k, restart, cost)

            def unfinished(carry: tuple[Array, Flat, _State]) -> Array:
                return (carry[0] < num_steps) & carry[2].is_active(problem).any()

            start = jnp.int32(0), _start(problem, state.shortest, run, restart), state
            return jax.lax.while_loop(unfinished, iterate, start)[2]

        none = jnp.zeros(len(problem.x), int)
        state = _State(Shortest.empty(problem), none, none)
        if targeted:
            state = _deepfool_steps(problem, norm, state)
        state = jax.lax.fori_loop(0, num_restarts * num_runs, walk, state)
        if is_minimum_norm:
            return _binary_search.refine(
                problem, state.shortest, state.gradients, state.queries + 1, starts
            )
        return _project_to_ball(problem, state)

    return _base.make_attack(
        "fab", search, norm=norm, epsilon=epsilon, bounds=bounds, targeted=targeted
    )


class _State(NamedTuple):
    """State of the FAB search; the leading axis is the example.

    Attributes:
        shortest: the shortest success so far.
        gradients: (batch,), the number of forward-and-backward passes so far.
        queries: (batch,), the number of forward-only passes so far.
    """

    shortest: Shortest
    gradients: Integer[Array, "batch"]
    queries: Integer[Array, "batch"]

    def is_active(self, problem: Problem) -> Bool[Array, "batch"]:
        """Return which examples go on: those without success in the ball; all, if ε is infinite."""
        is_outside = ~self.shortest.found | (self.shortest.distance > problem.epsilon)
        return is_outside | jnp.isinf(problem.epsilon)

    def update(
        self,
        problem: Problem,
        r: Flat,
        success: Bool[Array, "batch"],
        k: Array,
        restart: Array,
        cost: int,
    ) -> "_State":
        """Record the perturbations r of step k for the active examples; return the new state.

        `success` is whether x + r is adversarial, `cost` the number of gradient evaluations of the
        step.
        """
        active = self.is_active(problem)
        return _State(
            self.shortest.update(problem, r, success & active, k, restart),
            self.gradients + active * cost,
            self.queries + active,
        )


def _margin_boundary(problem: Problem, r: Flat) -> tuple[PerExample, Flat]:
    """Return the margin at x + r, positive where the target is predicted, and its gradient in r."""

    def total(r: Flat) -> tuple[Array, PerExample]:
        value = problem.margin(problem.perturbed_logits(r))
        return value.sum(), value

    g, value = jax.grad(total, has_aux=True)(r)
    return value, _base.zero_nonfinite(g)


def _class_boundary(problem: Problem, target: Array, r: Flat) -> tuple[PerExample, Flat]:
    """Return the logit difference z_target - z_y at x + r and its gradient with respect to r."""
    g, gain = _deepfool.linearize(problem, r)[1](target)
    return -gain, g


def _nearest_boundary(
    problem: Problem, norm: str, classes: _deepfool.Candidates, r: Flat
) -> tuple[PerExample, Flat]:
    """Return the logit difference z_j - z_y at x + r and its gradient, for the nearest class j.

    It is the one of `classes` whose linearized decision boundary is nearest to x + r.
    """
    linearization = _deepfool.linearize(problem, r)[1]

    def compare(i: Array, nearest: Any) -> Any:
        g, gain = linearization(classes[i])
        slope = DUAL_NORMS[norm].length(g)
        distance = jnp.where(slope > 0, jnp.abs(gain) / jnp.where(slope > 0, slope, 1), jnp.inf)
        return _base.select(distance < nearest[0], (distance, -gain, g), nearest)

    zeros = jnp.zeros(len(r), r.dtype)
    start = zeros + jnp.inf, zeros, jnp.zeros_like(r)
    return jax.lax.fori_loop(0, len(classes), compare, start)[1:]


def _project_to_boundary(problem: Problem, norm: str, g: Flat, gain: PerExample, r: Flat) -> Flat:
    """Compute the smallest step d in the box from x + r to the hyperplane <g, d> = gain.

    Where the box ends before the hyperplane, d is the step that brings <g, d> closest to `gain`.
    """
    low, high = (bound - problem.x - r for bound in problem.bounds)
    sign = jnp.where(gain < 0, -1, 1)[:, None]
    return project_to_halfspace(norm, sign * g, jnp.abs(gain), low, high)


def _deepfool_steps(problem: Problem, norm: str, state: _State) -> _State:
    """Take a few targeted DeepFool steps and move the shortest success to the decision boundary.

    Returns the search state with this success and the cost.
    """
    classes = _deepfool.likeliest_classes(problem, _DEEPFOOL_CANDIDATES)

    def step(k: Array, carry: tuple[Flat, _State]) -> tuple[Flat, _State]:
        r, state = carry
        d = _deepfool.deepfool_step(problem, norm, classes, r)[1]
        r = problem.clip_to_box(r + _DEEPFOOL_STEP_SIZE * d)
        success = problem.is_adversarial(problem.perturbed_logits(r))
        return r, state.update(problem, r, success, k, jnp.int32(0), len(classes))

    _, state = jax.lax.fori_loop(0, _DEEPFOOL_STEPS, step, (jnp.zeros_like(problem.x), state))
    shortest = state.shortest
    r, queries = bisect_to_boundary(problem, shortest.r)
    success = shortest.found & problem.is_adversarial(problem.perturbed_logits(r))
    shortest = shortest.update(problem, r, success, shortest.step)
    return state._replace(shortest=shortest, queries=state.queries + queries + 1)


def _start(problem: Problem, shortest: Shortest, run: Array, restart: Array) -> Flat:
    """Return the perturbation from which a restart begins: 0 for restart 0, otherwise random.

    A random one is at most half as long as the smallest adversarial perturbation so far. `run`
    counts the pairs of restart and target class, and selects the PRNG keys.
    """
    radius = jnp.minimum(shortest.distance, problem.epsilon) / 2
    radius = jnp.where(jnp.isfinite(radius), radius, problem.box_width) * (restart > 0)
    return problem.sample_ball(radius, run)


def _project_to_ball(problem: Problem, state: _State) -> Search:
    """Move perturbations outside the ε-ball to the decision boundary, then project them.

    Returns the result of the search; the step is -1 where the boundary lies outside the ball.
    """
    shortest, active = state.shortest, state.is_active(problem)
    on_boundary, queries = bisect_to_boundary(problem, jnp.where(active[:, None], shortest.r, 0))
    r = problem.project(jnp.where(active[:, None], on_boundary, shortest.r))
    is_inside = problem.norm.length(on_boundary) <= problem.epsilon
    step = jnp.where(shortest.found & (~active | is_inside), shortest.step, -1)
    queries = state.queries + queries + 1
    return Search(r, step, shortest.restart, state.gradients, queries)
