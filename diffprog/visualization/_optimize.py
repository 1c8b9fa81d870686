"""The descent behind `visualize`: one batch of images, from their first variables to their last.

    J(z) = Σ_i  Σ_R λ R(x_i) - objective_i(f(transform(x_i, key_i))),      x_i = paint(z_i)

No image's term holds another's variable, so one descent of the sum is the descent of each. One that has come to its end, because its score
is not finite or no longer rises, stays where it is, while the others go on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from diffprog import descent, distributed
from diffprog.program import Program, program
from diffprog.visualization._objectives import Objective
from diffprog.visualization._penalties import OfVariable, Penalty
from diffprog.visualization._read_units import read_units
from diffprog.visualization.attribution._relu_rules import straight_through, with_rectifier
from diffprog.visualization.parametrization._image import Image

Transform = Callable[
    [Float[Array, "height width channels"], jax.Array], Float[Array, "h w channels"]
]


class View(NamedTuple):
    """How variables become images, and images what f sees of them.

    Attributes:
        image: the parametrization.
        transforms: one after another.
        penalties: pairs of a penalty and its weight.
    """

    image: Image
    transforms: tuple[Transform, ...]
    penalties: tuple[tuple[Penalty | OfVariable, Array], ...]

    def images(self, variables: Any) -> Array:
        """The images of a batch."""
        return jax.vmap(self.image.paint)(variables)

    def seen(self, images: Array, keys: jax.Array) -> Array:
        """The images as f sees them, each with a draw of its own."""
        return transformed(self.transforms, images, keys)

    def penalty(self, variables: Any, images: Array) -> Array:
        """The weighted penalties of each image."""
        total = jnp.zeros(len(images), images.dtype)
        for penalty, weight in self.penalties:
            values = (
                jax.vmap(penalty.penalty)(variables)
                if isinstance(penalty, OfVariable)
                else jax.vmap(penalty)(images)
            )
            total += weight.astype(values.dtype) * values
        return total


def transformed(transforms: tuple[Transform, ...], images: Array, keys: jax.Array) -> Array:
    """One transform after another, each image with draws from its own key."""
    for number, transform in enumerate(transforms):
        images = jax.vmap(transform)(images, jax.vmap(jax.random.fold_in, (0, None))(keys, number))
    return images


class Found(NamedTuple):
    """What became of a batch: variables, images, own score of each image, the scores at each step, and how each ended."""

    variables: Any
    images: Array
    scores: Array
    history: np.ndarray
    endings: tuple[str, ...]


class Plan(NamedTuple):
    """How long to descend and how.

    Attributes:
        optimizer: of the variables.
        steps: at most so many updates.
        straight_through: so many of them with the gradient let through every relu.
        plateau: an image stops when its last so many steps were on the mean no better than those before them.
        slicing: whether to compute the wanted filters alone.
        progress: see `descent.run`.
    """

    optimizer: optax.GradientTransformation
    steps: int
    straight_through: int
    plateau: int
    slicing: bool
    progress: bool | None


class Standing(NamedTuple):
    """Which images still move, and where the others have stopped.

    Attributes:
        moving: (batch,).
        stopped: a variable for each image; what it is for one that moves is of no account.
    """

    moving: Bool[Array, "batch"]
    stopped: Any

    def of(self, variables: Any) -> Any:
        """The variables, those that have stopped where they did."""
        choose = lambda new, old: jnp.where(
            jnp.expand_dims(self.moving, range(1, new.ndim)), new, old
        )
        return jax.tree.map(choose, variables, self.stopped)

    def without(self, ended: Bool[np.ndarray, "batch"], variables: Any) -> "Standing":
        """With those that have ended stopped at these variables."""
        return Standing(self.moving & ~ended, self.of(variables))


def search(
    f: Program, objective: Objective, view: View, plan: Plan, variables: Any, keys: jax.Array
) -> Found:
    """Descend from `variables`; image i draws from `keys[i]`."""
    standing, state = Standing(jnp.ones(len(keys), bool), variables), variables
    endings, histories, before = (
        ["steps"] * len(keys),
        [np.zeros((0, len(keys)))],
        np.full(len(keys), np.inf),
    )

    def end(ended: Bool[np.ndarray, "batch"], why: str) -> Standing:
        for image in np.flatnonzero(ended):
            endings[image] = why
        return standing.without(ended, state.variable)

    for through, first, last in _pieces(plan):
        seen_by, costs = program(with_rectifier(f, straight_through)) if through else f, []
        while first < last and standing.moving.any():
            cost = _cost(seen_by, objective, view, keys, standing, first, plan.slicing)
            piece = descent.descent(cost, plan.optimizer, jax.vmap(view.image.project))
            result = descent.run(piece, state, last - first, progress=plan.progress)
            (scores, own), state, first = result.aux, result.state, first + result.steps
            histories.append(np.where(standing.moving, scores[: result.steps], np.nan))
            costs.append(own[: result.steps])
            if result.ending != "nonfinite":
                break
            moving = np.asarray(standing.moving)
            bad = moving & ~np.isfinite(own[-1])
            standing = end(bad if bad.any() else moving, "nonfinite")
        own = np.concatenate([before[None, :][:0], *costs])
        now = own.mean(0) if len(own) and not through else np.full(len(keys), np.inf)
        settled = np.asarray(standing.moving) & np.isfinite(now) & (now >= before)
        standing, before = end(settled, "plateau"), now
    final = standing.of(state.variable)
    images, scores = _finish(program(_finished(f, objective, view, plan.slicing)), final, keys)
    final, images, scores = distributed.all_gather((final, images, scores))
    return Found(final, images, scores, np.concatenate(histories), tuple(endings))


def _pieces(plan: Plan) -> list[tuple[bool, int, int]]:
    """The stretches (straight through?, first step, last + 1) after which it may stop."""
    first = min(plan.straight_through, plan.steps)
    begin = [(True, 0, first)] if first else []
    return begin + [
        (False, k, min(k + plan.plateau, plan.steps))
        for k in range(first, plan.steps, plan.plateau)
    ]


def _cost(
    f: Program,
    objective: Objective,
    view: View,
    keys: jax.Array,
    standing: Standing,
    first: int,
    slicing: bool,
) -> Callable[[Any, Array], Any]:
    read, score, data = (
        read_units(f, objective.requests, slicing=slicing),
        objective.score,
        objective.data,
    )
    start = jnp.int32(first)

    def cost(variables: Any, step: Array) -> tuple[Array, tuple[Array, Array]]:
        variables = standing.of(variables)
        images = view.images(variables)
        _, values = read(
            view.seen(images, jax.vmap(jax.random.fold_in, (0, None))(keys, start + step))
        )
        scores = score(values, data)
        own = view.penalty(variables, images) - scores
        return jnp.where(standing.moving, own, 0).sum(), (scores, own)

    return cost


def _finished(
    f: Program, objective: Objective, view: View, slicing: bool
) -> Callable[[Any, jax.Array], tuple[Array, Array]]:
    """The images and their scores: of the images themselves, or as seen through one draw of transforms that change their size."""
    read, score, data = (
        read_units(f, objective.requests, slicing=slicing),
        objective.score,
        objective.data,
    )

    def finished(variables: Any, keys: jax.Array) -> tuple[Array, Array]:
        images = view.images(variables)
        seen = jax.eval_shape(view.seen, images, keys)
        _, values = read(images if seen.shape == images.shape else view.seen(images, keys))
        return images, score(values, data)

    return finished


@jax.jit
def _finish(finished: Program, variables: Any, keys: jax.Array) -> tuple[Array, Array]:
    return finished(variables, keys)
