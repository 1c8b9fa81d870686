"""Plants single-line errors one at a time in a copy of the library and asks which the tests catch.

An error is *killed* when a test that mirrors the changed file fails: `tests/a/test_b.py` for
`diffprog/a/_b.py` (where there is none, the tests in the folder `tests/a`), the tests of everything
in a folder, `test_a.py` and `test_protocol.py`, and the doctests of the file. The fast tests are
asked first, and the slow ones about what the fast ones let through.

    python tests/mutants/run.py                     # every error of the lists in this folder
    python tests/mutants/run.py norms training/     # those in files whose name contains a word
    python tests/mutants/run.py --checkout OLDER    # with the tests of another checkout

Exits with 1 when an error survives.
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
MINUTES = 10  # a program that no longer ends is found out too


class Mutant(NamedTuple):
    """One wrong line: `old` occurs once in `file` and is replaced by `new`."""

    file: str
    error: str
    old: str
    new: str


class Outcome(NamedTuple):
    """Which tests found a mutant ("fast", "slow" or "none"), and the seconds until they did."""

    mutant: Mutant
    killed_by: str
    failure: str
    seconds: float


def mutants(words: list[str]) -> list[Mutant]:
    """Return the errors listed in this folder whose file contains one of the words."""
    listed = [
        Mutant(**row)
        for path in sorted(Path(__file__).parent.glob("*.toml"))
        for row in tomllib.loads(path.read_text())["mutant"]
    ]
    for mutant in listed:
        count = (ROOT / mutant.file).read_text().count(mutant.old)
        if count != 1:
            raise ValueError(f"{mutant.file} contains {mutant.old!r} {count} times, expected once")
    return [mutant for mutant in listed if not words or any(word in mutant.file for word in words)]


def mirror(file: str, checkout: Path) -> list[str]:
    """Return the tests that mirror a file of the library, and the file itself for its doctests."""
    path = Path(file)
    folder = Path("tests", *path.parts[1:-1])
    test = folder / f"test_{path.stem.removeprefix('_')}.py"
    if not (checkout / test).exists():
        return [*(str(folder / test.name) for test in (checkout / folder).glob("test_*.py")), file]
    tables = {
        above / name
        for above in (folder, *folder.parents)
        for name in (f"test_{above.name}.py", "test_protocol.py")
        if (checkout / above / name).exists()
    }
    return [str(test), *sorted(map(str, tables - {test})), file]


def failure(copy: Path, tests: list[str], marker: str) -> str:
    """Run tests in a copy until one fails; return its name, or "" when all pass."""
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "mutants"))
    environment = os.environ | {"PYTHONPATH": str(copy), "JAX_COMPILATION_CACHE_DIR": compiled}
    # Failed tests are read from the summary, "-r fE". The library's `TestPoint` is no test class.
    command = ["-m", "pytest", "-x", "-q", "-r", "fE", "--no-header", "-p", "no:cacheprovider"]
    command += ["-o", "python_classes="]
    try:
        ran = subprocess.run(
            [sys.executable, *command, "-m", marker, *tests],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60 * MINUTES,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {MINUTES} minutes"
    if ran.returncode in (0, 5):  # 5: no test has this marker
        return ""
    failed = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if ran.returncode != 1 or not failed:  # 2: tests that cannot be collected find nothing
        raise RuntimeError(f"pytest ended with {ran.returncode}:\n{ran.stdout}\n{ran.stderr}")
    return failed[0].split(" - ")[0]


def judge(mutant: Mutant, copy: Path) -> Outcome:
    """Plant one error in a copy, run the tests that mirror it, and mend the copy again."""
    start, path = time.perf_counter(), copy / mutant.file
    right = path.read_text()
    path.write_text(right.replace(mutant.old, mutant.new))
    try:
        for name, marker in (("fast", "not slow"), ("slow", "slow")):
            found = failure(copy, mirror(mutant.file, copy), marker)
            if found:
                return Outcome(mutant, name, found, time.perf_counter() - start)
        return Outcome(mutant, "none", "", time.perf_counter() - start)
    finally:
        path.write_text(right)


def copies(folder: Path, tests_of: Path, count: int) -> list[Path]:
    """Return `count` copies of the library with the tests and settings of a checkout."""
    made = [folder / f"copy_{number}" for number in range(count)]
    ignored = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for copy in made:
        shutil.copytree(ROOT / "diffprog", copy / "diffprog", ignore=ignored)
        for part in ("tests", "experiments"):
            shutil.copytree(tests_of / part, copy / part, ignore=ignored)
        for part in ("pyproject.toml", "README.md", "Makefile"):
            shutil.copy(tests_of / part, copy / part)
    return made


def main() -> None:
    """Run the errors asked for and print one line for each, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="parts of file names; default: all")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose tests to run")
    parser.add_argument("--workers", type=int, default=2, help="how many errors at a time")
    arguments = parser.parse_args()
    asked = mutants(arguments.words)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.workers) as pool:
        free: queue.Queue[Path] = queue.Queue()
        for copy in copies(Path(folder), arguments.checkout.resolve(), arguments.workers):
            free.put(copy)

        def run(mutant: Mutant) -> Outcome:
            copy = free.get()
            try:
                return judge(mutant, copy)
            finally:
                free.put(copy)

        killed_by = Counter()
        for mutant, name, found, seconds in pool.map(run, asked):
            killed_by[name] += 1
            print(f"{name:4}{seconds:5.0f} s  {mutant.file}: {mutant.error}  [{found}]", flush=True)
    print(
        f"{len(asked)} errors: {killed_by['fast']} killed by fast tests, "
        f"{killed_by['slow']} by slow tests only, {killed_by['none']} survived"
    )
    sys.exit(killed_by["none"] > 0)


if __name__ == "__main__":
    main()
