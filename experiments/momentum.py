"""Measure the convergence rate of momentum on quadratics and compare it with a formula.

    python -m experiments.momentum [--fast]

    θ ← θ - η dJ/dθ - α m,    m_t = θ_{t-1} - θ_t,    J = 1/2 Σ_i λ_i θ_i²

(lecture 000). For each curvature λ, a step multiplies (θ, m) by one 2 x 2 matrix:

    (θ, m) ← M (θ, m),    M = [[1 - ηλ, -α], [ηλ, α]]
    rate = largest |eigenvalue| of M,    √α where (1 - √α)² < ηλ < (1 + √α)²

Descent converges if and only if 0 < ηλ < 2 + 2α. The script measures the rate on a grid of (η, α),
for one curvature and for a ravine (two curvatures, of which the slower counts), and compares it
with this formula. It then shows that α = 0.990, the value of lecture 000, can help or hurt. Writes
results/momentum/: figures, numbers.json and index.html.

For your own ravine change `RAVINE`, its curvatures.

Source: lecture 000, "Momentum"; G. Goh, "Why Momentum Really Works", Distill, 2017, which calls the
learning rate α and the momentum β.
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import diffprog as dp
from diffprog.plotting import Panel, Section, Table

ONE_CURVATURE, RAVINE = (1.0,), (0.04, 1.0)
GRID, STEPS = (120, 80), 4000  # values of (η, α), and steps at each
LECTURE_ALPHA = 0.990
MILD, STEEP, LONG_RUN = 1 / 25, 1 / 10_000, 3000  # smaller curvature of two ravines; steps
BIN = 25  # steps for each point of the loss curves
PATH_RATE, PATH_ALPHAS, PATH_STEPS = 0.15, (0.0, 0.8, LECTURE_ALPHA), 150


def quadratic(curvatures: tuple[float, ...]) -> Any:
    """J = 1/2 Σ_i λ_i θ_i²."""
    return lambda θ, k: 0.5 * (jnp.asarray(curvatures) * θ**2).sum()


@functools.partial(jax.jit, static_argnames=("curvatures", "steps"))
@functools.partial(jnp.vectorize, excluded=("curvatures", "steps"))
def measured_rate(
    eta: Array, alpha: Array, *, curvatures: tuple[float, ...], steps: int
) -> Float[Array, ""]:
    """Return the factor by which (θ, m) shrinks per step, averaged over the later half of a run."""
    descent = dp.descent.descent(quadratic(curvatures), optax.sgd(eta, momentum=alpha))

    def step(state: dp.descent.State, k: Array) -> tuple[dp.descent.State, Array]:
        state, _ = descent.step(state, k)
        # A step is linear in (θ, m), so the state may be normalized: it cannot under- or overflow.
        length = optax.tree.norm(state)
        return jax.tree.map(lambda leaf: leaf / length, state), jnp.log(length)

    start = descent.init(jnp.ones(len(curvatures)))
    return jnp.exp(jax.lax.scan(step, start, jnp.arange(steps))[1][steps // 2 :].mean())


def closed_form_rate(eta: Any, alpha: Any, curvatures: tuple[float, ...]) -> np.ndarray:
    """Return the largest |eigenvalue| of the matrices M of all curvatures."""
    step, alpha = np.multiply.outer(np.asarray(eta), curvatures), np.asarray(alpha)[..., None]
    alpha = alpha + 0 * step
    matrices = np.stack([np.stack([1 - step, -alpha], -1), np.stack([step, alpha], -1)], -2)
    return np.abs(np.linalg.eigvals(matrices)).max((-2, -1))


def optimal_momentum(curvatures: tuple[float, ...]) -> tuple[float, float]:
    """Return (η, α) of the lowest rate, (√κ - 1)/(√κ + 1) with κ = λ_max / λ_min."""
    low, high = np.sqrt(min(curvatures)), np.sqrt(max(curvatures))
    return (2 / (low + high)) ** 2, ((high - low) / (high + low)) ** 2


def optimal_learning_rate(curvatures: tuple[float, ...]) -> float:
    """Return the η of the lowest rate without momentum, (κ - 1)/(κ + 1)."""
    return 2 / (min(curvatures) + max(curvatures))


def run_descent(
    curvatures: tuple[float, ...], eta: float, alpha: float, steps: int
) -> dict[str, Any]:
    """Descend from (1, 1); return trajectory, losses and rates."""
    loss = quadratic(curvatures)
    # The second output of the cost is recorded at every step.
    descent = dp.descent.descent(lambda θ, k: (loss(θ, k), θ), optax.sgd(eta, momentum=alpha))
    result = dp.descent.run(descent, jnp.ones(len(curvatures)), steps)
    numbers = {
        "η": eta,
        "α": alpha,
        "measured": float(measured_rate(eta, alpha, curvatures=curvatures, steps=20 * steps)),
        "closed form": float(closed_form_rate(eta, alpha, curvatures)),
    }
    return {"path": result.aux, "losses": result.costs, "numbers": numbers}


def compare_momentum(curvatures: tuple[float, ...], steps: int) -> dict[str, Any]:
    """Descend with no momentum, the optimal momentum and the lecture's, each with a suitable η."""
    eta, alpha = optimal_momentum(curvatures)
    settings = {
        "no momentum": (optimal_learning_rate(curvatures), 0.0),
        "optimal α": (eta, alpha),
        "α = 0.990": (eta, LECTURE_ALPHA),
    }
    return {name: run_descent(curvatures, *pair, steps) for name, pair in settings.items()}


