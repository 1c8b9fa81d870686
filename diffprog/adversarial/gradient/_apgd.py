"""Auto-PGD: ascent whose steps follow its own progress, so that there is no rate to tune.

    linf, l2    z = project(r_k + ε η ascent(dL/dr)),   r_{k+1} = project(r_k + 3/4 (z - r_k) + 1/4 (r_k - r_{k-1}))
    l1          r_{k+1} = project(r_k + ε η s),         s the signs of the largest share of the gradient, of length 1

η starts at the width of the ball, for l1 at its radius. At checkpoints each example looks back:

    linf, l2    the loss rose in fewer than 3/4 of the steps, or η and the best loss stand still: back to the best point, with η / 2
    l1          the best point uses fewer coordinates than before: back to it, with η = 1; otherwise η / 1.5, down to 1/10.
                From now on a step goes along as many coordinates as the best point uses, over 1.5: the perturbation grows sparse

With `targets`, each run ascends towards another class instead of away from the label: the likeliest other classes first.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

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
from diffprog.adversarial._losses import Labels, Logits, Loss, cross_entropy, logit_difference
from diffprog.adversarial.gradient._pgd import (
    Best,
    Look,
    drop_blocked_coordinates,
    make_evaluator,
    nan_to_lowest,
    resolve_loss,
    run_restarts,
    sample_start,
    select,
    select_better,
)

Ascended: TypeAlias = Callable[[Logits], PerExample]
"""What one run makes large, for each example."""

Lead: TypeAlias = Callable[[Logits, Labels, Labels], PerExample]
"""(logits, y, target) -> what grows as the target gets ahead of y."""


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
    """Projected gradient ascent that finds its own steps; with `targets`, its multi-targeted form.

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: the radius, one for all or one for each example.
        steps: gradients of a run.
        restarts: runs, with `targets` for each of these; an example takes part until one succeeds.
        random_start: whether the first run starts at a point drawn uniformly from the ball, as all later ones do, or at x.
        loss: "cross_entropy", "margin", "dlr", or a function (logits, y, targeted) -> (batch,) that grows towards what is wanted. With
            `targets` it is the loss of a targeted attack on the run's class; dlr is then (z_t - z_y) / (z_1st - (z_3rd + z_4th) / 2), and
            with fewer than four classes its numerator.
        targets: how many classes to try, at most all others; None to ascend away from the label.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.

    Raises:
        TypeError, ValueError: an argument that is none of these; `targets` for a targeted attack.

    Sources: F. Croce and M. Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", 2020;
    for l1 "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", 2021.

    >>> attack = apgd(epsilon=0.25, targets=1)
    >>> print(attack(lambda x: x, jnp.array([[0.6, 0.5]]), jnp.array([0]), key=jax.random.key(0)).success)
    [ True]
    """
    value, to = resolve_loss(loss), TOWARDS.get(loss) if isinstance(loss, str) else None
    length, runs = (
        jnp.int32(_validation.integer("steps", steps, low=1)),
        jnp.int32(_validation.integer("restarts", restarts, low=1)),
    )
    most = None if targets is None else jnp.int32(_validation.integer("targets", targets, low=1))
    if most is not None and targeted:
        raise ValueError(
            f"targets must be None for a targeted attack, whose targets are y, got {targets}"
        )
    first_drawn = 0 if random_start else 1

    def search(problem: Problem) -> Search:
        if most is None:
            count, ascended = (
                jnp.int32(1),
                lambda _: lambda logits: value(logits, problem.y, problem.targeted),
            )
        else:
            count, ascended = _towards(
                problem, to or (lambda logits, y, target: value(logits, target, True)), most
            )
        look = make_evaluator(problem, value)

        def once(best: Best, run: Array) -> Best:
            start = jnp.where(run < first_drawn, 0, sample_start(problem, run))
            return _run(problem, ascended(run), look, best, start, length, run)

        return run_restarts(problem, look, once, length, runs * count)

    name = "apgd" if targets is None else "apgd, targets"
    per_example_epsilon(epsilon, None, jnp.float32)
    return make_attack(name, search, norm=norm, epsilon=epsilon, bounds=bounds, targeted=targeted)


def _gap_ratio(logits: Logits, y: Labels, target: Labels) -> PerExample:
    if logits.shape[1] < 4:
        return logit_difference(logits, y, target)
    ranked = jax.lax.top_k(logits, 4)[0]
    return logit_difference(logits, y, target) / jnp.maximum(
        ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2, 1e-12
    )


TOWARDS: dict[str, Lead] = {
    "cross_entropy": lambda logits, y, target: cross_entropy(logits, target, True),
    "margin": logit_difference,
    "dlr": _gap_ratio,
}


def _towards(problem: Problem, to: Lead, most: Array) -> tuple[Array, Callable[[Array], Ascended]]:
    """How many classes there are to try, and what run k ascends: the lead of the k-th likeliest."""
    clean = problem.clean_logits
    order = jnp.argsort(
        jnp.where(jax.nn.one_hot(problem.y, clean.shape[1], dtype=bool), jnp.inf, -clean), axis=1
    )
    count = jnp.minimum(most, clean.shape[1] - 1)

    def ascended(run: Array) -> Ascended:
        target = jnp.take(order, run % count, axis=1)
        return lambda logits: to(logits, problem.y, target)

    return count, ascended


class _Point(NamedTuple):
    """A perturbation, its loss and the gradient there."""

    r: Flat
    value: PerExample
    gradient: Flat


class _Halving(NamedTuple):
    """The pace of linf and l2, for each example.

    Attributes:
        rate: η.
        rises: in how many steps the loss rose since the last checkpoint.
        reached: the best loss at the last checkpoint.
        halved: whether η was halved there.
    """

    rate: PerExample
    rises: PerExample
    reached: PerExample
    halved: Bool[Array, "batch"]

    def noted(self, rose: Bool[Array, "batch"]) -> "_Halving":
        """With one more step."""
        return self._replace(rises=self.rises + rose)

    def at_checkpoint(self, top: _Point, period: Array) -> tuple["_Halving", Bool[Array, "batch"]]:
        """After a checkpoint; and which examples go back."""
        stalled = (self.rises < 0.75 * period) | (~self.halved & (top.value <= self.reached))
        return _Halving(
            jnp.where(stalled, self.rate / 2, self.rate),
            jnp.zeros_like(self.rises),
            top.value,
            stalled,
        ), stalled

    def moved(self, problem: Problem, here: _Point, before: Flat) -> Flat:
        """The next perturbation."""
        up = problem.norm.ascent(drop_blocked_coordinates(problem, here.gradient, here.r))
        z = problem.project(here.r + (self.rate * problem.epsilon)[:, None] * up)
        return problem.project(here.r + 0.75 * (z - here.r) + 0.25 * (here.r - before))


class _Sparse(NamedTuple):
    """The pace of l1, for each example.

    Attributes:
        rate: η.
        share: of the coordinates that a step goes along.
        used: how many the best point used at the last checkpoint.
    """

    rate: PerExample
    share: PerExample
    used: PerExample

    def noted(self, rose: Bool[Array, "batch"]) -> "_Sparse":
        """Itself: only the best point counts."""
        return self

    def at_checkpoint(self, top: _Point, period: Array) -> tuple["_Sparse", Bool[Array, "batch"]]:
        """After a checkpoint; and which examples go back."""
        used = (top.r != 0).sum(1).astype(self.used.dtype)
        sparser = used < 0.95 * self.used
        return _Sparse(
            jnp.where(sparser, 1, jnp.maximum(self.rate / 1.5, 0.1)),
            used / 1.5 / top.r.shape[1],
            used,
        ), sparser

    def moved(self, problem: Problem, here: _Point, before: Flat) -> Flat:
        """The next perturbation."""
        signs = _signs_of_largest(
            drop_blocked_coordinates(problem, here.gradient, here.r), self.share
        )
        return problem.project(here.r + (self.rate * problem.epsilon)[:, None] * signs)


def _begin(problem: Problem, steps: Array) -> tuple[_Halving | _Sparse, tuple[Array, Array, Array]]:
    """The pace to begin with; and when the first checkpoint is due, by how much sooner each next one, but no sooner than when."""
    ones = jnp.ones_like(problem.epsilon)
    sparse = problem.norm is norms.l1
    shares = (0.04, 0.0, 0.04) if sparse else (0.22, 0.03, 0.06)
    first, sooner, soonest = (jnp.maximum((share * steps).astype(jnp.int32), 1) for share in shares)
    pace = (
        _Sparse(ones, 0.2 * ones, problem.x.shape[1] * ones)
        if sparse
        else _Halving(2 * ones, 0 * ones, -jnp.inf * ones, ones > 0)
    )
    return pace, (first, sooner, soonest)


class _State(NamedTuple):
    """Where a run stands: here, the point before, its loss, the best point by the run's own loss, the pace, the next checkpoint."""

    r: Flat
    before: Flat
    value: PerExample
    top: _Point
    pace: Any
    due: Array
    period: Array
    best: Best


