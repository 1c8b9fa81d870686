"""The engine: closed-form paths, the stopping rule of the lectures, both loops, and early stops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffprog import losses
from diffprog.descent import Descent, State, descent, run
from experiments.sources import golden

GOLDEN = golden()
every_loop = pytest.mark.parametrize("loop", ["device", "host"])


def quadratic(v, k):
    return 0.5 * jnp.sum(v**2)


@every_loop
def test_the_example_of_lecture_004_stops_after_69_steps(loop):
    example = GOLDEN["gd_convergence_rule"]
    with jax.enable_x64(True):
        inputs, true = example["inputs"], example["true"]
        result = run(
            descent(quadratic, optax.sgd(inputs["eta"])),
            inputs["theta0"],
            1000,
            until=inputs["eps"],
            loop=loop,
        )
        np.testing.assert_allclose(float(result.variable), true["final_theta"], rtol=1e-12)
        np.testing.assert_allclose(result.costs[-1], true["final_loss"], rtol=1e-12)
    assert (result.steps, result.ending, len(result.costs)) == (true["iterations"], "until", 70)
    assert "stopped at step 69" in str(result)


@every_loop
def test_momentum_equals_the_lecture(loop):
    inputs, true = GOLDEN["momentum_quadratic"]["inputs"], GOLDEN["momentum_quadratic"]["true"]
    with jax.enable_x64(True):
        engine = descent(
            lambda v, k: (quadratic(v, k), v), optax.sgd(inputs["eta"], momentum=inputs["alpha"])
        )
        result = run(engine, inputs["theta0"], 11, loop=loop)
    np.testing.assert_allclose(result.aux, true["theta"], rtol=1e-12)


@every_loop
def test_ascent_on_the_input_equals_the_lecture(loop):
    example = GOLDEN["unit_visualisation_linear"]
    with jax.enable_x64(True):
        w, lam = jnp.array(example["inputs"]["w"]), example["inputs"]["lam"]
        engine = descent(
            lambda x, k: (-(w @ x - lam * quadratic(x, k)), x), optax.sgd(example["inputs"]["eta"])
        )
        result = run(engine, jnp.zeros(3), 500, loop=loop)
    np.testing.assert_allclose(result.aux[:4], example["true"]["iterates"], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(result.variable, example["true"]["fixed_point"], rtol=1e-9)


@every_loop
def test_a_cost_that_changes_by_exactly_until_ends_the_run(loop):
    line = descent(lambda v, k: v, optax.sgd(0.5))  # each step lowers the cost by 1/2
    assert run(line, 8.0, 9, until=0.5, loop=loop).ending == "until"
    assert run(line, 8.0, 9, until=0.49, loop=loop).ending == "steps"


@pytest.mark.parametrize("steps", [1, 31, 32, 33, 300])
def test_both_loops_give_the_same_result(steps):
    batches = np.random.default_rng(0).normal(size=(steps, 4, 3))
    engine = descent(
        lambda v, x: (jnp.tanh(x @ v) ** 2).mean() + 0.1 * quadratic(v, x), optax.adam(0.05)
    )
    with jax.enable_x64(True):
        device, host = (run(engine, np.ones(3), batches, loop=loop) for loop in ("device", "host"))
    np.testing.assert_allclose(device.costs, host.costs, rtol=1e-11)
    np.testing.assert_allclose(device.variable, host.variable, rtol=1e-11)
    assert len(device.costs) == device.steps == host.steps == steps


def test_an_iterator_gives_the_same_result_as_arrays():
    batches = jax.random.normal(jax.random.key(0), (70, 4, 3))
    engine = descent(lambda v, x: jnp.mean((x @ v - 1) ** 2), optax.sgd(0.1))
    arrays, iterator = (
        run(engine, jnp.ones(3), batches, loop="host"),
        run(engine, jnp.ones(3), iter(batches)),
    )
    np.testing.assert_array_equal(arrays.costs, iterator.costs)
    assert iterator.steps == 70


def test_a_run_continues_from_a_state():
    engine = descent(quadratic, optax.adam(0.1))
    full, half = run(engine, jnp.ones(3), 20), run(engine, jnp.ones(3), 10)
    np.testing.assert_array_equal(run(engine, half.state, 10).variable, full.variable)


@every_loop
@pytest.mark.parametrize("bad", [0, 1, 31, 32, 33, 50])
def test_a_nonfinite_cost_stops_the_run_at_the_last_finite_variable(loop, bad):
    xs = jnp.arange(60.0)
    engine = descent(lambda v, x: jnp.where(x == bad, jnp.nan, quadratic(v, x)), optax.sgd(0.1))
    result = run(engine, 1.0, xs, loop=loop)
    assert (result.ending, len(result.costs) - 1, result.steps) == (
        "nonfinite",
        bad,
        max(bad - 1, 0),
    )
    assert np.isnan(result.costs[-1])
    assert np.isfinite(result.costs[:-1]).all()
    np.testing.assert_allclose(float(result.variable), 0.9**result.steps, rtol=1e-5)
    assert f"stopped at step {bad}, where the cost or the next variable is not finite" in str(
        result
    )


def test_divergence_stops_the_run():
    result = run(descent(lambda v, k: jnp.sum(v**4), optax.sgd(1.0)), 2.0, 100)
    assert result.ending == "nonfinite"
    assert np.isfinite(result.variable)


@every_loop
@pytest.mark.parametrize("steps", [1, 32, 33])
def test_a_last_step_to_infinity_is_undone(steps, loop):
    slopes = jnp.full(steps, 0.001).at[-1].set(3e38)
    result = run(descent(lambda v, slope: slope * v, optax.sgd(10.0)), 1.0, slopes, loop=loop)
    assert (result.ending, result.steps, len(result.costs)) == ("nonfinite", steps - 1, steps)
    assert np.isfinite(result.costs).all()
    np.testing.assert_allclose(float(result.variable), 1 - 0.01 * (steps - 1), rtol=1e-5)


def test_the_projection_holds_after_every_step():
    engine = descent(
        lambda v, k: (jnp.sum((v - 2) ** 2), v),
        optax.sgd(0.3),
        project=lambda v: jnp.clip(v, -1, 1),
    )
    result = run(engine, jnp.zeros(3), 10)
    assert result.aux.max() <= 1
    np.testing.assert_array_equal(result.variable, 1)


@pytest.mark.slow
@every_loop
@pytest.mark.parametrize(
    "optimizer",
    [optax.lbfgs(), optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10))],
    ids=["lbfgs", "line search"],
)
def test_line_searches_get_their_extra_arguments(optimizer, loop):
    matrix = jnp.diag(jnp.array([1.0, 10.0, 100.0]))
    result = run(
        descent(lambda v, k: 0.5 * v @ matrix @ v - v.sum(), optimizer),
        jnp.ones(3),
        100,
        until=0.0,
        loop=loop,
    )
    np.testing.assert_allclose(result.costs[-1], -0.555, rtol=0.02)


@pytest.mark.parametrize(
    "optimizer",
    [optax.noisy_sgd(0.1, key=0), optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.01))],
    ids=["key", "sam"],
)
def test_optimizers_with_other_signatures_run(optimizer):
    assert run(descent(quadratic, optimizer), jnp.ones(3), 3).ending == "steps"


def test_a_label_out_of_range_stops_the_run():
    cost = lambda w, y: losses.softmax_cross_entropy(jnp.ones((2, 3)) @ w, y).mean()
    result = run(descent(cost, optax.sgd(0.1)), jnp.ones((3, 2)), jnp.array([[0, 1], [0, -1]]))
    assert (result.ending, len(result.costs)) == ("nonfinite", 2)


def test_a_variable_can_be_any_pytree():
    result = run(
        descent(lambda v, k: quadratic(v["a"], k) + quadratic(v["b"][0], k), optax.sgd(0.5)),
        {"a": 1.0, "b": [np.ones((2, 2), np.float32)]},
        2,
    )
    assert jax.tree.map(jnp.shape, result.variable) == {"a": (), "b": [(2, 2)]}
    np.testing.assert_allclose(result.variable["b"][0], 0.25)


def test_with_a_count_each_step_gets_its_number():
    result = run(descent(lambda v, k: v * (k + 1), optax.sgd(1.0)), 0.0, 5)
    assert float(result.variable) == -15


def test_zero_steps_return_the_start():
    result = run(descent(quadratic, optax.sgd(0.1)), 3.0, 0)
    assert (float(result.variable), result.steps, len(result.costs), result.ending) == (
        3,
        0,
        0,
        "steps",
    )


def make_descent(weight, calls=None):
    """A new descent whose cost has an array in its closure."""

    def cost(v, k):
        if calls is not None:
            calls.append(1)
        return jnp.sum((v - weight) ** 2)

    return descent(cost, optax.adam(0.1))


@every_loop
def test_runs_of_one_structure_are_traced_once(loop):
    jax.clear_caches()
    calls = []
    for weight, steps in ((1.0, 40), (2.0, 40), (3.0, 7), (4.0, 300)):
        run(make_descent(jnp.full(4, weight), calls), jnp.zeros(4), steps, loop=loop)
    assert len(calls) == 1


def test_each_run_uses_its_own_arrays():
    results = [
        run(make_descent(jnp.full(2, weight)), jnp.zeros(2), 300).variable for weight in (1.0, 2.0)
    ]
    np.testing.assert_allclose(results, [[1, 1], [2, 2]], rtol=1e-3)


def test_init_and_step_work_in_a_custom_loop():
    engine = descent(quadratic, optax.sgd(0.1))
    state, infos = jax.vmap(lambda v: jax.lax.scan(engine.step, engine.init(v), jnp.arange(5)))(
        jnp.array([1.0, 2.0])
    )
    np.testing.assert_allclose(state.variable, [0.9**5, 2 * 0.9**5], rtol=1e-6)
    assert infos.cost.shape == (2, 5)


def test_the_progress_bar_is_off_by_default(capfd):
    run(descent(quadratic, optax.sgd(0.1)), 1.0, 5)
    assert capfd.readouterr().err == ""
    run(descent(quadratic, optax.sgd(0.1)), 1.0, 5, progress=True)
    assert "5/5" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("quadratic", optax.sgd(0.1)), TypeError, "cost must be callable, got str"),
        ((quadratic, 0.1), TypeError, "optimizer must be an optax optimizer, got float"),
        (
            (quadratic, optax.MultiSteps(optax.sgd(0.1), 2)),
            TypeError,
            r"got MultiSteps; pass its \.gradient_transformation",
        ),
        ((quadratic, optax.sgd(0.1), "box"), TypeError, "project must be callable, got str"),
    ],
)
def test_invalid_arguments_of_descent_raise(arguments, error, message):
    with pytest.raises(error, match=message):
        descent(*arguments)


SGD = descent(quadratic, optax.sgd(0.1))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((quadratic, 1.0, 3), {}, TypeError, "descent must be a Descent, got function"),
        (
            (SGD, jnp.array([1.0, jnp.nan]), 3),
            {},
            ValueError,
            r"start must be finite, got 1 NaN or infinite of 2 values, the first at index \(1,\)",
        ),
        ((SGD, {"a": jnp.inf}, 3), {}, ValueError, r"start\['a'\] must be finite"),
        ((SGD, jnp.ones(2, int), 3), {}, TypeError, r"start must be a float array, got int32\[2\]"),
        (
            (SGD, jnp.ones((0,)), 3),
            {},
            ValueError,
            "start must hold numbers, got an array of size 0",
        ),
        (
            (SGD, State(jnp.ones(2), None), 3),
            {},
            ValueError,
            "start must be a State of this descent",
        ),
        (
            (descent(quadratic, optax.sgd(0.1), lambda v: [v]), jnp.ones(2), 3),
            {},
            ValueError,
            "optimizer and project must keep the structure",
        ),
        (
            (
                descent(quadratic, optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()),
                1.0,
                "abc",
            ),
            {},
            TypeError,
            "xs must be an array",
        ),
        ((SGD, {}, 3), {}, ValueError, "start must hold at least one array"),
        ((SGD, "start", 3), {}, TypeError, "start must be an array, got str"),
        ((SGD, 1.0, -1), {}, ValueError, "xs must be an integer >= 0, got -1"),
        ((SGD, 1.0, 2.5), {}, ValueError, "xs must have a leading axis"),
        ((SGD, 1.0, jnp.zeros((0, 3))), {}, ValueError, "xs must not be empty"),
        (
            (SGD, 1.0, (jnp.zeros(2), jnp.zeros(3))),
            {},
            ValueError,
            r"leading axes must agree, got xs\[0\]: 2, xs\[1\]: 3",
        ),
        ((SGD, 1.0, jnp.array([0, jnp.nan])), {}, ValueError, "xs must be finite"),
        ((SGD, 1.0, iter([])), {}, ValueError, "xs must hold at least one batch"),
        (
            (SGD, 1.0, 3),
            {"until": -1.0},
            ValueError,
            "until must be a finite number >= 0, got -1.0",
        ),
        ((SGD, 1.0, 3), {"until": float("nan")}, ValueError, "until must be a finite number"),
        (
            (SGD, 1.0, 3),
            {"loop": "scan"},
            ValueError,
            "loop must be one of 'auto', 'device', 'host', got 'scan'",
        ),
        (
            (SGD, 1.0, iter([1.0])),
            {"loop": "device"},
            ValueError,
            "loop must be 'auto' or 'host' for an iterator",
        ),
        (
            (descent(lambda v, k: v, optax.sgd(0.1)), jnp.ones(2), 3),
            {},
            ValueError,
            r"cost must return one float scalar, got float32\[2\]",
        ),
        (
            (descent(lambda v, k: jnp.sum(v > 0), optax.sgd(0.1)), jnp.ones(2), 3),
            {},
            ValueError,
            r"cost must return one float scalar, got int32\[\]",
        ),
        (
            (descent(quadratic, optax.sgd(0.1), lambda v: v[:1]), jnp.ones(2), 3),
            {},
            ValueError,
            "optimizer and project must keep the shapes",
        ),
        (
            (descent(quadratic, optax.sgd(0.1), lambda v: v.astype(jnp.float16)), jnp.ones(2), 3),
            {},
            ValueError,
            "optimizer and project must keep",
        ),
    ],
)
def test_invalid_arguments_of_run_raise(arguments, options, error, message):
    with pytest.raises(error, match=message):
        run(*arguments, **options)


def test_run_raises_for_a_traced_start():
    with pytest.raises(
        TypeError, match=r"start must have values, got a traced array.*descent\.step"
    ):
        jax.jit(lambda v: run(SGD, v, 3).variable)(1.0)


def test_run_raises_for_traced_xs():
    with pytest.raises(TypeError, match="xs must have values, got a traced array"):
        jax.jit(lambda xs: run(SGD, 1.0, xs).variable)(jnp.arange(3.0))


def test_a_descent_has_init_and_step():
    assert Descent._fields == ("init", "step")
    assert isinstance(SGD.init(jnp.ones(2)), State)
