"""Draw the computation graphs of the lectures with values, adjoints and local derivatives.

    python -m experiments.computation_graphs [--fast]

The graphs are traced from functions: (x + y) z and |Wx|² of lecture 003, the worked networks of
lectures 000 and 001, a recurrent network (backpropagation through time), softmax cross-entropy, a
residual block, a deep network drawn in blocks, and a network whose hand-written gradient is wrong
on one edge. A last figure answers lecture 000's question "which of these are differentiable, which
are hard to optimise?": eight functions, their gradients and the iterates of gradient descent.

Writes results/computation_graphs/: index.html; for each graph a figure, an interactive page and a
Graphviz file; numbers.json.

To draw your own function, add it to `make_examples` with its arguments: JAX must be able to
differentiate it.
"""

import argparse
import json
from collections.abc import Callable, Mapping
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
    """Function with its arguments, title and text; `options` are those of `trace`."""

    title: str
    text: str
    f: Callable[..., Any]
    args: tuple[Any, ...]
    options: Mapping[str, Any] = {}


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
    """Return a wrong gradient of `tanh_network`: tanh'(x1) is 1 - tanh(x1)², not 1 - x1²."""
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


def make_examples() -> dict[str, Example]:
    """Return the examples by the names of their files."""
    logits, target = np.array([2.0, 1.0, -1.0]), np.array([0.0, 1.0, 0.0])
    keys = jax.random.split(jax.random.key(0), 12)
    deep = [{"weight": 0.25 * jax.random.normal(key, (8, 8)), "bias": jnp.zeros(8)} for key in keys]
    report = checks.check_grad(
        tanh_network, tanh_gradient_by_hand, *TANH, key=jax.random.key(0), argnums=(0, 1)
    )
    return {
        "product": Example(
            "f = (x + y) z",
            "Lecture 003. Green: the value of each node. Orange: its adjoint, the gradient of f "
            "with respect to it. Blue: the local derivative of the node that the edge enters. A "
            "sum passes its adjoint to both inputs (distributor); a product multiplies it by the "
            "other factor (switcher).",
            product,
            (-2.0, 5.0, -4.0),
        ),
        "squared_norm": Example(
            "f = |Wx|²",
            "Lecture 003, with vectors: the gradient of W is 2q xᵀ, that of x is 2Wᵀq. The "
            "derivative of Wx with respect to x is W; with respect to W, its rows concatenated, it "
            "has copies of x along the diagonal.",
            squared_norm,
            (np.array([[0.1, 0.5], [-0.3, 0.8]]), np.array([0.2, 0.4])),
        ),
        "sigmoid": Example(
            "A 2-2-1 network of sigmoids",
            "Lecture 001's worked example: the adjoint of W2 is minus the delta times the hidden "
            "values. The local derivative of each sigmoid is y (1 - y).",
            sigmoid_network,
            SIGMOID,
        ),
        "tanh": Example(
            "A 2-2-1 network of tanh",
            "Lecture 000's worked example: the adjoints of W0 and W1, multiplied by the learning "
            "rate 0.2 and subtracted, are the step it takes.",
            tanh_network,
            TANH,
        ),
        "recurrent": Example(
            "Three steps of a recurrent network",
            "A scan, unrolled. W and u enter at every step, and their adjoints are sums over the "
            "steps: backpropagation through time.",
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
            "The softmax is one node, with its full Jacobian y_i (δ_ij - y_j) on the edge. The "
            "adjoint of z is y - d.",
            cross_entropy,
            (logits, target),
        ),
        "cross_entropy_expanded": Example(
            "Softmax and cross-entropy, expanded",
            "The same function with expand='softmax': exponentials, their sum, a quotient. The "
            "largest logit is subtracted to avoid overflow; as the result does not depend on it, "
            "stop_gradient removes its derivative.",
            cross_entropy,
            (logits, target),
            {"expand": "softmax"},
        ),
        "residual": Example(
            "A residual block",
            "Two paths lead from x to y: one through the weights, and one directly to the sum, "
            "with the identity as its derivative. The derivatives of paths add.",
            residual_block,
            (
                np.array([[1.0, -1.0], [0.5, 0.5]]),
                np.array([[0.2, -0.1], [0.3, 0.4]]),
                np.array([1.0, -0.5]),
            ),
        ),
        "wrong": Example(
            "A wrong gradient",
            "check_grad compares a hand-written gradient of the tanh network, which uses tanh' = 1 "
            "- z² instead of 1 - tanh(z)², with jax.grad. The graph shows its report: the edge "
            "with the wrong derivative is red.",
            tanh_network,
            TANH,
            {"against": report},
        ),
        "deep": Example(
            "Twelve layers",
            "A graph of more than 60 nodes is drawn in blocks, here by named scopes. The adjoints "
            "shrink from layer to layer towards the input: vanishing gradients.",
            deep_network,
            (deep, jax.random.normal(keys[0], (4, 8))),
        ),
    }


