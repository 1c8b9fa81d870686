"""Write attacks and images computed on several devices: python distributed_run.py OUT DEVICES."""

import os
import sys


def main(out: str, devices: int) -> None:
    os.environ["NPROC"] = "32"  # enough threads for virtual devices to wait for each other
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    import numpy as np

    import diffprog as dp

    adv, vis, key = dp.adversarial, dp.visualization, jax.random.key(0)
    model = dp.models.cnn((8, 8, 1), channels=(8,), hidden=(32,))
    f = dp.program(model.apply, model.init(key))
    x = dp.data.digits().x_test[:30]
    y = f(x).argmax(-1)
    mesh = dp.distributed.mesh() if devices > 1 else None
    attacks = {
        "pgd": adv.pgd(epsilon=0.05, steps=5),
        "auto": adv.auto_attack(epsilon=0.02, steps=3, queries=20),
        "ddn": adv.ddn(steps=10),
        "universal": adv.universal(epsilon=0.1, steps=3, batch_size=16),
    }
    results = {name: attack(f, x, y, key=key, mesh=mesh) for name, attack in attacks.items()}
    results["universal"] = results["universal"].found
    arrays = {
        f"{name} {field}": np.asarray(getattr(result, field))
        for name, result in results.items()
        for field in ("adversarial", "success", "loss")
    }
    report = adv.evaluate(f, x, y, [attacks["pgd"]], key=key, mesh=mesh, batch_size=16, flags=False)
    visualization = vis.visualize(
        f,
        vis.unit("conv1", [0, 1, 2, 3, 4]),
        vis.fourier((8, 8, 1)),
        steps=10,
        transforms=[vis.jitter(1)],
        key=key,
        mesh=mesh,
    )
    np.savez(
        out,
        worst=report.worst.distance,
        images=visualization.images,
        scores=visualization.scores,
        history=visualization.history,
        **arrays,
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
