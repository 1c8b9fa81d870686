"""Programs: arrays are leaves, code is structure, and one structure compiles once."""

import functools

import equinox
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from diffprog.program import Program, program


@functools.partial(jax.jit)
def call(program, x):
    TRACES.append(1)
    return program(x)


TRACES: list[int] = []


def count_traces(*calls):
    """Number of traces of `call` for the (program, x) pairs in turn."""
    before = len(TRACES)
    for made, x in calls:
        call(made, x)
    return len(TRACES) - before


def affine(params, x):
    return x @ params["w"] + params["b"]


def params(seed):
    return {"w": jax.random.normal(jax.random.key(seed), (3, 2)), "b": jnp.full(2, float(seed))}


def closure(seed):
    weights = params(seed)
    return lambda x: affine(weights, x)


def keyword_default(seed):
    default = params(seed)

    def apply(x, *, weights=default):
        return affine(weights, x)

    return apply


class Callable:
    def __init__(self, seed):
        self.weights = params(seed)

    def __call__(self, x):
        return affine(self.weights, x)


class NnxNet(nnx.Module):
    def __init__(self, seed):
        self.linear = nnx.Linear(3, 2, rngs=nnx.Rngs(seed))
        self.norm = nnx.LayerNorm(2, rngs=nnx.Rngs(seed))

    def __call__(self, x):
        return self.norm(nnx.relu(self.linear(x)))


