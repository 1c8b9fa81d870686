"""Batched L-BFGS in a box: every example has its own history and its own line search.

    v_{k+1} = P(v_k + t d),     d = -H g on the free coordinates,     P clips to the box

with v_k the iterate, g the gradient of the objective at v_k and t the step size. A coordinate is
free unless it is at a bound and -g points out of the box. The two-loop recursion multiplies by H,
the inverse Hessian estimated from the last steps and gradient changes on the free coordinates. t is
halved from 1 until the objective has decreased enough (Armijo's condition). Examples for which no t
decreases it keep v_k.

Source: D. Bertsekas, "Projected Newton methods for optimization problems with simple constraints",
1982; J. Nocedal, "Updating quasi-Newton matrices with limited storage", 1980.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from diffprog.adversarial._base import Flat, PerExample, select, zero_nonfinite

History = Float[Array, "memory batch n"]
Objective = Callable[[Flat], tuple[PerExample, Any]]

_ARMIJO = 1e-4
_MAX_TRIALS = 20
_INITIAL_STEP_LENGTH = 0.1  # in widths of the box


class State(NamedTuple):
    """State of the L-BFGS minimizations of a batch of examples.

    Attributes:
        point: (batch, n), the iterates.
        value: (batch,), the objective at the iterates.
        aux: the second output of the objective at the iterates.
        gradient: (batch, n), the gradient at the iterates.
        steps: (memory, batch, n), the last differences of iterates, newest last; zero where there
            have been fewer steps.
        gradient_changes: (memory, batch, n), the corresponding differences of gradients.
        gradients: (batch,), the number of gradient evaluations.
    """

    point: Flat
    value: PerExample
    aux: Any
    gradient: Flat
    steps: History
    gradient_changes: History
    gradients: Integer[Array, "batch"]


def init(objective: Objective, point: Flat, memory: int) -> State:
    """Create the state of the minimizations at their starting points, with an empty history.

    `objective` is a function point (batch, n) -> (values (batch,), any further output); `memory` is
    the number of past steps to keep.
    """
    value, aux, gradient = _value_and_gradient(objective, point)
    empty = jnp.zeros((memory, *point.shape), point.dtype)
    return State(point, value, aux, gradient, empty, empty, jnp.ones(len(point), int))


def step(objective: Objective, low: Flat, high: Flat, state: State) -> State:
    """Take one L-BFGS step per example inside the bounds low .. high; return the new state.

    Examples stay where they are if the line search finds no decrease of the objective.
    """
    new, decreased = _line_search(objective, low, high, state, _direction(low, high, state))
    step, change = new.point - state.point, new.gradient - state.gradient
    # Pairs of no positive curvature would make H indefinite and are left out.
    eps = jnp.finfo(step.dtype).eps
    curved = decreased & (_dot(step, change) > eps * _dot(change, change))

    def append(history: History, row: Flat) -> History:
        return jnp.where(curved[:, None], jnp.concatenate([history[1:], row[None]]), history)

    return new._replace(
        steps=append(state.steps, step), gradient_changes=append(state.gradient_changes, change)
    )


def _value_and_gradient(objective: Objective, point: Flat) -> tuple[PerExample, Any, Flat]:
    def total(point: Flat) -> tuple[Array, Any]:
        value, aux = objective(point)
        return value.sum(), (value, aux)

    gradient, (value, aux) = jax.grad(total, has_aux=True)(point)
    return value, aux, zero_nonfinite(gradient)


def _dot(a: Flat, b: Flat) -> PerExample:
    return jnp.sum(a * b, axis=-1)


def _direction(low: Flat, high: Flat, state: State) -> Flat:
    """Compute the direction d = -H g, with g the gradient and H the inverse Hessian estimate.

    d is zero on coordinates at a bound where -g points out of the box. Examples for which d is not
    a descent direction use a multiple of -g instead.
    """
    gradient = state.gradient
    free = jnp.where(gradient > 0, state.point > low, state.point < high)
    steepest = jnp.where(free, -gradient, 0)
    steps = jnp.where(free, state.steps, 0)
    changes = jnp.where(free, state.gradient_changes, 0)
    initial_scale = (
        _INITIAL_STEP_LENGTH
        * jnp.max(high - low, axis=1)
        / jnp.maximum(jnp.sqrt(_dot(steepest, steepest)), jnp.finfo(gradient.dtype).tiny)
    )
    d = _inverse_hessian_product(steps, changes, initial_scale, steepest)
    return jnp.where((_dot(d, gradient) < 0)[:, None], d, initial_scale[:, None] * steepest)


def _inverse_hessian_product(
    steps: History, changes: History, initial_scale: PerExample, v: Flat
) -> Flat:
    """Multiply v by the inverse Hessian estimate H, by the two-loop recursion of L-BFGS.

    H is estimated from the last steps and the changes of the gradient in them. Without any, it is
    `initial_scale` times the identity.
    """
    curvature = _dot(steps, changes)
    rho = jnp.where(curvature > 0, 1 / jnp.where(curvature > 0, curvature, 1), 0)

    def newest_to_oldest(q: Flat, pair: tuple[Flat, Flat, PerExample]) -> tuple[Flat, PerExample]:
        step, change, rho = pair
        alpha = rho * _dot(step, q)
        return q - alpha[:, None] * change, alpha

    def oldest_to_newest(
        q: Flat, pair: tuple[Flat, Flat, PerExample, PerExample]
    ) -> tuple[Flat, None]:
        step, change, rho, alpha = pair
        return q + (alpha - rho * _dot(change, q))[:, None] * step, None

    q, alpha = jax.lax.scan(newest_to_oldest, v, (steps, changes, rho), reverse=True)
    square = _dot(changes[-1], changes[-1])
    newest_scale = curvature[-1] / jnp.where(square > 0, square, 1)
    scale = jnp.where(rho[-1] > 0, newest_scale, initial_scale)
    return jax.lax.scan(oldest_to_newest, scale[:, None] * q, (steps, changes, rho, alpha))[0]


def _line_search(
    objective: Objective, low: Flat, high: Flat, state: State, d: Flat
) -> tuple[State, Bool[Array, "batch"]]:
    """Halve the step along the direction d until the objective decreases enough.

    Returns the new state, and for each example whether there was such a decrease.
    """

    def attempt(carry: tuple[Array, State, Array]) -> tuple[Array, State, Array]:
        t, best, decreased = carry
        point = jnp.clip(state.point + t * d, low, high)
        value, aux, gradient = _value_and_gradient(objective, point)
        slope = _dot(state.gradient, point - state.point)
        accepted = ~decreased & (slope < 0) & (value <= state.value + _ARMIJO * slope)
        new = select(accepted, (point, value, aux, gradient), best[:4])
        gradients = best.gradients + ~decreased
        best = State(*new, best.steps, best.gradient_changes, gradients)
        return t / 2, best, decreased | accepted

    # Without a direction there is nothing to try.
    stuck = ~(d != 0).any(axis=1)
    unfinished = lambda carry: (carry[0] > 0.5**_MAX_TRIALS) & ~carry[2].all()
    _, best, decreased = jax.lax.while_loop(
        unfinished, attempt, (jnp.ones((), d.dtype), state, stuck)
    )
    return best, decreased & ~stuck
