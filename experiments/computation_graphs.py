"""The lectures' computation graphs, drawn from the functions themselves: values, adjoints and the derivative on every edge.

    python -m experiments.computation_graphs [--fast]

traces (x + y) z and |Wx|^2 of lecture 003, the worked networks of lectures 000 and 001, three steps of a recurrent network (backpropagation
through time), softmax cross-entropy closed and opened, a residual block, a network whose hand-written gradient is wrong on one edge, and a
deep network in blocks. Then lecture 000's question "which of these are differentiable, which are hard to optimise?": eight functions, their
gradients, and where descent goes on each.

Writes results/computation_graphs/: index.html; for each graph a figure, a page to click through and a file for Graphviz; numbers.json.

To see your own function, put it into `GRAPHS`: anything that JAX can differentiate, with its arguments.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from matplotlib.figure import Figure

import diffprog as dp
from diffprog import checks
from diffprog.graph import Graph, trace
from diffprog.plotting import Section, Table

RESULTS = Path("results/computation_graphs")
STEPS = 40
BLUE, ORANGE, FAINT, INK = "#1f6fb2", "#c8741a", "#c9ced4", "#22262b"


class Example(NamedTuple):
    """A function with its arguments, and what there is to see; `options` are those of `trace`."""

    title: str
    text: str
    f: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any] = {}


def product(x: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
    return dp.tap(x + y, "q") * z


def squared_norm(W: jax.Array, x: jax.Array) -> jax.Array:
    return (dp.tap(W @ x, "q") ** 2).sum()


def sigmoid_network(W1: jax.Array, W2: jax.Array, x: jax.Array, t: float) -> jax.Array:
    h = dp.tap(jax.nn.sigmoid(W1 @ x), "x1")
    y = dp.tap(jax.nn.sigmoid(W2 @ h), "y")
    return 0.5 * (t - y) ** 2


def tanh_network(W0: jax.Array, W1: jax.Array, x: jax.Array, t: float) -> jax.Array:
    x2 = dp.tap(jnp.tanh(W0 @ x), "x2")
    x3 = dp.tap(W1 @ x2, "x3")
    return 0.5 * (x3 - t) ** 2


def recurrent_network(W: jax.Array, u: jax.Array, h0: jax.Array, xs: jax.Array) -> jax.Array:
    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
        return dp.tap(jnp.tanh(W @ h + u * x), "h"), None

    h, _ = lax.scan(step, h0, xs)
    return (h**2).sum()


def cross_entropy(z: jax.Array, d: jax.Array) -> jax.Array:
    return -(d * jnp.log(dp.tap(jax.nn.softmax(z), "y"))).sum()


def residual_block(W1: jax.Array, W2: jax.Array, x: jax.Array) -> jax.Array:
    return (dp.tap(x + W2 @ jax.nn.relu(W1 @ x), "y") ** 2).sum()


def deep_network(layers: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    for number, layer in enumerate(layers):
        with jax.named_scope(f"layer {number + 1}"):
            x = jnp.tanh(x @ layer["weight"] + layer["bias"])
    return (x**2).mean()


def tanh_gradient_by_hand(
    W0: jax.Array, W1: jax.Array, x: jax.Array, t: float
) -> tuple[jax.Array, jax.Array]:
    """The gradient of `tanh_network` with a common slip: tanh' is 1 - tanh^2, which is 1 - x2^2 and not 1 - x1^2."""
    x1 = W0 @ x
    x2 = jnp.tanh(x1)
    d3 = W1 @ x2 - t
    d1 = d3 * W1 * (1 - x1**2)
    return jnp.outer(d1, x), d3 * x2


SIGMOID = (
    np.array([[0.1, 0.8], [0.4, 0.6]]),
    np.array([0.3, 0.9]),
    np.array([0.35, 0.9]),
    np.array(0.5),
)
TANH = (
    np.array([[1.0, -3.0], [0.2, 1.0]]),
    np.array([1.0, -1.0]),
    np.array([1.0, 0.1]),
    np.array(0.5),
)


