"""Gradient attacks in a ball: FGSM (one step), PGD (many steps) and MI-FGSM (steps with momentum).

    r_{k+1} = project(r_k + ε η_k d(dL/dr (x + r_k)))

with r_k the perturbation after k steps, L the loss, ε the radius and η_k the step size in units of
ε. `project` is the projection onto ball and box. The direction d is that of steepest ascent: the
signs of the gradient for linf, the unit gradient for l2. For l1 it is the unit gradient too: the
projection makes r sparse, and the attack was measured to be stronger than with steps along the
largest entries (SLIDE). The steps are those of `diffprog.descent` with an optax update rule.

The result is the best iterate of each example: a success before a failure, then the larger loss.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Integer

from diffprog import _validation, norms
from diffprog.adversarial import _base
from diffprog.adversarial._base import Attack, Bounds, Flat, PerExample, Problem, Search, select
from diffprog.adversarial._losses import LOSSES, Labels, Logits, Loss
from diffprog.descent import descent

Update = Callable[[Problem], optax.GradientTransformation]

# Step of FGSM in radii: projecting a step of t radii equals projecting an infinite one up to 1 / t.
_FAR = 1e4


def fgsm(
    *,
    norm: str = "linf",
    epsilon: Any = 0.1,
    loss: str | Loss = "cross_entropy",
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
) -> Attack:
    """Fast gradient sign method (Goodfellow et al., 2015), for any norm.

    One step to the perturbation r in ball and box that maximizes the linearized loss <g, r>, with g
    the gradient of the loss at x. For linf it is ε sign(g), clipped to the box. For l2 and l1 it is
    the projection of a long step along g: without the box, ε g / ||g|| for l2, and for l1 ε in the
    largest entry of g.

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: radius, a number or an array (batch,).
        loss: "cross_entropy", "margin", "dlr", or a function (logits, y, targeted) -> (batch,) to
            maximize.
        bounds: (low, high) of every value of x.
        targeted: whether y holds target classes.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)`.

    Raises:
        TypeError, ValueError: an invalid argument.

    Source: I. Goodfellow, J. Shlens and C. Szegedy, "Explaining and harnessing adversarial
    examples", 2015.

    >>> attack = fgsm(epsilon=0.25)
    >>> x, y = jnp.array([[0.75, 0.5]]), jnp.array([0])
    >>> print(attack(lambda x: x, x, y, key=jax.random.key(0)).adversarial)
    [[0.5  0.75]]
    """

    def update(problem: Problem) -> optax.GradientTransformation:
        return optax.chain(_drop_blocked(problem), _steepest(problem, lambda _: _FAR))

    return _ascent_attack(
        "fgsm", update, loss, 1, 1, norm, epsilon, bounds, targeted, random_start=False
    )


def pgd(
    *,
    norm: str = "linf",
    epsilon: Any = 0.1,
    steps: int = 40,
    restarts: int = 1,
    random_start: bool = True,
    optimizer: optax.GradientTransformation | None = None,
    loss: str | Loss = "cross_entropy",
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
) -> Attack:
    """Projected gradient descent attack (Madry et al., 2018).

        r_{k+1} = project(r_k + 2 ε (1 - k / steps) d(dL/dr))

    with r_k the perturbation after k steps, L the loss and d(g) = sign(g) for linf, g / ||g||_2 for
    l2 and l1. For l1 the steps are four times as long. This step size schedule was the strongest of
    eight that were measured.

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: radius, a number or an array (batch,).
        steps: gradient steps per run, at least 1.
        restarts: number of runs, at least 1. The runs of an example end with the first that
            succeeds.
        random_start: whether the first run starts at a point drawn uniformly from the ball, as all
            later ones do, rather than at x.
        optimizer: optax optimizer that replaces this update rule, with a state per example; it
            minimizes -L, with a learning rate in units of x. Default: the steps above.
        loss: "cross_entropy", "margin", "dlr", or a function (logits, y, targeted) -> (batch,) to
            maximize.
        bounds: (low, high) of every value of x.
        targeted: whether y holds target classes.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)`.

    Raises:
        TypeError, ValueError: an invalid argument, or an optimizer that needs more than gradients.

    Source: A. Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018,
    with 40 steps for MNIST.

    >>> attack = pgd(norm="l2", epsilon=0.25)
    >>> x, y = jnp.array([[0.6, 0.5]]), jnp.array([0])
    >>> print(attack(lambda x: x, x, y, key=jax.random.key(0)).success)
    [ True]
    """
    length = jnp.int32(_validation.integer("steps", steps, low=1))
    per_example = None if optimizer is None else _per_example(optimizer)

    def update(problem: Problem) -> optax.GradientTransformation:
        if per_example is not None:
            return optax.chain(_zero_nonfinite, per_example)
        first = 8 if problem.norm is norms.l1 else 2  # in radii; the ball is 2 radii wide
        schedule = lambda k: first * (1 - k / length)
        return optax.chain(_drop_blocked(problem), _steepest(problem, schedule))

    return _ascent_attack(
        "pgd", update, loss, steps, restarts, norm, epsilon, bounds, targeted, random_start
    )


def mi_fgsm(
    *,
    norm: str = "linf",
    epsilon: Any = 0.1,
    steps: int = 10,
    decay: float = 1.0,
    loss: str | Loss = "cross_entropy",
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
) -> Attack:
    """Momentum iterative FGSM (Dong et al., 2018), whose perturbations transfer between models.

        g ← μ g + dL/dr / ||dL/dr||_1
        r ← project(r + ε / steps d(g)),   from r = 0

    with r the perturbation, L the loss and d(g) = sign(g) for linf, g / ||g||_2 for l2 and l1.

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: radius, a number or an array (batch,).
        steps: gradient steps, at least 1.
        decay: momentum μ >= 0.
        loss: "cross_entropy", "margin", "dlr", or a function (logits, y, targeted) -> (batch,) to
            maximize.
        bounds: (low, high) of every value of x.
        targeted: whether y holds target classes.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)`.

    Raises:
        TypeError, ValueError: an invalid argument.

    Source: Y. Dong et al., "Boosting adversarial attacks with momentum", 2018, with their μ = 1 and
    ten steps.

    >>> attack = mi_fgsm(epsilon=0.25)
    >>> x, y = jnp.array([[0.6, 0.5]]), jnp.array([0])
    >>> print(attack(lambda x: x, x, y, key=jax.random.key(0)).success)
    [ True]
    """
    length = jnp.int32(_validation.integer("steps", steps, low=1))
    mu = jnp.float32(_validation.number("decay", decay, low=0))
    normalize_l1 = optax.stateless(
        lambda g, _: g / jnp.maximum(jnp.abs(g).sum(1, keepdims=True), jnp.finfo(g.dtype).tiny)
    )

    def update(problem: Problem) -> optax.GradientTransformation:
        return optax.chain(
            _zero_nonfinite,
            optax.scale(-1),
            normalize_l1,
            optax.trace(mu.astype(problem.x.dtype)),
            _steepest(problem, lambda _: 1 / length),
        )

    return _ascent_attack(
        "mi_fgsm", update, loss, steps, 1, norm, epsilon, bounds, targeted, random_start=False
    )


class Iterate(NamedTuple):
    """Perturbation of each example, with its loss and success to compare it with other iterates.

    Attributes:
        r: (batch, n), the perturbation.
        loss: (batch,), the loss to maximize; -inf where it is NaN.
        success: (batch,), whether x + r is adversarial.
        step: (batch,), the number of steps before r; -1 for the unperturbed example.
        restart: (batch,), the number of the restart that r belongs to.
    """

    r: Flat
    loss: PerExample
    success: Bool[Array, "batch"]
    step: Integer[Array, "batch"]
    restart: Integer[Array, "batch"]


Evaluate = Callable[[Flat, Logits, Any, Any], Iterate]


def make_evaluator(problem: Problem, loss: Loss) -> Evaluate:
    """Return a function (r, logits, step, restart) -> Iterate that computes loss and success.

    The logits are those of x + r.
    """

    def evaluate(r: Flat, logits: Logits, step: Any, restart: Any) -> Iterate:
        return Iterate(
            r,
            nan_to_lowest(loss(logits, problem.y, problem.targeted)),
            problem.is_adversarial(logits),
            jnp.full(len(r), step, jnp.int32),
            jnp.full(len(r), restart, jnp.int32),
        )

    return evaluate


def nan_to_lowest(loss: PerExample) -> PerExample:
    """Replace NaN losses by -inf, so that losses can be compared."""
    return jnp.where(jnp.isnan(loss), -jnp.inf, loss)


def select_better(best: Iterate, new: Iterate) -> Iterate:
    """Select the better iterate per example: a success before a failure, then the larger loss."""
    better = jnp.where(new.success == best.success, new.loss > best.loss, new.success)
    return select(better, new, best)


def run_restarts(
    problem: Problem,
    evaluate: Evaluate,
    run: Callable[[Iterate, Array], Iterate],
    steps: Array,
    restarts: Array,
) -> Search:
    """Repeat runs of an attack until it has succeeded on every example, at most `restarts` times.

    Args:
        problem: examples and model.
        evaluate: result of `make_evaluator`.
        run: function (best iterate so far, index of the run) -> best iterate.
        steps: gradient evaluations per run, for the counts of the result.
        restarts: the largest number of runs.

    Returns:
        The best perturbations of all runs, as a `Search`.
    """

    def next_run(carry: tuple[Array, Iterate, Array]) -> tuple[Array, Iterate, Array]:
        restart, best, runs = carry
        # A success is final: what other examples still need must not change this one.
        return restart + 1, select(best.success, best, run(best, restart)), runs + ~best.success

    clean = evaluate(jnp.zeros_like(problem.x), problem.clean_logits, -1, 0)
    is_open = lambda carry: (carry[0] < restarts) & ~carry[1].success.all()
    start = jnp.int32(0), clean, jnp.zeros_like(clean.step)
    _, best, runs = jax.lax.while_loop(is_open, next_run, start)
    return Search(best.r, best.step, best.restart, runs * steps, runs + 1)


def drop_blocked_coordinates(problem: Problem, direction: Flat, r: Flat) -> Flat:
    """Zero the entries of a direction that are not finite or would lead x + r out of the box."""
    low, high = problem.bounds
    x = problem.x + r
    blocked = jnp.where(direction < 0, x <= low, x >= high)
    return jnp.where(jnp.isfinite(direction) & ~blocked, direction, 0)


def resolve_loss(loss: Any) -> Loss:
    """Return the loss function of this name; a callable is wrapped to check its output's shape."""
    if not callable(loss):
        _validation.choice("loss", loss, LOSSES)
        return LOSSES[loss]

    def checked_loss(logits: Logits, y: Labels, targeted: bool) -> PerExample:
        value = loss(logits, y, targeted)
        if jnp.shape(value) != (len(logits),):
            raise ValueError(
                f"loss must return one number for each of {len(logits)} examples, "
                f"got shape {list(jnp.shape(value))}"
            )
        return value

    return checked_loss


def _ascent_attack(
    name: str,
    update: Update,
    loss: Any,
    steps: int,
    restarts: int,
    norm: str,
    epsilon: Any,
    bounds: Bounds,
    targeted: bool,
    random_start: bool,
) -> Attack:
    """Build an attack that ascends the loss by optax updates, with a projection after each step.

    `update` is a function from the `Problem` to an optax transformation of the gradient of -loss.
    The other arguments are those of `pgd`.
    """
    _base.per_example_epsilon(epsilon, None, jnp.float32)  # `make_attack` allows None
    value = resolve_loss(loss)
    length = jnp.int32(_validation.integer("steps", steps, low=1))
    runs = jnp.int32(_validation.integer("restarts", restarts, low=1))
    first_random_run = 0 if random_start else 1
    # A static condition, since without the random start compilation takes half the time.
    always_from_x = not random_start and restarts == 1

    def search(problem: Problem) -> Search:
        evaluate = make_evaluator(problem, value)

        def cost(r: Flat, _: Array) -> tuple[Array, Logits]:
            logits = problem.perturbed_logits(r)
            return -value(logits, problem.y, problem.targeted).sum(), logits

        engine = descent(cost, update(problem), problem.project)

        def run(best: Iterate, restart: Array) -> Iterate:
            def step(k: Array, carry: Any) -> Any:
                state, best = carry
                new_state, info = engine.step(state, k)
                # `info.aux` are the logits before the step.
                iterate = evaluate(state.variable, info.aux, k, restart)
                return new_state, select_better(best, iterate)

            start = jnp.zeros_like(problem.x)
            if not always_from_x:
                sample = problem.sample_ball(problem.epsilon, restart)
                start = jnp.where(restart < first_random_run, 0, sample)
            end, best = jax.lax.fori_loop(0, length, step, (engine.init(start), best))
            logits = problem.perturbed_logits(end.variable)
            return select_better(best, evaluate(end.variable, logits, length, restart))

        return run_restarts(problem, evaluate, run, length, runs)

    return _base.make_attack(
        name, search, norm=norm, epsilon=epsilon, bounds=bounds, targeted=targeted
    )


_zero_nonfinite = optax.stateless(lambda gradient, _: _base.zero_nonfinite(gradient))


def _drop_blocked(problem: Problem) -> optax.GradientTransformation:
    return optax.stateless(lambda gradient, r: drop_blocked_coordinates(problem, -gradient, r))


def _steepest(problem: Problem, schedule: Callable[[Array], Any]) -> optax.GradientTransformation:
    """Build an optax transformation: ascent gradient -> step of length schedule(k) ε at step k.

    The step has the direction of steepest ascent: the signs for linf, the unit gradient otherwise.
    """
    norm = norms.linf if problem.norm is norms.linf else norms.l2
    one_radius = optax.stateless(lambda up, _: problem.epsilon[:, None] * norm.ascent(up))
    return optax.chain(one_radius, optax.scale_by_schedule(schedule))


def _per_example(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Vectorize an optax optimizer over examples, so that each example has its own state."""
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer must be an optax optimizer, got {type(optimizer).__name__}")
    per_example = optax.GradientTransformation(jax.vmap(optimizer.init), jax.vmap(optimizer.update))
    row = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    try:
        jax.eval_shape(lambda row: per_example.update(row, per_example.init(row), row), row)
    except TypeError as error:
        raise ValueError(
            f"optimizer must need nothing but gradients, got one that does: {error}"
        ) from error
    return per_example
