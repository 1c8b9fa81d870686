"""Objectives for optimized images to maximize; they apply to any model with the named nodes.

    logit(j)            y_j(x)                        one output
    unit(node, j)       h_j[p, q](x)                  one unit of a hidden node
    channel(node, c)    mean_{p, q} h_c[p, q](x)      one channel, averaged over positions

A node is an intermediate value h of the model f, found by its name: one marked with `diffprog.tap`,
or an operation such as "conv:3".

An `Objective` lists the nodes that it reads (its requests) and computes one score per image from
their values. A list of units gives a batch with one image per unit. Objectives of equal batches are
combined image by image with `a + b`, `a - b`, `a * b`; one operand can be a number, one number per
image, or an objective of one image, which is used for every image of the batch.

For an objective of your own, pass a function of f's output, make one from a function of node values
with `custom`, or construct an `Objective`, which can have other units and data for each image.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from diffprog import _validation
from diffprog.visualization._read_units import Request

Scores = Float[Array, "batch"]
Units = int | Sequence[int] | np.ndarray | Array


@dataclasses.dataclass(frozen=True)
class Objective:
    """A score to maximize for each image of a batch, computed from values inside the model.

    Attributes:
        requests: intermediate values of the model to read, each with all its units or with one unit
            per image.
        data: pytree of arrays that are passed to `score`, leading axis image.
        score: `score(values, data) -> (batch,)`, where values[k] is the value of requests[k], of
            shape (batch, ..., units), or (batch, ...) for one unit per image.
        names: description of the objective of each image.

    To add a kind of objective, write a function that returns an `Objective`, as below. Other units
    and data do not recompile `visualize`; what `score` closes over is compiled as a constant.

    >>> def peak(node, units):
    ...     score = lambda values, data: values[0].max((1, 2))
    ...     names = tuple(f"peak of {node}[{unit}]" for unit in units)
    ...     return Objective((Request(node, jnp.asarray(units)),), (), score, names)
    >>> (peak("conv2", [3, 5]) - 0.1 * logit(7)).names
    ('peak of conv2[3] - logit[7] * 0.1', 'peak of conv2[5] - logit[7] * 0.1')
    """

    requests: tuple[Request, ...]
    data: Any
    score: Callable[[Sequence[Array], Any], Scores]
    names: tuple[str, ...]

    def __add__(self, other: Any) -> "Objective":
        return _combine(self, "+", operator.add, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> "Objective":
        return _combine(self, "-", operator.sub, other)

    def __rsub__(self, other: Any) -> "Objective":
        return -self + other

    def __mul__(self, other: Any) -> "Objective":
        return _combine(self, "*", operator.mul, other)

    __rmul__ = __mul__

    def __neg__(self) -> "Objective":
        score = self.score
        names = tuple(f"-{name}" for name in self.names)
        negated = lambda values, data: -score(values, data)
        return dataclasses.replace(self, score=negated, names=names)

    # Without this, NumPy would evaluate `array * objective` element by element.
    __array_ufunc__ = None

    def __len__(self) -> int:
        return len(self.names)

    def take(self, images: Sequence[int] | np.ndarray) -> "Objective":
        """Return the objective for the images with these indices, which may repeat."""
        index = np.asarray(images, int)
        requests = tuple(
            request if request.units is None else request._replace(units=request.units[index])
            for request in self.requests
        )
        data = jax.tree.map(lambda leaf: leaf[index], self.data)
        return Objective(requests, data, self.score, tuple(self.names[k] for k in index))


def _combine(
    a: Objective, sign: str, operation: Callable[[Any, Any], Any], other: Any
) -> Objective:
    # Close over scores, not objectives: units and weights must not be compiled in.
    score_a = a.score
    if not isinstance(other, Objective):
        a, numbers = _with_numbers(a, other)
        pairs = zip(a.names, np.asarray(numbers), strict=True)
        score = lambda values, data: operation(score_a(values, data[0]), data[1])
        names = tuple(f"{name} {sign} {number:.3g}" for name, number in pairs)
        return Objective(a.requests, (a.data, numbers), score, names)
    if len(a) != len(other) and 1 not in (len(a), len(other)):
        raise ValueError(f"objectives must be of one batch, got {len(a)} and {len(other)} images")
    batch = max(len(a), len(other))
    a = a if len(a) == batch else a.take([0] * batch)
    b = other if len(other) == batch else other.take([0] * batch)
    count, score_b = len(a.requests), b.score

    score = lambda values, data: operation(
        score_a(values[:count], data[0]), score_b(values[count:], data[1])
    )
    names = tuple(f"{left} {sign} {right}" for left, right in zip(a.names, b.names, strict=True))
    return Objective((*a.requests, *b.requests), (a.data, b.data), score, names)


def _with_numbers(a: Objective, operand: Any) -> tuple[Objective, Array]:
    """Broadcast an objective and a number, or one number per image, to a common batch size.

    Returns (objective, numbers of shape (batch,)).
    """
    name = "an objective's operand"
    numbers = jnp.asarray(_validation.array(name, operand), jnp.result_type(float))
    if not numbers.size:
        raise ValueError(f"{name} must hold at least one number, got none")
    _validation.finite(name, numbers)
    if numbers.ndim > 1 or (
        numbers.ndim == 1 and 1 not in (len(a), len(numbers)) and len(a) != len(numbers)
    ):
        raise ValueError(
            f"{name} must be a number or one for each of its {len(a)} images, "
            f"got an array {list(numbers.shape)}"
        )
    if numbers.ndim == 1 and len(a) == 1:
        a = a.take([0] * len(numbers))
    return a, jnp.broadcast_to(numbers, len(a))


def logit(unit: Units) -> Objective:
    """Objective to maximize an output y_j of the model, such as the logit of a class.

    Args:
        unit: j, an index into the last axis of the output, or a sequence with one for each image.

    >>> (logit(3) - 0.5 * logit([5, 8])).names
    ('logit[3] - logit[5] * 0.5', 'logit[3] - logit[8] * 0.5')
    """
    ids = _unit_indices("unit", unit)
    requests = (Request(None, ids),)
    return Objective(requests, (), lambda values, data: _mean(values[0]), _names("logit", ids))


def unit(node: str, unit: Units, position: Sequence[int] | None = None) -> Objective:
    """Objective to maximize one unit j of a node h at one position, h_j[p, q].

    Args:
        node: name of the node h: a value marked with `diffprog.tap`, or an operation such as
            "conv:3". An operation is read before the activation function, so that a relu does not
            set the gradient to 0.
        unit: j, an index into the last axis of the node, or a sequence with one for each image.
        position: (p, q), an index for each axis between the first and the last; by default the
            middle. A node of shape (batch, units) has no such axes.

    >>> unit("conv2", [0, 1], position=(3, 3)).names
    ('conv2[3, 3, 0]', 'conv2[3, 3, 1]')
    """
    ids = _unit_indices("unit", unit)
    if position is not None and not _is_list(position):
        raise TypeError(
            "position must be an index for each axis between the first and the last, "
            f"got {position!r}"
        )
    fixed = tuple(
        _validation.integer(f"position[{k}]", index, low=0)
        for k, index in enumerate(position or ())
    )
    requests = (Request(_validate_node(node), ids),)
    if position is None:
        middle = lambda value: tuple(size // 2 for size in value.shape[1:])
        score = lambda values, data: _at(values[0], middle(values[0]))
    else:
        score = lambda values, data: _at(values[0], fixed)
    return Objective(requests, (), score, _names(node, ids, *fixed))


def channel(node: str, unit: Units) -> Objective:
    """Objective to maximize a channel c of a node h, averaged over positions.

        mean_{p, q} h_c[p, q]

    Args:
        node: name of a value marked with `tap`, or an operation, as for `unit`.
        unit: c, an index into the last axis of the node, or a sequence with one for each image.

    >>> len(channel("conv2", range(64)))
    64
    """
    ids = _unit_indices("unit", unit)
    requests = (Request(_validate_node(node), ids),)
    return Objective(requests, (), lambda values, data: _mean(values[0]), _names(node, ids))


def direction(node: str, vector: ArrayLike, *, cosine: float = 0.0) -> Objective:
    """Objective to align the units of a node with a direction, averaged over positions.

        mean_{p, q} <h, v> cos(h, v)^cosine,      h = h[p, q], of shape (units,)

    Args:
        node: name of the node h: a value marked with `tap`, or an operation, as for `unit`.
        vector: direction v, finite floats (units,), or (images, units) with one for each image.
        cosine: exponent >= 0 of the cosine, applied where the cosine is positive. The larger it is,
            the more the direction of h matters compared with its length.

    >>> direction("hidden1", jnp.ones((2, 5))).names
    ('hidden1 along 0', 'hidden1 along 1')
    """
    exponent = _validation.number("cosine", cosine, low=0)
    _validation.floating("vector", vector, rank=(1, 2))
    _validation.finite("vector", vector)
    vectors = jnp.atleast_2d(jnp.asarray(vector))
    _validation.batch(vector=vectors)

    def score(values: Sequence[Array], data: Array) -> Scores:
        if data.shape[-1] != values[0].shape[-1]:
            raise ValueError(
                f"vector must have one number for each of the {values[0].shape[-1]} units of "
                f"{node!r}, got {data.shape[-1]}"
            )
        v = data.reshape(len(data), *(1,) * (values[0].ndim - 2), -1)
        return _mean(_product_with_cosine(values[0], v, exponent))

    names = tuple(f"{node} along {k}" for k in range(len(vectors)))
    return Objective((Request(_validate_node(node), None),), vectors, score, names)


def deep_dream(node: str) -> Objective:
    """DeepDream objective: the mean square of a node's values (Mordvintsev, Olah and Tyka, 2015).

    It amplifies every activation.

    Args:
        node: name of a value marked with `tap`, or an operation, as for `unit`.

    >>> deep_dream("conv2").names
    ('more of conv2',)
    """
    requests = (Request(_validate_node(node), None),)
    score = lambda values, data: _mean(jnp.square(values[0]))
    return Objective(requests, (), score, (f"more of {node}",))


def inversion(node: str, target: ArrayLike) -> Objective:
    """Objective to reconstruct images from the values of a node (Mahendran and Vedaldi, 2015).

        -||h(x) - h*||² / ||h*||²

    Args:
        node: name of the node h: a value marked with `tap`, or an operation, as for `unit`.
        target: h*, the node's values for the images to reconstruct, from `read_units`;
            (images, ..., units), finite.

    >>> inversion("conv2", jnp.ones((1, 8, 8, 64))).names
    ('conv2 of 0',)
    """
    targets = _validate_target(target)

    def score(values: Sequence[Array], data: Array) -> Scores:
        _validation.same_shape(node=values[0], target=data)
        scale = jnp.maximum(_sum(jnp.square(data)), jnp.finfo(data.dtype).tiny)
        return -_sum(jnp.square(values[0] - data)) / scale

    names = tuple(f"{node} of {k}" for k in range(len(targets)))
    return Objective((Request(_validate_node(node), None),), targets, score, names)


def caricature(node: str, target: ArrayLike, *, cosine: float = 1.0) -> Objective:
    """Objective to exaggerate what a node represents of given images.

        <h(x), h*> / ||h*|| · cos(h(x), h*)^cosine

    Args:
        node: name of the node h: a value marked with `tap`, or an operation, as for `unit`.
        target: h*, the node's values for the given images, from `read_units`;
            (images, ..., units), finite.
        cosine: exponent >= 0 of the cosine, applied where the cosine is positive.

    >>> caricature("conv2", jnp.ones((1, 8, 8, 64))).names
    ('conv2 of 0',)
    """
    exponent, targets = _validation.number("cosine", cosine, low=0), _validate_target(target)

    def score(values: Sequence[Array], data: Array) -> Scores:
        _validation.same_shape(node=values[0], target=data)
        h, h_star = (array.reshape(len(array), -1) for array in (values[0], data))
        h_star = h_star / jnp.maximum(_norm(h_star), 1e-12)[:, None]
        return _product_with_cosine(h, h_star, exponent)

    names = tuple(f"{node} of {k}" for k in range(len(targets)))
    return Objective((Request(_validate_node(node), None),), targets, score, names)


def diversity(node: str) -> Objective:
    """Objective to make the images of a batch differ in style at a node.

        -mean_{j ≠ i} cos(G(x_i), G(x_j))

    G = hᵀ h, summed over positions, is the Gram matrix of the units of node h.

    Add it, with a weight, to an objective of several images of the same unit:
    `channel("conv2", [3] * 4) + 0.1 * diversity("conv2")`. It compares only images that are
    optimized together: all of them, unless `batch_size` of `visualize`, by default limited by
    memory, is smaller.

    >>> diversity("conv2").names
    ('diversity of conv2',)
    """

    def score(values: Sequence[Array], data: Any) -> Scores:
        h = values[0].reshape(len(values[0]), -1, values[0].shape[-1])
        grams = jnp.einsum("npc,npd->ncd", h, h).reshape(len(h), -1)
        grams = grams / jnp.maximum(_norm(grams), 1e-12)[:, None]
        cosines = grams @ grams.T
        return -(cosines.sum(1) - cosines.diagonal()) / max(len(h) - 1, 1)

    return Objective((Request(_validate_node(node), None),), (), score, (f"diversity of {node}",))


def alignment(node: str) -> Objective:
    """Objective to make neighbouring images of a batch similar at a node h.

        -mean_{j = i ± 1} mean (h(x_i) - h(x_j))²

    Add it to an interpolation, so that consecutive images change as little as possible.

    >>> (interpolate(logit(3), logit(8), 5) + alignment("conv2")).names[2]
    'logit[3] * 0.5 + logit[8] * 0.5 + alignment of conv2'
    """

    def score(values: Sequence[Array], data: Any) -> Scores:
        h = values[0].reshape(len(values[0]), -1)
        differences = jnp.square(jnp.diff(h, axis=0)).mean(1)
        # Two neighbours, but one for the first and last image (and none, divided by 1, if alone).
        k = np.arange(len(h))
        neighbours = np.minimum(np.minimum(k, k[::-1]), 1) + 1
        return -(jnp.pad(differences, (0, 1)) + jnp.pad(differences, (1, 0))) / neighbours

    return Objective((Request(_validate_node(node), None),), (), score, (f"alignment of {node}",))


def interpolate(a: Objective, b: Objective, images: int) -> Objective:
    """Interpolate two objectives over a batch: image k maximizes (1 - t) a + t b, t from 0 to 1.

    Args:
        a: objective of one image; the first image maximizes it.
        b: objective of one image; the last image maximizes it.
        images: number of images in the batch, at least 2.

    >>> interpolate(logit(3), logit(8), 3).names[1]
    'logit[3] * 0.5 + logit[8] * 0.5'
    """
    for name, objective in {"a": a, "b": b}.items():
        if not isinstance(objective, Objective) or len(objective) != 1:
            came = (
                f"one of {len(objective)} images"
                if isinstance(objective, Objective)
                else type(objective).__name__
            )
            raise ValueError(f"{name} must be an objective of one image, got {came}")
    t = jnp.linspace(0, 1, _validation.integer("images", images, low=2))
    return a * (1 - t) + b * t


def custom(score: Callable[..., Scores], *nodes: str, name: str = "custom") -> Objective:
    """Make an objective from a function of the values of nodes, or of the model's output.

    Args:
        score: pure function that returns one float per image, (batch,). It takes one argument for
            each node, of shape (batch, ..., units).
        nodes: names of values marked with `tap`, or operations, as for `unit`; if none are given,
            `score` takes the output of the model.
        name: description of the objective.

    >>> from diffprog.visualization import pixels, visualize
    >>> f = lambda x: x.reshape(len(x), -1)
    >>> spread = custom(lambda outputs: outputs.std(1), name="spread")
    >>> result = visualize(f, spread, pixels((1, 2, 1)), key=jax.random.key(0), steps=100)
    >>> print(result)
    spread: 0.5
    >>> sparse = custom(lambda h: -jnp.abs(h).mean((1, 2, 3)), "conv2")
    >>> (channel("conv2", [3, 5]) + 0.1 * sparse).names
    ('conv2[3] + custom * 0.1', 'conv2[5] + custom * 0.1')
    """
    _validation.function("score", score)
    requests = tuple(Request(_validate_node(node), None) for node in nodes)
    requests = requests or (Request(None, None),)
    return Objective(requests, (), lambda values, data: score(*values), (name,))


def as_objective(objective: Any) -> Objective:
    """Convert a function of the model's output to an objective; return objectives unchanged."""
    if isinstance(objective, Objective):
        return objective
    if not callable(objective):
        empty = isinstance(objective, Sequence) and not objective
        raise TypeError(
            "objective must be one Objective, such as logit([3, 5]), or a function of f's output, "
            f"got {'an empty ' if empty else ''}{type(objective).__name__}"
        )
    return custom(objective)


