"""Descent when only the cost itself can be asked: its gradient estimated from values, or a step tried and kept where it is no worse.

    antithetic    g = 1/(2nσ) Σ_i (J(θ + σ ε_i) - J(θ - σ ε_i)) ε_i,      ε_i normal: evolution strategies, in mirrored pairs
    spsa          g = 1/n Σ_i (J(θ + c Δ_i) - J(θ - c Δ_i)) / (2c) Δ_i,   Δ_i of fair signs

Both have the gradient of a smoothed cost for a mean, J as it is convolved with the noise, so J need not be differentiable. An estimate is a
cost like any other, whose gradient under `jax.grad` is the estimate: the engine descends on it, with any optax optimizer.

Source: lecture 000, "zeroth order: only J is known".
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog.program import Program, program

Cost = Callable[..., Float[Array, ""]]
Draw = Callable[[jax.Array, tuple[int, ...], Any], Array]


def antithetic(cost: Cost, *, samples: int = 16, scale: float = 0.01) -> Cost:
    """The cost with the gradient that evolution strategies estimate, from pairs of values at mirrored normal perturbations.

    Args:
        cost: (params, *args) -> float scalar. It is never differentiated.
        samples: n, pairs; an estimate asks for 2n + 1 values.
        scale: σ, in the units of the parameters.

    Returns:
        A function (params, *args, key) -> float scalar, the value that of `cost`; its gradient exists for the parameters alone.

    Raises:
        TypeError, ValueError: a cost that cannot be called, samples < 1, scale <= 0; on the call: no key.

    Source: T. Salimans et al., "Evolution strategies as a scalable alternative to reinforcement learning", 2017.

    >>> estimated = antithetic(lambda w: w @ w, samples=4096)
    >>> jax.grad(estimated)(jnp.array([1.0, -2.0]), key=jax.random.key(0)).round().tolist()
    [2.0, -4.0]
    """
    return _estimated(cost, jax.random.normal, samples, scale)


def spsa(cost: Cost, *, samples: int = 1, scale: float = 0.01) -> Cost:
    """The cost with the gradient that simultaneous perturbation estimates: all parameters at once, each by plus or minus c.

    Args:
        cost: (params, *args) -> float scalar. It is never differentiated.
        samples: n, pairs; an estimate asks for 2n + 1 values, however many parameters there are.
        scale: c, in the units of the parameters.

    Returns:
        A function (params, *args, key) -> float scalar, the value that of `cost`; its gradient exists for the parameters alone.

    Raises:
        TypeError, ValueError: a cost that cannot be called, samples < 1, scale <= 0; on the call: no key.

    Source: J. Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient approximation", 1992.

    >>> estimated = spsa(lambda w: 3 * w)
    >>> round(float(jax.grad(estimated)(1.0, key=jax.random.key(0))), 2)
    3.0
    """
    return _estimated(cost, jax.random.rademacher, samples, scale)


def _estimated(cost: Cost, draw: Draw, samples: int, scale: float) -> Cost:
    _validation.function("cost", cost)
    count, width = (
        _validation.integer("samples", samples, low=1),
        _validation.number("scale", scale, above=0),
    )

    def estimated(params: Any, *args: Any, key: jax.Array) -> Float[Array, ""]:
        _validation.floating_leaves("params", params)
        _validation.key("key", key)
        return _value(program(cost), draw, count, params, args, key, jnp.asarray(width))

    return estimated


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _value(
    cost: Program,
    draw: Draw,
    count: int,
    params: Any,
    args: tuple[Any, ...],
    key: jax.Array,
    scale: Array,
) -> Array:
    value = jnp.asarray(cost(params, *args))
    _validation.scalar("cost", value)
    return value


@_value.defjvp
def _pushed(draw: Draw, count: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    cost, params, args, key, scale = primals
    gradient = _gradient(cost, draw, count, params, args, key, scale)
    value, along = (
        _value(cost, draw, count, *primals[1:]),
        jax.tree.map(jnp.vdot, gradient, tangents[1]),
    )
    return value, sum(jax.tree.leaves(along), start=jnp.zeros((), value.dtype)).astype(value.dtype)


def _gradient(
    cost: Program,
    draw: Draw,
    count: int,
    params: Any,
    args: tuple[Any, ...],
    key: jax.Array,
    scale: Array,
) -> Any:
    leaves, structure = jax.tree.flatten(params)

    def pair(k: Array, total: list[Array]) -> list[Array]:
        keys = jax.random.split(jax.random.fold_in(key, k), len(leaves))
        noise = [
            draw(key, jnp.shape(leaf), leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)
        ]
        moved = lambda sign: [
            p + (sign * scale * e).astype(p.dtype) for p, e in zip(leaves, noise, strict=True)
        ]
        at = lambda sign: cost(jax.tree.unflatten(structure, moved(sign)), *args)
        slope = (at(1) - at(-1)) / (2 * scale * count)
        return [kept + slope.astype(e.dtype) * e for kept, e in zip(total, noise, strict=True)]

    leaves = [jnp.asarray(leaf) for leaf in leaves]
    return jax.tree.unflatten(
        structure, jax.lax.fori_loop(0, count, pair, [jnp.zeros_like(leaf) for leaf in leaves])
    )
