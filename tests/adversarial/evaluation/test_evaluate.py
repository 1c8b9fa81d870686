"""`evaluate` against the closed-form robust accuracy of a linear classifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffprog as dp

adv = dp.adversarial
EPSILON = 0.17


def linear(weights, x):
    return (x["a"] if isinstance(x, dict) else x) @ weights


def make_problem(batch=30, size=8):
    """Return a model, x, y (four labels wrong) and the exact linf distances to the boundary."""
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
    f, x, y, _ = make_problem()
    return adv.evaluate(f, x, y, ATTACKS, key=jax.random.key(0), flags=False)


def test_accuracies_match_the_closed_form(report):
    exact = make_problem()[3]
    assert (report.clean.count, report.clean.total) == (26, 30)
    assert [outcome.accuracy.count for outcome in report.outcomes] == [
        (exact > EPSILON).sum(),
        (exact > EPSILON).sum(),
        0,
    ]
    assert 0 < report.robust(EPSILON).count == (exact > EPSILON).sum() < 26


def test_curve_matches_the_exact_distances(report):
    exact = make_problem()[3]
    # FMN ends outside the boundary, within a relative distance of 1e-5.
    assert [report.robust(t * 0.999).count for t in np.sort(exact[4:])] == list(range(26, 0, -1))
    assert (np.diff(report.curve().accuracy) < 0).all()
    assert report.curve().accuracy[-1] == 0


def test_worst_is_the_smallest_perturbation_of_all_attacks(report):
    distances = np.stack(
        [
            np.where(outcome.found.success, outcome.found.distance, np.inf)
            for outcome in report.outcomes
        ]
    )
    np.testing.assert_array_equal(
        report.worst.distance, np.where(report.correct, distances.min(0), 0)
    )
    assert (report.worst.attack[:4] == -1).all()
    for i in range(4, 30):
        found = report.outcomes[report.worst.attack[i]].found
        assert found.success[i]
        assert (report.worst.step[i], report.worst.restart[i]) == (found.step[i], found.restart[i])
        assert found.distance[i] == pytest.approx(distances[:, i].min(), rel=1e-6)


def test_results_equal_those_of_calling_the_attacks(report):
    f, x, y, _ = make_problem()
    for k, (attack, outcome) in enumerate(zip(ATTACKS, report.outcomes, strict=True)):
        direct = attack(f, x, y, key=jax.random.fold_in(jax.random.key(0), k))
        for a, b in zip(jax.tree.leaves(outcome.found), jax.tree.leaves(direct), strict=True):
            assert isinstance(a, np.ndarray)
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_batch_size_changes_nothing_and_does_not_recompile(report):
    f, x, y, _ = make_problem()
    traces = []

    def counting_linear(weights, x):
        traces.append(x.shape)
        return linear(weights, x)

    batched = adv.evaluate(
        dp.program(counting_linear, f.arrays[0]),
        x,
        y,
        ATTACKS[:2],
        key=jax.random.key(0),
        batch_size=7,
        flags=False,
    )
    assert {shape[0] for shape in traces} <= {7, 30}
    for outcome, whole in zip(batched.outcomes, report.outcomes[:2], strict=True):
        np.testing.assert_array_equal(outcome.found.success, whole.found.success)
        np.testing.assert_allclose(outcome.found.adversarial, whole.found.adversarial, atol=1e-6)
    first = len(traces)
    adv.evaluate(
        dp.program(counting_linear, 2 * f.arrays[0]),
        x[::-1],
        y,
        ATTACKS[:2],
        key=jax.random.key(3),
        batch_size=7,
        flags=False,
    )
    assert len(traces) == first


@pytest.mark.slow
def test_per_example_radii_and_named_attacks():
    f, x, y, exact = make_problem()
    radii = jnp.asarray(np.where(np.arange(30) % 2, exact * 1.01, exact * 0.99), jnp.float32)
    attack = {"name": adv.fgsm(epsilon=radii)}
    report = adv.evaluate(f, x, y, attack, key=jax.random.key(0), batch_size=9)
    np.testing.assert_array_equal(report.outcomes[0].found.success[4:], np.arange(4, 30) % 2 == 1)
    assert report.robust(radii).count == report.outcomes[0].accuracy.count == 13
    assert "name" in str(report)
    assert " .. " in str(report).splitlines()[3]


@pytest.mark.slow
def test_report_lists_the_stages_of_a_cascade():
    f, x, y, _ = make_problem()
    attack = adv.cascade([adv.fgsm(epsilon=EPSILON), adv.square(epsilon=EPSILON, queries=5)])
    result = adv.evaluate(f, x, y, [attack], key=jax.random.key(0), flags=False, batch_size=8)
    assert result.outcomes[0].found.broken["fgsm"] == 26 - result.robust(EPSILON).count
    assert "  fgsm" in str(result)


def test_nan_logits_count_as_misclassified():
    f, x, y, _ = make_problem()
    f_with_nan = lambda x: f(x) * jnp.where(jnp.arange(len(x)) % 2, jnp.nan, 1)[:, None]
    result = adv.evaluate(f_with_nan, x, y, ATTACKS[:1], key=jax.random.key(0), flags=False)
    assert not result.correct[1::2].any()
    assert result.clean.count == 13


@pytest.mark.slow
def test_examples_may_be_pytrees():
    f, x, y, _ = make_problem()
    tree = {"a": x, "b": jnp.full((30, 1), 0.5)}
    result = adv.evaluate(f, tree, y, ATTACKS[:1], key=jax.random.key(0))
    np.testing.assert_array_equal(
        result.outcomes[0].found.success,
        adv.evaluate(f, x, y, ATTACKS[:1], key=jax.random.key(0)).outcomes[0].found.success,
    )


def test_a_model_without_a_correct_prediction():
    f, x, _, _ = make_problem()
    wrong = 1 - f(x).argmax(1)
    result = adv.evaluate(f, x, wrong, ATTACKS[:1], key=jax.random.key(0))
    assert (result.clean.count, result.robust(0.0).count, result.flags) == (0, 0, ())


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
            r"one value for each of 30 examples, got shape \[7\]",
        ),
        ([adv.fgsm()], {"key": 0}, TypeError, "key must be a PRNG key"),
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
def test_invalid_arguments_raise(attacks, keywords, error, message):
    f, x, y, _ = make_problem()
    given = {"f": f, "x": x, "y": y, "key": jax.random.key(0)} | keywords
    with pytest.raises(error, match=message):
        adv.evaluate(given.pop("f"), given.pop("x"), given.pop("y"), attacks, **given)


@pytest.mark.slow
def test_nan_logits_raise_a_flag():
    x, y = jnp.array([[0.9, 0.1], [0.6, 0.5], [0.2, 0.8]]), jnp.array([0, 0, 1])
    with_nan = lambda x: jnp.where(x[:, :1] > 0.8, jnp.nan, x)
    report = adv.evaluate(with_nan, x, y, [adv.fgsm(epsilon=0.01)], key=jax.random.key(0))
    random_report = adv.evaluate(
        lambda x, key: with_nan(x),
        x,
        y,
        [adv.expectation(adv.fgsm(epsilon=0.01), 2)],
        key=jax.random.key(0),
    )
    for result in (report, random_report):
        assert (result.clean.count, result.robust(0.01).count) == (2, 2)
        assert result.flags[0].name == "NaN logits"


def test_examples_with_nan_logits_count_as_misclassified_under_every_attack():
    f = lambda x: jnp.where(x[:, :1] < 0.3, jnp.nan, 1) * jnp.stack([x[:, 0], 1 - x[:, 0]], 1)
    x = jnp.array([[0.1], [0.7], [0.9], [0.6]])
    report = adv.evaluate(
        f, x, jnp.zeros(4, int), [adv.fgsm(epsilon=0.0)], key=jax.random.key(0), flags=False
    )
    assert report.clean.count == report.outcomes[0].accuracy.count == report.robust(0.0).count == 3
