"""Attribution: what a value of a program owes to another, the input or any node before it.

With s the score that is explained (an output y_j, or any objective) and h what it is attributed to (the input x, or a node):

    saliency              ds/dh
    input x gradient      h ds/dh
    smooth grad           E_n[ds/dh (h + n)],  n ~ N(0, σ²)
    integrated gradients  (h - h') ∫ ds/dh (h' + t (h - h')) dt,  t from 0 to 1; its entries add up to s(h) - s(h')
    guided backprop       ds/dx, where a relu lets only positive gradients through
    grad-CAM              relu(Σ_c mean_{p, q}(ds/dh_c[p, q]) h_c)
    occlusion             s(x) - s(x with a window covered)

Everything is batched: one attribution for each example, of its own score.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from diffprog import _validation, nodes
from diffprog.nodes import find_nodes, trace_program
from diffprog.program import Program, program
from diffprog.visualization._axes import axes_of, first_and_last, moved_back
from diffprog.visualization._evaluate_objective import read_whole, require_readable
from diffprog.visualization._objectives import Objective, Units, custom, logit
from diffprog.visualization._values import depends
from diffprog.visualization.attribution._relu_rules import guided, with_rectifier

Target = Units | Objective | Callable[[Array], Array]
Examples = Float[Array, "batch ..."]
Score = Callable[[Examples], Float[Array, "batch"]]


class Integrated(NamedTuple):
    """Integrated gradients.

    Attributes:
        attribution: of the shape of what it is attributed to.
        gap: (batch,), sum of the attribution - (s(h) - s(h')): what completeness misses for want of quadrature points.
    """

    attribution: Examples
    gap: Float[Array, "batch"]


def saliency(
    f: Callable[..., Any], x: Examples, target: Target, *, at: str | None = None
) -> Examples:
    """ds/dh: the gradient of a score (Simonyan, Vedaldi and Zisserman 2013); take `abs` to see how much, whatever the direction.

    Args:
        f: a program of a batch of examples.
        x: (batch, ...), finite floats.
        target: s: the index j of an output, one for all or one for each example; or an objective, of one image or of the batch, which
            may be about any node: `unit("hidden1", 3)`; or a function of f's output, output -> (batch,).
        at: the node h that it is attributed to; the input by default. It must lie before the target.

    Returns:
        (batch, ...), of the shape of x, or of the node with its images first and its units last.

    Raises:
        TypeError, ValueError: x that is not such, an output that f does not have, a node that it does not have, a target that does not
            depend on `at`.

    >>> saliency(lambda x: x**2, jnp.array([[1.0, 2.0]]), 1)
    Array([[0., 4.]], dtype=float32)
    """
    score, h = _explained(f, x, target, at)
    return _gradient(score, h)


def input_x_gradient(
    f: Callable[..., Any], x: Examples, target: Target, *, at: str | None = None
) -> Examples:
    """h ds/dh (Shrikumar et al. 2016). Args, returns and errors are those of `saliency`.

    >>> input_x_gradient(lambda x: x**2, jnp.array([[1.0, 2.0]]), 1)
    Array([[0., 8.]], dtype=float32)
    """
    score, h = _explained(f, x, target, at)
    return h * _gradient(score, h)


def smooth_grad(
    f: Callable[..., Any],
    x: Examples,
    target: Target,
    *,
    key: jax.Array,
    noise: float = 0.1,
    samples: int = 32,
    at: str | None = None,
) -> Examples:
    """E_n[ds/dh (h + n)], n ~ N(0, σ²): the gradient, averaged over noise (Smilkov et al. 2017).

    Args:
        f, x, target, at: as for `saliency`.
        key: a random key; example i draws from `fold_in(key, i)`.
        noise: σ >= 0 as a share of the range (max h - min h) of each example.
        samples: the number of draws, at least 1.

    >>> smooth_grad(lambda x: 3 * x, jnp.array([[1.0, 2.0]]), 1, key=jax.random.key(0), samples=2)
    Array([[0., 3.]], dtype=float32)
    """
    score, h = _explained(f, x, target, at)
    _validation.key("key", key)
    sigma = jnp.asarray(_validation.number("noise", noise, low=0), h.dtype)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(h)))
    return _smoothed(
        score, h, keys, sigma, jnp.arange(_validation.integer("samples", samples, low=1))
    )


def integrated_gradients(
    f: Callable[..., Any],
    x: Examples,
    target: Target,
    *,
    baseline: ArrayLike = 0.0,
    points: int = 32,
    at: str | None = None,
) -> Integrated:
    """(h - h') ∫ ds/dh (h' + t (h - h')) dt: an attribution that adds up to s(h) - s(h') (Sundararajan, Taly and Yan 2017).

    The integral is taken by Gauss-Legendre quadrature, exact for scores that are polynomials of degree up to 2 points - 1 along the path.

    Args:
        f, x, target, at: as for `saliency`.
        baseline: h', a number, one example for all, or one for each; finite.
        points: the number of gradients for each example, at least 1.

    >>> found = integrated_gradients(lambda x: x**2, jnp.array([[1.0, 2.0]]), 1, points=1)
    >>> print(found.attribution, found.gap)
    [[0. 4.]] [0.]
    """
    score, h = _explained(f, x, target, at)
    _validation.finite("baseline", baseline)
    try:
        start = jnp.broadcast_to(
            jnp.asarray(_validation.array("baseline", baseline), h.dtype), h.shape
        )
    except ValueError:
        raise ValueError(
            f"baseline must fit {list(h.shape)}, got {list(jnp.shape(baseline))}"
        ) from None
    places, weights = np.polynomial.legendre.leggauss(_validation.integer("points", points, low=1))
    return Integrated(
        *_integrated(
            score,
            h,
            start,
            jnp.asarray((places + 1) / 2, h.dtype),
            jnp.asarray(weights / 2, h.dtype),
        )
    )


def guided_backprop(
    f: Callable[..., Any], x: Examples, target: Target, *, at: str | None = None
) -> Examples:
    """ds/dh with every relu letting through only positive gradients (Springenberg et al. 2015).

    It shows edges that any network of this shape would find as well: hold it against `randomise_parameters` before you believe it.
    Args, returns and errors are those of `saliency`; an f without a relu is a ValueError.

    >>> guided_backprop(lambda x: -jax.nn.relu(x), jnp.array([[1.0, 2.0]]), 1) + 0.0
    Array([[0., 0.]], dtype=float32)
    """
    return saliency(with_rectifier(f, guided), x, target, at=at)


def grad_cam(
    f: Callable[..., Any], x: Float[Array, "batch height width channels"], target: Target, node: str
) -> Float[Array, "batch height width"]:
    """relu(Σ_c a_c h_c) with a_c = mean_{p, q} ds/dh_c[p, q]: where in the image a convolution saw what speaks for s.

    Source: Selvaraju et al. 2017.

    For a network that ends in a mean over positions and an affine layer it is CAM, up to the factor 1 / (positions) (Zhou et al. 2016).

    Args:
        f, x, target: as for `saliency`; x are images.
        node: h, a convolution, usually the last, or a tap (batch, p, q, c). It must lie before the target.

    Returns:
        (batch, height, width) of x's dtype, resized linearly from p x q to the images.

    >>> f = lambda x: nodes.tap(x, "h").mean((1, 2))
    >>> grad_cam(f, jnp.ones((1, 2, 2, 1)), 0, "h")[0]
    Array([[0.25, 0.25],
           [0.25, 0.25]], dtype=float32)
    """
    _validation.floating("x", x, rank=4)
    score, h = _explained(f, x, target, node)
    if h.ndim != 4:
        raise ValueError(
            f"node must be of shape (batch, p, q, channels), got {node!r} of {list(h.shape)}"
        )
    strength = _gradient(score, h).mean((1, 2), keepdims=True)
    return jax.image.resize(jax.nn.relu((strength * h).sum(-1)), x.shape[:3], "linear").astype(
        jnp.asarray(x).dtype
    )


def occlusion(
    f: Callable[..., Any],
    x: Float[Array, "batch height width channels"],
    target: Target,
    *,
    window: int | tuple[int, int] = 3,
    stride: int = 1,
    fill: float = 0.0,
) -> Float[Array, "batch height width"]:
    """s(x) - s(x with a window covered), averaged over the windows that cover a pixel (Zeiler and Fergus 2014).

    Args:
        f, x, target: as for `saliency`; x are images.
        window: sides of what is covered, at most those of the image.
        stride: from one window to the next.
        fill: the value it is covered with.

    Returns:
        (batch, height, width); 0 where no window comes.

    >>> print(occlusion(lambda x: x.sum((1, 2)), jnp.arange(4.0).reshape(1, 2, 2, 1), 0, window=1)[0])
    [[0. 1.]
     [2. 3.]]
    """
    _validation.floating("x", x, rank=4)
    score, x = _explained(f, x, target, None)
    rows, columns = _validation.integers(
        "window",
        (window, window) if isinstance(window, int | np.integer) else window,
        least=2,
        most=2,
    )
    stride, fill = _validation.integer("stride", stride, low=1), _validation.number("fill", fill)
    if rows > x.shape[1] or columns > x.shape[2]:
        raise ValueError(
            f"window must fit in an image of {list(x.shape[1:3])}, got {[rows, columns]}"
        )
    corners = [
        (top, left)
        for top in range(0, x.shape[1] - rows + 1, stride)
        for left in range(0, x.shape[2] - columns + 1, stride)
    ]
    covered = np.zeros((len(corners), *x.shape[1:3]), bool)
    for number, (top, left) in enumerate(corners):
        covered[number, top : top + rows, left : left + columns] = True
    return _occluded(score, x, jnp.asarray(covered), jnp.asarray(fill, x.dtype))


def _explained(
    f: Callable[..., Any], x: Any, target: Target, at: str | None
) -> tuple[Program, Array]:
    """The score of each example as a program of h, and the value of h."""
    f = program(f)
    _validation.floating("x", x)
    _validation.batch(x=x)
    _validation.finite("x", x)
    x, objective = jnp.asarray(x), score_of(target, len(x))
    require_readable(f, objective, jax.ShapeDtypeStruct(x.shape, x.dtype))
    units, score, data = (
        tuple(request.units for request in objective.requests),
        objective.score,
        objective.data,
    )
    names = tuple(request.node for request in objective.requests)

    def scores(values: list[Array]) -> Array:
        return score(
            [
                value if own is None else _own_unit(value, own)
                for value, own in zip(values, units, strict=True)
            ],
            data,
        )

    if at is None:
        return program(lambda h: scores(read_whole(f, names, h))), x
    (h,) = read_whole(f, [at], x)
    _require_before(f, x, h, at, names)
    return program(lambda h: scores(_read_after(f, x, h, at, names))), h


@functools.partial(jax.jit, static_argnums=(3, 4))
def _read_after(
    f: Program, x: Array, h: Array, at: str, names: tuple[str | None, ...]
) -> list[Any]:
    """What `read_whole` reads, with h in place of the node `at`."""
    wanted = [name for name in names if name is not None]
    axes = axes_of(f, x, find_nodes([at, *wanted], trace_program(f, (x,))[0]))
    output, values = nodes.intervene(f, {at: moved_back(h, axes[at])}, wanted)(x)
    return [output if name is None else first_and_last(values[name], axes[name]) for name in names]


def _require_before(f: Program, x: Array, h: Array, at: str, names: tuple[str | None, ...]) -> None:
    if not depends(jax.make_jaxpr(lambda h: _read_after(f, x, h, at, names))(h)):
        of = " and ".join("the output" if name is None else repr(name) for name in names)
        raise ValueError(
            f"at must lie before the target, got {at!r}, on which {of} does not depend"
        )


def score_of(target: Target, batch: int) -> Objective:
    """The objective of a batch of examples that a target means."""
    objective = (
        target
        if isinstance(target, Objective)
        else custom(target)
        if callable(target)
        else logit(target)
    )
    if len(objective) not in (1, batch):
        raise ValueError(
            f"target must be one for all examples or one for each of {batch}, got {len(objective)}"
        )
    return objective if len(objective) == batch else objective.take([0] * batch)


def _own_unit(value: Array, units: Array) -> Array:
    at = units.reshape(-1, *(1,) * (value.ndim - 1))
    return jnp.take_along_axis(value, at, axis=-1)[..., 0]


@jax.jit
def _gradient(score: Program, h: Array) -> Array:
    return jax.grad(lambda h: score(h).sum())(h)


@jax.jit
def _smoothed(score: Program, h: Array, keys: jax.Array, sigma: Array, draws: Array) -> Array:
    axes = tuple(range(1, h.ndim))
    spread = sigma * (h.max(axes, keepdims=True) - h.min(axes, keepdims=True))
    noise = jax.vmap(
        lambda key, draw: jax.random.normal(jax.random.fold_in(key, draw), h.shape[1:], h.dtype),
        (0, None),
    )
    add = lambda total, draw: (total + _gradient(score, h + spread * noise(keys, draw)), None)
    return jax.lax.scan(add, jnp.zeros_like(h), draws)[0] / len(draws)


@jax.jit
def _integrated(
    score: Program, h: Array, start: Array, places: Array, weights: Array
) -> tuple[Array, Array]:
    add = lambda total, point: (
        total + point[1] * _gradient(score, start + point[0] * (h - start)),
        None,
    )
    attribution = (h - start) * jax.lax.scan(add, jnp.zeros_like(h), (places, weights))[0]
    return attribution, attribution.sum(tuple(range(1, h.ndim))) - (score(h) - score(start))


@jax.jit
def _occluded(score: Program, x: Array, covered: Array, fill: Array) -> Array:
    effects = jax.lax.map(
        lambda window: score(x) - score(jnp.where(window[..., None], fill, x)), covered
    )
    counts = jnp.maximum(covered.sum(0), 1)
    return jnp.einsum("wb,whv->bhv", effects, covered.astype(x.dtype)) / counts
