"""Which pixels made the network say so, by seven methods, and whether the methods are about the network at all.

    python -m experiments.attributions [--fast]

trains a convolutional network on handwritten digits and attributes its answers to their pixels: gradients, gradients times input, smoothed
and integrated gradients, grad-CAM, guided backprop and occlusion. Then the two checks: the layers of the network are randomised one after
another, after which an attribution that explains what was learnt must have changed; and pixels are taken away in the order of their
attribution, which must hurt more than a random order. Writes results/attributions/: figures, numbers.json, index.html.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffprog as dp
from diffprog.plotting import Section, Table
from experiments.digit_classifier import train

Method = Callable[[Any, jax.Array, jax.Array], jax.Array]

vis = dp.visualization

MODEL = dp.models.cnn((8, 8, 1), channels=(32, 64), hidden=(128,))
LAST_CONVOLUTION, LAYERS = "hidden2", ("logits", "affine3", "conv2", "conv1")
EPOCHS, SHOWN, JUDGED = 60, 10, 200


def methods(key: jax.Array) -> dict[str, Method]:
    """Each method as a function (f, images, targets) -> maps."""
    return {
        "saliency": vis.saliency,
        "input × gradient": vis.input_x_gradient,
        "smooth grad": lambda f, x, j: vis.smooth_grad(f, x, j, key=key),
        "integrated gradients": lambda f, x, j: vis.integrated_gradients(f, x, j).attribution,
        "grad-CAM": lambda f, x, j: vis.grad_cam(f, x, j, LAST_CONVOLUTION),
        "guided backprop": vis.guided_backprop,
        "occlusion": lambda f, x, j: vis.occlusion(f, x, j, window=2),
    }


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train, attribute, check, and write it all to `folder`; returns the numbers."""
    digits = dp.data.digits()
    epochs, judged = (4, 20) if fast else (EPOCHS, JUDGED)
    train_key, method_key, random_key, check_key = jax.random.split(jax.random.key(seed), 4)
    network = train(MODEL, digits.x_train, digits.y_train, epochs, train_key)
    f, x = network.program, digits.x_test[:judged]
    read = f(x).argmax(-1)
    probabilities = dp.program(lambda images: jax.nn.softmax(f(images)))

    maps = {name: method(f, x, read) for name, method in methods(method_key).items()}
    maps_or_noise = {**maps, "random order": jax.random.uniform(random_key, x.shape)}
    importance = {
        name: -values if name == "random order" else values
        for name, values in maps_or_noise.items()
    }
    deleted = {
        name: vis.deletion(probabilities, x, values, read) for name, values in importance.items()
    }
    inserted = {
        name: vis.insertion(probabilities, x, values, read) for name, values in importance.items()
    }

    def left_of(method: Method) -> np.ndarray:
        maps_of = lambda params: method(dp.program(MODEL.apply, params), x[:SHOWN], read[:SHOWN])
        return vis.randomise_parameters(
            maps_of, network.params, key=check_key, layers=LAYERS
        ).similarity.mean(1)

    left = {name: left_of(method) for name, method in methods(method_key).items()}
    gap = vis.integrated_gradients(f, x, read).gap
    numbers = {
        "accuracy": network.accuracy(digits.x_test, digits.y_test),
        "completeness gap": float(jnp.abs(gap).max()),
        "area under deletion": {name: float(curve.area.mean()) for name, curve in deleted.items()},
        "area under insertion": {
            name: float(curve.area.mean()) for name, curve in inserted.items()
        },
        "similarity after randomisation": {
            name: [float(share) for share in shares] for name, shares in left.items()
        },
    }
    shares = deleted["saliency"].shares
    figures = {
        "maps": dp.plotting.draw_attributions(
            x[:SHOWN], {k: v[:SHOWN] for k, v in maps.items()}, [f"read {j}" for j in read[:SHOWN]]
        ),
        "deletion": _curves(shares, deleted, "share of pixels deleted"),
        "insertion": _curves(shares, inserted, "share of pixels inserted"),
    }
    write(folder, numbers, figures)
    return numbers


def _curves(shares: np.ndarray, curves: dict[str, vis.Curve], xlabel: str) -> Any:
    means = {name: curve.scores.mean(0) for name, curve in curves.items()}
    return dp.plotting.draw_curves(
        shares, means, xlabel=xlabel, ylabel="probability of what was read"
    )


def write(folder: Path, numbers: dict[str, Any], figures: dict[str, Any]) -> None:
    """The page, the figures as files, and the numbers as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    under = numbers["area under deletion"]
    areas = [
        [name, under[name], numbers["area under insertion"][name]]
        for name in sorted(under, key=under.__getitem__)
    ]
    left = [[name, *shares] for name, shares in numbers["similarity after randomisation"].items()]
    sections = [
        Section(
            "Seven methods", "Each says of each pixel what it did for the answer.", figures["maps"]
        ),
        Section(
            "Taking pixels away",
            "Pixels are set to black in the order of their attribution. The faster the probability falls, the better the method knew what "
            "the answer hung on; a random order is the measure.",
            figures["deletion"],
            Table(["method", "area under deletion", "area under insertion"], areas),
        ),
        Section(
            "Putting pixels in",
            "The same from a black image, the most important pixels first: here a fast rise is good.",
            figures["insertion"],
        ),
        Section(
            "Forgetting what was learnt",
            "Rank correlation of |attribution| with that of the trained network, after the layers down to the one named were given random "
            "weights. A method that stays near 1 shows the image, not the network.",
            table=Table(["method", *LAYERS], left),
        ),
    ]
    page = dp.plotting.write_page(
        folder / "index.html",
        "Which pixels made it say so?",
        sections,
        summary="Attribution, and two checks of it.",
    )
    print(
        f"accuracy {numbers['accuracy']:.2%}; largest completeness gap of integrated gradients {numbers['completeness gap']:.1e}"
    )
    for name, deletion, insertion in areas:
        print(f"{name:22s} area under deletion {deletion:.3f}, under insertion {insertion:.3f}")
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fast", action="store_true", help="a few steps of everything, to see that it runs"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/attributions"))
    options = parser.parse_args()
    main(options.folder, fast=options.fast, seed=options.seed)
