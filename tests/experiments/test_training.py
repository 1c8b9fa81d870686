"""The training experiments, fast: they write what they say, and it is what the lectures say."""

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
from experiments.trajectory_recorder import recorded

PICTURES = {
    "gradient_descent": {"surface", "gradients", "noise", "paths", "passes"},
    "momentum": {"one_curvature", "ravine", "costs", "paths"},
    "digits": {"curves", "none"},
    "orders": {"orders"},
}


@pytest.fixture(
    scope="module",
    params=[
        name if name == "momentum" else pytest.param(name, marks=pytest.mark.slow)
        for name in PICTURES
    ],
)
def experiment(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return (
        request.param,
        folder,
        importlib.import_module(f"experiments.{request.param}").main(folder, fast=True),
    )


@pytest.mark.slow
def test_shows_what_it_says(experiment):
    name, folder, numbers = experiment
    assert {path.stem for path in folder.glob("*.png")} == PICTURES[name]
    assert (folder / "index.html").read_text().count("data:image/") == len(PICTURES[name])
    assert json.loads((folder / "numbers.json").read_text(), parse_constant=pytest.fail) == numbers
    CHECKS[name](numbers)


def gradient_descent_is_as_drawn(numbers):
    ends = {name: found["ending"] for name, found in numbers["surface"].items()}
    assert [name for name, ending in ends.items() if ending == "nonfinite"] == ["η = 0.06"]
    assert all(
        numbers["surface"][f"({a:g}, {b:g})"]["cost"] < 1e-2 for a, b in gradient_descent.STARTS
    )
    # A distance from `draws` samples is known to 1 / sqrt(2 draws), 5 %, and the sizes span a factor of 128 and more.
    assert all(abs(found["slope"] + 0.5) < 0.04 for found in numbers["noise"].values())
    late = [found["at the end"] for found in numbers["cost above the best"].values()]
    assert (
        late[0] > late[1] > late[2]
    )  # the floors of small batches; larger ones have not reached theirs in so few passes
    first = [found["after one pass"] for found in numbers["cost above the best"].values()]
    assert first[1] < first[2] < first[3] < first[4]


def momentum_is_as_in_closed_form(numbers):
    for name in ("one curvature", "ravine"):
        assert numbers["typical difference to the closed form"][name] < 2e-3
    assert (
        numbers["largest rate at 0.99 of the border"]
        < 1
        < numbers["smallest rate at 1.01 of the border"]
    )
    assert numbers["smallest rate with η below 0"] > 1
    assert numbers["least rate on the ravine"]["on the plane"] == pytest.approx(
        numbers["least rate on the ravine"]["formula"], abs=0.05
    )
    mild, steep = numbers["ravines"].values()
    for of in (mild, steep):
        assert of["α = 0.990"]["closed form"] == pytest.approx(0.99**0.5)
        for found in of.values():
            assert found["measured"] == pytest.approx(found["closed form"], abs=2e-3)
    assert mild["no momentum"]["measured"] < mild["α = 0.990"]["measured"]  # it hurts
    assert steep["no momentum"]["measured"] > steep["α = 0.990"]["measured"]  # it helps


def digits_are_the_same_by_hand(numbers):
    for found in numbers["tasks"].values():
        assert found["largest difference of a cost"] < 1e-5
        assert found["largest difference of a parameter"] < 1e-4
        assert found["right"] > 0.8
    assert numbers["taken for none"]["swapped"] > 0.9
    assert numbers["2s found"] > 0.8 > 0.1 > numbers["others taken for a 2"]


def orders_differ(numbers):
    assert numbers["length of the gradient at J*"] < 1e-12
    assert (
        1
        < numbers["a gradient in evaluations"]
        < numbers["a Hessian-vector product in evaluations"]
        < 5
    )
    soon = {name: found["evaluations to 1e-06"] for name, found in numbers["methods"].items()}
    assert {name for name, evaluations in soon.items() if evaluations} == {
        "Newton-CG",
        "Gauss-Newton",
        "L-BFGS",
    }
    assert soon["L-BFGS"] < soon["Newton-CG"] <= soon["Gauss-Newton"] < 300
    left = {
        order: [m["J - J*"] for m in numbers["methods"].values() if m["order"] == order]
        for order in range(3)
    }
    assert min(left[0]) > max(left[1]) > max(left[2])


CHECKS = {
    "gradient_descent": gradient_descent_is_as_drawn,
    "momentum": momentum_is_as_in_closed_form,
    "digits": digits_are_the_same_by_hand,
    "orders": orders_differ,
}


@pytest.mark.parametrize("steps", [100, 800])
def test_the_measured_rate_is_within_its_bound_of_the_closed_form(steps):
    """With M = V D V⁻¹ in (θ, trace), |M^n v| lies within σ_min ρ^n |w_1| .. σ_max ρ^n |w|, w = V⁻¹ v, w_1 along the largest eigenvalue."""
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
            momentum.measured_rate(eta, alpha, curvatures=momentum.ONE, steps=steps)
        )
    formula = momentum.closed_form_rate(eta, alpha, momentum.ONE)
    assert (np.abs(np.log(measured / formula)) <= bound + 1e-12).all()
    assert np.median(bound) < 8 / steps


