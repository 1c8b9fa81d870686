"""The numbers of the lectures, worked again: what the source prints, what is true, and what diffprog finds.

    python -m experiments.worked_examples [--fast] [name ...]

One table for each example. A row is one number (equal ones of an array share a row): as printed in the source, if it is; its true value;
the value found with the backward passes written by hand; and how far from the truth are those, `jax.grad` of the forward passes, and
finite differences: about 1e-16, 1e-16 and 1e-11. The last column compares what is printed with the truth: "rounded" is right, "truncated"
is less than one unit off in the last digit, "MISPRINT" is neither: a slip, or the source went on from rounded numbers. Where nothing is
printed, the example's numbers are ours. The notes are those kept with the true values, where the sources are called seeds. After the tables
come the facts that the lectures derive, in numbers.

Everything goes to results/worked_examples/numbers.json too. `--fast` leaves finite differences out.
"""

import argparse
import decimal
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.sources import (
    EXAMPLES,
    Route,
    by_autodiff,
    by_differences,
    by_hand,
    golden,
    quantities,
)

RESULTS = Path("results/worked_examples")
ROUTES: dict[str, Route] = {
    "by hand": by_hand,
    "jax.grad": by_autodiff,
    "differences": by_differences,
}


class Number(NamedTuple):
    """One number of an example.

    Attributes:
        label: its quantity, with its place in an array and how many places of the array hold the same.
        printed: as the source prints it, "" if it does not.
        true: in float64.
        found: by each route.
        verdict: of what is printed, "" if nothing is.
    """

    label: str
    printed: str
    true: float
    found: dict[str, float]
    verdict: str


def verdict(printed: str, true: float) -> str:
    """Whether `printed` is the true value rounded to its digits, cut off after them, or neither."""
    digit = decimal.Decimal(1).scaleb(decimal.Decimal(printed).as_tuple().exponent)  # type: ignore[arg-type]
    for name, rounding in (("rounded", decimal.ROUND_HALF_EVEN), ("truncated", decimal.ROUND_DOWN)):
        if decimal.Decimal(true).quantize(digit, rounding) == decimal.Decimal(printed):
            return name
    return "MISPRINT"


def worked(name: str, example: dict[str, Any], routes: dict[str, Route]) -> list[Number]:
    """Every number of one example by each of the routes."""
    found = {
        route: quantities(name, example["inputs"], differentiate)
        for route, differentiate in routes.items()
    }
    return [
        number
        for quantity, true in example["true"].items()
        for number in _numbers(quantity, true, example["printed"], found)
    ]


def _numbers(
    quantity: str, true: Any, printed: dict[str, Any], found: dict[str, dict[str, np.ndarray]]
) -> list[Number]:
    true = np.asarray(true, np.float64)
    texts = np.ravel(printed.get(quantity, "")).tolist() * (1 if quantity in printed else true.size)
    groups: dict[tuple[str, float], list[int]] = {}
    for i, key in enumerate(zip(texts, true.ravel().tolist(), strict=True)):
        groups.setdefault(key, []).append(i)
    return [
        Number(
            _label(quantity, places, true.shape),
            text,
            value,
            {
                route: _worst(named[quantity].ravel()[places], value)
                for route, named in found.items()
            },
            verdict(text, value) if text else "",
        )
        for (text, value), places in groups.items()
    ]


def _worst(values: np.ndarray, true: float) -> float:
    return float(values[np.argmax(abs(values - true))])


def _label(quantity: str, places: list[int], shape: tuple[int, ...]) -> str:
    size = int(np.prod(shape))
    if size == 1:
        return quantity
    if len(places) == size:
        return f"{quantity} (all {size})"
    place = ",".join(map(str, np.unravel_index(places[0], shape)))
    return f"{quantity}[{place}]" + (f" and {len(places) - 1} more" if len(places) > 1 else "")


def table(numbers: list[Number]) -> str:
    """The numbers of one example in columns."""
    routes = list(numbers[0].found)
    header = [
        "quantity",
        "printed",
        "true",
        "ours",
        *(f"off: {route}" for route in routes),
        "as printed",
    ]
    rows = [
        [
            n.label,
            n.printed,
            _digits(n.true),
            _digits(n.found["by hand"]),
            *(_power(n.found[r] - n.true) for r in routes),
            n.verdict,
        ]
        for n in numbers
    ]
    if not any(n.verdict for n in numbers):
        header, *rows = ([*row[:1], *row[2:-1], ""] for row in [header, *rows])
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        [row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:-1]), row[-1]]
        for row in [header, *rows]
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _digits(value: float) -> str:
    # Zero but for rounding is shown as 0; the columns after say how far off it is.
    return f"{0.0 if abs(value) < 1e-14 else value:.8g}"


def _power(error: float) -> str:
    return f"{abs(error):.0e}" if error else "0"


# ---- what the lectures derive


