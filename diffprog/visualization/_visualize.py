"""Visualize units: optimize images to maximize an objective of a model.

    maximize   Σ_i  objective_i(f(transform(x_i, key_i)))  -  Σ_R λ R(x_i)

over the variables z_i of a parametrization x_i = paint(z_i) of the images; each penalty R on an
image has a weight λ. The images of a batch are optimized together in one compiled program, each
with its own random transforms. Unless an objective such as `diversity` relates them, they do not
influence each other, and the result does not depend on the batch size. The unit indices are
arguments of the compiled program, so that other units do not recompile it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from diffprog import _jaxpr, _validation, distributed
from diffprog.program import Program, program
from diffprog.visualization._evaluate_objective import require_images, require_readable, scores
from diffprog.visualization._objectives import Objective, as_objective
from diffprog.visualization._optimize import ImagePipeline, OptimizedImages, optimize
from diffprog.visualization._penalties import OfVariable, Penalty
from diffprog.visualization._transforms import Transform, compose
from diffprog.visualization.parametrization._image import Image

_MEMORY_BYTES = 2**30


class Visualization(NamedTuple):
    """Result of `visualize` for n images: the images, their scores, and the optimization history.

    Attributes:
        images: (n, height, width, channels), in the range of the parametrization.
        names: description of the objective of each image.
        scores: (n,), objective of each image without transforms (with one draw of them if they
            change the size).
        history: (steps, n), objective at each step, with transforms; NaN after an image stopped.
        percentiles: (n,), percentage of the real images, passed as `data`, with a lower objective;
            None if none were passed.
        variables: optimized variables of the parametrization, leading axis image.
        endings: (n,), why the optimization of each image ended: "steps" (all steps were taken),
            "plateau" (no more improvement) or "nonfinite" (the cost was not finite).
    """

    images: Float[Array, "n height width channels"]
    names: tuple[str, ...]
    scores: np.ndarray
    history: np.ndarray
    percentiles: np.ndarray | None
    variables: Any
    endings: tuple[str, ...]

    def __str__(self) -> str:
        """Format one line per image: its objective and score, percentile and ending."""
        lines = [
            f"{name}: {score:.4g}" for name, score in zip(self.names, self.scores, strict=True)
        ]
        for i, ending in enumerate(self.endings):
            if self.percentiles is not None:
                lines[i] += f", above {self.percentiles[i]:.0f} % of the data"
            if ending != "steps":
                lines[i] += f" ({ending})"
        return "\n".join(lines)


def visualize(
    f: Callable[..., Any],
    objective: Objective | Callable[[Array], Array],
    image: Image,
    *,
    key: jax.Array,
    steps: int = 256,
    transforms: Sequence[Transform] = (),
    penalties: Mapping[Penalty | OfVariable, float] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    start: Float[Array, "... height width channels"] | None = None,
    data: Float[Array, "images height width channels"] | None = None,
    batch_size: int | None = None,
    plateau: int | None = None,
    straight_through: int = 0,
    mesh: Mesh | None = None,
    progress: bool | None = None,
) -> Visualization:
    """Optimize images to maximize an objective of a model, such as a unit or a channel.

    Args:
        f: model of a batch of images, (batch, height, width, channels) -> (batch, outputs).
        objective: objective of n images to maximize; or a function of f's output,
            (batch, outputs) -> (batch,).
        image: parametrization of an image, made by `pixels`, `fourier`, `covariance`, ...
        key: PRNG key. Image i uses `fold_in(key, i)` for its start and its transforms.
        steps: number of updates.
        transforms: functions (image, key) -> image applied before f, such as
            `default_transforms()`.
        penalties: dict from a penalty, a function image -> scalar or `of_variable(function)`, to
            its weight. The weighted penalties are subtracted from the objective.
        optimizer: optax optimizer of the variables; default Adam with learning rate 0.05.
        start: initial image, or one for each of the n images; by default drawn by `image.init`.
        data: real images, for the percentiles of the result.
        batch_size: number of images optimized together; by default as many as have their
            intermediate values in about 1 GiB.
        plateau: stop an image when its mean cost (penalties minus objective) over this many steps
            is no lower than over the same number of steps before; by default never.
        straight_through: number of initial steps in which the gradient of every relu is set to 1,
            to activate units that are inactive at the start.
        mesh: devices to divide the images among, from `distributed.mesh()`.
        progress: whether to show a progress bar; None shows it for long runs on a terminal.

    Returns:
        `Visualization`: the n images, their scores, and the history of the optimization.

    Raises:
        TypeError, ValueError: f lacks a node of the objective (the message lists its nodes), a unit
            is out of range, an image is too small for a transform or not of f's input shape, the
            start is not finite or of another shape, or an argument is out of range.

    >>> from diffprog.visualization import logit, pixels
    >>> f = lambda x: x.reshape(len(x), -1)
    >>> result = visualize(f, logit([2, 0]), pixels((1, 3, 1)), steps=99, key=jax.random.key(0))
    >>> print(result.images[:, 0, :, 0].argmax(1), result.names)
    [2 0] ('logit[2]', 'logit[0]')
    """
    _validation.key("key", key)
    if not isinstance(image, Image):
        raise TypeError(
            f"image must be an Image, such as fourier((32, 32, 3)), got {type(image).__name__}"
        )
    steps = _validation.integer("steps", steps, low=1)
    straight_through = _validation.integer("straight_through", straight_through, low=0)
    plateau = steps if plateau is None else _validation.integer("plateau", plateau, low=1)
    optimizer = optax.adam(0.05) if optimizer is None else optimizer
    f, objective = program(f), as_objective(objective)
    pipeline = ImagePipeline(image, compose(transforms), _validate_penalties(penalties))
    start = None if start is None else _validate_start(start, image, len(objective))
    inputs = _input_shape(pipeline)
    require_readable(f, objective, inputs)
    if data is not None:
        require_images("data", data)
        if data.shape[1:] != inputs.shape[1:]:
            raise ValueError(
                f"data must be images of f's input shape {list(inputs.shape[1:])}, "
                f"got {list(data.shape[1:])}"
            )
    batch_size = _default_batch_size(f, inputs) if batch_size is None else batch_size
    batch_size = _validation.integer("batch_size", batch_size, low=1)
    mesh = None if mesh is None else distributed.validate_mesh(mesh)
    f = f if mesh is None else distributed.replicate(mesh, f)
    devices = 1 if mesh is None else distributed.batch_axis_size(mesh)

    results = []
    for indices in _batches(len(objective), batch_size, devices):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
        # A given start is inverted to variables; otherwise they are sampled.
        make, arguments = (image.init, keys) if start is None else (image.invert, start[indices])
        variables = jax.vmap(make)(arguments)
        if mesh is not None:
            variables, keys = distributed.shard_batch(mesh, (variables, keys))
        results.append(
            optimize(
                f,
                objective.take(indices),
                pipeline,
                variables,
                keys,
                optimizer=optimizer,
                steps=steps,
                plateau=plateau,
                straight_through_steps=straight_through,
                progress=progress,
            )
        )
    return _concatenate(objective, results, None if data is None else scores(f, objective, data))


def _validate_penalties(penalties: Any) -> tuple[tuple[Penalty | OfVariable, Array], ...]:
    if penalties is not None and not isinstance(penalties, Mapping):
        raise TypeError(
            f"penalties must be a dict of weights by penalty, got {type(penalties).__name__}"
        )
    pairs = []
    for penalty, weight in (penalties or {}).items():
        function = penalty.penalty if isinstance(penalty, OfVariable) else penalty
        _validation.function("a penalty", function)
        weight = weight.item() if getattr(weight, "ndim", None) == 0 else weight
        weight = _validation.number("a penalty's weight", weight)
        # An array, so that another weight does not recompile the program.
        pairs.append((penalty, jnp.asarray(weight, jnp.result_type(float))))
    return tuple(pairs)


def _validate_start(start: Any, image: Image, count: int) -> Array:
    _validation.floating("start", start, rank=(3, 4))
    if start.shape[-3:] != image.shape or (start.ndim == 4 and len(start) != count):
        raise ValueError(
            f"start must have shape {list(image.shape)} or {[count, *image.shape]}, "
            f"got {list(start.shape)}"
        )
    _validation.finite("start", start)
    _validation.within("start", start, *image.range)
    return jnp.broadcast_to(jnp.asarray(start, jnp.result_type(float)), (count, *image.shape))


def _input_shape(pipeline: ImagePipeline) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of the model's input for one image, after the transforms.

    Raises an error if a penalty does not return a scalar.
    """
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    variables = jax.eval_shape(jax.vmap(pipeline.image.init), keys)
    images = jax.eval_shape(pipeline.images, variables)
    for penalty, _ in pipeline.penalties:
        function, batch = (
            (penalty.penalty, variables) if isinstance(penalty, OfVariable) else (penalty, images)
        )
        single = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch)
        _validation.scalar("a penalty", jax.eval_shape(function, single))
    return jax.eval_shape(pipeline.inputs, images, keys)