class Landscape(NamedTuple):
    """A function of one variable, with start, learning rate and outcome of gradient descent."""

    name: str
    f: Callable[[jax.Array], jax.Array]
    start: float
    rate: float
    outcome: str


LANDSCAPES = (
    Landscape("x²", lambda x: x**2, -1.8, 0.1, "smooth: converges to the minimum"),
    Landscape("|x|", jnp.abs, -1.75, 0.3, "kink at 0: oscillates around it"),
    Landscape("relu(x)", jax.nn.relu, 1.7, 0.1, "kink at 0: stops where it is flat"),
    Landscape("step(x)", lambda x: jnp.heaviside(x, 1.0), 1.0, 0.3, "jump: gradient 0, no step"),
    Landscape("sawtooth", lambda x: x - jnp.floor(x), 1.5, 0.05, "jumps: falls, then jumps up"),
    Landscape(
        "flat: 1 − exp(−4x²)",
        lambda x: 1 - jnp.exp(-4 * x**2),
        -1.6,
        0.3,
        "smooth, but vanishing gradient",
    ),
    Landscape(
        "steep: √|x|",
        lambda x: jnp.sqrt(jnp.abs(x)),
        -1.6,
        0.1,
        "unbounded slope: overshoots near 0",
    ),
    Landscape(
        "x²/4 + sin 6x", lambda x: x**2 / 4 + jnp.sin(6 * x), 1.6, 0.02, "smooth: a local minimum"
    ),
)


