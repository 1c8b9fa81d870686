"""Worked examples of the five lecture sources as programs.

Each program takes the inputs of one example of `tests/golden.json` and a differentiator (by hand,
`jax.grad` or finite differences), and returns the quantities of the example by name.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.sources import lecture_000, lecture_001, lecture_004, notes_002_003
from experiments.sources.differentiators import (
    Differentiator,
    autodiff,
    finite_differences,
    hand_written,
)
from experiments.sources.helpers import Inputs, Quantities

__all__ = [
    "EXAMPLES",
    "Differentiator",
    "autodiff",
    "finite_differences",
    "golden",
    "hand_written",
    "quantities",
]

GOLDEN = Path(__file__).parent.parent.parent / "tests" / "golden.json"

# Name of the example: the items of the sources that it covers, and its program.
EXAMPLES: dict[str, tuple[str, Callable[[Inputs, Differentiator], Quantities]]] = {
    "mit_tanh_221": ("0.17", lecture_000.mit_tanh_221),
    "mit_mlp_relu": ("0.5, 0.8, 4.4", lecture_000.mit_mlp_relu),
    "numerator_layout_shapes": ("0.3", lecture_000.numerator_layout_shapes),
    "lecture_dims_chain": ("0.4", lecture_000.lecture_dims_chain),
    "affine_rules": ("0.7, 4.2, 4.9, 4.10", lecture_000.affine_rules),
    "momentum_quadratic": ("0.12", lecture_000.momentum_quadratic),
    "unit_visualisation_linear": ("0.13, 0.14", lecture_000.unit_visualisation_linear),
    "adversarial_linear_softmax": ("0.16", lecture_000.adversarial_linear_softmax),
    "sigmoid_221": ("1.8, 1.9, 1.11", lecture_001.sigmoid_221),
    "sigmoid_222_2_f_1_m1": ("1.3, 1.4", lecture_001.sigmoid_222_2),
    "sigmoid_222_2_f_0_0": ("1.3, 1.4", lecture_001.sigmoid_222_2),
    "param_count": ("1.5", lecture_001.param_count),
    "digit_input": ("1.5", lecture_001.digit_input),
    "activations": ("1.2, 1.10", lecture_001.activations),
    "leaky_relu": ("1.2, 4.7", lecture_001.leaky_relu),
    "maxout": ("1.2", lecture_001.maxout),
    "exercise_4433_sq": ("0.9, 2.1, 2.2", notes_002_003.exercise_4433_sq),
    "exercise_4433_softmax_ce": ("2.5", notes_002_003.exercise_4433_softmax_ce),
    "exercise_4433_two_examples": ("2.3, 4.8", notes_002_003.exercise_4433_two_examples),
    "chain_rt": ("1.6, 2.4", notes_002_003.chain_rt),
    "xyz": ("1.7, 3.1", notes_002_003.xyz),
    "wx_norm2": ("3.2", notes_002_003.wx_norm2),
    "gd_convergence_rule": ("0.1, 4.1", lecture_004.gd_convergence_rule),
    "softmax_jacobian": ("4.5, 4.9", lecture_004.softmax_jacobian),
    "two_or_not_two": ("4.11", lecture_004.two_or_not_two),
    "digit_softmax_kl_10": ("1.1, 4.11", lecture_004.digit_softmax_kl),
    "digit_softmax_kl_11": ("4.11", lecture_004.digit_softmax_kl),
    "multiplicative_prod_pow": ("4.6", lecture_004.multiplicative_prod_pow),
    "multiplicative_pairs": ("3.1, 4.6", lecture_004.multiplicative_pairs),
    "relu_at_0": ("4.7", lecture_004.relu_at_0),
    "max_subset": ("3.1, 4.7", lecture_004.max_subset),
}


def golden() -> dict[str, dict[str, Any]]:
    """Return the examples by name: inputs, true values and the values that the source prints."""
    examples = json.loads(GOLDEN.read_text(encoding="utf-8"))["examples"]
    return {example["id"]: example for example in examples}


def quantities(name: str, inputs: Inputs, differentiate: Differentiator) -> dict[str, np.ndarray]:
    """Return the quantities of one example in float64."""
    arrays = {
        key: value if isinstance(value, str | dict) else np.asarray(value, np.float64)
        for key, value in inputs.items()
    }
    with jax.enable_x64(True):
        values = EXAMPLES[name][1](arrays, differentiate)
        return {key: np.asarray(value, np.float64) for key, value in values.items()}
