"""Attacks that follow the gradient of a loss inside the ball: one step, many steps, steps with momentum.

    r_{k+1} = project(r_k + ε η_k d(dL/dr (x + r_k)))

`project` is the nearest point of ball and box. The direction d is the steepest: the signs for linf, the unit gradient for l2. For l1 it is
the unit gradient too: the projection makes the perturbation sparse, and measured stronger than steps along the largest entries (SLIDE).
The step is the engine's, and optax says how to move. What is returned is the best of all points seen, for each example: a success before a
failure, then the larger loss.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Integer

from diffprog import _validation, norms
from diffprog.adversarial._base import (
    Attack,
    Bounds,
    Flat,
    PerExample,
    Problem,
    Search,
    make_attack,
    per_example_epsilon,
)
from diffprog.adversarial._losses import LOSSES, Labels, Logits, Loss, is_adversarial
from diffprog.descent import descent

Tree = TypeVar("Tree")
Update = Callable[[Problem], optax.GradientTransformation]

_FAR = 1e4  # radii: the projection of a step of t radii is as good as that of an infinite one to a part in t


def fgsm(
    *,
    norm: str = "linf",
    epsilon: Any = 0.1,
    loss: str | Loss = "cross_entropy",
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
) -> Attack:
    """The perturbation that raises the linearised loss most, in one step: r = argmax <dL/dx, r> over ball and box.

    For linf that is clip(ε sign(dL/dx)), the fast gradient sign method. For l2 and l1 it is the projection of a step far out, which spends
    on other coordinates what the box takes from some; without a box in the way it is ε g / ||g||, or ε at the largest entry.

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: the radius, one for all or one for each example.
        loss: "cross_entropy", "margin", "dlr", or a function (logits, y, targeted) -> (batch,) that grows towards what is wanted.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Source: I. Goodfellow, J. Shlens and C. Szegedy, "Explaining and harnessing adversarial examples", 2015.

    >>> attack = fgsm(epsilon=0.25)
    >>> print(attack(lambda x: x, jnp.array([[0.75, 0.5]]), jnp.array([0]), key=jax.random.key(0)).adversarial)
    [[0.5  0.75]]
    """
    search = _ascending(
        lambda problem: optax.chain(_upwards(problem), _steps(problem, lambda _: _FAR)),
        loss,
        1,
        1,
        random_start=False,
    )
    per_example_epsilon(epsilon, None, jnp.float32)
    return make_attack("fgsm", search, norm=norm, epsilon=epsilon, bounds=bounds, targeted=targeted)


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
    """Projected gradient ascent: r_{k+1} = project(r_k + 2 ε (1 - k / steps) d(dL/dr)); for l1 with steps four times as long.

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: the radius, one for all or one for each example.
        steps: gradients of a run.
        restarts: runs; an example takes part until one of them succeeds.
        random_start: whether the first run starts at a point drawn uniformly from the ball, as all later ones do, or at x.
        optimizer: any optax optimizer of gradients as the update rule instead, with a state for each example; it descends on -L, in the
            units of x.
        loss: "cross_entropy", "margin", "dlr", or a function (logits, y, targeted) -> (batch,) that grows towards what is wanted.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.

    Raises:
        TypeError, ValueError: an argument that is none of these; an optimizer that needs more than the gradient.

    Sources: A. Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018, with 40 steps on digits. The rate,
    from the ball's width linearly to 0, was the strongest of eight measured; for l1, where the projection takes most of a step back,
    four times that was.

    >>> attack = pgd(norm="l2", epsilon=0.25)
    >>> print(attack(lambda x: x, jnp.array([[0.6, 0.5]]), jnp.array([0]), key=jax.random.key(0)).success)
    [ True]
    """
    length = jnp.int32(_validation.integer("steps", steps, low=1))
    alone = None if optimizer is None else _for_each_example(optimizer)

    def update(problem: Problem) -> optax.GradientTransformation:
        if alone is not None:
            return optax.chain(_finite, alone)
        first = 8 if problem.norm is norms.l1 else 2  # radii; 2 are the width of the ball
        return optax.chain(_upwards(problem), _steps(problem, lambda k: first * (1 - k / length)))

    search = _ascending(update, loss, steps, restarts, random_start=random_start)
    per_example_epsilon(epsilon, None, jnp.float32)
    return make_attack("pgd", search, norm=norm, epsilon=epsilon, bounds=bounds, targeted=targeted)


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
    """The momentum iterative method, whose perturbations transfer: g <- μ g + dL/dr / ||dL/dr||_1, r <- project(r + ε / steps d(g)).

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: the radius, one for all or one for each example.
        steps: gradients.
        decay: μ >= 0.
        loss: "cross_entropy", "margin", "dlr", or a function (logits, y, targeted) -> (batch,) that grows towards what is wanted.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Source: Y. Dong et al., "Boosting adversarial attacks with momentum", 2018: μ = 1, ten steps from x.

    >>> attack = mi_fgsm(epsilon=0.25)
    >>> print(attack(lambda x: x, jnp.array([[0.6, 0.5]]), jnp.array([0]), key=jax.random.key(0)).success)
    [ True]
    """
    length, mu = (
        jnp.int32(_validation.integer("steps", steps, low=1)),
        jnp.float32(_validation.number("decay", decay, low=0)),
    )

    def update(problem: Problem) -> optax.GradientTransformation:
        return optax.chain(
            _finite,
            optax.scale(-1),
            _UNIT_IN_L1,
            optax.trace(mu),
            _steps(problem, lambda _: 1 / length),
        )

    search = _ascending(update, loss, steps, 1, random_start=False)
    per_example_epsilon(epsilon, None, jnp.float32)
    return make_attack(
        "mi_fgsm", search, norm=norm, epsilon=epsilon, bounds=bounds, targeted=targeted
    )


class Best(NamedTuple):
    """The best perturbation seen so far, for each example.

    Attributes:
        r: (batch, n).
        loss: (batch,), of it; -inf where it is NaN.
        success: (batch,), whether it does what is wanted.
        step: (batch,), the step it was seen at; -1 for the example itself.
        restart: (batch,), the run.
    """

    r: Flat
    loss: PerExample
    success: Bool[Array, "batch"]
    step: Integer[Array, "batch"]
    restart: Integer[Array, "batch"]


Look = Callable[[Flat, Logits, Any, Any], Best]


def make_evaluator(problem: Problem, loss: Loss) -> Look:
    """(r, logits, step, restart) -> what is seen there."""

    def look(r: Flat, logits: Logits, step: Any, restart: Any) -> Best:
        everywhere = lambda number: jnp.full(len(r), number, jnp.int32)
        success = is_adversarial(logits, problem.y, problem.targeted)
        return Best(
            r,
            nan_to_lowest(loss(logits, problem.y, problem.targeted)),
            success,
            everywhere(step),
            everywhere(restart),
        )

    return look


def nan_to_lowest(loss: PerExample) -> PerExample:
    """Losses that can be compared: NaN below all others."""
    return jnp.where(jnp.isnan(loss), -jnp.inf, loss)


def select_better(best: Best, seen: Best) -> Best:
    """The better of two, for each example."""
    return select(
        jnp.where(seen.success == best.success, seen.loss > best.loss, seen.success), seen, best
    )


def select(which: Bool[Array, "batch"], new: Tree, old: Tree) -> Tree:
    """The new of the examples in `which`, the old of the others."""
    return jax.tree.map(
        lambda new, old: jnp.where(jnp.expand_dims(which, range(1, new.ndim)), new, old), new, old
    )


def run_restarts(
    problem: Problem, look: Look, once: Callable[[Best, Array], Best], steps: Array, restarts: Array
) -> Search:
    """Run after run, until every example has succeeded: what a run finds is kept for those that had not."""

    def again(carried: tuple[Array, Best, Array]) -> tuple[Array, Best, Array]:
        restart, best, runs = carried
        return restart + 1, select(best.success, best, once(best, restart)), runs + ~best.success

    clean = look(jnp.zeros_like(problem.x), problem.clean_logits, -1, 0)
    open_still = lambda carried: (carried[0] < restarts) & ~carried[1].success.all()
    _, best, runs = jax.lax.while_loop(
        open_still, again, (jnp.int32(0), clean, jnp.zeros_like(clean.step))
    )
    return Search(best.r, best.step, best.restart, runs * steps, runs + 1)


def sample_start(problem: Problem, restart: Array) -> Flat:
    """Points uniform in the ball, put into the box."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(problem.keys, restart)
    unit = jax.vmap(
        lambda key: problem.norm.sample(key, (1, problem.x.shape[1]), 1.0, problem.x.dtype)[0]
    )(keys)
    return problem.clip_to_box(
        problem.epsilon[:, None] * unit
    )  # shorter in every coordinate, so it stays in the ball