def descend(landscape: Landscape, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the iterates of gradient descent and the values there."""
    descent = dp.descent.descent(lambda x, step: (landscape.f(x), x), optax.sgd(landscape.rate))
    result = dp.descent.run(descent, jnp.asarray(landscape.start, jnp.float32), steps)
    return np.asarray(result.aux), np.asarray(result.costs)


def draw_landscapes(steps: int) -> tuple[Figure, dict[str, Any]]:
    """Draw each function with the iterates of gradient descent, and its gradient below."""
    columns = 4
    figure = Figure(figsize=(12, 7.2), layout="constrained")
    blocks = np.ravel(np.asarray(figure.subfigures(len(LANDSCAPES) // columns, columns)))
    numbers = {}
    for block, landscape in zip(blocks, LANDSCAPES, strict=True):
        iterates, costs = descend(landscape, steps)
        above, below = block.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        x = jnp.linspace(-2, 2, 801, dtype=jnp.float32)
        slope = jax.vmap(jax.grad(landscape.f))(x)
        above.plot(x, _split_at_jumps(landscape.f(x)), color=INK, linewidth=1.3)
        above.plot(iterates, costs, color=ORANGE, linewidth=0.7, alpha=0.6)
        above.scatter(
            iterates, costs, s=14, color=ORANGE, alpha=np.linspace(0.25, 1, len(iterates)), zorder=3
        )
        above.scatter(iterates[:1], costs[:1], s=36, facecolor="white", edgecolor=ORANGE, zorder=4)
        below.plot(x, _split_at_jumps(np.clip(slope, -9, 9)), color=BLUE, linewidth=1.2)
        below.axhline(0, color=FAINT, linewidth=0.7, zorder=0)
        above.set_title(landscape.name, fontsize=11, color=INK)
        below.set_xlabel(landscape.outcome, fontsize=8.5, color=INK)
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=7, color=FAINT)
        numbers[landscape.name] = {
            "start": landscape.start,
            "end": float(iterates[-1]),
            "value": float(costs[-1]),
            "outcome": landscape.outcome,
        }
    blocks[0].axes[0].set_ylabel("f and descent", fontsize=8.5, color=ORANGE)
    blocks[0].axes[1].set_ylabel("gradient", fontsize=8.5, color=BLUE)
    return figure, numbers


def _split_at_jumps(values: Any) -> np.ndarray:
    """Insert NaN where a curve jumps, so that no line is drawn there."""
    values = np.array(values, np.float64)
    values[1:][np.abs(np.diff(values)) > 0.5] = np.nan
    return values


def summarize(graph: Graph) -> dict[str, Any]:
    """Return a graph's value, its size, and the adjoints of its arguments and named nodes."""
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
    """Trace and draw the graphs in float64, write the results to `folder`, return the numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    sections: list[Section] = []
    numbers: dict[str, Any] = {}
    with jax.enable_x64(True):
        examples = make_examples()
        for name in ["product", "cross_entropy_expanded", "wrong"] if fast else examples:
            section, numbers[name] = write_graph(folder, name, examples[name])
            sections.append(section)
        figure, numbers["gallery"] = draw_landscapes(5 if fast else STEPS)
    figure.savefig(folder / "gallery.png", dpi=150)
    sections.append(
        Section(
            "Which are differentiable, which are hard to optimise?",
            "Lecture 000 asks this of several functions. The two properties are not the same.",
            figure,
            caption="Eight functions with the iterates of gradient descent, from the open circle, "
            "and below each its gradient.",
        )
    )
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    page = dp.plotting.write_page(
        folder / "index.html",
        "Computation graphs",
        sections,
        summary="Functions as graphs: the value of every node, its adjoint dJ/dnode, and the local "
        "derivative on every edge.",
    )
    print(page)
    return numbers


def write_graph(folder: Path, name: str, example: Example) -> tuple[Section, dict[str, Any]]:
    """Trace one example and write its files; return its section of the page and its numbers."""
    graph = trace(example.f, *example.args, **example.options)
    figure = dp.plotting.draw_graph(graph)
    figure.savefig(folder / f"{name}.png", dpi=150)
    (folder / f"{name}.html").write_text(dp.plotting.graph_html(graph), encoding="utf-8")
    (folder / f"{name}.dot").write_text(graph.to_dot(), encoding="utf-8")
    numbers = summarize(graph)
    print(
        f"{name:22s} {numbers['nodes']:4d} nodes {numbers['edges']:4d} edges, "
        f"J = {numbers['value']:.7g}"
    )
    text = f"{example.text}\n\nThe interactive graph is in {name}.html."
    table = _paths_table(graph) if name == "residual" else None
    return Section(example.title, text, figure, table), numbers


def _paths_table(graph: Graph) -> Table:
    """List every path from x to y with the product of its edges (lecture 004, chain rule)."""
    paths = graph.paths("x", "y")
    rows = [[" → ".join(path.nodes), _matrix(path.derivative)] for path in paths]
    total = ["sum of the paths: dy/dx", _matrix(sum(path.derivative for path in paths))]
    return Table(["path", "product of its edges"], [*rows, total])


def _matrix(matrix: Any) -> str:
    rows = (" ".join(f"{entry:g}" for entry in row) for row in np.round(matrix, 4))
    return f"[{'; '.join(rows)}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="three graphs and a few steps")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    main(options.folder, fast=options.fast)
