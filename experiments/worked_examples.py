"""Recompute the worked examples of the lectures and compare them with the printed numbers.

    python -m experiments.worked_examples [--fast] [name ...]

For each example a table is printed with one row per number (equal elements of an array share one):
the number as the source prints it, if it does; its true value; the value computed with hand-written
backward passes; and the errors of these, of `jax.grad` and of finite differences, about 1e-16,
1e-16 and 1e-11. The last column compares the printed number with the true one: "rounded" is
correct, "truncated" is off by less than one unit in the last digit, "MISPRINT" is neither. Examples
without printed numbers are not from the sources. Notes call the source lectures "seeds". Last come
statements that the lectures derive, checked in numbers.

Writes results/worked_examples/: numbers.json, and errors.png with the errors of all examples.
`--fast` leaves out finite differences. To add an example, add it to `experiments.sources`.
"""

import argparse
import decimal
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.sources import (
    EXAMPLES,
    Differentiator,
    autodiff,
    finite_differences,
    golden,
    hand_written,
    quantities,
)

RESULTS = Path("results/worked_examples")
DIFFERENTIATORS: dict[str, Differentiator] = {
    "by hand": hand_written,
    "jax.grad": autodiff,
    "finite differences": finite_differences,
}
VERDICTS = ("rounded", "truncated", "MISPRINT")


class Number(NamedTuple):
    """Number of an example.

    Attributes:
        label: name of the quantity, with the index in an array and the count of equal elements.
        printed: as the source prints it, "" if it does not.
        true: true value in float64.
        computed: value by each differentiator, the worst of equal elements.
        verdict: one of `VERDICTS`, "" if nothing is printed.
    """

    label: str
    printed: str
    true: float
    computed: dict[str, float]
    verdict: str

    def relative_error(self, name: str) -> float:
        """Return |computed - true| / max(1, |true|) of one differentiator."""
        return abs(self.computed[name] - self.true) / max(1, abs(self.true))


def verdict(printed: str, true: float) -> str:
    """Check whether `printed` is the true value rounded or truncated to its digits, or neither."""
    digit = decimal.Decimal(1).scaleb(decimal.Decimal(printed).as_tuple().exponent)  # type: ignore[arg-type]
    for name, rounding in (("rounded", decimal.ROUND_HALF_EVEN), ("truncated", decimal.ROUND_DOWN)):
        if decimal.Decimal(true).quantize(digit, rounding) == decimal.Decimal(printed):
            return name
    return "MISPRINT"


def compute_numbers(
    name: str, example: dict[str, Any], differentiators: dict[str, Differentiator]
) -> list[Number]:
    """Return all numbers of one example, by each of the differentiators."""
    computed = {
        key: quantities(name, example["inputs"], differentiate)
        for key, differentiate in differentiators.items()
    }
    return [
        number
        for quantity, true in example["true"].items()
        for number in group_equal(quantity, true, example["printed"], computed)
    ]


def group_equal(
    quantity: str, true: Any, printed: dict[str, Any], computed: dict[str, dict[str, np.ndarray]]
) -> list[Number]:
    """Return the numbers of one quantity; elements equal in print and in truth share one."""
    true = np.asarray(true, np.float64)
    texts = np.ravel(printed.get(quantity, "")).tolist() * (1 if quantity in printed else true.size)
    groups: dict[tuple[str, float], list[int]] = {}
    for i, key in enumerate(zip(texts, true.ravel().tolist(), strict=True)):
        groups.setdefault(key, []).append(i)
    numbers = []
    for (text, value), indices in groups.items():
        worst = {}
        for name, values in computed.items():
            elements = values[quantity].ravel()[indices]
            worst[name] = float(elements[np.argmax(abs(elements - value))])
        label = _label(quantity, indices, true.shape)
        numbers.append(Number(label, text, value, worst, verdict(text, value) if text else ""))
    return numbers


def _label(quantity: str, indices: list[int], shape: tuple[int, ...]) -> str:
    size = int(np.prod(shape))
    if size == 1:
        return quantity
    if len(indices) == size:
        return f"{quantity} (all {size})"
    index = ",".join(map(str, np.unravel_index(indices[0], shape)))
    return f"{quantity}[{index}]" + (f" and {len(indices) - 1} more" if len(indices) > 1 else "")