def drop_blocked_coordinates(problem: Problem, up: Flat, r: Flat) -> Flat:
    """What of a direction is finite and does not point out of the box."""
    low, high = problem.bounds
    x = problem.x + r
    return jnp.where(jnp.isfinite(up) & ~jnp.where(up < 0, x <= low, x >= high), up, 0)


def resolve_loss(loss: Any) -> Loss:
    """The loss of that name, or the function itself, held to one number for each example."""
    if not callable(loss):
        _validation.choice("loss", loss, LOSSES)
        return LOSSES[loss]

    def for_each_example(logits: Logits, y: Labels, targeted: bool) -> PerExample:
        value = loss(logits, y, targeted)
        if jnp.shape(value) != (len(logits),):
            raise ValueError(
                f"loss must return one number for each of {len(logits)} examples, got shape {list(jnp.shape(value))}"
            )
        return value

    return for_each_example


def _ascending(
    update: Update, loss: Any, steps: int, restarts: int, *, random_start: bool
) -> Callable[[Problem], Search]:
    value = resolve_loss(loss)
    length, runs = (
        jnp.int32(_validation.integer("steps", steps, low=1)),
        jnp.int32(_validation.integer("restarts", restarts, low=1)),
    )
    first_drawn = 0 if random_start else 1
    never_drawn = not random_start and restarts == 1  # it halves the time to compile

    def search(problem: Problem) -> Search:
        look = make_evaluator(problem, value)

        def cost(r: Flat, _: Array) -> tuple[Array, Logits]:
            logits = problem.perturbed_logits(r)
            return -value(logits, problem.y, problem.targeted).sum(), logits

        engine = descent(cost, update(problem), problem.project)

        def once(best: Best, restart: Array) -> Best:
            def step(k: Array, carried: Any) -> Any:
                state, best = carried
                moved, info = engine.step(state, k)
                return moved, select_better(best, look(state.variable, info.aux, k, restart))

            start = (
                jnp.zeros_like(problem.x)
                if never_drawn
                else jnp.where(restart < first_drawn, 0, sample_start(problem, restart))
            )
            end, best = jax.lax.fori_loop(0, length, step, (engine.init(start), best))
            return select_better(
                best, look(end.variable, problem.perturbed_logits(end.variable), length, restart)
            )

        return run_restarts(problem, look, once, length, runs)

    return search


