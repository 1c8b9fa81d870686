"""The search for the smallest perturbation in a ball whose radius is part of the search.

    r_{k+1} = project onto ||r|| <= ε_{k+1} and box   (r_k + α_k g / ||g||_2),     g = dL/dr (x + r_k)
    ε_{k+1} = (1 - γ_k) ε_k  where r_k succeeds,  else larger

The gradient says where to go, success alone how far: direction and length are found apart, and there is no weight between the length and
the loss to search for. The step is that of the engine; the shortest success is kept, and `_boundary` brings it back to the boundary.

The first run is the papers'. The gradient of its L leads to the class that is likeliest at x, and the nearest one may be another. So the
next runs ascend z_j - z_y for one class j each, those with the nearest linearised boundaries first. When there are no more classes, and for
a target, two runs go on from the best so far up the margin, with steps a tenth as long each time: where several boundaries meet, the
gradient jumps from one to the other, and a step no smaller than what is to be gained ends beside their corner. All further runs start
elsewhere, with steps as long as the first run's: from points drawn in the ball that the best so far has left, and, every second, from a
random half of the best's numbers. In l1 few numbers move, and which of them is what a run may get wrong.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffprog import _validation, norms
from diffprog.adversarial._base import (
    Attack,
    Bounds,
    Flat,
    PerExample,
    Problem,
    Search,
    make_attack,
)
from diffprog.adversarial._losses import Logits, logit_difference
from diffprog.adversarial.minimum_norm._binary_search import (
    Best,
    ahead,
    as_examples,
    finished,
    finite,
    nothing,
    success,
    width,
)
from diffprog.adversarial.minimum_norm._deepfool import nearest_first
from diffprog.descent import descent

_CLASSES = 10  # that are compared for the nearest, at most
_AIMS = 5  # of them that a run of their own is given, at most


class Seen(NamedTuple):
    """What a step saw at r: the loss of each example, the logits, and the gradient."""

    loss: PerExample
    logits: Logits
    gradient: Flat


class Rule(NamedTuple):
    """What makes one attack of this kind.

    Attributes:
        loss: (problem, logits) -> what the first run ascends.
        start: problem -> the first radius.
        radius: (problem, r, ε, γ, seen, best) -> the next radius.
        outwards: (problem, r, ε) -> r, before it is projected.
        first: α, in widths of the box, and γ at the first step.
        last: the same at the last.
    """

    loss: Callable[[Problem, Logits], PerExample]
    start: Callable[[Problem], PerExample]
    radius: Callable[[Problem, Flat, PerExample, Array, Seen, Best], PerExample]
    outwards: Callable[[Problem, Flat, PerExample], Flat]
    first: tuple[Any, Any]
    last: tuple[Any, Any]


def adapting(
    name: str,
    norm: str,
    rule: Rule,
    steps: int,
    restarts: int,
    bounds: Bounds,
    targeted: bool,
    examples: Any,
) -> Attack:
    """The attack of that rule."""
    count, runs = (
        jnp.int32(_validation.integer("steps", steps, low=1)),
        _validation.integer("restarts", restarts, low=1),
    )
    starts = as_examples(examples, _validation.bounds("bounds", bounds))

    def search(problem: Problem) -> Search:
        rivals = (
            nearest_first(problem, norm, _CLASSES)
            if runs > 1 and not targeted
            else problem.y[None][:0]
        )
        aims = rivals[: min(runs - 1, _AIMS)] if len(rivals) > 1 else rivals[:0]

        def loss(logits: Logits, run: Array) -> PerExample:
            to_one = logit_difference(logits, problem.y, aims[run - 1]) if len(aims) else 0
            later = jnp.where(run <= len(aims), to_one, ahead(problem, logits))
            return jnp.where(run == 0, rule.loss(problem, logits), later)

        def cost(r: Flat, run: Array) -> tuple[Array, tuple[PerExample, Logits]]:
            logits = problem.perturbed_logits(r)
            value = loss(logits, run)
            return -value.sum(), (value, logits)

        def step(
            run: Array, k: Array, carried: tuple[Flat, PerExample, Best]
        ) -> tuple[Flat, PerExample, Best]:
            r, epsilon, best = carried
            rate, gamma = (
                cosine(a, b, k, count).astype(r.dtype)
                for a, b in zip(rule.first, rule.last, strict=True)
            )
            engine = descent(
                cost, _along(rate * _shorter(run - len(aims)).astype(r.dtype) * width(problem))
            )
            moved, info = engine.step(engine.init(r), run)
            value, logits = info.aux
            best = best.or_shorter(problem, r, success(problem, logits), k, run)
            epsilon = rule.radius(
                problem, r, epsilon, gamma, Seen(value, logits, moved.optimizer), best
            )
            free = rule.outwards(problem, moved.variable, epsilon)
            return (
                problem.norm.project_in_box(free, problem.x, epsilon, problem.bounds),
                epsilon,
                best,
            )

        def once(run: Array, best: Best) -> Best:
            more = run - len(aims)
            radius = jnp.where(best.found, best.distance, rule.start(problem))
            further = _elsewhere(problem, run, best) if runs - len(aims) > 3 else best.r
            start = jnp.where(more <= 0, 0, jnp.where(more <= 2, best.r, further))
            known = jax.tree.map(functools.partial(jnp.where, more <= 0), nothing(problem), best)
            r, _, new = jax.lax.fori_loop(
                0, count, functools.partial(step, run), (start, radius, known)
            )
            return best.or_best(
                new.or_shorter(
                    problem, r, success(problem, problem.perturbed_logits(r)), count, run
                )
            )

        best = jax.lax.fori_loop(0, runs, once, nothing(problem))
        taken = jnp.full(len(problem.x), count * runs + (len(rivals) if len(aims) else 0))
        return finished(problem, best, taken, jnp.full_like(taken, runs), starts)

    return make_attack(name, search, norm=norm, bounds=bounds, targeted=targeted)


def cosine(first: Any, last: Any, k: Array, count: Array) -> Array:
    """From `first` at k = 0 to `last` at k = count, along half a cosine."""
    return last + (first - last) * (1 + jnp.cos(jnp.pi * k / count)) / 2


def _shorter(more: Array) -> Array:
    """The factor of the steps in the n-th run after all classes: 0.1, 0.01, then 1."""
    return jnp.where(more == 1, 0.1, jnp.where(more == 2, 0.01, 1.0))


def _elsewhere(problem: Problem, run: Array, best: Best) -> Flat:
    """A point of the box and of the ball, or half of the best, by the examples' own keys; x, where nothing is found."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(problem.keys, run)
    unit = jax.vmap(
        lambda key: problem.norm.sample(key, (1, problem.x.shape[1]), 1.0, problem.x.dtype)[0]
    )(keys)
    drawn = problem.clip_to_box(jnp.where(best.found, best.distance, 0)[:, None] * unit)
    return jnp.where(run % 2 == 0, drawn, half(best.r, keys))


def half(r: Flat, keys: jax.Array) -> Flat:
    """Each number of r, or zero with even odds."""
    return jnp.where(jax.vmap(lambda key: jax.random.bernoulli(key, shape=r.shape[1:]))(keys), r, 0)


def _along(rate: Array) -> optax.GradientTransformation:
    """A step of l2 length `rate` down the gradient; its state is the gradient, without what of it is not finite."""

    def update(gradient: Flat, _: Flat, __: Any = None) -> tuple[Flat, Flat]:
        gradient = finite(gradient)
        return -rate * norms.l2.ascent(gradient), gradient

    return optax.GradientTransformation(jnp.zeros_like, update)
