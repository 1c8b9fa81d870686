"""What do we know about J? Its value, its gradient, its curvature: lecture 000's three orders of descent on one and the same cost.

    python -m experiments.optimizer_orders [--fast]

    zeroth    only values of J             random search, evolution strategies (antithetic pairs), SPSA
    first     and its gradient             SGD on batches, momentum, Adam
    second    and Hessian-vector products  Newton-CG, Gauss-Newton, L-BFGS (curvature guessed from gradients)

All are `dp.training.fit` with another optimizer; only the zeroth order asks for another gradient, the one that it estimates. The cost is
"2 or not 2" by one sigmoid on 64 pixels (lecture 004), with weight decay: convex, so that its least value J* is known and J - J* can be
drawn. Work is counted in evaluations of J, by what each step asks for, and time is measured. Writes results/orders/: the figure,
numbers.json and index.html.

For your own cost change `logits`, `loss` and `start`; for another method add a line to `methods`.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import diffprog as dp
from diffprog.plotting import Panel, Section, Table
from experiments.trajectory_recorder import recorded

training = dp.training

DIGIT, DECAY, BATCH = 2, 1e-3, 32
PAIRS, PRODUCTS = 16, 10
EVALUATIONS = (20_000, 3_000, 1_000)  # at most, of each order
NEAR, NEARER, LEAST = 1e-2, 1e-6, 1e-12
TIMED = 2


def start() -> Float[Array, "65"]:
    return jnp.zeros(65)


def logits(w: Float[Array, "65"], x: Float[Array, "n 64"]) -> Float[Array, "n"]:
    return x @ w[:-1] + w[-1]


def loss(w: Float[Array, "65"], x: Float[Array, "n 64"], d: Float[Array, "n"]) -> Float[Array, ""]:
    """KL divergence of the sigmoid from what is right, and weight decay."""
    return divergence(logits(w, x), d) + DECAY / 2 * (w @ w)


def divergence(z: Float[Array, "n"], d: Float[Array, "n"]) -> Float[Array, ""]:
    return dp.losses.sigmoid_kl(z, d).mean()


class Asked(NamedTuple):
    """What one step asks of J: how many values, gradients (each with its value), products with the Hessian, and steps of a line search."""

    values: float = 0
    gradients: float = 0
    products: float = 0
    searches: bool = False


class Method(NamedTuple):
    """A way to descend.

    Attributes:
        order: 0, 1 or 2.
        optimizer: of optax.
        asked: in one step.
        loss: what `fit` differentiates.
        batch: examples a step; None for all.
    """

    order: int
    optimizer: optax.GradientTransformation
    asked: Asked
    loss: Callable[..., Array] = loss
    batch: int | None = None


def methods(x: Array, d: Array) -> dict[str, Method]:
    """Learning rates and scales are the best of a few tried, a factor of about 3 apart."""
    pairs = Asked(values=2 * PAIRS + 1)
    exactly: Any = {"iterations": PRODUCTS, "tolerance": 1e-14}
    curved = Asked(gradients=1, products=PRODUCTS)
    # Weight decay is part of J: its curvature, which Gauss-Newton's outputs do not see, is the damping.
    gauss_newton = training.gauss_newton(
        lambda w, _: logits(w, x), lambda z, _: divergence(z, d), damping=DECAY, **exactly
    )
    return {
        "random search": Method(
            0, training.random_search(jax.random.key(1), scale=0.03), Asked(values=2)
        ),
        "evolution strategies": Method(
            0, optax.adam(0.1), pairs, training.antithetic(loss, samples=PAIRS)
        ),
        "SPSA": Method(0, optax.sgd(0.1), Asked(values=3), training.spsa(loss)),
        f"SGD, batches of {BATCH}": Method(
            1, optax.sgd(0.1), Asked(gradients=BATCH / len(x)), batch=BATCH
        ),
        "momentum": Method(1, optax.sgd(0.3, momentum=0.97), Asked(gradients=1)),
        "Adam": Method(1, optax.adam(0.1), Asked(gradients=1)),
        "Newton-CG": Method(2, training.newton_cg(damping=0.0, **exactly), curved),
        "Gauss-Newton": Method(2, gauss_newton, curved),
        "L-BFGS": Method(2, optax.lbfgs(), Asked(gradients=1, searches=True)),
    }


class Price(NamedTuple):
    """A gradient with its value, and a Hessian-vector product, in evaluations of J: floating-point operations, as XLA counts them."""

    gradient: float
    product: float


def price(w: Array, data: tuple[Array, Array]) -> Price:
    """Count them in the compiled programs."""

    def operations(f: Callable[..., Any], *args: Any) -> float:
        return (jax.jit(f).lower(*args, *data).compile().cost_analysis() or {})["flops"]

    value = operations(loss, w)
    product = operations(
        lambda w, v, *data: jax.jvp(lambda w: jax.grad(loss)(w, *data), (w,), (v,))[1], w, w
    )
    return Price(operations(jax.value_and_grad(loss), w) / value, product / value)


class Trace(NamedTuple):
    """J after each step (or pass), and the evaluations of J and the seconds it took to get there."""

    costs: np.ndarray
    evaluations: np.ndarray
    seconds: np.ndarray

    def reaches(self, excess: float, least: float) -> tuple[float, float] | tuple[None, None]:
        """Evaluations and seconds until J - J* is so small for the first time."""
        there = np.flatnonzero(self.costs - least <= excess)
        return (
            (float(self.evaluations[there[0]]), float(self.seconds[there[0]]))
            if len(there)
            else (None, None)
        )


def traced(
    method: Method, data: tuple[Array, Array], limit: int, prices: Price, key: jax.Array
) -> Trace:
    """Descend until the evaluations are used up."""
    asked, a_pass = method.asked, len(data[0]) // (method.batch or len(data[0]))
    each = (
        asked.values
        + prices.gradient * (asked.gradients + asked.searches)
        + prices.product * asked.products
    )
    steps = int(limit / each) + 1
    optimizer = recorded(
        method.optimizer,
        steps,
        _searches if a_pass == 1 else lambda params, state: params,
        every=a_pass,
    )
    costs, seen, seconds = timed(method._replace(optimizer=optimizer), data, steps, key)
    if a_pass > 1:
        # The cost of a batch is not J, which is measured once a pass, and neither counted nor timed.
        done = a_pass * np.arange(1, steps // a_pass + 1) - 1
        costs = jax.lax.map(lambda w: loss(w, *data), seen[: len(done)])
        return Trace(np.asarray(costs), each * done, seconds * done)
    # A line search takes a gradient at each place that it tries, one at least.
    done, more = (
        np.arange(1, steps),
        np.cumsum(np.asarray(seen) - asked.searches)[:-1] if asked.searches else 0,
    )
    return Trace(costs[1:], each * done + prices.gradient * more, seconds * done)


def timed(
    method: Method, data: tuple[Array, Array], steps: int, key: jax.Array
) -> tuple[np.ndarray, Any, float]:
    """The costs, what was recorded, and the seconds of a step: those of the fastest of a few runs after a first one, which compiles."""
    settings: Any = {
        "optimizer": method.optimizer,
        "batch_size": method.batch,
        "steps": steps,
        "key": key,
        "progress": False,
    }
    times = []
    for _ in range(1 + TIMED):
        began = time.perf_counter()
        fit = training.fit(method.loss, start(), data, **settings)
        times.append(time.perf_counter() - began)
    return fit.history["cost"], fit.state.optimizer.seen, min(times[1:]) / steps


def _searches(params: Any, state: Any) -> Array:
    return jnp.asarray(optax.tree.get(state, "num_linesearch_steps", 0))


def least(data: tuple[Array, Array]) -> tuple[float, float]:
    """J*, by Newton's method with the whole Hessian, and the length of the gradient there."""
    gradient, hessian = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
    w = start()
    for _ in range(20):
        w = w - jnp.linalg.solve(hessian(w, *data), gradient(w, *data))
    return float(loss(w, *data)), float(jnp.linalg.norm(gradient(w, *data)))


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Descend in all ways, in float64, and write it to `folder`; returns the numbers."""
    limits = (600, 600, 400) if fast else EVALUATIONS
    with jax.enable_x64(True):
        digits = dp.data.digits(flatten=True)
        data = digits.x_train.astype(float), (digits.y_train == DIGIT).astype(float)
        tried, prices, (lowest, slope) = methods(*data), price(start(), data), least(data)
        keys = jax.random.split(jax.random.key(seed), len(tried))
        traces = {
            name: traced(method, data, limits[method.order], prices, key)
            for (name, method), key in zip(tried.items(), keys, strict=True)
        }
    numbers = {
        "J*": lowest,
        "length of the gradient at J*": slope,
        "a gradient in evaluations": prices.gradient,
        "a Hessian-vector product in evaluations": prices.product,
        "methods": {
            name: {
                "order": tried[name].order,
                "J - J*": float(trace.costs[-1] - lowest),
                **soon(trace, lowest),
            }
            for name, trace in traces.items()
        },
    }
    write(folder, numbers, draw(tried, traces, lowest))
    return numbers


def soon(trace: Trace, lowest: float) -> dict[str, float | None]:
    """What it took to come near the least value, None where it did not."""
    kinds = ("evaluations", "seconds")
    return {
        f"{kind} to {near:g}": what
        for near in (NEAR, NEARER)
        for kind, what in zip(kinds, trace.reaches(near, lowest), strict=True)
    }


def draw(tried: dict[str, Method], traces: dict[str, Trace], lowest: float) -> Any:
    """J - J* against evaluations, and against time."""

    def against(axis: str, scale: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        shown = {}
        for name, trace in traces.items():
            above = trace.costs - lowest > LEAST
            some = np.unique(np.geomspace(1, above.sum(), 200).astype(int)) - 1
            shown[name] = (
                scale * getattr(trace, axis)[above][some],
                (trace.costs - lowest)[above][some],
            )
        return shown

    groups = {
        f"order {order}": [name for name, method in tried.items() if method.order == order]
        for order in range(3)
    }
    panels = [
        Panel(against("evaluations", 1.0), "evaluations of J"),
        Panel(against("seconds", 1e3), "milliseconds"),
    ]
    return dp.plotting.draw_traces(panels, ylabel="J - J*", groups=groups)


def write(folder: Path, numbers: dict[str, Any], figure: Any) -> None:
    """The page, the figure as a file, and the numbers as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "orders.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    kinds = ("zeroth", "first", "second")
    rows = [
        [
            kinds[found["order"]],
            name,
            *("-" if value is None else value for key, value in found.items() if " to " in key),
        ]
        for name, found in numbers["methods"].items()
    ]
    gradient, product = (
        numbers["a gradient in evaluations"],
        numbers["a Hessian-vector product in evaluations"],
    )
    columns = [
        "order",
        "method",
        *(
            f"{what} to {excess:g}"
            for excess in (NEAR, NEARER)
            for what in ("evaluations", "seconds")
        ),
    ]
    sections = [
        Section(
            "Value, gradient, curvature",
            "Who knows only values of J gropes along 65 parameters one direction at a time. A gradient says all of them at once, for the "
            "price of two values. Curvature says how far, and is worth its products near the least value, where Newton's steps double the "
            "number of right digits. L-BFGS has no products and guesses curvature from how the gradient changes.\n\n"
            "For this cost, a sigmoid under its own divergence, the Gauss-Newton matrix is the Hessian, so that the two have one "
            "curve but for rounding.",
            figure,
            Table(columns, rows),
            caption="Blue: zeroth order; orange: first; green: second. J* is the least value. Evaluations of J are those over all "
            f"examples, by floating-point operations: a gradient with its value counts {gradient:.2f}, a Hessian-vector product "
            f"{product:.2f}, a Gauss-Newton product as much, though it is cheaper, a batch's gradient its share, line searches as they "
            f"were made. Each step of Newton-CG and Gauss-Newton asks for {PRODUCTS} products. Time is that of the fastest of {TIMED} runs "
            "after a first one, which compiles, spread evenly over its steps.",
        )
    ]
    page = dp.plotting.write_page(
        folder / "index.html",
        "What do we know about J?",
        sections,
        summary="Three orders of descent on one cost.",
    )
    for order, name, *reached in rows:
        print(
            f"{order:7} {name:22}"
            + "".join(
                f"{value:>12.4g}" if isinstance(value, float) else f"{value:>12}"
                for value in reached
            )
        )
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="fewer evaluations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/orders"))
    options = parser.parse_args()
    main(options.folder, fast=options.fast, seed=options.seed)
