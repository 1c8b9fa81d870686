"""The list of planted errors fits the library as it stands."""

import ast

from tests.mutants.run import ROOT, mutants


def test_every_planted_error_changes_one_line_and_is_valid_python():
    for file, error, old, new in mutants([]):
        right = (ROOT / file).read_text()
        wrong = right.replace(old, new)
        changed = [a != b for a, b in zip(right.split("\n"), wrong.split("\n"), strict=True)]
        assert sum(changed) == 1, error
        ast.parse(wrong)


def test_the_list_has_errors_in_every_package():
    packages = {path.parent.name for path in (ROOT / "diffprog").glob("*/__init__.py")}
    assert packages <= {mutant.file.split("/")[1] for mutant in mutants([])}
    assert len({(mutant.file, mutant.new) for mutant in mutants([])}) == len(mutants([])) >= 80
