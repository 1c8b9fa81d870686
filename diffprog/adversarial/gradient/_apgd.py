"""Auto-PGD: projected gradient ascent with momentum and a step size adapted to its own progress.

    linf, l2    z = project(r_k + ε η d(dL/dr))
                r_{k+1} = project(r_k + 3/4 (z - r_k) + 1/4 (r_k - r_{k-1}))
    l1          r_{k+1} = project(r_k + ε η s)

with r_k the perturbation after k steps, L the loss, ε the radius and `project` the projection onto
ball and box. d is the sign of the gradient (linf) or the unit gradient (l2); s holds the signs of
the gradient's largest entries, scaled to l1 norm 1, and zeros elsewhere.

The step size η, in units of ε, starts at 2 (l1: 1). At certain steps, the checkpoints, it is
updated per example:

    linf, l2    If the loss rose in fewer than 3/4 of the steps since the last checkpoint, or
                neither η nor the best loss changed: restart from the best point with η / 2.
    l1          If the best point has fewer nonzero entries than at the last checkpoint: restart
                from it with η = 1. Otherwise divide η by 1.5, down to 1/10 at least. The next
                steps change 1/1.5 times as many entries as are nonzero in the best point, so
                the perturbation becomes sparse.

With `targets`, each run maximizes the loss of a targeted attack towards one other class. The
classes are taken in decreasing order of their logits at x.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from diffprog import _validation, norms
from diffprog.adversarial import _base, _losses
from diffprog.adversarial._base import Attack, Bounds, Flat, PerExample, Problem, Search, select
from diffprog.adversarial._losses import Labels, Logits, Loss, cross_entropy, logit_difference
from diffprog.adversarial.gradient import _pgd
from diffprog.adversarial.gradient._pgd import Evaluate, Iterate, select_better

RunLoss: TypeAlias = Callable[[Logits], PerExample]
"""Function logits -> loss (batch,) that one run maximizes."""

TargetLoss: TypeAlias = Callable[[Logits, Labels, Labels], PerExample]
"""Function (logits, y, target) -> loss (batch,) that grows with the logit of the target."""


def apgd(
    *,
    norm: str = "linf",
    epsilon: Any = 0.1,
    steps: int = 100,
    restarts: int = 1,
    random_start: bool = True,
    loss: str | Loss = "cross_entropy",
    targets: int | None = None,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
) -> Attack:
    """Auto-PGD attack (Croce and Hein, 2020); with `targets`, its multi-targeted form.

    Projected gradient ascent with momentum, whose step size shrinks when the loss stops rising.

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: radius, a number or an array (batch,).
        steps: gradient steps per run, at least 1.
        restarts: number of runs, at least 1; with `targets`, for each target class. The runs of an
            example end with the first that succeeds.
        random_start: whether the first run starts at a point drawn uniformly from the ball, as all
            later ones do, rather than at x.
        loss: "cross_entropy", "margin", "dlr", or a function (logits, y, targeted) -> (batch,) to
            maximize. With `targets`, the loss of a targeted attack on the class t of the run; dlr
            is then (z_t - z_y) / (z_1st - (z_3rd + z_4th) / 2), with y the label and z_1st, z_3rd,
            z_4th the sorted logits, or z_t - z_y if there are fewer than four classes.
        targets: number of classes to try, at least 1, at most all others; None for an untargeted
            loss.
        bounds: (low, high) of every value of x.
        targeted: whether y holds target classes.

    Returns:
        An `Attack`, called as `attack(f, x, y, key=key)`.

    Raises:
        TypeError, ValueError: an invalid argument, or `targets` for a targeted attack.

    Sources: F. Croce and M. Hein, "Reliable evaluation of adversarial robustness with an ensemble
    of diverse parameter-free attacks", 2020; for l1, "Mind the box: l1-APGD for sparse adversarial
    attacks on image classifiers", 2021.

    >>> attack = apgd(epsilon=0.25, targets=1)
    >>> x, y = jnp.array([[0.6, 0.5]]), jnp.array([0])
    >>> print(attack(lambda x: x, x, y, key=jax.random.key(0)).success)
    [ True]
    """
    value = _pgd.resolve_loss(loss)
    target_loss = TARGET_LOSSES.get(loss) if isinstance(loss, str) else None
    length = jnp.int32(_validation.integer("steps", steps, low=1))
    runs = jnp.int32(_validation.integer("restarts", restarts, low=1))
    max_targets = _base.validate_num_targets(targets, targeted)
    first_random_run = 0 if random_start else 1

    def search(problem: Problem) -> Search:
        run_loss: Callable[[Array], RunLoss]
        if max_targets is None:
            count = jnp.int32(1)
            run_loss = lambda _: lambda logits: value(logits, problem.y, problem.targeted)
        else:
            to_target = target_loss or (lambda logits, y, target: value(logits, target, True))
            count, run_loss = _target_run_losses(problem, to_target, max_targets)
        evaluate = _pgd.make_evaluator(problem, value)

        def run(best: Iterate, k: Array) -> Iterate:
            start = jnp.where(k < first_random_run, 0, problem.sample_ball(problem.epsilon, k))
            return _run(problem, run_loss(k), evaluate, best, start, length, k)

        return _pgd.run_restarts(problem, evaluate, run, length, runs * count)

    name = "apgd" if targets is None else "apgd, targets"
    _base.per_example_epsilon(epsilon, None, jnp.float32)  # `make_attack` allows None
    return _base.make_attack(
        name, search, norm=norm, epsilon=epsilon, bounds=bounds, targeted=targeted
    )


def _dlr_to_target(logits: Logits, y: Labels, target: Labels) -> PerExample:
    if logits.shape[1] < 4:
        return logit_difference(logits, y, target)
    ranked = jax.lax.top_k(logits, 4)[0]
    scale = jnp.maximum(ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2, 1e-12)
    return logit_difference(logits, y, target) / scale


TARGET_LOSSES: dict[str, TargetLoss] = {
    "cross_entropy": lambda logits, y, target: cross_entropy(logits, target, True),
    "margin": logit_difference,
    "dlr": _dlr_to_target,
}


def _target_run_losses(
    problem: Problem, target_loss: TargetLoss, max_targets: Array
) -> tuple[Array, Callable[[Array], RunLoss]]:
    """Return the number of target classes, and a function from the index of a run to its loss.

    Run k maximizes `target_loss` towards the class with the k-th largest logit at x, leaving out
    the label. There are at most `max_targets` classes, which repeat after the last.
    """
    order = jnp.argsort(-_losses.mask_label(problem.clean_logits, problem.y), axis=1)
    count = jnp.minimum(max_targets, order.shape[1] - 1)

    def run_loss(run: Array) -> RunLoss:
        target = jnp.take(order, run % count, axis=1)
        return lambda logits: target_loss(logits, problem.y, target)

    return count, run_loss


class _Point(NamedTuple):
    """Perturbations r (batch, n), their losses (batch,) and the gradients at them (batch, n)."""

    r: Flat
    value: PerExample
    gradient: Flat


class _HalvingSchedule(NamedTuple):
    """Step size for linf and l2, per example: halved when the loss stops rising.

    Attributes:
        rate: the step size η, in multiples of the radius.
        rises: number of steps since the last checkpoint in which the loss rose.
        last_best: the best loss at the last checkpoint.
        halved: whether η was halved at the last checkpoint.
    """

    rate: PerExample
    rises: PerExample
    last_best: PerExample
    halved: Bool[Array, "batch"]

    def count_step(self, rose: Bool[Array, "batch"]) -> "_HalvingSchedule":
        """Add one to the number of rises of the examples whose loss `rose` in the last step."""
        return self._replace(rises=self.rises + rose)

    def at_checkpoint(
        self, best: _Point, period: Array
    ) -> tuple["_HalvingSchedule", Bool[Array, "batch"]]:
        """Return the schedule after a checkpoint, and which examples restart from their best point.

        `best` is the best point so far, `period` the number of steps since the last checkpoint.
        """
        stalled = (self.rises < 0.75 * period) | (~self.halved & (best.value <= self.last_best))
        rate = jnp.where(stalled, self.rate / 2, self.rate)
        return _HalvingSchedule(rate, jnp.zeros_like(self.rises), best.value, stalled), stalled

    def step(self, problem: Problem, point: _Point, previous: Flat) -> Flat:
        """Return the next perturbation: a gradient step from `point`, with momentum.

        `previous` is the perturbation before `point`.
        """
        direction = _pgd.drop_blocked_coordinates(problem, point.gradient, point.r)
        length = (self.rate * problem.epsilon)[:, None]
        z = problem.project(point.r + length * problem.norm.ascent(direction))
        return problem.project(point.r + 0.75 * (z - point.r) + 0.25 * (point.r - previous))


class _SparseSchedule(NamedTuple):
    """Step size and sparsity of the steps for l1, per example.

    Attributes:
        rate: the step size η, in multiples of the radius.
        share: the share of the entries that a step changes.
        last_nonzero: number of nonzero entries of the best point at the last checkpoint.
    """

    rate: PerExample
    share: PerExample
    last_nonzero: PerExample

    def count_step(self, rose: Bool[Array, "batch"]) -> "_SparseSchedule":
        """Return the schedule unchanged: for l1, it does not depend on how often the loss rose."""
        return self

    def at_checkpoint(
        self, best: _Point, period: Array
    ) -> tuple["_SparseSchedule", Bool[Array, "batch"]]:
        """Return the schedule after a checkpoint, and which examples restart from their best point.

        These are the examples whose best point so far, `best`, has become sparser.
        """
        nonzero = (best.r != 0).sum(1).astype(self.last_nonzero.dtype)
        sparser = nonzero < 0.95 * self.last_nonzero
        rate = jnp.where(sparser, 1, jnp.maximum(self.rate / 1.5, 0.1))
        return _SparseSchedule(rate, nonzero / 1.5 / best.r.shape[1], nonzero), sparser

    def step(self, problem: Problem, point: _Point, previous: Flat) -> Flat:
        """Return the next perturbation: a step from `point` along the signs of its gradient.

        Only the largest entries of the gradient count; `previous` is not used.
        """
        direction = _pgd.drop_blocked_coordinates(problem, point.gradient, point.r)
        length = (self.rate * problem.epsilon)[:, None]
        return problem.project(point.r + length * _signs_of_largest(direction, self.share))


class _RunState(NamedTuple):
    """Loop state of one APGD run from one starting point; the leading axis is the example.

    A run maximizes its own loss, such as that towards one target class. Runs are compared by the
    loss of the attack.

    Attributes:
        r: the current perturbation.
        previous: the perturbation before it.
        value: the run's own loss at `previous`.
        best_point: the `_Point` of this run at which its own loss is largest.
        schedule: the step size, a `_HalvingSchedule` or `_SparseSchedule`.
        checkpoint: the step of the next checkpoint.
        period: the number of steps between the last checkpoint and the next.
        best: the best iterate of this and all earlier runs: a successful one if there is one, then
            the one with the largest loss of the attack.
    """

    r: Flat
    previous: Flat
    value: PerExample
    best_point: _Point
    schedule: Any
    checkpoint: Array
    period: Array
    best: Iterate


def _run(
    problem: Problem,
    run_loss: RunLoss,
    evaluate: Evaluate,
    best: Iterate,
    start: Flat,
    steps: Array,
    run: Array,
) -> Iterate:
    sparse = problem.norm is norms.l1
    # The first period, by how much each next one is shorter, and the shortest.
    shares = (0.04, 0.0, 0.04) if sparse else (0.22, 0.03, 0.06)
    period, shrinkage, shortest = (
        jnp.maximum((share * steps).astype(jnp.int32), 1) for share in shares
    )
    ones = jnp.ones_like(problem.epsilon)
    schedule = (
        _SparseSchedule(ones, 0.2 * ones, problem.x.shape[1] * ones)
        if sparse
        else _HalvingSchedule(2 * ones, 0 * ones, -jnp.inf * ones, ones > 0)
    )

    def total_loss(r: Flat) -> tuple[Array, tuple[PerExample, Logits]]:
        logits = problem.perturbed_logits(r)
        value = run_loss(logits)
        return value.sum(), (_pgd.nan_to_lowest(value), logits)

    def step(k: Array, state: _RunState) -> _RunState:
        gradient, (value, logits) = jax.grad(total_loss, has_aux=True)(state.r)
        point, is_checkpoint = _Point(state.r, value, gradient), k == state.checkpoint
        best_point = select(value > state.best_point.value, point, state.best_point)
        schedule = state.schedule.count_step(value > state.value)
        updated, go_back = schedule.at_checkpoint(best_point, state.period)
        schedule = jax.tree.map(
            lambda new, old: jnp.where(is_checkpoint, new, old), updated, schedule
        )
        # Back at its best point, an example has no momentum.
        point, previous = select(
            is_checkpoint & go_back, (best_point, best_point.r), (point, state.previous)
        )
        period = jnp.where(
            is_checkpoint, jnp.maximum(state.period - shrinkage, shortest), state.period
        )
        return _RunState(
            r=schedule.step(problem, point, previous),
            previous=point.r,
            value=point.value,
            best_point=best_point,
            schedule=schedule,
            checkpoint=jnp.where(is_checkpoint, k + period, state.checkpoint),
            period=period,
            best=select_better(state.best, evaluate(state.r, logits, k, run)),
        )

    lowest = jnp.full_like(problem.epsilon, -jnp.inf)
    first_point = _Point(start, lowest, jnp.zeros_like(start))
    # With a loss of +inf before the first step, that step counts as no rise.
    state = _RunState(start, start, -lowest, first_point, schedule, period, period, best)
    end = jax.lax.fori_loop(0, steps, step, state)
    return select_better(end.best, evaluate(end.r, problem.perturbed_logits(end.r), steps, run))


def _signs_of_largest(direction: Flat, share: PerExample) -> Flat:
    """Return the signs of the largest entries of each row, scaled to l1 norm 1; zero elsewhere.

    `share` (batch,) is the share of the entries that count as largest. Bisection finds their
    threshold, without sorting.
    """
    size, count = jnp.abs(direction), jnp.maximum(share * direction.shape[1], 1)

    def halve(_: Any, bracket: tuple[PerExample, PerExample]) -> tuple[PerExample, PerExample]:
        low, high = bracket
        middle = (low + high) / 2
        fits = (size >= middle[:, None]).sum(1) <= count
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    largest = size.max(1)
    threshold = jax.lax.fori_loop(0, 16, halve, (jnp.zeros_like(largest), largest))[1]
    signs = jnp.where(size >= threshold[:, None], jnp.sign(direction), 0)
    return signs / jnp.maximum(jnp.abs(signs).sum(1, keepdims=True), 1)
