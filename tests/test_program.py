"""Programs: leaves are arrays, structure is code, one structure compiles once."""

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


def traces_of(*calls):
    """How often `call` is traced for (program, x) pairs in turn."""
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
    held = params(seed)

    def apply(x, *, weights=held):
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
    "closure of closure": lambda seed: (lambda inner: program(lambda x: jnp.tanh(inner(x))))(closure(seed)),
    "program in closure": lambda seed: (lambda inner: program(lambda x: jnp.tanh(inner(x))))(program(affine, params(seed))),
    "keyword default": lambda seed: program(keyword_default(seed)),
    "equinox": lambda seed: program(jax.vmap(equinox.nn.MLP(3, 2, 4, 1, key=jax.random.key(seed)))),
    "nnx": lambda seed: program(NnxNet(seed)),
    "linen": linen,
}


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_one_structure_compiles_once_and_computes_with_its_own_arrays(maker):
    one, two = maker(1), maker(2)
    jax.clear_caches()
    assert traces_of((one, X), (two, X), (one, X)) == 1
    np.testing.assert_allclose(call(one, X), one(X), rtol=1e-6)
    assert not np.allclose(call(one, X), call(two, X))
    assert one.arrays
    assert jax.tree.structure(one) == jax.tree.structure(two)


def test_other_code_and_other_numbers_are_other_programs():
    def scaled(factor):
        return program(lambda x: factor * x)

    assert jax.tree.structure(scaled(2.0)) == jax.tree.structure(scaled(2.0))
    assert jax.tree.structure(scaled(2.0)) != jax.tree.structure(scaled(3.0))
    assert jax.tree.structure(scaled(1)) != jax.tree.structure(scaled(1.0))
    assert jax.tree.structure(program(lambda x: x)) != jax.tree.structure(program(lambda x: -x))


def test_optimizers_made_twice_are_one_structure():
    updates = [program(optax.adam(rate).update) for rate in (0.1, 0.1, 0.2)]
    assert jax.tree.structure(updates[0]) == jax.tree.structure(updates[1]) != jax.tree.structure(updates[2])


def test_gradients_reach_the_arrays_of_a_closure():
    gradient = jax.grad(lambda made: made(X).sum())(program(closure(1)))
    assert sorted(leaf.shape for leaf in jax.tree.leaves(gradient)) == [(2,), (3, 2)]
    np.testing.assert_allclose(sorted(float(leaf.sum()) for leaf in jax.tree.leaves(gradient)), [8, 24])


def test_state_of_the_owner_stays_with_its_owner():
    seen, count = [], 0

    def counted(x):
        nonlocal count
        count += 1
        seen.append(1)
        return 2 * x

    traces_of((program(counted), X), (program(counted), X))
    assert (count, len(seen)) == (1, 1)


def test_recursive_function_stays_whole():
    weight = jnp.float32(2)

    def power(x, n=3):
        return x if n == 0 else weight * power(x, n - 1)

    np.testing.assert_allclose(program(power)(1.0), 8)


def test_bound_method_of_a_pytree_opens_and_of_a_plain_object_stays_whole():
    module = equinox.nn.Linear(3, 2, key=jax.random.key(0))
    assert len(program(module.__call__).arrays) == 2
    plain = Callable(1)
    assert program(plain).arrays == []
    np.testing.assert_allclose(program(plain)(X), plain(X))


def test_a_program_comes_back_as_it_is():
    made = program(affine, params(0))
    assert program(made) is made
    assert isinstance(made, Program)


def test_numpy_arrays_become_leaves_on_the_device():
    assert all(isinstance(leaf, jax.Array) for leaf in program(affine, {"w": np.ones((3, 2)), "b": np.zeros(2)}).arrays)


@pytest.mark.parametrize("wrong", [3, None, "tanh", np.ones(3)])
def test_refuses_what_cannot_be_called(wrong):
    with pytest.raises(TypeError, match="apply must be callable, got"):
        program(wrong)
