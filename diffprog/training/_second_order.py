"""Second-order update rules by conjugate gradients, and random search.

    newton_cg        d = -(H + λ I)⁻¹ g
    gauss_newton     d = -(Jᵀ H_L J + λ I)⁻¹ g
    random_search    d = σ ε if that does not increase the cost, otherwise d = 0

d is the update of the parameters θ; g and H are gradient and Hessian of the cost. J = dz/dθ is the
Jacobian of the outputs z of the network, and H_L = d²L/dz² the Hessian of the loss L. λ is the
damping and ε normal noise.

No matrix is formed: conjugate gradients need only products H v, the derivative of the gradient
along v. They stop at a direction of nonpositive curvature, so that d is a descent direction; the
Gauss-Newton matrix of a convex L has none. Each rule is an optax transformation. A line search
after it sets the step length: `optax.chain(newton_cg(),
optax.scale_by_backtracking_linesearch(20))`.

Source: lecture 000, "zeroth, first and second order"; J. Martens, "Deep learning via Hessian-free
optimization", 2010.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffprog import _validation

MatrixVectorProduct = Callable[[Any], Any]


def newton_cg(
    *, damping: float = 1e-3, iterations: int = 20, tolerance: float = 1e-2
) -> optax.GradientTransformationExtraArgs:
    """Newton's method with conjugate gradients (Hessian-free optimization).

        d = -(H + λ I)⁻¹ g

    g and H are gradient and Hessian of the cost, d is the update of the parameters.

    Args:
        damping: λ >= 0.
        iterations: maximum number of conjugate gradient iterations, each of one Hessian-vector
            product.
        tolerance: stop when the norm of the residual is at most this times that of the gradient.

    Returns:
        An optax optimizer, for `training.fit` or `diffprog.descent`.

    Raises:
        TypeError, ValueError: a number out of its range.

    >>> from diffprog import descent
    >>> ravine = descent.descent(lambda w, k: w[0] ** 2 + 50 * w[1] ** 2, newton_cg(damping=0.0))
    >>> abs(descent.run(ravine, jnp.array([3.0, 1.0]), 2).variable).max() < 1e-5
    Array(True, dtype=bool)
    """
    solve = _conjugate_gradients(damping, iterations, tolerance)

    def update(
        gradient: Any,
        state: optax.EmptyState,
        params: Any = None,
        *,
        grad_fn: Callable[[Any], Any],
        **_: Any,
    ) -> Any:
        return solve(lambda v: jax.jvp(grad_fn, (params,), (v,))[1], gradient), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def gauss_newton(
    outputs: Callable[[Any, Any], Any],
    loss: Callable[[Any, Any], Array],
    *,
    damping: float = 1e-3,
    iterations: int = 20,
    tolerance: float = 1e-2,
) -> optax.GradientTransformationExtraArgs:
    """Gauss-Newton method with conjugate gradients (Schraudolph, 2002).

        d = -(Jᵀ H_L J + λ I)⁻¹ g           for the cost loss(outputs(θ, x), x)

    g is the gradient of the cost, J the Jacobian of the outputs with respect to the parameters θ,
    H_L the Hessian of the loss with respect to the outputs, and d the update of the parameters.

    Args:
        outputs: `outputs(params, x) -> z`, the outputs of the network; x is the batch of the step.
        loss: `loss(z, x)`, a float scalar, convex in z.
        damping: λ >= 0.
        iterations: maximum number of conjugate gradient iterations.
        tolerance: stop when the norm of the residual is at most this times that of the gradient.

    Returns:
        An optax optimizer, for `training.fit` or `diffprog.descent`.

    Raises:
        TypeError, ValueError: a function that is not callable, a number out of its range.

    Source: N. Schraudolph, "Fast curvature matrix-vector products for second-order gradient
    descent", 2002.

    >>> from diffprog import descent
    >>> rule = gauss_newton(lambda w, x: w**2, lambda z, x: ((z - x) ** 2).sum(), damping=0.0)
    >>> fit = descent.descent(lambda w, x: ((w**2 - x) ** 2).sum(), rule)
    >>> descent.run(fit, jnp.ones(1), jnp.full((6, 1), 4.0)).variable
    Array([2.], dtype=float32)
    """
    _validation.function("outputs", outputs)
    _validation.function("loss", loss)
    solve = _conjugate_gradients(damping, iterations, tolerance)

    def update(
        gradient: Any, state: optax.EmptyState, params: Any = None, *, x: Any, **_: Any
    ) -> Any:
        # J v by transposing the vjp: hand-written backward passes have no forward mode.
        z, vjp = jax.vjp(lambda params: outputs(params, x), params)
        jvp = jax.linear_transpose(lambda dz: vjp(dz)[0], z)
        loss_hvp = lambda dz: jax.jvp(jax.grad(lambda z: loss(z, x)), (z,), (dz,))[1]
        return solve(lambda v: vjp(loss_hvp(jvp(v)[0]))[0], gradient), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


class RandomSearchState(NamedTuple):
    """Optimizer state of random search: the PRNG key of the next random step."""

    key: jax.Array


def random_search(key: jax.Array, *, scale: float = 0.01) -> optax.GradientTransformationExtraArgs:
    """Random search (Rastrigin, 1963): accept random steps that do not increase the cost.

    A step from parameters θ goes to θ + σ ε with normal noise ε, or is rejected and stays at θ.

    Args:
        key: PRNG key of the noise.
        scale: σ > 0, in units of the parameters.

    Returns:
        An optax optimizer, for `training.fit` or `diffprog.descent`.

    Raises:
        TypeError, ValueError: not a key, scale <= 0.

    Source: L. Rastrigin, "The convergence of the random search method in the extremal control of a
    many parameter system", 1963.

    >>> from diffprog import descent
    >>> bowl = descent.descent(lambda w, k: w**2, random_search(jax.random.key(0), scale=0.1))
    >>> bool((jnp.diff(descent.run(bowl, 1.0, 50).costs) <= 0).all())
    True
    """
    _validation.key("key", key)
    scale = _validation.number("scale", scale, above=0)

    def update(
        gradient: Any,
        state: RandomSearchState,
        params: Any = None,
        *,
        value: Array,
        value_fn: Callable[[Any], Array],
        **_: Any,
    ) -> Any:
        next_key, trial_key = jax.random.split(state.key)
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(trial_key, len(leaves))
        trial = jax.tree.unflatten(
            structure,
            [
                scale * jax.random.normal(key, leaf.shape, leaf.dtype)
                for key, leaf in zip(keys, leaves, strict=True)
            ],
        )
        accepted = value_fn(optax.apply_updates(params, trial)) <= value
        updates = jax.tree.map(lambda leaf: jnp.where(accepted, leaf, 0), trial)
        return updates, RandomSearchState(next_key)

    return optax.GradientTransformationExtraArgs(lambda params: RandomSearchState(key), update)


class _CGState(NamedTuple):
    """State of a conjugate gradient iteration, for parameters as pytrees.

    `is_convex` tells whether the curvature along the last direction was positive.
    """

    solution: Any
    residual: Any
    direction: Any
    residual_norm_squared: Array
    iteration: Array
    is_convex: Array


def _conjugate_gradients(
    damping: float, iterations: int, tolerance: float
) -> Callable[[MatrixVectorProduct, Any], Any]:
    """Build a conjugate gradient solver of (H + λ I) d = -g, as a function (v -> H v, g) -> d.

    λ is `damping`. The solver stops at nonpositive curvature, after `iterations` iterations, or
    when the residual is at most `tolerance` times the norm of g.
    """
    damping = _validation.number("damping", damping, low=0)
    iterations = _validation.integer("iterations", iterations, low=1)
    tolerance = _validation.number("tolerance", tolerance, above=0)

    def solve(product: MatrixVectorProduct, gradient: Any) -> Any:
        gradient_norm_squared = _dot(gradient, gradient)

        def goes_on(state: _CGState) -> Array:
            exceeds_tolerance = state.residual_norm_squared > tolerance**2 * gradient_norm_squared
            return (state.iteration < iterations) & exceeds_tolerance & state.is_convex

        def iterate(state: _CGState) -> _CGState:
            direction = state.direction
            image = jax.tree.map(lambda h, v: h + damping * v, product(direction), direction)
            curvature = _dot(direction, image)
            is_convex = curvature > 0
            # The first direction is -g. If even its curvature is not positive, the result is -g.
            length = jnp.where(
                is_convex,
                state.residual_norm_squared / jnp.where(is_convex, curvature, 1),
                jnp.where(state.iteration == 0, 1, 0),
            )
            solution = _add_scaled(state.solution, length, direction)
            residual = _add_scaled(state.residual, -length, image)
            norm_squared = _dot(residual, residual)
            ratio = norm_squared / state.residual_norm_squared
            direction = _add_scaled(residual, ratio, direction)
            return _CGState(
                solution, residual, direction, norm_squared, state.iteration + 1, is_convex
            )

        descent_direction = jax.tree.map(jnp.negative, gradient)
        start = _CGState(
            jax.tree.map(jnp.zeros_like, gradient),
            descent_direction,
            descent_direction,
            gradient_norm_squared,
            jnp.int32(0),
            jnp.bool_(True),
        )
        return jax.lax.while_loop(goes_on, iterate, start).solution

    return solve


def _add_scaled(tree: Any, scale: Array, other: Any) -> Any:
    return jax.tree.map(lambda a, b: a + scale.astype(a.dtype) * b, tree, other)


def _dot(a: Any, b: Any) -> Array:
    return jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, a, b))
