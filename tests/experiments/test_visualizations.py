"""Visualization experiments: fast runs write their files; full runs show what the page says."""

import json

import numpy as np
import pytest

from experiments import attributions, deep_dream, unit_visualization

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("experiment", "figures"),
    [
        (unit_visualization, {"conv1", "conv2", "affine3", "logits"}),
        (attributions, {"maps", "deletion", "insertion"}),
        (deep_dream, {"china", "flower"}),
    ],
)
def test_it_writes_a_page_figures_and_numbers(experiment, figures, tmp_path):
    numbers = experiment.main(tmp_path, fast=True)
    assert (tmp_path / "index.html").read_text().count("data:image/") == len(figures)
    assert {path.stem for path in tmp_path.glob("*.png")} == figures
    assert json.loads((tmp_path / "numbers.json").read_text()) == numbers


def test_a_second_network_classifies_the_images_of_the_outputs(tmp_path):
    numbers = unit_visualization.main(tmp_path)
    assert numbers["accuracy"] >= 0.96
    assert numbers["agreement"] >= 0.9
    assert min(numbers["median percentile"].values()) >= 99


def test_attributions_beat_a_random_order(tmp_path):
    numbers = attributions.main(tmp_path)
    areas = numbers["area under deletion"]
    baseline = areas.pop("random order")
    methods = ("input × gradient", "integrated gradients", "occlusion")
    assert all(areas[name] < 0.7 * baseline for name in methods)
    similarities = numbers["similarity after randomization"]
    similarity = {name: np.mean(values) for name, values in similarities.items()}
    assert all(similarity[name] < 0.5 for name in ("saliency", "SmoothGrad", "Grad-CAM"))
    # A product with the input stays similar to the input (Adebayo et al., 2018).
    products = similarity["input × gradient"], similarity["integrated gradients"]
    assert min(products) > similarity["saliency"]