def format_table(numbers: list[Number]) -> str:
    """Format the numbers of one example as a table."""
    names = list(numbers[0].computed)
    # Rounding errors are shown as 0; the error columns give their size.
    digits = lambda value: f"{0.0 if abs(value) < 1e-14 else value:.8g}"
    power = lambda error: f"{abs(error):.0e}" if error else "0"
    rows = [["quantity", "printed", "true", "computed", *(f"error: {n}" for n in names), "verdict"]]
    rows += [
        [
            number.label,
            number.printed,
            digits(number.true),
            digits(number.computed["by hand"]),
            *(power(number.computed[name] - number.true) for name in names),
            number.verdict,
        ]
        for number in numbers
    ]
    if not any(number.verdict for number in numbers):
        rows = [[label, *cells[1:-1], ""] for label, *cells in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        [row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:-1]), row[-1]] for row in rows
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


# ---- statements that the lectures derive, each with numbers that show it

Statement = tuple[str, dict[str, float]]


def error_is_the_gradient(examples: dict[str, Any]) -> Statement:
    """Check that softmax under cross-entropy has the gradient yhat - y (002, lecture 004)."""
    inputs = examples["softmax_jacobian"]["inputs"]
    values = quantities("softmax_jacobian", inputs, hand_written)
    error = values["y"].ravel() - inputs["onehot"]
    return (
        "softmax under cross-entropy has the gradient yhat - y; the product with the full Jacobian "
        "is the same",
        {
            "largest |dL/dz - (yhat - y)|": abs(values["dCE_dz"] - error).max(),
            "largest |dL/dyhat J - (yhat - y)|": abs(values["dCE_via_J"] - error).max(),
            "largest |sum of a row of J|": abs(values["rowsum"]).max(),
        },
    )


def equal_weights_give_zero_gradients(examples: dict[str, Any]) -> Statement:
    """Check question 2 of source 002, with all weights equal."""
    name = "exercise_4433_softmax_ce"
    values = quantities(name, examples[name]["inputs"], hand_written)
    largest = {
        f"largest |{key}|": float(abs(values[key]).max())
        for key in ("dW1", "db1", "dW2", "db2", "dx", "dW3")
    }
    return (
        "in the 4-4-3-3 softmax network with equal weights every gradient below the last layer is "
        "exactly 0 (yhat - y sums to 0, and equal weights propagate nothing but that sum); the "
        "values are rounding errors, so relative errors have no meaning",
        largest | {"sum of dz3": float(values["dz3"].sum())},
    )


def sum_and_mean_differ_by_n(examples: dict[str, Any]) -> Statement:
    """Compare gradients of the sum and of the mean over examples (002, lecture 004)."""
    inputs = examples["exercise_4433_two_examples"]["inputs"]
    both = quantities("exercise_4433_two_examples", inputs, hand_written)
    single_inputs = examples["exercise_4433_sq"]["inputs"]
    first, second = (
        quantities(
            "exercise_4433_sq",
            single_inputs | {"x": inputs[f"x{k}"], "y": inputs[f"y{k}"]},
            hand_written,
        )
        for k in (1, 2)
    )
    return (
        "the gradient of a sum over examples is the sum of their gradients; that of the mean is "
        "1/N of it",
        {
            "largest |dW1 of the sum - (dW1 of the first + dW1 of the second)|": abs(
                both["dW1_sum"] - first["dW1"] - second["dW1"]
            ).max(),
            "dW3 of the sum / dW3 of the mean": float((both["dW3_sum"] / both["dW3_mean"]).mean()),
        },
    )


def loss_reveals_swapped_digits(examples: dict[str, Any]) -> Statement:
    """Check question 1 of source 002, where z3 is printed as 0.16936."""
    y = np.array(examples["exercise_4433_sq"]["inputs"]["y"])
    return (
        "the loss 0.376 printed in source 002 follows from z3 = 0.16396, not from the printed "
        "z3 = 0.16936",
        {
            f"loss of z3 = {z}": float(((np.full(3, z) - y) ** 2).sum() / 2)
            for z in (0.16396, 0.16936)
        },
    )


def early_rounding_explains_lecture_001(examples: dict[str, Any]) -> Statement:
    """Recompute the gradients of lecture 001 from the rounded numbers that it prints."""
    numbers = recompute_from_printed_numbers()
    return (
        "the gradients of lecture 001 are off by up to 1.7 %, because it continues from rounded "
        "numbers; computed from these they equal the printed ones",
        {
            f"{name}[{i}]": value
            for name in ("delta1", "delta2", "dW1", "dW2")
            for i, value in enumerate(numbers[name])
        },
    )


