"""L-BFGS in a box, for a batch: every example its own history and its own line search.

    v_{k+1} = P(v_k + t d),     d = -H g on the free coordinates,     P clips to the box

A coordinate is free unless it lies on a face of the box that the descent would push it through. H is the inverse Hessian that the last
moves and changes of the gradient, restricted to the free coordinates, make by the two-loop recursion; t is halved from 1 until the value
has fallen by a part of what the gradient promises (Armijo, along the projected path). What ends the search of one example ends none of
another.

Source: D. Bertsekas, "Projected Newton methods for optimization problems with simple constraints", 1982; J. Nocedal, "Updating
quasi-Newton matrices with limited storage", 1980.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from diffprog.adversarial._base import Flat, PerExample
from diffprog.adversarial.minimum_norm._binary_search import finite

History = Float[Array, "memory batch n"]
Cost = Callable[[Flat], tuple[PerExample, Any]]

_ARMIJO, _TRIALS = 1e-4, 20
_FIRST = 0.1  # the length of the first move, in widths of the box


class State(NamedTuple):
    """Where the searches stand.

    Attributes:
        point: (batch, n).
        value: (batch,), the cost there.
        aux: what the cost returned beside it.
        gradient: (batch, n).
        moves: (memory, batch, n), the last moves, the newest last; zero for none.
        changes: (memory, batch, n), of the gradient.
        taken: (batch,), how many gradients were.
    """

    point: Flat
    value: PerExample
    aux: Any
    gradient: Flat
    moves: History
    changes: History
    taken: Integer[Array, "batch"]


def init(cost: Cost, point: Flat, memory: int) -> State:
    """The start."""
    value, aux, gradient = _value_and_gradient(cost, point)
    none = jnp.zeros((memory, *point.shape), point.dtype)
    return State(point, value, aux, gradient, none, none, jnp.ones(len(point), int))


def step(cost: Cost, low: Flat, high: Flat, state: State) -> State:
    """One move of each search; none for one that finds no lower value."""
    new, fell = _line_search(cost, low, high, state, _direction(low, high, state))
    move, change = new.point - state.point, new.gradient - state.gradient
    curved = fell & (_dot(move, change) > jnp.finfo(move.dtype).eps * _dot(change, change))
    push = lambda history, row: jnp.where(
        curved[:, None], jnp.concatenate([history[1:], row[None]]), history
    )
    return new._replace(moves=push(state.moves, move), changes=push(state.changes, change))


def _value_and_gradient(cost: Cost, point: Flat) -> tuple[PerExample, Any, Flat]:
    def total(point: Flat) -> tuple[Array, Any]:
        value, aux = cost(point)
        return value.sum(), (value, aux)

    gradient, (value, aux) = jax.grad(total, has_aux=True)(point)
    return value, aux, finite(gradient)


def _dot(a: Flat, b: Flat) -> PerExample:
    return jnp.sum(a * b, axis=-1)


def _direction(low: Flat, high: Flat, state: State) -> Flat:
    """The quasi-Newton direction on the free coordinates, or steepest descent where it does not descend."""
    gradient = state.gradient
    free = jnp.where(gradient > 0, state.point > low, state.point < high)
    steepest = jnp.where(free, -gradient, 0)
    moves, changes = jnp.where(free, state.moves, 0), jnp.where(free, state.changes, 0)
    first = (
        _FIRST
        * jnp.max(high - low, axis=1)
        / jnp.maximum(jnp.sqrt(_dot(steepest, steepest)), jnp.finfo(gradient.dtype).tiny)
    )
    d = _times_inverse_hessian(moves, changes, first, steepest)
    return jnp.where((_dot(d, gradient) < 0)[:, None], d, first[:, None] * steepest)


def _times_inverse_hessian(moves: History, changes: History, first: PerExample, v: Flat) -> Flat:
    """H v by the two-loop recursion; H is `first` times the identity before there is any history."""
    curvature = _dot(moves, changes)
    rho = jnp.where(curvature > 0, 1 / jnp.where(curvature > 0, curvature, 1), 0)

    def back(q: Flat, pair: tuple[Flat, Flat, PerExample]) -> tuple[Flat, PerExample]:
        move, change, rho = pair
        alpha = rho * _dot(move, q)
        return q - alpha[:, None] * change, alpha

    def forth(q: Flat, pair: tuple[Flat, Flat, PerExample, PerExample]) -> tuple[Flat, None]:
        move, change, rho, alpha = pair
        return q + (alpha - rho * _dot(change, q))[:, None] * move, None

    q, alpha = jax.lax.scan(back, v, (moves, changes, rho), reverse=True)
    square = _dot(changes[-1], changes[-1])
    scale = jnp.where(rho[-1] > 0, curvature[-1] / jnp.where(square > 0, square, 1), first)
    return jax.lax.scan(forth, scale[:, None] * q, (moves, changes, rho, alpha))[0]


def _line_search(
    cost: Cost, low: Flat, high: Flat, state: State, d: Flat
) -> tuple[State, Bool[Array, "batch"]]:
    """The first of v + d, v + d/2, v + d/4 ... whose cost is low enough, and whether there was one."""

    def attempt(
        carried: tuple[Array, State, Bool[Array, "batch"]],
    ) -> tuple[Array, State, Bool[Array, "batch"]]:
        t, reached, fell = carried
        point = jnp.clip(state.point + t * d, low, high)
        value, aux, gradient = _value_and_gradient(cost, point)
        promised = _dot(state.gradient, point - state.point)
        accepted = ~fell & (promised < 0) & (value <= state.value + _ARMIJO * promised)
        seen = reached._replace(point=point, value=value, aux=aux, gradient=gradient)
        pick = lambda new, old: jnp.where(accepted.reshape(-1, *[1] * (old.ndim - 1)), new, old)
        point, value, aux, gradient = jax.tree.map(pick, seen[:4], reached[:4])
        reached = reached._replace(
            point=point, value=value, aux=aux, gradient=gradient, taken=reached.taken + ~fell
        )
        return t / 2, reached, fell | accepted

    smallest = 0.5**_TRIALS
    going = lambda carried: (carried[0] > smallest) & ~carried[2].all()
    begun = jnp.ones((), d.dtype), state, ~(d != 0).any(axis=1)
    _, reached, fell = jax.lax.while_loop(going, attempt, begun)
    return reached, fell & (d != 0).any(axis=1)
