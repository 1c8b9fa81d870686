"""Run the benchmarks, print their tables and save their numbers.

    python -m experiments.benchmarks [--fast] [name ...]

Each module named in `BENCHMARKS` has `main(fast) -> {case: Comparison}`; its numbers are written to
results/benchmarks/NAME.json. `--fast` runs small cases a few times to check that everything runs;
its times mean nothing.

By default everything runs on one core (`--cores`): on a second core that other processes share, the
time of two threads varies too much.
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
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="name",
        help=f"any of {', '.join(BENCHMARKS)}; default all",
    )
    parser.add_argument("--fast", action="store_true", help="small cases and few rounds")
    parser.add_argument("--cores", type=int, default=1, help="number of cores to run on; default 1")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(
            f"name must be one of {', '.join(BENCHMARKS)}, got {', '.join(sorted(unknown))}"
        )
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    main(arguments.names or BENCHMARKS, arguments.fast)
