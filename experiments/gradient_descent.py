"""Show how gradient descent moves: starts, learning rates, gradient noise and batch sizes.

    python -m experiments.gradient_descent [--fast]

    θ ← θ - η dJ/dθ,    J = 1/N Σ_i L_i(θ),    dJ/dθ ≈ 1/B Σ_{i in batch} dL_i/dθ

The first figure shows descent on a surface, from several starts and with several learning rates.
The others fit a line to points: gradients of single examples and of batches at the same θ; how
their noise falls with the batch size, also for a classifier of digits; trajectories of stochastic
and of full-batch descent; loss against passes over the data. Writes results/gradient_descent/:
figures, numbers.json and index.html.

For your own surface change `surface`. To measure the gradient noise of your own model call
`measure_noise` with its loss, parameters and data.

Source: lecture 000, "Gradient descent".
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
from experiments.trajectory_recorder import record

# Descent on the surface.
STARTS = ((0.0, 0.0), (-0.5, 0.5), (-1.0, -4.5), (4.8, -4.0), (0.3, -1.2), (-4.5, 1.0))
STARTS_RATE, SURFACE_STEPS = 0.008, 39
RATES, RATES_START = (0.0008, 0.005, 0.016, 0.06), (-0.8, -0.6)
# Fitting a line.
POINTS, SLOPE_AND_OFFSET, SCATTER = 256, (1.5, -0.5), 1.0
START, LEARNING_RATE, PASSES, SHOWN_STEPS, SHOWN_BATCH = (-1.0, 1.5), 0.1, 200, 100, 16
BATCH_SIZES, DRAWS = (1, 4, 16, 64, 256), 1000


def surface(θ: Float[Array, "2"]) -> Float[Array, ""]:
    """Himmelblau's function: four minima of value 0, with saddle points between them."""
    return (θ[0] ** 2 + θ[1] - 11) ** 2 + (θ[0] + θ[1] ** 2 - 7) ** 2


def line_loss(
    θ: Float[Array, "2"], x: Float[Array, "batch"], y: Float[Array, "batch"]
) -> Float[Array, "batch"]:
    """L_i = 1/2 (θ₁ x_i + θ₂ - y_i)², the loss of a line through points."""
    return 0.5 * (θ[0] * x + θ[1] - y) ** 2


def sample_points(key: jax.Array) -> tuple[Array, Array]:
    """Sample points around a line; the mean of x is not 0, so that slope and offset interact."""
    x_key, y_key = jax.random.split(key)
    x = jax.random.uniform(x_key, (POINTS,), minval=-1, maxval=2)
    slope, offset = SLOPE_AND_OFFSET
    return x, slope * x + offset + SCATTER * jax.random.normal(y_key, (POINTS,))


def descend_surface(
    start: tuple[float, float], rate: float
) -> tuple[np.ndarray, dp.descent.Result]:
    """Return the trajectory of descent on the surface, cut where it diverges, and the result."""
    # The second output of the cost is recorded at every step.
    descent = dp.descent.descent(lambda θ, k: (surface(θ), θ), optax.sgd(rate))
    result = dp.descent.run(descent, jnp.array(start), SURFACE_STEPS)
    path = np.append(result.aux, np.asarray(result.variable)[None], axis=0)
    return path[np.isfinite(path).all(1) & (np.abs(path).max(1) < 100)], result


class Noise(NamedTuple):
    """Distance between the gradient of a batch and the gradient of all examples.

    Attributes:
        examples: N.
        sigma: root mean square distance of the gradients of single examples.
        batch_sizes: B.
        measured: root mean square distance of the gradients of batches of each size, drawn without
            replacement.
    """

    examples: int
    sigma: float
    batch_sizes: np.ndarray
    measured: np.ndarray

    @property
    def correction(self) -> np.ndarray:
        """√((N - B) / (N - 1)), the factor of drawing without replacement."""
        return np.sqrt((self.examples - self.batch_sizes) / (self.examples - 1))

    @property
    def slope(self) -> float:
        """Slope of log(measured / correction) against log B, -1/2 in theory."""
        corrected = np.log(self.measured / self.correction)
        return float(np.polyfit(np.log(self.batch_sizes), corrected, 1)[0])


def measure_noise(
    loss: Callable[..., Array], params: Any, data: tuple[Array, ...], draws: int, key: jax.Array
) -> Noise:
    """Measure gradient noise by `draws` random batches of each size B = 1, 2, 4, ... < N."""
    mean_loss = lambda params, *batch: loss(params, *batch).mean()
    gradients = dp.gradients.per_example(mean_loss)(params, *data)
    flat = jax.vmap(lambda gradient: ravel_pytree(gradient)[0])(gradients)
    deviations, count = flat - flat.mean(0), len(flat)
    batch_sizes = 2 ** np.arange(int(np.ceil(np.log2(count))))
    order = jax.random.uniform(key, (draws, count)).argsort(1)

    @jax.jit
    def distance(batch_size: Array) -> Float[Array, ""]:
        means = (order < batch_size).astype(flat.dtype) @ deviations / batch_size
        return jnp.sqrt((means**2).sum(1).mean())

    measured = np.array([float(distance(size)) for size in batch_sizes])
    sigma = float(jnp.sqrt((deviations**2).sum(1).mean()))
    return Noise(count, sigma, batch_sizes.astype(float), measured)


