"""The lectures' recogniser of handwritten digits, its gradients written by hand and by `jax.grad`: the same curves.

    python -m experiments.digits [--fast]

A digit of 16 x 16 = 256 pixels goes in (lecture 001), and three networks answer, each trained on a Kullback-Leibler divergence (lecture
004, "Setting up for digit recognition"):

    is it a 2?          one sigmoid                     KL = d log(d / y) + (1 - d) log((1 - d) / (1 - y))
    which digit?        a softmax over ten              KL = Σ_k d_k log(d_k / y_k)
    which, if any?      a softmax over eleven, the last for none of the above

Each is trained twice from the same start on the same batches: once with the backward passes written by hand, network and loss, and once
with `jax.grad` of the forward passes. Writes results/digits/: the figures, numbers.json and index.html.

For another network change `hidden_layers`: any layers of `dp.backprop`, or of your own, like `single` below.
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

PIXELS, HIDDEN, NONE = 256, 64, 10
BATCH, EPOCHS, RATE, MOMENTUM = 32, 25, 0.2, 0.9
NON_DIGITS, SURE, SHOWN = 100, 0.9, 8


def hidden_layers() -> list[bp.Layer]:
    return [bp.affine(PIXELS, HIDDEN), bp.sigmoid()]


def single() -> bp.Layer:
    """(batch, 1) as (batch,), for a loss of one number an example: a layer of one's own is two functions."""
    return bp.Layer(
        lambda key: (),
        lambda params, x: (x[:, 0], ()),
        lambda params, kept, dy: ((), dy[:, None]),
        "single",
    )


class Task(NamedTuple):
    """What a network is asked.

    Attributes:
        network: x -> outputs.
        cost: (x, target) -> J, network and loss in one, with its backward pass: every rule in it is written by hand.
        train, held_out: (x, target).
        right: (params, x, target) -> 1 for each example that is answered rightly, else 0.
    """

    network: bp.Layer
    cost: bp.Layer
    train: tuple[Array, Array]
    held_out: tuple[Array, Array]
    right: Callable[[Any, Array, Array], Array]


def fitted(task: Task, by_hand: bool, epochs: int, key: jax.Array) -> dp.training.Fit:
    """Descend with the hand-written gradient of the cost, or with `jax.grad` of its forward pass."""
    run = (
        bp.differentiable(task.cost)
        if by_hand
        else lambda params, x: task.cost.forward(params, x)[0]
    )
    return dp.training.fit(
        lambda params, x, target: run(params, (x, target)),
        jax.jit(task.cost.init)(key),
        task.train,
        optimizer=optax.sgd(RATE, momentum=MOMENTUM),
        batch_size=BATCH,
        epochs=epochs,
        held_out=task.held_out,
        metrics={"right": task.right},
        key=key,
    )


def asked(
    outputs: list[bp.Layer],
    loss: bp.Layer,
    says: Callable[[Array], Array],
    train: Any,
    held_out: Any,
) -> Task:
    """The task of a network that ends in `outputs`; `says` is the answer in the outputs or in the target."""
    network = bp.chain([*hidden_layers(), *outputs])
    nodes = {"network": (network, "x"), "J": (bp.mean_over_examples(loss), ("network", "target"))}

    def right(params: Any, x: Array, target: Array) -> Array:
        # A target of 0 or 1 is read as an output below or above 0 is.
        return (says(network.forward(params["network"], x)[0]) == says(2 * target - 1)).astype(
            x.dtype
        )

    return Task(network, bp.dag(nodes, output="J", inputs=("x", "target")), train, held_out, right)


def tasks(data: dp.data.Dataset, non_digits: Array, held_out: Array) -> dict[str, Task]:
    """The three, in the order of lecture 004."""
    train, test = (data.x_train, data.y_train), (data.x_test, data.y_test)
    positive, largest = lambda z: z > 0, lambda z: z.argmax(1)

    def parts(target: Callable[[Array], Array]) -> Any:
        return tuple((x, target(y)) for x, y in (train, test))

    def with_none() -> Any:
        for (x, y), none in zip((train, test), (non_digits, held_out), strict=True):
            labels = jnp.append(y, jnp.full(len(none), NONE))
            yield jnp.concatenate([x, none]), jax.nn.one_hot(labels, NONE + 1)

    return {
        "2 or not 2": asked(
            [bp.affine(HIDDEN, 1), single()],
            bp.sigmoid_kl(),
            positive,
            *parts(lambda y: (y == 2).astype(jnp.float32)),
        ),
        "ten digits": asked(
            [bp.affine(HIDDEN, 10)],
            bp.softmax_kl(),
            largest,
            *parts(lambda y: jax.nn.one_hot(y, 10)),
        ),
        "ten digits or none": asked(
            [bp.affine(HIDDEN, 11)], bp.softmax_kl(), largest, *with_none()
        ),
    }


