"""A training for other processes to kill: python long_run.py OUT [FOLDER]; says "begun" and writes what it ended with to OUT."""

import sys

import jax
import numpy as np
import optax

import diffprog as dp
from diffprog.training import _checkpoint

_checkpoint._SHARE = 0  # a checkpoint after every epoch, so that a kill often falls into one


def main(out: str, folder: str | None = None) -> None:
    digits = dp.data.digits()
    model = dp.models.mlp((64, 256, 10))
    flat = lambda images: images.reshape(len(images), -1)

    def loss(params, x, y, key):
        kept = jax.random.bernoulli(key, 0.9, x.shape)
        return optax.losses.softmax_cross_entropy_with_integer_labels(
            model.apply(params, x * kept), y
        )

    print("begun", flush=True)
    found = dp.training.fit(
        loss,
        model.init(jax.random.key(0)),
        (flat(digits.x_train), digits.y_train),
        optimizer=optax.adam(1e-3),
        batch_size=16,
        epochs=60,
        held_out=(flat(digits.x_test), digits.y_test),
        patience=60,
        key=jax.random.key(1),
        checkpoint=folder,
    )
    leaves = {
        f"leaf{k}": np.asarray(leaf)
        for k, leaf in enumerate(jax.tree.leaves((found.params, found.state)))
    }
    np.savez(out, steps=found.steps, best=found.best, **found.history, **leaves)


if __name__ == "__main__":
    main(*sys.argv[1:])
