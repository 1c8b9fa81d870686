"""Lecture 000's pictures of gradient descent as programs: where it goes, how its gradient is noisy, and what a batch size buys.

    python -m experiments.gradient_descent [--fast]

    θ ← θ - η dJ/dθ,       J = 1/N Σ_i L_i(θ),       dJ/dθ ≈ 1/B Σ_{i in batch} dL_i/dθ

On a surface: descents from several starts and with several learning rates. On a line fitted to points, two parameters: the gradient of one
example, of a batch and of all at the same place; how the noise falls with the batch size, on a network for digits too; the path of
stochastic descent beside that of full descent; the cost against passes over the data. Writes results/gradient_descent/: the figures,
numbers.json and index.html.

For your own surface change `surface`. For the noise of your own model's gradient call `noise` with its loss, parameters and data.
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
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

import diffprog as dp
from diffprog.plotting import Panel, Section, Table
from experiments.trajectory_recorder import recorded

STARTS = ((0.0, 0.0), (-0.5, 0.5), (-1.0, -4.5), (4.8, -4.0), (0.3, -1.2), (-4.5, 1.0))
STARTS_RATE, SURFACE_STEPS = 0.008, 39
RATES, RATES_START = (0.0008, 0.005, 0.016, 0.06), (-0.8, -0.6)
POINTS, SLOPE_AND_OFFSET, SCATTER = 256, (1.5, -0.5), 1.0
START, RATE, PASSES, PATH_STEPS, BATCH = (-1.0, 1.5), 0.1, 200, 100, 16
BATCHES, DRAWS = (1, 4, 16, 64, 256), 1000


def surface(θ: Float[Array, "2"]) -> Float[Array, ""]:
    """Himmelblau's function: four minima, all 0, with saddles between them."""
    return (θ[0] ** 2 + θ[1] - 11) ** 2 + (θ[0] + θ[1] ** 2 - 7) ** 2


def squares(
    θ: Float[Array, "2"], x: Float[Array, "batch"], y: Float[Array, "batch"]
) -> Float[Array, "batch"]:
    """L_i = 1/2 (θ₁ x_i + θ₂ - y_i)²: a line through points."""
    return 0.5 * (θ[0] * x + θ[1] - y) ** 2


def points(key: jax.Array) -> tuple[Array, Array]:
    """Points around a line; x lies on one side, so that slope and offset depend on each other."""
    x_key, y_key = jax.random.split(key)
    x = jax.random.uniform(x_key, (POINTS,), minval=-1, maxval=2)
    slope, offset = SLOPE_AND_OFFSET
    return x, slope * x + offset + SCATTER * jax.random.normal(y_key, (POINTS,))


def walked(
    start: tuple[float, float], rate: float, steps: int
) -> tuple[np.ndarray, dp.descent.Result]:
    """The points of a descent on the surface: what the cost returns beside its value is kept for each step."""
    descent = dp.descent.descent(lambda θ, k: (surface(θ), θ), optax.sgd(rate))
    result = dp.descent.run(descent, jnp.array(start), steps)
    path = np.append(result.aux, np.asarray(result.variable)[None], axis=0)
    return path[np.isfinite(path).all(1) & (np.abs(path).max(1) < 100)], result


class Noise(NamedTuple):
    """How far the gradient of a batch is from that of all examples.

    Attributes:
        examples: N.
        alone: σ, root mean square distance of the gradient of one example.
        sizes: batch sizes B.
        measured: root mean square distance of the gradients of batches drawn without replacement.
        slope: of log distance against log B, after the correction for drawing without replacement; 1/√B has -1/2.
    """

    examples: int
    alone: float
    sizes: np.ndarray
    measured: np.ndarray
    slope: float

    @property
    def correction(self) -> np.ndarray:
        """√((N - B) / (N - 1)): what is drawn is missing from what is left, and all N examples have no noise."""
        return np.sqrt((self.examples - self.sizes) / (self.examples - 1))


def noise(
    loss: Callable[..., Array], params: Any, data: tuple[Array, ...], draws: int, key: jax.Array
) -> Noise:
    """Measure it with many batches of each size B = 1, 2, 4, ... < N."""
    each = dp.gradients.per_example(lambda params, *batch: loss(params, *batch).mean())(
        params, *data
    )
    flat = jax.vmap(lambda gradient: ravel_pytree(gradient)[0])(each)
    apart, count = flat - flat.mean(0), len(flat)
    sizes = 2 ** np.arange(int(np.ceil(np.log2(count))))
    order = jax.random.uniform(key, (draws, count)).argsort(1)
    measured = np.array([float(_distance(apart, order, size)) for size in sizes])
    found = Noise(
        count, float(jnp.sqrt((apart**2).sum(1).mean())), sizes.astype(float), measured, 0.0
    )
    return found._replace(
        slope=float(np.polyfit(np.log(sizes), np.log(measured / found.correction), 1)[0])
    )


