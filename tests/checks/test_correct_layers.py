"""No false alarms: every correct layer passes, at every seed and in every dtype."""

import jax
import jax.numpy as jnp
import jax.test_util
import pytest

from diffprog import backprop as bp
from diffprog import checks


def matrix(key):
    return jax.random.normal(key, (5, 4))


def image(key):
    return jax.random.normal(key, (2, 7, 6, 2))


def sequences(key):
    return jax.random.normal(key, (2, 3, 4))


def positive(key):
    return jax.random.uniform(key, (5, 4), minval=0.1, maxval=3.0)


def pair(key):
    return tuple(jax.random.normal(key, (2, 5, 4)))


def logits_and_labels(key):
    return matrix(key), jax.random.randint(key, (5,), 0, 4)


def logits_and_distribution(key):
    return matrix(key), jax.nn.softmax(matrix(jax.random.fold_in(key, 1)))


def logit_and_probability(key):
    return matrix(key)[:, 0], jax.nn.sigmoid(matrix(jax.random.fold_in(key, 1))[:, 0])


def matrix_and_key(key):
    return matrix(key), key


def ids(key):
    return jax.random.randint(key, (2, 5), 0, 3)


MLP = bp.chain(
    [bp.affine(4, 6), bp.tanh(), bp.affine(6, 6), bp.relu(), bp.affine(6, 3), bp.softmax()]
)
CNN = bp.chain([bp.convolution(2, 3, 3), bp.relu(), bp.max_pool(), bp.flatten(), bp.affine(27, 4)])
FORK = bp.dag(
    {"a": (bp.tanh(), "x"), "b": (bp.sigmoid(), "x"), "y": (bp.multiply(), ("a", "b"))}, output="y"
)
LAYERS = {
    "affine": (bp.affine(4, 3), matrix),
    "affine without bias": (bp.affine(4, 3, bias=False), matrix),
    "extended_affine": (bp.extended_affine(4, 3), matrix),
    "sigmoid": (bp.sigmoid(), matrix),
    "tanh": (bp.tanh(), matrix),
    "relu": (bp.relu(), matrix),
    "leaky_relu": (bp.leaky_relu(), matrix),
    "elu": (bp.elu(0.7), matrix),
    "softmax": (bp.softmax(), matrix),
    "log_softmax": (bp.log_softmax(), matrix),
    "maxout": (bp.maxout(4, 3, pieces=3), matrix),
    "convolution": (bp.convolution(2, 3, 3), image),
    "convolution stride 2": (bp.convolution(2, 3, 3, stride=2, padding="VALID"), image),
    "max_pool": (bp.max_pool(2), image),
    "average_pool": (bp.average_pool(3), image),
    "flatten": (bp.flatten(), image),
    "add": (bp.add(), pair),
    "multiply": (bp.multiply(), pair),
    "copy": (bp.copy(3), matrix),
    "max_over": (bp.max_over([[0, 1], [1, 2, 3]]), matrix),
    "pairwise_product": (bp.pairwise_product(), matrix),
    "power_product": (bp.power_product(4, 3), positive),
    "layer_norm": (bp.layer_norm(4), matrix),
    "batch_norm": (bp.batch_norm(4), matrix),
    "dropout": (bp.dropout(0.5), matrix_and_key),
    "embedding": (bp.embedding(3, 4), ids),
    "attention": (bp.attention(4), sequences),
    "attention causal": (bp.attention(4, causal=True), sequences),
    "residual": (bp.residual(bp.affine(4, 4)), matrix),
    "half_squared_error": (bp.half_squared_error(), pair),
    "softmax_cross_entropy": (bp.softmax_cross_entropy(), logits_and_labels),
    "softmax_kl": (bp.softmax_kl(), logits_and_distribution),
    "sigmoid_kl": (bp.sigmoid_kl(), logit_and_probability),
    "mean_over_examples": (bp.mean_over_examples(bp.half_squared_error()), pair),
    "sum_over_examples": (bp.sum_over_examples(bp.softmax_cross_entropy()), logits_and_labels),
    "chain": (MLP, matrix),
    "chain of spatial layers": (CNN, image),
    "dag": (FORK, matrix),
}


