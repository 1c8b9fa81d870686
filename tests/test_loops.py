"""The loop that is selected for a step, and the inputs of its steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffprog import _loops, backprop, models
from diffprog.descent import descent, run
from diffprog.program import program

IMAGES = jnp.ones((2, 8, 8, 1))
KERNEL = jnp.ones((3, 3, 1, 2))


def convolution(kernel, x):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def grouped_convolution(kernel, x):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        jnp.concatenate([x, x], -1),
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=layout,
        feature_group_count=2,
    )


def hand_written(kernel, x):
    layer = backprop.convolution(1, 2)
    return backprop.differentiable(layer)({"weight": kernel, "bias": jnp.zeros(2)}, x)


def gradient(f):
    return jax.make_jaxpr(jax.jit(jax.grad(lambda kernel: (f(kernel, IMAGES) ** 2).sum())))(KERNEL)


def test_only_autodiff_of_a_convolution_is_slow_in_a_loop():
    assert jax.default_backend() == "cpu"
    assert _loops.scan_is_fast(jax.make_jaxpr(convolution)(KERNEL, IMAGES))
    assert not _loops.scan_is_fast(gradient(convolution))
    assert _loops.scan_is_fast(gradient(hand_written))


@pytest.mark.parametrize(
    ("f", "loop"),
    [
        (grouped_convolution, "python_loop"),
        (convolution, "compiled_loop"),
        (hand_written, "compiled_loop"),
    ],
)
def test_run_selects_the_faster_loop(f, loop, monkeypatch):
    used = []
    for name in ("python_loop", "compiled_loop"):
        real = getattr(_loops, name)
        monkeypatch.setattr(
            _loops,
            name,
            lambda *args, name=name, real=real, **options: (
                used.append(name) or real(*args, **options)
            ),
        )
    run(descent(lambda kernel, k: (f(kernel, IMAGES) ** 2).mean(), optax.sgd(0.01)), KERNEL, 3)
    assert used == [loop]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [models.mlp((64, 8, 10)), models.cnn(channels=(2, 3), hidden=(4,))]
)
def test_models_train_in_a_compiled_loop(model):
    params = model.init(jax.random.key(0))
    x = IMAGES if "conv1" in params else IMAGES.reshape(2, 64)
    assert _loops.scan_is_fast(
        jax.make_jaxpr(jax.grad(lambda params: model.apply(params, x).sum()))(params)
    )


def test_step_inputs_take_at_most_what_is_left():
    assert _loops.StepInputs(10).take(8, 5)[1] == 2
    assert _loops.StepInputs(jnp.zeros((10, 3))).take(8, 5)[1] == 2
    inputs = _loops.StepInputs(iter(range(7)))
    assert inputs.first() == 0
    assert [inputs.take(0, 5), inputs.take(5, 5), inputs.take(7, 5)] == [
        ([0, 1, 2, 3, 4], 5),
        ([5, 6], 2),
        ([], 0),
    ]


def test_a_python_loop_continues_with_the_inputs_of_its_own_steps():
    step = program(lambda state, x: (state + x, state))
    xs = jnp.array([1.0, 10.0, 100.0, 1000.0])
    first = _loops.python_loop(step, _loops.Chunk(0, 2, jnp.zeros(()), xs), capacity=2)
    second = _loops.python_loop(step, _loops.Chunk(2, 4, first[0], xs), capacity=2)
    np.testing.assert_array_equal([*first[1], *second[1], second[0]], [0, 1, 11, 111, 1111])
