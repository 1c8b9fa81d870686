"""Train on a mesh: python mesh_run.py JSON, with the arguments of `main` as a JSON object.

Prints "begun" when it starts; process 0 saves the result to `out`.
"""

import json
import os
import sys


def main(
    out: str,
    devices: int = 1,
    processes: int = 1,
    process: int = 0,
    port: int = 0,
    model_axis: int = 1,
    source: str = "arrays",
    accumulate: int = 1,
    epochs: int = 2,
    checkpoint: str | None = None,
) -> None:
    os.environ["NPROC"] = "32"  # enough threads for virtual devices to wait for one another
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_platforms", "cpu")
    import numpy as np
    import optax
    from jax.sharding import PartitionSpec

    import diffprog as dp

    if processes > 1:
        dp.distributed.initialize(f"localhost:{port}", processes, process)
    digits = dp.data.digits()
    model = dp.models.cnn((8, 8, 1), channels=(8,), hidden=(32,))
    mesh = dp.distributed.mesh({"batch": devices * processes // model_axis, "model": model_axis})
    x, y = digits.x_train[:640], digits.y_train[:640]
    share = slice(process * 64 // processes, (process + 1) * 64 // processes)
    batches = [(x[k : k + 64][share], y[k : k + 64][share]) for k in range(0, 640, 64)]

    def shard_rows(path, leaf):
        return (
            PartitionSpec("model")
            if path.endswith("weight") and leaf.shape[0] % 2 == 0
            else PartitionSpec()
        )

    print("begun", flush=True)
    fitted = dp.training.fit(
        lambda params, x, y: optax.losses.softmax_cross_entropy_with_integer_labels(
            model.apply(params, x), y
        ),
        model.init(jax.random.key(0)),
        (x, y) if source == "arrays" else batches,
        optimizer=optax.adam(1e-3),
        batch_size=64 if source == "arrays" else None,
        epochs=epochs,
        accumulate=accumulate,
        held_out=(digits.x_test[:64], digits.y_test[:64]),
        key=jax.random.key(1),
        mesh=mesh,
        partition=shard_rows if model_axis > 1 else None,
        checkpoint=checkpoint,
    )
    sharded = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(fitted.state))
    params = dp.distributed.fetch(fitted.params)
    if process == 0:
        leaves = {f"leaf{k}": np.asarray(leaf) for k, leaf in enumerate(jax.tree.leaves(params))}
        np.savez(out, steps=fitted.steps, sharded=sharded, **fitted.history, **leaves)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
