"""Train with checkpoints, to be killed by a test: python long_run.py OUT [FOLDER].

Prints "begun" when it starts, and saves its result to OUT.
"""

import sys

import jax
import numpy as np
import optax

import diffprog as dp
from diffprog.training import _checkpoint

_checkpoint._PAUSE_FACTOR = 0  # saves almost every epoch, so that kills often fall into a save


def main(out: str, folder: str | None = None) -> None:
    digits = dp.data.digits()
    model = dp.models.mlp((64, 256, 10))
    flatten = lambda images: images.reshape(len(images), -1)

    def loss(params, x, y, key):
        mask = jax.random.bernoulli(key, 0.9, x.shape)
        return optax.losses.softmax_cross_entropy_with_integer_labels(
            model.apply(params, x * mask), y
        )

    print("begun", flush=True)
    fitted = dp.training.fit(
        loss,
        model.init(jax.random.key(0)),
        (flatten(digits.x_train), digits.y_train),
        optimizer=optax.adam(1e-3),
        batch_size=16,
        epochs=60,
        held_out=(flatten(digits.x_test), digits.y_test),
        patience=60,
        key=jax.random.key(1),
        checkpoint=folder,
    )
    leaves = {
        f"leaf{k}": np.asarray(leaf)
        for k, leaf in enumerate(jax.tree.leaves((fitted.params, fitted.state)))
    }
    np.savez(out, steps=fitted.steps, best=fitted.best, **fitted.history, **leaves)


if __name__ == "__main__":
    main(*sys.argv[1:])
