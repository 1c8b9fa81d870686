"""Why momentum really works: the rate at which descent with momentum goes down a quadratic, measured and in closed form.

    python -m experiments.momentum [--fast]

    θ ← θ - η dJ/dθ - α m,      m the step before, downwards: m_t = θ_{t-1} - θ_t,      J = 1/2 Σ_i λ_i θ_i²

(lecture 000). In each direction (θ, m) is multiplied by one 2 x 2 matrix a step,

    (θ, m) ← M (θ, m),    M = [[1 - ηλ, -α], [ηλ, α]],    rate = largest |eigenvalue| of M = √α where (1 - √α)² < ηλ < (1 + √α)²

and it converges if and only if 0 < ηλ < 2 + 2α. Here the engine runs on a plane of (η, α), all at once, and the rate it shows is held
against that formula: for one λ, and for a ravine, whose slowest direction counts. Then the α = 0.990 that lecture 000 shows: it can help
or hurt. Writes results/momentum/: the figures, numbers.json and index.html.

For your own ravine change `RAVINE`, the curvatures λ. (G. Goh's article calls the learning rate α and the momentum β.)

Source: lecture 000, "Momentum"; G. Goh, "Why Momentum Really Works", Distill, 2017.
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

ONE, RAVINE = (1.0,), (0.04, 1.0)
SHOWN_ALPHA, MILD, STEEP = 0.990, 1 / 25, 1 / 10_000
GRID, STEPS, LONG, STRETCH = (120, 80), 4000, 3000, 25
PATH_RATE, PATH_ALPHAS, PATH_STEPS = 0.15, (0.0, 0.8, SHOWN_ALPHA), 150


def bowl(curvatures: Any) -> Any:
    """J = 1/2 Σ_i λ_i θ_i², a ravine where the λ differ much."""
    return lambda θ, k: 0.5 * (jnp.asarray(curvatures) * θ**2).sum()


@functools.partial(jax.jit, static_argnames=("curvatures", "steps"))
@functools.partial(jnp.vectorize, excluded=("curvatures", "steps"))
def measured_rate(
    eta: Array, alpha: Array, *, curvatures: tuple[float, ...], steps: int
) -> Float[Array, ""]:
    """The factor a step by which (θ, m) shrinks, over the later half of a run.

    A step on a quadratic is linear in (θ, m), so that its state may be brought back to length 1 before each: no run is too long for the
    numbers that a computer has.
    """
    descent = dp.descent.descent(bowl(curvatures), optax.sgd(eta, momentum=alpha))

    def step(state: dp.descent.State, k: Array) -> tuple[dp.descent.State, Array]:
        state, _ = descent.step(state, k)
        length = optax.tree.norm(state)
        return jax.tree.map(lambda leaf: leaf / length, state), jnp.log(length)

    start = descent.init(jnp.ones(len(curvatures)))
    return jnp.exp(jax.lax.scan(step, start, jnp.arange(steps))[1][steps // 2 :].mean())


def closed_form_rate(eta: Any, alpha: Any, curvatures: tuple[float, ...]) -> np.ndarray:
    """The largest |eigenvalue| of the 2 x 2 matrices of all directions."""
    step, alpha = np.multiply.outer(np.asarray(eta), curvatures), np.asarray(alpha)[..., None]
    matrices = np.stack(
        [np.stack([1 - step, -alpha + 0 * step], -1), np.stack([step, alpha + 0 * step], -1)], -2
    )
    return np.abs(np.linalg.eigvals(matrices)).max((-2, -1))


def best(curvatures: tuple[float, ...]) -> tuple[float, float]:
    """The (η, α) of the least rate, (√κ - 1)/(√κ + 1) with κ = λ_max / λ_min."""
    low, high = np.sqrt(min(curvatures)), np.sqrt(max(curvatures))
    return (2 / (low + high)) ** 2, ((high - low) / (high + low)) ** 2


def best_without(curvatures: tuple[float, ...]) -> float:
    """The η of the least rate without momentum, (κ - 1)/(κ + 1)."""
    return 2 / (min(curvatures) + max(curvatures))


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Run all of it, in float64, and write it to `folder`; returns the numbers. Nothing here is random."""
    columns, rows, steps = (24, 16, 200) if fast else (*GRID, STEPS)
    eta, alpha = np.linspace(0.02, 4.1, columns), np.linspace(0, 0.995, rows)
    plane = np.meshgrid(eta, alpha)
    with jax.enable_x64(True):
        rates = {
            name: (
                np.asarray(measured_rate(*plane, curvatures=λ, steps=steps)),
                closed_form_rate(*plane, λ),
            )
            for name, λ in {"one curvature": ONE, "ravine": RAVINE}.items()
        }
        edges = {
            name: stability(alpha, factor, steps)
            for name, factor in {"inside": 0.99, "outside": 1.01}.items()
        }
        below = np.asarray(measured_rate(-0.01 + 0 * alpha, alpha, curvatures=ONE, steps=steps))
        paths = {
            f"α = {a:.3g}": descended((MILD, 1.0), PATH_RATE, a, PATH_STEPS)["path"]
            for a in PATH_ALPHAS
        }
        runs = {
            ravine: descents((ravine, 1.0), PATH_STEPS if fast else LONG)
            for ravine in (MILD, STEEP)
        }
    numbers = {
        "pairs": columns * rows,
        "largest difference to the closed form": {
            name: float(np.abs(m - c).max()) for name, (m, c) in rates.items()
        },
        "typical difference to the closed form": {
            name: float(np.median(np.abs(m - c))) for name, (m, c) in rates.items()
        },
        "largest rate at 0.99 of the border": float(edges["inside"].max()),
        "smallest rate at 1.01 of the border": float(edges["outside"].min()),
        "smallest rate with η below 0": float(below.min()),
        "least rate on the ravine": {
            "on the plane": float(rates["ravine"][0].min()),
            "formula": float(np.sqrt(best(RAVINE)[1])),
        },
        "ravines": {
            f"κ = {1 / ravine:,.0f}": {name: run["numbers"] for name, run in of.items()}
            for ravine, of in runs.items()
        },
    }
    write(folder, numbers, figures(eta, alpha, rates, runs, paths))
    return numbers


