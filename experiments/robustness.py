"""Compare the robust accuracy after standard training and after adversarial training.

    python -m experiments.robustness [--fast]

Two convolutional networks learn handwritten digits, the second on adversarial examples of itself.
Both are evaluated with FGSM, PGD, AutoAttack and FMN; the last finds the smallest perturbations,
which give the robust accuracy at every ε. Writes results/robustness/: the curves, adversarial
examples of both networks, numbers.json and index.html with the tables.

For your own model, change `MODEL`: anything with `init(key)` and `apply(params, images)`.
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
EPOCHS, ADVERSARIAL_EPOCHS = 60, 30
TRAINING_ATTACK = adv.pgd(epsilon=0.15, steps=7)
EPSILON, STEPS, QUERIES, EXAMPLES, SHOWN = 0.1, 40, 1000, 360, 10


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train and evaluate both networks, write the results to `folder`, and return the numbers."""
    epochs, adversarial_epochs, examples, steps, queries = (
        (2, 1, 20, 3, 20) if fast else (EPOCHS, ADVERSARIAL_EPOCHS, EXAMPLES, STEPS, QUERIES)
    )
    standard_key, adversarial_key, attack_key = jax.random.split(jax.random.key(seed), 3)
    digits = dp.data.digits()
    data = digits.x_train, digits.y_train
    standard = train(MODEL, *data, epochs, standard_key)
    hardened = train(MODEL, *data, adversarial_epochs, adversarial_key, attack=TRAINING_ATTACK)
    networks = {"standard training": standard.program, "adversarial training": hardened.program}

    attacks = [
        adv.fgsm(epsilon=EPSILON),
        adv.pgd(epsilon=EPSILON, steps=steps),
        adv.auto_attack(epsilon=EPSILON, steps=steps, queries=queries),
        adv.fmn(norm="linf", steps=steps),
    ]
    x, y = digits.x_test[:examples], digits.y_test[:examples]
    reports = {
        name: adv.evaluate(network, x, y, attacks, key=attack_key)
        for name, network in networks.items()
    }
    numbers = {
        name: {
            "clean accuracy": report.clean.value,
            "accuracy": {
                outcome.name: outcome.accuracy.value
                for outcome in report.outcomes
                if outcome.epsilon is not None
            },
            "robust accuracy": list(report.robust(EPSILON)[:3]),
            "successes of each stage": report.outcomes[2].found.broken,  # type: ignore[attr-defined]
            "median distance": float(np.median(report.worst.distance)),
            "flags": [flag.name for flag in report.flags],
        }
        for name, report in reports.items()
    }
    figures = {"curves": dp.plotting.draw_robustness(reports)}
    figures |= {
        name: draw_examples(network, x, y, reports[name]) for name, network in networks.items()
    }
    write(folder, numbers, reports, figures)
    return numbers


def draw_examples(network: dp.Program, x: jax.Array, y: jax.Array, report: adv.Report) -> Any:
    """Draw the smallest perturbations of the first correctly classified examples."""
    # After the few steps of a fast run, there may be no correctly classified example.
    some = np.flatnonzero(report.correct)[:SHOWN] if report.correct.any() else np.arange(1)
    perturbed = jnp.asarray(report.outcomes[-1].found.adversarial[some])
    before, after = jax.nn.softmax(network(x[some])), jax.nn.softmax(network(perturbed))
    return dp.plotting.draw_adversarial(x[some], perturbed, y[some], before, after)


def write(
    folder: Path, numbers: dict[str, Any], reports: dict[str, adv.Report], figures: dict[str, Any]
) -> None:
    """Write the page, the figures and the numbers, and print the reports."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name.replace(' ', '_')}.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    radii = [
        [f"{epsilon:g}", *(str(report.robust(float(epsilon))) for report in reports.values())]
        for epsilon in np.linspace(0, 0.3, 7)
    ]
    sections = [
        Section(
            "Robust accuracy",
            "The share of digits that are correctly classified and for which no attack found an "
            "adversarial perturbation with |r| <= ε in every pixel, with its confidence interval.",
            figures["curves"],
            Table(["ε", *reports], radii),
        )
    ]
    for name, report in reports.items():
        attacks = [
            [
                outcome.name,
                str(outcome.accuracy),
                float(np.mean(outcome.found.gradients)),
                float(np.mean(outcome.found.queries)),
            ]
            for outcome in report.outcomes
            if outcome.epsilon is not None
        ]
        stages = "; ".join(
            f"{stage} {count}" for stage, count in numbers[name]["successes of each stage"].items()
        )
        flags = ", ".join(numbers[name]["flags"]) or "none"
        text = (
            f"Clean accuracy: {report.clean}. New successes of each stage of AutoAttack: {stages}. "
            f"Signs of gradient masking: {flags}. The figure shows the smallest perturbations that "
            "FMN found."
        )
        columns = [f"attack, ε = {EPSILON}", "accuracy", "gradients per digit", "queries per digit"]
        title = f"Network after {name}"
        sections.append(Section(title, text, figures[name], Table(columns, attacks)))
    page = dp.plotting.write_page(
        folder / "index.html",
        "Robustness",
        sections,
        summary="A network after standard and after adversarial training, under four attacks.",
    )
    for name, report in reports.items():
        print(f"{name}\n{report}\n")
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a few steps of everything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/robustness"))
    main(**vars(parser.parse_args()))