_finite = optax.stateless(lambda gradient, _: jnp.where(jnp.isfinite(gradient), gradient, 0))
_UNIT_IN_L1 = optax.stateless(
    lambda up, _: up / jnp.maximum(jnp.abs(up).sum(1, keepdims=True), jnp.finfo(up.dtype).tiny)
)


def _upwards(problem: Problem) -> optax.GradientTransformation:
    return optax.stateless(lambda gradient, r: drop_blocked_coordinates(problem, -gradient, r))


def _steps(problem: Problem, rate: Callable[[Array], Any]) -> optax.GradientTransformation:
    """Step k of rate(k) radii, in the direction d."""
    norm = norms.linf if problem.norm is norms.linf else norms.l2
    along = optax.stateless(lambda up, _: problem.epsilon[:, None] * norm.ascent(up))
    return optax.chain(along, optax.scale_by_schedule(rate))


def _for_each_example(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with a state for each example, so that none sees another's gradient."""
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer must be an optax optimizer, got {type(optimizer).__name__}")
    alone = optax.GradientTransformation(jax.vmap(optimizer.init), jax.vmap(optimizer.update))
    row = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    try:
        jax.eval_shape(lambda row: alone.update(row, alone.init(row), row), row)
    except TypeError as error:
        raise ValueError(
            f"optimizer must need nothing but gradients, got one that does: {error}"
        ) from error
    return alone
