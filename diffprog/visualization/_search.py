"""The descent behind `visualize`: one batch of images, from their first variables to their last.

    J(z) = Σ_i  Σ_R λ R(x_i) - objective_i(f(transform(x_i, key_i))),      x_i = paint(z_i)

No image's term holds another's variable, so one descent of the sum is the descent of each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from diffprog import descent
from diffprog.program import Program, program
from diffprog.visualization._images import Image
from diffprog.visualization._objectives import Objective
from diffprog.visualization._penalties import OfVariable, Penalty
from diffprog.visualization._rectifiers import straight_through, with_rectifier
from diffprog.visualization._slicing import read_units

Transform = Callable[[Float[Array, "height width channels"], jax.Array], Float[Array, "h w channels"]]


class View(NamedTuple):
    """How variables become images, and images what f sees of them.

    Attributes:
        image: the parametrization.
        transforms: one after another.
        penalties: pairs of a penalty and its weight.
    """

    image: Image
    transforms: tuple[Transform, ...]
    penalties: tuple[tuple[Penalty | OfVariable, float], ...]

    def images(self, variables: Any) -> Array:
        """The images of a batch."""
        return jax.vmap(self.image.paint)(variables)

    def seen(self, images: Array, keys: jax.Array) -> Array:
        """The images as f sees them, each with a draw of its own."""
        return transformed(self.transforms, images, keys)

    def penalty(self, variables: Any, images: Array) -> Any:
        """The weighted penalties, of all images together."""
        return sum(
            weight * (jax.vmap(penalty.penalty)(variables) if isinstance(penalty, OfVariable) else jax.vmap(penalty)(images)).sum()
            for penalty, weight in self.penalties
        )


def transformed(transforms: tuple[Transform, ...], images: Array, keys: jax.Array) -> Array:
    """One transform after another, each image with draws from its own key."""
    for number, transform in enumerate(transforms):
        images = jax.vmap(transform)(images, jax.vmap(jax.random.fold_in, (0, None))(keys, number))
    return images


class Found(NamedTuple):
    """What became of a batch: variables, images, own score of each image, the scores at each step, and how it ended."""

    variables: Any
    images: Array
    scores: Array
    history: np.ndarray
    ending: str


class Plan(NamedTuple):
    """How long to descend and how.

    Attributes:
        optimizer: of the variables.
        steps: at most so many updates.
        straight_through: so many of them with the gradient let through every relu.
        plateau: stop when the last so many steps were on the mean no better than those before them.
        slicing: whether to compute the wanted filters alone.
        progress: see `descent.run`.
    """

    optimizer: optax.GradientTransformation
    steps: int
    straight_through: int
    plateau: int
    slicing: bool
    progress: bool | None


def search(f: Program, objective: Objective, view: View, plan: Plan, variables: Any, keys: jax.Array) -> Found:
    """Descend from `variables`; image i draws from `keys[i]`."""
    results: list[descent.Result] = []
    state, ending, before = variables, "steps", np.inf
    for through, first, last in _pieces(plan):
        seen_by = program(with_rectifier(f, straight_through)) if through else f
        piece = descent.descent(_cost(seen_by, objective, view, keys, first, plan.slicing), plan.optimizer, jax.vmap(view.image.project))
        results.append(descent.run(piece, state, last - first, progress=plan.progress))
        state, now = results[-1].state, np.inf if through else results[-1].costs.mean()
        if results[-1].ending == "nonfinite" or now >= before:
            ending = "nonfinite" if results[-1].ending == "nonfinite" else "plateau"
            break
        before = now
    images, scores = _finish(program(_finished(f, objective, view)), state.variable, keys)
    return Found(state.variable, images, scores, np.concatenate([result.aux for result in results]), ending)


def _pieces(plan: Plan) -> list[tuple[bool, int, int]]:
    """The stretches (straight through?, first step, last + 1) after which it may stop."""
    first = min(plan.straight_through, plan.steps)
    begin = [(True, 0, first)] if first else []
    return begin + [(False, k, min(k + plan.plateau, plan.steps)) for k in range(first, plan.steps, plan.plateau)]


def _cost(f: Program, objective: Objective, view: View, keys: jax.Array, first: int, slicing: bool) -> Callable[[Any, Array], Any]:
    read, score, data = read_units(f, objective.requests, slicing=slicing), objective.score, objective.data
    start = jnp.int32(first)

    def cost(variables: Any, step: Array) -> tuple[Array, Array]:
        images = view.images(variables)
        _, values = read(view.seen(images, jax.vmap(jax.random.fold_in, (0, None))(keys, start + step)))
        scores = score(values, data)
        return view.penalty(variables, images) - scores.sum(), scores

    return cost


def _finished(f: Program, objective: Objective, view: View) -> Callable[[Any, jax.Array], tuple[Array, Array]]:
    """The images and their scores: of the images themselves, or as seen through one draw of transforms that change their size."""
    read, score, data = read_units(f, objective.requests), objective.score, objective.data

    def finished(variables: Any, keys: jax.Array) -> tuple[Array, Array]:
        images = view.images(variables)
        seen = jax.eval_shape(view.seen, images, keys)
        _, values = read(images if seen.shape == images.shape else view.seen(images, keys))
        return images, score(values, data)

    return finished


@jax.jit
def _finish(finished: Program, variables: Any, keys: jax.Array) -> tuple[Array, Array]:
    return finished(variables, keys)
