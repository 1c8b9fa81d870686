"""Argument checks: valid arguments pass, invalid ones raise one sentence, traced values pass."""

import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import _validation

NAN, INF = float("nan"), float("inf")
FLOATS, INTEGERS = np.ones((2, 3), np.float32), np.array([0, 1, 2])

VALID = {
    "array: jax": lambda: _validation.array("x", jnp.ones(3)),
    "array: number": lambda: _validation.array("x", 1.5),
    "floating: any rank": lambda: _validation.floating("x", FLOATS),
    "floating: number": lambda: _validation.floating("x", 1.5, rank=0),
    "floating: bfloat16": lambda: _validation.floating("x", jnp.ones(3, jnp.bfloat16), rank=1),
    "floating: one of two ranks": lambda: _validation.floating("x", FLOATS, rank=(2, 4)),
    "floating_leaves": lambda: _validation.floating_leaves("params", {"w": FLOATS, "b": 0.5}),
    "finite": lambda: _validation.finite("x", {"a": FLOATS, "b": INTEGERS, "c": 1.0}),
    "finite: largest half": lambda: _validation.finite("x", np.array([65504], np.float16)),
    "finite: bfloat16": lambda: _validation.finite("x", jnp.array([1e38], jnp.bfloat16)),
    "finite: key": lambda: _validation.finite("key", jax.random.key(0)),
    "finite: only a shape": lambda: _validation.finite("x", jax.ShapeDtypeStruct((3,), "float32")),
    "same_shape": lambda: _validation.same_shape(x=FLOATS, r=jnp.zeros((2, 3))),
    "labels": lambda: _validation.labels("y", INTEGERS, 3),
    "labels: unsigned": lambda: _validation.labels("y", INTEGERS.astype(np.uint8), 300),
    "labels: empty": lambda: _validation.labels("y", INTEGERS[:0], 3),
    "labels: only a shape": lambda: _validation.labels("y", jax.ShapeDtypeStruct((3,), "int32"), 3),
    "within": lambda: _validation.within("x", FLOATS, 0, 1),
    "within: bounds rounded to the dtype": lambda: _validation.within(
        "x", np.array([0.1], np.float32), 0.1, 0.3
    ),
    "choice": lambda: _validation.choice("norm", "l2", ["linf", "l2"]),
    "choice: from a dict": lambda: _validation.choice("norm", "l2", {"linf": 1, "l2": 2}),
    "scalar": lambda: _validation.scalar("cost", jax.eval_shape(jnp.sum, FLOATS)),
}