def recompute_from_printed_numbers() -> dict[str, list[float]]:
    """Compute each step of lecture 001's example from the rounded numbers printed before it."""
    x0, x1, y, t, w2 = (0.35, 0.9), (0.68, 0.6637), 0.69, 0.5, (0.3, 0.9)
    delta2, delta1 = -0.0406, (-0.0027, -0.0082)
    dw1, dw2 = [-d * x for d in delta1 for x in x0], [-delta2 * x for x in x1]
    return {
        "delta2": [(t - y) * y * (1 - y)],
        "delta1": [x * (1 - x) * w * delta2 for x, w in zip(x1, w2, strict=True)],
        "dW1": dw1,
        "dW2": dw2,
        "W1_new": [w - d for w, d in zip((0.1, 0.8, 0.4, 0.6), dw1, strict=True)],
        "W2_new": [w - d for w, d in zip(w2, (0.0276, 0.0269), strict=True)],
    }


STATEMENTS: list[Callable[[dict[str, Any]], Statement]] = [
    error_is_the_gradient,
    equal_weights_give_zero_gradients,
    sum_and_mean_differ_by_n,
    loss_reveals_swapped_digits,
    early_rounding_explains_lecture_001,
]


def main(names: list[str], fast: bool) -> None:
    """Print the tables of the named examples and the statements, and write the results."""
    examples = golden()
    differentiators = {
        key: DIFFERENTIATORS[key] for key in list(DIFFERENTIATORS)[: 2 if fast else 3]
    }
    results = {name: compute_numbers(name, examples[name], differentiators) for name in names}
    for name, numbers in results.items():
        example = examples[name]
        sources = example["seed"].replace(",", " and ")
        print(f"\n{name}: source {sources}, “{example['where']}” (rows {EXAMPLES[name][0]})")
        print(format_table(numbers))
        if example["note"]:
            print(f"note: {example['note']}")
    statements = [state(examples) for state in STATEMENTS]
    for text, values in statements:
        print(f"\n{text}:")
        for label, value in values.items():
            print(f"    {label}: {value:.6g}")
    print(f"\n{summarize(results)}\n")
    RESULTS.mkdir(parents=True, exist_ok=True)
    saved = {
        "examples": {name: [n._asdict() for n in numbers] for name, numbers in results.items()},
        "statements": [
            {"text": text, "numbers": {label: float(value) for label, value in values.items()}}
            for text, values in statements
        ],
    }
    (RESULTS / "numbers.json").write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    draw_errors(results).savefig(RESULTS / "errors.png", dpi=150)
    print(f"{RESULTS / 'numbers.json'}\n{RESULTS / 'errors.png'}")


def summarize(results: dict[str, list[Number]]) -> str:
    """Return the largest errors and the counts of verdicts in a line."""
    numbers = [number for each in results.values() for number in each]
    errors = ", ".join(
        f"{name} {max(number.relative_error(name) for number in numbers):.0e}"
        for name in numbers[0].computed
    )
    printed = ", ".join(f"{sum(n.verdict == name for n in numbers)} {name}" for name in VERDICTS)
    return (
        f"{len(results)} examples, {len(numbers)} numbers; largest relative error: {errors}; "
        f"printed in the sources: {printed}"
    )


def draw_errors(results: dict[str, list[Number]]) -> Figure:
    """Plot the largest relative error of each example by each differentiator."""
    figure = Figure(figsize=(8, 1.2 + 0.22 * len(results)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(results))
    styles = zip("osD", ("#1f6fb2", "#c8741a", "#3a8f5c"), (7, 4.5, 5), strict=True)
    for name, (marker, color, size) in zip(DIFFERENTIATORS, styles, strict=True):
        if name not in next(iter(results.values()))[0].computed:
            continue
        errors = [max(n.relative_error(name) for n in numbers) for numbers in results.values()]
        shown = np.maximum(errors, 1e-18)
        axes.plot(shown, rows, marker, color=color, markersize=size, linestyle="", label=name)
    axes.set_xscale("log")
    axes.set_xticks(
        [1e-18, 1e-16, 1e-14, 1e-12, 1e-10], ["0", *(f"1e-{k}" for k in (16, 14, 12, 10))]
    )
    axes.minorticks_off()
    axes.axvline(2**-53, color="#c9ced4", linewidth=1, zorder=0)
    axes.set_yticks(rows, list(results), fontsize=8)
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xlabel("largest relative error of an example (line: rounding error of float64)")
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help="examples; default all")
    parser.add_argument("--fast", action="store_true", help="leave out finite differences")
    options = parser.parse_args()
    if unknown := set(options.names) - set(EXAMPLES):
        parser.error(f"name must be one of {', '.join(EXAMPLES)}, got {', '.join(sorted(unknown))}")
    main(options.names or list(EXAMPLES), options.fast)
