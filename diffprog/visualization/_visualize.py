"""Descent on images: objective, parametrization, transforms and optimizer, put together.

    maximise   Σ_i  objective_i(f(transform(x_i, key_i)))  -  Σ_R λ R(x_i)      over the variables z_i, with x_i = paint(z_i)

(lecture 000: argmax_x y_j + λ R(x)). The images of a batch are made together by one compiled descent, each with random draws of its own,
and do not know of one another (unless an objective such as `diversity` says so): what comes out does not depend on how many are made at
once. Which units they show are arguments of the compiled program, so other units are another call and not another compile.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from diffprog.visualization._optimize import Found, Plan, Transform, View, search
from diffprog.visualization._penalties import OfVariable, Penalty
from diffprog.visualization.parametrization._image import Image

_BYTES_AT_ONCE = 2**30


class Visualization(NamedTuple):
    """Images that a program's units look for.

    Attributes:
        images: (n, height, width, channels), in the range of the parametrization.
        names: what each of them shows.
        scores: (n,), the objective of each, seen without transforms (with one draw of them where they change the size).
        history: (steps, n), the objective of each at each step, seen through the transforms; NaN after its end.
        percentiles: (n,), the share of the real images given as `data` that score less, in percent; None without data.
        variables: what the images are painted from, leading axis image.
        endings: why the descent of each ended: "steps", "plateau" or "nonfinite" (see `descent.Result`).
    """

    images: Float[Array, "n height width channels"]
    names: tuple[str, ...]
    scores: np.ndarray
    history: np.ndarray
    percentiles: np.ndarray | None
    variables: Any
    endings: tuple[str, ...]

    def __str__(self) -> str:
        """A line for each image."""
        ranks = (
            [""] * len(self.names)
            if self.percentiles is None
            else [f", over {rank:.0f} % of the data" for rank in self.percentiles]
        )
        ends = ["" if ending == "steps" else f" ({ending})" for ending in self.endings]
        rows = zip(self.names, self.scores, ranks, ends, strict=True)
        return "\n".join(f"{name}: {score:.4g}{rank}{end}" for name, score, rank, end in rows)


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
    slicing: bool = True,
    mesh: Mesh | None = None,
    progress: bool | None = None,
) -> Visualization:
    """The images that an objective asks for.

    Args:
        f: a program of a batch of images, (batch, height, width, channels) -> (batch, outputs).
        objective: what each image is to excite; or a function of f's output, output -> (batch,).
        image: how an image is made of a free variable, from `pixels`, `fourier`, `covariance`, ...
        key: a random key. Image i draws its start and its transforms from `fold_in(key, i)`.
        steps: the number of updates.
        transforms: what happens to an image before f sees it, from `default_transforms` or of your own: (image, key) -> image.
        penalties: weights λ by penalty R, a function of one image that returns a scalar, or `of_variable(R)`; they are subtracted.
        optimizer: any optax optimizer of the variables; Adam with rate 0.05 by default.
        start: an image to start from, or one for each.
        data: real images, to tell what share of them scores less than what was made.
        batch_size: how many images are made together; by default as many as f's intermediate values leave room for in about 1 GiB.
        plateau: an image stops when its last so many steps were on the mean no better than those before them; never by default.
        straight_through: the first so many steps pass the gradient through every relu as if it were the identity, so that a unit which is
            switched off can be reached.
        slicing: compute only the filters that are wanted where a node allows it: the same result, faster.
        mesh: devices among which the images are divided, from `distributed.mesh()`.
        progress: a bar; None shows it for long runs on a terminal.

    Raises:
        TypeError, ValueError: an unknown node (the message lists those there are), a unit out of its range, an image that is too small
            for a transform or not of f's input shape, a start that is not finite or of another shape, numbers out of their range.

    >>> from diffprog.visualization import logit, pixels
    >>> seen = visualize(lambda x: x.reshape(len(x), -1), logit([2, 0]), pixels((1, 3, 1)), steps=100, key=jax.random.key(0))
    >>> print(seen.images[:, 0, :, 0].argmax(1), seen.names)
    [2 0] ('logit[2]', 'logit[0]')
    """
    _validation.key("key", key)
    if not isinstance(image, Image):
        raise TypeError(
            f"image must be an Image, such as fourier((32, 32, 3)), got {type(image).__name__}"
        )
    steps = _validation.integer("steps", steps, low=1)
    plan = Plan(
        optax.adam(0.05) if optimizer is None else optimizer,
        steps,
        _validation.integer("straight_through", straight_through, low=0),
        steps if plateau is None else _validation.integer("plateau", plateau, low=1),
        slicing,
        progress,
    )
    f, objective = program(f), as_objective(objective)
    view = View(image, _transforms(transforms), _penalties(penalties))
    starts = None if start is None else _starts(start, image, len(objective))
    seen = _seen(view)
    require_readable(f, objective, seen)
    if data is not None:
        require_images("data", data)
        if data.shape[1:] != seen.shape[1:]:
            raise ValueError(
                f"data must be images as f sees them, {list(seen.shape[1:])}, got {list(data.shape[1:])}"
            )
    batch_size = (
        _room(f, seen)
        if batch_size is None
        else _validation.integer("batch_size", batch_size, low=1)
    )

    mesh = None if mesh is None else distributed.validate_mesh(mesh)
    f = f if mesh is None else distributed.replicate(mesh, f)
    found = []
    for index in _batches(
        len(objective), batch_size, 1 if mesh is None else distributed.batch_axis_size(mesh)
    ):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        variables = (
            jax.vmap(image.init)(keys) if starts is None else jax.vmap(image.invert)(starts[index])
        )
        variables, keys = (
            (variables, keys) if mesh is None else distributed.shard_batch(mesh, (variables, keys))
        )
        found.append(search(f, objective.take(index), view, plan, variables, keys))
    return _together(objective, found, None if data is None else scores(f, objective, data))


def _transforms(transforms: Any) -> tuple[Transform, ...]:
    if callable(transforms) or not isinstance(transforms, Iterable):
        came = (
            "one function; put it in a list" if callable(transforms) else type(transforms).__name__
        )
        raise TypeError(
            f"transforms must be a sequence of functions (image, key) -> image, got {came}"
        )
    return tuple(
        _validation.function(f"transforms[{k}]", transform)
        for k, transform in enumerate(transforms)
    )


def _penalties(penalties: Any) -> tuple[tuple[Penalty | OfVariable, Array], ...]:
    if penalties is not None and not isinstance(penalties, Mapping):
        raise TypeError(
            f"penalties must be a dict of weights by penalty, got {type(penalties).__name__}"
        )
    for penalty in penalties or {}:
        _validation.function(
            "a penalty", penalty.penalty if isinstance(penalty, OfVariable) else penalty
        )
    # Arrays, so that another weight is no other program.
    return tuple((penalty, _weight(weight)) for penalty, weight in (penalties or {}).items())


def _weight(weight: Any) -> Array:
    known = weight.item() if getattr(weight, "ndim", None) == 0 else weight
    return jnp.asarray(_validation.number("a penalty's weight", known), jnp.result_type(float))


def _starts(start: Any, image: Image, count: int) -> Array:
    _validation.floating("start", start, rank=(3, 4))
    if start.shape[-3:] != image.shape or (start.ndim == 4 and len(start) != count):
        raise ValueError(
            f"start must have shape {list(image.shape)} or {[count, *image.shape]}, got {list(start.shape)}"
        )
    _validation.finite("start", start)
    _validation.within("start", start, *image.range)
    return jnp.broadcast_to(jnp.asarray(start, jnp.result_type(float)), (count, *image.shape))


def _seen(view: View) -> jax.ShapeDtypeStruct:
    """A batch of one image, as f sees it."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    variables = jax.eval_shape(jax.vmap(view.image.init), keys)
    images = jax.eval_shape(view.images, variables)
    for penalty, _ in view.penalties:
        of, given = (
            (penalty.penalty, variables) if isinstance(penalty, OfVariable) else (penalty, images)
        )
        _validation.scalar(
            "a penalty",
            jax.eval_shape(
                of,
                jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), given),
            ),
        )
    return jax.eval_shape(view.seen, images, keys)


