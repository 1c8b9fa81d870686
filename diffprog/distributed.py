"""Many devices, many processes: where arrays lie while one program runs on all of them.

A mesh is a grid of devices with named axes. Its first axis divides examples: each device has the parameters and sees its share of a
batch. A partition rule may divide parameters too, along any axis. What the devices have to tell one another is JAX's own compiler's affair:
a program says the same on a mesh as on one device.

    mesh = dp.distributed.mesh()
    dp.training.fit(..., mesh=mesh)        attack(program, x, y, key=key, mesh=mesh)        dp.visualization.visualize(..., mesh=mesh)

With several processes, on one host or many, each calls `initialize` first and then runs the same script; `mesh()` then spans them all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffprog import _validation

Partition = Callable[[str, jax.ShapeDtypeStruct], PartitionSpec]


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout_seconds: int = 20,
    **options: Any,
) -> None:
    """`jax.distributed.initialize`, with a shorter patience: when one process dies, the others end with an error within a minute.

    To be called once in every process, before anything else of JAX. On clusters that JAX knows, no argument is needed.

    Args:
        coordinator_address: "host:port" of process 0, such as "10.0.0.1:1234".
        num_processes: how many there are.
        process_id: which one this is, from 0.
        heartbeat_timeout_seconds: how long a process may be silent before it counts as dead.
        options: the other arguments of `jax.distributed.initialize`.

    Raises:
        TypeError, ValueError: an address that is not "host:port", a process that is none of them.
    """
    if coordinator_address is not None and (
        not isinstance(coordinator_address, str)
        or not coordinator_address.rpartition(":")[2].isdigit()
    ):
        raise ValueError(f"coordinator_address must be 'host:port', got {coordinator_address!r}")
    if num_processes is not None:
        _validation.integer("num_processes", num_processes, low=1)
    if process_id is not None and _validation.integer("process_id", process_id, low=0) >= (
        num_processes or math.inf
    ):
        raise ValueError(
            f"process_id must be below num_processes, {num_processes}, got {process_id}"
        )
    _validation.integer("heartbeat_timeout_seconds", heartbeat_timeout_seconds, low=1)
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        **options,
    )


def mesh(
    axes: Mapping[str, int] | None = None, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A grid of devices, whose first axis divides examples.

    Args:
        axes: the length of each axis by name, such as {"batch": 4, "model": 2}; by default all devices along "batch".
        devices: which, as many as the axes make; by default the first so many of all.

    Raises:
        ValueError: lengths that are not positive integers, more devices than there are.

    >>> mesh({"batch": 1}).axis_names
    ('batch',)
    """
    there = list(jax.devices() if devices is None else devices)
    if not (axes is None or isinstance(axes, Mapping)) or not all(
        isinstance(device, jax.Device) for device in there
    ):
        raise TypeError(
            f"axes must be a dict of lengths by name, and devices those of JAX, got {axes!r} and {there!r:.60}"
        )
    axes = {"batch": len(there)} if axes is None else dict(axes)
    lengths = _validation.integers("axes", tuple(axes.values()), least=1)
    if math.prod(lengths) > len(there):
        raise ValueError(
            f"axes must make at most {len(there)} devices, as many as there are, got {axes}"
        )
    return Mesh(
        np.array(there[: math.prod(lengths)]).reshape(lengths),
        tuple(axes),
        axis_types=(AxisType.Auto,) * len(axes),
    )


