"""The evaluation: a linear classifier's robust accuracy in closed form, batches that change nothing, bad input refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp

adv = dp.adversarial
EPSILON = 0.17


def linear(weights, x):
    return (x["a"] if isinstance(x, dict) else x).reshape(
        len(x["b"]) if isinstance(x, dict) else len(x), -1
    ) @ weights


def case(batch=30, size=8):
    """Two classes, examples far from the box, some labels wrong; and the true distance of each to the boundary in linf."""
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(size, 2)), jnp.float32)
    x = jnp.asarray(rng.uniform(0.3, 0.7, (batch, size)), jnp.float32)
    f = dp.program(linear, weights)
    gap = np.asarray(f(x)) @ [1.0, -1.0]
    y = np.where(gap > 0, 0, 1)
    y[:4] = 1 - y[:4]
    distance = np.abs(gap) / np.abs(np.asarray(weights) @ [1.0, -1.0]).sum()
    return f, x, jnp.asarray(y), np.where(np.arange(batch) < 4, 0, distance)


ATTACKS = [adv.fgsm(epsilon=EPSILON), adv.pgd(epsilon=EPSILON, steps=5), adv.fmn(steps=30)]


@pytest.fixture(scope="module")
def report():
    f, x, y, _ = case()
    return adv.evaluate(f, x, y, ATTACKS, key=jax.random.key(0), flags=False)


def test_accuracies_are_the_closed_form(report):
    truth = case()[3]
    assert (report.clean.count, report.clean.total) == (26, 30)
    assert [outcome.accuracy.count for outcome in report.outcomes] == [
        (truth > EPSILON).sum(),
        (truth > EPSILON).sum(),
        0,
    ]
    assert 0 < report.robust(EPSILON).count == (truth > EPSILON).sum() < 26


def test_the_curve_is_that_of_the_true_distances(report):
    truth = case()[3]
    # FMN ends on the boundary to a part in 10^5, from outside.
    assert [report.robust(t * 0.999).count for t in np.sort(truth[4:])] == list(range(26, 0, -1))
    assert (np.diff(report.curve().accuracy) < 0).all()
    assert report.curve().accuracy[-1] == 0


def test_the_worst_is_the_shortest_and_says_who_found_it(report):
    lengths = np.stack(
        [
            np.where(outcome.found.success, outcome.found.distance, np.inf)
            for outcome in report.outcomes
        ]
    )
    np.testing.assert_array_equal(report.worst.distance, np.where(report.right, lengths.min(0), 0))
    assert (report.worst.attack[:4] == -1).all()
    for i in range(4, 30):
        found = report.outcomes[report.worst.attack[i]].found
        assert found.success[i]
        assert (report.worst.step[i], report.worst.restart[i]) == (found.step[i], found.restart[i])
        assert found.distance[i] == pytest.approx(lengths[:, i].min(), rel=1e-6)


def test_an_attack_does_what_it_does_alone(report):
    f, x, y, _ = case()
    for k, (attack, outcome) in enumerate(zip(ATTACKS, report.outcomes, strict=True)):
        alone = attack(f, x, y, key=jax.random.fold_in(jax.random.key(0), k))
        for a, b in zip(jax.tree.leaves(outcome.found), jax.tree.leaves(alone), strict=True):
            assert isinstance(a, np.ndarray)
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_batches_change_nothing_and_compile_once(report):
    f, x, y, _ = case()
    traces = []

    def counted(weights, x):
        traces.append(x.shape)
        return linear(weights, x)

    split = adv.evaluate(
        dp.program(counted, f.arrays[0]),
        x,
        y,
        ATTACKS[:2],
        key=jax.random.key(0),
        batch_size=7,
        flags=False,
    )
    assert {shape[0] for shape in traces} <= {7, 30}
    for outcome, whole in zip(split.outcomes, report.outcomes[:2], strict=True):
        np.testing.assert_array_equal(outcome.found.success, whole.found.success)
        np.testing.assert_allclose(outcome.found.adversarial, whole.found.adversarial, atol=1e-6)
    first = len(traces)
    adv.evaluate(
        dp.program(counted, 2 * f.arrays[0]),
        x[::-1],
        y,
        ATTACKS[:2],
        key=jax.random.key(3),
        batch_size=7,
        flags=False,
    )
    assert len(traces) == first


@pytest.mark.slow
def test_a_radius_for_each_example_and_names_of_ones_own():
    f, x, y, truth = case()
    radii = jnp.asarray(np.where(np.arange(30) % 2, truth * 1.01, truth * 0.99), jnp.float32)
    attack = {"my own": adv.fgsm(epsilon=radii)}
    own = adv.evaluate(f, x, y, attack, key=jax.random.key(0), batch_size=9)
    np.testing.assert_array_equal(own.outcomes[0].found.success[4:], np.arange(4, 30) % 2 == 1)
    assert own.robust(radii).count == own.outcomes[0].accuracy.count == 13
    assert "my own" in str(own)
    assert " .. " in str(own).splitlines()[3]


@pytest.mark.slow
def test_a_cascade_says_its_stages():
    f, x, y, _ = case()
    both = adv.cascade([adv.fgsm(epsilon=EPSILON), adv.square(epsilon=EPSILON, queries=5)])
    found = adv.evaluate(f, x, y, [both], key=jax.random.key(0), flags=False, batch_size=8)
    assert found.outcomes[0].found.broken["fgsm"] == 26 - found.robust(EPSILON).count
    assert "  fgsm" in str(found)


def test_nan_logits_are_neither_right_nor_broken():
    f, x, y, _ = case()
    half = lambda x: f(x) * jnp.where(jnp.arange(len(x)) % 2, jnp.nan, 1)[:, None]
    found = adv.evaluate(half, x, y, ATTACKS[:1], key=jax.random.key(0), flags=False)
    assert not found.right[1::2].any()
    assert found.clean.count == 13


@pytest.mark.slow
def test_examples_of_a_tree():
    f, x, y, _ = case()
    tree = {"a": x, "b": jnp.full((30, 1), 0.5)}
    found = adv.evaluate(f, tree, y, ATTACKS[:1], key=jax.random.key(0))
    np.testing.assert_array_equal(
        found.outcomes[0].found.success,
        adv.evaluate(f, x, y, ATTACKS[:1], key=jax.random.key(0)).outcomes[0].found.success,
    )


def test_a_program_that_reads_nothing_rightly():
    f, x, _, _ = case()
    wrong = 1 - f(x).argmax(1)
    found = adv.evaluate(f, x, wrong, ATTACKS[:1], key=jax.random.key(0))
    assert (found.clean.count, found.robust(0.0).count, found.flags) == (0, 0, ())


@pytest.mark.parametrize(
    ("attacks", "keywords", "error", "message"),
    [
        ([], {}, ValueError, "attacks must be a sequence or dict of at least one Attack"),
        ({}, {}, ValueError, "attacks must be a sequence or dict"),
        (adv.fgsm(), {}, ValueError, "attacks must be a sequence or dict"),
        ([adv.fgsm(), lambda: 0], {}, TypeError, r"attacks\[1\] must be an Attack, got function"),
        ({"mine": 3}, {}, TypeError, r"attacks\['mine'\] must be an Attack, got int"),
        ([adv.fgsm(), adv.fgsm(norm="l2")], {}, ValueError, "agree in norm"),
        ([adv.fgsm(), adv.fgsm(bounds=(-1, 1))], {}, ValueError, "agree in bounds"),
        ([adv.fgsm(targeted=True)], {}, ValueError, "must not be targeted"),
        ([adv.fgsm(), adv.expectation(adv.fgsm())], {}, ValueError, "must all be expectations"),
        (
            [adv.fgsm(epsilon=jnp.ones(7))],
            {},
            ValueError,
            r"one value for each of 30 examples, got \[7\]",
        ),
        ([adv.fgsm()], {"key": 0}, TypeError, "key must be a random key"),
        ([adv.fgsm()], {"batch_size": 0}, ValueError, "batch_size must be an integer >= 1"),
        ([adv.fgsm()], {"confidence": 1.0}, ValueError, "confidence must be"),
        ([adv.fgsm()], {"flags": 1}, TypeError, "flags must be True or False"),
        ([adv.fgsm()], {"f": 3}, TypeError, "f must be callable"),
        ([adv.fgsm()], {"y": jnp.full(30, 2)}, ValueError, "y must lie in 0 .. 1"),
        (
            [adv.fgsm()],
            {"x": jnp.full((30, 8), 1.5)},
            ValueError,
            "240 values outside, the worst 1.5",
        ),
    ],
)
def test_bad_arguments_are_refused(attacks, keywords, error, message):
    f, x, y, _ = case()
    given = {"f": f, "x": x, "y": y, "key": jax.random.key(0)} | keywords
    with pytest.raises(error, match=message):
        adv.evaluate(given.pop("f"), given.pop("x"), given.pop("y"), attacks, **given)


@pytest.mark.slow
def test_examples_with_nan_logits_are_misread_and_flagged():
    x, y = jnp.array([[0.9, 0.1], [0.6, 0.5], [0.2, 0.8]]), jnp.array([0, 0, 1])
    broken = lambda x: jnp.where(x[:, :1] > 0.8, jnp.nan, x)
    report = dp.adversarial.evaluate(
        broken, x, y, [dp.adversarial.fgsm(epsilon=0.01)], key=jax.random.key(0)
    )
    drawn = dp.adversarial.evaluate(
        lambda x, key: broken(x),
        x,
        y,
        [dp.adversarial.expectation(dp.adversarial.fgsm(epsilon=0.01), 2)],
        key=jax.random.key(0),
    )
    for found in (report, drawn):
        assert (found.clean.count, found.robust(0.01).count) == (2, 2)
        assert found.flags[0].name == "NaN logits"


@pytest.mark.slow
def test_what_nothing_breaks_stands_at_any_radius():
    report = dp.adversarial.evaluate(
        lambda x: jnp.stack([x[:, 0] + 9, x[:, 1]], 1),
        jnp.ones((3, 2)) / 2,
        jnp.zeros(3, int),
        [dp.adversarial.fgsm()],
        key=jax.random.key(0),
    )
    assert report.robust(np.inf).count == 3