def graphs() -> dict[str, Example]:
    """Every example, by the name of its files."""
    logits, target = np.array([2.0, 1.0, -1.0]), np.array([0.0, 1.0, 0.0])
    keys = jax.random.split(jax.random.key(0), 12)
    deep = [{"weight": 0.25 * jax.random.normal(key, (8, 8)), "bias": jnp.zeros(8)} for key in keys]
    report = checks.check_grad(
        tanh_network, tanh_gradient_by_hand, *TANH, key=jax.random.key(0), argnums=(0, 1)
    )
    return {
        "product": Example(
            "f = (x + y) z",
            "Lecture 003: the value of each node above its wire, the gradient of f below, and on each edge the derivative of the node it "
            "enters. The sum hands its adjoint on to both (a distributor), the product hands each factor the other one (a switcher).",
            product,
            (-2.0, 5.0, -4.0),
        ),
        "squared_norm": Example(
            "f = |Wx|²",
            "Lecture 003, with vectors: the gradient of W is 2q xᵀ, that of x is 2Wᵀq. The derivative of a matrix product with respect to "
            "x is W; with respect to W, read row by row, it is x repeated along a diagonal.",
            squared_norm,
            (np.array([[0.1, 0.5], [-0.3, 0.8]]), np.array([0.2, 0.4])),
        ),
        "sigmoid": Example(
            "A 2-2-1 network of sigmoids",
            "Lecture 001's worked example: the adjoint of W2 is minus the delta times the hidden values. Each sigmoid carries y (1 - y).",
            sigmoid_network,
            SIGMOID,
        ),
        "tanh": Example(
            "A 2-2-1 network of tanh",
            "Lecture 000's worked example: the adjoints of W0 and W1, times -0.2, are the step it takes.",
            tanh_network,
            TANH,
        ),
        "recurrent": Example(
            "Three steps of a recurrent network",
            "A scan, unrolled. W and u enter at every step, and their adjoints are sums over the steps: backpropagation through time.",
            recurrent_network,
            (
                np.array([[0.5, 0.3], [-0.4, 0.6]]),
                np.array([0.2, 0.4]),
                np.array([0.5, -0.5]),
                np.array([0.3, -0.7, 1.1]),
            ),
        ),
        "cross_entropy": Example(
            "Softmax and cross-entropy",
            "The softmax in one box, with its whole Jacobian y_i (δ_ij - y_j) on the edge. The adjoint of z is y - d.",
            cross_entropy,
            (logits, target),
        ),
        "cross_entropy_opened": Example(
            "The softmax, opened",
            "The same function with expand='softmax': exponentials, their sum, a quotient. The largest logit is subtracted for safety, and "
            "stop_gradient cuts the derivative there, as the result does not depend on it.",
            cross_entropy,
            (logits, target),
            {"expand": "softmax"},
        ),
        "residual": Example(
            "A residual block",
            "Two paths from x to y: one through the weights, and one straight to the sum, whose derivative is the identity. Paths add.",
            residual_block,
            (
                np.array([[1.0, -1.0], [0.5, 0.5]]),
                np.array([[0.2, -0.1], [0.3, 0.4]]),
                np.array([1.0, -0.5]),
            ),
        ),
        "wrong": Example(
            "A wrong gradient",
            "A gradient of the tanh network, written by hand with tanh' = 1 - z² in place of 1 - tanh(z)², is held against jax.grad by "
            "check_grad. The report and the graph are one: the edge along which they differ is red.",
            tanh_network,
            TANH,
            {"against": report},
        ),
        "deep": Example(
            "Twelve layers",
            "A graph of more than 60 nodes is drawn in blocks, here by the names of its scopes. The adjoints shrink from layer to layer on "
            "the way back: vanishing gradients.",
            deep_network,
            (deep, jax.random.normal(keys[0], (4, 8))),
        ),
    }


class Landscape(NamedTuple):
    """A function of one number, where descent starts, its step size, and what happens."""

    name: str
    f: Callable[[jax.Array], jax.Array]
    start: float
    rate: float
    said: str


LANDSCAPES = (
    Landscape("x²", lambda x: x**2, -1.8, 0.1, "smooth: straight to the minimum"),
    Landscape("|x|", jnp.abs, -1.75, 0.3, "kink at 0: to and fro across it"),
    Landscape("relu(x)", jax.nn.relu, 1.7, 0.1, "kink at 0: stops where it is flat"),
    Landscape(
        "step(x)", lambda x: jnp.heaviside(x, 1.0), 1.0, 0.3, "a jump: gradient 0, no move at all"
    ),
    Landscape(
        "sawtooth", lambda x: x - jnp.floor(x), 1.5, 0.05, "jumps: down a tooth, up to the next"
    ),
    Landscape(
        "flat: 1 − exp(−4x²)",
        lambda x: 1 - jnp.exp(-4 * x**2),
        -1.6,
        0.3,
        "smooth, but gradient near 0: stuck",
    ),
    Landscape(
        "steep: √|x|",
        lambda x: jnp.sqrt(jnp.abs(x)),
        -1.6,
        0.1,
        "slope without bound: thrown out near 0",
    ),
    Landscape(
        "x²/4 + sin 6x",
        lambda x: x**2 / 4 + jnp.sin(6 * x),
        1.6,
        0.02,
        "smooth: the nearest of many minima",
    ),
)


