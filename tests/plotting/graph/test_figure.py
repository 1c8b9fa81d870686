"""Figures show values, adjoints and local derivatives, and collapse large graphs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog.graph import trace
from diffprog.graph._format import ADJOINT, LOCAL, VALUE, WRONG
from diffprog.plotting import draw_graph


def draw(graph, **options):
    axes = draw_graph(graph, **options).axes[0]
    return [(text.get_text(), text.get_color()) for text in axes.texts], axes


def test_values_adjoints_and_derivatives_have_colors_and_a_legend():
    texts, _ = draw(trace(lambda x, y, z: (x + y) * z, -2.0, 5.0, -4.0))
    of = lambda color: sorted(text for text, other in texts if other == color)
    assert of(VALUE) == sorted(["−2", "5", "−4", "3", "−12", "value"])
    assert of(ADJOINT) == sorted(["−4", "−4", "3", "−4", "1", "adjoint dJ/d·"])
    assert of(LOCAL) == sorted(["1", "1", "−4", "3", "local derivative"])
    assert {"x", "y", "z", "+", "×"} <= {text for text, _ in texts}


def test_small_arrays_are_written_out_and_large_ones_summarized():
    texts = [
        text
        for text, _ in draw(trace(lambda W, x: (W @ x).sum(), np.eye(2), np.array([0.2, 0.4])))[0]
    ]
    assert "[1 0]\n[0 1]" in texts
    assert "[0.2 0.4]" in texts
    texts = [text for text, _ in draw(trace(lambda x: (2 * x).sum(), np.ones((10, 10))))[0]]
    assert "10×10, norm 10" in texts
    assert "2 ×" in texts


def test_a_square_has_two_distinct_edges():
    _, axes = draw(trace(lambda x: x * x, 3.0))
    curves = [
        patch.get_path().vertices.tolist()
        for patch in axes.patches
        if type(patch).__name__ == "PathPatch"
    ]
    assert len(curves) == len(set(map(str, curves))) == 4  # two wires, two edges


def test_cuts_rules_and_wrong_edges_are_labeled():
    from diffprog.checks import check_grad

    texts, _ = draw(trace(lambda x: (jax.nn.relu(x) * jax.lax.stop_gradient(x)).sum(), np.ones(2)))
    assert {"// cut", "▣ own derivative rule"} <= {text for text, _ in texts}
    report = check_grad(jnp.sin, lambda x: -jnp.cos(x), jnp.float32(0.3), key=jax.random.key(0))
    texts, _ = draw(trace(lambda x: jnp.sin(x), jnp.float32(0.3), against=report))
    assert ("✗ hand-written derivative differs", WRONG) in texts
    assert any(text.startswith("✗ 0.95") and color == WRONG for text, color in texts)


def test_large_graphs_are_drawn_in_groups():
    def f(x):
        for k in range(40):
            with jax.named_scope(f"part{k // 10}"):
                x = jnp.sin(x) * 2
        return x

    texts = [text for text, _ in draw(trace(f, 0.5))[0]]
    assert "part2\n20 operations" in texts
    assert len([text for text in texts if "operations" in text]) == 4
    assert len(draw(trace(f, 0.5), most=100)[0]) > 160


def test_groups_without_a_scope_list_their_operations():
    def f(x):
        for _ in range(40):
            x = jnp.sin(x) * 2
        return x

    texts = [text for text, _ in draw(trace(f, 0.5), most=8)[0]]
    assert any(text.startswith("sin, ×\n") for text in texts)

    def g(x):
        for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "arctan", "exp", "log1p"):
            x = getattr(jnp, name)(x)
        return x

    assert any(text.startswith("sin … ") for text, _ in draw(trace(g, 0.1), most=2)[0])


def test_scopes_of_transformations_only_are_ignored():
    def f(x):
        for _ in range(5):
            x = jnp.sin(x) * 2
        return x

    texts = [text for text, _ in draw(trace(lambda x: jax.vmap(f)(x).sum(), np.ones(3)), most=4)[0]]
    assert not any("vmap(" in text for text in texts)
    assert any(text.startswith("sin, ×\n10 operations") for text in texts)


@pytest.mark.parametrize("count", [61, 70])
def test_arguments_without_operations_are_one_box(count):
    texts = [text for text, _ in draw(trace(lambda *args: args[0], *[1.0] * count))[0]]
    assert f"args\n{count} arguments" in texts
    height, width = draw_graph(trace(lambda *args: args[0], *[1.0] * count)).get_size_inches()
    assert max(height, width) < 5


def test_short_graphs_run_right_and_long_ones_down():
    def chain(length):
        def f(x):
            for _ in range(length):
                x = jnp.sin(x)
            return x

        return draw_graph(trace(f, 0.5)).get_size_inches()

    short, long = chain(4), chain(40)
    assert short[0] > short[1]
    assert long[1] > long[0]


@pytest.mark.parametrize(
    ("graph", "options", "error", "message"),
    [
        ("graph", {}, TypeError, "graph must be a Graph"),
        (None, {"most": 1}, ValueError, "most"),
        (None, {"most": 2.5}, TypeError, "most"),
    ],
)
def test_bad_arguments_are_refused(graph, options, error, message):
    with pytest.raises(error, match=message):
        draw_graph(trace(lambda x: x, 1.0) if graph is None else graph, **options)