def stability(alpha: np.ndarray, factor: float, steps: int) -> np.ndarray:
    """Measured rates at ηλ = factor (2 + 2α)."""
    return np.asarray(measured_rate(factor * (2 + 2 * alpha), alpha, curvatures=ONE, steps=steps))


def descents(curvatures: tuple[float, ...], steps: int) -> dict[str, Any]:
    """Descent in a ravine with no momentum, with the best, and with what lecture 000 shows; each with the η that suits it."""
    eta, alpha = best(curvatures)
    settings = {
        "no momentum": (best_without(curvatures), 0.0),
        "the best α": (eta, alpha),
        "α = 0.990": (eta, SHOWN_ALPHA),
    }
    return {name: descended(curvatures, *pair, steps) for name, pair in settings.items()}


def descended(
    curvatures: tuple[float, ...], eta: float, alpha: float, steps: int
) -> dict[str, Any]:
    """A plain run from (1, 1): where it goes, what it costs, and its rate."""
    cost = bowl(curvatures)
    descent = dp.descent.descent(lambda θ, k: (cost(θ, k), θ), optax.sgd(eta, momentum=alpha))
    result = dp.descent.run(descent, jnp.ones(len(curvatures)), steps)
    found = float(measured_rate(eta, alpha, curvatures=curvatures, steps=20 * steps))
    numbers = {
        "η": eta,
        "α": alpha,
        "measured": found,
        "closed form": float(closed_form_rate(eta, alpha, curvatures)),
    }
    return {"path": result.aux, "costs": result.costs, "numbers": numbers}


def figures(
    eta: np.ndarray, alpha: np.ndarray, rates: Any, runs: Any, paths: Any
) -> dict[str, Any]:
    border = (2 + 2 * alpha, alpha)
    marks = {"best": best(RAVINE), "best without momentum": (best_without(RAVINE), 0.0)}
    planes = {
        name: dp.plotting.draw_rates(
            eta,
            alpha,
            {"measured": measured, "closed form": formula},
            xlabel="ηλ" if name == "one curvature" else "ηλ of the steepest direction",
            ylabel="momentum α",
            border=border,
            marks=None if name == "one curvature" else marks,
        )
        for name, (measured, formula) in rates.items()
    }
    x, y = np.linspace(-1.25, 1.25, 90), np.linspace(-1.25, 1.25, 90)
    heights = 0.5 * (MILD * x**2 + y[:, None] ** 2)
    panels = [
        Panel(
            {name: _falling(run["costs"]) for name, run in of.items()},
            "step",
            f"a ravine of κ = {1 / ravine:,.0f}",
            {"rate²ᵏ": _predicted(of["α = 0.990"])},
        )
        for ravine, of in runs.items()
    ]
    return {
        "one_curvature": planes["one curvature"],
        "ravine": planes["ravine"],
        "paths": dp.plotting.draw_paths(
            x, y, heights, {name: {name: path} for name, path in paths.items()}
        ),
        "costs": dp.plotting.draw_traces(panels, ylabel="J", scales=("linear", "log")),
    }