def _run(
    problem: Problem,
    ascended: Ascended,
    look: Look,
    best: Best,
    start: Flat,
    steps: Array,
    run: Array,
) -> Best:
    pace, (first, sooner, soonest) = _begin(problem, steps)

    def value_of(r: Flat) -> tuple[Array, tuple[PerExample, Logits]]:
        logits = problem.perturbed_logits(r)
        value = ascended(logits)
        return value.sum(), (nan_to_lowest(value), logits)

    def step(k: Array, now: _State) -> _State:
        gradient, (value, logits) = jax.grad(value_of, has_aux=True)(now.r)
        here, due = _Point(now.r, value, gradient), k == now.due
        top, pace = select(value > now.top.value, here, now.top), now.pace.noted(value > now.value)
        checked, back = pace.at_checkpoint(top, now.period)
        pace = jax.tree.map(lambda new, old: jnp.where(due, new, old), checked, pace)
        here, before = select(due & back, (top, top.r), (here, now.before))
        period = jnp.where(due, jnp.maximum(now.period - sooner, soonest), now.period)
        r = pace.moved(problem, here, before)
        seen = select_better(now.best, look(now.r, logits, k, run))
        return _State(
            r, here.r, here.value, top, pace, jnp.where(due, k + period, now.due), period, seen
        )

    nowhere = jnp.full_like(problem.epsilon, -jnp.inf)
    begin = _State(
        start,
        start,
        -nowhere,
        _Point(start, nowhere, jnp.zeros_like(start)),
        pace,
        first,
        first,
        best,
    )
    end = jax.lax.fori_loop(0, steps, step, begin)
    return select_better(end.best, look(end.r, problem.perturbed_logits(end.r), steps, run))


def _signs_of_largest(up: Flat, share: PerExample) -> Flat:
    """The signs of that share of the entries, the largest, as a vector of length 1 in l1; the threshold by bisection, without a sort."""
    size, count = jnp.abs(up), jnp.maximum(share * up.shape[1], 1)

    def halve(_: Any, bracket: tuple[PerExample, PerExample]) -> tuple[PerExample, PerExample]:
        many, few = bracket
        middle = (many + few) / 2
        fits = (size >= middle[:, None]).sum(1) <= count
        return jnp.where(fits, many, middle), jnp.where(fits, middle, few)

    largest = size.max(1)
    threshold = jax.lax.fori_loop(0, 16, halve, (jnp.zeros_like(largest), largest))[1]
    signs = jnp.where(size >= threshold[:, None], jnp.sign(up), 0)
    return signs / jnp.maximum(jnp.abs(signs).sum(1, keepdims=True), 1)