@jax.jit
def _distance(apart: Float[Array, "examples params"], order: Array, size: Any) -> Float[Array, ""]:
    means = (order < size).astype(apart.dtype) @ apart / size
    return jnp.sqrt((means**2).sum(1).mean())


def trained(data: tuple[Array, Array], batch_size: int, passes: int, key: jax.Array) -> np.ndarray:
    """The parameters before each step of stochastic descent and after the last."""
    steps = passes * POINTS // batch_size
    optimizer = recorded(optax.sgd(RATE), steps)
    fit = dp.training.fit(
        squares,
        jnp.array(START),
        data,
        optimizer=optimizer,
        batch_size=batch_size,
        epochs=passes,
        key=key,
    )
    return np.append(np.asarray(fit.state.optimizer.seen), np.asarray(fit.params)[None], axis=0)


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Run all of it and write it to `folder`; returns the numbers."""
    passes, draws = (10, 200) if fast else (PASSES, DRAWS)
    data_key, model_key, order_key, draw_key = jax.random.split(jax.random.key(seed), 4)
    data = points(data_key)
    starts = {f"({a:g}, {b:g})": walked((a, b), STARTS_RATE, SURFACE_STEPS) for a, b in STARTS}
    rates = {f"η = {rate:g}": walked(RATES_START, rate, SURFACE_STEPS) for rate in RATES}
    paths = {size: trained(data, size, passes, order_key) for size in BATCHES}

    model, digits = dp.models.mlp((64, 10)), dp.data.digits(flatten=True)
    loss = lambda params, x, y: dp.losses.softmax_cross_entropy(model.apply(params, x), y)
    noises = {
        "a line, 2 parameters": noise(squares, jnp.array(START), data, draws, draw_key),
        "digits, 650 parameters": noise(
            loss, model.init(model_key), (digits.x_train, digits.y_train), draws, draw_key
        ),
    }
    best = np.linalg.lstsq(
        np.stack([data[0], np.ones(POINTS)], 1), np.asarray(data[1]), rcond=None
    )[0]
    excess = {size: costs_above(path, best, data) for size, path in paths.items()}
    numbers = {
        "surface": {
            name: {
                "ending": result.ending,
                "cost": float(result.costs[np.isfinite(result.costs)][-1]),
            }
            for name, (_, result) in (starts | rates).items()
        },
        "noise": {
            name: {"slope": found.slope, "one example": found.alone}
            for name, found in noises.items()
        },
        "cost above the best": {
            str(size): {"after one pass": float(j[POINTS // size]), "at the end": _late(j)}
            for size, j in excess.items()
        },
    }
    write(folder, numbers, figures(data, starts, rates, paths, noises, excess, draw_key))
    return numbers


def costs_above(path: np.ndarray, best: np.ndarray, data: tuple[Array, Array]) -> np.ndarray:
    """J - J* over all points, which for squares is 1/2 (θ - θ*)ᵀ H (θ - θ*)."""
    inputs = np.stack([np.asarray(data[0]), np.ones(POINTS)], 1)
    return 0.5 * (((path - best) @ inputs.T) ** 2).mean(1)


def _late(costs: np.ndarray) -> float:
    """The mean of the last tenth, for what is left is noise."""
    return float(costs[-max(len(costs) // 10, 1) :].mean())


def figures(
    data: Any, starts: Any, rates: Any, paths: Any, noises: Any, excess: Any, key: jax.Array
) -> dict[str, Any]:
    grid = np.linspace(-5.5, 5.5, 120)
    heights = np.asarray(jax.vmap(jax.vmap(surface))(jnp.stack(jnp.meshgrid(grid, grid), -1)))
    walks = {"from several starts": {name: path for name, (path, _) in starts.items()}}
    walks |= {"with several learning rates": {name: path for name, (path, _) in rates.items()}}

    x, y = np.linspace(-1.4, 2.6, 80), np.linspace(-1.4, 2.2, 80)
    cost = jax.vmap(jax.vmap(lambda θ: squares(θ, *data).mean()))(jnp.stack(jnp.meshgrid(x, y), -1))
    size_of = {size: f"batches of {size}" for size in BATCHES[:-1]}
    beside = {
        size_of[size]: {f"all {POINTS}": paths[POINTS], f"B = {size}": paths[size][:PATH_STEPS]}
        for size in size_of
    }
    beside = {
        title: {name: path[:PATH_STEPS] for name, path in named.items()}
        for title, named in beside.items()
    }

    gradients = np.asarray(
        dp.gradients.per_example(lambda θ, *one: squares(θ, *one).mean())(jnp.array(START), *data)
    )
    shuffled = np.asarray(jax.random.permutation(key, gradients))
    clouds = {
        "one example": gradients,
        f"a batch of {BATCH}": shuffled.reshape(-1, BATCH, 2).mean(1),
        f"all {POINTS}": gradients.mean(0)[None],
    }

    measured = {name: (found.sizes, found.measured / found.alone) for name, found in noises.items()}
    sizes = np.geomspace(1, 1437, 2)
    predicted = {"1/√B": (sizes, sizes**-0.5)}
    predicted |= {
        f"without replacement, N = {n.examples}": _corrected(n.examples) for n in noises.values()
    }

    falling = {
        f"B = {size}": _averaged(np.arange(1, len(costs)) * size / POINTS, costs[1:])
        for size, costs in excess.items()
    }
    return {
        "surface": dp.plotting.draw_paths(grid, grid, heights, walks),
        "gradients": dp.plotting.draw_clouds(clouds, xlabel="dJ/dθ₁", ylabel="dJ/dθ₂"),
        "noise": dp.plotting.draw_traces(
            Panel(measured, "batch size B", expected=predicted),
            ylabel="distance to the gradient of all, in σ",
        ),
        "paths": dp.plotting.draw_paths(
            x, y, np.asarray(cost), beside, xlabel="slope θ₁", ylabel="offset θ₂"
        ),
        "passes": dp.plotting.draw_traces(Panel(falling, "passes over the data"), ylabel="J - J*"),
    }


def _corrected(examples: int) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.geomspace(1, 0.995 * examples, 200)
    return sizes, np.sqrt((examples - sizes) / (examples - 1) / sizes)


def _averaged(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over stretches that look equally long on a logarithmic axis."""
    stretch = np.unique(np.floor(12 * np.log10(x)), return_inverse=True)[1]
    return tuple(np.bincount(stretch, values) / np.bincount(stretch) for values in (x, y))  # type: ignore[return-value]


