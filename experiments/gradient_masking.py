"""Detect three defenses that only mask gradients, and attack each adaptively.

    python -m experiments.gradient_masking [--fast]

A convolutional network learns handwritten digits and gets three defenses that do not make it more
robust. Scaled logits leave the cross-entropy without a gradient, a quantized input has none, and
random noise on the input makes it random. Each defense is evaluated with plain PGD and a black-box
attack, which raise the flags for gradient masking, and then with an attack adapted to the defense.
Writes results/gradient_masking/: index.html with the tables and flags, and numbers.json.

For your own model, change `MODEL`; for your own defense, add a `Defense` to `make_defenses`.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffprog as dp
from diffprog.plotting import Section, Table
from experiments.digit_classifier import train

adv = dp.adversarial

MODEL = dp.models.cnn((8, 8, 1), channels=(32, 64), hidden=(128,))
EPOCHS, EXAMPLES, EPSILON, STEPS, DRAWS = 60, 100, 0.2, 40, 16
SCALE, LEVELS, NOISE = 100.0, 4, 0.3


class Defense(NamedTuple):
    """A defended program, a naive attack on it, and an adaptive attack with its program."""

    text: str
    program: Callable[..., jax.Array]
    naive_attack: adv.Attack
    adaptive_name: str
    adaptive_program: Callable[..., jax.Array]
    adaptive_attack: adv.Attack


def make_defenses(f: dp.Program, steps: int, seed: int) -> dict[str, Defense]:
    """Return the three defenses of a network."""
    generator = np.random.default_rng(seed)
    pgd = adv.pgd(epsilon=EPSILON, steps=steps)

    def scaled(x: jax.Array) -> jax.Array:
        return SCALE * f(x)

    def quantized(x: jax.Array) -> jax.Array:
        return f(jnp.round(LEVELS * x) / LEVELS)

    def noisy(x: jax.Array, key: jax.Array) -> jax.Array:
        return f(x + NOISE * jax.random.normal(key, x.shape))

    def hidden_noise(x: jax.Array) -> jax.Array:
        return noisy(x, jax.random.key(generator.integers(2**31)))

    def cross_entropy(logits: jax.Array, labels: jax.Array, _: Any) -> jax.Array:
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)

    return {
        "scaled logits": Defense(
            f"Logits times {SCALE:g}: the softmax rounds to 1 and the cross-entropy has a zero "
            "gradient. The adaptive attack maximizes the difference of logits ratio (DLR).",
            scaled,
            adv.pgd(epsilon=EPSILON, steps=steps, loss=cross_entropy),
            "PGD on the DLR loss",
            scaled,
            adv.pgd(epsilon=EPSILON, steps=steps, loss="dlr"),
        ),
        "quantized input": Defense(
            f"The input is rounded to {LEVELS + 1} values, so that the program is constant almost "
            "everywhere. The adaptive attack (BPDA) differentiates as if nothing were rounded.",
            quantized,
            pgd,
            "PGD with BPDA",
            adv.bpda(quantized),
            pgd,
        ),
        "random program": Defense(
            f"Noise of standard deviation {NOISE:g} is added to the input. The adaptive attack "
            f"averages over {DRAWS} draws of the noise (expectation over transformation).",
            hidden_noise,
            pgd,
            "PGD with EOT",
            noisy,
            adv.expectation(pgd, DRAWS),
        ),
    }


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train, evaluate each defense twice, write the results to `folder`, and return the numbers."""
    epochs, examples, steps = (2, 20, 5) if fast else (EPOCHS, EXAMPLES, STEPS)
    train_key, attack_key = jax.random.split(jax.random.key(seed))
    digits = dp.data.digits()
    network = train(MODEL, digits.x_train, digits.y_train, epochs, train_key).program
    x, y = digits.x_test[:examples], digits.y_test[:examples]

    pgd = adv.pgd(epsilon=EPSILON, steps=steps)
    square = adv.square(epsilon=EPSILON, queries=steps * 10)
    undefended = adv.evaluate(network, x, y, [pgd], key=attack_key)
    defenses = make_defenses(network, steps, seed)
    reports = {}
    for name, defense in defenses.items():
        naive = {"pgd": defense.naive_attack, "square": square}
        adaptive = {defense.adaptive_name: defense.adaptive_attack}
        reports[name] = (
            adv.evaluate(defense.program, x, y, naive, key=attack_key),
            adv.evaluate(defense.adaptive_program, x, y, adaptive, key=attack_key, flags=False),
        )
    numbers = {
        "undefended": undefended.outcomes[0].accuracy.value,
        "undefended flags": [flag.name for flag in undefended.flags],
        "defenses": {
            name: {
                "clean accuracy": naive.clean.value,
                "naive PGD": naive.outcomes[0].accuracy.value,
                "black-box attack": naive.outcomes[1].accuracy.value,
                "adaptive attack": adaptive.outcomes[0].accuracy.value,
                "name of the adaptive attack": adaptive.outcomes[0].name,
                "clean accuracy of the adaptive program": adaptive.clean.value,
                "flags": [flag.name for flag in naive.flags],
            }
            for name, (naive, adaptive) in reports.items()
        },
    }
    write(folder, numbers, reports, {name: defense.text for name, defense in defenses.items()})
    return numbers


def write(
    folder: Path,
    numbers: dict[str, Any],
    reports: dict[str, tuple[adv.Report, adv.Report]],
    texts: dict[str, str],
) -> None:
    """Write the page and the numbers, and print the reports."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    columns = ["clean accuracy", "naive PGD", "black-box attack", "adaptive attack"]
    rows = [
        [
            name,
            *(f"{found[column]:.0%}" for column in columns[:-1]),
            f"{found['adaptive attack']:.0%} ({found['name of the adaptive attack']})",
        ]
        for name, found in numbers["defenses"].items()
    ]
    text = (
        f"Accuracy under each attack at ε = {EPSILON}. Without a defense it is "
        f"{numbers['undefended']:.0%} under PGD; no defense makes the network more robust."
    )
    table = Table(["defense", *columns], rows)
    sections = [Section("Three defenses", text, table=table)]
    for name, (naive, _) in reports.items():
        flags = Table(
            ["flag", "measured", "meaning", "remedy"], [list(flag) for flag in naive.flags]
        )
        sections.append(Section(name.capitalize(), texts[name], table=flags))
    page = dp.plotting.write_page(
        folder / "index.html",
        "Gradient masking",
        sections,
        summary="Three defenses that only look robust, and adaptive attacks that succeed on them.",
    )
    print(f"robust accuracy without a defense: {numbers['undefended']:.1%} at ε = {EPSILON}")
    for name, (naive, adaptive) in reports.items():
        print(f"\n{name}\n{naive}\nadaptive attack\n{adaptive}")
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a few steps of everything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/gradient_masking"))
    main(**vars(parser.parse_args()))
