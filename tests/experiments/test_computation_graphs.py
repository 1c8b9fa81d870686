import json

import jax
import numpy as np
import pytest

from diffprog.graph import trace
from experiments import computation_graphs
from experiments.sources import golden

pytestmark = pytest.mark.slow  # `make test` stays under four minutes


@pytest.fixture(scope="module")
def fast_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    return folder, computation_graphs.main(folder, fast=True)


def test_writes_a_page_and_three_files_for_each_graph(fast_run):
    folder, numbers = fast_run
    names = set(numbers) - {"gallery"}
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("png", "html", "dot")
    } | {
        "gallery.png",
        "index.html",
        "numbers.json",
    }
    assert (folder / "index.html").read_text().count("data:image/") == len(names) + 1
    assert json.loads((folder / "numbers.json").read_text()) == numbers


def test_red_edge_is_the_one_with_the_wrong_derivative(fast_run):
    assert fast_run[1]["wrong"]["red edges"] == [["W0", "matmul"]]
    assert fast_run[1]["product"]["red edges"] == []


def test_gallery_has_the_ends_of_eight_descents(fast_run):
    gallery = fast_run[1]["gallery"]
    assert len(gallery) == 8
    assert gallery["step(x)"]["end"] == gallery["step(x)"]["start"]
    assert abs(gallery["x²"]["end"]) < 1.8


def test_longer_descents_converge_oscillate_and_stop():
    ends = {
        landscape.name: computation_graphs.descend(landscape, 40)[0][-2:]
        for landscape in computation_graphs.LANDSCAPES[:4]
    }
    np.testing.assert_allclose(ends["x²"], 0, atol=1e-3)
    assert ends["|x|"][0] * ends["|x|"][1] < 0
    assert ends["relu(x)"][0] == ends["relu(x)"][1] <= 0


def test_adjoints_equal_the_worked_examples():
    with jax.enable_x64(True):
        examples = computation_graphs.make_examples()
        adjoints = {name: _adjoints(examples[name]) for name in ("squared_norm", "sigmoid", "tanh")}
    true = {name: example["true"] for name, example in golden().items()}
    close = np.testing.assert_allclose
    close(adjoints["squared_norm"]["W"], true["wx_norm2"]["dW"])
    close(adjoints["squared_norm"]["x"], true["wx_norm2"]["dx"])
    close(adjoints["sigmoid"]["W1"], true["sigmoid_221"]["dW1"])
    close(adjoints["sigmoid"]["W2"], true["sigmoid_221"]["dW2"][0])
    close(adjoints["tanh"]["W0"], true["mit_tanh_221"]["dL_dW0"])
    close(adjoints["tanh"]["W1"], true["mit_tanh_221"]["dL_dW1"][0])
    close(adjoints["tanh"]["x2"], true["mit_tanh_221"]["dL_dx2"])


def _adjoints(example):
    return {node.name: node.adjoint for node in trace(example.f, *example.args).nodes}


def test_wrong_gradient_is_right_in_the_other_parameter():
    with jax.enable_x64(True):
        graph = trace(computation_graphs.tanh_network, *computation_graphs.TANH)
        _, dW1 = computation_graphs.tanh_gradient_by_hand(*computation_graphs.TANH)
        np.testing.assert_allclose(dW1, graph["W1"].adjoint)
