"""The tour: a fast run writes its files and is reproducible; a full run reaches its accuracies."""

import json

import pytest

from experiments import tour

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fast_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tour")
    return folder, tour.main(folder, fast=True)


def test_it_writes_a_page_figures_and_numbers(fast_run):
    folder, numbers = fast_run
    assert (folder / "index.html").read_text().count("data:image/") == 5
    assert {path.stem for path in folder.glob("*.png")} == {
        "training",
        "logits",
        "channels",
        "adversarial",
        "robustness",
    }
    assert json.loads((folder / "numbers.json").read_text()) == numbers


def test_numbers_of_a_fast_run_are_plausible(fast_run):
    _, numbers = fast_run
    assert numbers["accuracy"] > 0.7
    assert numbers["robust accuracy"]["0.0"] == numbers["accuracy"]
    assert numbers["robust accuracy"]["0.3"] < numbers["robust accuracy"]["0.0"]
    assert numbers["largest difference to jax.grad"] < 1e-11


def test_same_seed_gives_same_numbers(fast_run, tmp_path):
    assert tour.main(tmp_path, fast=True) == fast_run[1]


def test_full_run_reaches_its_accuracies(tmp_path):
    numbers = tour.main(tmp_path)
    assert numbers["accuracy"] >= 0.985
    assert numbers["robust accuracy"]["0.2"] < 0.2