def swapped(images: Float[Array, "n 16 16"], key: jax.Array) -> Float[Array, "n 16 16"]:
    """The quarters of a digit, each in the corner opposite to its own."""
    return jnp.roll(images, (8, 8), (1, 2))


def cut_out(images: Float[Array, "n 16 16"], key: jax.Array) -> Float[Array, "n 16 16"]:
    """A corner of a digit, a quarter of it, twice as large."""
    corners = 8 * jax.random.randint(key, (len(images), 2), 0, 2)
    windows = jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, corner, (8, 8)))(
        images, corners
    )
    return jnp.clip(jax.image.resize(windows, images.shape, "cubic"), 0, 1)


def shuffled(images: Float[Array, "n 16 16"], key: jax.Array) -> Float[Array, "n 16 16"]:
    """A digit's pixels, blocks of 2 x 2, in random order, as smooth as a digit."""
    small = jax.image.resize(images, (len(images), 8, 8), "linear").reshape(len(images), 64)
    mixed = jax.random.permutation(key, small, axis=1, independent=True).reshape(-1, 8, 8)
    return jnp.clip(jax.image.resize(mixed, images.shape, "cubic"), 0, 1)


def overlaid(images: Float[Array, "n 16 16"], key: jax.Array) -> Float[Array, "n 16 16"]:
    """Two digits at once, one time in ten of the same class."""
    return jnp.maximum(images, jnp.roll(jax.random.permutation(key, images), 1, 0))


SEEN, NEVER_SEEN = (
    {"swapped": swapped, "cut_out": cut_out, "shuffled": shuffled},
    {"overlaid": overlaid},
)


