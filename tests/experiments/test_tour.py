"""The tour, fast: it writes what it says, and the same seed gives the same numbers."""

import json

import pytest

from experiments import tour

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tour")
    return folder, tour.main(folder, fast=True)


def test_writes_a_page_figures_and_numbers(walked):
    folder, numbers = walked
    page = (folder / "index.html").read_text()
    assert page.count("data:image/") == 5
    assert {path.stem for path in folder.glob("*.png")} == {
        "training",
        "logits",
        "channels",
        "adversarial",
        "robustness",
    }
    assert json.loads((folder / "numbers.json").read_text()) == numbers


def test_numbers_are_sane(walked):
    _, numbers = walked
    assert numbers["accuracy"] > 0.7
    assert numbers["robust accuracy"]["0.0"] == numbers["accuracy"]
    assert numbers["robust accuracy"]["0.3"] < numbers["robust accuracy"]["0.0"]
    assert numbers["largest difference to jax.grad"] < 1e-11


def test_same_seed_same_numbers(walked, tmp_path):
    assert tour.main(tmp_path, fast=True) == walked[1]


def test_the_whole_tour_reads_98_and_a_half_percent(tmp_path):
    numbers = tour.main(tmp_path)
    assert numbers["accuracy"] >= 0.985
    assert numbers["robust accuracy"]["0.2"] < 0.2
