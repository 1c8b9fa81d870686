"""Make a network classify each digit as every other one, with the box L-BFGS attack.

    python -m experiments.targeted_attack [--fast]

A convolutional network learns handwritten digits. A correctly classified digit x of each class is
perturbed towards each of the nine other classes t by minimizing

    c ||r|| + loss(x + r, t),    0 <= x + r <= 1

with box-constrained L-BFGS and a line search over c, the first method by which adversarial examples
were found. Writes results/targeted_attack/: the ten by ten results, numbers.json and index.html.

For your own model, change `MODEL`: anything with `init(key)` and `apply(params, images)`.

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

MODEL = dp.models.cnn((8, 8, 1), channels=(32, 64), hidden=(128,))
EPOCHS, STEPS = 60, 30


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train, attack, write the results to `folder`, and return the numbers."""
    epochs, steps = (4, 3) if fast else (EPOCHS, STEPS)
    train_key, attack_key = jax.random.split(jax.random.key(seed))
    digits = dp.data.digits()
    network = train(MODEL, digits.x_train, digits.y_train, epochs, train_key)
    program = network.program
    originals = one_of_each_class(program, digits)

    source, target = np.repeat(np.arange(10), 10), np.tile(np.arange(10), 10)
    other = source != target
    attack = dp.adversarial.box_lbfgs(steps=steps, targeted=True)
    result = attack(
        program, originals[source[other]], target[other], key=attack_key, labels=source[other]
    )

    # The diagonal shows the originals.
    images, norms = np.array(originals[source]), np.full(100, np.nan)
    images[other], norms[other] = result.adversarial, result.distance
    norm_table = norms.reshape(10, 10)
    original_norms = np.linalg.norm(np.asarray(originals).reshape(10, -1), axis=1)
    numbers = {
        "accuracy": network.accuracy(digits.x_test, digits.y_test),
        "successes": int(np.asarray(result.success).sum()),
        "norm": {
            "median": float(np.median(result.distance)),
            "largest": float(np.max(result.distance)),
        },
        "median norm from": np.nanmedian(norm_table, axis=1).tolist(),
        "median norm to": np.nanmedian(norm_table, axis=0).tolist(),
        "median norm of an image": float(np.median(original_norms)),
    }
    probabilities = np.asarray(jax.nn.softmax(program(jnp.asarray(images))))
    predictions = zip(probabilities.argmax(1), probabilities.max(1), norms, strict=True)
    titles = [
        f"{j} ({p:.0%})" + ("" if np.isnan(norm) else f" {norm:.1f}") for j, p, norm in predictions
    ]
    write(folder, numbers, dp.plotting.draw_images(images, titles, columns=10))
    return numbers


def one_of_each_class(program: dp.Program, digits: dp.data.Dataset) -> jax.Array:
    """Select the first correctly classified test image of each class, or else its first."""
    labels = np.asarray(digits.y_test)
    misclassified = np.asarray(program(digits.x_test).argmax(-1)) != labels
    indices = [np.lexsort((misclassified, labels != digit))[0] for digit in range(10)]
    return digits.x_test[np.array(indices)]


def write(folder: Path, numbers: dict[str, Any], figure: Any) -> None:
    """Write the page, the figure and the numbers, and print the main results."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "images.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    text = (
        "A row for each original digit and a column for each target class; the diagonal shows the "
        "originals. Above each image: the predicted class, its probability, and the l2 norm of the "
        f"perturbation. {numbers['successes']} of 90 attacks succeeded, with a median norm of "
        f"{numbers['norm']['median']:.2f}; that of an image is "
        f"{numbers['median norm of an image']:.2f}. The smallest perturbation ends on the boundary "
        "between two classes, so both have about the same probability."
    )
    medians = zip(range(10), numbers["median norm from"], numbers["median norm to"], strict=True)
    table = Table(["digit", "median norm from it", "median norm to it"], list(medians))
    page = dp.plotting.write_page(
        folder / "index.html",
        "Targeted attack",
        [Section("Each digit perturbed into every other class", text, figure, table)],
        summary="The smallest perturbation that makes a network predict a chosen class.",
    )
    print(f"test accuracy {numbers['accuracy']:.2%}")
    print(
        f"{numbers['successes']} of 90 attacks succeeded, "
        f"median l2 norm {numbers['norm']['median']:.3f}"
    )
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a few steps of everything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/targeted_attack"))
    main(**vars(parser.parse_args()))