INVALID = {
    "array: list": (
        lambda: _validation.array("x", [1.0]),
        TypeError,
        "x must be an array, got list",
    ),
    "floating: integers": (
        lambda: _validation.floating("x", INTEGERS),
        TypeError,
        "x must be a float array, got int64[3]",
    ),
    "floating: bool": (
        lambda: _validation.floating("x", True),
        TypeError,
        "x must be a float array, got bool[]",
    ),
    "floating: complex": (
        lambda: _validation.floating("x", np.ones(2, complex)),
        TypeError,
        "x must be a float array, got complex128[2]",
    ),
    "floating: rank": (
        lambda: _validation.floating("x", FLOATS, rank=4),
        ValueError,
        "x must have rank 4, got float32[2, 3]",
    ),
    "floating: ranks": (
        lambda: _validation.floating("x", FLOATS, rank=(3, 4)),
        ValueError,
        "x must have rank 3 or 4, got float32[2, 3]",
    ),
    "floating_leaves: empty": (
        lambda: _validation.floating_leaves("params", {}),
        ValueError,
        "params must hold at least one array, got {}",
    ),
    "floating_leaves: named leaf": (
        lambda: _validation.floating_leaves("params", {"w": FLOATS, "n": INTEGERS}),
        TypeError,
        "params['n'] must be a float array, got int64[3]",
    ),
    "finite: nan": (
        lambda: _validation.finite("x", np.array([[1, 2], [NAN, INF]])),
        ValueError,
        "x must be finite, got 2 NaN or infinite of 4 values, the first at index (1, 0)",
    ),
    "finite: named leaf": (
        lambda: _validation.finite("params", [FLOATS, {"b": jnp.array([0, INF])}]),
        ValueError,
        "params[1]['b'] must be finite, got 1 NaN or infinite of 2 values, the first at index (1,)",
    ),
    "finite: bfloat16": (
        lambda: _validation.finite("x", jnp.array([0, NAN], jnp.bfloat16)),
        ValueError,
        "x must be finite, got 1 NaN or infinite of 2 values, the first at index (1,)",
    ),
    "finite: imaginary part": (
        lambda: _validation.finite("x", np.array([complex(1, NAN)])),
        ValueError,
        "x must be finite, got 1 NaN or infinite of 1 values, the first at index (0,)",
    ),
    "finite: number": (
        lambda: _validation.finite("x", INF),
        ValueError,
        "x must be finite, got 1 NaN or infinite of 1 values, the first at index ()",
    ),
    "finite: text": (
        lambda: _validation.finite("x", ["text"]),
        TypeError,
        "x[0] must be an array, got str",
    ),
    "batch: scalar": (
        lambda: _validation.batch(x=1.0),
        ValueError,
        "x must have a leading axis of examples, got a scalar",
    ),
    "batch: mismatch": (
        lambda: _validation.batch(x=FLOATS, y=INTEGERS),
        ValueError,
        "leading axes must agree, got x: 2, y: 3",
    ),
    "batch: empty": (
        lambda: _validation.batch(x=FLOATS[:0]),
        ValueError,
        "x must not be empty, got a leading axis of 0",
    ),
    "batch: no array": (
        lambda: _validation.batch(x=(), y={}),
        ValueError,
        "x and y must hold at least one array",
    ),
    "batch: text": (
        lambda: _validation.batch(x={"a": "text"}),
        TypeError,
        "x['a'] must be an array, got str",
    ),
    "same_shape": (
        lambda: _validation.same_shape(x=FLOATS, r=INTEGERS),
        ValueError,
        "shapes must agree, got x: [2, 3], r: [3]",
    ),
    "labels: floats": (
        lambda: _validation.labels("y", np.ones(3), 3),
        TypeError,
        "y must be integer labels of shape (batch,), got float64[3]",
    ),
    "labels: one-hot": (
        lambda: _validation.labels("y", np.eye(3, dtype=int), 3),
        TypeError,
        "y must be integer labels of shape (batch,), got int64[3, 3]",
    ),
    "labels: too large": (
        lambda: _validation.labels("y", INTEGERS, 2),
        ValueError,
        "y must lie in 0 .. 1, got values from 0 to 2",
    ),
    "labels: negative": (
        lambda: _validation.labels("y", INTEGERS - 1, 3),
        ValueError,
        "y must lie in 0 .. 2, got values from -1 to 1",
    ),
    "within: above": (
        lambda: _validation.within("x", 255 * FLOATS, 0, 1),
        ValueError,
        "x must lie in 0 .. 1, got values from 255.0 to 255.0",
    ),
    "within: below": (
        lambda: _validation.within("x", -FLOATS, 0, 1),
        ValueError,
        "x must lie in 0 .. 1, got values from -1.0 to -1.0",
    ),
    "bounds: one number": (
        lambda: _validation.bounds("bounds", 1.0),
        TypeError,
        "bounds must be a pair of numbers (low, high), got 1.0",
    ),
    "bounds: three": (
        lambda: _validation.bounds("bounds", (0, 1, 2)),
        TypeError,
        "bounds must be a pair of numbers (low, high), got (0, 1, 2)",
    ),
    "bounds: infinite": (
        lambda: _validation.bounds("bounds", (0, INF)),
        ValueError,
        "bounds[1] must be a finite number, got inf",
    ),
    "bounds: reversed": (
        lambda: _validation.bounds("bounds", (1, 0)),
        ValueError,
        "bounds must be (low, high) with low < high, got (1, 0)",
    ),
    "number: text": (
        lambda: _validation.number("epsilon", "1"),
        TypeError,
        "epsilon must be a number, got str",
    ),
    "number: bool": (
        lambda: _validation.number("epsilon", True),
        TypeError,
        "epsilon must be a number, got bool",
    ),
    "number: nan": (
        lambda: _validation.number("epsilon", NAN),
        ValueError,
        "epsilon must be a finite number, got nan",
    ),
    "number: infinite": (
        lambda: _validation.number("epsilon", INF, low=0),
        ValueError,
        "epsilon must be a finite number >= 0, got inf",
    ),
    "number: low": (
        lambda: _validation.number("epsilon", -1, low=0),
        ValueError,
        "epsilon must be a finite number >= 0, got -1",
    ),
    "number: above": (
        lambda: _validation.number("rate", 0, above=0, high=1),
        ValueError,
        "rate must be a finite number > 0 and <= 1, got 0",
    ),
    "integer: float": (
        lambda: _validation.integer("steps", 3.0, low=0),
        TypeError,
        "steps must be an integer, got float",
    ),
    "integer: bool": (
        lambda: _validation.integer("steps", True, low=0),
        TypeError,
        "steps must be an integer, got bool",
    ),
    "integer: low": (
        lambda: _validation.integer("steps", -1, low=0),
        ValueError,
        "steps must be an integer >= 0, got -1",
    ),
    "integers: one number": (
        lambda: _validation.integers("sizes", 3),
        ValueError,
        "sizes must be 0 or more positive integers, got 3",
    ),
    "integers: text": (
        lambda: _validation.integers("sizes", "34"),
        ValueError,
        "sizes must be 0 or more positive integers, got '34'",
    ),
    "integers: too few": (
        lambda: _validation.integers("sizes", (3,), least=2),
        ValueError,
        "sizes must be 2 or more positive integers, got (3,)",
    ),
    "integers: too many": (
        lambda: _validation.integers("sizes", (1, 2, 3), least=1, most=2),
        ValueError,
        "sizes must be 1 to 2 positive integers, got (1, 2, 3)",
    ),
    "integers: exactly two": (
        lambda: _validation.integers("window", (1,), least=2, most=2),
        ValueError,
        "window must be 2 positive integers, got (1,)",
    ),
    "integers: zero": (
        lambda: _validation.integers("sizes", (3, 0)),
        ValueError,
        "sizes[1] must be an integer >= 1, got 0",
    ),
    "integers: float": (
        lambda: _validation.integers("sizes", [3, 2.5]),
        TypeError,
        "sizes[1] must be an integer, got float",
    ),
    "choice": (
        lambda: _validation.choice("norm", "l3", ["linf", "l2"]),
        ValueError,
        "norm must be one of 'linf', 'l2', got 'l3'",
    ),
    "choice: array": (
        lambda: _validation.choice("norm", np.array([1, 2]), ["linf", "l2"]),
        ValueError,
        "norm must be one of 'linf', 'l2', got array([1, 2])",
    ),
    "function": (
        lambda: _validation.function("cost", 3),
        TypeError,
        "cost must be callable, got int",
    ),
    "scalar: vector": (
        lambda: _validation.scalar("cost", jax.ShapeDtypeStruct((5,), "float32")),
        ValueError,
        "cost must return one float scalar, got float32[5]; sum or average over the examples",
    ),
    "scalar: integer": (
        lambda: _validation.scalar("cost", jax.ShapeDtypeStruct((), "int32")),
        ValueError,
        "cost must return one float scalar, got int32[]; sum or average over the examples",
    ),
    "scalar: pair": (
        lambda: _validation.scalar("cost", (1, 2)),
        ValueError,
        "cost must return one float scalar, got tuple; sum or average over the examples",
    ),
}


