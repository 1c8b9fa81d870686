"""The cascade: every example as if each attack had seen all of them, who broke which, and one program whatever stands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp
from diffprog.adversarial.evaluation._autoattack import auto_attack, cascade

adv = dp.adversarial


def net(weights, x):
    return jnp.tanh(3 * (x - 0.5) @ weights[0]) @ weights[1]


def case(seed=0, batch=21, size=12, classes=4):
    """A small network, examples, and what it reads."""
    rng = np.random.default_rng(seed)
    weights = [
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((size, 16), (16, classes))
    ]
    x = jnp.asarray(rng.uniform(size=(batch, size)), jnp.float32)
    f = dp.program(net, weights)
    return f, x, f(x).argmax(1)


def in_full(stages, f, x, y, key):
    """Each attack on all examples; of those that broke one the first."""
    founds = [attack(f, x, y, key=jax.random.fold_in(key, k)) for k, attack in enumerate(stages)]
    broken = np.stack([np.asarray(found.success) for found in founds])
    first = np.where(broken.any(0), broken.argmax(0), -1)
    return founds, first


def weak_to_strong(epsilon=0.12):
    """In l2, where no two starts end in the same corner."""
    ball = {"norm": "l2", "epsilon": epsilon}
    return [adv.fgsm(**ball), adv.pgd(steps=3, **ball), adv.square(queries=40, **ball)]


@pytest.mark.slow
def test_an_example_comes_out_as_if_every_attack_had_seen_all(key):
    f, x, y = case()
    stages = weak_to_strong()
    found = cascade(stages)(f, x, y, key=key)
    founds, first = in_full(stages, f, x, y, key)
    np.testing.assert_array_equal(found.stage, first)
    assert len(set(first)) > 2
    for i, stage in enumerate(first):
        kept = founds[stage] if stage >= 0 else max(founds, key=lambda one, i=i: float(one.loss[i]))
        np.testing.assert_allclose(found.adversarial[i], kept.adversarial[i], atol=1e-6)
        assert found.step[i] == kept.step[i]
        seen = founds[: stage + 1] if stage >= 0 else founds
        assert found.gradients[i] == sum(int(one.gradients[i]) for one in seen)
        assert found.queries[i] == sum(int(one.queries[i]) for one in seen)
    assert list(found.broken.values()) == [(first == k).sum() for k in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "targeted", "norm", "most"), [(2, False, "linf", 0.1), (3, True, "l2", 0.5)]
)
def test_auto_attack_stays_in_its_balls_and_says_what_f_says(classes, targeted, norm, most, key):
    f, x, y = case(3, classes=classes)
    goal = (y + 1) % classes if targeted else y
    epsilon = jnp.linspace(0.0, most, len(x))
    found = auto_attack(norm=norm, epsilon=epsilon, steps=8, queries=20, targeted=targeted)(
        f, x, goal, key=key
    )
    read = f(found.adversarial).argmax(1)
    np.testing.assert_array_equal(found.success, read == goal if targeted else read != goal)
    assert (found.distance <= epsilon * (1 + 1e-6)).all()
    assert ((found.adversarial >= 0) & (found.adversarial <= 1)).all()
    np.testing.assert_array_equal(found.adversarial[0], x[0])
    assert sum(found.broken.values()) == (found.success & ~found.initially_misclassified).sum()
    assert found.success.any()
    assert not found.success.all()


@pytest.mark.slow
def test_a_misread_example_belongs_to_no_stage(key):
    f, x, y = case()
    y = y.at[:5].add(1) % 4
    found = cascade(weak_to_strong())(f, x, y, key=key)
    assert (found.initially_misclassified[:5] & found.success[:5] & (found.stage[:5] == -1)).all()
    np.testing.assert_array_equal(found.adversarial[:5], x[:5])
    assert sum(found.broken.values()) == (found.success & ~found.initially_misclassified).sum()


@pytest.mark.slow
def test_order_and_company_do_not_matter(key):
    f, x, y = case()
    attack = cascade(weak_to_strong())
    whole, backwards = attack(f, x, y, key=key), attack(f, x[::-1], y[::-1], key=key)
    np.testing.assert_array_equal(whole.stage, backwards.stage[::-1])
    np.testing.assert_allclose(whole.adversarial, backwards.adversarial[::-1], atol=1e-6)
    few = attack(f, x[4:11], y[4:11], key=key)
    np.testing.assert_array_equal(whole.stage[4:11], few.stage)
    np.testing.assert_allclose(whole.adversarial[4:11], few.adversarial, atol=1e-6)


@pytest.mark.slow
def test_who_stands_compiles_nothing(key):
    """Other weights, data, radii and keys, of which nearly all, some and none stand: the network is traced no more."""
    traces = []

    def counted(weights, x):
        traces.append(x.shape)
        return net(weights, x)

    def attacked(seed, epsilon):
        f, x, y = case(seed)
        found = cascade(weak_to_strong(epsilon))(
            dp.program(counted, f.arrays), x, y, key=jax.random.key(seed)
        )
        return int(found.success.sum())

    broken = [attacked(0, 0.001)]
    first = len(traces)
    assert first > 0
    broken += [attacked(seed, epsilon) for seed, epsilon in ((1, 0.04), (2, 0.0), (3, 0.9))]
    assert len(traces) == first
    assert min(broken) == 0
    assert max(broken) == 21


@pytest.mark.slow
def test_inside_jit_every_attack_sees_all_and_the_outcome_is_the_same(key):
    f, x, y = case()
    attack = cascade(weak_to_strong()[:2])
    outside, inside = attack(f, x, y, key=key), jax.jit(lambda x: attack(f, x, y, key=key))(x)
    assert inside.stages == outside.stages
    for a, b in zip(jax.tree.leaves(outside), jax.tree.leaves(inside), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_float64_stays(key):
    with jax.enable_x64(True):
        f, x, y = case()
        f, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (f, x))
        found = cascade(weak_to_strong()[:2])(f, x, y, key=key)
        assert found.adversarial.dtype == found.distance.dtype == jnp.float64
        assert (found.distance <= 0.12 * (1 + 1e-10)).all()


@pytest.mark.slow
def test_a_cascade_goes_through_what_attacks_are_put_over(key):
    f, x, y = case()
    transferred = adv.transfer(cascade(weak_to_strong()[:2]), f)(f, x, y, key=key)
    alone = cascade(weak_to_strong()[:2])(f, x, y, key=key)
    np.testing.assert_array_equal(transferred.success, alone.success)
    assert transferred.stages == alone.stages


@pytest.mark.parametrize(
    ("attacks", "error", "message"),
    [
        ([], ValueError, "attacks must be a sequence of at least one"),
        (adv.fgsm(), ValueError, "attacks must be a sequence"),
        ([adv.fgsm(), "pgd"], TypeError, r"attacks\[1\] must be an Attack, got str"),
        (
            [adv.fgsm(), adv.fgsm(norm="l2")],
            ValueError,
            r"agree in norm, got linf and attacks\[1\] with l2",
        ),
        ([adv.fgsm(), adv.fgsm(epsilon=0.2)], ValueError, "agree in epsilon"),
        ([adv.fgsm(), adv.fgsm(bounds=(0, 2))], ValueError, "agree in bounds"),
        ([adv.fgsm(), adv.fgsm(targeted=True)], ValueError, "agree in targeted"),
        ([adv.fmn()], ValueError, r"attacks\[0\] must have a radius, got fmn"),
    ],
)
def test_bad_cascades_are_refused(attacks, error, message):
    with pytest.raises(error, match=message):
        cascade(attacks)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"norm": "l3"}, ValueError, "norm must be one of"),
        ({"epsilon": -1}, ValueError, "epsilon must be a finite number >= 0"),
        ({"epsilon": None}, TypeError, "epsilon must be an array, got NoneType"),
        ({"steps": 0}, ValueError, "steps must be an integer >= 1"),
        ({"targets": 0}, ValueError, "targets must be an integer >= 1"),
        ({"queries": 0}, ValueError, "queries must be an integer >= 1"),
        ({"restarts": 0}, ValueError, "restarts must be an integer >= 1"),
        ({"bounds": (1, 0)}, ValueError, "bounds must be"),
    ],
)
def test_bad_numbers_are_refused(keywords, error, message):
    with pytest.raises(error, match=message):
        auto_attack(**keywords)
