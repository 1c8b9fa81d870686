"""Attribute predictions to pixels by seven methods, and test the methods themselves.

    python -m experiments.attributions [--fast]

A convolutional network learns handwritten digits. Its predictions are attributed to pixels by
gradients, gradients times input, SmoothGrad, integrated gradients, Grad-CAM, guided backprop and
occlusion. Two tests follow. If the layers are randomized one after another, the attributions must
change. If pixels are deleted in the order of their attribution, the predicted probability must fall
faster than in a random order. Writes results/attributions/: figures, numbers.json, index.html.

For your own model, change `MODEL`, and `LAST_CONVOLUTION` and `LAYERS` to names of its layers.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import diffprog as dp
from diffprog.plotting import Section, Table
from experiments.digit_classifier import train

vis = dp.visualization

Method = Callable[[Any, jax.Array, jax.Array], jax.Array]

MODEL = dp.models.cnn((8, 8, 1), channels=(32, 64), hidden=(128,))
LAST_CONVOLUTION, LAYERS = "hidden2", ("logits", "affine3", "conv2", "conv1")
EPOCHS, EXAMPLES, SHOWN = 60, 200, 10


def make_methods(key: jax.Array) -> dict[str, Method]:
    """Return each method as a function (program, images, targets) -> maps."""
    return {
        "saliency": vis.saliency,
        "input × gradient": vis.input_x_gradient,
        "SmoothGrad": lambda f, x, j: vis.smooth_grad(f, x, j, key=key),
        "integrated gradients": lambda f, x, j: vis.integrated_gradients(f, x, j).attribution,
        "Grad-CAM": lambda f, x, j: vis.grad_cam(f, x, j, LAST_CONVOLUTION),
        "guided backprop": vis.guided_backprop,
        "occlusion": lambda f, x, j: vis.occlusion(f, x, j, window=2),
    }


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train, attribute, test, write the results to `folder`, and return the numbers."""
    epochs, examples = (4, 20) if fast else (EPOCHS, EXAMPLES)
    train_key, method_key, random_key, check_key = jax.random.split(jax.random.key(seed), 4)
    digits = dp.data.digits()
    network = train(MODEL, digits.x_train, digits.y_train, epochs, train_key)
    program, x = network.program, digits.x_test[:examples]
    predicted = program(x).argmax(-1)
    probabilities = dp.program(lambda images: jax.nn.softmax(program(images)))

    methods = make_methods(method_key)
    maps = {name: method(program, x, predicted) for name, method in methods.items()}
    orders = maps | {"random order": -jax.random.uniform(random_key, x.shape)}
    deleted = {
        name: vis.deletion(probabilities, x, order, predicted) for name, order in orders.items()
    }
    inserted = {
        name: vis.insertion(probabilities, x, order, predicted) for name, order in orders.items()
    }

    def similarity(method: Method) -> list[float]:
        """Compare the maps with those of the network with randomized layers."""

        def attribute(params: Any) -> jax.Array:
            return method(dp.program(MODEL.apply, params), x[:SHOWN], predicted[:SHOWN])

        result = vis.randomise_parameters(attribute, network.params, key=check_key, layers=LAYERS)
        return [float(value) for value in result.similarity.mean(1)]

    gap = vis.integrated_gradients(program, x, predicted).gap
    numbers = {
        "accuracy": network.accuracy(digits.x_test, digits.y_test),
        "completeness gap": float(jnp.abs(gap).max()),
        "area under deletion": {name: float(curve.area.mean()) for name, curve in deleted.items()},
        "area under insertion": {
            name: float(curve.area.mean()) for name, curve in inserted.items()
        },
        "similarity after randomization": {
            name: similarity(method) for name, method in methods.items()
        },
    }
    figures = {
        "maps": dp.plotting.draw_attributions(
            x[:SHOWN],
            {name: values[:SHOWN] for name, values in maps.items()},
            [f"predicted {j}" for j in predicted[:SHOWN]],
        ),
        "deletion": draw_mean_curves(deleted, "share of pixels deleted"),
        "insertion": draw_mean_curves(inserted, "share of pixels inserted"),
    }
    write(folder, numbers, figures)
    return numbers


def draw_mean_curves(curves: dict[str, vis.Curve], xlabel: str) -> Any:
    shares = curves["random order"].shares
    means = {name: curve.scores.mean(0) for name, curve in curves.items()}
    ylabel = "probability of the predicted class"
    return dp.plotting.draw_curves(shares, means, xlabel=xlabel, ylabel=ylabel)


def write(folder: Path, numbers: dict[str, Any], figures: dict[str, Any]) -> None:
    """Write the page, the figures and the numbers, and print the main results."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    deletion, insertion = numbers["area under deletion"], numbers["area under insertion"]
    areas = [[name, deletion[name], insertion[name]] for name in sorted(deletion, key=deletion.get)]
    similarities = [
        [name, *values] for name, values in numbers["similarity after randomization"].items()
    ]
    sections = [
        Section(
            "Attribution maps",
            "Each map shows how much each pixel contributes to the logit of the predicted class.",
            figures["maps"],
        ),
        Section(
            "Deletion",
            "Pixels are set to black, those of the largest attribution first. The faster the "
            "probability falls, the better the method found the pixels that the prediction "
            "depends on; a random order is the baseline.",
            figures["deletion"],
            Table(["method", "area under deletion", "area under insertion"], areas),
        ),
        Section(
            "Insertion",
            "Pixels are inserted into a black image, those of the largest attribution first. Here "
            "a fast rise is good.",
            figures["insertion"],
        ),
        Section(
            "Randomized layers",
            "Rank correlation between |attribution| of the trained network and of one whose layers "
            "were randomized, from the output down to the named one. A method that stays near 1 "
            "shows the image, not what the network learned.",
            table=Table(["method", *LAYERS], similarities),
        ),
    ]
    page = dp.plotting.write_page(
        folder / "index.html",
        "Attributions",
        sections,
        summary="Which pixels a prediction depends on, by seven methods, and two tests of them.",
    )
    print(f"test accuracy {numbers['accuracy']:.2%}")
    print(f"largest completeness gap of integrated gradients {numbers['completeness gap']:.1e}")
    for name, deletion_area, insertion_area in areas:
        print(f"{name:22s} area under deletion {deletion_area:.3f}, insertion {insertion_area:.3f}")
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a few steps of everything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/attributions"))
    main(**vars(parser.parse_args()))