def descend(landscape: Landscape, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The points that plain gradient descent visits, and the values there."""
    descent = dp.descent.descent(lambda x, step: (landscape.f(x), x), optax.sgd(landscape.rate))
    result = dp.descent.run(descent, jnp.asarray(landscape.start, jnp.float32), steps)
    return np.asarray(result.aux), np.asarray(result.costs)


def draw_landscapes(steps: int) -> tuple[Figure, dict[str, Any]]:
    """The gallery: each function with the points that descent visits, its gradient below."""
    columns = 4
    figure = Figure(figsize=(12, 7.2), layout="constrained")
    blocks = np.ravel(np.asarray(figure.subfigures(len(LANDSCAPES) // columns, columns)))
    numbers = {}
    for block, landscape in zip(blocks, LANDSCAPES, strict=True):
        visited, costs = descend(landscape, steps)
        above, below = block.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        x = jnp.linspace(-2, 2, 801, dtype=jnp.float32)
        slope = jax.vmap(jax.grad(landscape.f))(x)
        above.plot(x, _broken(landscape.f(x)), color=INK, linewidth=1.3)
        above.plot(visited, costs, color=ORANGE, linewidth=0.7, alpha=0.6)
        above.scatter(
            visited, costs, s=14, color=ORANGE, alpha=np.linspace(0.25, 1, len(visited)), zorder=3
        )
        above.scatter(visited[:1], costs[:1], s=36, facecolor="white", edgecolor=ORANGE, zorder=4)
        below.plot(x, _broken(np.clip(slope, -9, 9)), color=BLUE, linewidth=1.2)
        below.axhline(0, color=FAINT, linewidth=0.7, zorder=0)
        above.set_title(landscape.name, fontsize=11, color=INK)
        below.set_xlabel(landscape.said, fontsize=8.5, color=INK)
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=7, color=FAINT)
        numbers[landscape.name] = {
            "start": landscape.start,
            "end": float(visited[-1]),
            "value": float(costs[-1]),
            "said": landscape.said,
        }
    blocks[0].axes[0].set_ylabel("f and descent", fontsize=8.5, color=ORANGE)
    blocks[0].axes[1].set_ylabel("gradient", fontsize=8.5, color=BLUE)
    return figure, numbers


def _broken(values: Any) -> np.ndarray:
    """A curve that is not joined across a jump."""
    values = np.array(values, np.float64)
    values[1:][np.abs(np.diff(values)) > 0.5] = np.nan
    return values


def said(graph: Graph) -> dict[str, Any]:
    """The numbers of a graph: its value, and the adjoint of every argument and every named node."""
    named = {node.name: node.adjoint for node in graph.nodes if node.kind == "argument" or node.tap}
    return {
        "value": graph[graph.output].value.item(),
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "adjoints": {
            name: adjoint.tolist() for name, adjoint in named.items() if adjoint is not None
        },
        "red edges": [[edge.source, edge.target] for edge in graph.edges if edge.wrong],
    }


def main(folder: Path, *, fast: bool = False) -> dict[str, Any]:
    """Trace, draw and write everything to `folder`, in float64; return the numbers."""
    with jax.enable_x64(True):
        return _main(folder, fast)


def _main(folder: Path, fast: bool) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    sections, numbers = [], {}
    chosen = graphs()
    for name in ["product", "cross_entropy_opened", "wrong"] if fast else chosen:
        example = chosen[name]
        graph = trace(example.f, *example.args, **example.options)
        figure = dp.plotting.draw_graph(graph)
        figure.savefig(folder / f"{name}.png", dpi=150)
        (folder / f"{name}.html").write_text(dp.plotting.graph_html(graph), encoding="utf-8")
        (folder / f"{name}.dot").write_text(graph.to_dot(), encoding="utf-8")
        numbers[name] = said(graph)
        text = f"{example.text}\n\nTo click through it, open {name}.html."
        sections.append(
            Section(
                example.title,
                text,
                figure,
                _paths(graph) if name == "residual" else None,
                example.title,
            )
        )
        print(
            f"{name:22s} {len(graph.nodes):4d} nodes {len(graph.edges):4d} edges, J = {numbers[name]['value']:.7g}"
        )
    figure, numbers["gallery"] = draw_landscapes(5 if fast else STEPS)
    figure.savefig(folder / "gallery.png", dpi=150)
    caption = "Eight functions, the points that gradient descent visits (from the open one), and below each its gradient."
    question = "Lecture 000 asks which of these are differentiable, and which are hard to optimise. The two are not the same."
    sections.append(
        Section(
            "Which are differentiable, which are hard to optimise?",
            question,
            figure,
            caption=caption,
        )
    )
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    summary = "The graph of a function with the value of every node, its adjoint dJ/dnode and, on every edge, the local derivative."
    print(
        dp.plotting.write_page(
            folder / "index.html", "Computation graphs", sections, summary=summary
        )
    )
    return numbers


def _paths(graph: Graph) -> Table:
    """Lecture 004's distributed chain rule: every path from x to y with the product of its edges."""
    paths = graph.paths("x", "y")
    rows: list[list[object]] = [
        [" → ".join(path.nodes), _matrix(path.derivative)] for path in paths
    ]
    return Table(
        ["path", "product of its edges"],
        [*rows, ["sum: dy/dx", _matrix(sum(path.derivative for path in paths))]],
    )


def _matrix(matrix: Any) -> str:
    return (
        "["
        + "; ".join(" ".join(f"{entry:g}" for entry in row) for row in np.round(matrix, 4))
        + "]"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fast", action="store_true", help="three graphs and a few steps, to see that it runs"
    )
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    main(options.folder, fast=options.fast)