def _default_batch_size(f: Program, inputs: jax.ShapeDtypeStruct) -> int:
    """Return the number of images whose intermediate values in f and gradients fit in 1 GiB.

    `inputs` is the shape and dtype of f's input for one image.
    """
    equations = _jaxpr.find_equations(jax.make_jaxpr(f)(inputs), lambda _: True)
    values: list[Any] = [variable.aval for site in equations for variable in site.equation.outvars]
    bytes_per_image = 2 * sum(
        value.size * value.dtype.itemsize
        for value in values
        if jnp.issubdtype(value.dtype, jnp.floating)
    )
    return max(1, _MEMORY_BYTES // max(bytes_per_image, 1))


def _batches(count: int, batch_size: int, devices: int) -> list[np.ndarray]:
    """Divide the indices 0 .. count - 1 into batches of equal size, a multiple of `devices`.

    If needed, the last batch is filled up with its last index, so that all batches use the same
    compiled program.
    """
    size = -(-count // -(-count // (batch_size * devices)))
    size = -(-size // devices) * devices
    return [
        np.minimum(np.arange(first, first + size), count - 1) for first in range(0, count, size)
    ]


def _concatenate(
    objective: Objective, results: Sequence[OptimizedImages], data_scores: np.ndarray | None
) -> Visualization:
    count, steps = len(objective), max(len(result.history) for result in results)
    images, variables, image_scores = jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves)[:count],
        *((result.images, result.variables, result.scores) for result in results),
    )
    image_scores = np.asarray(image_scores)
    history = [
        np.pad(result.history, ((0, steps - len(result.history)), (0, 0)), constant_values=np.nan)
        for result in results
    ]
    endings = [ending for result in results for ending in result.endings]
    return Visualization(
        images,
        objective.names,
        image_scores,
        np.concatenate(history, axis=1)[:, :count],
        None if data_scores is None else 100 * (data_scores < image_scores[:, None]).mean(1),
        variables,
        tuple(endings[:count]),
    )
