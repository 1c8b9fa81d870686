"""How robust is it? A network trained plainly and one trained against an attack, under every kind of attack.

    python -m experiments.robustness [--fast]

trains two convolutional networks on handwritten digits, the second on its own worst perturbations, and evaluates both: one step, many
steps, the cascade of four attacks, and a search for the smallest perturbation, which gives the whole curve of accuracy against ε. Writes
results/robustness/: the tables, the curves, a gallery of adversarial examples of each network, numbers.json and index.html.

To evaluate your own network, change `MODEL`: anything with `init(key)` and `apply(params, images)`.
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
from experiments.digit_classifier import BATCH, decaying, train

adv = dp.adversarial

MODEL = dp.models.cnn((8, 8, 1), channels=(32, 64), hidden=(128,))
EPOCHS, ROBUST_EPOCHS, TRAINING_STEPS, TRAINING_EPSILON = 60, 30, 7, 0.15
EPSILON, STEPS, QUERIES, EXAMPLES, SHOWN = 0.1, 40, 1000, 360, 10


def train_against(
    attack: adv.Attack, images: jax.Array, labels: jax.Array, epochs: int, key: jax.Array
) -> dp.Program:
    """Descend on the parameters, at the perturbations that the attack finds for them."""
    init_key, fit_key = jax.random.split(key)
    loss, optimizer = (
        adv.adversarial_training(MODEL.apply, attack),
        decaying(epochs * len(images) // BATCH),
    )
    start, data = MODEL.init(init_key), (images, labels)
    fitted = dp.training.fit(
        loss, start, data, optimizer=optimizer, batch_size=BATCH, epochs=epochs, key=fit_key
    )
    return dp.program(MODEL.apply, fitted.params)


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train both, evaluate both, and write it all to `folder`; returns the numbers."""
    epochs, robust_epochs, examples, steps = (
        (2, 1, 20, 3) if fast else (EPOCHS, ROBUST_EPOCHS, EXAMPLES, STEPS)
    )
    digits = dp.data.digits()
    plain_key, robust_key, attack_key = jax.random.split(jax.random.key(seed), 3)
    inner = adv.pgd(epsilon=TRAINING_EPSILON, steps=TRAINING_STEPS)
    networks = {
        "trained plainly": train(MODEL, digits.x_train, digits.y_train, epochs, plain_key).program,
        "trained against pgd": train_against(
            inner, digits.x_train, digits.y_train, robust_epochs, robust_key
        ),
    }
    attacks = [
        adv.fgsm(epsilon=EPSILON),
        adv.pgd(epsilon=EPSILON, steps=steps),
        adv.auto_attack(epsilon=EPSILON, steps=steps, queries=20 if fast else QUERIES),
        adv.fmn(norm="linf", steps=steps),
    ]
    x, y = digits.x_test[:examples], digits.y_test[:examples]
    reports = {
        name: adv.evaluate(network, x, y, attacks, key=attack_key)
        for name, network in networks.items()
    }
    numbers = {
        name: {
            "clean": report.clean.value,
            "robust accuracy": {
                outcome.name: outcome.accuracy.value
                for outcome in report.outcomes
                if outcome.epsilon is not None
            },
            "worst case": list(report.robust(EPSILON)[:3]),
            "contributions": report.outcomes[2].found.broken,  # type: ignore[attr-defined]
            "median distance": float(np.median(report.worst.distance)),
            "flags": [flag.name for flag in report.flags],
        }
        for name, report in reports.items()
    }
    figures = {"curves": dp.plotting.draw_robustness(reports)}
    figures |= {
        f"gallery, {name}": gallery(network, x, y, reports[name])
        for name, network in networks.items()
    }
    write(folder, numbers, reports, figures)
    return numbers


def gallery(network: dp.Program, x: jax.Array, y: jax.Array, report: adv.Report) -> Any:
    """The smallest perturbations found of the first examples that are read rightly."""
    some = np.flatnonzero(report.right)[:SHOWN]
    if not len(some):
        some = np.arange(1)
    attacked = report.outcomes[-1].found.adversarial[some]
    before, after = (jax.nn.softmax(network(jnp.asarray(images))) for images in (x[some], attacked))
    return dp.plotting.draw_adversarial(x[some], attacked, y[some], before, after)


def write(
    folder: Path, numbers: dict[str, Any], reports: dict[str, adv.Report], figures: dict[str, Any]
) -> None:
    """The page, the figures as files, and the numbers as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name.split(', ')[-1].replace(' ', '_')}.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    radii = np.linspace(0, 0.3, 7)
    rows = [
        [f"{epsilon:g}", *(str(report.robust(float(epsilon))) for report in reports.values())]
        for epsilon in radii
    ]
    text = "The share of digits that no attack found here turns, against how much every pixel may change; the band is its interval."
    sections = [
        Section("Accuracy against ε", text, figures["curves"], Table(["ε", *reports], rows))
    ]
    for name, report in reports.items():
        tried = [
            [outcome.name, str(outcome.accuracy), *_work(outcome)]
            for outcome in report.outcomes
            if outcome.epsilon is not None
        ]
        columns = [f"attack at ε = {EPSILON}", "accuracy", "gradients", "queries"]
        flags = "; ".join(flag.name for flag in report.flags) or "none"
        told = f"Without an attack {report.clean}. What each stage of the cascade added: {numbers[name]['contributions']}. Flags: {flags}."
        sections.append(
            Section(f"The network {name}", told, figures[f"gallery, {name}"], Table(columns, tried))
        )
    page = dp.plotting.write_page(
        folder / "index.html",
        "How robust is it?",
        sections,
        summary="A perturbation is the free variable.",
    )
    for name, report in reports.items():
        print(f"{name}\n{report}\n")
    print(page)


def _work(outcome: adv.Outcome) -> list[float]:
    return [float(np.mean(outcome.found.gradients)), float(np.mean(outcome.found.queries))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fast", action="store_true", help="a few steps of everything, to see that it runs"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/robustness"))
    options = parser.parse_args()
    main(options.folder, fast=options.fast, seed=options.seed)