def validate_mesh(mesh: Any) -> Mesh:
    """The mesh, its axes left to the compiler: whatever type they have, a program on it is written as for one device."""
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh must be a jax.sharding.Mesh, such as distributed.mesh(), got {type(mesh).__name__}"
        )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def batch_axis_size(mesh: Mesh) -> int:
    """Among how many the examples are divided."""
    return mesh.shape[mesh.axis_names[0]]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How arrays with leading axis example lie: each device has its share of them."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Every array whole on every device of the mesh."""
    return jax.tree.map(lambda leaf: put(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def shard_batch(mesh: Mesh, tree: Any) -> Any:
    """Every array divided among the devices along its leading axis, which they must divide."""
    return jax.tree.map(lambda leaf: put(leaf, batch_sharding(mesh)), tree)


def partition_shardings(mesh: Mesh, rule: Partition | None, tree: Any) -> Any:
    """The sharding that a rule gives each array: rule(path, shape and dtype) -> PartitionSpec, with paths such as "affine1/weight"."""

    def of(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = (
            PartitionSpec()
            if rule is None
            else rule(name, jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype))
        )
        if not isinstance(spec, PartitionSpec):
            raise TypeError(
                f"partition must return a jax.sharding.PartitionSpec, got {type(spec).__name__} for {name!r}"
            )
        try:
            sharding = NamedSharding(mesh, spec)
            sharding.check_compatible_aval(np.shape(leaf))
            sharding.shard_shape(np.shape(leaf))
        except ValueError as error:
            raise ValueError(
                f"partition must fit the parameters, got {spec} for {name!r} of shape {list(np.shape(leaf))}"
            ) from error
        return sharding

    return jax.tree_util.tree_map_with_path(of, tree)


def put(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """The array where the sharding says; each process is expected to hold the same one, and copies its own part."""
    is_global = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if sharding.is_fully_addressable or is_global:
        return jax.device_put(leaf, sharding)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf)
        )
    known = np.asarray(leaf)
    return jax.make_array_from_callback(known.shape, sharding, lambda index: known[index])


def all_gather(tree: Any) -> Any:
    """Every array that lies divided, whole on every device that had a part of it."""
    return jax.tree.map(_whole, tree)


def _whole(leaf: Any) -> Any:
    if (
        not isinstance(leaf, jax.Array)
        or leaf.is_fully_replicated
        or not isinstance(leaf.sharding, NamedSharding)
    ):
        return leaf
    return put(leaf, NamedSharding(leaf.sharding.mesh, PartitionSpec()))


def parallel_over_batch(run: Callable[..., Any]) -> Callable[..., Any]:
    """A function of examples that gives something for each, done by all devices on which the examples lie whole: each does its share.

    Examples that no mesh has, or that are divided already, are seen as they are.

    >>> parallel_over_batch(lambda x: 2 * x)(np.arange(3)).tolist()
    [0, 2, 4]
    """

    def each_its_share(*args: Any) -> Any:
        leaf = jax.tree.leaves(args[0])[0]
        grid = (
            None
            if isinstance(leaf, jax.core.Tracer)
            else getattr(getattr(leaf, "sharding", None), "mesh", None)
        )
        if grid is None or grid.size == 1 or not leaf.is_fully_replicated:
            return run(*args)
        count = len(leaf)
        filled = np.minimum(
            np.arange(-(-count // batch_axis_size(grid)) * batch_axis_size(grid)), count - 1
        )
        given = all_gather(run(*shard_batch(grid, jax.tree.map(lambda leaf: leaf[filled], args))))
        return jax.tree.map(lambda leaf: leaf[:count], given)

    return each_its_share


def match_shardings(known: Any, tree: Any) -> Any:
    """Arrays laid beside others: each as that of the known ones whose path its own path ends with, if it has its shape; the rest whole."""
    leaves = jax.tree_util.tree_leaves_with_path(known)
    lying = next(
        (leaf.sharding for _, leaf in leaves if isinstance(leaf.sharding, NamedSharding)), None
    )
    if lying is None:
        return tree

    def of(path: Any, leaf: jax.Array) -> jax.Array:
        mine = (
            kept.sharding
            for end, kept in leaves
            if path[len(path) - len(end) :] == end and leaf.shape == kept.shape
        )
        return put(leaf, next(mine, NamedSharding(lying.mesh, PartitionSpec())))

    return jax.tree_util.tree_map_with_path(of, tree)


def shard_like(known: Any, tree: Any) -> Any:
    """Arrays laid as those of another tree are: what comes out of a compiled loop lies as its compiler found best."""
    return jax.tree.map(
        lambda kept, leaf: leaf if leaf.sharding == kept.sharding else put(leaf, kept.sharding),
        known,
        tree,
    )


def fetch(tree: Any) -> Any:
    """Every array as a NumPy array, whichever processes hold its parts."""
    return jax.device_get(
        jax.tree.map(
            lambda leaf: leaf if getattr(leaf, "is_fully_addressable", True) else _whole(leaf), tree
        )
    )