class LinenNet(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.Dense(2)(x)


def linen(seed):
    net = LinenNet()
    return program(net.apply, net.init(jax.random.key(seed), X))


X = jnp.ones((4, 3))
MAKERS = {
    "apply and params": lambda seed: program(affine, params(seed)),
    "Partial": lambda seed: program(jax.tree_util.Partial(affine, params(seed))),
    "functools.partial": lambda seed: program(functools.partial(affine, params(seed))),
    "closure": lambda seed: program(closure(seed)),
    "closure of closure": lambda seed: (lambda inner: program(lambda x: jnp.tanh(inner(x))))(
        closure(seed)
    ),
    "program in closure": lambda seed: (lambda inner: program(lambda x: jnp.tanh(inner(x))))(
        program(affine, params(seed))
    ),
    "keyword default": lambda seed: program(keyword_default(seed)),
    "equinox": lambda seed: program(jax.vmap(equinox.nn.MLP(3, 2, 4, 1, key=jax.random.key(seed)))),
    "nnx": lambda seed: program(NnxNet(seed)),
    "linen": linen,
}


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_one_structure_compiles_once_and_uses_its_own_arrays(maker):
    one, two = maker(1), maker(2)
    jax.clear_caches()
    assert count_traces((one, X), (two, X), (one, X)) == 1
    np.testing.assert_allclose(call(one, X), one(X), rtol=1e-6)
    assert not np.allclose(call(one, X), call(two, X))
    assert one.arrays
    assert jax.tree.structure(one) == jax.tree.structure(two)


def test_code_and_numbers_are_structure():
    def scaled(factor):
        return program(lambda x: factor * x)

    assert jax.tree.structure(scaled(2.0)) == jax.tree.structure(scaled(2.0))
    assert jax.tree.structure(scaled(2.0)) != jax.tree.structure(scaled(3.0))
    assert jax.tree.structure(scaled(1)) != jax.tree.structure(scaled(1.0))
    assert jax.tree.structure(program(lambda x: x)) != jax.tree.structure(program(lambda x: -x))


def test_equal_optimizers_have_one_structure():
    updates = [program(optax.adam(rate).update) for rate in (0.1, 0.1, 0.2)]
    assert (
        jax.tree.structure(updates[0])
        == jax.tree.structure(updates[1])
        != jax.tree.structure(updates[2])
    )


def test_programs_are_differentiable_by_their_closures():
    gradient = jax.grad(lambda made: made(X).sum())(program(closure(1)))
    assert sorted(leaf.shape for leaf in jax.tree.leaves(gradient)) == [(2,), (3, 2)]
    np.testing.assert_allclose(
        sorted(float(leaf.sum()) for leaf in jax.tree.leaves(gradient)), [8, 24]
    )


def test_counters_and_records_of_the_caller_are_updated():
    calls, count = [], 0

    def counted(x):
        nonlocal count
        count += 1
        calls.append(1)
        return 2 * x

    count_traces((program(counted), X), (program(counted), X))
    assert (count, len(calls)) == (1, 1)


def test_a_recursive_function_works():
    weight = jnp.float32(2)

    def power(x, n=3):
        return x if n == 0 else weight * power(x, n - 1)

    np.testing.assert_allclose(program(power)(1.0), 8)


def test_only_pytrees_among_bound_objects_are_decomposed():
    module = equinox.nn.Linear(3, 2, key=jax.random.key(0))
    assert len(program(module.__call__).arrays) == 2
    plain = Callable(1)
    assert program(plain).arrays == []
    np.testing.assert_allclose(program(plain)(X), plain(X))


def test_partials_keep_the_names_of_their_arguments():
    power = lambda x, base=1.0, exponent=1.0: (base * x) ** exponent
    two = jnp.float32(2)
    assert call(program(functools.partial(power, base=two)), 3.0) == 6
    assert call(program(functools.partial(power, exponent=two)), 3.0) == 9


def test_a_program_is_returned_unchanged():
    made = program(affine, params(0))
    assert program(made) is made
    assert isinstance(made, Program)


def pooled(weight, x):
    return jax.lax.reduce_window(weight * x, -jnp.inf, jax.lax.max, (2, 1), (2, 1), "VALID")


def uses_jax_gradient(program):
    return "select_and_scatter" in str(jax.make_jaxpr(jax.grad(lambda x: program(x).sum()))(X))


def test_fast_gradients_are_the_default_and_part_of_the_structure():
    fast, plain = (
        program(pooled, jnp.float32(2), **options) for options in ({}, {"fast_gradients": False})
    )
    assert [uses_jax_gradient(made) for made in (fast, plain)] == [False, True]
    assert jax.tree.structure(fast) != jax.tree.structure(plain)
    wrappers = [
        program(lambda x, made=made: made(x), fast_gradients=False) for made in (fast, plain)
    ]
    for made, wrapper in zip((fast, plain), wrappers, strict=True):
        copies = [
            jax.tree.map(lambda leaf: leaf, made),
            program(made),
            program(made, fast_gradients=True),
            wrapper,
        ]
        assert {uses_jax_gradient(each) for each in copies} == {uses_jax_gradient(made)}


def test_fast_gradients_compile_once_for_other_weights_and_data():
    traces = []

    @jax.jit
    def slope(made, x):
        traces.append(1)
        return jax.grad(lambda x: made(x).sum())(x)

    for scale in (1.0, 2.0, 3.0):
        np.testing.assert_array_equal(
            slope(program(pooled, jnp.float32(scale)), scale * X)[:, 0], [scale, 0, scale, 0]
        )
    assert len(traces) == 1


@pytest.mark.parametrize("wrong", [None, 1, "yes"])
def test_fast_gradients_must_be_a_bool(wrong):
    with pytest.raises(TypeError, match="fast_gradients must be True or False, got"):
        program(affine, params(0), fast_gradients=wrong)


def test_pooling_in_a_field_stays_differentiable():
    pool = program(equinox.nn.MaxPool1d(2, 2), fast_gradients=False)
    np.testing.assert_array_equal(
        jax.grad(lambda x: pool(x).sum())(jnp.array([[1.0, 3.0, 2.0, 0.0]])), [[0, 1, 1, 0]]
    )


def test_numpy_arrays_become_jax_leaves():
    assert all(
        isinstance(leaf, jax.Array)
        for leaf in program(affine, {"w": np.ones((3, 2)), "b": np.zeros(2)}).arrays
    )


@pytest.mark.parametrize("wrong", [3, None, "tanh", np.ones(3)])
def test_an_argument_that_is_not_callable_raises(wrong):
    with pytest.raises(TypeError, match="apply must be callable, got"):
        program(wrong)


def run_cell(source, **names):
    """Run a notebook cell with its own globals, and return its function f."""
    exec(source, names)
    return names["f"]


def test_globals_are_treated_like_a_closure():
    source = "def g(x):\n    return x @ weights\ndef f(x):\n    return scale * g(x)"
    made = [
        program(run_cell(source, weights=jnp.full((3, 2), w), scale=s))
        for w, s in ((1.0, 1), (2.0, 1), (1.0, 3))
    ]
    for f, total in zip(made, (24, 48, 72), strict=True):
        np.testing.assert_allclose(call(f, X).sum(), total)
    assert jax.tree.structure(made[0]) == jax.tree.structure(made[1]) != jax.tree.structure(made[2])
    assert len(made[0].arrays) == 1


GLOBAL_TARGET = 1.0


def test_another_global_number_is_another_program():
    global GLOBAL_TARGET
    scaled = lambda x: x.sum() * GLOBAL_TARGET
    results = []
    for target in (1.0, 5.0):
        GLOBAL_TARGET = target
        results.append(float(call(program(scaled), X)))
    assert results == [12, 60]


def test_clearing_globals_does_not_change_an_equal_program():
    source = "def f(x):\n    return scale * x.sum()"
    names = {"scale": 2}
    exec(source, names)
    first = program(names["f"])
    names.clear()
    equal = program(run_cell(source, scale=2))
    assert jax.tree.structure(first) == jax.tree.structure(equal)
    assert float(equal(X)) == float(first(X)) == 24


STAGE = (jnp.sin, 2)


def test_identity_of_objects_is_kept():
    stage, weight = STAGE, jnp.float32(3)
    plain = program(lambda x: x.sum() * (2 if stage is STAGE else 1))
    with_array = program(lambda x: x.sum() * (weight if stage is STAGE else 1))
    assert (float(plain(X)), float(with_array(X))) == (24, 36)


def test_changing_a_closure_does_not_change_an_equal_program():
    def pair(number):
        def set_again(other):
            nonlocal number
            number = other

        return (lambda x: number * x.sum()), set_again

    f, set_again = pair(2)
    first = program(f)
    set_again(5)
    assert [float(made(X)) for made in (first, program(f), program(pair(2)[0]))] == [24, 60, 24]


def test_another_attribute_or_entry_is_another_program():
    settings = {"scale": 1.0}
    scaled = lambda x: settings["scale"] * x.sum()
    owner = Callable(1)
    first = float(call(program(scaled), X)), float(call(program(owner), X).sum())
    settings["scale"] = 4.0
    owner.weights = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
    assert (float(call(program(scaled), X)), float(call(program(owner), X).sum())) == (
        4 * first[0],
        0,
    )


def test_layers_in_a_list_in_a_closure_are_decomposed():
    def net(seed):
        layers = [closure(seed), lambda x: jnp.tanh(x)]
        return program(lambda x: layers[1](layers[0](x)))

    jax.clear_caches()
    assert count_traces((net(1), X), (net(2), X)) == 1
    assert len(net(1).arrays) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.adam(optax.cosine_decay_schedule(0.1, 100)),
        lambda: optax.sgd(optax.linear_schedule(0.1, 0.01, 10)),
        lambda: optax.adam(optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 100)),
        lambda: optax.inject_hyperparams(optax.adam)(0.1),
        lambda: optax.masked(optax.sgd(0.1), {"w": True}),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.lbfgs()),
    ],
)
def test_equal_optimizers_with_schedules_have_one_structure(make):
    assert jax.tree.structure(program(make().update)) == jax.tree.structure(program(make().update))


def test_many_functions_that_call_each_other_are_decomposed_fast():
    layers = ["def f0(x):\n    return x"] + [
        f"def f{k}(x):\n    return f{k - 1}(f{k - 1}(x)) + f{max(k - 2, 0)}(x)"
        for k in range(1, 60)
    ]
    f = run_cell("\n".join(layers) + "\nf = f59")
    assert jax.tree.structure(program(f)) == jax.tree.structure(program(f))