def main(folder: Path, *, fast: bool = False) -> dict[str, Any]:
    """Run all parts in float64, write the results to `folder` and return the numbers."""
    columns, rows, steps = (24, 16, 200) if fast else (*GRID, STEPS)
    eta, alpha = np.linspace(0.02, 4.1, columns), np.linspace(0, 0.995, rows)
    grid = np.meshgrid(eta, alpha)

    def measure(eta: Any, alpha: Any, curvatures: tuple[float, ...] = ONE_CURVATURE) -> np.ndarray:
        return np.asarray(measured_rate(eta, alpha, curvatures=curvatures, steps=steps))

    with jax.enable_x64(True):
        rates = {
            name: (measure(*grid, curvatures), closed_form_rate(*grid, curvatures))
            for name, curvatures in {"one curvature": ONE_CURVATURE, "ravine": RAVINE}.items()
        }
        inside, outside = (measure(factor * (2 + 2 * alpha), alpha) for factor in (0.99, 1.01))
        negative = measure(-0.01 + 0 * alpha, alpha)
        paths = {
            f"α = {a:.3g}": run_descent((MILD, 1.0), PATH_RATE, a, PATH_STEPS)["path"]
            for a in PATH_ALPHAS
        }
        runs = {
            ravine: compare_momentum((ravine, 1.0), PATH_STEPS if fast else LONG_RUN)
            for ravine in (MILD, STEEP)
        }
    errors = {name: np.abs(measured - formula) for name, (measured, formula) in rates.items()}
    numbers = {
        "grid points": columns * rows,
        "error": {
            name: {"median": float(np.median(error)), "largest": float(error.max())}
            for name, error in errors.items()
        },
        "stability": {
            "largest rate at ηλ = 0.99 (2 + 2α)": float(inside.max()),
            "smallest rate at ηλ = 1.01 (2 + 2α)": float(outside.min()),
            "smallest rate at ηλ = -0.01": float(negative.min()),
        },
        "lowest rate in the ravine": {
            "on the grid": float(rates["ravine"][0].min()),
            "formula": float(np.sqrt(optimal_momentum(RAVINE)[1])),
        },
        "ravines": {
            f"κ = {1 / ravine:,.0f}": {name: run["numbers"] for name, run in settings.items()}
            for ravine, settings in runs.items()
        },
    }
    write_results(folder, numbers, draw_figures(eta, alpha, rates, runs, paths))
    return numbers


def draw_figures(
    eta: np.ndarray, alpha: np.ndarray, rates: Any, runs: Any, paths: Any
) -> dict[str, Any]:
    """Draw the rates on the grid, the loss curves and the trajectories."""
    optima = {
        "optimal": optimal_momentum(RAVINE),
        "optimal without momentum": (optimal_learning_rate(RAVINE), 0.0),
    }
    grids = {
        name: dp.plotting.draw_rates(
            eta,
            alpha,
            {"measured": measured, "closed form": formula},
            xlabel="ηλ" if name == "one curvature" else "ηλ of the steepest direction",
            ylabel="momentum α",
            border=(2 + 2 * alpha, alpha),
            marks=None if name == "one curvature" else optima,
        )
        for name, (measured, formula) in rates.items()
    }
    x = y = np.linspace(-1.25, 1.25, 90)
    heights = 0.5 * (MILD * x**2 + y[:, None] ** 2)
    panels = [
        Panel(
            {name: upper_envelope(run["losses"]) for name, run in settings.items()},
            "step",
            f"ravine, κ = {1 / ravine:,.0f}",
            {"rate²ᵏ of α = 0.990": predicted_losses(settings["α = 0.990"])},
        )
        for ravine, settings in runs.items()
    ]
    return {
        "one_curvature": grids["one curvature"],
        "ravine": grids["ravine"],
        "paths": dp.plotting.draw_paths(
            x, y, heights, {name: {name: path} for name, path in paths.items()}
        ),
        "losses": dp.plotting.draw_traces(panels, ylabel="J", scales=("linear", "log")),
    }