def make_problem(name, seed, dtype):
    layer, sample = LAYERS[name]
    init_key, x_key, key = jax.random.split(jax.random.key(seed), 3)
    with jax.enable_x64(dtype == "float64"):
        cast = lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        return layer, *jax.tree.map(cast, (layer.init(init_key), sample(x_key))), key


def false_alarms(name, seed, dtype):
    layer, params, x, key = make_problem(name, seed, dtype)
    report = checks.check_layer(layer, params, x, key=key)
    return (
        [str(report)]
        if not report.ok or any(f.verdict == "autodiff-wrong" for f in report.findings)
        else []
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["affine", "relu", "softmax", "embedding", "dag"])
def test_correct_layers_pass(name):
    assert not [
        alarm
        for seed, dtype in ((0, "float32"), (1, "bfloat16"))
        for alarm in false_alarms(name, seed, dtype)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_correct_layers_pass_at_ten_seeds_in_three_dtypes(name):
    assert not [
        alarm
        for seed in range(10)
        for dtype in ("float64", "float32", "bfloat16")
        for alarm in false_alarms(name, seed, dtype)
    ]


@pytest.mark.slow
def test_float32_errors_are_within_their_bounds_and_mostly_near():
    # Half of the layers are within two digits of the bound, so that a larger loss would be noticed.
    ratios = {}
    for name in LAYERS:
        layer, params, x, key = make_problem(name, 3, "float32")
        precision = checks.check_layer(layer, params, x, key=key).precision
        ratios[name] = max(
            (
                entry.error / entry.bound
                for entry in precision
                if entry.dtype == "float32" and entry.error
            ),
            default=None,
        )
    sorted_ratios = sorted(ratio for ratio in ratios.values() if ratio is not None)
    assert len(sorted_ratios) > len(LAYERS) / 2
    assert sorted_ratios[len(sorted_ratios) // 2] > 0.01, ratios
    assert sorted_ratios[-1] < 1, ratios


@pytest.mark.slow
def test_fewer_false_alarms_than_jax_test_util(capsys):
    cases = [(name, dtype) for name in LAYERS for dtype in ("float64", "float32", "bfloat16")]
    ours, theirs = [], []
    for name, dtype in cases:
        if false_alarms(name, 0, dtype):
            ours.append((name, dtype))
        if is_rejected_by_check_grads(*make_problem(name, 0, dtype)[:3]):
            theirs.append((name, dtype))
        if dtype == "bfloat16":
            jax.clear_caches()  # all layers together are gigabytes of compiled programs
    with capsys.disabled():
        print(
            f"\n{len(cases)} correct layers: diffprog.checks rejects {len(ours)}, "
            f"jax.test_util.check_grads {len(theirs)}"
        )
        print(
            *(
                f"  {dtype}: {sum(case[1] == dtype for case in theirs)}"
                for dtype in ("float64", "float32", "bfloat16")
            ),
            sep="\n",
        )
    assert not ours


def is_rejected_by_check_grads(layer, params, x):
    """Call `check_grads` in reverse mode with its default tolerance."""
    leaves, treedef = jax.tree.flatten((params, x))
    floats = [k for k, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def f(*values):
        both = dict(enumerate(leaves)) | dict(zip(floats, values, strict=True))
        return bp.differentiable(layer)(
            *jax.tree.unflatten(treedef, [both[k] for k in range(len(leaves))])
        )

    with jax.enable_x64(any(leaf.dtype == "float64" for leaf in leaves)):
        try:
            jax.test_util.check_grads(f, tuple(leaves[k] for k in floats), order=1, modes=["rev"])
        except (AssertionError, TypeError, ValueError):
            return True
    return False
