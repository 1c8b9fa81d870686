import json

import pytest

from experiments import gradient_check


@pytest.mark.slow
def test_fast_run_catches_and_saves_its_bugs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gradient_check, "RESULTS", tmp_path / "gradient_check")
    results = gradient_check.main(fast=True)
    printed = capsys.readouterr().out
    assert results
    assert all(result["caught"] for result in results)
    assert json.loads((tmp_path / "gradient_check/bugs.json").read_text()) == results
    assert (tmp_path / "gradient_check/slopes.png").stat().st_size > 5000
    assert "NOT CAUGHT" not in printed
    assert "x['1 % off']  order 1.00  wrong" in printed
    assert "x['right']    order 2.00  correct" in printed


def test_every_bug_has_a_layer_of_the_network():
    assert {bug.layer for bug in gradient_check.BUGS} <= set(gradient_check.LAYERS)
