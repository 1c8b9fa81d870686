"""argmax p(y = ostrich | x + r): every digit turned into every other, by the smallest perturbation found.

    python -m experiments.targeted_attack [--fast]

trains a convolutional network on handwritten digits, takes a digit of each class that it reads rightly, and minimises c ||r|| + loss
towards each of the nine other classes with box-constrained L-BFGS, a line search over c: the attack that adversarial examples were found
with. Writes results/targeted_attack/: the sheet of ten by ten, from the digit of the row to the class of the column, with the confidence and the
norm of r; numbers.json and index.html.

Source: C. Szegedy et al., "Intriguing properties of neural networks", 2014.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffprog as dp
from diffprog.plotting import Section, Table
from experiments.digit_classifier import train

adv = dp.adversarial

MODEL = dp.models.cnn((8, 8, 1), channels=(32, 64), hidden=(128,))
EPOCHS, NORM = 60, "l2"


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train, turn every digit into every other, and write it all to `folder`; returns the numbers."""
    epochs, steps = (4, 3) if fast else (EPOCHS, 30)
    digits = dp.data.digits()
    train_key, attack_key = jax.random.split(jax.random.key(seed))
    network = train(MODEL, digits.x_train, digits.y_train, epochs, train_key)
    images = one_of_each(network.program, digits)

    source, target = (
        np.ravel(labels) for labels in np.meshgrid(np.arange(10), np.arange(10), indexing="ij")
    )
    other = source != target
    turn = adv.box_lbfgs(steps=steps, targeted=True)
    found = turn(
        network.program, images[source[other]], target[other], key=attack_key, labels=source[other]
    )

    sheet, norm = np.array(images[source]), np.zeros(100)
    sheet[other], norm[other] = found.adversarial, found.distance
    probabilities = np.asarray(jax.nn.softmax(network.program(jnp.asarray(sheet))))
    numbers = {
        "accuracy": network.accuracy(digits.x_test, digits.y_test),
        "turned": int(np.asarray(found.success).sum()),
        "norm": {
            "median": float(np.median(found.distance)),
            "largest": float(np.max(found.distance)),
        },
        "median norm from": [
            float(np.median(norm.reshape(10, 10)[digit][np.arange(10) != digit]))
            for digit in range(10)
        ],
        "median norm to": [
            float(np.median(norm.reshape(10, 10)[np.arange(10) != digit, digit]))
            for digit in range(10)
        ],
        "median norm of an image": float(
            np.median(np.linalg.norm(np.asarray(images).reshape(10, -1), axis=1))
        ),
    }
    said = zip(probabilities.argmax(1), probabilities.max(1), norm, strict=True)
    titles = [
        f"{read}  {p:.0%}" + (f"  {length:.1f}" if length else "") for read, p, length in said
    ]
    write(folder, numbers, dp.plotting.draw_images(sheet, titles, columns=10))
    return numbers


def one_of_each(program: dp.Program, digits: dp.data.Dataset) -> jax.Array:
    """The first held-out image of each class that is read rightly; of a class without one, its first."""
    right = np.asarray(program(digits.x_test).argmax(-1) == digits.y_test)
    labels = np.asarray(digits.y_test)
    return digits.x_test[
        np.array([np.lexsort((~right, labels != digit))[0] for digit in range(10)])
    ]


def write(folder: Path, numbers: dict[str, Any], figure: Any) -> None:
    """The page, the sheet as a file, and the numbers as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "sheet.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    text = (
        "Each row begins with one digit, each column asks for one class; on the diagonal the digits as they are. Above each image what the "
        f"network reads, how sure it is, and the {NORM} norm of what was added. {numbers['turned']} of 90 were turned, by a median of "
        f"{numbers['norm']['median']:.2f}, where an image has {numbers['median norm of an image']:.2f}. The perturbation ends on the "
        f"boundary between two classes, so the network is about as sure of the one as of the other."
    )
    by_digit = [
        [str(digit), numbers["median norm from"][digit], numbers["median norm to"][digit]]
        for digit in range(10)
    ]
    sections = [
        Section(
            "Every digit into every other",
            text,
            figure,
            Table(["digit", "median norm from it", "median norm to it"], by_digit),
        )
    ]
    page = dp.plotting.write_page(
        folder / "index.html", "Ostrich", sections, summary="argmax p(y = ostrich | x + r)"
    )
    print(
        f"accuracy {numbers['accuracy']:.2%}; {numbers['turned']} of 90 turned, median norm {numbers['norm']['median']:.3f}"
    )
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fast", action="store_true", help="a few steps of everything, to see that it runs"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/targeted_attack"))
    options = parser.parse_args()
    main(options.folder, fast=options.fast, seed=options.seed)