def made(kinds: Any, x: Array, count: int, key: jax.Array) -> dict[str, Float[Array, "count 256"]]:
    """Inputs that are no digits, `count` of each kind, from real digits picked at random."""

    def of(name: str, key: jax.Array) -> Array:
        pick_key, make_key = jax.random.split(key)
        images = jax.random.choice(pick_key, x.reshape(-1, 16, 16), (count,), replace=False)
        return kinds[name](images, make_key).reshape(count, PIXELS)

    of = jax.jit(of, static_argnums=0)
    return {
        name: of(name, key)
        for name, key in zip(kinds, jax.random.split(key, len(kinds)), strict=True)
    }


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train all three in both ways and write it to `folder`; returns the numbers."""
    epochs = 3 if fast else EPOCHS
    data = dp.data.digits(size=16, flatten=True)
    fit_key, train_key, test_key, new_key = jax.random.split(jax.random.key(seed), 4)
    non_digits = (
        made(SEEN, data.x_train, NON_DIGITS, train_key),
        made(SEEN, data.x_test, NON_DIGITS, test_key),
    )
    given = tasks(data, *(jnp.concatenate([*kinds.values()]) for kinds in non_digits))
    routes = {"by hand": True, "jax.grad": False}
    fits = {
        name: {route: fitted(task, by_hand, epochs, fit_key) for route, by_hand in routes.items()}
        for name, task in given.items()
    }

    shown = non_digits[1] | made(NEVER_SEEN, data.x_test, NON_DIGITS, new_key)
    answer = {name: _reader(task, fits[name]["by hand"]) for name, task in given.items()}
    is_two, found_two = (
        np.asarray(data.y_test) == 2,
        np.asarray(answer["2 or not 2"](data.x_test)[:, 0]) > 0.5,
    )
    numbers = {
        "tasks": {name: compared(of["by hand"], of["jax.grad"]) for name, of in fits.items()},
        "2s found": float(found_two[is_two].mean()),
        "others taken for a 2": float(found_two[~is_two].mean()),
        "digits taken for none": float(
            (answer["ten digits or none"](data.x_test).argmax(1) == NONE).mean()
        ),
        "taken for none": {
            kind: float((answer["ten digits or none"](x).argmax(1) == NONE).mean())
            for kind, x in shown.items()
        },
        "ten outputs are sure of": {
            kind: float((answer["ten digits"](x).max(1) >= SURE).mean())
            for kind, x in shown.items()
        },
    }
    write(
        folder,
        numbers,
        {"curves": curves(fits), "none": none_of_the_above(shown, answer["ten digits or none"])},
    )
    return numbers


def _reader(task: Task, fit: dp.training.Fit) -> Callable[[Array], Array]:
    """x -> the probabilities of the answers."""

    def probabilities(x: Array) -> Array:
        z = task.network.forward(fit.params["network"], x)[0]
        return jax.nn.sigmoid(z)[:, None] if z.ndim == 1 else jax.nn.softmax(z)

    return jax.jit(probabilities)


def compared(by_hand: dp.training.Fit, automatic: dp.training.Fit) -> dict[str, float]:
    """What came of it, and how far the two ways are from each other after all their steps."""
    apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), by_hand.params, automatic.params)
    return {
        "right": float(by_hand.history["right"][-1]),
        "KL": float(by_hand.history["loss"][-1]),
        "steps": by_hand.steps,
        "largest difference of a cost": float(
            np.abs(by_hand.history["cost"] - automatic.history["cost"]).max()
        ),
        "largest difference of a parameter": max(jax.tree.leaves(apart)),
    }


def curves(fits: dict[str, dict[str, dp.training.Fit]]) -> Any:
    """The cost over the epochs, in training and on held-out digits; `jax.grad` on top of the hand-written gradient."""

    def of(fit: dp.training.Fit) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        held_out = fit.history["loss"].astype(float)
        steps = fit.history["cost"]
        training = np.array([part.mean() for part in np.array_split(steps, len(held_out))], float)
        epochs = 1.0 + np.arange(len(held_out))
        return {"training": (epochs, training), "held out": (epochs, held_out)}

    panels = []
    for name, ways in fits.items():
        by_hand, automatic = of(ways["by hand"]), of(ways["jax.grad"])
        panels.append(
            Panel(
                {f"{part}, by hand": curve for part, curve in by_hand.items()},
                "epoch",
                name,
                {f"{part}, jax.grad": curve for part, curve in automatic.items()},
            )
        )
    return dp.plotting.draw_traces(panels, ylabel="KL divergence", scales=("linear", "log"))


def none_of_the_above(kinds: dict[str, Array], answer: Callable[[Array], Array]) -> Any:
    """Some of each kind, and what the network with eleven outputs says."""
    some = jnp.concatenate([x[:SHOWN] for x in kinds.values()])
    said = np.asarray(answer(some))
    titles = [
        f"{'none' if k == NONE else k} {p[k]:.0%}"
        for p, k in zip(said, said.argmax(1), strict=True)
    ]
    return dp.plotting.draw_images(some.reshape(-1, 16, 16, 1), titles, columns=SHOWN)


def write(folder: Path, numbers: dict[str, Any], drawn: dict[str, Any]) -> None:
    """The page, the figures as files, and the numbers as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    rows = [[name, *found.values()] for name, found in numbers["tasks"].items()]
    columns = ["task", *next(iter(numbers["tasks"].values()))]
    kinds = [
        [kind.replace("_", " "), share, numbers["ten outputs are sure of"][kind]]
        for kind, share in numbers["taken for none"].items()
    ]
    sections = [
        Section(
            "The same curves",
            f"Three networks, 256 - {HIDDEN} - outputs with sigmoids between, on 1,437 digits of 16 x 16 pixels; 360 are held out. Each is "
            "trained twice, on the same batches from the same start. The gradient written by hand, layer by layer and the loss too, and "
            "that of jax.grad differ in the last digit of a float32, and so do the costs.\n\n"
            f"Of the 2s that are held out {numbers['2s found']:.1%} are found, of the others {numbers['others taken for a 2']:.1%} are "
            "taken for a 2: as nine in ten are no 2, the share of right answers alone would say little.",
            drawn["curves"],
            Table(columns, rows),
            caption="Solid: by hand. Dashed, on top: jax.grad. Training costs are those of the batches, averaged over an epoch.",
        ),
        Section(
            "None of the above",
            "A softmax over ten must name a digit whatever it sees. The eleventh output is trained on inputs that are no digits, made of "
            "real ones: quarters swapped with the opposite corner, a corner cut out and enlarged, pixels shuffled. Those held out are "
            f"made of held-out digits. Two digits laid over one another were never seen in training. "
            f"{numbers['digits taken for none']:.1%} of the digits are taken for none.",
            drawn["none"],
            Table(
                [
                    "inputs that are no digits",
                    "taken for none",
                    f"read as a digit, p ≥ {SURE:g}, by the ten outputs",
                ],
                kinds,
            ),
            caption=f"Rows: {', '.join(kind for kind, *_ in kinds)}. Above each what the network with eleven outputs says. Some cut-outs "
            "do look like a 1 or a 7.",
        ),
    ]
    summary = "2 or not 2, ten digits, and none of the above: by hand and by jax.grad."
    page = dp.plotting.write_page(
        folder / "index.html", "Recognising digits", sections, summary=summary
    )
    for name, found in numbers["tasks"].items():
        apart = f"by hand - jax.grad {found['largest difference of a cost']:.1e} at most in any of {found['steps']} costs"
        print(f"{name:20} {found['right']:.1%} right, KL {found['KL']:.4f}; {apart}")
    for kind, share, sure in kinds:
        print(
            f"{kind:20} {share:.0%} taken for none; ten outputs are sure of a digit in {sure:.0%}"
        )
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="a few epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/digits"))
    options = parser.parse_args()
    main(options.folder, fast=options.fast, seed=options.seed)