def test_the_best_momentum_is_better_than_what_is_around_it():
    eta, alpha = momentum.best(momentum.RAVINE)
    least = momentum.closed_form_rate(eta, alpha, momentum.RAVINE)
    assert least == pytest.approx((5 - 1) / (5 + 1))
    around = [
        momentum.closed_form_rate(e * eta, a * alpha, momentum.RAVINE)
        for e in (0.95, 1, 1.02)
        for a in (0.95, 1, 1.05)
    ]
    assert min(around) == pytest.approx(least, abs=1e-6)


def test_noise_is_measured_as_its_formula_says():
    x = jax.random.normal(jax.random.key(0), (64, 3))
    found = gradient_descent.noise(lambda w, x: x @ w, jnp.zeros(3), (x,), 4000, jax.random.key(1))
    assert found.alone == pytest.approx(
        float(jnp.sqrt(((x - x.mean(0)) ** 2).sum(1).mean())), rel=1e-5
    )
    # 4000 draws of 3 independent coordinates: 1 / sqrt(2 x 3 x 4000) = 0.65 %, and four of those
    np.testing.assert_allclose(
        found.measured, found.alone * found.correction / np.sqrt(found.sizes), rtol=0.026
    )


@pytest.mark.slow
def test_hand_written_gradients_are_what_is_descended_on():
    data = dp.data.digits(size=16, flatten=True)
    task = digits.tasks(data, data.x_train, data.x_test)["2 or not 2"]
    wrong = task.cost._replace(
        backward=lambda params, kept, dy: task.cost.backward(params, kept, 2 * dy)
    )
    fits = [
        digits.fitted(task._replace(cost=wrong), by_hand, 0.2, jax.random.key(0))
        for by_hand in (True, False)
    ]
    assert digits.compared(*fits)["largest difference of a parameter"] > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("make", [digits.swapped, digits.cut_out, digits.shuffled, digits.overlaid])
def test_what_is_no_digit_is_made_of_digits(make):
    images = dp.data.digits(size=16).x_train[:20, ..., 0]
    made = make(images, jax.random.key(0))
    assert made.shape == images.shape
    assert 0 <= made.min() <= made.max() <= 1
    assert (jnp.abs(made - images).max((1, 2)) > 0.3).all()


@pytest.mark.slow
def test_every_evaluation_of_the_cost_is_counted(monkeypatch):
    """Each value, gradient and product runs through the divergence once, however it is asked for."""
    runs, plain = Counter(), optimizer_orders.divergence

    def counted(z, d):
        # An effect that is given nothing would be moved out of a loop.
        jax.debug.callback(lambda _: runs.update(["J"]), z[0])
        return plain(z, d)

    monkeypatch.setattr(optimizer_orders, "divergence", counted)
    x = jax.random.normal(jax.random.key(0), (64, 64))
    d = (x[:, 0] + 0.5 * x[:, 1] > 0).astype(jnp.float32)
    for name, method in optimizer_orders.methods(x, d).items():
        runs.clear()
        optimizer = recorded(method.optimizer, 3, optimizer_orders._searches)
        fit = dp.training.fit(
            method.loss,
            optimizer_orders.start(),
            (x, d),
            optimizer=optimizer,
            batch_size=method.batch,
            steps=3,
            key=jax.random.key(0),
        )
        jax.effects_barrier()
        asked = method.asked
        gradients = 3.0 if method.batch else 3 * asked.gradients
        searches = int(fit.state.optimizer.seen.sum())
        assert (searches > 0) == asked.searches
        assert runs["J"] == 3 * (asked.values + asked.products) + gradients + searches, name


def test_the_recorder_changes_nothing_and_keeps_what_was_seen():
    engines = [
        dp.descent.descent(lambda v, k: v**4, optimizer)
        for optimizer in (optax.adam(0.1), recorded(optax.adam(0.1), 5))
    ]
    plain, kept = (dp.descent.run(engine, 2.0, 5) for engine in engines)
    assert plain.variable == kept.variable
    np.testing.assert_allclose(kept.state.optimizer.seen**4, plain.costs, rtol=1e-6)
    seldom = dp.descent.run(
        dp.descent.descent(lambda v, k: v**4, recorded(optax.adam(0.1), 5, every=2)), 2.0, 5
    )
    np.testing.assert_array_equal(
        seldom.state.optimizer.seen, kept.state.optimizer.seen[np.array([1, 3, 4])]
    )
