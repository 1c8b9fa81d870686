"""A first walk through diffprog: one model, and four variables made free.

    make tour        or        python -m experiments.tour [--fast]

trains a convolutional network on scikit-learn's real handwritten digits (the parameters are free), makes the images its units look for
(the input is free), makes adversarial examples (a small perturbation is free), and holds gradients written by hand against `jax.grad`.
It writes figures, numbers and one self-contained page, results/tour/index.html, and prints what came out.

To see your own model instead, change `MODEL`: anything with `init(key)` and `apply(params, images)` that taps a node `CHANNELS`.
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

vis = dp.visualization

MODEL = dp.models.cnn((8, 8, 1), channels=(32, 64), hidden=(128,))
CHANNELS, SHOWN_CHANNELS = "conv2", 20
EPOCHS = 60
VISUALIZATION_STEPS, PLAINNESS = 200, 0.01
EPSILONS, ATTACK_STEPS, SHOWN_EPSILON = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3), 40, 0.2


def visualize(
    program: dp.Program, objective: vis.Objective, images: jax.Array, steps: int, key: jax.Array
) -> jax.Array:
    """Descend on the input: an image for each unit, made of what varies between real images, and no stranger than it must be."""
    return vis.visualize(
        program,
        objective,
        vis.covariance(images),
        steps=steps,
        transforms=vis.default_transforms(),
        penalties={vis.of_variable(vis.l2): PLAINNESS},
        key=key,
    ).images


def gradients_by_hand(digits: dp.data.Dataset, key: jax.Array) -> list[list[Any]]:
    """The MLP of lecture 000, x - linear - relu - linear - L2, on real digits: each gradient by hand against `jax.grad`, in float64."""
    bp = dp.backprop
    net, loss = (
        bp.chain([bp.affine(64, 32), bp.relu(), bp.affine(32, 10)]),
        bp.sum_over_examples(bp.half_squared_error()),
    )
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(float), net.init(key))
        x, target = (
            digits.x_train[:256].reshape(256, 64).astype(float),
            jax.nn.one_hot(digits.y_train[:256], 10, dtype=float),
        )
        by_hand = bp.value_and_grads(net, loss, params, x, target)
        automatic = jax.grad(
            lambda params, x: loss.forward((), (net.forward(params, x)[0], target))[0], (0, 1)
        )(params, x)
        pairs = {
            "dJ/dW₁": (by_hand.dparams[0]["weight"], automatic[0][0]["weight"]),
            "dJ/db₁": (by_hand.dparams[0]["bias"], automatic[0][0]["bias"]),
            "dJ/dW₂": (by_hand.dparams[2]["weight"], automatic[0][2]["weight"]),
            "dJ/db₂": (by_hand.dparams[2]["bias"], automatic[0][2]["bias"]),
            "dJ/dx": (by_hand.dx, automatic[1]),
        }
        shape = lambda array: " x ".join(map(str, array.shape))
        return [
            [name, shape(a), float(jnp.abs(b).max()), float(jnp.abs(a - b).max())]
            for name, (a, b) in pairs.items()
        ]


def check(digits: dp.data.Dataset, key: jax.Array) -> dp.checks.Report:
    """Every layer of a small convolutional network by hand against `jax.grad` and against finite differences, each alone."""
    bp = dp.backprop
    net = bp.chain(
        [
            bp.convolution(1, 3),
            bp.tanh(),
            bp.average_pool(),
            bp.flatten(),
            bp.affine(48, 10),
            bp.softmax(),
        ]
    )
    return dp.checks.check_net(net, net.init(key), digits.x_train[:4], key=key)


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Run the tour, write its page and figures to `folder`, and return its numbers."""
    digits = dp.data.digits()
    names = [str(digit) for digit in range(10)]
    epochs, steps, attack_steps = (
        (2, 20, 5) if fast else (EPOCHS, VISUALIZATION_STEPS, ATTACK_STEPS)
    )
    train_key, see_key, attack_key, hand_key = jax.random.split(jax.random.key(seed), 4)

    trained = train(MODEL, digits.x_train, digits.y_train, epochs, train_key)
    logits = visualize(trained.program, vis.logit(range(10)), digits.x_train, steps, see_key)
    channels = visualize(
        trained.program,
        vis.channel(CHANNELS, range(SHOWN_CHANNELS)),
        digits.x_train,
        steps,
        see_key,
    )
    attacks = {eps: dp.adversarial.pgd(epsilon=eps, steps=attack_steps) for eps in EPSILONS}
    found = {
        eps: attack(trained.program, digits.x_test, digits.y_test, key=attack_key)
        for eps, attack in attacks.items()
    }
    robust = [float((~result.success).mean()) for result in found.values()]
    gradients, report = gradients_by_hand(digits, hand_key), check(digits, hand_key)

    first = np.array([np.flatnonzero(np.asarray(digits.y_test) == digit)[0] for digit in range(10)])
    shown, shown_attacked = digits.x_test[first], found[SHOWN_EPSILON].adversarial[first]
    before, after = (jax.nn.softmax(trained.program(images)) for images in (shown, shown_attacked))
    figures = {
        "training": dp.plotting.draw_costs(
            trained.costs, scale="log", cost="cross-entropy of a batch"
        ),
        "logits": dp.plotting.draw_images(logits, [f"“{name}”" for name in names], columns=10),
        "channels": dp.plotting.draw_images(
            channels, [str(channel) for channel in range(SHOWN_CHANNELS)], columns=10
        ),
        "adversarial": dp.plotting.draw_adversarial(
            shown, shown_attacked, digits.y_test[first], before, after, names
        ),
        "robustness": dp.plotting.draw_accuracy(np.array(EPSILONS), np.array(robust), norm="L∞"),
    }
    numbers = {
        "accuracy": trained.accuracy(digits.x_test, digits.y_test),
        "attack steps": attack_steps,
        "last cost": float(trained.costs[-1]),
        "robust accuracy": dict(zip(map(str, EPSILONS), robust, strict=True)),
        "gradients found right": [
            sum(finding.verdict == "ok" for finding in report.findings),
            len(report.findings),
        ],
        "largest difference to jax.grad": max(row[-1] for row in gradients),
    }
    write(folder, numbers, figures, gradients, report)
    return numbers


