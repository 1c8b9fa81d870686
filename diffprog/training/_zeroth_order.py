"""Zeroth-order gradient estimates, from values of the cost alone.

    antithetic    g = 1/(2nσ) Σ_i (J(θ + σ ε_i) - J(θ - σ ε_i)) ε_i,      ε_i normal
    spsa          g = 1/n Σ_i (J(θ + c Δ_i) - J(θ - c Δ_i)) / (2c) Δ_i,   Δ_i random signs

J is the cost, θ the parameters, n the number of samples, and σ or c the size of the perturbations.
The first is the estimate of evolution strategies, with mirrored pairs of samples. The mean of each
is the gradient of a smoothed cost, J convolved with the noise, so J need not be differentiable.
Each function returns a cost whose gradient under `jax.grad` is the estimate, so that
`diffprog.descent` can minimize it with any optax optimizer.

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
NoiseSampler = Callable[[jax.Array, tuple[int, ...], Any], Array]


def antithetic(cost: Cost, *, samples: int = 16, scale: float = 0.01) -> Cost:
    """Cost whose gradient is the estimate of evolution strategies (Salimans et al., 2017).

        g = 1/(2nσ) Σ_i (J(θ + σ ε_i) - J(θ - σ ε_i)) ε_i,      ε_i normal

    J(θ) is the cost at parameters θ. The pairs of samples are mirrored (antithetic sampling).

    Args:
        cost: `cost(params, *args)`, a float scalar. It is never differentiated.
        samples: number n of pairs; an estimate takes 2n + 1 values of the cost.
        scale: σ > 0, in units of the parameters.

    Returns:
        A function (params, *args, key) that returns the value of `cost`. Its gradient with respect
        to `params` is the estimate g, with noise from `key`; other gradients are zero.

    Raises:
        TypeError, ValueError: a cost that is not callable, samples < 1, scale <= 0; in a call, a
            missing key.

    Source: T. Salimans et al., "Evolution strategies as a scalable alternative to reinforcement
    learning", 2017.

    >>> estimate = antithetic(lambda w: w @ w, samples=4096)
    >>> jax.grad(estimate)(jnp.array([1.0, -2.0]), key=jax.random.key(0)).round().tolist()
    [2.0, -4.0]
    """
    return _estimate_gradient(cost, jax.random.normal, samples, scale)


def spsa(cost: Cost, *, samples: int = 1, scale: float = 0.01) -> Cost:
    """Cost whose gradient is the simultaneous perturbation estimate (SPSA; Spall, 1992).

        g = 1/n Σ_i (J(θ + c Δ_i) - J(θ - c Δ_i)) / (2c) Δ_i,   Δ_i random signs

    J(θ) is the cost at parameters θ.

    Args:
        cost: `cost(params, *args)`, a float scalar. It is never differentiated.
        samples: number n of pairs; an estimate takes 2n + 1 values of the cost, however many
            parameters there are.
        scale: c > 0, in units of the parameters.

    Returns:
        A function (params, *args, key) that returns the value of `cost`. Its gradient with respect
        to `params` is the estimate g, with noise from `key`; other gradients are zero.

    Raises:
        TypeError, ValueError: a cost that is not callable, samples < 1, scale <= 0; in a call, a
            missing key.

    Source: J. Spall, "Multivariate stochastic approximation using a simultaneous perturbation
    gradient approximation", 1992.

    >>> estimate = spsa(lambda w: 3 * w)
    >>> round(float(jax.grad(estimate)(1.0, key=jax.random.key(0))), 2)
    3.0
    """
    return _estimate_gradient(cost, jax.random.rademacher, samples, scale)


def _estimate_gradient(cost: Cost, sample: NoiseSampler, samples: int, scale: float) -> Cost:
    _validation.function("cost", cost)
    samples = _validation.integer("samples", samples, low=1)
    scale = _validation.number("scale", scale, above=0)

    def estimate(params: Any, *args: Any, key: jax.Array) -> Float[Array, ""]:
        _validation.floating_leaves("params", params)
        _validation.key("key", key)
        return _value(program(cost), sample, samples, params, args, key, jnp.asarray(scale))

    return estimate


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _value(
    cost: Program,
    sample: NoiseSampler,
    samples: int,
    params: Any,
    args: tuple[Any, ...],
    key: jax.Array,
    scale: Array,
) -> Array:
    value = jnp.asarray(cost(params, *args))
    _validation.scalar("cost", value)
    return value


@_value.defjvp
def _value_jvp(
    sample: NoiseSampler, samples: int, primals: Any, tangents: Any
) -> tuple[Array, Array]:
    cost, params, args, key, scale = primals
    value = _value(cost, sample, samples, *primals[1:])
    leaves, structure = jax.tree.flatten(params)
    leaves = [jnp.asarray(leaf) for leaf in leaves]

    def add_pair(k: Array, gradient: list[Array]) -> list[Array]:
        keys = jax.random.split(jax.random.fold_in(key, k), len(leaves))
        noise = [
            sample(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)
        ]

        def cost_at(sign: int) -> Array:
            perturbed = [
                p + (sign * scale * e).astype(p.dtype) for p, e in zip(leaves, noise, strict=True)
            ]
            return cost(jax.tree.unflatten(structure, perturbed), *args)

        slope = (cost_at(1) - cost_at(-1)) / (2 * scale * samples)
        return [g + slope.astype(e.dtype) * e for g, e in zip(gradient, noise, strict=True)]

    zeros = [jnp.zeros_like(leaf) for leaf in leaves]
    gradient = jax.lax.fori_loop(0, samples, add_pair, zeros)
    products = map(jnp.vdot, gradient, jax.tree.leaves(tangents[1]))
    return value, sum(products, start=jnp.zeros((), value.dtype)).astype(value.dtype)
