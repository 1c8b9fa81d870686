"""Gradient attributions: the contribution of each value of the input, or of a node, to a score.

s is the score: an output y_j, an objective, or a function of the output. h is the input x, or a
node: an intermediate value of the model, such as a convolution. h' is a baseline.

    saliency              ds/dh
    input_x_gradient      h ds/dh
    smooth_grad           E_n[ds/dh (h + n)],  with noise n ~ N(0, σ²)
    integrated_gradients  (h - h') ∫₀¹ ds/dh (h' + t (h - h')) dt
    guided_backprop       ds/dh, where each relu passes on positive gradients only
    grad_cam              relu(Σ_c mean_{p, q}(ds/dh_c[p, q]) h_c),  channels c, positions (p, q)

Each example of a batch has its own score and its own attribution.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from diffprog import _validation
from diffprog.program import Program
from diffprog.visualization.attribution._relu_rules import guided, with_rectifier
from diffprog.visualization.attribution._target import Examples, Target, score_program


class Integrated(NamedTuple):
    """Result of `integrated_gradients`: the attribution and its completeness gap.

    Attributes:
        attribution: attribution of each value of the input or the node, of the same shape.
        gap: (batch,), completeness gap: the sum of the attribution minus the difference of the
            scores at the input and at the baseline. It is the error of the quadrature.
    """

    attribution: Examples
    gap: Float[Array, "batch"]


def saliency(
    f: Callable[..., Any], x: Examples, target: Target, *, at: str | None = None
) -> Examples:
    """Saliency: the gradient ds/dh of a score (Simonyan, Vedaldi and Zisserman, 2013).

    Args:
        f: model of a batch of examples.
        x: input, (batch, ...), finite floats.
        target: the score s: index j of an output, one for all examples or one for each; or an
            objective such as `unit("hidden1", 3)`, for one image or one per example; or a
            function of the output, output -> (batch,).
        at: name of the node h, an intermediate value that the target must depend on (named with
            `tap`, or an operation such as "conv:0"). Default: h is the input.

    Returns:
        (batch, ...), the signed gradient: same shape as x, or as the node with its batch axis
        first and its units last.

    Raises:
        TypeError, ValueError: x is not a batch of finite floats, f does not have the output or the
            node, or the target does not depend on `at`.

    >>> saliency(lambda x: x**2, jnp.array([[1.0, 2.0]]), 1)
    Array([[0., 4.]], dtype=float32)
    """
    return _gradient(*score_program(f, x, target, at))


def input_x_gradient(
    f: Callable[..., Any], x: Examples, target: Target, *, at: str | None = None
) -> Examples:
    """Input x gradient: the input times the gradient of a score (Shrikumar et al., 2016).

        h ds/dh,      s: the score,  h: the input, or the node `at`

    The arguments (model f, input x, target, node `at`), the result (same shape as h) and the errors
    are those of `saliency`.

    >>> input_x_gradient(lambda x: x**2, jnp.array([[1.0, 2.0]]), 1)
    Array([[0., 8.]], dtype=float32)
    """
    score, h = score_program(f, x, target, at)
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
    """SmoothGrad: the gradient averaged over Gaussian input noise (Smilkov et al., 2017).

        E_n[ds/dh (h + n)],      n ~ N(0, σ²),      s: the score,  h: the input, or the node `at`

    Args:
        f, x, target, at: model, input, score and node, as for `saliency`.
        key: PRNG key; example i uses `fold_in(key, i)`.
        noise: σ as a fraction of the range, max h - min h, of each example; at least 0.
        samples: number of noise samples, at least 1.

    Returns:
        Averaged gradient (batch, ...), of the same shape as h.

    >>> smooth_grad(lambda x: 3 * x, jnp.array([[1.0, 2.0]]), 1, key=jax.random.key(0), samples=2)
    Array([[0., 3.]], dtype=float32)
    """
    score, h = score_program(f, x, target, at)
    _validation.key("key", key)
    sigma = jnp.asarray(_validation.number("noise", noise, low=0), h.dtype)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(h)))
    indices = jnp.arange(_validation.integer("samples", samples, low=1))
    return _mean_gradient(score, h, keys, sigma, indices)


def integrated_gradients(
    f: Callable[..., Any],
    x: Examples,
    target: Target,
    *,
    baseline: ArrayLike = 0.0,
    points: int = 32,
    at: str | None = None,
) -> Integrated:
    """Integrated gradients from a baseline to the input (Sundararajan, Taly and Yan, 2017).

        attribution = (h - h') ∫₀¹ ds/dh (h' + t (h - h')) dt

    s is the score, h the input or the node `at`, and h' the baseline. Completeness: the attribution
    sums to s(h) - s(h'). The integral is computed by Gauss-Legendre quadrature, exact if the
    gradient along the path is a polynomial of degree at most 2 · points - 1.

    Args:
        f, x, target, at: model, input, score and node, as for `saliency`.
        baseline: h', a finite number, one array for all examples, or one for each.
        points: number of quadrature points, each one gradient evaluation; at least 1.

    Returns:
        `Integrated`: the attribution, of the shape of h, and its completeness gap.

    >>> result = integrated_gradients(lambda x: x**2, jnp.array([[1.0, 2.0]]), 1, points=1)
    >>> print(result.attribution, result.gap)
    [[0. 4.]] [0.]
    """
    score, h = score_program(f, x, target, at)
    _validation.finite("baseline", baseline)
    start = jnp.asarray(_validation.array("baseline", baseline), h.dtype)
    try:
        start = jnp.broadcast_to(start, h.shape)
    except ValueError:
        raise ValueError(
            f"baseline must broadcast to shape {list(h.shape)}, got shape {list(start.shape)}"
        ) from None
    points = _validation.integer("points", points, low=1)
    abscissas, weights = np.polynomial.legendre.leggauss(points)
    times = jnp.asarray((abscissas + 1) / 2, h.dtype)
    return Integrated(*_integrate(score, h, start, times, jnp.asarray(weights / 2, h.dtype)))


def guided_backprop(
    f: Callable[..., Any], x: Examples, target: Target, *, at: str | None = None
) -> Examples:
    """Guided backpropagation: relus pass on positive gradients only (Springenberg et al., 2015).

    The result is a gradient like that of `saliency`, with the same arguments and shape, but mostly
    shows edges, also for untrained networks: test it with `randomise_parameters`. Errors are those
    of `saliency`; a model f without a relu raises ValueError.

    >>> guided_backprop(lambda x: -jax.nn.relu(x), jnp.array([[1.0, 2.0]]), 1) + 0.0
    Array([[0., 0.]], dtype=float32)
    """
    return saliency(with_rectifier(f, guided), x, target, at=at)


def grad_cam(
    f: Callable[..., Any], x: Float[Array, "batch height width channels"], target: Target, node: str
) -> Float[Array, "batch height width"]:
    """Grad-CAM: gradient-weighted class activation map of a convolution (Selvaraju et al., 2017).

        relu(Σ_c a_c h_c),      a_c = mean_{p, q} ds/dh_c[p, q]

    s is the score and h_c channel c of the node, at positions (p, q). For a network that ends in
    global average pooling and an affine layer, this is the class activation map of Zhou et al.
    (2016), divided by the number of positions.

    Args:
        f, target: model and score, as for `saliency`.
        x: images, finite floats.
        node: name of h, usually the last convolution, such as "conv:3", or a value named with `tap`
            of shape (batch, p, q, channels). The target must depend on it.

    Returns:
        (batch, height, width), nonnegative, with the dtype of x, resized linearly from (p, q).

    >>> from diffprog.nodes import tap
    >>> f = lambda x: tap(x, "h").mean((1, 2))
    >>> grad_cam(f, jnp.ones((1, 2, 2, 1)), 0, "h")[0]
    Array([[0.25, 0.25],
           [0.25, 0.25]], dtype=float32)
    """
    _validation.floating("x", x, rank=4)
    score, h = score_program(f, x, target, node)
    if h.ndim != 4:
        raise ValueError(
            f"node must have shape (batch, p, q, channels), got {node!r} of shape {list(h.shape)}"
        )
    weights = _gradient(score, h).mean((1, 2), keepdims=True)
    activation_map = jax.nn.relu((weights * h).sum(-1))
    resized = jax.image.resize(activation_map, x.shape[:3], "linear")
    return resized.astype(jnp.asarray(x).dtype)


@jax.jit
def _gradient(score: Program, h: Array) -> Array:
    return jax.grad(lambda h: score(h).sum())(h)


@jax.jit
def _mean_gradient(
    score: Program, h: Array, keys: jax.Array, sigma: Array, indices: Array
) -> Array:
    """Average the gradient of the score at h + Gaussian noise over samples.

    `sigma` is the standard deviation of the noise as a fraction of the range of each example. Each
    entry of `indices` gives one sample, drawn for example i from `fold_in(keys[i], index)`.
    """
    axes = tuple(range(1, h.ndim))
    deviation = sigma * (h.max(axes, keepdims=True) - h.min(axes, keepdims=True))

    def add(total: Array, index: Array) -> tuple[Array, None]:
        sample = lambda key: jax.random.normal(jax.random.fold_in(key, index), h.shape[1:], h.dtype)
        return total + _gradient(score, h + deviation * jax.vmap(sample)(keys)), None

    return jax.lax.scan(add, jnp.zeros_like(h), indices)[0] / len(indices)


@jax.jit
def _integrate(
    score: Program, h: Array, start: Array, times: Array, weights: Array
) -> tuple[Array, Array]:
    """Integrate the gradient of the score from `start` to h; return (attribution, its gap).

    `times` and `weights` are the quadrature points in [0, 1] and their weights. The gap is the sum
    of the attribution minus the difference of the scores at h and `start`.
    """

    def add(total: Array, point: tuple[Array, Array]) -> tuple[Array, None]:
        time, weight = point
        return total + weight * _gradient(score, start + time * (h - start)), None

    attribution = (h - start) * jax.lax.scan(add, jnp.zeros_like(h), (times, weights))[0]
    return attribution, attribution.sum(tuple(range(1, h.ndim))) - (score(h) - score(start))
