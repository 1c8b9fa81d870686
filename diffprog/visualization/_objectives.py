"""Objectives: what an image should excite, said without the model.

    argmax_x  y_j(x)                       logit(j)            one output
    argmax_x  h_j[p, q](x)                 unit(node, j)       one unit of a hidden node
    argmax_x  mean_{p, q} h_c[p, q](x)     channel(node, c)    one channel, wherever in the image

An `Objective` names the values it needs of a program (its requests) and turns them into one score for each image of a batch. A list of ids
makes a batch, one image for each. Objectives of one batch compose image by image: `a + b`, `a - b`, `a * b`, and with numbers or one number
for each image, as in `interpolate`, which is `a * (1 - t) + b * t`. One of a single image goes with any batch.
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
    """What to maximise, for a batch of images.

    Attributes:
        requests: the values it needs, each a node and for each image the unit of it, or the whole node.
        data: whatever else belongs to each image: arrays with leading axis image.
        score: `score(values, data) -> (batch,)`, with `values` as requested, each with leading axis image.
        names: what each image is to show.
    """

    requests: tuple[Request, ...]
    data: Any
    score: Callable[[Sequence[Array], Any], Scores]
    names: tuple[str, ...]

    def __add__(self, other: Any) -> "Objective":
        return _combined(self, "+", operator.add, other)

    def __radd__(self, other: Any) -> "Objective":
        return _combined(self, "+", operator.add, other)

    def __sub__(self, other: Any) -> "Objective":
        return _combined(self, "-", operator.sub, other)

    def __rsub__(self, other: Any) -> "Objective":
        return -self + other

    def __mul__(self, other: Any) -> "Objective":
        return _combined(self, "*", operator.mul, other)

    def __rmul__(self, other: Any) -> "Objective":
        return _combined(self, "*", operator.mul, other)

    def __neg__(self) -> "Objective":
        score = self.score
        return Objective(
            self.requests,
            self.data,
            lambda values, data: -score(values, data),
            tuple(f"-{name}" for name in self.names),
        )

    # NumPy would otherwise take `array * objective` apart, number by number.
    __array_ufunc__ = None

    def __len__(self) -> int:
        return len(self.names)

    def take(self, images: Sequence[int] | np.ndarray) -> "Objective":
        """The same for some of the images, or for one of them several times."""
        index = np.asarray(images, int)
        requests = tuple(
            r if r.units is None else r._replace(units=r.units[index]) for r in self.requests
        )
        return Objective(
            requests,
            jax.tree.map(lambda leaf: leaf[index], self.data),
            self.score,
            tuple(self.names[k] for k in index),
        )


def _combined(
    a: Objective, sign: str, operation: Callable[[Any, Any], Any], other: Any
) -> Objective:
    if not isinstance(other, Objective):
        return _with_numbers(a, sign, operation, other)
    a, b = _of_one_batch(a, other)
    # The scores alone, not the objectives: what a score holds is compiled in, and ids and weights are not to be.
    first, of_a, of_b = len(a.requests), a.score, b.score

    def score(values: Sequence[Array], data: Any) -> Scores:
        return operation(of_a(values[:first], data[0]), of_b(values[first:], data[1]))

    names = tuple(f"{left} {sign} {right}" for left, right in zip(a.names, b.names, strict=True))
    return Objective((*a.requests, *b.requests), (a.data, b.data), score, names)


def _with_numbers(
    a: Objective, sign: str, operation: Callable[[Any, Any], Any], numbers: Any
) -> Objective:
    numbers = jnp.asarray(
        _validation.array("an objective's operand", numbers), jnp.result_type(float)
    )
    if not numbers.size:
        raise ValueError("an objective's operand must hold at least one number, got none")
    _validation.finite("an objective's operand", numbers)
    if numbers.ndim > 1 or (
        numbers.ndim == 1 and 1 not in (len(a), len(numbers)) and len(a) != len(numbers)
    ):
        raise ValueError(
            f"an objective of {len(a)} images goes with a number or one for each image, got an array {list(numbers.shape)}"
        )
    if numbers.ndim == 1 and len(a) == 1:
        a = a.take([0] * len(numbers))
    numbers = jnp.broadcast_to(numbers, len(a))
    names = tuple(
        f"{name} {sign} {number:.3g}"
        for name, number in zip(a.names, np.asarray(numbers), strict=True)
    )
    score = a.score
    return Objective(
        a.requests,
        (a.data, numbers),
        lambda values, data: operation(score(values, data[0]), data[1]),
        names,
    )


def _of_one_batch(a: Objective, b: Objective) -> tuple[Objective, Objective]:
    if len(a) == len(b):
        return a, b
    if 1 not in (len(a), len(b)):
        raise ValueError(f"objectives must be of one batch, got {len(a)} and {len(b)} images")
    return (a.take([0] * len(b)), b) if len(a) == 1 else (a, b.take([0] * len(a)))


def logit(unit: Units) -> Objective:
    """y_j: one output of the program, before any softmax.

    Args:
        unit: j, an index of the last axis of the output, or several, for one image each.

    >>> (logit(3) - 0.5 * logit([5, 8])).names
    ('logit[3] - logit[5] * 0.5', 'logit[3] - logit[8] * 0.5')
    """
    ids = _ids("unit", unit)
    return Objective(
        (Request(None, ids),), (), lambda values, data: _mean(values[0]), _names("logit", ids)
    )


def unit(node: str, unit: Units, position: Sequence[int] | None = None) -> Objective:
    """h_j at one position: a single unit of a node.

    Args:
        node: a tap, or an operation such as "conv:3"; the name of a pre-activation spares you the units that a relu has switched off.
        unit: j, an index of the node's units, or several, for one image each.
        position: where, an index for each axis between the first and the last; the middle by default. A node (batch, units) has none.

    >>> unit("conv2", [0, 1], position=(3, 3)).names
    ('conv2[3, 3, 0]', 'conv2[3, 3, 1]')
    """
    ids = _ids("unit", unit)
    if position is None:
        return Objective(
            (Request(_node(node), ids),),
            (),
            lambda values, data: _middle(values[0]),
            _names(node, ids),
        )
    if not _is_list(position):
        raise TypeError(
            f"position must be an index for each axis between the first and the last, got {position!r}"
        )
    at = tuple(
        _validation.integer(f"position[{k}]", index, low=0) for k, index in enumerate(position)
    )
    requests = (Request(_node(node), ids),)
    return Objective(requests, (), lambda values, data: _at(values[0], at), _names(node, ids, *at))


def channel(node: str, unit: Units) -> Objective:
    """mean_{p, q} h_c[p, q]: a channel of a node, wherever in the image.

    Args:
        node: a tap or an operation.
        unit: c, an index of the node's units, or several, for one image each.

    >>> len(channel("conv2", range(64)))
    64
    """
    ids = _ids("unit", unit)
    return Objective(
        (Request(_node(node), ids),), (), lambda values, data: _mean(values[0]), _names(node, ids)
    )


def direction(node: str, vector: ArrayLike, *, cosine: float = 0.0) -> Objective:
    """mean_{p, q} <h[p, q], v> cos(h[p, q], v)^cosine: a direction in the space of a node's units.

    Args:
        node: a tap or an operation.
        vector: v, finite floats (units,), or (images, units) for one image each.
        cosine: power >= 0 of the cosine (where it is positive), which asks for the direction alone and not for a large h.

    >>> direction("hidden1", jnp.ones((2, 5))).names
    ('hidden1 along 0', 'hidden1 along 1')
    """
    power = _validation.number("cosine", cosine, low=0)
    _validation.floating("vector", vector, rank=(1, 2))
    _validation.finite("vector", vector)
    vectors = jnp.atleast_2d(jnp.asarray(vector))
    _validation.batch(vector=vectors)

    def score(values: Sequence[Array], data: Array) -> Scores:
        if data.shape[-1] != values[0].shape[-1]:
            raise ValueError(
                f"vector must have one number for each of the {values[0].shape[-1]} units of {node!r}, got {data.shape[-1]}"
            )
        toward = data.reshape(len(data), *(1,) * (values[0].ndim - 2), -1)
        return _mean(_along(values[0], toward, -1, power))

    return Objective(
        (Request(_node(node), None),),
        vectors,
        score,
        tuple(f"{node} along {k}" for k in range(len(vectors))),
    )


def deep_dream(node: str) -> Objective:
    """mean h²: whatever a node sees, more of it (Mordvintsev, Olah and Tyka 2015).

    >>> deep_dream("conv2").names
    ('more of conv2',)
    """
    return Objective(
        (Request(_node(node), None),),
        (),
        lambda values, data: _mean(jnp.square(values[0])),
        (f"more of {node}",),
    )


def inversion(node: str, target: ArrayLike) -> Objective:
    """-||h(x) - h*||² / ||h*||²: an image with given values of a node (Mahendran and Vedaldi 2015).

    Args:
        node: a tap or an operation.
        target: h*, the values of the node for some images, as `read_units` returns them: (images, ..., units), finite.

    >>> inversion("conv2", jnp.ones((1, 8, 8, 64))).names
    ('conv2 of 0',)
    """
    targets = _targets(target)

    def score(values: Sequence[Array], data: Array) -> Scores:
        _validation.same_shape(node=values[0], target=data)
        return -_sum(jnp.square(values[0] - data)) / jnp.maximum(
            _sum(jnp.square(data)), jnp.finfo(data.dtype).tiny
        )

    return Objective((Request(_node(node), None),), targets, score, _target_names(node, targets))


def caricature(node: str, target: ArrayLike, *, cosine: float = 1.0) -> Objective:
    """<h(x), h*> / ||h*|| cos(h(x), h*)^cosine: what a node saw in an image, exaggerated.

    Args:
        node: a tap or an operation.
        target: h*, the values of the node for some images, as `read_units` returns them: (images, ..., units), finite.
        cosine: power >= 0 of the cosine.

    >>> caricature("conv2", jnp.ones((1, 8, 8, 64))).names
    ('conv2 of 0',)
    """
    power, targets = _validation.number("cosine", cosine, low=0), _targets(target)

    def score(values: Sequence[Array], data: Array) -> Scores:
        _validation.same_shape(node=values[0], target=data)
        flat = [array.reshape(len(array), -1) for array in (values[0], data)]
        return _along(
            flat[0], flat[1] / jnp.maximum(_length(flat[1], -1), 1e-12)[:, None], -1, power
        )

    return Objective((Request(_node(node), None),), targets, score, _target_names(node, targets))


def diversity(node: str) -> Objective:
    """-mean_{j != i} cos(G(x_i), G(x_j)), G = h^T h over positions: each image of another style at a node than the rest of its batch.

    Add it, with a weight, to an objective that asks several images for the same: `channel("conv2", [3] * 4) + 0.1 * diversity("conv2")`.
    It looks at the images that are made together, which is all of them unless memory is too small (see `visualize`).

    >>> diversity("conv2").names
    ('diversity of conv2',)
    """

    def score(values: Sequence[Array], data: Any) -> Scores:
        h = values[0].reshape(len(values[0]), -1, values[0].shape[-1])
        styles = jnp.einsum("npc,npd->ncd", h, h).reshape(len(h), -1)
        styles = styles / jnp.maximum(_length(styles, -1), 1e-12)[:, None]
        alike = styles @ styles.T
        return -(alike.sum(1) - alike.diagonal()) / max(len(h) - 1, 1)

    return Objective((Request(_node(node), None),), (), score, (f"diversity of {node}",))


def alignment(node: str) -> Objective:
    """-mean over the neighbours j = i ± 1 of mean (h(x_i) - h(x_j))²: neighbouring images of a batch alike, as along an interpolation.

    >>> (interpolate(logit(3), logit(8), 5) + alignment("conv2")).names[2]
    'logit[3] * 0.5 + logit[8] * 0.5 + alignment of conv2'
    """

    def score(values: Sequence[Array], data: Any) -> Scores:
        h = values[0].reshape(len(values[0]), -1)
        steps = jnp.square(jnp.diff(h, axis=0)).mean(1)
        neighbours = np.minimum(np.minimum(np.arange(len(h)), np.arange(len(h))[::-1]), 1) + 1
        return -(jnp.pad(steps, (0, 1)) + jnp.pad(steps, (1, 0))) / neighbours

    return Objective((Request(_node(node), None),), (), score, (f"alignment of {node}",))


def interpolate(a: Objective, b: Objective, images: int) -> Objective:
    """(1 - t) a + t b, with t from 0 to 1 over a batch of images.

    Args:
        a: an objective of one image, the first.
        b: an objective of one image, the last.
        images: how many, at least 2.

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
    """score(values of the nodes, ...) for each image; of the program's output, without nodes.

    Args:
        score: gets the whole value of each node, leading axis image, and returns one number for each image. Pure.
        nodes: taps or operations.
        name: what the image is to show.

    >>> spread = custom(lambda logits: logits[:, 3] - logits.std(1))
    >>> spread.score([jnp.eye(4)], ())
    Array([-0.4330127, -0.4330127, -0.4330127,  0.5669873], dtype=float32)
    """
    _validation.function("score", score)
    requests = tuple(Request(_node(node), None) for node in nodes) or (Request(None, None),)
    return Objective(requests, (), lambda values, data: score(*values), (name,))


