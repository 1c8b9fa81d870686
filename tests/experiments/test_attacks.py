"""Attack experiments: fast runs write their files; full runs show what the page says."""

import json

import pytest

from experiments import gradient_masking, robustness, targeted_attack

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("experiment", "figures"),
    [
        (robustness, {"curves", "standard_training", "adversarial_training"}),
        (targeted_attack, {"images"}),
        (gradient_masking, set()),
    ],
)
def test_it_writes_a_page_figures_and_numbers(experiment, figures, tmp_path):
    numbers = experiment.main(tmp_path, fast=True)
    assert (tmp_path / "index.html").read_text().count("data:image/") == len(figures)
    assert {path.stem for path in tmp_path.glob("*.png")} == figures
    assert json.loads((tmp_path / "numbers.json").read_text()) == numbers


def test_adversarial_training_raises_robust_accuracy(tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "EXAMPLES", 150)
    numbers = robustness.main(tmp_path)
    standard, adversarial = numbers["standard training"], numbers["adversarial training"]
    assert standard["clean accuracy"] >= 0.98
    assert adversarial["clean accuracy"] >= 0.95
    assert adversarial["robust accuracy"][0] >= standard["robust accuracy"][0] + 0.15
    assert standard["flags"] == adversarial["flags"] == []


def test_every_targeted_attack_succeeds(tmp_path):
    numbers = targeted_attack.main(tmp_path)
    assert numbers["successes"] == 90
    assert numbers["norm"]["median"] < 0.5 * numbers["median norm of an image"]


def test_masked_gradients_are_flagged_and_adaptive_attacks_succeed(tmp_path):
    numbers = gradient_masking.main(tmp_path)
    assert numbers["undefended flags"] == []
    flags = {name: found["flags"] for name, found in numbers["defenses"].items()}
    assert "saturated softmax" in flags["scaled logits"]
    assert "zero gradients" in flags["quantized input"]
    assert "random program" in flags["random program"]
    for found in numbers["defenses"].values():
        # Relative to the clean accuracy, which for the random program is lower with one draw of
        # the noise than with the mean of many.
        adaptive = found["adaptive attack"] / found["clean accuracy of the adaptive program"]
        assert adaptive < found["naive PGD"] / found["clean accuracy"] - 0.15
