"""What every attack promises: the table of attacks times short tests."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffprog as dp
from tests.adversarial.attacks import (
    ATTACKS,
    BATCH,
    BOUNDS,
    NAN_GRADIENTS,
    NAN_LOGITS,
    SIZE,
    TRACES,
    linear_problem,
    make_small,
)

ORDER = {"linf": np.inf, "l2": 2, "l1": 1}


def attacks(select=lambda row: True, all_norms=False, fast=True):
    """Parametrize over (name, norm); what takes long to compile is marked slow."""
    params = [
        pytest.param(
            name,
            norm,
            id=f"{name}-{norm}",
            marks=pytest.mark.slow if row.slow or norm != row.norms[0] or not fast else (),
        )
        for name, row in ATTACKS.items()
        if select(row)
        for norm in (row.norms if all_norms and row.has_epsilon else row.norms[:1])
    ]
    return pytest.mark.parametrize(("name", "norm"), params)


def predict(f, x):
    return np.asarray(jnp.nan_to_num(f(x)).argmax(1))


def is_success(f, x, y, targeted=False):
    predicted = np.asarray(f(x).argmax(1))
    success = predicted == y if targeted else predicted != y
    return success & ~np.isnan(f(x)).any(1)


def lengths(norm, r):
    return np.linalg.norm(np.asarray(r, np.float64), ORDER[norm], axis=1)


def assert_valid(name, norm, result, f, x, y, epsilon, targeted=False):
    """Check ball, box, success and the redundant fields of a result."""
    low, high = (x.dtype.type(bound) for bound in BOUNDS)
    assert ((result.adversarial >= low) & (result.adversarial <= high)).all()
    np.testing.assert_array_equal(result.perturbation, np.asarray(result.adversarial) - x)
    np.testing.assert_allclose(result.distance, lengths(norm, result.perturbation), rtol=1e-5)
    np.testing.assert_array_equal(result.success, is_success(f, result.adversarial, y, targeted))
    if ATTACKS[name].has_epsilon:
        rounding = 4 * np.finfo(x.dtype).eps
        assert (lengths(norm, result.perturbation) <= epsilon * (1 + rounding)).all()


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


# --- results -------------------------------------------------------------------------------------


@attacks(all_norms=True)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(-4, 1), constant=st.booleans())
def test_result_stays_in_the_ball_and_the_box(name, norm, seed, scale, constant):
    f, x, y = linear_problem(seed)
    if constant:
        x = np.full_like(x, x[0, 0])
        y = predict(f, x)
    epsilon = np.float32(10**scale) * np.linspace(0, 3, BATCH, dtype=np.float32)
    attack = make_small(name, norm, epsilon)
    result = attack(f, x, y, key=jax.random.key(seed % 1000))
    assert_valid(name, norm, result, f, x, y, epsilon)
    if attack.epsilon is not None:
        np.testing.assert_array_equal(
            np.asarray(result.adversarial[0]).view(np.uint32), x[0].view(np.uint32)
        )


@attacks()
def test_initially_misclassified_examples_are_not_perturbed(key, name, norm):
    f, x, y = linear_problem(1)
    wrong = np.arange(BATCH) < 3
    result = make_small(name, norm)(f, x, np.where(wrong, (y + 1) % 3, y), key=key)
    np.testing.assert_array_equal(result.initially_misclassified, wrong)
    np.testing.assert_array_equal(result.adversarial[wrong], x[wrong])
    np.testing.assert_array_equal(result.perturbation[wrong], 0)
    np.testing.assert_array_equal(result.distance[wrong], 0)
    assert result.success[wrong].all()
    assert (result.distance[~wrong] > 0).all()


@attacks()
def test_the_same_key_gives_the_same_bits_and_another_key_others(key, name, norm):
    f, x, y = linear_problem(2)
    attack = make_small(name, norm, 0.05)
    result = attack(f, x, y, key=key)
    assert_equal(attack(f, x, y, key=key), result)
    if ATTACKS[name].random:
        other = attack(f, x, y, key=jax.random.key(9))
        assert (other.adversarial != result.adversarial).any()


@attacks()
def test_an_example_does_not_depend_on_its_position_and_the_other_examples(key, name, norm):
    f, x, y = linear_problem(3)
    # A small radius: near the optimum, rounding decides which of many equal losses is the largest.
    attack = make_small(name, norm, 0.05)
    result, reverse = attack(f, x, y, key=key), attack(f, x[::-1], y[::-1], key=key)
    replaced = np.where(np.arange(BATCH)[:, None] < 3, x, -x.clip(-2, 2))
    others = attack(f, replaced, predict(f, replaced), key=key)
    exact = 0 if ATTACKS[name].has_epsilon else 1e-6
    np.testing.assert_allclose(reverse.adversarial[::-1], result.adversarial, rtol=0, atol=exact)
    np.testing.assert_allclose(others.adversarial[:3], result.adversarial[:3], rtol=0, atol=exact)


# Minimum-norm attacks: `minimum_norm/test_minimum_norm.py`.
@attacks(lambda row: row.has_epsilon, fast=False)
def test_an_example_alone_has_the_result_it_has_in_a_batch(key, name, norm):
    """To a part in 10^4: products of other sizes are summed in another order."""
    f, x, y = linear_problem(3)
    attack = make_small(name, norm, 0.05)
    together = attack(f, x, y, key=key)
    alone = [attack(f, x[i : i + 1], y[i : i + 1], key=key).distance for i in range(BATCH)]
    np.testing.assert_allclose(np.concatenate(alone), together.distance, rtol=1e-4)


@attacks(lambda row: row.targeted)
def test_a_targeted_attack_reaches_its_targets(key, name, norm):
    f, x, y = linear_problem(4, faces=0.0)
    for shift in (1, 2):
        target = (y + shift) % 3
        epsilon = {"linf": 2.0, "l2": 5.0, "l1": 12.0}[norm]
        attack = make_small(name, norm, epsilon, targeted=True)
        result = attack(f, x, target, key=key, labels=y)
        assert_valid(name, norm, result, f, x, target, epsilon, targeted=True)
        assert result.success.sum() >= BATCH - 2


# --- programs ------------------------------------------------------------------------------------


@attacks()
def test_nan_logits_are_no_success(key, name, norm):
    f, x, _ = linear_problem(5, fault=NAN_LOGITS)
    y = predict(f, x)
    result = make_small(name, norm, 1.0)(f, x, y, key=key)
    assert np.isfinite(result.adversarial).all()
    assert_valid(name, norm, result, f, x, y, 1.0)
    assert result.success.any()


@attacks()
def test_nan_gradients_are_harmless(key, name, norm):
    f, x, _ = linear_problem(6, fault=NAN_GRADIENTS)
    y = predict(f, x)
    result = make_small(name, norm, 1.0)(f, x, y, key=key)
    assert np.isfinite(result.adversarial).all()
    assert_valid(name, norm, result, f, x, y, 1.0)
    assert result.success.any() if ATTACKS[name].has_epsilon else result.success.all()


@attacks(lambda row: row.has_epsilon)
def test_a_saturated_softmax_is_no_defence(key, name, norm):
    f, x, y = linear_problem(7)
    saturated, *_ = linear_problem(7, scale=1000)
    attack = make_small(name, norm, 0.5)
    result = attack(f, x, y, key=key)
    np.testing.assert_array_equal(attack(saturated, x, y, key=key).success, result.success)
    assert result.success.any()


@attacks(fast=False)
def test_new_numbers_do_not_compile_again(key, name, norm):
    counts = []
    for seed, numbers in enumerate(({}, ATTACKS[name].other, {})):
        f, x, y = linear_problem(seed, scale=1 + seed)
        epsilon = np.linspace(0, 1, BATCH) if seed else 0.1
        before = len(TRACES)
        make_small(name, norm, epsilon, **numbers)(f, x, y, key=jax.random.key(seed))
        counts.append(len(TRACES) - before)
    assert counts[1:] == [0, 0]


@attacks(lambda row: row.has_epsilon, all_norms=True, fast=False)
def test_float64_results_are_exact_in_float64(key, name, norm):
    with jax.enable_x64(True):
        f, x, _ = linear_problem(8, dtype=np.float64)
        x = np.clip(x, *BOUNDS)
        y = predict(f, x)
        epsilon = np.linspace(0, 1, BATCH)
        result = make_small(name, norm, epsilon)(f, x, y, key=key)
        assert result.adversarial.dtype == result.distance.dtype == np.float64
        assert_valid(name, norm, result, f, x, y, epsilon)
        assert result.success.any()


# --- shapes, which only need tracing -------------------------------------------------------------

every_attack = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if row.slow else ())
        for name, row in ATTACKS.items()
    ],
)


def flatten(x):
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(x)], axis=1)


def trace(name, f, x):
    y = jnp.zeros(BATCH, int)
    return jax.eval_shape(lambda x: make_small(name)(f, x, y, key=jax.random.key(0)), x)


@every_attack
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_shape_and_dtype_of_x_are_kept(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        matrix = jnp.ones((SIZE, 3), dtype)
        x = {
            "left": jnp.zeros((BATCH, 2, 3), dtype),
            "right": jnp.zeros((BATCH, 2), dtype),
        }
        result = trace(name, lambda x: flatten(x) @ matrix, x)
        shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), result)
        expected = jax.tree.map(lambda leaf: (leaf.shape, dtype), x)
        assert shapes.adversarial == shapes.perturbation == expected
        assert shapes.distance == shapes.loss == ((BATCH,), dtype)
        for field in ("success", "initially_misclassified"):
            assert getattr(shapes, field) == ((BATCH,), "bool")
        for field in ("step", "restart", "gradients", "queries"):
            assert getattr(shapes, field) == ((BATCH,), "int32")


@every_attack
def test_uses_gradients_says_whether_the_attack_differentiates(name):
    differentiated = []

    @jax.custom_vjp
    def watched(logits):
        return logits

    def backward(_, cotangent):
        differentiated.append(name)
        return (cotangent,)

    watched.defvjp(lambda logits: (logits, None), backward)
    trace(name, lambda x: watched(flatten(x)[:, :3]), jnp.zeros((BATCH, SIZE)))
    assert bool(differentiated) == ATTACKS[name].uses_gradients == make_small(name).uses_gradients


# --- arguments -----------------------------------------------------------------------------------

COUNTS = ("steps", "restarts", "searches", "queries", "draws", "targets", "memory", "candidates")
BAD_ARGUMENTS = {
    **dict.fromkeys(COUNTS, (0, 1.5, True)),
    "norm": ("l3", "l0", 2, None),
    "epsilon": (-1.0, np.nan, np.inf, "0.1", np.array([0.1, -0.1])),
    "bounds": ((1, 0), (0, 0), (0, np.nan), 1.0),
    "targeted": (1, None),
    "loss": ("hinge", None),
    "examples": (np.full((2, 3), np.nan), np.full((2, 3), 9.0), np.ones((2, 3), int)),
}


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "random_search"])
def test_a_bad_argument_is_named_in_the_error(name):
    make = ATTACKS[name].make
    for argument in BAD_ARGUMENTS.keys() & inspect.signature(make).parameters.keys():
        for value in BAD_ARGUMENTS[argument]:
            with pytest.raises((TypeError, ValueError), match=argument):
                make(**{argument: value})


@pytest.mark.parametrize(
    "name", ["fgsm", "pgd", "mi_fgsm", "apgd", "apgd_targets", "square", "auto_attack"]
)
def test_an_attack_in_a_ball_must_have_a_radius(name):
    with pytest.raises(TypeError, match="epsilon"):
        ATTACKS[name].make(epsilon=None)


def test_the_table_has_every_attack_of_the_package():
    makers = {
        name
        for name in dp.adversarial.__all__
        if "bounds" in getattr(inspect.signature(getattr(dp.adversarial, name)), "parameters", {})
        and name not in ("make_attack", "universal", "AttackResult")
        and not inspect.isclass(getattr(dp.adversarial, name))
    }
    assert makers <= set(ATTACKS)
