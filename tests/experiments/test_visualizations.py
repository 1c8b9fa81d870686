"""The visualization experiments, fast: they write what they say; and whole, among the slow: what they show."""

import json

import numpy as np
import pytest

from experiments import attributions, deep_dream, unit_visualization

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("experiment", "pictures"),
    [
        (unit_visualization, {"conv1", "conv2", "affine3", "logits"}),
        (attributions, {"maps", "deletion", "insertion"}),
        (deep_dream, {"china", "flower"}),
    ],
)
def test_writes_a_page_figures_and_numbers(experiment, pictures, tmp_path):
    numbers = experiment.main(tmp_path, fast=True)
    assert (tmp_path / "index.html").read_text().count("data:image/") == len(pictures)
    assert {path.stem for path in tmp_path.glob("*.png")} == pictures
    assert json.loads((tmp_path / "numbers.json").read_text()) == numbers


def test_another_network_reads_what_the_outputs_look_for(tmp_path):
    numbers = unit_visualization.main(tmp_path)
    assert numbers["accuracy"] >= 0.96
    assert numbers["agreement"] >= 0.9
    assert min(numbers["median percentile"].values()) >= 99


def test_attributions_beat_a_random_order(tmp_path):
    numbers = attributions.main(tmp_path)
    areas = numbers["area under deletion"]
    noise = areas.pop("random order")
    assert all(
        areas[name] < 0.7 * noise
        for name in ("input × gradient", "integrated gradients", "occlusion")
    )
    left = {
        name: np.mean(shares) for name, shares in numbers["similarity after randomisation"].items()
    }
    assert all(left[name] < 0.5 for name in ("saliency", "smooth grad", "grad-CAM"))
    # A product with the input goes on looking like the input (Adebayo et al. 2018).
    assert min(left["input × gradient"], left["integrated gradients"]) > left["saliency"]
