"""`cascade` equals running every attack on every example and keeping the first success."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp
from diffprog.adversarial.evaluation._autoattack import auto_attack, cascade

adv = dp.adversarial


def net(weights, x):
    return jnp.tanh(3 * (x - 0.5) @ weights[0]) @ weights[1]


def make_problem(seed=0, batch=21, size=12, classes=4):
    """Return a small network, examples and their predicted classes."""
    rng = np.random.default_rng(seed)
    weights = [
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((size, 16), (16, classes))
    ]
    x = jnp.asarray(rng.uniform(size=(batch, size)), jnp.float32)
    f = dp.program(net, weights)
    return f, x, f(x).argmax(1)


def run_all(attacks, f, x, y, key):
    """Run every attack on every example; return the results and the first to succeed on each."""
    results = [attack(f, x, y, key=jax.random.fold_in(key, k)) for k, attack in enumerate(attacks)]
    success = np.stack([np.asarray(result.success) for result in results])
    first = np.where(success.any(0), success.argmax(0), -1)
    return results, first


def make_attacks(epsilon=0.12):
    """Three attacks in l2, where random starts do not end in the same corner."""
    ball = {"norm": "l2", "epsilon": epsilon}
    return [adv.fgsm(**ball), adv.pgd(steps=3, **ball), adv.square(queries=40, **ball)]


@pytest.mark.slow
def test_cascade_equals_running_every_attack_on_every_example(key):
    f, x, y = make_problem()
    stages = make_attacks()
    result = cascade(stages)(f, x, y, key=key)
    results, first = run_all(stages, f, x, y, key)
    np.testing.assert_array_equal(result.stage, first)
    assert len(set(first)) > 2
    for i, stage in enumerate(first):
        expected = (
            results[stage] if stage >= 0 else max(results, key=lambda one, i=i: float(one.loss[i]))
        )
        np.testing.assert_allclose(result.adversarial[i], expected.adversarial[i], atol=1e-6)
        assert result.step[i] == expected.step[i]
        run = results[: stage + 1] if stage >= 0 else results
        assert result.gradients[i] == sum(int(one.gradients[i]) for one in run)
        assert result.queries[i] == sum(int(one.queries[i]) for one in run)
    assert list(result.broken.values()) == [(first == k).sum() for k in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "targeted", "norm", "most"), [(2, False, "linf", 0.1), (3, True, "l2", 0.5)]
)
def test_auto_attack_stays_in_the_ball_and_reports_true_successes(
    classes, targeted, norm, most, key
):
    f, x, y = make_problem(3, classes=classes)
    target = (y + 1) % classes if targeted else y
    epsilon = jnp.linspace(0.0, most, len(x))
    result = auto_attack(norm=norm, epsilon=epsilon, steps=8, queries=20, targeted=targeted)(
        f, x, target, key=key
    )
    predicted = f(result.adversarial).argmax(1)
    np.testing.assert_array_equal(
        result.success, predicted == target if targeted else predicted != target
    )
    assert (result.distance <= epsilon * (1 + 1e-6)).all()
    assert ((result.adversarial >= 0) & (result.adversarial <= 1)).all()
    np.testing.assert_array_equal(result.adversarial[0], x[0])
    assert sum(result.broken.values()) == (result.success & ~result.initially_misclassified).sum()
    assert result.success.any()
    assert not result.success.all()


@pytest.mark.slow
def test_misclassified_examples_belong_to_no_stage(key):
    f, x, y = make_problem()
    y = y.at[:5].add(1) % 4
    result = cascade(make_attacks())(f, x, y, key=key)
    assert (
        result.initially_misclassified[:5] & result.success[:5] & (result.stage[:5] == -1)
    ).all()
    np.testing.assert_array_equal(result.adversarial[:5], x[:5])
    assert sum(result.broken.values()) == (result.success & ~result.initially_misclassified).sum()


@pytest.mark.slow
def test_results_do_not_depend_on_the_batch(key):
    f, x, y = make_problem()
    attack = cascade(make_attacks())
    whole, reversed_ = attack(f, x, y, key=key), attack(f, x[::-1], y[::-1], key=key)
    np.testing.assert_array_equal(whole.stage, reversed_.stage[::-1])
    np.testing.assert_allclose(whole.adversarial, reversed_.adversarial[::-1], atol=1e-6)
    part = attack(f, x[4:11], y[4:11], key=key)
    np.testing.assert_array_equal(whole.stage[4:11], part.stage)
    np.testing.assert_allclose(whole.adversarial[4:11], part.adversarial, atol=1e-6)


@pytest.mark.slow
def test_cascade_does_not_recompile_for_other_data(key):
    """Other weights, data, radii and keys leave nearly all, some and no examples robust."""
    traces = []

    def counting_net(weights, x):
        traces.append(x.shape)
        return net(weights, x)

    def count_successes(seed, epsilon):
        f, x, y = make_problem(seed)
        result = cascade(make_attacks(epsilon))(
            dp.program(counting_net, f.arrays), x, y, key=jax.random.key(seed)
        )
        return int(result.success.sum())

    successes = [count_successes(0, 0.001)]
    first = len(traces)
    assert first > 0
    successes += [
        count_successes(seed, epsilon) for seed, epsilon in ((1, 0.04), (2, 0.0), (3, 0.9))
    ]
    assert len(traces) == first
    assert min(successes) == 0
    assert max(successes) == 21


@pytest.mark.slow
def test_results_under_jit_are_the_same(key):
    f, x, y = make_problem()
    attack = cascade(make_attacks()[:2])
    outside, inside = attack(f, x, y, key=key), jax.jit(lambda x: attack(f, x, y, key=key))(x)
    assert inside.stages == outside.stages
    for a, b in zip(jax.tree.leaves(outside), jax.tree.leaves(inside), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_dtype_is_kept(key):
    with jax.enable_x64(True):
        f, x, y = make_problem()
        f, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (f, x))
        result = cascade(make_attacks()[:2])(f, x, y, key=key)
        assert result.adversarial.dtype == result.distance.dtype == jnp.float64
        assert (result.distance <= 0.12 * (1 + 1e-10)).all()


@pytest.mark.slow
def test_cascades_can_be_transferred(key):
    f, x, y = make_problem()
    transferred = adv.transfer(cascade(make_attacks()[:2]), f)(f, x, y, key=key)
    direct = cascade(make_attacks()[:2])(f, x, y, key=key)
    np.testing.assert_array_equal(transferred.success, direct.success)
    assert transferred.stages == direct.stages


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
        (
            [adv.fmn()],
            ValueError,
            r"attacks\[0\] must have a radius, got the minimum-norm attack fmn",
        ),
    ],
)
def test_invalid_cascades_raise(attacks, error, message):
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
def test_invalid_arguments_raise(keywords, error, message):
    with pytest.raises(error, match=message):
        auto_attack(**keywords)


def test_a_success_replaces_an_earlier_failure_of_larger_loss(key):
    """The logits are the inputs: three nearly equal ones have a larger cross-entropy than two."""
    x, y = jnp.array([[0.9, 0.2, 0.0]]), jnp.array([0])

    def move_to(name, point):
        search = lambda problem: dp.adversarial.Search(jnp.asarray(point) - problem.x, 0, 0, 0, 1)
        return dp.adversarial.make_attack(name, search, norm="linf", epsilon=1.0)

    failure, success = move_to("failure", [0.51, 0.5, 0.5]), move_to("success", [0.6, 0.61, 0.0])
    f = dp.program(lambda x: x)
    failed, succeeded = (attack(f, x, y, key=key) for attack in (failure, success))
    assert not failed.success.any()
    assert (failed.loss > succeeded.loss).all()
    result = cascade([failure, success])(f, x, y, key=key)
    assert result.success.all()
    np.testing.assert_array_equal(result.loss, succeeded.loss)
    np.testing.assert_array_equal(result.stage, 1)
    np.testing.assert_allclose(result.adversarial, [[0.6, 0.61, 0.0]], rtol=1e-6)