def _falling(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest cost of each stretch, so that an oscillation is one line, as far as float64 tells it from 0."""
    highest = costs[: len(costs) // STRETCH * STRETCH].reshape(-1, STRETCH).max(1)
    shown = highest[highest > 1e-24]
    return np.arange(len(shown)) * float(STRETCH), shown


def _predicted(run: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    steps = np.arange(len(run["costs"]), dtype=float)
    return steps, run["costs"][0] * run["numbers"]["closed form"] ** (2 * steps)


def write(folder: Path, numbers: dict[str, Any], drawn: dict[str, Any]) -> None:
    """The page, the figures as files, and the numbers as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    apart, usual = (
        numbers["largest difference to the closed form"],
        numbers["typical difference to the closed form"],
    )
    agree = [[name, usual[name], apart[name]] for name in apart]
    edge = [
        ["largest rate at ηλ = 0.99 (2 + 2α)", numbers["largest rate at 0.99 of the border"]],
        ["smallest rate at ηλ = 1.01 (2 + 2α)", numbers["smallest rate at 1.01 of the border"]],
        ["smallest rate at ηλ = -0.01", numbers["smallest rate with η below 0"]],
    ]
    rows = [
        [κ, name, *found.values()]
        for κ, of in numbers["ravines"].items()
        for name, found in of.items()
    ]
    sections = [
        Section(
            "One direction",
            f"Each point of the left figure is a run of the engine with its own η and α, {numbers['pairs']:,} in all; the right one is the "
            "formula. Where (1 - √α)² < ηλ < (1 + √α)² the ball rolls to and fro, and the rate is √α whatever η. Left of that θ creeps, "
            "right of it θ jumps from side to side. More momentum allows a larger learning rate: up to ηλ = 2 + 2α, and not beyond.",
            drawn["one_curvature"],
            Table(["measured - closed form", "median", "largest"], agree),
            caption="The factor by which the error shrinks in a step. Differences are largest where two eigenvalues meet: it shows late.",
        ),
        Section(
            "The border of stability",
            "On both sides of 0 < ηλ < 2 + 2α, for all α.",
            table=Table(["where", "rate"], edge),
        ),
        Section(
            f"A ravine, λ = {RAVINE[0]:g} and {RAVINE[1]:g}",
            "The slower direction counts, whichever it is. Without momentum the least rate is (κ - 1)/(κ + 1), with the best momentum it "
            "is (√κ - 1)/(√κ + 1), as if the ravine were √κ times as long as wide instead of κ.",
            drawn["ravine"],
            caption="As above, for the larger of the two rates.",
        ),
        Section(
            "α = 0.990, as lecture 000 shows it",
            "“Can help or hurt”: the rate with α = 0.990 is √0.990 = 0.99499 in every direction that oscillates, however long the ravine. "
            "Descent without momentum beats it on ravines of κ below 398, and it beats descent without momentum on longer ones.",
            drawn["costs"],
            Table(["ravine", "descent", "η", "α", "rate, measured", "rate, closed form"], rows),
            caption=f"Each with the η that suits it; the highest cost of every {STRETCH} steps. The dashed line falls by the "
            "square of the closed-form rate of α = 0.990 in every step.",
        ),
        Section(
            f"Paths in a ravine of κ = {1 / MILD:.0f}",
            "The same η for all. Without momentum descent falls to the bottom of the ravine and creeps along it. With α = 0.8 it rolls "
            "along, and is there. With α = 0.990 the ball hardly loses speed and rolls to and fro, along the ravine and across it.",
            drawn["paths"],
            caption=f"The first {PATH_STEPS} steps from (1, 1) with η = {PATH_RATE:g}.",
        ),
    ]
    summary = (
        "θ ← θ - η dJ/dθ - α m on J = 1/2 Σ λ θ²: rate and stability, measured and in closed form."
    )
    page = dp.plotting.write_page(
        folder / "index.html", "Why momentum works", sections, summary=summary
    )
    for name, median, largest in agree:
        print(f"{name:14} measured rate - closed form: median {median:.1e}, largest {largest:.1e}")
    for where, rate in edge:
        print(f"{where:40} {rate:.5f}")
    for ravine, name, eta, alpha, found, formula in rows:
        print(
            f"{ravine:12} {name:12} η = {eta:<6.4g} α = {alpha:<6.4g} rate {found:.6f}, closed form {formula:.6f}"
        )
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fast", action="store_true", help="fewer points of the plane, fewer steps"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/momentum"))
    options = parser.parse_args()
    main(options.folder, fast=options.fast, seed=options.seed)
