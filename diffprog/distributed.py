"""Run on several devices and processes: meshes, and the sharding of arrays on them.

A mesh is a grid of devices with named axes. Its first axis divides examples: each device holds the
parameters and its share of a batch. A partition rule can divide parameters too, along any axis.
JAX's compiler adds the communication, so a function on a mesh computes the same as on one device.

    mesh = dp.distributed.mesh()
    dp.training.fit(..., mesh=mesh)
    attack(program, x, y, key=key, mesh=mesh)
    dp.visualization.visualize(..., mesh=mesh)

With several processes, on one host or many, each calls `initialize` first and then runs the same
script; `mesh()` then spans the devices of all.
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
    """Connect the processes of a distributed run, as `jax.distributed.initialize` does.

    Call it once in every process, before any other use of JAX. The timeout is shorter than JAX's:
    if one process dies, the others raise within a minute. On clusters that JAX knows, no arguments
    are needed.

    Args:
        coordinator_address: "host:port" of process 0, such as "10.0.0.1:1234".
        num_processes: number of processes.
        process_id: number of this process, from 0.
        heartbeat_timeout_seconds: silence after which a process counts as dead.
        options: other arguments of `jax.distributed.initialize`.

    Raises:
        TypeError, ValueError: an address that is not "host:port", a process_id out of range.
    """
    if coordinator_address is not None and (
        not isinstance(coordinator_address, str)
        or not coordinator_address.rpartition(":")[2].isdigit()
    ):
        raise ValueError(f"coordinator_address must be 'host:port', got {coordinator_address!r}")
    if num_processes is not None:
        _validation.integer("num_processes", num_processes, low=1)
    if process_id is not None:
        _validation.integer("process_id", process_id, low=0)
        if process_id >= (num_processes or math.inf):
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
    """Make a `jax.sharding.Mesh` of devices, whose first axis divides the examples of a batch.

    Args:
        axes: length of each axis by name, such as {"batch": 4, "model": 2}; by default all devices
            along "batch".
        devices: devices to use; by default all. The first ones fill the mesh.

    Raises:
        TypeError, ValueError: axes that are not a dict of positive integers, devices that are not
            JAX's, more devices than there are.

    >>> mesh({"batch": 1}).axis_names
    ('batch',)
    """
    available = list(jax.devices() if devices is None else devices)
    if not (axes is None or isinstance(axes, Mapping)) or not all(
        isinstance(device, jax.Device) for device in available
    ):
        raise TypeError(
            "axes must be a dict of lengths by name, and devices those of JAX, "
            f"got {axes!r} and {available!r:.60}"
        )
    axes = {"batch": len(available)} if axes is None else dict(axes)
    lengths = _validation.integers("axes", tuple(axes.values()), least=1)
    count = math.prod(lengths)
    if count > len(available):
        raise ValueError(
            f"axes must make at most {len(available)} devices, as many as there are, got {axes}"
        )
    return _auto_mesh(np.array(available[:count]).reshape(lengths), tuple(axes))


def _auto_mesh(devices: np.ndarray, names: tuple[str, ...]) -> Mesh:
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))


def validate_mesh(mesh: Any) -> Mesh:
    """Check that `mesh` is a mesh, and return it with axes of type Auto.

    On Auto axes JAX's compiler adds the communication: functions are written as for one device.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(
            "mesh must be a jax.sharding.Mesh, such as distributed.mesh(), "
            f"got {type(mesh).__name__}"
        )
    return _auto_mesh(mesh.devices, mesh.axis_names)


