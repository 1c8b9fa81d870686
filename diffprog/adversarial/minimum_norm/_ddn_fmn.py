"""DDN and FMN: minimum-norm attacks that adapt the radius of a ball around x.

    r_{k+1} = project(r_k + α_k g / ||g||_2)  onto  ||r|| <= ε_{k+1} and the box,    g = dL/dr
    ε_{k+1} < ε_k  where x + r_k is adversarial,  else  ε_{k+1} > ε_k

with r_k the perturbation after k steps, ε_k the radius, α_k the step size and L the loss. The
direction comes from the gradient and the norm from the successes, so there is no penalty weight to
tune. DDN ascends the cross-entropy on spheres. FMN ascends the margin in balls, whose first radius
is the distance to the linearized boundary. The shortest success is moved to the decision boundary
at the end.

Restart 0 is the papers' attack. Its loss leads to the likeliest other class, which is not always
the nearest. We therefore add restarts of three kinds, with z the logits and y the label:

    class      from r = 0, ascend z_j - z_y, with one class j per restart, in the order of the
               distances of their linearized boundaries
    refine     two restarts from the shortest success, with a tenth and a hundredth of the step size
    random     from random points of the ball, and from the shortest success with half of its values
               set to zero

A targeted attack has no restarts for classes. The refining ones serve corners where several
boundaries meet: there the gradient jumps between them, and long steps end beside the corner. The
random ones serve l1, where few values change and a restart can pick the wrong ones.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool

from diffprog import _validation, norms
from diffprog.adversarial import _base
from diffprog.adversarial._base import Attack, Bounds, Flat, PerExample, Problem, Search
from diffprog.adversarial._losses import Logits, cross_entropy, logit_difference
from diffprog.adversarial.minimum_norm import _binary_search
from diffprog.adversarial.minimum_norm._binary_search import Shortest
from diffprog.adversarial.minimum_norm._deepfool import nearest_classes
from diffprog.adversarial.minimum_norm._halfspace_projection import DUAL_NORMS
from diffprog.descent import descent

_MAX_CANDIDATES = 10  # classes whose linearized boundaries are compared
_MAX_CLASS_RESTARTS = 5
_BOUNDARY_OVERSHOOT = 1e-3


class _Iterate(NamedTuple):
    """One iterate of DDN or FMN, and the quantities evaluated at it.

    Attributes:
        r: (batch, n), the perturbation.
        epsilon: (batch,), the radius of the ball around x.
        loss: (batch,), the loss at x + r.
        gradient: (batch, n), the gradient of the loss.
        success: (batch,), whether x + r is adversarial.
        shortest: the shortest success so far, r included.
    """

    r: Flat
    epsilon: PerExample
    loss: PerExample
    gradient: Flat
    success: Bool[Array, "batch"]
    shortest: Shortest


class _Method(NamedTuple):
    """Functions and settings in which the attacks DDN and FMN differ.

    Attributes:
        loss: function (problem, logits) -> the loss that restart 0 ascends.
        initial_epsilon: function from the problem to the first radius.
        update_epsilon: function (problem, iterate, γ) -> the next radius.
        on_sphere: whether r is scaled to length ε before the projection.
        rates: the first and the last step size α, in widths of the box.
        gammas: the first and the last relative change γ of the radius.
    """

    loss: Callable[[Problem, Logits], PerExample]
    initial_epsilon: Callable[[Problem], float]
    update_epsilon: Callable[[Problem, _Iterate, Array], PerExample]
    on_sphere: bool
    rates: tuple[Any, Any]
    gammas: tuple[Any, Any]


def ddn(
    *,
    steps: int = 100,
    rate: float = 1.0,
    gamma: float = 0.05,
    restarts: int = 3,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """Decoupled direction and norm attack in l2 (DDN; Rony et al., 2019).

        r ← ε (r + α g/||g||) / ||r + α g/||g|| ||,  clipped to the box
        ε ← (1 - γ) ε  where x + r is adversarial,  else  (1 + γ) ε

    with r the perturbation, ε the radius and g the gradient of the cross-entropy. ε starts at the
    width of the box; the step size α falls from `rate` to a hundredth of it by a cosine schedule.

    Args:
        steps: gradient steps per restart, at least 1. The paper uses 100 to 1000.
        rate: initial α > 0, in widths of the box.
        gamma: γ, 0 < γ <= 1.
        restarts: number of restarts, at least 1. The paper's single run can miss the nearest class
            by far.
        bounds: (low, high) of every value of x + r.
        targeted: whether y holds target classes.
        examples: inputs like x, of any batch size. Where the search fails, the nearest of them that
            is adversarial is moved to the decision boundary instead. Default: random points of the
            box.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or outside its range.

    Source: J. Rony et al., "Decoupling direction and norm for efficient gradient-based L2
        adversarial attacks and defenses", 2019.

    >>> x, y = jnp.array([[0.7, 0.4]]), jnp.array([0])
    >>> result = ddn()(lambda x: x @ jnp.eye(2), x, y, key=jax.random.key(0))
    >>> f"{result.distance[0]:.3f}"
    '0.212'
    """
    rate = _validation.number("rate", rate, above=0)
    gamma = _validation.number("gamma", gamma, above=0, high=1)

    def update_epsilon(problem: Problem, iterate: _Iterate, gamma: Array) -> PerExample:
        return iterate.epsilon * jnp.where(iterate.success, 1 - gamma, 1 + gamma)

    method = _Method(
        loss=lambda problem, logits: cross_entropy(logits, problem.y, problem.targeted),
        initial_epsilon=lambda problem: problem.box_width,
        update_epsilon=update_epsilon,
        on_sphere=True,
        rates=(np.asarray(rate), np.asarray(rate / 100)),
        gammas=(np.asarray(gamma), np.asarray(gamma)),
    )
    return _adaptive_radius_attack("ddn", "l2", method, steps, restarts, bounds, targeted, examples)


def fmn(
    *,
    norm: str = "linf",
    steps: int = 40,
    rate: float = 1.0,
    gamma: float = 0.05,
    restarts: int = 12,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    examples: Any = None,
) -> Attack:
    """Fast minimum-norm attack (FMN; Pintor et al., 2021).

        r ← project(r + α g/||g||_2)  onto the ε-ball and the box
        ε ← 1.001 (||r|| + |m| / ||g||_dual)           before the first success
        ε ← (1 - γ) min(ε, ||shortest success||)       where x + r is adversarial
        ε ← (1 + γ) ε                                  otherwise

    with r the perturbation, ε the radius, g the gradient of the margin m and ||g||_dual its dual
    norm. Cosine schedules take the step size α to a hundredth and γ to a fiftieth of their initial
    values. The factor 1.001 is not in the paper. Without it the iterates approach the boundary of a
    locally linear f from inside and may never cross it.

    Args:
        norm: "linf", "l2" or "l1".
        steps: gradient steps per restart, at least 1. The paper uses 100 to 1000; more restarts of
            fewer steps find shorter perturbations.
        rate: initial α > 0, in widths of the box. The paper has 10 for linf and 1 for l2 and l1;
            1 finds shorter perturbations in linf too.
        gamma: initial γ, 0 < γ <= 1.
        restarts: number of restarts, at least 1. The paper's single run can miss the nearest class
            by far.
        bounds: (low, high) of every value of x + r.
        targeted: whether y holds target classes.
        examples: inputs like x, of any batch size. Where the search fails, the nearest of them that
            is adversarial is moved to the decision boundary instead. Default: random points of the
            box.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or outside its range.

    Source: M. Pintor et al., "Fast minimum-norm adversarial attacks through adaptive norm
        constraints", 2021.

    >>> x, y = jnp.array([[0.7, 0.4]]), jnp.array([0])
    >>> result = fmn(norm="linf")(lambda x: x @ jnp.eye(2), x, y, key=jax.random.key(0))
    >>> f"{result.distance[0]:.3f}"
    '0.150'
    """
    rate = _validation.number("rate", rate, above=0)
    gamma = _validation.number("gamma", gamma, above=0, high=1)

    def update_epsilon(problem: Problem, iterate: _Iterate, gamma: Array) -> PerExample:
        r, epsilon, loss, gradient, success, shortest = iterate
        slope = jnp.maximum(DUAL_NORMS[norm].length(gradient), jnp.finfo(r.dtype).tiny)
        distance = jnp.abs(loss) / slope
        to_boundary = problem.norm.length(r) + jnp.where(jnp.isfinite(distance), distance, 0)
        smaller = (1 - gamma) * jnp.minimum(epsilon, shortest.distance)
        adapted = jnp.where(success, smaller, (1 + gamma) * epsilon)
        low, high = problem.bounds
        farthest = problem.norm.length(jnp.maximum(problem.x - low, high - problem.x))
        epsilon = jnp.where(shortest.found, adapted, (1 + _BOUNDARY_OVERSHOOT) * to_boundary)
        return jnp.minimum(epsilon, farthest)

    method = _Method(
        loss=Problem.margin,
        initial_epsilon=lambda problem: jnp.inf,
        update_epsilon=update_epsilon,
        on_sphere=False,
        rates=(np.asarray(rate), np.asarray(rate / 100)),
        gammas=(np.asarray(gamma), np.asarray(gamma / 50)),
    )
    return _adaptive_radius_attack("fmn", norm, method, steps, restarts, bounds, targeted, examples)


def _adaptive_radius_attack(
    name: str,
    norm: str,
    method: _Method,
    steps: int,
    restarts: int,
    bounds: Bounds,
    targeted: bool,
    examples: Any,
) -> Attack:
    num_steps = jnp.int32(_validation.integer("steps", steps, low=1))
    num_restarts = _validation.integer("restarts", restarts, low=1)
    starts = _binary_search.validate_starting_examples(examples, bounds)

    def search(problem: Problem) -> Search:
        no_classes = problem.y[None][:0]
        candidates = no_classes
        if num_restarts > 1 and not targeted:
            candidates = nearest_classes(problem, norm, _MAX_CANDIDATES)
        # With a single other class the margin already leads to it.
        classes = no_classes
        if len(candidates) > 1:
            classes = candidates[: min(num_restarts - 1, _MAX_CLASS_RESTARTS)]

        def loss(logits: Logits, restart: Array) -> PerExample:
            later = problem.margin(logits)
            if len(classes):
                to_class = logit_difference(logits, problem.y, classes[restart - 1])
                later = jnp.where(restart <= len(classes), to_class, later)
            return jnp.where(restart == 0, method.loss(problem, logits), later)

        def negative_loss(r: Flat, restart: Array) -> tuple[Array, tuple[PerExample, Logits]]:
            logits = problem.perturbed_logits(r)
            value = loss(logits, restart)
            return -value.sum(), (value, logits)

        def step(
            restart: Array, k: Array, carry: tuple[Flat, PerExample, Shortest]
        ) -> tuple[Flat, PerExample, Shortest]:
            r, epsilon, shortest = carry
            alpha = cosine_decay(*method.rates, k, num_steps).astype(r.dtype)
            gamma = cosine_decay(*method.gammas, k, num_steps).astype(r.dtype)
            # The two restarts from the shortest success take shorter steps.
            extra = restart - len(classes)
            factor = jnp.where(extra == 1, 0.1, jnp.where(extra == 2, 0.01, 1.0)).astype(r.dtype)
            length = alpha * factor * problem.box_width
            engine = descent(negative_loss, _normalized_gradient_step(length))
            state, info = engine.step(engine.init(r), restart)
            value, logits = info.aux
            success = problem.is_adversarial(logits)
            shortest = shortest.update(problem, r, success, k, restart)
            iterate = _Iterate(r, epsilon, value, state.optimizer, success, shortest)
            epsilon, r = method.update_epsilon(problem, iterate, gamma), state.variable
            if method.on_sphere:
                length = jnp.maximum(problem.norm.length(r), jnp.finfo(r.dtype).tiny)
                r = r * (epsilon / length)[:, None]
            return problem._replace(epsilon=epsilon).project(r), epsilon, shortest

        def run_restart(restart: Array, shortest: Shortest) -> Shortest:
            extra = restart - len(classes)
            epsilon = jnp.where(shortest.found, shortest.distance, method.initial_epsilon(problem))
            random = shortest.r
            if num_restarts - len(classes) > 3:
                random = _random_start(problem, restart, shortest)
            r = jnp.where(extra <= 0, 0, jnp.where(extra <= 2, shortest.r, random))
            # The restarts for one class adapt ε to their own successes.
            keep_none = functools.partial(jnp.where, extra <= 0)
            own = jax.tree.map(keep_none, Shortest.empty(problem), shortest)
            run_step = functools.partial(step, restart)
            r, _, own = jax.lax.fori_loop(0, num_steps, run_step, (r, epsilon, own))
            success = problem.is_adversarial(problem.perturbed_logits(r))
            return shortest.merge(own.update(problem, r, success, num_steps, restart))

        shortest = jax.lax.fori_loop(0, num_restarts, run_restart, Shortest.empty(problem))
        gradients = num_steps * num_restarts + (len(candidates) if len(classes) else 0)
        gradients = jnp.full(len(problem.x), gradients)
        queries = jnp.full_like(gradients, num_restarts)
        return _binary_search.refine(problem, shortest, gradients, queries, starts)

    return _base.make_attack(name, search, norm=norm, bounds=bounds, targeted=targeted)


def cosine_decay(initial: Any, final: Any, k: Array, num_steps: Array) -> Array:
    """Interpolate from `initial` at k = 0 to `final` at k = num_steps along half a cosine."""
    return final + (initial - final) * (1 + jnp.cos(jnp.pi * k / num_steps)) / 2


def _random_start(problem: Problem, restart: Array, shortest: Shortest) -> Flat:
    """Return the r from which a restart begins: random, or the shortest success partly set to zero.

    In even restarts r is random and no longer than the shortest success. In odd ones it is the
    shortest success with half of its values set to zero.
    """
    radius = jnp.where(shortest.found, shortest.distance, 0)
    half = _binary_search.random_half(problem, shortest.r, restart)
    return jnp.where(restart % 2 == 0, problem.sample_ball(radius, restart), half)


def _normalized_gradient_step(rate: Array) -> optax.GradientTransformation:
    """Build an optax transformation: a descent step of l2 length `rate`.

    Its state is the last gradient.
    """

    def update(gradient: Flat, _: Flat, __: Any = None) -> tuple[Flat, Flat]:
        gradient = _base.zero_nonfinite(gradient)
        return -rate * norms.l2.ascent(gradient), gradient

    return optax.GradientTransformation(jnp.zeros_like, update)
