"""Gradients against closed forms, against each other, and against central differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import gradients, models, program, tap
from experiments.sources import golden

GOLDEN = golden()
MODEL = models.mlp((3, 5, 2), activation="tanh")
PARAMS = MODEL.init(jax.random.key(0))
X, Y = jax.random.normal(jax.random.key(1), (4, 3)), jax.random.normal(jax.random.key(2), (4, 2))


def cost(params, x, y):
    return ((MODEL.apply(params, x) - y) ** 2).sum()


def assert_close(got, expected, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, expected
    )


def test_wrt_params_and_wrt_input_equal_jax_grad():
    assert_close(gradients.wrt_params(cost)(PARAMS, X, Y), jax.grad(cost)(PARAMS, X, Y))
    assert_close(gradients.wrt_input(cost)(PARAMS, X, Y), jax.grad(cost, 1)(PARAMS, X, Y))


def test_numerical_approximates_the_gradient():
    assert_close(
        gradients.numerical(lambda params: cost(params, X, Y))(PARAMS),
        gradients.wrt_params(cost)(PARAMS, X, Y),
        1e-4,
    )
    assert_close(
        gradients.numerical(lambda x: cost(PARAMS, x, Y))(X),
        gradients.wrt_input(cost)(PARAMS, X, Y),
        1e-4,
    )


def test_numerical_has_eight_digits_in_float64():
    with jax.enable_x64(True):
        x = jnp.array([1e-3, 1.0, 5.0])
        np.testing.assert_allclose(
            gradients.numerical(lambda x: jnp.sin(x).sum())(x), jnp.cos(x), rtol=1e-8
        )


def test_numerical_has_ten_digits_at_large_inputs_of_either_sign():
    with jax.enable_x64(True):
        cube = gradients.numerical(lambda x: x**3)
        for x in (1e3, -1e3, -1e6):
            np.testing.assert_allclose(cube(jnp.float64(x)), 3 * x**2, rtol=1e-10)


def test_wrt_nodes_gives_the_adjoints():
    adjoints = gradients.wrt_nodes(cost)(PARAMS, X, Y)
    assert list(adjoints) == ["affine1", "hidden1", "logits"]
    assert_close(adjoints["logits"], 2 * (MODEL.apply(PARAMS, X) - Y))
    assert_close(adjoints["hidden1"], adjoints["logits"] @ PARAMS["logits"]["weight"])
    assert_close(gradients.wrt_nodes(cost, "logits")(PARAMS, X, Y), {"logits": adjoints["logits"]})


def test_wrt_nodes_sums_over_paths():
    adjoints = gradients.wrt_nodes(lambda x: (lambda h: h * h + 3 * h)(tap(x * 2, "h")))(
        jnp.float32(1)
    )
    np.testing.assert_allclose(adjoints["h"], 7)


def test_wrt_nodes_skips_taps_without_an_adjoint():
    adjoints = gradients.wrt_nodes(lambda x: (tap(x, "h") * tap(jnp.argmax(x), "i")).sum())(
        jnp.array([1.0, 2.0])
    )
    assert_close(adjoints, {"h": jnp.ones(2)})


def test_numerical_of_a_python_number_is_float32():
    assert gradients.numerical(lambda x: x**2)(3.0).dtype == jnp.float32


def test_per_example_sums_to_the_gradient_of_the_sum():
    per_example = gradients.per_example(cost)(PARAMS, X, Y)
    assert_close(
        jax.tree.map(lambda leaf: leaf.sum(0), per_example),
        gradients.wrt_params(cost)(PARAMS, X, Y),
    )
    assert_close(
        jax.tree.map(lambda leaf: leaf[2], per_example), jax.grad(cost)(PARAMS, X[2:3], Y[2:3])
    )


def test_jacobian_has_the_numerator_layout_of_the_lecture():
    true = GOLDEN["numerator_layout_shapes"]["true"]
    u, x = jnp.ones(2), jnp.ones(4)
    assert list(gradients.jacobian(lambda u: u.sum())(u).shape) == true["dz_du_shape"]
    assert (
        list(gradients.jacobian(lambda x: jnp.stack([x.sum(), x.prod()]))(x).shape)
        == true["du_dx_shape"]
    )
    assert list(gradients.jacobian(lambda x: x.sum())(x).shape) == true["dz_dx_shape"]
    assert (
        list(gradients.jacobian(lambda matrix: matrix.sum())(jnp.ones((3, 5))).shape)
        == true["dy_dX_shape_for_X_3_by_5"]
    )


def test_jacobians_multiply_along_a_chain():
    example = GOLDEN["lecture_dims_chain"]
    outer, inner = jnp.array(example["inputs"]["J1"]), jnp.array(example["inputs"]["J2"])
    x = jnp.ones(inner.shape[1])
    chained = gradients.jacobian(lambda x: outer @ (inner @ x))(x)
    assert_close(chained, jnp.array(example["true"]["product"]))
    assert_close(
        chained,
        gradients.jacobian(lambda u: outer @ u)(inner @ x)
        @ gradients.jacobian(lambda x: inner @ x)(x),
    )


def test_jacobians_with_a_matrix_follow_the_numerator_layout():
    weight = jnp.arange(6.0).reshape(2, 3)
    assert_close(
        gradients.jacobian(lambda matrix: (matrix * weight).sum())(jnp.ones((2, 3))), weight.T
    )
    assert_close(gradients.jacobian(lambda t: t * weight)(jnp.float32(2)), weight)


def test_softmax_jacobian_equals_lecture_004():
    example = GOLDEN["softmax_jacobian"]
    with jax.enable_x64(True):
        assert_close(
            gradients.jacobian(jax.nn.softmax)(jnp.array(example["inputs"]["z"])),
            jnp.array(example["true"]["J"]),
            1e-12,
        )


def test_hessian_and_hvp_equal_jax_hessian():
    f = lambda x: jnp.sin(x[0]) * x[1] ** 2 + jnp.exp(x @ x)
    x, v = jnp.array([0.3, -0.2]), jnp.array([1.0, 2.0])
    assert_close(gradients.hessian(f)(x), jax.hessian(f)(x))
    assert_close(gradients.hvp(f)(x, v), jax.hessian(f)(x) @ v)


def test_hvp_through_hand_written_layers_is_symmetric():
    f = lambda params: cost(params, X, Y)
    u, v = (
        jax.tree.map(
            lambda leaf, s=s: jnp.sin(s * jnp.arange(leaf.size).reshape(leaf.shape)), PARAMS
        )
        for s in (1.0, 2.0)
    )
    dot = lambda a, b: sum(
        jnp.vdot(*pair) for pair in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    np.testing.assert_allclose(
        dot(u, gradients.hvp(f)(PARAMS, v)), dot(v, gradients.hvp(f)(PARAMS, u)), rtol=1e-4
    )


def test_functions_of_one_structure_are_traced_once():
    jax.clear_caches()
    calls = []

    def scaled(factor):
        def f(params, x):
            calls.append(1)
            return (params * x * factor).sum()

        return f

    for factor in (1.0, 2.0, 3.0):
        got = gradients.wrt_params(scaled(jnp.full(3, factor)))(jnp.ones(3), jnp.ones(3))
        assert_close(got, jnp.full(3, factor))
    assert len(calls) == 1


def test_gradients_nest_in_jit_vmap_and_grad():
    nested = jax.jit(jax.vmap(lambda x: gradients.hvp(lambda v: (v**3).sum())(x, jnp.ones(3))))(X)
    assert_close(nested, 6 * X)
    assert_close(
        jax.grad(lambda x: gradients.wrt_params(lambda v: (v**3).sum())(x).sum())(X[0]), 6 * X[0]
    )
    assert_close(
        jax.jit(gradients.wrt_nodes(cost))(PARAMS, X, Y), gradients.wrt_nodes(cost)(PARAMS, X, Y)
    )


def test_programs_are_accepted():
    model = program(MODEL.apply, PARAMS)
    assert_close(
        gradients.numerical(lambda x: model(x).sum())(X),
        jax.grad(lambda x: model(x).sum())(X),
        1e-4,
    )


NAN = jnp.array([1.0, jnp.nan])
SQUARE = lambda x: (x**2).sum()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gradients.wrt_params("cost"), TypeError, "cost must be callable, got str"),
        (lambda: gradients.wrt_input(None), TypeError, "cost must be callable"),
        (lambda: gradients.wrt_nodes(3), TypeError, "f must be callable"),
        (
            lambda: gradients.wrt_params(SQUARE)(NAN),
            ValueError,
            "params must be finite, got 1 NaN or infinite of 2",
        ),
        (
            lambda: gradients.wrt_params(SQUARE)(jnp.ones(2, int)),
            TypeError,
            "params must be a float array, got int32",
        ),
        (lambda: gradients.wrt_params(SQUARE)(), TypeError, "expected at least 1 arguments, got 0"),
        (
            lambda: gradients.wrt_params(lambda x: x)(jnp.ones(2)),
            ValueError,
            r"cost must return one float scalar, got float32\[2\]",
        ),
        (
            lambda: gradients.wrt_input(SQUARE)(jnp.ones(2)),
            TypeError,
            "expected at least 2 arguments, got 1",
        ),
        (
            lambda: gradients.wrt_input(cost)(PARAMS, X.at[0, 0].set(jnp.nan), Y),
            ValueError,
            "x must be finite",
        ),
        (
            lambda: gradients.wrt_input(cost)(PARAMS, X[:0], Y[:0]),
            ValueError,
            "x must not be empty",
        ),
        (
            lambda: gradients.wrt_params(cost)(PARAMS, X, Y.at[0, 0].set(jnp.inf)),
            ValueError,
            "y must be finite",
        ),
        (
            lambda: gradients.wrt_nodes(cost, 3),
            TypeError,
            "names must be a sequence of strings, got 3",
        ),
        (
            lambda: gradients.per_example(cost)(PARAMS),
            TypeError,
            "expected at least 2 arguments, got 1",
        ),
        (
            lambda: gradients.jacobian(lambda x: x > 0)(jnp.ones(2)),
            TypeError,
            r"f\(x\) must be a float array, got bool\[2\]",
        ),
        (
            lambda: gradients.hvp(SQUARE)(jnp.ones(2), jnp.ones(2, jnp.float16)),
            TypeError,
            "x and v must share their dtypes",
        ),
        (
            lambda: gradients.wrt_nodes(cost, ["hidden9"])(PARAMS, X, Y),
            ValueError,
            "hidden9.*hidden1",
        ),
        (
            lambda: gradients.wrt_nodes(MODEL.apply)(PARAMS, X),
            ValueError,
            "f must return one float scalar",
        ),
        (
            lambda: gradients.wrt_nodes(cost)(PARAMS, X, jnp.full((4, 2), jnp.inf)),
            ValueError,
            r"args\[2\] must be finite",
        ),
        (
            lambda: gradients.per_example(cost)(PARAMS, X, Y[:2]),
            ValueError,
            "leading axes must agree, got xs: 4, ys: 2",
        ),
        (
            lambda: gradients.per_example(cost)(PARAMS, X[:0], Y[:0]),
            ValueError,
            "must not be empty",
        ),
        (lambda: gradients.jacobian(jnp.sin)(NAN), ValueError, "x must be finite"),
        (
            lambda: gradients.jacobian(jnp.sin)(jnp.ones((2, 2))),
            ValueError,
            "got y of rank 2 by x of rank 2",
        ),
        (
            lambda: gradients.jacobian(jnp.sin)(jnp.ones((2, 2, 2))),
            ValueError,
            "x must have rank 0 or 1 or 2",
        ),
        (lambda: gradients.hessian(SQUARE)(jnp.ones((2, 2))), ValueError, "x must have rank 1"),
        (
            lambda: gradients.hessian(jnp.sin)(jnp.ones(2)),
            ValueError,
            "f must return one float scalar",
        ),
        (
            lambda: gradients.hvp(SQUARE)(jnp.ones(2), jnp.ones(3)),
            ValueError,
            r"shapes must agree, got x: \[2\], v: \[3\]",
        ),
        (
            lambda: gradients.hvp(SQUARE)(jnp.ones(2), (jnp.ones(2),)),
            ValueError,
            "structures must agree",
        ),
        (lambda: gradients.hvp(SQUARE)(jnp.ones(2), NAN), ValueError, "v must be finite"),
        (lambda: gradients.numerical(SQUARE)(NAN), ValueError, "x must be finite"),
        (
            lambda: gradients.numerical(SQUARE)(jnp.ones(2, int)),
            TypeError,
            "x must be a float array",
        ),
        (
            lambda: gradients.numerical(jnp.sin)(jnp.ones(2)),
            ValueError,
            "f must return one float scalar",
        ),
    ],
)
def test_invalid_arguments_raise(call, error, message):
    with pytest.raises(error, match=message):
        call()