@pytest.mark.parametrize("check", VALID.values(), ids=VALID)
def test_valid_arguments_pass(check):
    check()


@pytest.mark.parametrize(("check", "error", "message"), INVALID.values(), ids=INVALID)
def test_invalid_arguments_raise_one_sentence(check, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        check()


def test_checks_return_the_converted_value():
    assert _validation.array("x", FLOATS) is FLOATS
    assert _validation.array("x", 2.0).shape == ()
    assert _validation.batch(x=FLOATS, y={"a": INTEGERS[:2], "b": INTEGERS[1:]}) == 2
    assert _validation.number("x", Fraction(1, 4), low=0.25, high=0.25) == 0.25
    assert _validation.number("x", np.float32(2), above=1) == 2
    assert _validation.integer("n", np.int64(3), low=3) == 3
    assert _validation.integer("n", jnp.int32(3), low=0) == 3
    assert _validation.integers("sizes", [3, np.int32(4)], least=2, most=2) == (3, 4)
    assert _validation.bounds("bounds", [-1, 1]) == (-1, 1)
    assert _validation.function("f", abs) is abs
    assert _validation.values(jnp.arange(3)).tolist() == [0, 1, 2]


def check_values(x, y):
    """Checks that would fail if x and y were not traced."""
    _validation.finite("x", x)
    _validation.within("x", x, 0, 1)
    _validation.labels("y", y, 2)
    assert _validation.values(x) is None
    return x.sum()


def vmap_over_one(f):
    return lambda *args: jax.vmap(f)(*(arg[None] for arg in args))


@pytest.mark.parametrize(
    "transform", [jax.jit, jax.make_jaxpr, vmap_over_one, lambda f: jax.jit(jax.grad(f))]
)
def test_traced_values_pass(transform):
    transform(check_values)(jnp.array([[NAN, INF], [7.0, -7.0]]), jnp.array([0, 7]))


def test_values_traced_by_grad_pass():
    jax.grad(lambda x: check_values(x, np.array([0, 1])))(jnp.array([NAN, INF]))


def check_shapes(x):
    with pytest.raises(ValueError, match=r"x must have rank 4, got float32\[2, 3\]"):
        _validation.floating("x", x, rank=4)
    with pytest.raises(TypeError, match=r"x must be a float array, got int32\[2, 3\]"):
        _validation.floating("x", x.astype(jnp.int32))
    with pytest.raises(ValueError, match="leading axes must agree, got x: 2, y: 3"):
        _validation.batch(x=x, y=x.T)
    with pytest.raises(ValueError, match="shapes must agree"):
        _validation.same_shape(x=x, y=x.T)
    with pytest.raises(TypeError, match="y must be integer labels"):
        _validation.labels("y", x, 3)
    return x.sum()


@pytest.mark.parametrize("transform", [jax.jit, jax.grad])
def test_traced_shapes_and_dtypes_are_checked(transform):
    transform(check_shapes)(FLOATS)


def test_a_traced_integer_raises():
    with pytest.raises(TypeError, match="steps must be an integer, got "):
        jax.jit(lambda n: _validation.integer("steps", n, low=0))(3)


def test_entries_checks_names_and_shapes():
    _validation.entries("params", {"weight": jnp.ones((2, 3))}, {"weight": (2, 3)})
    with pytest.raises(
        ValueError, match=r"params must be a dict with entries \['weight'\], got \['bias'\]"
    ):
        _validation.entries("params", {"bias": jnp.ones(2)}, {"weight": (2, 3)})
    with pytest.raises(ValueError, match=r"params must be a dict with entries .*, got NoneType"):
        _validation.entries("params", None, {"weight": (2, 3)})
    with pytest.raises(
        ValueError, match=r"params\['weight'\] must have shape \[2, 3\], got \[3, 2\]"
    ):
        _validation.entries("params", {"weight": jnp.ones((3, 2))}, {"weight": (2, 3)})


def test_key_accepts_one_prng_key():
    _validation.key("key", jax.random.key(0))
    _validation.key("key", jax.random.PRNGKey(0))
    for wrong, got in ((None, "NoneType"), (3, "int"), (jnp.ones(2), "float32")):
        with pytest.raises(
            TypeError, match=rf"key must be a PRNG key from jax\.random\.key, got {got}"
        ):
            _validation.key("key", wrong)
    for several in (
        jax.random.split(jax.random.key(0), 2),
        jax.random.split(jax.random.PRNGKey(0), 2),
    ):
        with pytest.raises(
            ValueError, match=r"key must be one PRNG key, got an array of shape \[2"
        ):
            _validation.key("key", several)