def batch_axis_size(mesh: Mesh) -> int:
    """Return the number of shards into which a mesh divides a batch."""
    return mesh.shape[mesh.axis_names[0]]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its leading axis is divided over the first mesh axis."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Replicate every array of a pytree on all devices of a mesh."""
    return jax.tree.map(lambda leaf: put(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def shard_batch(mesh: Mesh, tree: Any) -> Any:
    """Shard every array of a pytree along its leading axis over the first axis of a mesh.

    The length of that mesh axis must divide the number of examples.
    """
    return jax.tree.map(lambda leaf: put(leaf, batch_sharding(mesh)), tree)


def partition_shardings(mesh: Mesh, rule: Partition | None, tree: Any) -> Any:
    """Return a pytree of shardings: the one that a partition rule gives to each array of `tree`.

    Args:
        mesh: the mesh of devices.
        rule: `rule(path, shape_and_dtype) -> PartitionSpec`, with paths such as "affine1/weight";
            None replicates all arrays.
        tree: a pytree of arrays.

    Raises:
        TypeError: the rule does not return a PartitionSpec.
        ValueError: a PartitionSpec does not fit its array.
    """

    def sharding_of(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)
        spec = PartitionSpec() if rule is None else rule(name, shape)
        if not isinstance(spec, PartitionSpec):
            raise TypeError(
                "partition must return a jax.sharding.PartitionSpec, "
                f"got {type(spec).__name__} for {name!r}"
            )
        try:
            sharding = NamedSharding(mesh, spec)
            sharding.check_compatible_aval(shape.shape)
            sharding.shard_shape(shape.shape)
        except ValueError as error:
            raise ValueError(
                "partition must fit the parameters, "
                f"got {spec} for {name!r} of shape {list(shape.shape)}"
            ) from error
        return sharding

    return jax.tree_util.tree_map_with_path(sharding_of, tree)


def put(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Put an array on the devices of a sharding, and return the sharded array.

    With several processes each must pass the same whole array, and copies the part of its devices.
    """
    is_global = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if sharding.is_fully_addressable or is_global:
        return jax.device_put(leaf, sharding)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf)
        )
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def all_gather(tree: Any) -> Any:
    """Replicate every sharded array of a pytree on all devices of its mesh."""

    def gather(leaf: Any) -> Any:
        is_sharded = isinstance(leaf, jax.Array) and not leaf.is_fully_replicated
        if not is_sharded or not isinstance(leaf.sharding, NamedSharding):
            return leaf
        return put(leaf, NamedSharding(leaf.sharding.mesh, PartitionSpec()))

    return jax.tree.map(gather, tree)


def parallel_over_batch(f: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function f of batches to divide the examples over the devices of a mesh.

    f treats each example, on the leading axis of every array, on its own. If the first argument of
    a call is replicated on a mesh, all arguments are sharded and the results gathered on every
    device. If it is not on a mesh, or already sharded, f is called unchanged.

    >>> parallel_over_batch(lambda x: 2 * x)(np.arange(3)).tolist()
    [0, 2, 4]
    """

    def parallel(*args: Any) -> Any:
        leaf = jax.tree.leaves(args[0])[0]
        is_traced = isinstance(leaf, jax.core.Tracer)
        mesh = None if is_traced else getattr(getattr(leaf, "sharding", None), "mesh", None)
        if mesh is None or mesh.size == 1 or not leaf.is_fully_replicated:
            return f(*args)
        # Pad with copies of the last example to a multiple of the number of shards.
        count, shards = len(leaf), batch_axis_size(mesh)
        index = np.minimum(np.arange(-(-count // shards) * shards), count - 1)
        sharded_args = shard_batch(mesh, jax.tree.map(lambda leaf: leaf[index], args))
        return jax.tree.map(lambda leaf: leaf[:count], all_gather(f(*sharded_args)))

    return parallel


def match_shardings(reference: Any, tree: Any) -> Any:
    """Shard an optimizer's state, `tree`, like the parameters that it belongs to, `reference`.

    An array of the state gets the sharding of the parameter with the same shape whose path is the
    end of its own path, as "affine1/weight" of "mu/affine1/weight"; without one it is replicated.
    If no parameter is on a mesh, the state is returned unchanged.
    """
    leaves = jax.tree_util.tree_leaves_with_path(reference)
    shardings = (leaf.sharding for _, leaf in leaves)
    on_mesh = next((s for s in shardings if isinstance(s, NamedSharding)), None)
    if on_mesh is None:
        return tree
    replicated = NamedSharding(on_mesh.mesh, PartitionSpec())

    def match(path: Any, leaf: jax.Array) -> jax.Array:
        matches = (
            other.sharding
            for end, other in leaves
            if path[len(path) - len(end) :] == end and leaf.shape == other.shape
        )
        return put(leaf, next(matches, replicated))

    return jax.tree_util.tree_map_with_path(match, tree)


def shard_like(reference: Any, tree: Any) -> Any:
    """Shard every array of `tree` like the corresponding array of `reference`.

    The compiler chooses the shardings of a compiled loop's outputs; with the loop's inputs as
    `reference`, the outputs get the shardings of the inputs again.
    """
    return jax.tree.map(
        lambda other, leaf: leaf if leaf.sharding == other.sharding else put(leaf, other.sharding),
        reference,
        tree,
    )


def fetch(tree: Any) -> Any:
    """Convert every array of a pytree to NumPy; arrays sharded over processes are gathered."""
    gathered = jax.tree.map(
        lambda leaf: leaf if getattr(leaf, "is_fully_addressable", True) else all_gather(leaf), tree
    )
    return jax.device_get(gathered)
