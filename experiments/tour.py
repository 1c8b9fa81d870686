"""Train a network, visualize its units, attack it, and check gradients written by hand.

    make tour        or        python -m experiments.tour [--fast]

A convolutional network learns scikit-learn's handwritten digits. The same gradient descent then
optimizes images that maximize its outputs and channels, and small perturbations that make it
misclassify. Last, gradients written by hand are compared with `jax.grad`. Writes results/tour/:
the page index.html, its figures and numbers.json.

For your own model, change `MODEL` to anything with `init(key)` and `apply(params, images)`, and
`LAYER` to the name of a hidden layer that it tags with `dp.tap`.
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

adv, bp, vis = dp.adversarial, dp.backprop, dp.visualization

MODEL = dp.models.cnn((8, 8, 1), channels=(32, 64), hidden=(128,))
LAYER, CHANNELS = "conv2", 20
EPOCHS, VISUALIZATION_STEPS, ATTACK_STEPS = 60, 200, 40
EPSILONS, SHOWN_EPSILON = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3), 0.2


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Run the tour, write its page and figures to `folder`, and return its numbers."""
    epochs, steps, attack_steps = (
        (2, 20, 5) if fast else (EPOCHS, VISUALIZATION_STEPS, ATTACK_STEPS)
    )
    train_key, image_key, attack_key, layer_key = jax.random.split(jax.random.key(seed), 4)
    digits = dp.data.digits()
    x, y = digits.x_test, digits.y_test

    # Optimize the parameters: training.
    trained = train(MODEL, digits.x_train, digits.y_train, epochs, train_key)
    program = trained.program

    # Optimize the input: unit visualization.
    def visualize(objective: vis.Objective) -> jax.Array:
        return vis.visualize(
            program,
            objective,
            vis.covariance(digits.x_train),
            steps=steps,
            transforms=vis.default_transforms(),
            penalties={vis.of_variable(vis.l2): 0.01},
            key=image_key,
        ).images

    logits = visualize(vis.logit(range(10)))
    channels = visualize(vis.channel(LAYER, range(CHANNELS)))

    # Optimize a perturbation: adversarial examples.
    attacks = {epsilon: adv.pgd(epsilon=epsilon, steps=attack_steps) for epsilon in EPSILONS}
    results = {eps: attack(program, x, y, key=attack_key) for eps, attack in attacks.items()}
    robust = {eps: float((~result.success).mean()) for eps, result in results.items()}

    # Write gradients by hand, and check them.
    gradients = compare_gradients(digits, layer_key)
    report = check_layers(digits, layer_key)

    numbers = {
        "accuracy": trained.accuracy(x, y),
        "attack steps": attack_steps,
        "last loss": float(trained.losses[-1]),
        "robust accuracy": {str(epsilon): accuracy for epsilon, accuracy in robust.items()},
        "correct gradients": sum(finding.ok for finding in report.findings),
        "checked gradients": len(report.findings),
        "largest difference to jax.grad": max(row[-1] for row in gradients),
    }
    one_of_each = np.array([np.flatnonzero(y == digit)[0] for digit in range(10)])
    original, perturbed = x[one_of_each], results[SHOWN_EPSILON].adversarial[one_of_each]
    before, after = jax.nn.softmax(program(original)), jax.nn.softmax(program(perturbed))
    plot = dp.plotting
    figures = {
        "training": plot.draw_costs(trained.losses, scale="log", cost="cross-entropy"),
        "logits": plot.draw_images(logits, [f"logit {j}" for j in range(10)], columns=10),
        "channels": plot.draw_images(channels, list(map(str, range(CHANNELS))), columns=10),
        "adversarial": plot.draw_adversarial(original, perturbed, y[one_of_each], before, after),
        "robustness": plot.draw_accuracy(
            np.array(EPSILONS), np.array(list(robust.values())), norm="L∞"
        ),
    }
    write(folder, numbers, figures, gradients, report)
    return numbers