def _validate_node(node: Any) -> str:
    if not isinstance(node, str) or not node:
        raise TypeError(f"node must be the name of a node, got {node!r}")
    return node


def _unit_indices(name: str, value: Any) -> Array:
    """Convert a unit index, or a sequence of them, to an array with one index >= 0 per image.

    `name` is the name of the argument for error messages.
    """
    if isinstance(value, int | np.integer) or getattr(value, "ndim", None) == 0:
        value = [value]
    if not _is_list(value):
        raise TypeError(
            f"{name} must be an index or a sequence of indices, got {type(value).__name__}"
        )
    indices = [_validation.integer(f"{name}[{k}]", index, low=0) for k, index in enumerate(value)]
    if not indices:
        raise ValueError(f"{name} must hold at least one index, got none")
    if max(indices) > np.iinfo(np.int32).max:
        raise ValueError(f"{name} must hold indices, got {max(indices)}")
    return jnp.asarray(indices, jnp.int32)


def _is_list(value: Any) -> bool:
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
    return is_sequence or getattr(value, "ndim", None) == 1


def _names(node: str, ids: Array, *position: int) -> tuple[str, ...]:
    return tuple(
        f"{node}[{', '.join(map(str, (*position, unit)))}]" for unit in np.asarray(ids).tolist()
    )


