"""Three defences that only look robust, the flags that say so, and the attack that breaks each.

    python -m experiments.gradient_masking [--fast]

trains one convolutional network on handwritten digits and defends it three times, without making it any more robust: its logits are
scaled, so that the cross-entropy has no gradient left; its input is quantised, so that nothing has one; its input is drawn at random, so
that no attack fits. Each defence is evaluated as its author might, and then with the attack that knows of it. Writes
results/gradient_masking/: the tables with their flags in index.html, and numbers.json.
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


class Defence(NamedTuple):
    """A program that looks robust, the evaluation that makes it look so, and the one that does not."""

    text: str
    program: Callable[..., jax.Array]
    naive: Any
    seen_through: Callable[..., jax.Array]
    fitting_name: str
    fitting: Any


def defences(f: dp.Program, steps: int, seed: int) -> dict[str, Defence]:
    """The three, around one network."""
    scaled = lambda x: SCALE * f(x)
    quantised = lambda x: f(jnp.round(LEVELS * x) / LEVELS)
    noisy = lambda x, key: f(x + NOISE * jax.random.normal(key, x.shape))
    source = np.random.default_rng(seed)
    pgd = adv.pgd(epsilon=EPSILON, steps=steps)
    plain_cross_entropy = lambda z, y, _: optax.losses.softmax_cross_entropy_with_integer_labels(
        z, y
    )
    return {
        "scaled logits": Defence(
            f"The logits times {SCALE:g}: softmax rounds to 1, and the cross-entropy has no gradient.",
            scaled,
            adv.pgd(epsilon=EPSILON, steps=steps, loss=plain_cross_entropy),
            scaled,
            "difference of logits ratio",
            adv.pgd(epsilon=EPSILON, steps=steps, loss="dlr"),
        ),
        "quantised input": Defence(
            f"The input rounded to {LEVELS + 1} greys: the program is constant nearly everywhere.",
            quantised,
            pgd,
            adv.bpda(quantised),
            "straight through the rounding",
            pgd,
        ),
        "random program": Defence(
            f"Noise of {NOISE:g} on the input, from a generator that the program keeps to itself.",
            lambda x: noisy(x, jax.random.key(source.integers(2**31))),
            pgd,
            noisy,
            "expectation over the noise",
            adv.expectation(pgd, DRAWS),
        ),
    }


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train, defend, evaluate each defence twice, and write it all to `folder`; returns the numbers."""
    epochs, examples, steps = (2, 20, 5) if fast else (EPOCHS, EXAMPLES, STEPS)
    digits = dp.data.digits()
    train_key, attack_key = jax.random.split(jax.random.key(seed))
    network = train(MODEL, digits.x_train, digits.y_train, epochs, train_key)
    x, y = digits.x_test[:examples], digits.y_test[:examples]

    black_box = adv.square(epsilon=EPSILON, queries=steps * 10)
    undefended = adv.evaluate(
        network.program, x, y, [adv.pgd(epsilon=EPSILON, steps=steps)], key=attack_key
    )
    reports, texts = {}, {}
    for name, defence in defences(network.program, steps, seed).items():
        naive = adv.evaluate(
            defence.program, x, y, {"pgd": defence.naive, "square": black_box}, key=attack_key
        )
        fitting = adv.evaluate(
            defence.seen_through,
            x,
            y,
            {defence.fitting_name: defence.fitting},
            key=attack_key,
            flags=False,
        )
        reports[name], texts[name] = (naive, fitting), defence.text
    numbers = {
        "undefended": undefended.outcomes[0].accuracy.value,
        "undefended flags": [flag.name for flag in undefended.flags],
        "defences": {name: numbers_of(*pair) for name, pair in reports.items()},
    }
    write(folder, numbers, reports, texts)
    return numbers


def numbers_of(naive: adv.Report, fitting: adv.Report) -> dict[str, Any]:
    return {
        "clean": naive.clean.value,
        "as its author sees it": naive.outcomes[0].accuracy.value,
        "without a gradient": naive.outcomes[1].accuracy.value,
        "clean under the fitting attack": fitting.clean.value,
        "under the fitting attack": fitting.outcomes[0].accuracy.value,
        "fitting attack": fitting.outcomes[0].name,
        "flags": [flag.name for flag in naive.flags],
    }


def write(
    folder: Path, numbers: dict[str, Any], reports: dict[str, Any], texts: dict[str, str]
) -> None:
    """The page with a section for each defence, the figure and the numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    columns = [
        "defence",
        "clean",
        "as its author sees it",
        "without a gradient",
        "under the fitting attack",
        "fitting attack",
    ]
    rows = [
        [name, *(found[column] for column in columns[1:])]
        for name, found in numbers["defences"].items()
    ]
    summary = f"The network without a defence keeps {numbers['undefended']:.0%} at ε = {EPSILON}, and nothing here makes it any better."
    sections = [Section("Three defences", summary, table=Table(columns, rows))]
    for name, (naive, _) in reports.items():
        flags = Table(
            ["flag", "what was measured", "what it means", "what to do"],
            [list(flag) for flag in naive.flags],
        )
        sections.append(Section(name, texts[name], table=flags))
    page = dp.plotting.write_page(
        folder / "index.html", "Robust, or only masked?", sections, summary=summary
    )
    print(f"undefended: {numbers['undefended']:.1%} at ε = {EPSILON}")
    for name, (naive, fitting) in reports.items():
        print(f"\n{name}\n{naive}\nand under the attack that fits\n{fitting}")
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fast", action="store_true", help="a few steps of everything, to see that it runs"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/gradient_masking"))
    options = parser.parse_args()
    main(options.folder, fast=options.fast, seed=options.seed)
