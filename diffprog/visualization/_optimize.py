"""Optimize one batch of images by gradient descent on their penalties minus their objectives.

    J(z) = Σ_i  Σ_R λ R(x_i) - objective_i(f(transform(x_i, key_i))),      x_i = paint(z_i)

Image x_i is computed from its variable z_i by a parametrization; f is the model, and each penalty R
has a weight λ. Unless the objective itself relates the images, each term depends on one image, so
that descent on the sum optimizes every image independently. An image whose cost is not finite or
has stopped falling is frozen while the others continue.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool

from diffprog import descent, distributed
from diffprog.program import Program, program
from diffprog.visualization._objectives import Objective
from diffprog.visualization._penalties import OfVariable, Penalty
from diffprog.visualization._read_units import read_units
from diffprog.visualization._transforms import Transform
from diffprog.visualization.attribution._relu_rules import straight_through, with_rectifier
from diffprog.visualization.parametrization._image import Image


class ImagePipeline(NamedTuple):
    """Computes images from their variables, model inputs from images, and penalties.

    Attributes:
        image: parametrization, which computes one image from its variable.
        transform: random transform, (image, key) -> image, applied before the model.
        penalties: pairs (penalty, weight).
    """

    image: Image
    transform: Transform
    penalties: tuple[tuple[Penalty | OfVariable, Array], ...]

    def images(self, variables: Any) -> Array:
        """Compute images (batch, height, width, channels) from the variables of a batch."""
        return jax.vmap(self.image.paint)(variables)

    def inputs(self, images: Array, keys: jax.Array) -> Array:
        """Compute the model inputs: transform each image at random, with its own key."""
        return jax.vmap(self.transform)(images, keys)

    def penalty(self, variables: Any, images: Array) -> Array:
        """Sum the weighted penalties of each image, (batch,), from their variables and pixels."""
        total = jnp.zeros(len(images), images.dtype)
        for penalty, weight in self.penalties:
            if isinstance(penalty, OfVariable):
                values = jax.vmap(penalty.penalty)(variables)
            else:
                values = jax.vmap(penalty)(images)
            total += weight.astype(values.dtype) * values
        return total


class OptimizedImages(NamedTuple):
    """Result of `optimize` for one batch of images.

    Attributes:
        variables: optimized variables of the parametrization, leading axis image.
        images: (batch, height, width, channels).
        scores: (batch,), objective of each final image.
        history: (steps, batch), objective at each step; NaN after an image stopped.
        endings: (batch,), why each image stopped: "steps", "plateau" or "nonfinite".
    """

    variables: Any
    images: Array
    scores: Array
    history: np.ndarray
    endings: tuple[str, ...]


def optimize(
    f: Program,
    objective: Objective,
    pipeline: ImagePipeline,
    variables: Any,
    keys: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    plateau: int,
    straight_through_steps: int,
    progress: bool | None,
) -> OptimizedImages:
    """Optimize a batch of images by gradient descent, for a number of steps or until a plateau.

    Args:
        f: model of a batch of images.
        objective: objective to maximize, with one score for each image.
        pipeline: parametrization, transforms and penalties of the images.
        variables: initial variables of the parametrization, leading axis image.
        keys: PRNG key for each image; image i uses `fold_in(keys[i], k)` for its transforms in
            step k.
        optimizer: optax optimizer of the variables.
        steps: maximal number of updates.
        plateau: an image stops if its mean cost over this many steps is no lower than over the
            same number before.
        straight_through_steps: number of initial steps in which the gradient of a relu is 1.
        progress: whether to show a progress bar; None shows it for long runs on a terminal.

    Returns:
        `OptimizedImages`. An image whose cost is not finite is stopped; the others continue.
    """
    active, frozen, state = jnp.ones(len(keys), bool), variables, variables
    endings, histories = ["steps"] * len(keys), [np.zeros((0, len(keys)))]
    infinite = np.full(len(keys), np.inf)
    previous = infinite

    def freeze(finished: Bool[np.ndarray, "batch"], ending: str) -> None:
        nonlocal active, frozen
        for i in np.flatnonzero(finished):
            endings[i] = ending
        frozen = _select(active, state.variable, frozen)
        active = active & ~finished

    switch = min(straight_through_steps, steps)
    boundaries = [0] * (switch > 0) + [*range(switch, steps, plateau), steps]
    for first, last in itertools.pairwise(boundaries):
        use_straight_through = first < switch
        rectified = program(with_rectifier(f, straight_through)) if use_straight_through else f
        costs = [np.zeros((0, len(keys)))]
        while first < last and active.any():
            cost = _cost(rectified, objective, pipeline, keys, active, frozen, first)
            method = descent.descent(cost, optimizer, jax.vmap(pipeline.image.project))
            result = descent.run(method, state, last - first, progress=progress)
            (scores, image_costs), state, first = result.aux, result.state, first + result.steps
            histories.append(np.where(active, scores[: result.steps], np.nan))
            costs.append(image_costs[: result.steps])
            if result.ending != "nonfinite":
                break
            # Freeze the images that failed and resume the descent of the others.
            failed = np.asarray(active) & ~np.isfinite(image_costs[-1])
            freeze(failed if failed.any() else np.asarray(active), "nonfinite")
        window = np.concatenate(costs)
        mean = window.mean(0) if len(window) and not use_straight_through else infinite
        freeze(np.asarray(active) & np.isfinite(mean) & (mean >= previous), "plateau")
        previous = mean

    variables = _select(active, state.variable, frozen)
    images, scores = _run(program(_paint_and_score(f, objective, pipeline)), variables, keys)
    variables, images, scores = distributed.all_gather((variables, images, scores))
    return OptimizedImages(variables, images, scores, np.concatenate(histories), tuple(endings))


def _select(mask: Bool[Array, "batch"], new: Any, old: Any) -> Any:
    """Select, for each image i, the leaves of `new` if mask[i] is true, else those of `old`."""
    choose = lambda a, b: jnp.where(jnp.expand_dims(mask, range(1, a.ndim)), a, b)
    return jax.tree.map(choose, new, old)


def _cost(
    f: Program,
    objective: Objective,
    pipeline: ImagePipeline,
    keys: jax.Array,
    active: Bool[Array, "batch"],
    frozen: Any,
    first: int,
) -> Callable[[Any, Array], Any]:
    """Return the cost function (variables, step) -> (total cost, (scores, cost of each image)).

    The cost of an image is its penalties minus its score. The total is over the active images; the
    others use their `frozen` variables. Step 0 of the function is step `first` of the optimization.
    """
    # Only the score is closed over, not the objective: units and weights stay arguments of the
    # compiled program.
    read, score, data = read_units(f, objective.requests), objective.score, objective.data
    start = jnp.int32(first)

    def cost(variables: Any, step: Array) -> tuple[Array, tuple[Array, Array]]:
        variables = _select(active, variables, frozen)
        images = pipeline.images(variables)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, start + step)
        _, values = read(pipeline.inputs(images, step_keys))
        scores = score(values, data)
        image_costs = pipeline.penalty(variables, images) - scores
        return jnp.where(active, image_costs, 0).sum(), (scores, image_costs)

    return cost


def _paint_and_score(
    f: Program, objective: Objective, pipeline: ImagePipeline
) -> Callable[[Any, jax.Array], tuple[Array, Array]]:
    """Return the function (variables, keys) -> (images, scores) that evaluates optimized images.

    The scores are those of the images without random transforms. If the transforms change the image
    size, so that f needs them, the scores are those of one random draw.
    """
    read, score, data = read_units(f, objective.requests), objective.score, objective.data

    def paint_and_score(variables: Any, keys: jax.Array) -> tuple[Array, Array]:
        images = pipeline.images(variables)
        shape = jax.eval_shape(pipeline.inputs, images, keys).shape
        _, values = read(images if shape == images.shape else pipeline.inputs(images, keys))
        return images, score(values, data)

    return paint_and_score


@jax.jit
def _run(function: Program, *args: Any) -> Any:
    return function(*args)