def as_objective(objective: Any) -> Objective:
    """An objective, or a function of the program's output as one."""
    if isinstance(objective, Objective):
        return objective
    if not callable(objective):
        raise TypeError(
            f"objective must be one Objective, such as logit([3, 5]), or a function of f's output, got {_short(objective)}"
        )
    return custom(objective)


def _short(value: Any) -> str:
    return (
        f"{'an empty' if not value else 'a'} {type(value).__name__}"
        if isinstance(value, Sequence)
        else type(value).__name__
    )


def _node(node: Any) -> str:
    if not isinstance(node, str) or not node:
        raise TypeError(f"node must be the name of a node, got {node!r}")
    return node


def _ids(name: str, value: Any) -> Array:
    """One image for each id; an id that is too large shows when the program is known."""
    if isinstance(value, int | np.integer) or getattr(value, "ndim", None) == 0:
        value = [value]
    if not _is_list(value):
        raise TypeError(
            f"{name} must be an index or a sequence of indices, got {type(value).__name__}"
        )
    given = list(value)
    if not given:
        raise ValueError(f"{name} must hold at least one index, got none")
    ids = [_validation.integer(f"{name}[{k}]", index, low=0) for k, index in enumerate(given)]
    if max(ids) > np.iinfo(np.int32).max:
        raise ValueError(f"{name} must hold indices, got {max(ids)}")
    return jnp.asarray(ids, jnp.int32)