def compare_gradients(digits: dp.data.Dataset, key: jax.Array) -> list[list[Any]]:
    """Compare backprop by hand through affine, relu, affine with `jax.grad`, in float64."""
    net = bp.chain([bp.affine(64, 32), bp.relu(), bp.affine(32, 10)])
    loss = bp.sum_over_examples(bp.half_squared_error())
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(float), net.init(key))
        x = digits.x_train[:256].reshape(256, 64).astype(float)
        target = jax.nn.one_hot(digits.y_train[:256], 10, dtype=float)

        def forward(params: Any, x: jax.Array) -> jax.Array:
            return loss.forward((), (net.forward(params, x)[0], target))[0]

        by_hand = bp.value_and_grads(net, loss, params, x, target)
        dparams, dx = jax.grad(forward, (0, 1))(params, x)
        pairs = {
            "dJ/dW₁": (by_hand.dparams[0]["weight"], dparams[0]["weight"]),
            "dJ/db₁": (by_hand.dparams[0]["bias"], dparams[0]["bias"]),
            "dJ/dW₂": (by_hand.dparams[2]["weight"], dparams[2]["weight"]),
            "dJ/db₂": (by_hand.dparams[2]["bias"], dparams[2]["bias"]),
            "dJ/dx": (by_hand.dx, dx),
        }
        return [
            [name, str(a.shape), float(jnp.abs(b).max()), float(jnp.abs(a - b).max())]
            for name, (a, b) in pairs.items()
        ]


def check_layers(digits: dp.data.Dataset, key: jax.Array) -> dp.checks.Report:
    """Check the backward pass of each layer against `jax.grad` and finite differences."""
    features = [bp.convolution(1, 3), bp.tanh(), bp.average_pool(), bp.flatten()]
    net = bp.chain([*features, bp.affine(48, 10), bp.softmax()])
    return dp.checks.check_net(net, net.init(key), digits.x_train[:4], key=key)


def write(
    folder: Path,
    numbers: dict[str, Any],
    figures: dict[str, Any],
    gradients: list[list[Any]],
    report: dp.checks.Report,
) -> None:
    """Write the page, the figures and the numbers, and print the main results."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    robust = [[float(eps), accuracy] for eps, accuracy in numbers["robust accuracy"].items()]
    findings = [[f.layer, f.path, f.error / f.tolerance, f.verdict] for f in report.findings]
    sections = [
        Section(
            "Optimize the parameters: training",
            "A convolutional network is trained on 1,437 of scikit-learn's handwritten digits, "
            f"8 x 8 pixels each. Its accuracy on the 360 test digits is {numbers['accuracy']:.1%}.",
            figures["training"],
            caption="Cross-entropy of each training batch.",
        ),
        Section(
            "Optimize the input: unit visualization",
            "Gradient ascent finds an image that maximizes one output. Images are parametrized by "
            "the principal components of real digits: free pixels would end in noise that "
            "maximizes the output just as well.",
            figures["logits"],
            caption="Images that maximize each of the ten logits.",
        ),
        Section(
            "Hidden channels",
            f"The same for the mean activation of single channels of the hidden layer {LAYER}.",
            figures["channels"],
            caption=f"Images that maximize each of the first {CHANNELS} channels of {LAYER}.",
        ),
        Section(
            "Optimize a perturbation: adversarial examples",
            "Projected gradient descent (PGD) searches for a perturbation r of at most "
            f"{SHOWN_EPSILON} in every pixel that makes the network misclassify.",
            figures["adversarial"],
            caption="Digits, perturbations and adversarial examples, with the predicted class.",
        ),
        Section(
            "Robust accuracy",
            "The share of test digits that stay correctly classified under "
            f"{numbers['attack steps']} steps of PGD with |r| <= ε in every pixel. It is an upper "
            "bound: a stronger attack may lower it.",
            figures["robustness"],
            Table(["ε", "robust accuracy"], robust),
            caption="Robust accuracy against the radius ε.",
        ),
        Section(
            "Backprop by hand",
            "The gradients of a network affine, relu, affine with squared error on 256 digits, "
            "written by hand and compared with jax.grad in float64.",
            table=Table(
                ["gradient", "shape", "largest entry", "largest difference to jax.grad"], gradients
            ),
        ),
        Section(
            "Gradient check",
            "Each layer of a small convolutional network, its backward pass compared with jax.grad "
            "and with finite differences. A ratio above 1 would be an error; "
            "experiments/gradient_check.py plants errors to show that the check finds them.",
            table=Table(["layer", "gradient", "error / tolerance", "verdict"], findings),
        ),
    ]
    summary = "The same gradient descent over the parameters, the input and its perturbation."
    page = dp.plotting.write_page(
        folder / "index.html", "A tour of diffprog", sections, summary=summary
    )

    print(f"test accuracy                             {numbers['accuracy']:.2%}")
    for epsilon, accuracy in robust:
        print(f"robust accuracy, ε = {epsilon:<5g}                {accuracy:.2%}")
    print(
        f"largest difference to jax.grad            {numbers['largest difference to jax.grad']:.1e}"
    )
    print(
        "gradients by hand that pass the check     "
        f"{numbers['correct gradients']} of {numbers['checked gradients']}"
    )
    print(f"page                                      {page}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a few steps of everything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/tour"))
    main(**vars(parser.parse_args()))
