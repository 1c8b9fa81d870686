"""What every unit of a network looks for.

    python -m experiments.unit_visualization [--fast]

trains a convolutional network on half of scikit-learn's handwritten digits and makes, for every channel of every layer, the image that
excites it most, with the share of real digits that excite it less. A second network, of another shape and trained on the other half, is
then shown what the first one's outputs asked for: an image that only the network it was made with can read shows nothing but that network's
weak spots. Writes results/unit_visualization/: a sheet for each layer, numbers.json and index.html.

To see your own network, change `MODEL` and `LAYERS`: anything with `init(key)` and `apply(params, images)` that taps its nodes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

import diffprog as dp
from diffprog.plotting import Section, Table
from experiments.digit_classifier import train

vis = dp.visualization

MODEL = dp.models.cnn((8, 8, 1), channels=(16, 32), hidden=(64,))
JUDGE = dp.models.cnn((8, 8, 1), channels=(24, 24), hidden=(), activation="elu", pool="average")
LAYERS = {"conv1": 16, "conv2": 32, "affine3": 64}
EPOCHS, STEPS, PLAINNESS, IMAGES_OF_EACH = 60, 200, 0.01, 10


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train, look, judge, and write it all to `folder`; returns the numbers."""
    epochs, steps = (4, 10) if fast else (EPOCHS, STEPS)
    digits = dp.data.digits()
    half = len(digits.x_train) // 2
    first, second = (
        (digits.x_train[:half], digits.y_train[:half]),
        (digits.x_train[half:], digits.y_train[half:]),
    )
    train_key, judge_key, see_key = jax.random.split(jax.random.key(seed), 3)
    network, judge = (
        train(MODEL, *first, epochs, train_key),
        train(JUDGE, *second, epochs, judge_key),
    )

    def see(objective: vis.Objective) -> vis.Visualization:
        return vis.visualize(
            network.program,
            objective,
            vis.covariance(first[0]),
            key=see_key,
            steps=steps,
            transforms=[vis.jitter(1)],
            data=digits.x_test,
        )

    sheets = {node: see(vis.channel(node, range(units))) for node, units in LAYERS.items()}
    asked = np.repeat(np.arange(10), IMAGES_OF_EACH)
    logits = see(vis.logit(asked))
    read = np.asarray(judge.program(logits.images).argmax(-1))
    numbers = {
        "accuracy": network.accuracy(digits.x_test, digits.y_test),
        "judge accuracy": judge.accuracy(digits.x_test, digits.y_test),
        "agreement": float((read == asked).mean()),
        "agreement by digit": [
            float((read == asked)[asked == digit].mean()) for digit in range(10)
        ],
        "median percentile": {
            node: float(np.median(np.asarray(seen.percentiles))) for node, seen in sheets.items()
        },
    }
    write(folder, numbers, sheets, logits, read)
    return numbers


def write(
    folder: Path,
    numbers: dict[str, Any],
    sheets: dict[str, vis.Visualization],
    logits: vis.Visualization,
    read: np.ndarray,
) -> None:
    """A sheet for each layer, the judged images, the numbers and the page."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for node, seen in sheets.items():
        assert seen.percentiles is not None
        titles = [f"{unit}: {rank:.0f} %" for unit, rank in enumerate(seen.percentiles)]
        figure = dp.plotting.draw_images(seen.images, titles, columns=8)
        figure.savefig(folder / f"{node}.png", dpi=150)
        text = "Above each image its unit, and the share of held-out real digits that excite the unit less."
        sections.append(Section(f"What the {len(titles)} units of {node} look for", text, figure))
    titles = [
        f"{digit}, read {answer}"
        for digit, answer in zip(np.repeat(np.arange(10), IMAGES_OF_EACH), read, strict=True)
    ]
    figure = dp.plotting.draw_images(logits.images, titles, columns=IMAGES_OF_EACH)
    figure.savefig(folder / "logits.png", dpi=150)
    judged = (
        f"{IMAGES_OF_EACH} images for each output, and how another network reads them: of another shape, trained on the other half of the "
        f"digits, and right about {numbers['judge accuracy']:.1%} of those held out. It agrees on {numbers['agreement']:.0%}."
    )
    by_digit = Table(
        ["digit", "agreement"],
        [[digit, share] for digit, share in enumerate(numbers["agreement by digit"])],
    )
    sections.insert(0, Section("What the ten outputs look for", judged, figure, by_digit))
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    page = dp.plotting.write_page(
        folder / "index.html",
        "What every unit looks for",
        sections,
        summary="The input is the free variable.",
    )

    print(f"accuracy {numbers['accuracy']:.2%}, of the judge {numbers['judge accuracy']:.2%}")
    print(f"the judge reads what the outputs asked for: {numbers['agreement']:.0%}")
    for node, rank in numbers["median percentile"].items():
        print(f"{node}: the median image excites its unit more than {rank:.0f} % of real digits")
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fast", action="store_true", help="a few steps of everything, to see that it runs"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/unit_visualization"))
    options = parser.parse_args()
    main(options.folder, fast=options.fast, seed=options.seed)
