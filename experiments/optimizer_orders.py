"""Compare zeroth-, first- and second-order optimizers on one loss, by work and by time.

    python -m experiments.optimizer_orders [--fast]

    zeroth   values of J                      random search, evolution strategies, SPSA
    first    and gradients                    SGD on minibatches, momentum, Adam
    second   and Hessian-vector products      Newton-CG, Gauss-Newton, L-BFGS (from gradients)

All methods are `dp.training.fit` with another optimizer; those of order zero also estimate their
gradient. The loss is "2 or not 2" by one sigmoid on 64 pixels (lecture 004) with weight decay. It
is convex, so its minimum J* is known and J - J* can be plotted. Work is counted in evaluations of
J, from what each step computes; time is measured. Writes results/optimizer_orders/: the figure,
numbers.json and index.html.

For your own loss change `logits`, `loss` and `initial_params`; for another method add a line to
`make_methods`.

Source: lecture 000, "What's the knowledge we have about J?".
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
from experiments.trajectory_recorder import record

training = dp.training

DIGIT, WEIGHT_DECAY, BATCH = 2, 1e-3, 32
PAIRS = 16  # antithetic pairs per step of evolution strategies
PRODUCTS = 10  # conjugate gradient iterations per second-order step
MAX_EVALUATIONS = (20_000, 3_000, 1_000)  # for each order
TARGETS = (1e-2, 1e-6)  # values of J - J* whose evaluations and time are reported
SMALLEST = 1e-12  # J - J* below is rounding error
TIMED_RUNS = 2


def initial_params() -> Float[Array, "65"]:
    return jnp.zeros(65)


def logits(w: Float[Array, "65"], x: Float[Array, "n 64"]) -> Float[Array, "n"]:
    return x @ w[:-1] + w[-1]


def kl_divergence(z: Float[Array, "n"], d: Float[Array, "n"]) -> Float[Array, ""]:
    return dp.losses.sigmoid_kl(z, d).mean()


def loss(w: Float[Array, "65"], x: Float[Array, "n 64"], d: Float[Array, "n"]) -> Float[Array, ""]:
    """KL divergence of the predictions from the targets, and weight decay."""
    return kl_divergence(logits(w, x), d) + WEIGHT_DECAY / 2 * (w @ w)


class Work(NamedTuple):
    """Number of values, of gradients (with values) and of Hessian-vector products in one step.

    With `line_search` the step also takes a varying number of gradients along a line.
    """

    values: float = 0
    gradients: float = 0
    products: float = 0
    line_search: bool = False


class Method(NamedTuple):
    """Optimization method.

    Attributes:
        order: 0, 1 or 2.
        optimizer: an optax optimizer.
        work: of one step.
        loss: the loss for `fit`, with its gradient estimator if it has one.
        batch: examples per step; None for all.
    """

    order: int
    optimizer: optax.GradientTransformation
    work: Work
    loss: Callable[..., Array] = loss
    batch: int | None = None


def make_methods(x: Array, d: Array) -> dict[str, Method]:
    """Return the methods; learning rates and scales are the best of a few, 3 times apart."""
    search = training.random_search(jax.random.key(1), scale=0.03)
    cg: Any = {"iterations": PRODUCTS, "tolerance": 1e-14}
    newton = training.newton_cg(damping=0.0, **cg)
    # Gauss-Newton sees the curvature of the outputs only; that of the weight decay is the damping.
    gauss_newton = training.gauss_newton(
        lambda w, _: logits(w, x), lambda z, _: kl_divergence(z, d), damping=WEIGHT_DECAY, **cg
    )
    estimated = training.antithetic(loss, samples=PAIRS)
    one, two = Work(gradients=1), Work(gradients=1, products=PRODUCTS)
    part = Work(gradients=BATCH / len(x))
    return {
        "random search": Method(0, search, Work(values=2)),
        "evolution strategies": Method(0, optax.adam(0.1), Work(values=2 * PAIRS + 1), estimated),
        "SPSA": Method(0, optax.sgd(0.1), Work(values=3), training.spsa(loss)),
        f"SGD, batch size {BATCH}": Method(1, optax.sgd(0.1), part, batch=BATCH),
        "momentum": Method(1, optax.sgd(0.3, momentum=0.97), one),
        "Adam": Method(1, optax.adam(0.1), one),
        "Newton-CG": Method(2, newton, two),
        "Gauss-Newton": Method(2, gauss_newton, two),
        "L-BFGS": Method(2, optax.lbfgs(), Work(gradients=1, line_search=True)),
    }


class UnitCosts(NamedTuple):
    """Work of a gradient (with value) and of a Hessian-vector product, in evaluations of J."""

    gradient: float
    product: float


def count_unit_costs(w: Array, data: tuple[Array, Array]) -> UnitCosts:
    """Count the floating-point operations of the compiled programs, as XLA reports them."""

    def operations(f: Callable[..., Any], *args: Any) -> float:
        return (jax.jit(f).lower(*args, *data).compile().cost_analysis() or {})["flops"]

    def product(w: Array, v: Array, *data: Array) -> Array:
        return jax.jvp(lambda w: jax.grad(loss)(w, *data), (w,), (v,))[1]

    value = operations(loss, w)
    gradient = operations(jax.value_and_grad(loss), w)
    return UnitCosts(gradient / value, operations(product, w, w) / value)


class Progress(NamedTuple):
    """J after each step or epoch, with the evaluations of J and the seconds until then."""

    losses: np.ndarray
    evaluations: np.ndarray
    seconds: np.ndarray


def run_method(
    method: Method,
    data: tuple[Array, Array],
    max_evaluations: int,
    costs: UnitCosts,
    key: jax.Array,
) -> Progress:
    """Optimize until `max_evaluations` are used."""
    work, epoch = method.work, len(data[0]) // (method.batch or len(data[0]))
    # A line search evaluates at least one gradient.
    gradients = work.gradients + work.line_search
    per_step = work.values + costs.gradient * gradients + costs.product * work.products
    steps = int(max_evaluations / per_step) + 1
    if epoch > 1:
        # The loss of a minibatch is not J: evaluate J after each epoch, uncounted and untimed.
        optimizer = record(method.optimizer, steps, every=epoch)
        _, params, seconds = time_fit(method._replace(optimizer=optimizer), data, steps, key)
        done = epoch * np.arange(1, steps // epoch + 1) - 1
        losses = jax.lax.map(lambda w: loss(w, *data), params[: len(done)])
        return Progress(np.asarray(losses), per_step * done, seconds * done)
    optimizer = record(method.optimizer, steps, line_search_steps)
    losses, searches, seconds = time_fit(method._replace(optimizer=optimizer), data, steps, key)
    done, more = np.arange(1, steps), np.cumsum(np.asarray(searches) - work.line_search)[:-1]
    return Progress(losses[1:], per_step * done + costs.gradient * more, seconds * done)


def line_search_steps(params: Any, state: Any) -> Array:
    """Return the number of line search steps in an optimizer's state, 0 if it does not search."""
    return jnp.asarray(optax.tree.get(state, "num_linesearch_steps", 0))


