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


def kept_in_place(engine: Descent, state: State, mesh: Mesh | None, rule: Partition | None) -> tuple[Descent, State]:
    """The state divided as the rule says, and a descent that leaves it so."""
    if mesh is None:
        return engine, state
    parameters = distributed.partitioned(mesh, rule, state.variable)
    shardings = State(parameters, _beside(mesh, parameters, state))

    def step(state: State, x: Any) -> tuple[State, descent.Info]:
        state, info = engine.step(state, x)
        return jax.lax.with_sharding_constraint(state, shardings), info

    return Descent(engine.init, step), jax.tree.map(distributed.put, state, shardings)


def _beside(mesh: Mesh, parameters: Any, state: State) -> Any:
    """The shardings of the optimizer's arrays: those of the parameter whose path theirs ends with, if they have its shape."""
    known = [
        (path, leaf.shape, sharding)
        for (path, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(state.variable), jax.tree.leaves(parameters), strict=True)
    ]

    def of(path: Any, leaf: jax.Array) -> jax.sharding.NamedSharding:
        mine = (sharding for end, shape, sharding in known if path[len(path) - len(end) :] == end and leaf.shape == shape)
        return next(mine, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))

    return jax.tree_util.tree_map_with_path(of, state.optimizer)
