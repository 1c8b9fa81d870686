"""Functions that are not pure JAX functions of one float scalar, and bad arguments, are refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog.graph import trace
from tests.graph.programs import X

pytestmark = pytest.mark.usefixtures("float64")

STORED, CACHE, CALLS = [], {}, []
BUFFER = np.zeros(3)


def stores_a_tracer(x):
    STORED.append(x)
    return x.sum()


def caches_a_tracer(x):
    return CACHE.setdefault("x", x * 2).sum()


def multiplies_by_a_counter(x):
    CALLS.append(1)
    return x.sum() * len(CALLS)


def multiplies_by_a_buffer(x):
    BUFFER[0] += 1
    return (x * BUFFER).sum()


def prints(x):
    jax.debug.print("{}", x)
    return x.sum()


def assigns_in_place(x):
    x[0] = 1.0
    return x.sum()


def calls_back(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x).sum()


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: np.random.default_rng().normal() * x.sum(), "second run"),
        (multiplies_by_a_counter, "second run"),
        (multiplies_by_a_buffer, "second run"),
        (stores_a_tracer, "keeps a traced value"),
        (caches_a_tracer, "traced value of its last run|second run"),
        (prints, "has Debug"),
        (assigns_in_place, r"x.at\[index\].set"),
    ],
)
def test_side_effects_are_refused(f, message):
    with pytest.raises(TypeError, match=f"f must have no side effects.*({message})"):
        trace(f, X)


def test_filling_a_cache_of_constants_is_allowed():
    cache = {}

    def f(x):
        mask = cache.setdefault(x.shape, np.arange(3) > 0)
        return (x * mask).sum()

    np.testing.assert_array_equal(trace(f, X)["x"].adjoint, [0, 1, 1])


def test_random_numbers_from_a_key_are_allowed():
    graph = trace(lambda x: (x * jax.random.normal(jax.random.key(0), (3,))).sum(), X)
    assert graph.output == "reduce_sum"


@pytest.mark.parametrize(
    ("f", "args", "error", "message"),
    [
        (3, (X,), TypeError, "f must be callable, got int"),
        (
            lambda x: x,
            (X,),
            ValueError,
            r"got float64\[3\]; take its sum, f\(...\).sum\(\), or one entry, f\(...\)\[0\]",
        ),
        (lambda x: (x, x.sum()), (X,), ValueError, r"got tuple of 2 .*take one, f\(...\)\[1\]$"),
        (
            lambda x: {"y": x, "loss": x.sum(), "k": 1},
            (X,),
            ValueError,
            r"got dict of 3 .*take one, f\(...\)\['loss'\]$",
        ),
        (lambda x: [x], (X,), ValueError, r"got list of 1 .*take one, f\(...\)\[0\].sum\(\)$"),
        (lambda x: "loss", (X,), ValueError, r"one float scalar, got str for f\(...\)"),
        (lambda x: None, (X,), ValueError, "one float scalar, got NoneType without a number"),
        (lambda x: jnp.argmax(x), (X,), ValueError, "which has no derivative"),
        (
            lambda x: np.sum(np.exp(np.asarray(x))),
            (X,),
            TypeError,
            "f must be a JAX function.*use jnp",
        ),
        (
            lambda x: x.sum() if x[0] > 0 else -x.sum(),
            (X,),
            TypeError,
            "f must be a JAX function.*lax.cond",
        ),
        (lambda x: float(x[0]), (X,), TypeError, "f must be a JAX function"),
        (lambda x: x.sum(), (np.array([1.0, np.nan]),), ValueError, "x must be finite"),
        (lambda x, y: x.sum(), (X, "name"), TypeError, "y must be an array or a number, got str"),
        (lambda p: p["w"], ({"w": object()},), TypeError, r"p\['w'\] must be an array"),
        (
            lambda x, y: x.sum(),
            (X, np.array(["a"])),
            TypeError,
            "y must be an array of numbers, got one of <U1",
        ),
        (
            lambda x: x.sum(),
            (jax.ShapeDtypeStruct((3,), float),),
            TypeError,
            "x must be an array or a number, got ShapeDtypeStruct",
        ),
        (
            lambda x, y: x.sum(),
            (X,),
            TypeError,
            r"f must take the arguments.*takes \(x, y\): missing a required argument: 'y'",
        ),
        (
            lambda x: x.sum(),
            (X, X),
            TypeError,
            "f must take the arguments.*too many positional arguments",
        ),
        (lambda x, n: x.sum() * n, (X, 2**70), ValueError, "n must fit into"),
        (
            calls_back,
            (X,),
            TypeError,
            "f must be differentiable, but its operation 'pure_callback' is not",
        ),
    ],
)
def test_errors_name_what_came(f, args, error, message):
    with pytest.raises(error, match=message):
        trace(f, *args)


def test_traced_arguments_are_refused():
    with pytest.raises(
        TypeError, match="x must have values, got a traced array; trace outside of jit"
    ):
        jax.jit(lambda x: trace(lambda x: x.sum(), x))(X)


@pytest.mark.parametrize(
    ("expand", "error", "message"),
    [
        ("sofmax", ValueError, "got 'sofmax'; the boxes are 'softmax'"),
        (["softmax", "exp"], ValueError, "got 'exp'; the boxes are 'softmax'"),
        (3, TypeError, "expand must be a sequence of strings, got 3"),
        ([3], TypeError, r"expand must be a sequence of strings, got \[3\]"),
    ],
)
def test_boxes_to_expand_must_exist(expand, error, message):
    with pytest.raises(error, match=message):
        trace(lambda x: jax.nn.softmax(x)[0], X, expand=expand)


def test_errors_of_f_pass_through():
    with pytest.raises(ZeroDivisionError):
        trace(lambda x: x / (1 // 0), 1.0)


def test_unroll_must_not_be_negative():
    with pytest.raises(ValueError, match="unroll"):
        trace(lambda x: x, 1.0, unroll=-1)


@pytest.mark.slow
def test_modules_with_functions_in_them_are_arguments():
    net = eqx.nn.MLP(3, "scalar", 4, 1, activation=jnp.tanh, key=jax.random.key(0))
    graph = trace(lambda net, x: net(x), net, X)
    expected = eqx.filter_grad(lambda net: net(X))(net)
    np.testing.assert_allclose(
        graph["net.layers[0].weight"].adjoint, expected.layers[0].weight, rtol=1e-12
    )
    assert "net.activation" not in [node.name for node in graph.nodes]
