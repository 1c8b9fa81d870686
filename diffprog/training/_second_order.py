"""Update rules beside those of optax: the second derivative for the length and direction of a step, and a step that is only tried.

    newton_cg        d = -(H + λ I)⁻¹ g,                H = d²J/dθ²
    gauss_newton     d = -(Jᵀ H_L J + λ I)⁻¹ g,         J = dz/dθ of the outputs z, H_L = d²L/dz² of the loss: never negative for a convex L
    random_search    θ + σ ε, kept where J is no higher

No matrix is formed: conjugate gradients ask for products with vectors alone, H v as the derivative of the gradient along v. They end where
the curvature along their direction is not positive, so that d always descends. A rule is an optax transformation; a line search after it
says how far to go, `optax.chain(newton_cg(), optax.scale_by_backtracking_linesearch(20))`.

Source: lecture 000, "zeroth, first and second order"; J. Martens, "Deep learning via Hessian-free optimization", 2010.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffprog import _validation

Product = Callable[[Any], Any]


def newton_cg(
    *, damping: float = 1e-3, iterations: int = 20, tolerance: float = 1e-2
) -> optax.GradientTransformationExtraArgs:
    """Newton's direction by conjugate gradients, d = -(H + λ I)⁻¹ g, in Hessian-vector products.

    Args:
        damping: λ >= 0.
        iterations: of conjugate gradients, at most; a Hessian-vector product each.
        tolerance: they end where the residual is so much smaller than the gradient.

    Raises:
        TypeError, ValueError: numbers out of their range.

    >>> from diffprog import descent
    >>> ravine = descent.descent(lambda w, k: w[0] ** 2 + 50 * w[1] ** 2, newton_cg(damping=0.0))
    >>> abs(descent.run(ravine, jnp.array([3.0, 1.0]), 2).variable).max() < 1e-5
    Array(True, dtype=bool)
    """
    solve = _solver(damping, iterations, tolerance)

    def update(
        gradient: Any,
        state: optax.EmptyState,
        params: Any = None,
        *,
        grad_fn: Callable[[Any], Any],
        **_: Any,
    ) -> Any:
        return solve(lambda v: jax.jvp(grad_fn, (params,), (v,))[1], gradient), state

    return optax.GradientTransformationExtraArgs(_nothing, update)


def gauss_newton(
    outputs: Callable[[Any, Any], Any],
    loss: Callable[[Any, Any], Array],
    *,
    damping: float = 1e-3,
    iterations: int = 20,
    tolerance: float = 1e-2,
) -> optax.GradientTransformationExtraArgs:
    """The Gauss-Newton direction by conjugate gradients, d = -(Jᵀ H_L J + λ I)⁻¹ g, for the cost loss(outputs(θ, x), x).

    Args:
        outputs: (params, x) -> z, what the network says of what the step sees.
        loss: (z, x) -> float scalar, convex in z.
        damping: λ >= 0.
        iterations: of conjugate gradients, at most.
        tolerance: they end where the residual is so much smaller than the gradient.

    Raises:
        TypeError, ValueError: functions that cannot be called, numbers out of their range.

    Source: N. Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002.

    >>> from diffprog import descent
    >>> rule = gauss_newton(lambda w, x: w**2, lambda z, x: ((z - x) ** 2).sum(), damping=0.0)
    >>> fit = descent.descent(lambda w, x: ((w**2 - x) ** 2).sum(), rule)
    >>> descent.run(fit, jnp.ones(1), jnp.full((6, 1), 4.0)).variable
    Array([2.], dtype=float32)
    """
    _validation.function("outputs", outputs)
    _validation.function("loss", loss)
    solve = _solver(damping, iterations, tolerance)

    def update(
        gradient: Any, state: optax.EmptyState, params: Any = None, *, x: Any, **_: Any
    ) -> Any:
        # Reverse mode twice, and not forward mode, which hand-written backward passes do not have.
        z, pull = jax.vjp(lambda params: outputs(params, x), params)
        back = jax.linear_transpose(lambda dz: pull(dz)[0], z)
        push = lambda v: back(v)[0]
        curvature = lambda dz: jax.jvp(jax.grad(lambda z: loss(z, x)), (z,), (dz,))[1]
        return solve(lambda v: pull(curvature(push(v)))[0], gradient), state

    return optax.GradientTransformationExtraArgs(_nothing, update)


class Searching(NamedTuple):
    """The key of the next try."""

    key: jax.Array


def random_search(key: jax.Array, *, scale: float = 0.01) -> optax.GradientTransformationExtraArgs:
    """The oldest rule: try θ + σ ε with normal ε, and stay where the cost would rise.

    Args:
        key: a random key.
        scale: σ, in the units of the parameters.

    Raises:
        TypeError, ValueError: no key, scale <= 0.

    Source: L. Rastrigin, "The convergence of the random search method in the extremal control of a many parameter system", 1963.

    >>> from diffprog import descent
    >>> bowl = descent.descent(lambda w, k: w**2, random_search(jax.random.key(0), scale=0.1))
    >>> bool((jnp.diff(descent.run(bowl, 1.0, 50).costs) <= 0).all())
    True
    """
    _validation.key("key", key)
    width = _validation.number("scale", scale, above=0)

    def update(
        gradient: Any,
        state: Searching,
        params: Any = None,
        *,
        value: Array,
        value_fn: Callable[[Any], Array],
        **_: Any,
    ) -> Any:
        kept, drawn = jax.random.split(state.key)
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(drawn, len(leaves))
        steps = [
            width * jax.random.normal(key, leaf.shape, leaf.dtype)
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        tried = jax.tree.unflatten(structure, steps)
        lower = value_fn(optax.apply_updates(params, tried)) <= value
        return jax.tree.map(lambda step: jnp.where(lower, step, 0), tried), Searching(kept)

    return optax.GradientTransformationExtraArgs(lambda params: Searching(key), update)


def _nothing(params: Any) -> optax.EmptyState:
    return optax.EmptyState()


def _solver(damping: float, iterations: int, tolerance: float) -> Callable[[Product, Any], Any]:
    """(v -> H v, g) -> d with (H + λ I) d = -g as far as the curvature is positive."""
    shift = _validation.number("damping", damping, low=0)
    most, small = (
        _validation.integer("iterations", iterations, low=1),
        _validation.number("tolerance", tolerance, above=0),
    )

    def solve(product: Product, gradient: Any) -> Any:
        size = _dot(gradient, gradient)

        def going(now: _Conjugate) -> Array:
            return (now.taken < most) & (now.square > small**2 * size) & now.convex

        def step(now: _Conjugate) -> _Conjugate:
            bent = jax.tree.map(lambda h, v: h + shift * v, product(now.along), now.along)
            curvature = _dot(now.along, bent)
            convex = curvature > 0
            # The first direction is the steepest: where even that is not convex, a step of its own length is as good as any.
            length = jnp.where(
                convex,
                now.square / jnp.where(convex, curvature, 1),
                jnp.where(now.taken == 0, 1, 0),
            )
            d = jax.tree.map(lambda d, v: d + length.astype(d.dtype) * v, now.d, now.along)
            residual = jax.tree.map(lambda r, h: r - length.astype(r.dtype) * h, now.residual, bent)
            square = _dot(residual, residual)
            along = jax.tree.map(
                lambda r, v: r + (square / now.square).astype(r.dtype) * v, residual, now.along
            )
            return _Conjugate(d, residual, along, square, now.taken + 1, convex)

        down = jax.tree.map(jnp.negative, gradient)
        begin = _Conjugate(
            jax.tree.map(jnp.zeros_like, gradient), down, down, size, jnp.int32(0), jnp.bool_(True)
        )
        return jax.lax.while_loop(going, step, begin).d

    return solve


class _Conjugate(NamedTuple):
    """Where conjugate gradients stand: the solution so far, its residual, the next direction, the residual's square, steps, convexity."""

    d: Any
    residual: Any
    along: Any
    square: Array
    taken: Array
    convex: Array


def _dot(a: Any, b: Any) -> Array:
    return jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, a, b))
