"""What an optimizer saw at every step, kept beside its own state, for the pictures: an optax transformation around another."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Integer


class Recorded(NamedTuple):
    """The number of steps taken, what was seen (zeros for what is to come), and the state of the optimizer itself."""

    steps: Integer[Array, ""]
    seen: Any
    optimizer: Any


def recorded(
    optimizer: optax.GradientTransformation,
    steps: int,
    look: Callable[[Any, Any], Any] = lambda params, state: params,
    *,
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, whose state holds what it saw: `look(params, state)`, the parameters before a step and the state after it.

    Args:
        optimizer: of optax.
        steps: how many there will be.
        look: to an array or a pytree of them.
        every: keep the last of so many steps.

    >>> from diffprog import descent
    >>> halving = descent.descent(lambda v, k: 0.5 * v**2, recorded(optax.sgd(0.5), 3))
    >>> descent.run(halving, 8.0, 3).state.optimizer.seen.tolist()
    [8.0, 4.0, 2.0]
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> Recorded:
        state = inner.init(params)
        each = jax.eval_shape(look, params, state)
        return Recorded(
            jnp.int32(0),
            jax.tree.map(lambda one: jnp.zeros((-(-steps // every), *one.shape), one.dtype), each),
            state,
        )

    def update(
        gradient: Any, state: Recorded, params: Any = None, **known: Any
    ) -> tuple[Any, Recorded]:
        updates, moved = inner.update(gradient, state.optimizer, params, **known)
        keep = lambda kept, now: kept.at[state.steps // every].set(jnp.asarray(now, kept.dtype))
        return updates, Recorded(
            state.steps + 1, jax.tree.map(keep, state.seen, look(params, moved)), moved
        )

    return optax.GradientTransformationExtraArgs(init, update)
