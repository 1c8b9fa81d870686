import importlib
import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffprog as dp
from experiments import digits, gradient_descent, momentum, optimizer_orders
from experiments.trajectory_recorder import record

FIGURES = {
    "gradient_descent": {"surface", "gradients", "noise", "paths", "passes"},
    "momentum": {"one_curvature", "ravine", "losses", "paths"},
    "digits": {"loss_curves", "non_digits"},
    "optimizer_orders": {"excess_loss"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_fast_run_writes_figures_page_and_numbers(name, tmp_path):
    numbers = importlib.import_module(f"experiments.{name}").main(tmp_path, fast=True)
    assert {path.stem for path in tmp_path.glob("*.png")} == FIGURES[name]
    assert (tmp_path / "index.html").read_text().count("data:image/") == len(FIGURES[name])
    saved = json.loads((tmp_path / "numbers.json").read_text(), parse_constant=pytest.fail)
    assert saved == numbers
    CHECKS[name](numbers)


def check_gradient_descent(numbers):
    endings = {name: run["ending"] for name, run in numbers["surface"].items()}
    assert [name for name, ending in endings.items() if ending == "nonfinite"] == ["η = 0.06"]
    for a, b in gradient_descent.STARTS:
        assert numbers["surface"][f"({a:g}, {b:g})"]["loss"] < 1e-2
    # A distance from `draws` samples has a relative error of 1 / sqrt(2 draws), 5 %, and the batch
    # sizes span a factor of 128 or more.
    assert all(abs(noise["slope"] + 0.5) < 0.04 for noise in numbers["noise"].values())
    last = [losses["mean over the last tenth"] for losses in numbers["J - J*"].values()]
    assert last[0] > last[1] > last[2]  # larger batches have not converged in so few passes
    first = [losses["after one pass"] for losses in numbers["J - J*"].values()]
    assert first[1] < first[2] < first[3] < first[4]


def check_momentum(numbers):
    for error in numbers["error"].values():
        assert error["median"] < 2e-3
    inside, outside, negative = numbers["stability"].values()
    assert inside < 1 < outside
    assert negative > 1
    lowest = numbers["lowest rate in the ravine"]
    assert lowest["on the grid"] == pytest.approx(lowest["formula"], abs=0.05)
    mild, steep = numbers["ravines"].values()
    for ravine in (mild, steep):
        assert ravine["α = 0.990"]["closed form"] == pytest.approx(0.99**0.5)
        for run in ravine.values():
            assert run["measured"] == pytest.approx(run["closed form"], abs=2e-3)
    assert mild["no momentum"]["measured"] < mild["α = 0.990"]["measured"]  # it hurts
    assert steep["no momentum"]["measured"] > steep["α = 0.990"]["measured"]  # it helps


def check_digits(numbers):
    for result in numbers["tasks"].values():
        assert result["largest difference of a loss"] < 1e-5
        assert result["largest difference of a parameter"] < 1e-4
        assert result["accuracy"] > 0.8
    assert numbers["non-digits predicted as none"]["swapped quarters"] > 0.9
    assert numbers["recall of 2"] > 0.8 > 0.1 > numbers["false positive rate of 2"]


def check_optimizer_orders(numbers):
    assert numbers["gradient norm at J*"] < 1e-12
    product = numbers["Hessian-vector product, in evaluations"]
    assert 1 < numbers["gradient, in evaluations"] < product < 5
    evaluations = {
        name: method["evaluations to 1e-06"]
        for name, method in numbers["methods"].items()
        if method["evaluations to 1e-06"]
    }
    assert set(evaluations) == {"Newton-CG", "Gauss-Newton", "L-BFGS"}
    assert evaluations["L-BFGS"] < evaluations["Newton-CG"] <= evaluations["Gauss-Newton"] < 300
    excess = {
        order: [m["J - J*"] for m in numbers["methods"].values() if m["order"] == order]
        for order in range(3)
    }
    assert min(excess[0]) > max(excess[1]) > max(excess[2])


CHECKS = {
    "gradient_descent": check_gradient_descent,
    "momentum": check_momentum,
    "digits": check_digits,
    "optimizer_orders": check_optimizer_orders,
}


@pytest.mark.parametrize("steps", [100, 800])
def test_measured_rate_is_within_its_bound_of_the_closed_form(steps):
    """With M = V D V⁻¹ and w = V⁻¹ v, σ_min ρⁿ |w_1| <= |Mⁿ v| <= σ_max ρⁿ |w|.

    w_1 is the component along the largest eigenvalue; M acts on (θ, trace).
    """
    eta, alpha = (
        axis.ravel()
        for axis in np.meshgrid(np.linspace(0.013, 3.9, 17), np.linspace(0.021, 0.98, 13))
    )
    matrices = np.array([[[1 - e, -e * a], [1, a]] for e, a in zip(eta, alpha, strict=True)])
    values, vectors = np.linalg.eig(matrices)
    along = np.abs(np.linalg.solve(vectors, np.tile([[1.0], [0.0]], (len(eta), 1, 1))))[..., 0]
    largest = np.take_along_axis(along, np.abs(values).argmax(1)[:, None], 1)[:, 0]
    bound = np.log(np.linalg.cond(vectors) * np.linalg.norm(along, axis=1) / largest) / (steps // 2)
    with jax.enable_x64(True):
        measured = np.asarray(
            momentum.measured_rate(eta, alpha, curvatures=momentum.ONE_CURVATURE, steps=steps)
        )
    formula = momentum.closed_form_rate(eta, alpha, momentum.ONE_CURVATURE)
    assert (np.abs(np.log(measured / formula)) <= bound + 1e-12).all()
    assert np.median(bound) < 8 / steps


def test_optimal_momentum_is_a_minimum_of_the_rate():
    eta, alpha = momentum.optimal_momentum(momentum.RAVINE)
    lowest = momentum.closed_form_rate(eta, alpha, momentum.RAVINE)
    assert lowest == pytest.approx((5 - 1) / (5 + 1))
    nearby = [
        momentum.closed_form_rate(e * eta, a * alpha, momentum.RAVINE)
        for e in (0.95, 1, 1.02)
        for a in (0.95, 1, 1.05)
    ]
    assert min(nearby) == pytest.approx(lowest, abs=1e-6)


def test_measured_noise_follows_its_formula():
    x = jax.random.normal(jax.random.key(0), (64, 3))
    noise = gradient_descent.measure_noise(
        lambda w, x: x @ w, jnp.zeros(3), (x,), 4000, jax.random.key(1)
    )
    assert noise.sigma == pytest.approx(
        float(jnp.sqrt(((x - x.mean(0)) ** 2).sum(1).mean())), rel=1e-5
    )
    # 4000 draws of 3 independent coordinates: 1 / sqrt(2 x 3 x 4000) = 0.65 %, and four of those
    np.testing.assert_allclose(
        noise.measured, noise.sigma * noise.correction / np.sqrt(noise.batch_sizes), rtol=0.026
    )


@pytest.mark.slow
def test_training_by_hand_uses_the_hand_written_gradient():
    data = dp.data.digits(size=16, flatten=True)
    task = digits.make_tasks(data, data.x_train, data.x_test)["2 or not 2"]
    wrong = task.loss._replace(
        backward=lambda params, residuals, dy: task.loss.backward(params, residuals, 2 * dy)
    )
    fits = [
        digits.train(task._replace(loss=wrong), hand_written, 0.2, jax.random.key(0))
        for hand_written in (True, False)
    ]
    assert digits.compare(*fits)["largest difference of a parameter"] > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("kind", digits.TRAINING_KINDS | digits.UNSEEN_KINDS)
def test_non_digits_differ_from_the_digits_they_are_made_of(kind):
    images = dp.data.digits(size=16).x_train[:20, ..., 0]
    inputs = (digits.TRAINING_KINDS | digits.UNSEEN_KINDS)[kind](images, jax.random.key(0))
    assert inputs.shape == images.shape
    assert 0 <= inputs.min() <= inputs.max() <= 1
    assert (jnp.abs(inputs - images).max((1, 2)) > 0.3).all()


@pytest.mark.slow
def test_every_evaluation_of_the_loss_is_counted(monkeypatch):
    """Each value, gradient and product evaluates the KL divergence once."""
    runs, plain = Counter(), optimizer_orders.kl_divergence

    def counted(z, d):
        # An effect without arguments would be moved out of a loop.
        jax.debug.callback(lambda _: runs.update(["J"]), z[0])
        return plain(z, d)

    monkeypatch.setattr(optimizer_orders, "kl_divergence", counted)
    x = jax.random.normal(jax.random.key(0), (64, 64))
    d = (x[:, 0] + 0.5 * x[:, 1] > 0).astype(jnp.float32)
    for name, method in optimizer_orders.make_methods(x, d).items():
        runs.clear()
        fit = dp.training.fit(
            method.loss,
            optimizer_orders.initial_params(),
            (x, d),
            optimizer=record(method.optimizer, 3, optimizer_orders.line_search_steps),
            batch_size=method.batch,
            steps=3,
            key=jax.random.key(0),
        )
        jax.effects_barrier()
        work = method.work
        gradients = 3.0 if method.batch else 3 * work.gradients
        searches = int(fit.state.optimizer.records.sum())
        assert (searches > 0) == work.line_search
        assert runs["J"] == 3 * (work.values + work.products) + gradients + searches, name


def test_recorder_keeps_updates_and_records_parameters():
    plain, recorded, every_second = (
        dp.descent.run(dp.descent.descent(lambda v, k: v**4, optimizer), 2.0, 5)
        for optimizer in (
            optax.adam(0.1),
            record(optax.adam(0.1), 5),
            record(optax.adam(0.1), 5, every=2),
        )
    )
    records = recorded.state.optimizer.records
    assert plain.variable == recorded.variable
    np.testing.assert_allclose(records**4, plain.costs, rtol=1e-6)
    np.testing.assert_array_equal(
        every_second.state.optimizer.records, records[np.array([1, 3, 4])]
    )
