"""Train digit classifiers with hand-written backprop and with jax.grad: equal loss curves.

    python -m experiments.digits [--fast]

Three networks classify digits of 16 x 16 = 256 pixels (lecture 001). Each is trained on a
Kullback-Leibler divergence (lecture 004, "Setting up for digit recognition"):

    2 or not 2           one sigmoid            KL = d log(d / y) + (1 - d) log((1 - d) / (1 - y))
    ten digits           a softmax over ten     KL = Σ_k d_k log(d_k / y_k)
    ten digits or none   a softmax over eleven, the last class for "none of the above"

Each network is trained twice, from the same parameters on the same batches: with hand-written
backward passes of network and loss, and with `jax.grad` of the forward passes. Writes
results/digits/: figures, numbers.json and index.html.

For another network change `hidden_layers`: use layers of `dp.backprop` or your own, like `squeeze`.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import diffprog as dp
from diffprog.plotting import Panel, Section, Table

bp = dp.backprop

PIXELS, HIDDEN = 256, 64
NONE = 10  # the class "none of the above"
BATCH, EPOCHS, LEARNING_RATE, MOMENTUM = 32, 25, 0.2, 0.9
NON_DIGITS = 100  # of each kind
CONFIDENT = 0.9  # least probability of a confident prediction
COLUMNS = 8  # images of each kind in the figure


def hidden_layers() -> list[bp.Layer]:
    return [bp.affine(PIXELS, HIDDEN), bp.sigmoid()]


def squeeze() -> bp.Layer:
    """Reshape (batch, 1) to (batch,): a layer of your own is a forward and a backward function."""
    return bp.Layer(
        lambda key: (),
        lambda params, x: (x[:, 0], ()),
        lambda params, residuals, dy: ((), dy[:, None]),
        "squeeze",
    )


class Task(NamedTuple):
    """A classification task.

    Attributes:
        network: x -> logits.
        loss: (x, target) -> loss of the network, with hand-written backward passes throughout.
        train, held_out: (x, target).
        is_correct: (params, x, target) -> 1 for each correctly classified example, else 0.
    """

    network: bp.Layer
    loss: bp.Layer
    train: tuple[Array, Array]
    held_out: tuple[Array, Array]
    is_correct: Callable[[Any, Array, Array], Array]


def make_task(
    outputs: list[bp.Layer],
    loss: bp.Layer,
    predict: Callable[[Array], Array],
    train: tuple[Array, Array],
    held_out: tuple[Array, Array],
) -> Task:
    """Make the task of a network with the given last layers; `predict` maps logits to classes."""
    network = bp.chain([*hidden_layers(), *outputs])
    nodes = {"network": (network, "x"), "J": (bp.mean_over_examples(loss), ("network", "target"))}

    def is_correct(params: Any, x: Array, target: Array) -> Array:
        logits, _ = network.forward(params["network"], x)
        # As logits, targets of 0 and 1 must lie on either side of 0.
        return (predict(logits) == predict(2 * target - 1)).astype(x.dtype)

    total = bp.dag(nodes, output="J", inputs=("x", "target"))
    return Task(network, total, train, held_out, is_correct)


def make_tasks(
    data: dp.data.Dataset, non_digits: Array, held_out_non_digits: Array
) -> dict[str, Task]:
    """Make the three tasks of lecture 004."""
    splits = (
        (data.x_train, data.y_train, non_digits),
        (data.x_test, data.y_test, held_out_non_digits),
    )
    two = [(x, (y == 2).astype(jnp.float32)) for x, y, _ in splits]
    ten = [(x, jax.nn.one_hot(y, 10)) for x, y, _ in splits]
    eleven = [
        (
            jnp.concatenate([x, none]),
            jax.nn.one_hot(jnp.append(y, jnp.full(len(none), NONE)), NONE + 1),
        )
        for x, y, none in splits
    ]
    is_positive, argmax = lambda z: z > 0, lambda z: z.argmax(1)
    kl = bp.softmax_kl()
    return {
        "2 or not 2": make_task(
            [bp.affine(HIDDEN, 1), squeeze()], bp.sigmoid_kl(), is_positive, *two
        ),
        "ten digits": make_task([bp.affine(HIDDEN, 10)], kl, argmax, *ten),
        "ten digits or none": make_task([bp.affine(HIDDEN, 11)], kl, argmax, *eleven),
    }


def train(task: Task, hand_written: bool, epochs: float, key: jax.Array) -> dp.training.Fit:
    """Train with the hand-written gradient of the loss, or with `jax.grad` of its forward pass."""
    if hand_written:
        loss = bp.differentiable(task.loss)
    else:
        loss = lambda params, inputs: task.loss.forward(params, inputs)[0]
    return dp.training.fit(
        lambda params, x, target: loss(params, (x, target)),
        jax.jit(task.loss.init)(key),
        task.train,
        optimizer=optax.sgd(LEARNING_RATE, momentum=MOMENTUM),
        batch_size=BATCH,
        epochs=epochs,
        held_out=task.held_out,
        metrics={"accuracy": task.is_correct},
        key=key,
    )


# ---- inputs that are not digits, made from images of digits


def swap_quarters(images: Float[Array, "n 16 16"], key: jax.Array) -> Float[Array, "n 16 16"]:
    """Swap the quarters of each image with the opposite corner."""
    return jnp.roll(images, (8, 8), (1, 2))


def enlarge_corner(images: Float[Array, "n 16 16"], key: jax.Array) -> Float[Array, "n 16 16"]:
    """Enlarge a random quarter of each image to the whole image."""
    corners = 8 * jax.random.randint(key, (len(images), 2), 0, 2)
    crop = lambda image, corner: jax.lax.dynamic_slice(image, corner, (8, 8))
    crops = jax.vmap(crop)(images, corners)
    return jnp.clip(jax.image.resize(crops, images.shape, "cubic"), 0, 1)


def shuffle_blocks(images: Float[Array, "n 16 16"], key: jax.Array) -> Float[Array, "n 16 16"]:
    """Shuffle blocks of 2 x 2 pixels; the result is as smooth as a digit."""
    small = jax.image.resize(images, (len(images), 8, 8), "linear").reshape(len(images), 64)
    mixed = jax.random.permutation(key, small, axis=1, independent=True).reshape(-1, 8, 8)
    return jnp.clip(jax.image.resize(mixed, images.shape, "cubic"), 0, 1)


def overlay_two(images: Float[Array, "n 16 16"], key: jax.Array) -> Float[Array, "n 16 16"]:
    """Overlay each image with another one, in one of ten cases of the same class."""
    return jnp.maximum(images, jnp.roll(jax.random.permutation(key, images), 1, 0))


TRAINING_KINDS = {
    "swapped quarters": swap_quarters,
    "enlarged corner": enlarge_corner,
    "shuffled blocks": shuffle_blocks,
}
UNSEEN_KINDS = {"two digits overlaid": overlay_two}


def make_non_digits(
    kinds: dict[str, Callable[..., Array]], x: Array, key: jax.Array
) -> dict[str, Float[Array, "n 256"]]:
    """Make inputs of each kind from randomly chosen digits."""
    inputs = {}
    for (name, make), kind_key in zip(
        kinds.items(), jax.random.split(key, len(kinds)), strict=True
    ):
        choice_key, make_key = jax.random.split(kind_key)
        images = x.reshape(-1, 16, 16)
        sources = jax.random.choice(choice_key, images, (NON_DIGITS,), replace=False)
        inputs[name] = jax.jit(make)(sources, make_key).reshape(NON_DIGITS, PIXELS)
    return inputs


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train the three networks in both ways, write the results to `folder`, return the numbers."""
    epochs = 3 if fast else EPOCHS
    data = dp.data.digits(size=16, flatten=True)
    fit_key, train_key, test_key, unseen_key = jax.random.split(jax.random.key(seed), 4)
    non_digits = make_non_digits(TRAINING_KINDS, data.x_train, train_key)
    held_out = make_non_digits(TRAINING_KINDS, data.x_test, test_key)
    tasks = make_tasks(
        data, *(jnp.concatenate([*kinds.values()]) for kinds in (non_digits, held_out))
    )
    fits = {
        name: {
            "by hand": train(task, True, epochs, fit_key),
            "jax.grad": train(task, False, epochs, fit_key),
        }
        for name, task in tasks.items()
    }

    held_out |= make_non_digits(UNSEEN_KINDS, data.x_test, unseen_key)
    predict = {name: make_predictor(task, fits[name]["by hand"]) for name, task in tasks.items()}
    is_two = np.asarray(data.y_test) == 2
    predicted_two = np.asarray(predict["2 or not 2"](data.x_test)[:, 0]) > 0.5

    def none_rate(x: Array) -> float:
        return float((predict["ten digits or none"](x).argmax(1) == NONE).mean())

    def confident_rate(x: Array) -> float:
        return float((predict["ten digits"](x).max(1) >= CONFIDENT).mean())

    numbers = {
        "tasks": {name: compare(pair["by hand"], pair["jax.grad"]) for name, pair in fits.items()},
        "recall of 2": float(predicted_two[is_two].mean()),
        "false positive rate of 2": float(predicted_two[~is_two].mean()),
        "digits predicted as none": none_rate(data.x_test),
        "non-digits predicted as none": {kind: none_rate(x) for kind, x in held_out.items()},
        "non-digits with a confident prediction of ten classes": {
            kind: confident_rate(x) for kind, x in held_out.items()
        },
    }
    figures = {
        "loss_curves": draw_loss_curves(fits),
        "non_digits": draw_non_digits(held_out, predict["ten digits or none"]),
    }
    write_results(folder, numbers, figures)
    return numbers