def time_fit(
    method: Method, data: tuple[Array, Array], steps: int, key: jax.Array
) -> tuple[np.ndarray, Any, float]:
    """Return losses, records and seconds per step of the fastest run after one that compiles."""
    times = []
    for _ in range(1 + TIMED_RUNS):
        began = time.perf_counter()
        fit = training.fit(
            method.loss,
            initial_params(),
            data,
            optimizer=method.optimizer,
            batch_size=method.batch,
            steps=steps,
            key=key,
            progress=False,
        )
        times.append(time.perf_counter() - began)
    return fit.history["cost"], fit.state.optimizer.records, min(times[1:]) / steps


def find_minimum(data: tuple[Array, Array]) -> tuple[float, float]:
    """Return J* by Newton's method with the full Hessian, and the norm of the gradient there."""
    gradient, hessian = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
    w = initial_params()
    for _ in range(20):
        w = w - jnp.linalg.solve(hessian(w, *data), gradient(w, *data))
    return float(loss(w, *data)), float(jnp.linalg.norm(gradient(w, *data)))


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Run all methods in float64, write the results to `folder` and return the numbers."""
    limits = (600, 600, 400) if fast else MAX_EVALUATIONS
    with jax.enable_x64(True):
        digits = dp.data.digits(flatten=True)
        data = digits.x_train.astype(float), (digits.y_train == DIGIT).astype(float)
        methods = make_methods(*data)
        costs = count_unit_costs(initial_params(), data)
        minimum, gradient_norm = find_minimum(data)
        keys = jax.random.split(jax.random.key(seed), len(methods))
        runs = {
            name: run_method(method, data, limits[method.order], costs, key)
            for (name, method), key in zip(methods.items(), keys, strict=True)
        }
    numbers = {
        "J*": minimum,
        "gradient norm at J*": gradient_norm,
        "gradient, in evaluations": costs.gradient,
        "Hessian-vector product, in evaluations": costs.product,
        "methods": {
            name: {
                "order": methods[name].order,
                "J - J*": float(run.losses[-1] - minimum),
                **find_first_below(run, minimum),
            }
            for name, run in runs.items()
        },
    }
    write_results(folder, numbers, draw_excess_loss(methods, runs, minimum))
    return numbers


def find_first_below(run: Progress, minimum: float) -> dict[str, float | None]:
    """Return evaluations and seconds until J - J* reaches each target, None if it never does."""
    result: dict[str, float | None] = {}
    for target in TARGETS:
        below = np.flatnonzero(run.losses - minimum <= target)
        for name, values in (("evaluations", run.evaluations), ("seconds", run.seconds)):
            result[f"{name} to {target:g}"] = float(values[below[0]]) if len(below) else None
    return result


def draw_excess_loss(methods: dict[str, Method], runs: dict[str, Progress], minimum: float) -> Any:
    """Plot J - J* against evaluations and against time."""
    by_evaluations, by_time = {}, {}
    for name, run in runs.items():
        excess = run.losses - minimum
        above = np.flatnonzero(excess > SMALLEST)
        shown = above[np.unique(np.geomspace(1, len(above), 200).astype(int)) - 1]
        by_evaluations[name] = run.evaluations[shown], excess[shown]
        by_time[name] = 1e3 * run.seconds[shown], excess[shown]
    groups = {
        f"order {order}": [name for name, method in methods.items() if method.order == order]
        for order in range(3)
    }
    panels = [Panel(by_evaluations, "evaluations of J"), Panel(by_time, "time in ms")]
    return dp.plotting.draw_traces(panels, ylabel="J - J*", groups=groups)


def write_results(folder: Path, numbers: dict[str, Any], figure: Any) -> None:
    """Write page, figure and numbers, and print a summary."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "excess_loss.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    names = [f"{name} to {target:g}" for target in TARGETS for name in ("evaluations", "seconds")]
    rows = [
        [
            ("zeroth", "first", "second")[method["order"]],
            name,
            *("-" if method[key] is None else method[key] for key in names),
        ]
        for name, method in numbers["methods"].items()
    ]
    section = Section(
        "Values, gradients, curvature",
        "With values of J alone, a method tries one direction after another in 65 dimensions. A "
        "gradient gives the slope in all directions for about the price of two values. Curvature "
        "gives the length of the step; its products pay off near the minimum, where Newton's "
        "method doubles the number of correct digits in each step. L-BFGS computes no products: "
        "it estimates curvature from how the gradient changes.\n\n"
        "For this loss, a sigmoid under its KL divergence, the Gauss-Newton matrix equals the "
        "Hessian, so both methods have the same curve up to rounding.",
        figure,
        Table(["order", "method", *names], rows),
        caption="Blue: zeroth order; orange: first; green: second. J* is the minimum. One "
        "evaluation of J is over all examples. By floating-point operations, a gradient with its "
        f"value counts {numbers['gradient, in evaluations']:.2f}, a Hessian-vector product "
        f"{numbers['Hessian-vector product, in evaluations']:.2f}, and a Gauss-Newton product as "
        "much, though it is cheaper; the gradient of a minibatch counts its share of the examples, "
        "line searches as many gradients as they took. Newton-CG and Gauss-Newton take "
        f"{PRODUCTS} products per step. Time is that of the fastest of {TIMED_RUNS} runs after one "
        "that compiles, divided evenly among its steps.",
    )
    page = dp.plotting.write_page(
        folder / "index.html",
        "Zeroth-, first- and second-order optimizers",
        [section],
        summary="Nine methods on one loss, compared by evaluations and by time.",
    )
    for order, name, *values in rows:
        cells = (f"{v:>12.4g}" if isinstance(v, float) else f"{v:>12}" for v in values)
        print(f"{order:7} {name:22}" + "".join(cells))
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="fewer evaluations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/optimizer_orders"))
    options = parser.parse_args()
    main(options.folder, fast=options.fast, seed=options.seed)
