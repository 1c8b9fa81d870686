"""Visualize every unit of a network, and test the images on another network.

    python -m experiments.unit_visualization [--fast]

A convolutional network learns one half of scikit-learn's handwritten digits. For every channel of
every layer, gradient ascent finds the image that maximizes its activation; the percentage above it
is the share of real digits that activate the channel less. The images of the ten outputs are also
classified by a second network of another architecture, trained on the other half: an image that
only the first network recognizes shows a weakness of that network, not a digit. Writes
results/unit_visualization/: the images of each layer, numbers.json and index.html.

For your own model, change `MODEL` to anything with `init(key)` and `apply(params, images)`, and
`LAYERS` to names and channel counts of layers that it tags with `dp.tap`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

import diffprog as dp
from diffprog.plotting import Section
from experiments.digit_classifier import train

vis = dp.visualization

MODEL = dp.models.cnn((8, 8, 1), channels=(16, 32), hidden=(64,))
SECOND_MODEL = dp.models.cnn(
    (8, 8, 1), channels=(24, 24), hidden=(), activation="elu", pool="average"
)
LAYERS = {"conv1": 16, "conv2": 32, "affine3": 64}
EPOCHS, STEPS, IMAGES_PER_DIGIT = 60, 200, 10


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train, visualize, classify, write the results to `folder`, and return the numbers."""
    epochs, steps = (4, 10) if fast else (EPOCHS, STEPS)
    train_key, second_key, image_key = jax.random.split(jax.random.key(seed), 3)
    digits = dp.data.digits()
    half = len(digits.x_train) // 2
    x, y = digits.x_train[:half], digits.y_train[:half]
    network = train(MODEL, x, y, epochs, train_key)
    second = train(SECOND_MODEL, digits.x_train[half:], digits.y_train[half:], epochs, second_key)

    def visualize(objective: vis.Objective) -> vis.Visualization:
        return vis.visualize(
            network.program,
            objective,
            vis.covariance(x),
            key=image_key,
            steps=steps,
            transforms=[vis.jitter(1)],
            data=digits.x_test,
        )

    layers = {
        layer: visualize(vis.channel(layer, range(channels))) for layer, channels in LAYERS.items()
    }
    target = np.repeat(np.arange(10), IMAGES_PER_DIGIT)
    logits = visualize(vis.logit(target))
    predicted = np.asarray(second.program(logits.images).argmax(-1))
    agreement = predicted == target
    numbers = {
        "accuracy": network.accuracy(digits.x_test, digits.y_test),
        "accuracy of the second network": second.accuracy(digits.x_test, digits.y_test),
        "agreement": float(agreement.mean()),
        "agreement by digit": agreement.reshape(10, -1).mean(1).tolist(),
        "median percentile": {
            layer: float(np.median(np.asarray(result.percentiles)))
            for layer, result in layers.items()
        },
    }
    write(folder, numbers, layers, logits, predicted)
    return numbers


def write(
    folder: Path,
    numbers: dict[str, Any],
    layers: dict[str, vis.Visualization],
    logits: vis.Visualization,
    predicted: np.ndarray,
) -> None:
    """Write the figures, the numbers and the page, and print the main results."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    titles = [f"predicted {digit}" for digit in predicted]
    figures = {"logits": dp.plotting.draw_images(logits.images, titles, columns=IMAGES_PER_DIGIT)}
    for layer, result in layers.items():
        percentiles = enumerate(np.asarray(result.percentiles))
        titles = [f"{channel}: {percentile:.0f} %" for channel, percentile in percentiles]
        figures[layer] = dp.plotting.draw_images(result.images, titles, columns=8)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)

    sections = [
        Section(
            "Outputs",
            f"A row for each of the ten logits, with {IMAGES_PER_DIGIT} images that maximize it, "
            "and above them the prediction of a second network of another architecture. It was "
            "trained on the other half of the digits and has a test accuracy of "
            f"{numbers['accuracy of the second network']:.1%}. "
            f"Its prediction is the maximized logit for {numbers['agreement']:.0%} of the images.",
            figures["logits"],
        )
    ]
    for layer, channels in LAYERS.items():
        text = (
            "Above each image: the channel, and the percentage of test digits that activate it "
            "less than the image does, by the mean over positions."
        )
        sections.append(Section(f"The {channels} channels of {layer}", text, figures[layer]))
    page = dp.plotting.write_page(
        folder / "index.html",
        "Unit visualization",
        sections,
        summary="Images that maximize the activation of each unit of a network.",
    )

    print(f"test accuracy                       {numbers['accuracy']:.2%}")
    print(f"test accuracy of the second network {numbers['accuracy of the second network']:.2%}")
    print(f"agreement of the second network     {numbers['agreement']:.0%}")
    for layer, percentile in numbers["median percentile"].items():
        print(f"{layer}: median percentile of the images among test digits {percentile:.0f} %")
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a few steps of everything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/unit_visualization"))
    main(**vars(parser.parse_args()))