def make_predictor(task: Task, fit: dp.training.Fit) -> Callable[[Array], Array]:
    """Return the function x -> class probabilities of a trained network."""

    def probabilities(x: Array) -> Array:
        z = task.network.forward(fit.params["network"], x)[0]
        return jax.nn.sigmoid(z)[:, None] if z.ndim == 1 else jax.nn.softmax(z)

    return jax.jit(probabilities)


def compare(by_hand: dp.training.Fit, autodiff: dp.training.Fit) -> dict[str, float]:
    """Return the final metrics, and the largest differences between the two trainings."""
    losses = by_hand.history["cost"] - autodiff.history["cost"]
    params = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), by_hand.params, autodiff.params)
    return {
        "accuracy": float(by_hand.history["accuracy"][-1]),
        "KL": float(by_hand.history["loss"][-1]),
        "steps": by_hand.steps,
        "largest difference of a loss": float(np.abs(losses).max()),
        "largest difference of a parameter": max(jax.tree.leaves(params)),
    }


def draw_loss_curves(fits: dict[str, dict[str, dp.training.Fit]]) -> Any:
    """Plot training and held-out loss per epoch, those of `jax.grad` dashed on top."""

    def curves(fit: dp.training.Fit, label: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        held_out = fit.history["loss"].astype(float)
        epochs = np.array_split(fit.history["cost"], len(held_out))
        training = np.array([losses.mean() for losses in epochs], float)
        x = 1.0 + np.arange(len(held_out))
        return {f"training, {label}": (x, training), f"held out, {label}": (x, held_out)}

    panels = [
        Panel(
            curves(pair["by hand"], "by hand"),
            "epoch",
            name,
            expected=curves(pair["jax.grad"], "jax.grad"),
        )
        for name, pair in fits.items()
    ]
    return dp.plotting.draw_traces(panels, ylabel="KL divergence", scales=("linear", "log"))


def draw_non_digits(kinds: dict[str, Array], predict: Callable[[Array], Array]) -> Any:
    """Show examples of each kind with the prediction of the network with eleven outputs."""
    examples = jnp.concatenate([x[:COLUMNS] for x in kinds.values()])
    probabilities = np.asarray(predict(examples))
    titles = [
        f"{'none' if p.argmax() == NONE else p.argmax()} {p.max():.0%}" for p in probabilities
    ]
    return dp.plotting.draw_images(examples.reshape(-1, 16, 16, 1), titles, columns=COLUMNS)


def write_results(folder: Path, numbers: dict[str, Any], figures: dict[str, Any]) -> None:
    """Write page, figures and numbers, and print a summary."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    tasks = numbers["tasks"]
    confident = numbers["non-digits with a confident prediction of ten classes"]
    kinds = [
        [kind, rate, confident[kind]]
        for kind, rate in numbers["non-digits predicted as none"].items()
    ]
    sections = [
        Section(
            "Hand-written gradients and jax.grad give equal losses",
            f"Three networks of {PIXELS} pixels, {HIDDEN} sigmoid units and one, ten or eleven "
            "outputs, trained on 1,437 digits; 360 are held out. Each network is trained twice, "
            "from the same parameters on the same batches. The hand-written gradient and that of "
            "jax.grad differ by rounding errors of float32, and so do the losses.\n\n"
            f"2 or not 2: {numbers['recall of 2']:.1%} of the held-out 2s are found, and "
            f"{numbers['false positive rate of 2']:.1%} of the other digits are mistaken for a 2. "
            "Nine digits in ten are not a 2, so the accuracy alone would mean little.",
            figures["loss_curves"],
            Table(
                ["task", *next(iter(tasks.values()))],
                [[name, *result.values()] for name, result in tasks.items()],
            ),
            caption="Solid: hand-written gradients. Dashed, on top: jax.grad. Training losses are "
            "means over the batches of an epoch.",
        ),
        Section(
            "None of the above",
            "A softmax over ten classes predicts a digit for any input. An eleventh class is "
            "trained on inputs that are not digits, made from images of digits: quarters swapped "
            "with the opposite corner, a corner enlarged, blocks of pixels shuffled. Held-out "
            "inputs are made from held-out digits. Two overlaid digits do not occur in training. "
            f"{numbers['digits predicted as none']:.1%} of the held-out digits are predicted as "
            "none.",
            figures["non_digits"],
            Table(
                [
                    "input",
                    "predicted as none of the above",
                    f"digit with p ≥ {CONFIDENT:g} by the ten-class network",
                ],
                kinds,
            ),
            caption=f"Rows: {', '.join(kind for kind, *_ in kinds)}. Above each image the "
            "predicted class and its probability. Some enlarged corners look like a 1 or a 7.",
        ),
    ]
    page = dp.plotting.write_page(
        folder / "index.html",
        "Digit recognition by hand-written backprop and by jax.grad",
        sections,
        summary="Three tasks: 2 or not 2, ten digits, and ten digits or none of the above.",
    )
    for name, result in tasks.items():
        print(
            f"{name:20} accuracy {result['accuracy']:.1%}, KL {result['KL']:.4f}; by hand and "
            f"jax.grad: losses of {result['steps']} steps differ by at most "
            f"{result['largest difference of a loss']:.1e}"
        )
    for kind, none, confident_rate in kinds:
        print(
            f"{kind:20} {none:.0%} predicted as none; with ten classes {confident_rate:.0%} "
            f"predicted as a digit with p ≥ {CONFIDENT:g}"
        )
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="train for a few epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/digits"))
    options = parser.parse_args()
    main(options.folder, fast=options.fast, seed=options.seed)