def _is_list(value: Any) -> bool:
    return (isinstance(value, Sequence) and not isinstance(value, str)) or getattr(
        value, "ndim", None
    ) == 1


def _names(node: str, ids: Array, *position: int) -> tuple[str, ...]:
    return tuple(
        f"{node}[{', '.join(map(str, (*position, unit)))}]" for unit in np.asarray(ids).tolist()
    )


def _targets(target: Any) -> Array:
    _validation.floating("target", target)
    _validation.finite("target", target)
    _validation.batch(target=target)
    return jnp.asarray(target)


def _target_names(node: str, targets: Array) -> tuple[str, ...]:
    return tuple(f"{node} of {k}" for k in range(len(targets)))


def _mean(value: Array) -> Scores:
    return value.reshape(len(value), -1).mean(1)


def _sum(value: Array) -> Scores:
    return value.reshape(len(value), -1).sum(1)


def _middle(value: Array) -> Scores:
    return _at(value, tuple(side // 2 for side in value.shape[1:]))


def _at(value: Array, position: tuple[int, ...]) -> Scores:
    if len(position) != value.ndim - 1 or any(
        index >= side for index, side in zip(position, value.shape[1:], strict=True)
    ):
        raise ValueError(
            f"position must lie in a node of {list(value.shape[1:])} positions, got {list(position)}"
        )
    return value[(slice(None), *position)]


def _length(value: Array, axis: int) -> Array:
    """The Euclidean length, with gradient zero at zero."""
    squares = jnp.square(value).sum(axis)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def _along(h: Array, toward: Array, axis: int, power: float) -> Array:
    product = (h * toward).sum(axis)
    if power == 0:
        return product
    cosine = product / jnp.maximum(_length(h, axis) * _length(toward, axis), 1e-12)
    # Where h points away there is no direction to prefer, but still one to go.
    return product * jnp.where(cosine > 0, jnp.where(cosine > 0, cosine, 1) ** power, 1)