def _validate_target(target: Any) -> Array:
    _validation.floating("target", target)
    _validation.finite("target", target)
    _validation.batch(target=target)
    return jnp.asarray(target)


def _mean(value: Array) -> Scores:
    return value.reshape(len(value), -1).mean(1)


def _sum(value: Array) -> Scores:
    return value.reshape(len(value), -1).sum(1)


def _at(value: Array, position: tuple[int, ...]) -> Scores:
    if len(position) != value.ndim - 1 or any(
        index >= size for index, size in zip(position, value.shape[1:], strict=True)
    ):
        raise ValueError(
            f"position must lie in a node of {list(value.shape[1:])} positions, "
            f"got {list(position)}"
        )
    return value[(slice(None), *position)]


def _norm(value: Array) -> Array:
    """Compute the Euclidean norm over the last axis, with gradient 0 at 0."""
    squares = jnp.square(value).sum(-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def _product_with_cosine(h: Array, v: Array, exponent: float) -> Array:
    """Compute <h, v> cos(h, v)^exponent over the last axis; <h, v> where the cosine is <= 0."""
    product = (h * v).sum(-1)
    if exponent == 0:
        return product
    cosine = product / jnp.maximum(_norm(h) * _norm(v), 1e-12)
    # Where the cosine is not positive its power would be undefined; the product alone still
    # increases h along v.
    return product * jnp.where(cosine > 0, jnp.where(cosine > 0, cosine, 1) ** exponent, 1)
