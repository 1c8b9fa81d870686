"""The README's Python blocks, run from top to bottom in one namespace, one test a block.

A comment behind a `print` must be what the run prints; decimal numbers may differ by 2 %.
"""

import inspect
import re
from pathlib import Path

import matplotlib
import pytest

from tests.pretrained import folders

README = Path(__file__).parent.parent / "README.md"
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"^print\(.*\)\s+# (.*)$")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def find_blocks(text: str) -> list[tuple[int, str]]:
    """Return the line on which each Python block starts, and its code."""
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in FENCE.finditer(text)]


TEXT = README.read_text(encoding="utf-8")
BLOCKS = find_blocks(TEXT)


def agree(promised: str, printed: str) -> bool:
    """Check whether two texts have the same words and integers, and decimals within 2 %."""
    if NUMBER.sub("#", promised) != NUMBER.sub("#", printed):
        return False
    pairs = zip(NUMBER.findall(promised), NUMBER.findall(printed), strict=True)
    return all(
        a == b if "." not in a else float(b) == pytest.approx(float(a), rel=0.02) for a, b in pairs
    )


class Session:
    """Runs blocks in order, each once, so that a test of one block runs those before it."""

    def __init__(self):
        self.namespace = {"__name__": "readme", "print": self.record}
        self.blocks_run = 0
        self.wrong = []

    def run_through(self, last: int) -> None:
        for line, code in BLOCKS[self.blocks_run : last + 1]:
            # Blank lines in front make a traceback, and `record`, name the line of the README.
            exec(compile("\n" * (line - 1) + code, README, "exec"), self.namespace)
            self.blocks_run += 1

    def record(self, *values: object) -> None:
        line = inspect.currentframe().f_back.f_lineno
        printed = " ".join(map(str, values))
        promised = COMMENT.match(TEXT.splitlines()[line - 1])
        if promised and not agree(promised[1], printed):
            self.wrong.append(f"README.md:{line} prints {printed!r}, not {promised[1]!r}")


@pytest.fixture(scope="module")
def session():
    return Session()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("readme")
    folders.write_readme_folders(made)
    return made


def test_the_readme_has_python_blocks():
    assert BLOCKS, "README.md holds no ```python block"


def test_blocks_are_found_with_their_lines():
    text = "text\n```python\na = 1\n```\n```bash\nls\n```\n\n```python\nb = 2\n\nc = 3\n```\n"
    assert find_blocks(text) == [(3, "a = 1\n"), (10, "b = 2\n\nc = 3\n")]


@pytest.mark.parametrize(
    ("promised", "printed", "same"),
    [
        ("98.6%", "97.0%", True),
        ("98.6%", "88.0%", False),
        ("(360, 8, 8, 1)", "(360, 8, 8, 1)", True),
        ("(360, 8, 8, 1)", "(359, 8, 8, 1)", False),
        ("True", "False", False),
        ("['conv1']", "['conv2']", False),
    ],
)
def test_comments_are_compared_with_what_is_printed(promised, printed, same):
    assert agree(promised, printed) is same


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(BLOCKS)), ids=[f"line {line}" for line, _ in BLOCKS])
def test_block_runs_and_prints_what_its_comments_say(index, session, folder, monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.chdir(folder)
    session.run_through(index)
    assert not session.wrong