def train_line(
    data: tuple[Array, Array], batch_size: int, passes: int, key: jax.Array
) -> np.ndarray:
    """Return the parameters before each step of stochastic descent and after the last."""
    fit = dp.training.fit(
        line_loss,
        jnp.array(START),
        data,
        optimizer=record(optax.sgd(LEARNING_RATE), passes * POINTS // batch_size),
        batch_size=batch_size,
        epochs=passes,
        key=key,
    )
    return np.append(np.asarray(fit.state.optimizer.records), np.asarray(fit.params)[None], axis=0)


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Run all parts, write the results to `folder` and return the numbers."""
    passes, draws = (10, 200) if fast else (PASSES, DRAWS)
    data_key, model_key, order_key, draw_key = jax.random.split(jax.random.key(seed), 4)
    starts = {f"({a:g}, {b:g})": descend_surface((a, b), STARTS_RATE) for a, b in STARTS}
    rates = {f"η = {rate:g}": descend_surface(RATES_START, rate) for rate in RATES}
    data = sample_points(data_key)
    paths = {size: train_line(data, size, passes, order_key) for size in BATCH_SIZES}

    model, digits = dp.models.mlp((64, 10)), dp.data.digits(flatten=True)
    loss = lambda params, x, y: dp.losses.softmax_cross_entropy(model.apply(params, x), y)
    digits_data = digits.x_train, digits.y_train
    noises = {
        "line, 2 parameters": measure_noise(line_loss, jnp.array(START), data, draws, draw_key),
        "digits, 650 parameters": measure_noise(
            loss, model.init(model_key), digits_data, draws, draw_key
        ),
    }
    # J - J* = 1/2 (θ - θ*)ᵀ H (θ - θ*) = 1/2 mean of ((θ - θ*)ᵀ (x_i, 1))²
    inputs = np.stack([np.asarray(data[0]), np.ones(POINTS)], 1)
    optimum = np.linalg.lstsq(inputs, np.asarray(data[1]), rcond=None)[0]
    excess = {
        size: 0.5 * (((path - optimum) @ inputs.T) ** 2).mean(1) for size, path in paths.items()
    }
    numbers = {
        "surface": {
            name: {
                "ending": result.ending,
                "loss": float(result.costs[np.isfinite(result.costs)][-1]),
            }
            for name, (_, result) in (starts | rates).items()
        },
        "noise": {
            name: {"slope": noise.slope, "sigma": noise.sigma} for name, noise in noises.items()
        },
        "J - J*": {
            str(size): {
                "after one pass": float(losses[POINTS // size]),
                "mean over the last tenth": float(losses[-max(len(losses) // 10, 1) :].mean()),
            }
            for size, losses in excess.items()
        },
    }
    figures = {
        "surface": draw_surface(starts, rates),
        "gradients": draw_gradients(data, draw_key),
        "noise": draw_noise(noises),
        "paths": draw_line_paths(data, paths),
        "passes": draw_excess_loss(excess),
    }
    write_results(folder, numbers, figures)
    return numbers


def draw_surface(starts: dict[str, Any], rates: dict[str, Any]) -> Any:
    """Plot the trajectories on the surface, from several starts and with several rates."""
    grid = np.linspace(-5.5, 5.5, 120)
    heights = np.asarray(jax.vmap(jax.vmap(surface))(jnp.stack(jnp.meshgrid(grid, grid), -1)))
    panels = {
        f"several starts, η = {STARTS_RATE:g}": {name: path for name, (path, _) in starts.items()},
        "several learning rates": {name: path for name, (path, _) in rates.items()},
    }
    return dp.plotting.draw_paths(grid, grid, heights, panels)


def draw_gradients(data: tuple[Array, Array], key: jax.Array) -> Any:
    """Plot the gradients of single examples, of batches and of all examples at `START`."""
    gradients = np.asarray(
        dp.gradients.per_example(lambda θ, *batch: line_loss(θ, *batch).mean())(
            jnp.array(START), *data
        )
    )
    shuffled = np.asarray(jax.random.permutation(key, gradients))
    clouds = {
        "one example": gradients,
        f"batch of {SHOWN_BATCH}": shuffled.reshape(-1, SHOWN_BATCH, 2).mean(1),
        f"all {POINTS}": gradients.mean(0)[None],
    }
    return dp.plotting.draw_clouds(clouds, xlabel="dJ/dθ₁", ylabel="dJ/dθ₂")


def draw_noise(noises: dict[str, Noise]) -> Any:
    """Plot the measured noise against the batch size, with the predictions of both formulas."""
    measured = {name: (n.batch_sizes, n.measured / n.sigma) for name, n in noises.items()}
    sizes = np.array([1.0, 1437.0])
    predicted = {"1/√B": (sizes, sizes**-0.5)}
    for n in noises.values():
        sizes = np.geomspace(1, 0.995 * n.examples, 200)
        factor = np.sqrt((n.examples - sizes) / (n.examples - 1) / sizes)
        predicted[f"without replacement, N = {n.examples}"] = (sizes, factor)
    panel = Panel(measured, "batch size B", expected=predicted)
    return dp.plotting.draw_traces(panel, ylabel="distance to the full gradient, in σ")


def draw_line_paths(data: tuple[Array, Array], paths: dict[int, np.ndarray]) -> Any:
    """Plot the first steps of stochastic descent, each with those of full-batch descent."""
    x, y = np.linspace(-1.4, 2.6, 80), np.linspace(-1.4, 2.2, 80)
    loss = lambda θ: line_loss(θ, *data).mean()
    heights = jax.vmap(jax.vmap(loss))(jnp.stack(jnp.meshgrid(x, y), -1))
    panels = {
        f"batch size {size}": {
            "full batch": paths[POINTS][:SHOWN_STEPS],
            f"B = {size}": paths[size][:SHOWN_STEPS],
        }
        for size in BATCH_SIZES[:-1]
    }
    return dp.plotting.draw_paths(
        x, y, np.asarray(heights), panels, xlabel="slope θ₁", ylabel="offset θ₂"
    )


def draw_excess_loss(excess: dict[int, np.ndarray]) -> Any:
    """Plot J - J* against passes over the data, averaged in bins of equal width in log(passes)."""
    curves = {}
    for size, losses in excess.items():
        passes = np.arange(1, len(losses)) * size / POINTS
        bins = np.unique(np.floor(12 * np.log10(passes)), return_inverse=True)[1]
        average = lambda values, bins=bins: np.bincount(bins, values) / np.bincount(bins)
        curves[f"B = {size}"] = (average(passes), average(losses[1:]))
    return dp.plotting.draw_traces(Panel(curves, "passes over the data"), ylabel="J - J*")


def write_results(folder: Path, numbers: dict[str, Any], figures: dict[str, Any]) -> None:
    """Write page, figures and numbers, and print a summary."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    endings = {"steps": "all steps taken", "nonfinite": "diverged"}
    descents = [
        [name, endings[run["ending"]], run["loss"]] for name, run in numbers["surface"].items()
    ]
    excess = [[int(size), *losses.values()] for size, losses in numbers["J - J*"].items()]
    slopes = [[name, noise["slope"]] for name, noise in numbers["noise"].items()]
    sections = [
        Section(
            "Starts and learning rates",
            "Himmelblau's function has four minima of value 0; the start decides which one descent "
            "reaches. With a very small learning rate it has not arrived after these steps, with a "
            "larger one it converges, near the largest stable rate it zigzags, and beyond it "
            "diverges.",
            figures["surface"],
            Table(["descent", "ending", "last loss"], descents),
            caption=f"{SURFACE_STEPS} steps each, from the open to the full circle.",
        ),
        Section(
            "Gradients of one example, of a batch, of all examples",
            "A line is fitted to points, and all gradients are taken at the same parameters. The "
            "gradient of one example may point anywhere, but the mean of these gradients is the "
            "full gradient. Gradients of batches lie closer to it.",
            figures["gradients"],
            caption=f"Each dot is a gradient. There are {POINTS} points; the batches are a "
            "partition of them.",
        ),
        Section(
            "Gradient noise falls as one over the square root of the batch size",
            "Four times as many examples halve the noise. Batches are drawn without replacement, "
            "as in training: the distance to the full gradient is σ/√B · √((N - B)/(N - 1)), and "
            "0 for B = N.",
            figures["noise"],
            Table(["model", "slope, corrected for drawing without replacement"], slopes),
            caption="Root mean square distance over many batches of each size, in units of σ, the "
            "distance of single examples.",
        ),
        Section(
            "Trajectories of stochastic and of full-batch descent",
            "All have the same start and learning rate. Small batches leave the path of full-batch "
            "descent, and around the minimum they keep moving at random.",
            figures["paths"],
            caption=f"The first {SHOWN_STEPS} steps with η = {LEARNING_RATE:g}.",
        ),
        Section(
            "Loss against passes over the data",
            "A pass needs about the same arithmetic for every batch size, but takes N/B steps. So "
            "small batches are far ahead in the first pass. Their loss soon stops falling, at a "
            "level set by their noise: somewhat steeper in the batch size than 1/B, as the batches "
            "of one pass are drawn without replacement and their noise partly cancels. Full-batch "
            "descent is slow, but in the end reaches the lowest loss. A medium batch size or a "
            "decreasing learning rate combines both.",
            figures["passes"],
            Table(
                ["batch size", "J - J* after one pass", "J - J*, mean over the last tenth"], excess
            ),
            caption="J is the loss of all points, J* its minimum; averages over the steps between "
            f"two points of a curve; η = {LEARNING_RATE:g} for all batch sizes.",
        ),
    ]
    page = dp.plotting.write_page(
        folder / "index.html",
        "Gradient descent",
        sections,
        summary="θ ← θ - η dJ/dθ: starts, learning rates, gradient noise and batch sizes.",
    )
    for name, slope in slopes:
        print(f"gradient noise against batch size, {name}: slope {slope:.3f}")
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