def write(
    folder: Path,
    numbers: dict[str, Any],
    figures: dict[str, Any],
    gradients: list[list[Any]],
    report: dp.checks.Report,
) -> None:
    """The page, the figures as files, and the numbers as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    robust = [[float(eps), share] for eps, share in numbers["robust accuracy"].items()]
    sections = [
        Section(
            "The parameters are free: training",
            "A convolutional network learns 1,437 of scikit-learn's handwritten digits, 8 x 8 pixels each, by descent on its parameters. "
            f"It reads {numbers['accuracy']:.1%} of the 360 it has not seen.",
            figures["training"],
            caption="Cross-entropy of each training batch.",
        ),
        Section(
            "The input is free: what a unit looks for",
            "The same descent on the image instead: for each of the ten outputs, the image that excites it most. An image is made of what "
            "varies between real digits, their mean and covariance; free pixels would end in noise that excites the output just as well.",
            figures["logits"],
            caption="The image that excites each output most.",
        ),
        Section(
            "Inside: what a hidden channel looks for",
            f"And for single channels of the hidden layer {CHANNELS!r}, by the mean over the image.",
            figures["channels"],
            caption=f"The image that excites each of the first {SHOWN_CHANNELS} channels of {CHANNELS} most.",
        ),
        Section(
            "A perturbation is free: adversarial examples",
            f"Descent on a perturbation r that must stay small, |r| <= {SHOWN_EPSILON} in every pixel, towards any wrong answer.",
            figures["adversarial"],
            caption="Digits, the perturbation found, and what the network reads after it.",
        ),
        Section(
            "How robust is it?",
            f"The share of the 360 test digits still read rightly when every pixel may change by epsilon. {numbers['attack steps']} "
            "steps of projected gradient ascent from a random start: an upper bound, as a stronger attack may find more.",
            figures["robustness"],
            Table(["epsilon", "robust accuracy"], robust),
            caption="Accuracy under attack against the size of the perturbation.",
        ),
        Section(
            "The gradient, opened up",
            "The network of lecture 000, linear, relu, linear, squared error, in float64 on 256 digits: every gradient written by hand, "
            "layer by layer, against jax.grad.",
            table=Table(
                ["gradient", "shape", "largest entry", "largest difference to jax.grad"], gradients
            ),
        ),
        Section(
            "Would it notice an error?",
            "The checker takes each layer of a small convolutional network alone, with a cotangent of its own, and holds its backward pass "
            "against jax.grad and against finite differences. experiments/gradient_check.py plants errors and shows it finding them.",
            table=Table(
                ["layer", "gradient by", "error / tolerance", "verdict"],
                [
                    [found.layer, found.path, found.error / found.tolerance, found.verdict]
                    for found in report.findings
                ],
            ),
        ),
    ]
    summary = "One engine, descent on a scalar cost, and four variables made free: parameters, inputs, perturbations, and the gradient itself."
    page = dp.plotting.write_page(
        folder / "index.html", "A tour of diffprog", sections, summary=summary
    )

    print(f"accuracy on held-out digits      {numbers['accuracy']:.2%}")
    for eps, share in robust:
        print(f"  under attack, epsilon {eps:<5g}    {share:.2%}")
    print(f"hand-written gradient - jax.grad {numbers['largest difference to jax.grad']:.1e}")
    print(
        "hand-written layers, checked      {} of {} gradients right".format(
            *numbers["gradients found right"]
        )
    )
    print(f"page                             {page}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fast", action="store_true", help="a few steps of everything, to see that it runs"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/tour"))
    options = parser.parse_args()
    main(options.folder, fast=options.fast, seed=options.seed)
