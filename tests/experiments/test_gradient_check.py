import json

import pytest

from experiments import gradient_check


@pytest.mark.slow
def test_the_fast_run_catches_its_bugs_and_writes_them_down(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gradient_check, "RESULTS", tmp_path / "gradient_check")
    found = gradient_check.main(fast=True)
    said = capsys.readouterr().out
    assert found
    assert all(bug["caught"] for bug in found)
    assert json.loads((tmp_path / "gradient_check/bugs.json").read_text()) == found
    assert (tmp_path / "gradient_check/slopes.png").stat().st_size > 5000
    assert "NOT CAUGHT" not in said
    assert "x['1 % off']  order 1.00  wrong" in said
    assert "x['right']    order 2.00  right" in said


def test_every_bug_sits_in_a_layer_of_the_network():
    assert {bug.part for bug in gradient_check.BUGS} <= set(gradient_check.LAYERS)
