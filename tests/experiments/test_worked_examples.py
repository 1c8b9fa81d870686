import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import worked_examples
from experiments.sources import golden

EXAMPLES = golden()


@pytest.mark.slow
def test_main_prints_tables_and_statements_and_writes_the_results(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    worked_examples.main(["wx_norm2", "xyz"], fast=True)
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    (two_q,) = (line for line in lines if line and line[0] == "two_q[1]")
    assert two_q[:4] == ["two_q[1]", "0.56", "0.52", "0.52"]
    assert two_q[-1] == "MISPRINT"
    assert "error: finite differences" not in out
    assert "2 examples, 26 numbers" in out
    saved = json.loads((tmp_path / "results/worked_examples/numbers.json").read_text())
    numbers = {number["label"]: number for number in saved["examples"]["wx_norm2"]}
    assert numbers["f"]["printed"] == "0.116"
    assert numbers["f"]["computed"]["by hand"] == pytest.approx(0.116, abs=1e-15)
    assert len(saved["statements"]) == len(worked_examples.STATEMENTS)
    assert (tmp_path / "results/worked_examples/errors.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("printed", "true", "expected"),
    [
        ("0.604", 0.60436, "rounded"),
        ("-0.1187", -0.118661, "rounded"),
        ("-0.1186", -0.118661, "truncated"),
        ("-0.1188", -0.118661, "MISPRINT"),
        ("1000000", 1e6, "rounded"),
        ("1.0", 0.9966, "rounded"),
    ],
)
def test_verdict(printed, true, expected):
    assert worked_examples.verdict(printed, true) == expected


def test_equal_numbers_share_a_row_with_the_worst_of_them():
    computed = {"by hand": {"z": np.array([[0.5, 0.5], [0.5, 0.75]])}}
    rows = worked_examples.group_equal(
        "z", [[0.5, 0.5], [0.5, 0.25]], {"z": ["0.5", "0.5", "0.5", "0.2"]}, computed
    )
    assert [(row.label, row.printed, row.computed["by hand"]) for row in rows] == [
        ("z[0,0] and 2 more", "0.5", 0.5),
        ("z[1,1]", "0.2", 0.75),
    ]


def test_table_shows_the_error_of_a_wrong_number():
    rows = [worked_examples.Number("z", "0.5", 0.5, {"by hand": 0.6}, "rounded")]
    assert "1e-01" in worked_examples.format_table(rows)


@pytest.mark.parametrize("state", worked_examples.STATEMENTS)
def test_statements_hold(state):
    _, numbers = state(EXAMPLES)
    expected = {
        "dW3 of the sum / dW3 of the mean": 2,
        "largest |dW3|": 0.142136,
        "loss of z3 = 0.16396": 0.376364,
        "loss of z3 = 0.16936": 0.373664,
        "delta2[0]": -0.040641,
        "delta1[0]": -0.00265037,
        "delta1[1]": -0.00815581,
        "dW1[0]": 0.000945,
        "dW1[1]": 0.00243,
        "dW1[2]": 0.00287,
        "dW1[3]": 0.00738,
        "dW2[0]": 0.027608,
        "dW2[1]": 0.0269462,
    }
    for label, value in numbers.items():
        assert value == pytest.approx(expected.get(label, 0), rel=1e-5, abs=1e-14), label


def test_unknown_name_is_an_error():
    command = [sys.executable, "-m", "experiments.worked_examples", "made_up"]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert result.returncode == 2
    assert "name must be one of mit_tanh_221, " in result.stderr
    assert "got made_up" in result.stderr