def upper_envelope(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest loss of every `BIN` steps, so that oscillations give one line."""
    highest = losses[: len(losses) // BIN * BIN].reshape(-1, BIN).max(1)
    highest = highest[highest > 1e-24]  # below, rounding errors dominate
    return np.arange(len(highest)) * float(BIN), highest


def predicted_losses(run: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return losses that fall by the square of the closed-form rate in every step."""
    steps = np.arange(len(run["losses"]), dtype=float)
    return steps, run["losses"][0] * run["numbers"]["closed form"] ** (2 * steps)


def write_results(folder: Path, numbers: dict[str, Any], figures: dict[str, Any]) -> None:
    """Write page, figures and numbers, and print a summary."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    errors = [[name, *error.values()] for name, error in numbers["error"].items()]
    stability = list(numbers["stability"].items())
    runs = [
        [ravine, name, *run.values()]
        for ravine, settings in numbers["ravines"].items()
        for name, run in settings.items()
    ]
    sections = [
        Section(
            "Convergence rate for one curvature",
            f"Each of the {numbers['grid points']:,} points of the left panel is a run with its "
            "own η and α; the right panel is the formula. Where (1 - √α)² < ηλ < (1 + √α)² the "
            "iterates oscillate, and the rate is √α for any η. For smaller ηλ they approach the "
            "minimum monotonically, for larger ηλ they jump from side to side. Momentum allows "
            "larger learning rates, up to ηλ = 2 + 2α.",
            figures["one_curvature"],
            Table(["|measured - closed form|", "median", "largest"], errors),
            caption="Factor by which the error shrinks per step. The formula is approached slowly "
            "where two eigenvalues meet: there the differences are largest.",
        ),
        Section(
            "Stability boundary",
            "Just inside 0 < ηλ < 2 + 2α all runs converge, just outside all diverge, for all α.",
            table=Table(["rate", "value"], stability),
        ),
        Section(
            f"Convergence rate in a ravine, λ = {RAVINE[0]:g} and {RAVINE[1]:g}",
            "The slower of the two directions counts. Without momentum the lowest rate is "
            "(κ - 1)/(κ + 1). With optimal momentum it is (√κ - 1)/(√κ + 1), as if the condition "
            "number were √κ instead of κ.",
            figures["ravine"],
            caption="As above, for the larger of the two rates.",
        ),
        Section(
            "α = 0.990 can help or hurt",
            "With α = 0.990, the value of lecture 000, the rate is √0.990 = 0.99499 in every "
            "direction that oscillates, for any condition number. Descent without momentum is "
            "faster for κ < 398 and slower for larger κ.",
            figures["losses"],
            Table(["ravine", "descent", "η", "α", "rate, measured", "rate, closed form"], runs),
            caption=f"Each with the η that suits it; the highest loss of every {BIN} steps. The "
            "dashed line falls by the square of the closed-form rate of α = 0.990 in every step.",
        ),
        Section(
            f"Trajectories in a ravine of κ = {1 / MILD:.0f}",
            "The learning rate is the same for all. Without momentum, descent falls to the bottom "
            "of the ravine and moves slowly along it. With α = 0.8 it soon reaches the minimum. "
            "With α = 0.990 it is hardly damped and oscillates along the ravine and across it.",
            figures["paths"],
            caption=f"The first {PATH_STEPS} steps from (1, 1) with η = {PATH_RATE:g}.",
        ),
    ]
    page = dp.plotting.write_page(
        folder / "index.html",
        "The convergence rate of momentum",
        sections,
        summary="θ ← θ - η dJ/dθ - α m on J = 1/2 Σ λ θ²: rate and stability, measured and in "
        "closed form.",
    )
    for name, median, largest in errors:
        print(f"{name:14} |measured - closed form|: median {median:.1e}, largest {largest:.1e}")
    for name, rate in stability:
        print(f"{name:40} {rate:.5f}")
    for ravine, name, eta, alpha, measured, formula in runs:
        print(
            f"{ravine:12} {name:12} η = {eta:<6.4g} α = {alpha:<6.4g} "
            f"rate {measured:.6f}, closed form {formula:.6f}"
        )
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="a coarser grid and fewer steps")
    parser.add_argument("--folder", type=Path, default=Path("results/momentum"))
    options = parser.parse_args()
    main(options.folder, fast=options.fast)
