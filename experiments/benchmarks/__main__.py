"""Run the benchmarks, print their tables and keep their numbers.

    python -m experiments.benchmarks [--fast] [name ...]

Each module named below holds `main(fast) -> {case: Comparison}`; its numbers go to results/benchmarks/NAME.json. `--fast` runs small
cases a few times: it shows that everything runs, its times mean nothing.

Everything runs on one core (`--cores`): a second one that others use as well makes times of two threads a matter of luck.
"""

import argparse
import importlib
import os
from pathlib import Path

from experiments.benchmarks import harness

BENCHMARKS = ["loops", "cnn", "backprop", "training", "visualization", "attacks", "text"]
RESULTS = Path("results/benchmarks")


def main(names: list[str], fast: bool) -> None:
    """Run the named benchmarks one after the other."""
    for name in names:
        comparisons = importlib.import_module(f"experiments.benchmarks.{name}").main(fast)
        for case, comparison in comparisons.items():
            print(f"\n{name}: {case}\n{comparison}", flush=True)
        print(f"\nwritten: {harness.write(RESULTS / f'{name}.json', comparisons)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks", description="The toolkit's speed against bare JAX."
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="name",
        help=f"any of {', '.join(BENCHMARKS)}; all if none is named",
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="small cases, a few rounds: a check that everything runs",
    )
    parser.add_argument(
        "--cores",
        type=int,
        default=1,
        help="cores to run on, from the first (where the system allows it)",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(
            f"no benchmark is named {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}"
        )
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    main(arguments.names or BENCHMARKS, arguments.fast)
