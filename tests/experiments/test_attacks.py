"""The attack experiments, fast: they write what they say; and whole: what they show."""

import json

import pytest

from experiments import gradient_masking, robustness, targeted_attack

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("experiment", "pictures"),
    [
        (robustness, {"curves", "trained_plainly", "trained_against_pgd"}),
        (targeted_attack, {"sheet"}),
        (gradient_masking, set()),
    ],
)
def test_writes_a_page_figures_and_numbers(experiment, pictures, tmp_path):
    numbers = experiment.main(tmp_path, fast=True)
    assert (tmp_path / "index.html").read_text().count("data:image/") == len(pictures)
    assert {path.stem for path in tmp_path.glob("*.png")} == pictures
    assert json.loads((tmp_path / "numbers.json").read_text()) == numbers


def test_training_against_an_attack_makes_robust(tmp_path):
    numbers = robustness.main(tmp_path)
    plain, robust = numbers["trained plainly"], numbers["trained against pgd"]
    assert plain["clean"] >= 0.98
    assert robust["clean"] >= 0.95
    assert robust["worst case"][0] >= plain["worst case"][0] + 0.15
    assert plain["flags"] == robust["flags"] == []


def test_every_digit_is_turned_into_every_other(tmp_path):
    numbers = targeted_attack.main(tmp_path)
    assert numbers["turned"] == 90
    assert numbers["norm"]["median"] < 0.5 * numbers["median norm of an image"]


def test_masked_gradients_are_flagged_and_broken(tmp_path):
    numbers = gradient_masking.main(tmp_path)
    assert numbers["undefended flags"] == []
    flags = {name: found["flags"] for name, found in numbers["defences"].items()}
    assert "saturated softmax" in flags["scaled logits"]
    assert "zero gradients" in flags["quantised input"]
    assert "random program" in flags["random program"]
    for found in numbers["defences"].values():
        # Of those read rightly: the random program reads worse with its author's one draw than with the mean of many.
        fitting = found["under the fitting attack"] / found["clean under the fitting attack"]
        assert fitting < found["as its author sees it"] / found["clean"] - 0.15
