"""Three defences that only look robust, the flags that say so, and the attack that breaks each.

    python -m experiments.masked_gradients [--fast]

trains one convolutional network on handwritten digits and defends it three times, without making it any more robust: its logits are scaled, so
that the cross-entropy has no gradient left; its input is quantised, so that nothing has one; its input is drawn at random, so that no attack
fits. Each defence is evaluated as its author might, and then with the attack that knows of it. Writes results/masked_gradients/: the
tables with their flags, a figure of the accuracies, numbers.json and index.html.
"""

import argparse
import itertools
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
from experiments.recogniser import train

adv = dp.adversarial

MODEL = dp.models.cnn((8, 8, 1), channels=(32, 64), hidden=(128,))
EPOCHS, EXAMPLES, EPSILON, STEPS, DRAWS = 60, 200, 0.2, 40, 16
SCALE, LEVELS, NOISE = 100.0, 4, 0.3


class Defence(NamedTuple):
    """A program that looks robust, the evaluation that makes it look so, and the one that does not."""

    text: str
    program: Callable[..., jax.Array]
    naive: Any
    seen_through: Callable[..., jax.Array]
    fitting: Any


def defences(f: dp.Program, steps: int, key: jax.Array) -> dict[str, Defence]:
    """The three, around one network."""
    scaled = lambda x: SCALE * f(x)  # noqa: E731
    quantised = lambda x: f(jnp.round(LEVELS * x) / LEVELS)  # noqa: E731
    noisy = lambda x, key: f(x + NOISE * jax.random.normal(key, x.shape))  # noqa: E731
    drawn = (jax.random.fold_in(key, call) for call in itertools.count())
    pgd = adv.pgd(epsilon=EPSILON, steps=steps)
    plain_cross_entropy = lambda z, y, _: optax.losses.softmax_cross_entropy_with_integer_labels(z, y)  # noqa: E731
    return {
        "scaled logits": Defence(
            f"The logits times {SCALE:g}: softmax rounds to 1, and the cross-entropy has no gradient.",
            scaled,
            adv.pgd(epsilon=EPSILON, steps=steps, loss=plain_cross_entropy),
            scaled,
            adv.pgd(epsilon=EPSILON, steps=steps, loss="dlr"),
        ),
        "quantised input": Defence(
            f"The input rounded to {LEVELS + 1} greys: the program is constant nearly everywhere.",
            quantised,
            pgd,
            adv.straight_through(quantised),
            pgd,
        ),
        "random program": Defence(
            f"Noise of {NOISE:g} on the input, from a generator that the program keeps to itself.",
            lambda x: noisy(x, next(drawn)),
            pgd,
            noisy,
            adv.expectation(pgd, DRAWS),
        ),
    }