def _room(f: Program, seen: jax.ShapeDtypeStruct) -> int:
    """How many images' intermediate values, and their adjoints, fit in memory together."""
    every = _jaxpr.find_equations(jax.make_jaxpr(f)(seen), lambda _: True)
    values: list[Any] = [variable.aval for site in every for variable in site.equation.outvars]
    used = 2 * sum(
        value.size * value.dtype.itemsize
        for value in values
        if jnp.issubdtype(value.dtype, jnp.floating)
    )
    return max(1, _BYTES_AT_ONCE // max(used, 1))


def _batches(count: int, batch_size: int, devices: int) -> list[np.ndarray]:
    """Batches of one size, which the devices divide; the last is filled up with its last image: nothing is compiled again for it."""
    size = -(-count // -(-count // (batch_size * devices)))
    size = -(-size // devices) * devices
    return [
        np.minimum(np.arange(first, first + size), count - 1) for first in range(0, count, size)
    ]


def _together(
    objective: Objective, found: Sequence[Found], on_data: np.ndarray | None
) -> Visualization:
    count, steps = len(objective), max(len(batch.history) for batch in found)
    images, variables, own = jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves)[:count],
        *((batch.images, batch.variables, batch.scores) for batch in found),
    )
    history = [
        np.pad(batch.history, ((0, steps - len(batch.history)), (0, 0)), constant_values=np.nan)
        for batch in found
    ]
    endings = [ending for batch in found for ending in batch.endings]
    percentiles = None if on_data is None else 100 * (on_data < np.asarray(own)[:, None]).mean(1)
    return Visualization(
        images,
        objective.names,
        np.asarray(own),
        np.concatenate(history, axis=1)[:, :count],
        percentiles,
        variables,
        tuple(endings[:count]),
    )