def write(folder: Path, numbers: dict[str, Any], drawn: dict[str, Any]) -> None:
    """The page, the figures as files, and the numbers as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    ended = {"steps": "took all its steps", "nonfinite": "diverged"}
    descents = [
        [name, ended[found["ending"]], found["cost"]] for name, found in numbers["surface"].items()
    ]
    left = [
        [int(size), found["after one pass"], found["at the end"]]
        for size, found in numbers["cost above the best"].items()
    ]
    slopes = [[name, found["slope"]] for name, found in numbers["noise"].items()]
    sections = [
        Section(
            "Where descent goes",
            "Himmelblau's function has four minima, all 0, and the start decides in which one a descent ends. The learning rate decides "
            "how: too small and it is still on its way, larger and it gets there, near the largest that is stable and it zigzags, beyond "
            "and it is thrown out.",
            drawn["surface"],
            Table(["descent", "ending", "last cost"], descents),
            caption=f"{SURFACE_STEPS} steps each; open circles are starts, full ones ends. Left with η = {STARTS_RATE:g}.",
        ),
        Section(
            "The gradient of one example, of a batch, of all",
            "A line is fitted to points, and the gradient is taken at one and the same place. That of one example may point anywhere; it "
            "is right on the mean, and batches lie closer around the same mean.",
            drawn["gradients"],
            caption=f"Each dot is a gradient; {POINTS} points, the batches a partition of them.",
        ),
        Section(
            "Noise falls as one over the square root of the batch",
            "Four times the examples for half the noise. Batches are drawn without replacement, as training draws them: their distance is "
            "σ/√B times √((N - B)/(N - 1)), and nothing is left at B = N.",
            drawn["noise"],
            Table(["gradient of", "slope, corrected for drawing without replacement"], slopes),
            caption="Root mean square distance over many batches of each size, in units of σ, that of one example.",
        ),
        Section(
            "The path of stochastic descent beside that of full descent",
            "The same start and learning rate, the first steps of each. Small batches stray from the path of all, and where it comes to "
            "rest they keep wandering.",
            drawn["paths"],
            caption=f"{PATH_STEPS} steps with η = {RATE:g}.",
        ),
        Section(
            "Cost against passes over the data",
            "A pass costs about the same arithmetic whatever the batch size, but takes N/B steps. So small batches are far ahead in the "
            "first pass and stop falling early, at a noise that is the larger the smaller the batch: somewhat steeper than 1/B, as the "
            "batches of one pass are drawn without replacement and their noise partly cancels. Full descent is slow, and given passes "
            "enough ends lowest. Between them lies what one wants, or a learning rate that falls.",
            drawn["passes"],
            Table(["batch size", "J - J* after one pass", "J - J* over the last tenth"], left),
            caption=f"J over all points above its least value, averaged over the steps between two points; η = {RATE:g} for all.",
        ),
    ]
    page = dp.plotting.write_page(
        folder / "index.html",
        "Gradient descent",
        sections,
        summary="θ ← θ - η dJ/dθ, and what is in it.",
    )
    for name, slope in slopes:
        print(f"noise against batch size, {name}: slope {slope:.3f}")
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="fewer passes and draws")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/gradient_descent"))
    options = parser.parse_args()
    main(options.folder, fast=options.fast, seed=options.seed)
