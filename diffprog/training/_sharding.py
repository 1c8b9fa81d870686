"""Where the arrays of a training lie on a mesh: data and keys on every device, parameters as a rule says, the optimizer's beside them."""

from typing import Any

import jax
from jax.sharding import Mesh

from diffprog import descent, distributed
from diffprog.descent import Descent, State
from diffprog.distributed import Partition


def placed(mesh: Mesh | None, tree: Any) -> Any:
    """Every array whole on every device."""
    return tree if mesh is None else distributed.replicate(mesh, tree)


def kept_in_place(
    engine: Descent, state: State, mesh: Mesh, rule: Partition | None
) -> tuple[Descent, State]:
    """The state divided as the rule says, and a descent that leaves it so."""
    params = jax.tree.map(
        distributed.put, state.variable, distributed.partition_shardings(mesh, rule, state.variable)
    )
    state = State(params, distributed.match_shardings(params, state.optimizer))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)

    def step(state: State, x: Any) -> tuple[State, descent.Info]:
        state, info = engine.step(state, x)
        return jax.lax.with_sharding_constraint(state, shardings), info

    return Descent(engine.init, step), state
