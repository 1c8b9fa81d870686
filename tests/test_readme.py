"""The README's Python blocks, run from top to bottom in one namespace, one test a block."""

import re
from pathlib import Path

import matplotlib
import pytest

from tests.pretrained import folders

README = Path(__file__).parent.parent / "README.md"
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[int, str]]:
    """The line on which each Python block starts, and its code."""
    return [(text.count("\n", 0, found.start(1)) + 1, found[1]) for found in FENCE.finditer(text)]


BLOCKS = blocks(README.read_text(encoding="utf-8"))


class Session:
    """Runs blocks in order, each once, so that a block can be asked for alone or in another process."""

    def __init__(self):
        self.namespace = {"__name__": "readme"}
        self.done = 0

    def run_through(self, last: int) -> None:
        for line, code in BLOCKS[self.done : last + 1]:
            # Blank lines in front make a traceback name the line of the README.
            exec(compile("\n" * (line - 1) + code, README, "exec"), self.namespace)
            self.done += 1


@pytest.fixture(scope="module")
def session():
    return Session()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("readme")
    folders.of_the_readme(made)
    return made


def test_the_readme_has_python_blocks():
    assert BLOCKS, "README.md holds no ```python block"


def test_blocks_are_found_with_their_lines():
    assert blocks(
        "text\n```python\na = 1\n```\n```bash\nls\n```\n\n```python\nb = 2\n\nc = 3\n```\n"
    ) == [
        (3, "a = 1\n"),
        (10, "b = 2\n\nc = 3\n"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(BLOCKS)), ids=[f"line {line}" for line, _ in BLOCKS])
def test_block_runs(index, session, folder, monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.chdir(folder)
    session.run_through(index)