def error_is_the_gradient(examples: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """Source 002 and lecture 004: softmax and cross-entropy together."""
    example = examples["softmax_jacobian"]
    found = quantities("softmax_jacobian", example["inputs"], by_hand)
    error = found["y"].ravel() - example["inputs"]["onehot"]
    return (
        "softmax under cross-entropy has the gradient yhat - y; the long way, through the full Jacobian, comes to the same",
        {
            "largest |dL/dz - (yhat - y)|": abs(found["dCE_dz"] - error).max(),
            "largest |dL/dyhat J - (yhat - y)|": abs(found["dCE_via_J"] - error).max(),
            "largest |sum of a row of J|": abs(found["rowsum"]).max(),
        },
    )


def symmetry_kills_the_gradient(examples: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """Source 002, question 2, with all weights equal."""
    found = quantities(
        "exercise_4433_softmax_ce", examples["exercise_4433_softmax_ce"]["inputs"], by_hand
    )
    below = ("dW1", "db1", "dW2", "db2", "dx")
    said = (
        "in the 4-4-3-3 softmax network with equal weights every gradient below the last layer is exactly 0 (yhat - y sums to 0, and equal "
        "weights pass on nothing but that sum); what is left here is rounding, and a relative error has no meaning"
    )
    largest = {f"largest |{name}|": float(abs(found[name]).max()) for name in (*below, "dW3")}
    return said, largest | {"sum of dz3": float(found["dz3"].sum())}


def sum_and_mean_differ_by_n(examples: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """Source 002 and lecture 004: several examples."""
    inputs = examples["exercise_4433_two_examples"]["inputs"]
    both = quantities("exercise_4433_two_examples", inputs, by_hand)
    alone = [
        quantities(
            "exercise_4433_sq",
            examples["exercise_4433_sq"]["inputs"] | {"x": inputs[f"x{k}"], "y": inputs[f"y{k}"]},
            by_hand,
        )
        for k in (1, 2)
    ]
    return (
        "the gradient of a sum over examples is the sum of their gradients; that of the mean is 1/N of it",
        {
            "largest |dW1 of the sum - (dW1 of one + dW1 of the other)|": abs(
                both["dW1_sum"] - alone[0]["dW1"] - alone[1]["dW1"]
            ).max(),
            "dW3 of the sum over dW3 of the mean": float(
                (both["dW3_sum"] / both["dW3_mean"]).mean()
            ),
        },
    )


def the_loss_gives_the_digit_swap_away(examples: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """Source 002, question 1: z3 is printed as 0.16936."""
    y = np.array(examples["exercise_4433_sq"]["inputs"]["y"])
    return (
        "the loss 0.376 printed in source 002 follows from z3 = 0.16396 and not from the z3 printed beside it",
        {
            f"loss of z3 = {z}": float(((np.full(3, z) - y) ** 2).sum() / 2)
            for z in (0.16396, 0.16936)
        },
    )


def rounding_early_explains_lecture_001(examples: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """Lecture 001's example, each step from the numbers printed before it."""
    numbers = printed_chain()
    deltas = {
        f"delta{k}[{i}]": value for k in (1, 2) for i, value in enumerate(numbers[f"delta{k}"])
    }
    weights = {f"dW{k}[{i}]": value for k in (1, 2) for i, value in enumerate(numbers[f"dW{k}"])}
    said = "the gradients of lecture 001 are up to 1.7 % off since it goes on from rounded numbers; done so, they come out as printed"
    return said, deltas | weights


def printed_chain() -> dict[str, list[float]]:
    """Lecture 001's example, every step computed from the numbers that the lecture prints, not from the true ones."""
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


FACTS: list[Callable[[dict[str, Any]], tuple[str, dict[str, float]]]] = [
    error_is_the_gradient,
    symmetry_kills_the_gradient,
    sum_and_mean_differ_by_n,
    the_loss_gives_the_digit_swap_away,
    rounding_early_explains_lecture_001,
]


def main(names: list[str], fast: bool) -> None:
    """Print the tables of the named examples and the facts, and write all numbers to a file."""
    examples = golden()
    routes = {route: ROUTES[route] for route in list(ROUTES)[: 2 if fast else 3]}
    everything = {name: worked(name, examples[name], routes) for name in names}
    for name, numbers in everything.items():
        sources = examples[name]["seed"].replace(",", " and ")
        print(
            f"\n{name}: source {sources}, “{examples[name]['where']}” (rows {EXAMPLES[name][0]})\n{table(numbers)}"
        )
        if examples[name]["note"]:
            print(f"note: {examples[name]['note']}")
    facts = [fact(examples) for fact in FACTS]
    for said, values in facts:
        print(
            f"\n{said}:\n"
            + "\n".join(f"    {label}: {value:.6g}" for label, value in values.items())
        )
    print(f"\n{_summary(everything)}\n\nwritten: {_write(everything, facts)}")


def _summary(everything: dict[str, list[Number]]) -> str:
    numbers = [number for each in everything.values() for number in each]
    worst = {
        route: max(abs(n.found[route] - n.true) / max(1, abs(n.true)) for n in numbers)
        for route in numbers[0].found
    }
    counts = {
        name: sum(n.verdict == name for n in numbers)
        for name in ("rounded", "truncated", "MISPRINT")
    }
    errors = ", ".join(f"{route} {error:.0e}" for route, error in worst.items())
    printed = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{len(everything)} examples, {len(numbers)} numbers; largest error: {errors}; printed in the sources: {printed}"


def _write(everything: dict[str, list[Number]], facts: list[tuple[str, dict[str, float]]]) -> Path:
    path = RESULTS / "numbers.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {
        "examples": {
            name: [number._asdict() for number in numbers] for name, numbers in everything.items()
        },
        "facts": [
            {"fact": fact, "numbers": {label: float(value) for label, value in values.items()}}
            for fact, values in facts
        ],
    }
    path.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m experiments.worked_examples",
        description="The numbers of the lectures, worked again.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="name", help="of an example; all if none is named"
    )
    parser.add_argument("--fast", action="store_true", help="without finite differences")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(EXAMPLES):
        parser.error(
            f"no example is named {', '.join(sorted(unknown))}; there are {', '.join(EXAMPLES)}"
        )
    main(arguments.names or list(EXAMPLES), arguments.fast)
